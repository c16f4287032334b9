//! The control thread: one loop over connections, commands and the clock.

mod connect;
mod dial;
mod losses;
mod objects;

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dsm_core::engine::{Engine, EngineEvent};
use dsm_core::pages::RegionMemory;
use dsm_core::transport::{Incoming, Listener, Stream};
use dsm_core::types::{Epoch, NodeId, RegionId};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::time::{ClockId, clock_gettime};

use self::dial::Dials;
use self::losses::Losses;
use super::api::NodeError;
use super::config::{NodeConfig, NodeSpec, list};
use super::dialer::Connected;
use super::etcd::Order;
use super::links::{Link, Links, Source};
use super::lost::{Lost, LostCallback, Registrations, Teller, end_regions, mark_lost};
use super::outrank;
use super::regions::{Catalogue, Directory};
use super::status::Status;
use crate::control::{ControlMessage, MemberMessage, RegionMessage};
use crate::membership::{Action, EndReason, Event, Machine, Said, State};
use crate::sync::{Outcome, SyncClient, SyncError, SyncHome, SyncName, SyncOp, ToHome};

/// Answers a thread of the application; it may be gone.
pub(super) type Reply<T> = SyncSender<T>;

/// What the control thread is told.
pub(super) enum ToDriver {
    Connected(Box<Connected>),
    DialFailed {
        peer: NodeId,
        reason: String,
    },
    /// The thread that called this node does so no more.
    DialEnded {
        peer: NodeId,
    },
    Engine(EngineEvent),
    Etcd(Said),
    Sync {
        ticket: u64,
        name: SyncName,
        op: SyncOp,
        reply: SyncAnswer,
    },
    /// Nobody waits for this ticket any more, not even for the end of its cancellation.
    GiveUpSync {
        ticket: u64,
    },
    Open {
        ticket: u64,
        name: String,
        bytes: u64,
        overcommit: bool,
        recover: bool,
        reply: Reply<RegionReply>,
    },
    Allocate {
        ticket: u64,
        region: RegionId,
        name: String,
        bytes: u64,
        align: u64,
        reply: Reply<RegionReply>,
    },
    /// Nobody waits for this ticket any more.
    Forget {
        ticket: u64,
    },
    /// The connections to all nodes that a virtual machine uses, once.
    TakeVm {
        reply: Reply<Vec<Option<Stream>>>,
    },
    /// The program is about to close: other nodes may leave from now on.
    Closing,
    /// Leave, and don't wait for others.
    Leave {
        /// Others may use what this node has.
        abandon: bool,
    },
}

/// Whom to tell the end of a request about locks, barriers and counters.
pub(super) type SyncAnswer = Reply<Result<Outcome, SyncError>>;

/// The end of a request about regions: a region's number or an offset.
pub(super) type RegionReply = Result<u64, NodeError>;

/// The way to the control thread.
#[derive(Clone)]
pub(super) struct Inbox {
    sender: Sender<ToDriver>,
    wake: Arc<OwnedFd>,
}

impl Inbox {
    pub(super) fn new(sender: Sender<ToDriver>) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { sender, wake: Arc::new(wake) })
    }

    /// Whether the control thread still takes orders.
    pub(super) fn send(&self, message: ToDriver) -> bool {
        let sent = self.sender.send(message).is_ok();
        // A full counter means that a wake-up is pending anyway.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        sent
    }
}

/// What a thread of this node has asked the directory.
struct Asked {
    question: RegionMessage,
    reply: Reply<RegionReply>,
}

/// A region as this node has it open.
#[derive(Clone)]
pub(super) struct OpenRegion {
    pub(super) region: RegionId,
    pub(super) memory: Arc<RegionMemory>,
}

/// What other threads may look at.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) status: Mutex<Status>,
    /// The nodes of the list.
    pub(super) nodes: Mutex<Vec<NodeSpec>>,
    pub(super) regions: Mutex<BTreeMap<String, OpenRegion>>,
    pub(super) registrations: Registrations,
    /// Set once: the end of the cluster for this node.
    pub(super) lost: Mutex<Option<Lost>>,
    pub(super) stop_dialing: Arc<AtomicBool>,
    /// Stops the virtual machine, before its memory ends; told which node is lost and why.
    pub(super) stop_vm: Mutex<Option<Arc<StopVm>>>,
    /// Tells how the virtual machine does.
    pub(super) vm_status: Mutex<Option<Arc<VmStatus>>>,
    /// What lives as long as the node.
    pub(super) kept: Mutex<Vec<Box<dyn Any + Send>>>,
}

