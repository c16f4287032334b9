//! What the vCPUs of a node, and the other nodes, ask for.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;

use dsm_core::types::NodeId;
use kvm_vcpu::bus::Bus;
use kvm_vcpu::devices::MachineEvent;
use kvm_vcpu::time::tsc;
use kvm_vcpu::vm::{Interrupt, Io, Outside, Stop, VcpuId};

use super::access::{Accesses, Slots, serve};
use super::ask;
use super::clock::{self, Clock};
use super::hub::Hub;
use super::message::VmMessage;
use super::profile::Profile;
use super::virtio::Virtio;

/// What the lifecycle's thread is told.
pub(super) enum Event {
    /// A message of the lifecycle.
    Message(NodeId, VmMessage),
    /// A device of this node asks for something.
    Machine(MachineEvent),
    /// A vCPU of this node can't go on.
    Stopped(VcpuId, Stop),
    /// A thread of this node, or a connection, can't go on.
    Failed(String),
    /// A node was lost.
    Lost(String),
    /// The program asks for something.
    Ask(super::lifecycle::Ask),
    /// This node's clock is set, or can't be.
    Clock(Result<(), String>),
}

/// What all threads of a virtual machine share at one node.
pub(super) struct Core {
    pub(super) hub: Arc<Hub>,
    pub(super) bus: Bus,
    /// The virtio devices of this node.
    pub(super) virtio: Virtio,
    /// Set before the guest's memory is lost with a node.
    pub(super) lost: Arc<AtomicBool>,
    pub(super) slots: Arc<Slots>,
    pub(super) clock: Arc<Clock>,
    pub(super) events: Sender<Event>,
    /// Where the guest waits for pages, if that is to be known.
    pub(super) profile: Option<Profile>,
}

impl Core {
    /// What a peer says.
    pub(super) fn hear(&self, from: NodeId, message: VmMessage) {
        let hub = &self.hub;
        match message {
            VmMessage::Interrupt { generation, vcpu, interrupt } => {
                hub.inject(generation, vcpu, interrupt);
            }
            VmMessage::EndOfInterrupt { generation, vector } => {
                hub.end_of_interrupt_there(generation, vector);
            }
            VmMessage::Access { generation, vcpu, sequence, space, address, size, payload } => {
                if generation != hub.generation() {
                    return;
                }
                let answers = Arc::clone(hub);
                serve(&self.bus, (space, address, size.into()), payload, move |data| {
                    if sequence == 0 {
                        return;
                    }
                    let hub = Arc::clone(&answers);
                    answers.after_lines(move || {
                        hub.post.send(from, &VmMessage::Answer { vcpu, sequence, data });
                    });
                });
            }
            VmMessage::Answer { vcpu: ask::DEVICE, sequence, data } => {
                hub.answered(sequence, &data);
            }
            VmMessage::Answer { vcpu, sequence, data } => self.slots.answer(vcpu, sequence, data),
            VmMessage::Line { generation, number, gsi, high } => {
                hub.line_there(from, generation, number, gsi, high);
            }
            VmMessage::LineAck { number } => hub.line_acked(number),
            VmMessage::Routes { generation, number, routes } => {
                hub.routes_there(from, generation, number, &routes);
            }
            VmMessage::RoutesAck { number } => hub.routes_acked(number),
            VmMessage::TimeAsk { sent } => {
                hub.post.send(from, &VmMessage::TimeTell { sent, told: tsc::now() });
            }
            VmMessage::TimeTell { sent, told } => clock::told(self, from, sent, told),
            VmMessage::TimeSet { setting, error_ns } => {
                clock::follow(self, from, setting, error_ns as f64);
            }
            lifecycle @ (VmMessage::Join(_)
            | VmMessage::Ready { .. }
            | VmMessage::Order { .. }
            | VmMessage::Paused { .. }
            | VmMessage::Cleared { .. }
            | VmMessage::Request { .. }) => self.tell(Event::Message(from, lifecycle)),
        }
    }

    /// Tells the lifecycle's thread; it outlives all who do.
    pub(super) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

impl Outside for Core {
    fn interrupt(&self, to: VcpuId, interrupt: Interrupt) {
        self.hub.forward(to, interrupt);
    }

    fn end_of_interrupt(&self, _: VcpuId, vector: u8) {
        self.hub.end_of_interrupt(vector);
    }

    fn io(&self, vcpu: VcpuId, io: Io<'_>) {
        let generation = self.hub.generation();
        let accesses =
            Accesses { bus: &self.bus, post: &self.hub.post, slots: &self.slots, generation };
        accesses.answer(vcpu, io);
        if !self.hub.lines_in_force() {
            self.slots.wait_until(vcpu, |done| self.hub.after_lines(done));
        }
    }

    fn sampled(&self, vcpu: VcpuId, rip: u64) {
        if let Some(profile) = &self.profile {
            profile.sampled(vcpu, rip);
        }
    }

    fn stopped(&self, vcpu: VcpuId, stop: Stop) {
        self.tell(Event::Stopped(vcpu, stop));
    }

    fn failed(&self, vcpu: VcpuId, reason: String) {
        self.tell(Event::Failed(format!("vCPU {vcpu}: {reason}")));
    }
}
