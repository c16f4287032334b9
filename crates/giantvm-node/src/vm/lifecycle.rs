//! From the first word between the nodes to the end of the guest.
//!
//! ```text
//! joining -> setting the clock -> making the machine -> ready -> running <-> paused -> ended
//!                                        ^----------- reset ----------'
//! ```
//!
//! Node 0 gives the orders: it has all nodes run when all are ready, and decides between requests
//! that cross. A node whose guest can't go on stops its own vCPUs before it asks.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dsm_core::engine::PageTables;
use dsm_core::pages::sigbus::survive_lost_memory;
use dsm_core::types::NodeId;
use kvm_vcpu::devices::MachineEvent;

use super::clock::{self, ClockThread, HostClock};
use super::core::{Core, Event};
use super::maker::Maker;
use super::message::{Join, Order, Outcome, VmMessage, Walks};
use super::tables::GuestTables;
use crate::node::{Region, lock};

/// How often vCPUs that were found halted are woken, in case one was not.
const REVIVE: Duration = Duration::from_millis(250);
/// How often a pause under way is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How long the threads of devices get for a reset: one may wait for a disk.
const DEVICES_END: Duration = Duration::from_secs(60);
/// How long the threads of a machine that ends get before they are left behind: one may wait for
/// memory of a node that is lost.
const END: Duration = Duration::from_secs(5);

/// What a program may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Run,
    Pause,
    Reset,
    Stop,
    /// The handle is gone.
    Quit,
}

/// What a virtual machine is doing, as this node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmState {
    /// Not all nodes are there, or their machines are being made.
    Starting,
    /// All nodes are ready; nobody has asked it to run.
    Ready,
    /// The guest runs.
    Running,
    /// All vCPUs of this node have stopped.
    Paused,
    /// It is over.
    Ended(Outcome),
}

impl VmState {
    /// In a word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended(_) => "ended",
        }
    }
}

/// Tells threads of the program how it stands.
pub(super) struct Watch {
    state: Mutex<VmState>,
    changed: Condvar,
    on_end: Mutex<Vec<OnEnd>>,
}

/// Called once, at the end.
type OnEnd = Box<dyn FnOnce() + Send>;

impl Watch {
    pub(super) fn new() -> Self {
        let state = Mutex::new(VmState::Starting);
        Self { state, changed: Condvar::new(), on_end: Mutex::default() }
    }

    pub(super) fn get(&self) -> VmState {
        lock(&self.state).clone()
    }

    fn set(&self, state: VmState) {
        let ended = matches!(state, VmState::Ended(_));
        *lock(&self.state) = state;
        self.changed.notify_all();
        if ended {
            self.tell_end();
        }
    }

    fn tell_end(&self) {
        let calls = std::mem::take(&mut *lock(&self.on_end));
        calls.into_iter().for_each(|call| call());
    }

    /// Has `call` called when it has ended.
    pub(super) fn on_end(&self, call: OnEnd) {
        lock(&self.on_end).push(call);
        // Whoever ends it takes the calls after it has said so: one of the two finds this one.
        if matches!(self.get(), VmState::Ended(_)) {
            self.tell_end();
        }
    }

