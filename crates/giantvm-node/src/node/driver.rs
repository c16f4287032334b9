//! The control thread: one loop over connections, commands and the clock.

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
use dsm_core::report::chain;
use dsm_core::transport::{
    Incoming, Interest, Listener, Options, Progress, Received, Reject, Stream, Transport,
};
use dsm_core::types::{NodeId, RegionId};
use dsm_core::wire::{Channel, Hello, Identity, Kind};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::time::{ClockId, clock_gettime};

use super::api::NodeError;
use super::config::NodeConfig;
use super::dialer::Connected;
use super::etcd::Order;
use super::links::{CONTROL_KIND, Link, Links, Source};
use super::lost::{Lost, LostCallback, Registrations, end_regions};
use super::outrank;
use super::regions::Directory;
use super::status::Status;
use crate::control::{ControlMessage, MemberMessage, RegionMessage};
use crate::membership::{Action, EndReason, Event, Machine, Said, State};
use crate::sync::{Outcome, SyncClient, SyncError, SyncHome, SyncName, SyncOp, ToHome};

/// Callers whose handshake is under way at a time; more wait in the kernel's queue.
const INCOMING_MAX: usize = 256;
/// How long a caller may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Answers a thread of the application; it may be gone.
pub(super) type Reply<T> = SyncSender<T>;

/// What the control thread is told.
pub(super) enum ToDriver {
    Connected(Box<Connected>),
    DialFailed {
        peer: NodeId,
        reason: String,
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
    Leave,
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
    region_replies: HashMap<u64, Reply<RegionReply>>,
    directory: Option<Directory>,
    started: bool,
    closing: bool,
    someone_left: bool,
    /// The node with the directory of regions is no member any more.
    directory_left: bool,
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
        let deciding = setup.me.index() == 0;
        let directory =
            deciding.then(|| Directory::new(setup.config.nodes.clone(), setup.config.workers));
        let nodes = setup.config.nodes.len();
        let (home, sync) = (SyncHome::new(setup.me, nodes), SyncClient::new(nodes));
        Ok(Self {
            setup,
            links,
            incoming: HashMap::new(),
            last_incoming: 0,
            worker_streams: BTreeMap::new(),
            home,
            sync,
            region_replies: HashMap::new(),
            directory,
            started: false,
            closing: false,
            someone_left: false,
            directory_left: false,
            ended: false,
        })
    }

