//! The interrupts of a virtual machine: between its nodes, and from the IOAPIC to all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use dsm_core::types::NodeId;
use kvm_vcpu::bus::{Access, Device, Reply};
use kvm_vcpu::chips::{Ioapic, IoapicAction, Message, Route};
use kvm_vcpu::vm::{GsiRoute, Interrupt, KvmError, Machine, VcpuId};

use super::ask::Asked;
use super::message::VmMessage;
use super::post::Post;
use crate::node::lock;

/// Something to be done once.
type Then = Box<dyn FnOnce() + Send>;

/// What the threads of one node share to move interrupts.
pub(super) struct Hub {
    me: NodeId,
    ioapic_home: NodeId,
    /// The node of each vCPU.
    node_of: Vec<NodeId>,
    pub(super) post: Arc<Post>,
    machine: Mutex<Option<Arc<Machine>>>,
    generation: AtomicU32,
    ioapic: Mutex<IoapicHome>,
    /// The number of the routes in force in KVM here.
    routes_in_force: Mutex<u64>,
    lines: Mutex<Lines>,
    asked: Asked,
}

/// The IOAPIC at its home, and the routes that are on their way to the other nodes.
#[derive(Default)]
struct IoapicHome {
    chip: Ioapic,
    routes: BTreeMap<usize, Route>,
    /// Number of the latest routes.
    number: u64,
    under_way: BTreeMap<u64, Publication>,
    /// Interrupts that wait until all nodes have the routes: a node without them would not tell of
    /// their end.
    held: Vec<Message>,
}

/// Routes that some nodes have not acknowledged.
struct Publication {
    missing: usize,
    then: Option<Then>,
}

/// Changes of lines that the IOAPIC's home has not acknowledged.
#[derive(Default)]
struct Lines {
    last: u64,
    open: BTreeSet<u64>,
    /// What waits for all changes up to a number.
    waiting: Vec<(u64, Then)>,
}

/// What is to be done after a change of the IOAPIC, once its lock is free.
#[derive(Default)]
struct Work {
    publish: Option<(u64, Vec<GsiRoute>)>,
    deliver: Vec<Message>,
    then: Option<Then>,
}

impl Hub {
    pub(super) fn new(
        me: NodeId,
        ioapic_home: NodeId,
        node_of: Vec<NodeId>,
        post: Arc<Post>,
    ) -> Self {
        Self {
            me,
            ioapic_home,
            node_of,
            post,
            machine: Mutex::default(),
            generation: AtomicU32::new(0),
            ioapic: Mutex::default(),
            routes_in_force: Mutex::new(0),
            lines: Mutex::default(),
            asked: Asked::default(),
        }
    }

    /// The machine of this generation, or none while it is made anew.
    pub(super) fn set_machine(&self, machine: Option<Arc<Machine>>, generation: u32) {
        self.generation.store(generation, Ordering::SeqCst);
        *lock(&self.machine) = machine;
    }

