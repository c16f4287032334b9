//! One worker thread: waits for faults, messages and commands, and carries them through.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::pages::MemoryError;
use crate::protocol::Message;
use crate::report::chain;
use crate::transport::{Class, Flush, Received, Reject, Transport};
use crate::types::{Epoch, NodeId, NodeSet, RegionId};
use crate::uffd::FaultBuffer;
use crate::wire;

use super::ages::Ages;
use super::budget::Budget;
use super::command::Command;
use super::event::EngineEvent;
use super::evict::{Pressure, Shortage};
use super::handle::EngineConfig;
use super::priority::{outrank, set_timer_slack};
use super::shard::{Outgoing, Shard};
use super::source::{Source, Wake};
use super::wait::Waiter;

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;
/// Faults read at a time.
const FAULTS: usize = 64;
/// With more sources than this, a worker that spins asks epoll which of them has something.
const LOOK_SOURCES_MAX: usize = 4;
/// Threads that have not faulted for this long are forgotten.
const IDLE: Duration = Duration::from_secs(5);
/// How often stores to walk-shared pages are looked for when nothing else needs it.
const WALK_TICK: Duration = Duration::from_millis(5);

struct Link {
    transport: Box<dyn Transport>,
    /// The kernel takes no more for now: waiting for it to be writable.
    blocked: bool,
}

/// What the workers of an engine share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) ages: Arc<Ages>,
    pub(super) budget: Arc<Budget>,
    /// Regions of which something may have to be flushed.
    pub(super) shares: Arc<AtomicUsize>,
}