impl Shared {
    /// The name of a node of the list.
    pub(super) fn name_of(&self, node: NodeId) -> String {
        let nodes = lock(&self.nodes);
        nodes.get(node.index()).map_or_else(|| format!("#{node}"), |spec| spec.name.clone())
    }
}

/// Returns soon, with no vCPU in the guest.
pub(crate) type StopVm = dyn Fn(&Lost) + Send + Sync;

/// Part of the node's status, as JSON.
pub(crate) type VmStatus = dyn Fn() -> serde_json::Value + Send + Sync;

/// Locks what nothing panics over.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the control thread starts with.
pub(super) struct Setup {
    pub(super) config: Arc<NodeConfig>,
    pub(super) me: NodeId,
    pub(super) incarnation: u64,
    pub(super) membership: Box<dyn Machine>,
    /// The thread that talks to etcd, where it decides.
    pub(super) etcd: Option<Sender<Order>>,
    pub(super) listener: Listener,
    pub(super) engine: Arc<Engine>,
    pub(super) shared: Arc<Shared>,
    pub(super) messages: Receiver<ToDriver>,
    pub(super) inbox: Inbox,
    pub(super) on_lost: Option<Arc<LostCallback>>,
    /// Told once: running, or why not.
    pub(super) started: SyncSender<Result<(), NodeError>>,
}

/// State of the control thread.
pub(super) struct Driver {
    setup: Setup,
    links: Links,
    incoming: HashMap<u32, Incoming>,
    last_incoming: u32,
    /// Page connections of peers that are not complete yet.
    worker_streams: BTreeMap<(NodeId, u8), Stream>,
    home: SyncHome,
    sync: SyncClient<SyncAnswer>,
    /// What threads here have asked the directory.
    asked: HashMap<u64, Asked>,
    /// The directory of regions, if this node keeps it.
    directory: Option<Directory>,
    /// What this node was told of regions.
    catalogue: Catalogue,
    started: bool,
    closing: bool,
    /// Somebody left while this node was closing.
    left_at_end: bool,
    /// This node waits for nothing any more.
    leaving: bool,
    dials: Dials,
    losses: Losses,
    teller: Teller,
    ended: bool,
}

/// The clock of membership: milliseconds that also count while the machine sleeps.
pub(super) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

impl Driver {
    pub(super) fn new(setup: Setup) -> std::io::Result<Self> {
        let links = Links::new()?;
        links.watch(setup.inbox.wake.as_fd(), Source::Commands, false)?;
        links.watch(setup.listener.fd(), Source::Listener, false)?;
        let teller = Teller::new(setup.on_lost.clone());
        let (places, first) = (setup.config.places(), setup.config.first_epoch());
        let specs = || setup.config.nodes.clone();
        let directory = (first.eldest() == Some(setup.me))
            .then(|| Directory::new(specs(), setup.config.workers, first.clone()));
        let (home, sync) =
            (SyncHome::new(setup.me, places, &first), SyncClient::new(places, &first));
        Ok(Self {
            setup,
            links,
            incoming: HashMap::new(),
            last_incoming: 0,
            worker_streams: BTreeMap::new(),
            home,
            sync,
            asked: HashMap::new(),
            directory,
            catalogue: Catalogue::default(),
            started: false,
            closing: false,
            left_at_end: false,
            leaving: false,
            dials: Dials::default(),
            losses: Losses::new(first),
            teller,
            ended: false,
        })
    }