    pub(super) fn machine(&self) -> Option<Arc<Machine>> {
        lock(&self.machine).clone()
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The machine, if a message is for the guest as it is now.
    fn machine_of(&self, generation: u32) -> Option<Arc<Machine>> {
        if generation == self.generation() { self.machine() } else { None }
    }

    /// Everything that was on its way means nothing any more; whoever waits goes on.
    pub(super) fn reset(&self) {
        let mut waiting: Vec<Then> = Vec::new();
        {
            let mut home = lock(&self.ioapic);
            let number = home.number;
            let then = std::mem::take(&mut home.under_way).into_values().filter_map(|it| it.then);
            waiting.extend(then);
            *home = IoapicHome { number, ..IoapicHome::default() };
        }
        {
            let mut lines = lock(&self.lines);
            lines.open.clear();
            waiting.extend(std::mem::take(&mut lines.waiting).into_iter().map(|(_, then)| then));
        }
        waiting.into_iter().for_each(|then| then());
        self.asked.reset();
    }

    // Interrupts between vCPUs.

    /// Sends an interrupt to the vCPU's node.
    pub(super) fn forward(&self, vcpu: VcpuId, interrupt: Interrupt) {
        let Some(&node) = self.node_of.get(vcpu.0 as usize) else { return };
        let generation = self.generation();
        self.post.send(node, &VmMessage::Interrupt { generation, vcpu, interrupt });
    }

    /// An interrupt has come for a vCPU of this node.
    pub(super) fn inject(&self, generation: u32, vcpu: VcpuId, interrupt: Interrupt) {
        let Some(machine) = self.machine_of(generation) else { return };
        if self.node_of.get(vcpu.0 as usize) != Some(&self.me) {
            return log::warn!("an interrupt for vCPU {vcpu}, which is not on this node");
        }
        report(machine.interrupt(vcpu, interrupt));
    }

    /// A message-signalled interrupt of a device of this node.
    pub(super) fn message(&self, message: Message) {
        let Some(machine) = self.machine() else { return };
        // One for a single vCPU of another node needs no stand-in to find that out. It must not take
        // that way, either: when a guest has read from the device what tells it that no interrupt
        // comes to a vCPU any more, all that did must be there, so they go before the answer.
        if let Some((id, vector)) = message.single()
            && self.node_of.get(id as usize).is_some_and(|node| *node != self.me)
        {
            return self.forward(VcpuId(id), Interrupt::Fixed { vector, level: false });
        }
        let message = message.for_kvm();
        report(machine.message(message.address, message.data).map(drop));
    }

    /// A vCPU of this node has ended a level-triggered interrupt.
    pub(super) fn end_of_interrupt(&self, vector: u8) {
        if self.ioapic_home == self.me {
            self.change(None, |chip| chip.eoi(vector));
        } else {
            let generation = self.generation();
            self.post.send(self.ioapic_home, &VmMessage::EndOfInterrupt { generation, vector });
        }
    }

    /// The same, of another node.
    pub(super) fn end_of_interrupt_there(&self, generation: u32, vector: u8) {
        if generation == self.generation() && self.ioapic_home == self.me {
            self.change(None, |chip| chip.eoi(vector));
        }
    }

    /// Has the device at an address of another node, the access's offset, carry out an access.
    pub(super) fn ask(&self, node: NodeId, access: Access, reply: Reply) {
        self.post.send(node, &self.asked.ask(self.generation(), access, reply));
    }

    /// The answer to that.
    pub(super) fn answered(&self, sequence: u32, data: &[u8]) {
        self.asked.answer(sequence, data);
    }

    // Lines.

    /// A device of this node drives its line.
    pub(super) fn set_line(&self, gsi: u32, high: bool) {
        if self.ioapic_home == self.me {
            return self.change(None, |chip| chip.set_line(gsi as usize, high));
        }
        let number = {
            let mut lines = lock(&self.lines);
            lines.last += 1;
            let number = lines.last;
            lines.open.insert(number);
            number
        };
        let generation = self.generation();
        self.post.send(self.ioapic_home, &VmMessage::Line { generation, number, gsi, high });
    }

    /// Runs `then` when all changes of lines so far are in force: before an access to the device
    /// that made them completes, or its end of interrupt could overtake the change.
    pub(super) fn after_lines(&self, then: impl FnOnce() + Send + 'static) {
        {
            let mut lines = lock(&self.lines);
            if !lines.open.is_empty() {
                let last = lines.last;
                lines.waiting.push((last, Box::new(then)));
                return;
            }
        }
        then();
    }

    /// Whether [`Hub::after_lines`] would run at once.
    pub(super) fn lines_in_force(&self) -> bool {
        self.ioapic_home == self.me || lock(&self.lines).open.is_empty()
    }

    pub(super) fn line_there(
        &self,
        from: NodeId,
        generation: u32,
        number: u64,
        gsi: u32,
        high: bool,
    ) {
        if generation == self.generation() && self.ioapic_home == self.me {
            self.change(None, |chip| chip.set_line(gsi as usize, high));
        }
        self.post.send(from, &VmMessage::LineAck { number });
    }

    pub(super) fn line_acked(&self, number: u64) {
        let ready: Vec<Then> = {
            let mut lines = lock(&self.lines);
            lines.open.remove(&number);
            let first = lines.open.first().copied().unwrap_or(u64::MAX);
            lines.waiting.extract_if(.., |(last, _)| *last < first).map(|(_, then)| then).collect()
        };
        ready.into_iter().for_each(|then| then());
    }

    // The IOAPIC.

    /// Changes the chip and does what follows; `then` runs when that is in force on all nodes.
    fn change(&self, then: Option<Then>, call: impl FnOnce(&mut Ioapic) -> Vec<IoapicAction>) {
        let work = {
            let mut home = lock(&self.ioapic);
            let actions = call(&mut home.chip);
            home.plan(actions, self.post.peers(), then)
        };
        self.carry_out(work);
    }

    fn carry_out(&self, work: Work) {
        if let Some((number, routes)) = work.publish {
            self.put_in_force(number, &routes);
            let generation = self.generation();
            self.post.broadcast(&VmMessage::Routes { generation, number, routes });
        }
        work.deliver.into_iter().for_each(|message| self.message(message));
        if let Some(then) = work.then {
            then();
        }
    }

    /// Gives KVM the routes, unless newer ones came first.
    fn put_in_force(&self, number: u64, routes: &[GsiRoute]) {
        let mut in_force = lock(&self.routes_in_force);
        if number > *in_force
            && let Some(machine) = self.machine()
        {
            *in_force = number;
            report(machine.set_routes(routes));
        }
    }

    pub(super) fn routes_there(
        &self,
        from: NodeId,
        generation: u32,
        number: u64,
        routes: &[GsiRoute],
    ) {
        if generation == self.generation() {
            self.put_in_force(number, routes);
        }
        self.post.send(from, &VmMessage::RoutesAck { number });
    }

    pub(super) fn routes_acked(&self, number: u64) {
        let work = lock(&self.ioapic).acked(number);
        self.carry_out(work);
    }
}

impl IoapicHome {
    fn plan(&mut self, actions: Vec<IoapicAction>, peers: usize, then: Option<Then>) -> Work {
        let mut changed = false;
        for action in actions {
            match action {
                IoapicAction::Deliver { message, .. } => self.held.push(message),
                IoapicAction::RouteChanged { pin, route } => {
                    changed = true;
                    match route {
                        Some(route) => _ = self.routes.insert(pin, route),
                        None => _ = self.routes.remove(&pin),
                    }
                }
            }
        }
        let mut work = Work { then, ..Work::default() };
        if changed {
            self.number += 1;
            let routes = self.routes.iter().map(|(&pin, route)| gsi_route(pin, route)).collect();
            work.publish = Some((self.number, routes));
            if peers > 0 {
                let then = work.then.take();
                self.under_way.insert(self.number, Publication { missing: peers, then });
            }
        }
        if self.under_way.is_empty() {
            work.deliver = std::mem::take(&mut self.held);
        }
        work
    }