/// State of a worker thread.
pub(super) struct Worker {
    index: usize,
    config: EngineConfig,
    commands: Receiver<Command>,
    wake: Arc<Wake>,
    pub(super) events: Arc<dyn Fn(EngineEvent) + Send + Sync>,
    shared: Shared,
    shortage: Shortage,
    epoll: OwnedFd,
    links: BTreeMap<NodeId, Link>,
    /// The keys of `links`.
    peers: Vec<NodeId>,
    pub(super) shards: BTreeMap<RegionId, Shard>,
    pub(super) epoch: Epoch,
    /// The keys of `shards`.
    regions: Vec<RegionId>,
    pub(super) outgoing: Vec<Outgoing>,
    /// The application cannot run while all workers spin.
    shares_processor: bool,
    /// Since when some page has been wanted by two.
    watching_since: Option<Instant>,
    waiter: Waiter,
    faults: FaultBuffer,
    head: Vec<u8>,
    sleeps: u64,
    swept: Instant,
    walk_ticked: Instant,
    stop: bool,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        config: EngineConfig,
        commands: Receiver<Command>,
        wake: Arc<Wake>,
        events: Arc<dyn Fn(EngineEvent) + Send + Sync>,
        shared: Shared,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, wake.fd(), Source::Commands.data(), epoll::EventFlags::IN)?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            index,
            config,
            commands,
            wake,
            events,
            shared,
            shortage: Shortage::default(),
            epoll,
            links: BTreeMap::new(),
            peers: Vec::new(),
            shards: BTreeMap::new(),
            epoch: Epoch::first(0, NodeSet::first(config.nodes)),
            regions: Vec::new(),
            outgoing: Vec::new(),
            shares_processor: processors <= config.workers,
            watching_since: None,
            waiter: Waiter::new(config.wait, processors),
            faults: FaultBuffer::new(FAULTS),
            head: Vec::new(),
            sleeps: 0,
            swept: Instant::now(),
            walk_ticked: Instant::now(),
            stop: false,
        })
    }

    /// Serves until told to stop.
    pub(super) fn run(mut self) {
        if let Err(error) = set_timer_slack() {
            log::warn!("worker {}: short sleeps will be longer: {error}", self.index);
        }
        let mut events = Vec::with_capacity(EVENTS);
        let mut found = false;
        while !self.stop {
            let watching = self.attend();
            self.dispatch();
            self.shards.values_mut().for_each(Shard::messages_left);
            let pressure = self.make_room();
            self.report_recovered();
            let sleeps = self.waiter.may_sleep() && !self.looks_on(watching);
            if sleeps || self.sources() > LOOK_SOURCES_MAX {
                let slept = self.wait(&mut events, watching, pressure);
                self.waiter.turned(!events.is_empty(), slept);
                for event in events.drain(..) {
                    match Source::of(event.data) {
                        Source::Commands => self.obey(),
                        Source::Link(peer) => _ = self.read_link(peer),
                        Source::Faults(region) => _ = self.read_faults(region),
                    }
                }
            } else {
                if !found || self.shares_processor {
                    // The thread whose page has just come may have no other processor.
                    std::thread::yield_now();
                }
                found = self.look();
                self.waiter.turned(found, None);
            }
            self.sweep();
            self.walk_tick();
        }
    }

    /// Whether a page has come to be wanted by two so lately that looking beats sleeping.
    fn looks_on(&mut self, watching: bool) -> bool {
        // The thread that has it may need a few microseconds, and a timed sleep takes longer.
        let spin = self.shards.values().map(|shard| shard.pace().spin).max().unwrap_or_default();
        if !watching {
            self.watching_since = None;
            return false;
        }
        self.watching_since.get_or_insert_with(Instant::now).elapsed() < spin
    }

    /// Descriptors that a look has to try.
    fn sources(&self) -> usize {
        self.shards.len() + self.links.len()
    }

    /// Tries every source without asking the kernel first which has something: where there are few,
    /// that takes fewer system calls. Says whether there was anything to do.
    fn look(&mut self) -> bool {
        let mut found = false;
        for index in 0..self.regions.len() {
            found |= self.read_faults(self.regions[index]);
        }
        for index in 0..self.peers.len() {
            // A link that fails leaves the list while it is being gone through.
            let Some(&peer) = self.peers.get(index) else { break };
            found |= self.read_link(peer);
        }
        if self.wake.pending() {
            self.obey();
            found = true;
        }
        found
    }

    /// Waits for events; says how long it slept, if it did.
    fn wait(
        &mut self,
        events: &mut Vec<epoll::Event>,
        watching: bool,
        pressure: Pressure,
    ) -> Option<Duration> {
        let may_sleep = self.waiter.may_sleep() && pressure != Pressure::GoesOn;
        let timeout = match (may_sleep, watching) {
            (false, _) => Some(Duration::ZERO),
            (true, true) => self.shards.values().map(|shard| shard.pace().look).min(),
            (true, false) => self.next_sweep(),
        };
        let timeout = match pressure {
            Pressure::Stuck(until) => {
                let rest = until.saturating_duration_since(Instant::now());
                Some(timeout.map_or(rest, |timeout| timeout.min(rest)))
            }
            Pressure::None | Pressure::GoesOn => timeout,
        };
        let began = may_sleep.then(Instant::now);
        let timeout = timeout.and_then(|timeout| rustix::event::Timespec::try_from(timeout).ok());
        let buffer = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // Only a programming error can end here; going round would burn a processor.
                log::error!("worker {}: epoll_wait failed: {error}", self.index);
                self.stop = true;
            }
        }
        self.sleeps += u64::from(may_sleep);
        began.map(|began| began.elapsed())
    }

    /// Gives frames back where there are too many, when the messages of this turn have left: they may
    /// have bytes of these frames.
    fn make_room(&mut self) -> Pressure {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        self.each_shard(|shard| {
            shard.answer_room(&mut outgoing)?;
            shard.feed(&mut outgoing)
        });
        self.outgoing = outgoing;
        self.dispatch();
        let Some(mut shortage) = std::mem::take(&mut self.shortage).begin(&self.shared.budget)
        else {
            return Pressure::None;
        };
        let mut outgoing = std::mem::take(&mut self.outgoing);
        let peers = std::mem::take(&mut self.peers);
        let starved = self.shards.values().filter(|shard| shard.protocol.is_starved());
        shortage.starved = starved.map(|shard| shard.protocol.shortage_age()).min();
        self.each_shard(|shard| shortage.relieve(shard, &peers, &mut outgoing));
        let pressure = shortage.pressure(&self.shared.budget);
        if std::mem::take(&mut shortage.blames) {
            self.shards.values_mut().for_each(|shard| shard.protocol.blame_all());
        }
        if pressure == Pressure::None {
            self.each_shard(|shard| shard.return_rooms(&mut outgoing));
        }
        (self.outgoing, self.peers, self.shortage) = (outgoing, peers, shortage);
        for shard in self.shards.values_mut() {
            if shard.finds_cluster_full() {
                (self.events)(EngineEvent::MemoryFull { region: shard.region });
            }
        }
        self.dispatch();
        pressure
    }

    fn next_sweep(&self) -> Option<Duration> {
        if self.shards.is_empty() {
            return None;
        }
        let deadline = self.shards.values().filter_map(Shard::next_deadline).min();
        let idle = self.swept + IDLE;
        let mut next = deadline.map_or(idle, |deadline| deadline.min(idle));
        if self.shared.shares.load(Ordering::Relaxed) > 0 {
            next = next.min(self.walk_ticked + WALK_TICK);
        }
        Some(next.saturating_duration_since(Instant::now()).max(Duration::from_micros(100)))
    }

    fn walk_tick(&mut self) {
        if self.shared.shares.load(Ordering::Relaxed) == 0 || self.walk_ticked.elapsed() < WALK_TICK
        {
            return;
        }
        self.walk_ticked = Instant::now();
        let mut outgoing = std::mem::take(&mut self.outgoing);
        self.each_shard(|shard| shard.walk_tick(&mut outgoing));
        self.outgoing = outgoing;
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        let idle = now.duration_since(self.swept) >= IDLE;
        let due = |shard: &Shard| shard.next_deadline().is_some_and(|deadline| deadline <= now);
        if !idle && !self.shards.values().any(due) {
            return;
        }
        self.swept = if idle { now } else { self.swept };
        let mut outgoing = std::mem::take(&mut self.outgoing);
        self.each_shard(|shard| shard.sweep(IDLE, &mut outgoing));
        self.outgoing = outgoing;
    }

    /// Looks at threads whose pages are wanted elsewhere.
    fn attend(&mut self) -> bool {
        let mut watching = false;
        let mut outgoing = std::mem::take(&mut self.outgoing);
        self.each_shard(|shard| {
            watching |= shard.attend(&mut outgoing)?;
            Ok(())
        });
        self.outgoing = outgoing;
        watching
    }

    pub(super) fn each_shard(
        &mut self,
        mut call: impl FnMut(&mut Shard) -> Result<(), MemoryError>,
    ) {
        let mut failed = Vec::new();
        for shard in self.shards.values_mut() {
            if let Err(error) = call(shard) {
                failed.push((shard.region, error));
            }
        }
        for (region, error) in failed {
            self.memory_failed(region, &error);
        }
    }

    fn with_shard(
        &mut self,
        region: RegionId,
        call: impl FnOnce(&mut Shard, &mut Vec<Outgoing>) -> Result<(), MemoryError>,
    ) {
        let Some(shard) = self.shards.get_mut(&region) else { return };
        if let Err(error) = call(shard, &mut self.outgoing) {
            self.memory_failed(region, &error);
        }
    }

    fn memory_failed(&self, region: RegionId, error: &MemoryError) {
        (self.events)(EngineEvent::MemoryFailed { region, reason: chain(error) });
    }

    fn obey(&mut self) {
        self.wake.clear();
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey_one(command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stop = true;
                    return;
                }
            }
        }
    }

    fn obey_one(&mut self, command: Command) {
        match command {
            Command::Attach { peer, transport } => self.attach(peer, transport),
            Command::Detach { peer } => self.detach(peer),
            Command::Open { region, memory, settings, since, reply } => {
                if let Some(uffd) = memory.stripes().get(self.index) {
                    self.watch_fd(uffd.as_fd(), Source::Faults(region));
                }
                let shared = self.shared.clone();
                let epoch = self.epoch.clone();
                let shard = Shard::new(region, memory, *settings, self.index, shared, &epoch);
                self.shards.insert(region, shard);
                self.regions = self.shards.keys().copied().collect();
                if let Some(birth) = since {
                    self.with_shard(region, |shard, out| shard.arrive(birth, &epoch, out));
                }
                let _ = reply.try_send(());
            }
            Command::Close { region, reply } => {
                if let Some(shard) = self.shards.remove(&region)
                    && let Some(uffd) = shard.memory.stripes().get(self.index)
                {
                    let _ = epoll::delete(&self.epoll, uffd.as_fd());
                }
                self.regions = self.shards.keys().copied().collect();
                let _ = reply.try_send(());
            }
            Command::End { reply } => {
                let mut outgoing = Vec::new();
                self.each_shard(|shard| shard.end(&mut outgoing));
                self.outgoing.append(&mut outgoing);
                let _ = reply.try_send(());
            }
            Command::Change { epoch, reply } => {
                self.change(*epoch);
                let _ = reply.try_send(());
            }
            Command::LostPages { region, reply } => {
                let shard = self.shards.get(&region);
                let _ = reply.try_send(shard.map(Shard::lost_pages).unwrap_or_default());
            }
            Command::Restore { region, restore } => {
                self.with_shard(region, |shard, outgoing| shard.restore(restore, outgoing));
            }
            Command::GiveUp { region } => self.with_shard(region, Shard::give_up_starved),
            Command::Hold { region, hold, reply } => {
                self.with_shard(region, |shard, outgoing| shard.hold(hold, reply, outgoing));
            }
            Command::Release { region, id } => {
                self.with_shard(region, |shard, outgoing| shard.release(id, outgoing));
            }
            Command::Prefetch { region, pages } => {
                self.with_shard(region, |shard, outgoing| shard.prefetch(&pages, outgoing));
            }
            Command::FaultAround { region, on } => {
                self.with_shard(region, |shard, _| {
                    shard.set_fault_around(on);
                    Ok(())
                });
            }
            Command::SetPace { region, pace, nudge } => {
                self.with_shard(region, |shard, _| {
                    shard.set_pace(pace, nudge);
                    Ok(())
                });
            }
            Command::Observe { region, observer } => {
                self.with_shard(region, |shard, _| {
                    shard.observe(observer);
                    Ok(())
                });
            }
            Command::SetTables { region, after, tables, reply } => {
                self.with_shard(region, |shard, _| {
                    shard.protocol.share_walked(after);
                    shard.walks.tables = Some(tables);
                    Ok(())
                });
                let _ = reply.try_send(());
            }
            Command::Flush { region, then } => match self.shards.contains_key(&region) {
                true => self.with_shard(region, |shard, outgoing| shard.flush(then, outgoing)),
                false => then(),
            },
            Command::Outrank => {
                if let Err(error) = outrank() {
                    log::warn!(
                        "worker {}: pages will wait for vCPUs that have the processor: no real-time \
                         priority: {error}; run as root or allow RLIMIT_RTPRIO",
                        self.index
                    );
                }
            }
            Command::Stats { region, reply } => {
                if let Some(shard) = self.shards.get(&region) {
                    let mut stats = shard.stats();
                    stats.sleeps = self.sleeps;
                    let _ = reply.try_send(stats);
                }
            }
            Command::Stop => self.stop = true,
        }
    }

    fn watch_fd(&self, fd: BorrowedFd<'_>, source: Source) {
        if let Err(error) = epoll::add(&self.epoll, fd, source.data(), epoll::EventFlags::IN) {
            log::error!("worker {}: can't wait for {source:?}: {error}", self.index);
        }
    }

    fn attach(&mut self, peer: NodeId, transport: Box<dyn Transport>) {
        self.detach(peer);
        self.watch_fd(transport.fd(), Source::Link(peer));
        self.links.insert(peer, Link { transport, blocked: false });
        self.peers = self.links.keys().copied().collect();
    }

    fn detach(&mut self, peer: NodeId) {
        if let Some(link) = self.links.remove(&peer) {
            let _ = epoll::delete(&self.epoll, link.transport.fd());
            self.peers = self.links.keys().copied().collect();
        }
    }

    fn link_failed(&mut self, peer: NodeId, reason: String) {
        // Told before the peer can know: what it does then must not pass for the cause.
        (self.events)(EngineEvent::LinkFailed { peer, reason });
        self.detach(peer);
    }

    /// Takes the faults of a region; says whether there were any.
    fn read_faults(&mut self, region: RegionId) -> bool {
        let Some(shard) = self.shards.get_mut(&region) else { return false };
        let memory = Arc::clone(&shard.memory);
        let Some(uffd) = memory.stripes().get(self.index) else { return false };
        let faults = match uffd.read_faults(&mut self.faults) {
            Ok(faults) => faults,
            Err(error) => {
                let reason = format!("can't read faults: {error}");
                (self.events)(EngineEvent::MemoryFailed { region, reason });
                return true;
            }
        };
        let found = !faults.is_empty();
        let mut failed = None;
        for fault in faults {
            if let Err(error) = shard.fault(fault, &mut self.outgoing) {
                failed = Some(error);
            }
        }
        if let Some(error) = failed {
            self.memory_failed(region, &error);
        }
        found
    }

    /// Takes what a peer sent; says whether there was anything.
    fn read_link(&mut self, peer: NodeId) -> bool {
        let Some(link) = self.links.get_mut(&peer) else { return false };
        let (mut failed, mut found) = (Vec::new(), false);
        let result = link.transport.receive(&mut |header, body, payload| {
            found = true;
            let region = header.region();
            // A region that was closed here a moment ago, or is about to be opened.
            let Some(shard) = self.shards.get_mut(&region) else { return Ok(()) };
            let limits = wire::Limits { nodes: self.config.nodes, pages: shard.memory.pages() };
            let message = wire::decode(&header, body, &limits)?;
            match shard.receive(peer, header.epoch(), message, payload, &mut self.outgoing) {
                Ok(Ok(())) => {}
                Ok(Err(violation)) => return Err(Reject(violation.to_string())),
                Err(error) => failed.push((region, error)),
            }
            Ok(())
        });
        for (region, error) in failed {
            self.memory_failed(region, &error);
        }
        match result {
            Ok(Received::Closed) => self.link_failed(peer, "closed by the peer".into()),
            Ok(_) => return found,
            Err(error) => self.link_failed(peer, chain(&error)),
        }
        true
    }

    /// Hands the messages of this turn to the transports, and those to the kernel.
    fn dispatch(&mut self) {
        let mut failed = Vec::new();
        for Outgoing { to, region, epoch, message, copied, .. } in self.outgoing.drain(..) {
            let (Some(link), Some(shard)) = (self.links.get_mut(&to), self.shards.get(&region))
            else {
                continue;
            };
            self.head.clear();
            let class = if message.is_urgent() { Class::Urgent } else { Class::Ordinary };
            let pages = match &message {
                _ if !copied.is_empty() => Ok(copied.iter().collect()),
                Message::Grant(grant) => grant
                    .pages
                    .iter()
                    .filter(|granted| granted.data)
                    .map(|granted| shard.frame_bytes(granted.page))
                    .collect(),
                _ => Ok(Vec::new()),
            };
            let sent = match pages {
                Ok(pages) => {
                    wire::encode_in(epoch, &message, region, &mut self.head);
                    link.transport.send(class, &self.head, &pages).map_err(|e| chain(&e))
                }
                Err(error) => Err(chain(&error)),
            };
            if let Err(reason) = sent {
                failed.push((to, reason));
            }
        }
        for (&peer, link) in &mut self.links {
            match link.transport.flush() {
                Ok(state) => {
                    let blocked = state == Flush::Blocked;
                    if blocked != link.blocked {
                        link.blocked = blocked;
                        let mut interest = epoll::EventFlags::IN;
                        interest.set(epoll::EventFlags::OUT, blocked);
                        let data = Source::Link(peer).data();
                        let _ = epoll::modify(&self.epoll, link.transport.fd(), data, interest);
                    }
                }
                Err(error) => failed.push((peer, chain(&error))),
            }
        }
        for (peer, reason) in failed {
            if self.links.contains_key(&peer) {
                self.link_failed(peer, reason);
            }
        }
    }
}