    /// Serves until this node is no member any more.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        while !self.ended {
            self.step(Event::Tick);
            self.drop_failed();
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
        let spec = self.setup.config.nodes.get(node.index());
        spec.map_or_else(|| format!("#{node}"), |spec| spec.name.clone())
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
                let matches = |link: &Link| link.incarnation == incarnation;
                if self.links.by_peer.get(&node).is_some_and(matches) {
                    let fatal = MemberMessage::Fatal { reason };
                    self.links.send(node, &ControlMessage::Member(fatal));
                    self.links.flush();
                    self.forget(node);
                }
            }
            Action::BecameRunning { epoch } => {
                log::info!("the cluster runs, epoch {epoch}");
                self.started = true;
                let _ = self.setup.started.try_send(Ok(()));
            }
            Action::PeerLost { node, reason } => self.end_with(self.lost(node, reason)),
            Action::PeerLeft { node } => self.peer_left(node),
            Action::NewEpoch { epoch, members } => log::info!("epoch {epoch}: {members:?}"),
            Action::Propose(proposal) => self.order(Order::Propose(proposal)),
            Action::Ended { reason } => self.end(reason),
        }
    }

    fn order(&self, order: Order) {
        if let Some(etcd) = &self.setup.etcd {
            let _ = etcd.send(order); // that thread ends only when nobody can ask it
        }
    }

    fn peer_left(&mut self, node: NodeId) {
        self.sync_left(node);
        self.setup.engine.detach(node);
        if let Some(directory) = &mut self.directory {
            let refusals = directory.node_left(node);
            self.send_regions(refusals);
        }
        self.someone_left = true;
        if node.index() == 0 {
            self.directory_left = true;
            for (_, reply) in std::mem::take(&mut self.region_replies) {
                let _ = reply.try_send(Err(self.no_directory()));
            }
        }
        if self.closing {
            // Nobody meets any more; what this node waits for at its end is over.
            self.sync.drop_open();
        }
        let uses_regions = !lock(&self.setup.shared.regions).is_empty();
        if uses_regions && !self.closing {
            let reason = "it left while regions were in use".into();
            self.end_with(self.lost(node, reason));
        }
    }

    fn no_directory(&self) -> NodeError {
        let first = self.setup.config.nodes.first().map_or("", |spec| &spec.name);
        NodeError::Region {
            reason: format!("node {first}, which places regions and their blocks, has left"),
        }
    }

    fn end(&mut self, reason: EndReason) {
        self.ended = true;
        let _ = self.setup.started.try_send(Err(NodeError::Join { reason: reason.to_string() }));
        if reason != EndReason::Left {
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
        for (_, reply) in self.region_replies.drain() {
            let _ = reply.try_send(Err(error.clone()));
        }
    }

    fn publish(&self) {
        let verdict = self.setup.membership.verdict();
        let mut status = lock(&self.setup.shared.status);
        status.epoch = verdict.epoch;
        status.ended = self.ended || lock(&self.setup.shared.lost).is_some();
        status.running = matches!(verdict.state, State::Running | State::Leaving { .. });
        status.members = verdict.members;
        status.live = verdict.live;
        status.missing = verdict.missing;
    }

    // Connections.

    fn identity(&self) -> Identity {
        let epoch = self.setup.membership.verdict().epoch;
        self.setup.config.identity(self.setup.me, self.setup.incarnation, epoch)
    }

    fn accept(&mut self) {
        while self.incoming.len() < INCOMING_MAX {
            match self.setup.listener.accept(Instant::now() + HANDSHAKE) {
                Ok(Some(incoming)) => {
                    self.last_incoming = self.last_incoming.wrapping_add(1);
                    let number = self.last_incoming;
                    let source = Source::Incoming(number);
                    if self.links.watch(incoming.fd(), source, false).is_ok() {
                        self.incoming.insert(number, incoming);
                        self.shake_hands(number);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    log::warn!("can't accept a connection: {error}");
                    return;
                }
            }
        }
    }

    fn shake_hands(&mut self, number: u32) {
        let Some(incoming) = self.incoming.remove(&number) else { return };
        self.links.unwatch(incoming.fd());
        let local = self.identity();
        let mut admit = |hello: &Hello| self.admit(hello);
        match incoming.drive(&local, Options::default(), &mut admit) {
            Ok(Progress::Pending(incoming)) => {
                let writable = incoming.interest() == Interest::Writable;
                let source = Source::Incoming(number);
                if self.links.watch(incoming.fd(), source, writable).is_ok() {
                    self.incoming.insert(number, incoming);
                }
            }
            Ok(Progress::Done(stream, hello)) => self.connected(hello, stream),
            Err(error) => log::warn!("{}", chain(&error)),
        }
    }

    fn admit(&self, hello: &Hello) -> Result<(), String> {
        if hello.channel == Channel::Status {
            return Ok(());
        }
        let node = hello.from.node;
        let known = self.links.by_peer.get(&node).map(|link| link.incarnation);
        if self.started && known != Some(hello.from.incarnation.0) {
            let name = self.name(node);
            return Err(format!("the cluster runs already, with another process as node {name}"));
        }
        if node.index() < self.setup.me.index() {
            return Err("earlier nodes of the list are called, they don't call".into());
        }
        Ok(())
    }

    fn expire_incoming(&mut self) {
        let now = Instant::now();
        let late: Vec<u32> = self
            .incoming
            .iter()
            .filter(|(_, incoming)| incoming.deadline() <= now)
            .map(|(&number, _)| number)
            .collect();
        for number in late {
            self.shake_hands(number);
        }
    }

    fn connected(&mut self, hello: Hello, stream: Stream) {
        let (peer, incarnation) = (hello.from.node, hello.from.incarnation.0);
        if hello.channel == Channel::Status {
            return self.tell_status(stream);
        }
        let known = self.links.by_peer.get(&peer).map(|link| link.incarnation);
        if known.is_some_and(|known| known != incarnation) {
            self.disconnected(peer, "the node was started again".into());
        }
        let link = self.links.by_peer.entry(peer).or_insert_with(|| Link::new(incarnation));
        match hello.channel {
            Channel::Control => link.control = Some(stream),
            Channel::Worker(worker) => {
                link.workers.insert(worker);
                self.worker_streams.insert((peer, worker), stream);
            }
            Channel::Vm => {
                link.has_vm = true;
                link.vm = Some(stream);
            }
            Channel::Status => return,
        }
        if link.is_complete(self.setup.config.workers) && !link.announced {
            link.announced = true;
            self.announce(peer, incarnation);
        }
    }

    fn announce(&mut self, peer: NodeId, incarnation: u64) {
        for worker in 0..self.setup.config.workers {
            if let Some(stream) = self.worker_streams.remove(&(peer, worker as u8))
                && let Err(error) = self.setup.engine.attach(worker, peer, Box::new(stream))
            {
                log::error!("can't use the connection to {}: {error}", self.name(peer));
            }
        }
        let watched = self.links.by_peer.get(&peer).and_then(|link| link.control.as_ref());
        if let Some(stream) = watched
            && let Err(error) = self.links.watch(stream.fd(), Source::Link(peer), false)
        {
            return self.disconnected(peer, error.to_string());
        }
        self.step(Event::Connected { node: peer, incarnation });
    }

    /// The connections to `peer` are of no use any more. What it said last was read before: it may
    /// be why.
    fn disconnected(&mut self, peer: NodeId, why: String) {
        if let Some(incarnation) = self.forget(peer) {
            self.step(Event::Disconnected { node: peer, incarnation, why });
        }
    }

    fn forget(&mut self, peer: NodeId) -> Option<u64> {
        self.worker_streams.retain(|&(node, _), _| node != peer);
        self.setup.engine.detach(peer);
        self.links.remove(peer)
    }

    fn drop_failed(&mut self) {
        for (peer, reason) in self.links.take_failed() {
            self.read(peer);
            self.disconnected(peer, reason);
        }
    }

    fn read(&mut self, peer: NodeId) {
        let Some(stream) = self.links.by_peer.get_mut(&peer).and_then(|l| l.control.as_mut())
        else {
            return;
        };
        let mut messages = Vec::new();
        let result = stream.receive(&mut |header, body, _| {
            let Kind::Control(kind) = header.kind() else {
                return Err(Reject("a page message on the control connection".into()));
            };
            if kind.code() != CONTROL_KIND {
                return Err(Reject(format!("unknown control frame {:#x}", kind.code())));
            }
            let message = ControlMessage::decode(body).map_err(|e| Reject(e.to_string()))?;
            messages.push(message);
            Ok(())
        });
        for message in messages {
            self.handle(peer, message);
        }
        match result {
            Ok(Received::Closed) => self.disconnected(peer, "it closed the connection".into()),
            Ok(_) => {}
            Err(error) => self.disconnected(peer, chain(&error)),
        }
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

    fn tell_status(&self, stream: Stream) {
        let (config, me) = (Arc::clone(&self.setup.config), self.setup.me);
        let (engine, shared) = (Arc::clone(&self.setup.engine), Arc::clone(&self.setup.shared));
        let tell = move || super::status::tell(stream, &config, me, &engine, &shared);
        // Statistics come from the workers, for which this thread does not wait.
        if let Err(error) = std::thread::Builder::new().name("gvm-status".into()).spawn(tell) {
            log::warn!("can't answer a status query: {error}");
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
            ToDriver::Engine(EngineEvent::LinkFailed { peer, reason }) => {
                self.read(peer);
                self.disconnected(peer, reason);
            }
            ToDriver::Engine(EngineEvent::MemoryFailed { region, reason }) => {
                let reason = format!("memory of region {} failed: {reason}", region.0);
                self.end_with(self.lost(self.setup.me, reason));
            }
            ToDriver::Engine(EngineEvent::MemoryFull { region }) => self.memory_full(region),
            // Regions end with a loss: nothing recovers.
            ToDriver::Engine(EngineEvent::Recovered { .. }) => {}
            ToDriver::Etcd(said) => self.step(Event::Etcd(said)),
            ToDriver::Sync { ticket, name, op, reply } => self.sync(ticket, name, op, reply),
            ToDriver::GiveUpSync { ticket } => {
                let output = self.sync.give_up(ticket);
                self.sync_output(output);
            }
            ToDriver::Open { ticket, name, bytes, overcommit, reply } => {
                if self.expect(ticket, reply) {
                    let region = None;
                    let ask = RegionMessage::Create { ticket, region, name, bytes, overcommit };
                    self.ask_directory(ask);
                }
            }
            ToDriver::Allocate { ticket, region, name, bytes, align, reply } => {
                if self.expect(ticket, reply) {
                    let ask = RegionMessage::Allocate { ticket, region, name, bytes, align };
                    self.ask_directory(ask);
                }
            }
            ToDriver::Forget { ticket } => _ = self.region_replies.remove(&ticket),
            ToDriver::TakeVm { reply } => {
                // A vCPU that has the processor must not cost a heartbeat.
                outrank();
                self.order(Order::Outrank);
                let nodes = self.setup.config.nodes.len();
                let take = |index| {
                    let link =
                        NodeId::new(index).and_then(|node| self.links.by_peer.get_mut(&node));
                    link.and_then(|link| link.vm.take())
                };
                let _ = reply.try_send((0..nodes).map(take).collect());
            }
            ToDriver::Closing => self.closing = true,
            ToDriver::Leave => self.step(Event::LeaveRequested),
        }
    }

    /// No node has a frame left for pages that threads here wait for: their accesses end like those
    /// to lost pages.
    fn memory_full(&mut self, region: RegionId) {
        let gives: Vec<String> = self
            .setup
            .config
            .nodes
            .iter()
            .map(|node| format!("{} gives {}", node.name, node.memory_bytes))
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

    fn expect(&mut self, ticket: u64, reply: Reply<RegionReply>) -> bool {
        if let Some(lost) = lock(&self.setup.shared.lost).clone() {
            let _ = reply.try_send(Err(NodeError::Lost(lost)));
            return false;
        }
        if self.directory_left {
            let _ = reply.try_send(Err(self.no_directory()));
            return false;
        }
        self.region_replies.insert(ticket, reply);
        true
    }
}