    fn acked(&mut self, number: u64) -> Work {
        let mut work = Work::default();
        if let Some(publication) = self.under_way.get_mut(&number) {
            publication.missing = publication.missing.saturating_sub(1);
            if publication.missing == 0 {
                work.then = self.under_way.remove(&number).and_then(|it| it.then);
            }
        }
        if self.under_way.is_empty() {
            work.deliver = std::mem::take(&mut self.held);
        }
        work
    }
}

fn gsi_route(pin: usize, route: &Route) -> GsiRoute {
    let message = route.message().for_kvm();
    GsiRoute { gsi: pin as u32, address: message.address, data: message.data }
}

fn report(result: Result<(), KvmError>) {
    if let Err(error) = result {
        log::error!("{}", dsm_core::report::chain(&error));
    }
}

/// The IOAPIC's registers, as a device of its home.
pub(super) struct IoapicDevice(pub(super) Arc<Hub>);

impl Device for IoapicDevice {
    fn name(&self) -> &str {
        "IOAPIC"
    }

    fn access(&self, access: Access, reply: Reply) {
        match access {
            Access::Read { offset, len } => {
                let data = lock(&self.0.ioapic).chip.read(offset, len);
                reply.read(data);
            }
            Access::Write { offset, data } => {
                let then: Then = Box::new(move || reply.written());
                self.0.change(Some(then), |chip| chip.write(offset, data));
            }
        }
    }

    // The hub is reset as a whole, lines and all that is on its way included.
    fn reset(&self) {}
}