    /// Waits for a state that `wanted` accepts, until `deadline`.
    pub(super) fn wait(
        &self,
        wanted: impl Fn(&VmState) -> bool,
        deadline: Option<Instant>,
    ) -> Option<VmState> {
        let mut state = lock(&self.state);
        loop {
            if wanted(&state) {
                return Some(state.clone());
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return None;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// State of the lifecycle's thread.
pub(super) struct Lifecycle {
    pub(super) me: NodeId,
    pub(super) core: Arc<Core>,
    pub(super) events: Receiver<Event>,
    pub(super) watch: Arc<Watch>,
    pub(super) maker: Maker,
    pub(super) memory: Region,
    pub(super) names: Vec<String>,
    pub(super) joins: Vec<Option<Join>>,
    pub(super) generation: u32,
    /// At node 0: the nodes that are ready, or paused, in this generation.
    pub(super) ready: BTreeSet<NodeId>,
    pub(super) paused: BTreeSet<NodeId>,
    /// Runs as soon as all are ready.
    pub(super) auto_run: bool,
    pub(super) pausing: bool,
    /// At the node that loads the guest: the generation up to which each node has let go of the guest's
    /// memory.
    pub(super) cleared: Vec<u32>,
    /// It waits for that.
    pub(super) loading: bool,
    /// Keeps this host's clock, if it is this node that does.
    pub(super) clock: Option<ClockThread>,
}

impl Lifecycle {
    /// Serves until the handle is gone.
    pub(super) fn run(mut self) {
        // Loading the guest may wait for a page of a node that is lost.
        survive_lost_memory(Arc::clone(&self.core.lost));
        if let Some(Some(join)) = self.joins.get(self.me.index()) {
            self.core.hub.post.broadcast(&VmMessage::Join(join.clone()));
        }
        self.look_at_joins();
        let mut revived = Instant::now();
        loop {
            let patience = if self.pausing { LOOK } else { REVIVE };
            match self.events.recv_timeout(patience) {
                Ok(Event::Ask(Ask::Quit)) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if revived.elapsed() >= REVIVE {
                revived = Instant::now();
                self.core.hub.machine().inspect(|machine| machine.revive());
            }
            self.look_at_pause();
        }
        if !self.ended() {
            self.ask(Order::End(Outcome::Stopped));
            self.end(Outcome::Stopped);
        }
    }

    fn ended(&self) -> bool {
        matches!(self.watch.get(), VmState::Ended(_))
    }

    fn take(&mut self, event: Event) {
        if self.ended() {
            return;
        }
        match event {
            Event::Message(from, message) => self.hear(from, message),
            Event::Machine(MachineEvent::Reset) => self.ask(Order::Reset),
            Event::Machine(MachineEvent::PowerOff) => self.ask(Order::End(Outcome::PowerOff)),
            Event::Machine(MachineEvent::DebugExit(status)) => {
                self.ask(Order::End(Outcome::DebugExit { status }));
            }
            Event::Stopped(vcpu, stop) => {
                self.stop_here();
                let reason = format!("vCPU {vcpu} on node {}: {stop}", self.name(self.me));
                self.ask(Order::End(Outcome::GuestFault { reason }));
            }
            Event::Failed(reason) => self.fail(&reason),
            Event::Lost(reason) => self.end(Outcome::Lost { reason }),
            Event::Clock(Ok(())) => self.make(),
            Event::Clock(Err(reason)) => self.fail(&reason),
            Event::Ask(Ask::Run) => self.ask(Order::Run),
            Event::Ask(Ask::Pause) => self.ask(Order::Pause),
            Event::Ask(Ask::Reset) => self.ask(Order::Reset),
            Event::Ask(Ask::Stop) => self.ask(Order::End(Outcome::Stopped)),
            Event::Ask(Ask::Quit) => {}
        }
    }

    fn name(&self, node: NodeId) -> &str {
        self.names.get(node.index()).map_or("?", String::as_str)
    }

    fn hear(&mut self, from: NodeId, message: VmMessage) {
        match message {
            VmMessage::Join(join) => {
                if let Some(slot) = self.joins.get_mut(from.index())
                    && slot.is_none()
                {
                    *slot = Some(join);
                    self.look_at_joins();
                }
            }
            VmMessage::Ready { generation, failed } if generation == self.generation => {
                match failed {
                    Some(reason) => self.order(Order::End(Outcome::Failed { reason })),
                    None => self.is_ready(from),
                }
            }
            VmMessage::Paused { generation } if generation == self.generation => {
                self.paused.insert(from);
            }
            VmMessage::Cleared { generation } => {
                if let Some(cleared) = self.cleared.get_mut(from.index()) {
                    *cleared = generation.max(*cleared);
                    self.load_when_clear();
                }
            }
            VmMessage::Request { generation, order } if generation == self.generation => {
                self.order(order);
            }
            VmMessage::Order { generation, order }
                if from.index() == 0 && generation == self.generation =>
            {
                self.obey(order);
            }
            _ => {}
        }
    }

    // Joining.

    fn look_at_joins(&mut self) {
        let joins: Vec<&Join> = self.joins.iter().flatten().collect();
        if joins.len() < self.joins.len() {
            return;
        }
        if let Some(other) = joins.iter().position(|join| join.digest != joins[0].digest) {
            let name = self.names.get(other).map_or("?", String::as_str);
            return self.fail(&format!(
                "nodes {} and {name} describe different virtual machines; give all nodes the same \
                 file",
                self.names[0]
            ));
        }
        if let Err(reason) = self.maker.agree(&joins, &self.names) {
            return self.fail(&reason);
        }
        if let Err(reason) = self.share_walked(&joins) {
            return self.fail(&reason);
        }
        let clocks: Vec<&HostClock> = joins.iter().map(|join| &join.clock).collect();
        match clock::start(&self.core, &clocks, self.maker.spec.tsc, self.me) {
            Ok(thread) => self.clock = thread,
            Err(reason) => self.fail(&reason),
        }
    }

    /// Has the guest's page tables be walk-shared, if that is wanted: all nodes come to the same.
    fn share_walked(&self, joins: &[&Join]) -> Result<(), String> {
        let wanted = self.maker.spec.walk_shared;
        let any = |what: fn(&Walks) -> bool| joins.iter().any(|join| what(&join.walks));
        if joins.len() == 1 || !wanted.unwrap_or(any(|it| it.write) && any(|it| it.linux)) {
            return Ok(());
        }
        if let Some(node) = joins.iter().position(|join| !join.walks.one_worker) {
            let name = self.names.get(node).map_or("?", String::as_str);
            return match wanted {
                Some(true) => Err(format!(
                    "walk_shared needs a node's memory in one hand, and node {name} has several \
                     workers: set workers = 1"
                )),
                _ => Ok(()),
            };
        }
        let hub = Arc::downgrade(&self.core.hub);
        let tables: Arc<dyn PageTables> = Arc::new(GuestTables::new(hub, &self.maker.layout));
        if self.memory.share_walked(&tables) {
            self.core.hub.post.wait_for_stores(self.memory.flusher());
        }
        Ok(())
    }

    fn make(&mut self) {
        let failed = self.maker.make(&self.core, self.generation).err();
        let ready = VmMessage::Ready { generation: self.generation, failed: failed.clone() };
        match (self.me.index(), failed) {
            (0, None) => self.is_ready(self.me),
            (0, Some(reason)) => self.order(Order::End(Outcome::Failed { reason })),
            _ => {
                self.send_first(&ready);
                if self.auto_run || self.generation > 0 {
                    return;
                }
                self.watch.set(VmState::Ready);
            }
        }
    }

    fn is_ready(&mut self, node: NodeId) {
        self.ready.insert(node);
        if self.ready.len() < self.joins.len() {
            return;
        }
        if self.auto_run || self.generation > 0 {
            self.order(Order::Run);
        } else {
            self.watch.set(VmState::Ready);
        }
    }

    // Orders.

    fn send_first(&self, message: &VmMessage) {
        if let Some(first) = NodeId::new(0) {
            self.core.hub.post.send(first, message);
        }
    }

    /// Asks node 0 for an order, which this may be.
    fn ask(&mut self, order: Order) {
        if self.me.index() == 0 {
            return self.order(order);
        }
        self.send_first(&VmMessage::Request { generation: self.generation, order });
    }

    /// This node can't go on.
    fn fail(&mut self, reason: &str) {
        self.stop_here();
        let reason = format!("node {}: {reason}", self.name(self.me));
        let order = Order::End(Outcome::Failed { reason: reason.clone() });
        self.ask(order);
        // Others learn of it from node 0, if it can be reached; this one is through.
        self.end(Outcome::Failed { reason });
    }

    /// At node 0: has all nodes obey.
    fn order(&mut self, order: Order) {
        if self.me.index() != 0 || self.ended() {
            return;
        }
        if order == Order::Run && self.ready.len() < self.joins.len() {
            self.auto_run = true;
            return;
        }
        let message = VmMessage::Order { generation: self.generation, order: order.clone() };
        self.core.hub.post.broadcast(&message);
        self.obey(order);
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Run => {
                self.pausing = false;
                self.paused.clear();
                if let Some(machine) = self.core.hub.machine() {
                    machine.resume();
                }
                self.watch.set(VmState::Running);
            }
            Order::Pause => {
                if let Some(machine) = self.core.hub.machine() {
                    machine.pause();
                    self.pausing = true;
                }
            }
            Order::Reset => self.reset(),
            Order::End(outcome) => self.end(outcome),
        }
    }

    fn look_at_pause(&mut self) {
        let machine = self.core.hub.machine().filter(|_| self.pausing);
        if machine.is_some_and(|machine| machine.wait_paused(Duration::ZERO)) {
            self.pausing = false;
            self.watch.set(VmState::Paused);
            self.send_first(&VmMessage::Paused { generation: self.generation });
        }
    }

    /// No vCPU of this node runs the guest any more, as far as the machine goes.
    fn stop_here(&self) {
        if let Some(machine) = self.core.hub.machine() {
            machine.pause();
        }
    }

    /// Says whether all threads have let go of the guest's memory.
    fn take_down(&mut self, generation: u32, devices: Duration) -> bool {
        let machine = self.core.hub.machine();
        // In this order: nothing new begins, whoever waits goes on, and finds the machine ended.
        self.core.hub.set_machine(None, generation);
        if let Some(machine) = &machine {
            machine.pause();
        }
        self.core.virtio.halt();
        self.core.slots.end();
        self.core.hub.reset();
        let ended = machine.is_none_or(|machine| machine.end(END));
        self.core.virtio.wait_quiet(devices) && ended
    }

    fn reset(&mut self) {
        self.watch.set(VmState::Starting);
        self.generation += 1;
        self.ready.clear();
        self.paused.clear();
        self.pausing = false;
        if !self.take_down(self.generation, DEVICES_END) {
            return self.fail("a vCPU or a device did not stop for the reset");
        }
        self.core.slots.reopen();
        self.core.bus.reset();
        let boots = self.maker.spec.vcpus.first().map(|vcpu| vcpu.node);
        if boots == Some(self.me.index()) {
            self.cleared[self.me.index()] = self.generation;
            self.loading = true;
            return self.load_when_clear();
        }
        if let Some(node) = boots.and_then(NodeId::new) {
            self.core.hub.post.send(node, &VmMessage::Cleared { generation: self.generation });
        }
        self.make();
    }

    /// Loads the guest anew once no node's vCPUs and devices of before can write over it.
    fn load_when_clear(&mut self) {
        if self.loading && self.cleared.iter().all(|cleared| *cleared >= self.generation) {
            self.loading = false;
            self.make();
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if self.ended() {
            return;
        }
        self.pausing = false;
        if !self.take_down(self.generation, END) {
            log::warn!("a vCPU or a device waits for memory that does not come");
        }
        self.core.virtio.close();
        // Nobody reads the clock any more.
        self.clock = None;
        self.watch.set(VmState::Ended(outcome));
    }
}