    /// Serves until this node is no member any more.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        while !self.ended {
            self.step(Event::Tick);
            self.drop_failed();
            self.dial();
            self.links.flush();
            if self.ended {
                break;
            }
            let timeout = rustix::event::Timespec::try_from(self.timeout()).ok();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            if let Err(error) = epoll::wait(&self.links.epoll, buffer, timeout.as_ref())
                && error != rustix::io::Errno::INTR
            {
                log::error!("control thread: epoll_wait failed: {error}");
                self.end_with(self.lost(self.setup.me, error.to_string()));
                break;
            }
            // Before anything else: a process that was stopped finds out that it is out.
            self.step(Event::Tick);
            for event in events.drain(..) {
                match Source::of(event.data) {
                    Source::Commands => self.obey(),
                    Source::Listener => self.accept(),
                    Source::Incoming(number) => self.shake_hands(number),
                    Source::Link(peer) => self.read(peer),
                }
            }
            self.expire_incoming();
        }
        self.links.flush();
        self.setup.shared.stop_dialing.store(true, Ordering::Relaxed);
    }

    fn timeout(&self) -> Duration {
        let tick = self.setup.membership.next_tick_ms().saturating_sub(now_ms());
        let tick = Duration::from_millis(tick.max(1));
        let now = Instant::now();
        let handshakes = self.incoming.values().map(|it| it.deadline());
        handshakes.map(|deadline| deadline.saturating_duration_since(now)).fold(tick, Duration::min)
    }

    fn name(&self, node: NodeId) -> String {
        self.setup.shared.name_of(node)
    }

    // Membership.

    fn step(&mut self, event: Event) {
        let actions = self.setup.membership.step(now_ms(), event);
        // Whoever an action wakes must find the state that it is about.
        self.publish();
        if actions.is_empty() {
            return;
        }
        for action in actions {
            self.act(action);
        }
        self.publish();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { to, message } => self.links.send(to, &ControlMessage::Member(message)),
            Action::Refuse { node, incarnation, reason } => {
                self.close_link(node, incarnation, MemberMessage::Fatal { reason });
            }
            Action::Postpone { node, incarnation, reason } => {
                self.close_link(node, incarnation, MemberMessage::NotYet { reason });
            }
            Action::BecameRunning(epoch) => self.begin(epoch),
            Action::PeerLost { node, reason } => self.peer_lost(node, reason),
            Action::PeerLeft { node } => self.peer_left(node),
            Action::NewEpoch(epoch) => self.new_epoch(epoch),
            Action::Listed { node, name, listen, memory_bytes, .. } => {
                let spec = NodeSpec { name, address: listen, memory_bytes, late: false };
                self.list(node, spec);
            }
            Action::Propose(proposal) => self.order(Order::Propose(proposal)),
            Action::Ended { reason } => self.end(reason),
        }
    }

    /// Closes the connection with a process of `node`, after a last message.
    fn close_link(&mut self, node: NodeId, incarnation: u64, last: MemberMessage) {
        let matches = |link: &Link| link.incarnation == incarnation;
        if self.links.by_peer.get(&node).is_some_and(matches) {
            self.links.send(node, &ControlMessage::Member(last));
            self.links.flush();
            self.forget(node);
        }
    }

    fn order(&self, order: Order) {
        if let Some(etcd) = &self.setup.etcd {
            let _ = etcd.send(order); // that thread ends only when nobody can ask it
        }
    }

    /// This node is a member: of a cluster that starts, or of one that runs and has taken it in.
    fn begin(&mut self, epoch: Epoch) {
        log::info!("the cluster runs, epoch {}", epoch.number);
        self.started = true;
        if let Err(error) = self.setup.engine.change(&epoch) {
            return self.end_with(self.lost(self.setup.me, error.to_string()));
        }
        if *self.losses.now() != epoch {
            let (me, nodes) = (self.setup.me, self.setup.config.places());
            self.home = SyncHome::new(me, nodes, &epoch);
            self.sync = SyncClient::new(nodes, &epoch);
            let output = self.sync.begin();
            self.sync_output(output);
            self.directory = None;
        }
        self.losses.begin(epoch);
        self.take_up_early();
        let _ = self.setup.started.try_send(Ok(()));
    }

    /// A place of the list is filled: the node there is about to join.
    fn list(&mut self, node: NodeId, spec: NodeSpec) {
        if let Some(directory) = &mut self.directory {
            directory.list(node, spec.clone());
        }
        list(&mut lock(&self.setup.shared.nodes), node, spec);
    }

    /// A node left. What it kept is recovered as after a loss, when the epoch without it begins.
    fn peer_left(&mut self, node: NodeId) {
        lock(&self.setup.shared.status).left.insert(node);
        self.setup.engine.detach(node);
        if self.closing {
            // Nobody meets any more; what this node waits for at its end is over.
            self.left_at_end = true;
            self.sync.drop_open();
        } else if self.losses.is_frail() {
            self.end_with(self.lost(node, EndReason::Abandoned.to_string()));
        }
    }

    fn end(&mut self, reason: EndReason) {
        self.ended = true;
        let _ = self.setup.started.try_send(Err(NodeError::Join { reason: reason.to_string() }));
        if !matches!(reason, EndReason::Left | EndReason::Abandoned) {
            self.end_with(self.lost(self.culprit(&reason), reason.to_string()));
        }
        self.fail_all(&NodeError::Closed);
    }

    /// The node that a user should look at.
    fn culprit(&self, reason: &EndReason) -> NodeId {
        let deciding = match reason {
            EndReason::Unreachable { .. }
            | EndReason::Disconnected { .. }
            | EndReason::DecidingNodeEnded { .. } => NodeId::new(0),
            _ => None,
        };
        deciding.unwrap_or(self.setup.me)
    }

    fn lost(&self, node: NodeId, reason: String) -> Lost {
        Lost { node: self.name(node), index: node.index(), reason }
    }

    /// The regions end, once; waiting requests end with them.
    fn end_with(&mut self, lost: Lost) {
        {
            let mut known = lock(&self.setup.shared.lost);
            if known.is_some() {
                return;
            }
            *known = Some(lost.clone());
        }
        // The end of the regions may be the end of this process: first, the others learn why.
        self.links.flush();
        log::error!("lost node {}: {}", lost.node, lost.reason);
        let stop_vm = lock(&self.setup.shared.stop_vm).clone();
        if let Some(stop) = stop_vm {
            stop(&lost);
        }
        self.fail_all(&NodeError::Lost(lost.clone()));
        end_regions(
            lost,
            Arc::clone(&self.setup.engine),
            Arc::clone(&self.setup.shared.registrations),
            self.setup.on_lost.clone(),
            // The lease is given back only when the memory has ended.
            self.setup.etcd.clone(),
        );
    }

    fn fail_all(&mut self, error: &NodeError) {
        // Threads that wait for locks find the reason in `Shared::lost`.
        self.sync.drop_open();
        for (_, Asked { reply, .. }) in self.asked.drain() {
            let _ = reply.try_send(Err(error.clone()));
        }
    }

    fn publish(&self) {
        let verdict = self.setup.membership.verdict();
        let mut status = lock(&self.setup.shared.status);
        status.epoch = verdict.epoch;
        status.ended = self.ended || lock(&self.setup.shared.lost).is_some();
        status.running = matches!(verdict.state, State::Running | State::Leaving { .. });
        status.live = verdict.live;
        status.met = status.met.union(verdict.members);
        status.missing = verdict.missing;
    }

    fn handle(&mut self, from: NodeId, message: ControlMessage) {
        match message {
            ControlMessage::Member(message) => self.step(Event::Message { from, message }),
            ControlMessage::Region(message) => self.handle_region(from, message),
            ControlMessage::SyncRequest(request) => self.at_home(from, ToHome::Request(request)),
            ControlMessage::SyncReport(report) => self.at_home(from, ToHome::Report(report)),
            ControlMessage::SyncReply(reply) => self.deliver(from, &reply),
        }
    }

    // Commands.

    fn obey(&mut self) {
        let _ = rustix::io::read(&*self.setup.inbox.wake, &mut [0u8; 8]);
        loop {
            match self.setup.messages.try_recv() {
                Ok(message) => self.obey_one(message),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    fn obey_one(&mut self, message: ToDriver) {
        match message {
            ToDriver::Connected(connected) => {
                let Connected { peer, hello, stream } = *connected;
                if hello.from.node == peer {
                    self.connected(hello, stream);
                }
            }
            ToDriver::DialFailed { peer, reason } => {
                let mut status = lock(&self.setup.shared.status);
                status.dial_errors.insert(peer, reason);
            }
            ToDriver::DialEnded { peer } => self.dials.ended(peer),
            ToDriver::Engine(EngineEvent::LinkFailed { peer, reason }) => {
                self.read(peer);
                self.disconnected(peer, reason);
            }
            ToDriver::Engine(EngineEvent::MemoryFailed { region, reason }) => {
                let reason = format!("memory of region {} failed: {reason}", region.0);
                self.end_with(self.lost(self.setup.me, reason));
            }
            ToDriver::Engine(EngineEvent::MemoryFull { region }) => self.memory_full(region),
            ToDriver::Engine(EngineEvent::Recovered { region, epoch, lost }) => {
                self.recovered(region, epoch, lost);
            }
            ToDriver::Etcd(said) => self.step(Event::Etcd(said)),
            ToDriver::Sync { ticket, name, op, reply } => self.sync(ticket, name, op, reply),
            ToDriver::GiveUpSync { ticket } => {
                let output = self.sync.give_up(ticket);
                self.sync_output(output);
            }
            ToDriver::Open { ticket, name, bytes, overcommit, recover, reply } => {
                if !recover {
                    self.become_frail();
                }
                let ask = RegionMessage::Create { ticket, name, bytes, overcommit, recover };
                self.ask(ticket, ask, reply);
            }
            ToDriver::Allocate { ticket, region, name, bytes, align, reply } => {
                let ask = RegionMessage::Allocate { ticket, region, name, bytes, align };
                self.ask(ticket, ask, reply);
            }
            ToDriver::Forget { ticket } => _ = self.asked.remove(&ticket),
            ToDriver::TakeVm { reply } => {
                // A vCPU that has the processor must not cost a heartbeat.
                outrank();
                self.order(Order::Outrank);
                let nodes = lock(&self.setup.shared.nodes).len();
                let take = |index| {
                    let link =
                        NodeId::new(index).and_then(|node| self.links.by_peer.get_mut(&node));
                    link.and_then(|link| link.vm.take())
                };
                let _ = reply.try_send((0..nodes).map(take).collect());
            }
            ToDriver::Closing => self.closing = true,
            ToDriver::Leave { abandon } => self.leave(abandon),
        }
    }

    /// No node has a frame left for pages that threads here wait for: their accesses end like those
    /// to lost pages.
    fn memory_full(&mut self, region: RegionId) {
        let members = self.losses.now().members;
        let gives: Vec<String> = lock(&self.setup.shared.nodes)
            .iter()
            .enumerate()
            .filter(|(index, _)| NodeId::new(*index).is_some_and(|node| members.contains(node)))
            .map(|(_, node)| format!("{} gives {}", node.name, node.memory_bytes))
            .collect();
        let reason =
            format!("the memory of all nodes is full, raise `memory`: {}", gives.join(", "));
        let name = lock(&self.setup.shared.regions)
            .iter()
            .find(|(_, open)| open.region == region)
            .map(|(name, _)| name.clone());
        log::error!("region {:?}: {reason}", name.as_deref().unwrap_or("?"));
        let node = self.name(self.setup.me);
        for registration in lock(&self.setup.shared.registrations).iter() {
            if Some(registration.name()) == name.as_deref() {
                registration.mark_lost(&node, &reason);
            }
        }
        self.setup.engine.give_up(region);
    }

    /// This node goes. With regions, whoever still uses them takes it for lost, and goes on when no thread
    /// here can use them.
    fn leave(&mut self, abandon: bool) {
        self.leaving = true;
        let in_use = !lock(&self.setup.shared.regions).is_empty() && !self.losses.is_frail();
        if !abandon || !in_use || lock(&self.setup.shared.lost).is_some() {
            return self.step(Event::LeaveRequested);
        }
        let (me, reason) = (self.name(self.setup.me), EndReason::Abandoned.to_string());
        mark_lost(&self.setup.shared.registrations, &me, &reason);
        if let Err(error) = self.setup.engine.end() {
            log::error!("can't end the regions: {error}");
        }
        self.step(Event::Abandon);
    }
}
