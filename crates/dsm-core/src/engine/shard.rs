//! One region as one worker sees it: the protocol machine, the memory, and what ties them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::pages::{MemoryError, RegionMemory};
use crate::protocol::{Message, PageState, Protocol, Settings, Violation};
use crate::types::{Access, Epoch, NodeId, PAGE_SIZE, Page, RegionId, ThreadId};
use crate::uffd::Fault;

use super::budget::Budget;
use super::command::{HoldRequest, Reply};
use super::evict::Moving;
use super::handle::HoldError;
use super::observe::{Observed, Observer};
use super::pace::{Nudge, Pace};
use super::read_ahead::ReadAhead;
use super::residency::Residency;
use super::restore::Restores;
use super::stats::{Contended, FaultKind, Latency, RegionStats};
use super::walks::{Flushed, Walks};
use super::watch::{Progress, Watch};
use super::worker::Shared;
use super::world::World;

/// A message on its way to a peer, and the pages whose frames go with it.
///
/// The bytes may be read as late as the peer's transport likes: a frame that was sent cannot change
/// before the receiver has it, since whoever changes it needs the receiver's answer first.
pub(super) struct Outgoing {
    pub(super) to: NodeId,
    pub(super) region: RegionId,
    /// [`Protocol::epoch`].
    pub(super) epoch: u16,
    pub(super) message: Message,
    /// The pages that go with it, where they can't be read from the frames when it leaves: those of a
    /// [`Message::HandOver`], whose frames go before; a twin; and those of what has to wait.
    pub(super) copied: Vec<[u8; PAGE_SIZE]>,
    /// It may leave when the reports of this node up to this number are in force.
    pub(super) after: Option<u64>,
}

/// A hold that this worker gathers or keeps.
pub(super) struct Hold {
    deadline: Instant,
    keep_max: std::time::Duration,
    pages: u64,
    /// Present while it gathers.
    pub(super) reply: Option<Reply<Result<(), HoldError>>>,
}

/// One region at one worker.
pub(super) struct Shard {
    pub(super) region: RegionId,
    pub(super) memory: Arc<RegionMemory>,
    pub(super) protocol: Protocol,
    watch: Watch,
    nudge: Option<Arc<dyn Nudge>>,
    observer: Option<Observer>,
    read_ahead: ReadAhead,
    waiting: HashMap<Page, (Instant, FaultKind)>,
    latency: [Latency; 4],
    contended: Contended,
    contentions: u64,
    pub(super) holds: HashMap<ThreadId, Hold>,
    holds_expired: u64,
    pub(super) residency: Residency,
    pub(super) budget: Arc<Budget>,
    pub(super) moving: Moving,
    /// Frames kept free for other nodes, as counted in the budget.
    room_given: u64,
    /// An epoch has begun and is not settled, as far as has been reported.
    pub(super) recovering: bool,
    pub(super) restores: Restores,
    pub(super) walks: Walks,
    /// Something may have to be flushed; then this shard is counted in `shares`, for other threads.
    sharing: bool,
    shares: Arc<AtomicUsize>,
}

impl Shard {
    /// The part of a region in stripe `stripe`; the region begins in `epoch`.
    pub(super) fn new(
        region: RegionId,
        memory: Arc<RegionMemory>,
        settings: Settings,
        stripe: usize,
        shared: Shared,
        epoch: &Epoch,
    ) -> Self {
        let Shared { ages, budget, shares } = shared;
        let served = memory.stripe_pages(stripe);
        let read_ahead = ReadAhead::new(served.clone(), settings.features.fault_around);
        let residency = Residency::new(served.clone());
        let protocol = Protocol::new(settings).restricted_to(served).after(epoch);
        Self {
            region,
            memory,
            protocol,
            watch: Watch::new(ages),
            nudge: None,
            observer: None,
            read_ahead,
            waiting: HashMap::new(),
            latency: Default::default(),
            contended: Contended::default(),
            contentions: 0,
            holds: HashMap::new(),
            holds_expired: 0,
            residency,
            budget,
            moving: Moving::default(),
            room_given: 0,
            recovering: false,
            restores: Restores::default(),
            walks: Walks::default(),
            sharing: false,
            shares,
        }
    }

    /// Runs one call of the protocol, then applies what it asked of the memory.
    pub(super) fn run<R>(
        &mut self,
        payload: &[u8],
        outgoing: &mut Vec<Outgoing>,
        call: impl FnOnce(&mut Protocol, &mut World<'_>) -> R,
    ) -> Result<R, MemoryError> {
        let first = outgoing.len();
        let mut world = World {
            region: self.region,
            memory: &self.memory,
            payload,
            outgoing: &mut *outgoing,
            installs: Vec::new(),
            installed: Vec::new(),
            contended: &mut self.contended,
            observer: self.observer.as_ref(),
            // A hold promises that its pages are mapped.
            left_out: self.read_ahead.milestones().filter(|_| self.holds.is_empty()),
            waiting: &mut self.waiting,
            residency: &mut self.residency,
            budget: &self.budget,
            walks: &mut self.walks,
            discards: Vec::new(),
            restoring: self.restores.begun(),
            error: None,
        };
        let result = call(&mut self.protocol, &mut world);
        if self.protocol.flushes() || self.sharing {
            world.flush(&mut self.protocol, first);
            // Before a page that is shared can be stored to.
            if self.protocol.flushes() && !std::mem::replace(&mut self.sharing, true) {
                self.shares.fetch_add(1, Ordering::SeqCst);
            }
        }
        world.apply_installs();
        world.apply_discards();
        let World { error, installed, .. } = world;
        for message in &mut outgoing[first..] {
            message.epoch = self.protocol.epoch();
        }
        if !installed.is_empty() {
            self.record(&installed);
        }
        if self.sharing {
            self.let_go(first, outgoing);
        }
        self.report_ready();
        self.report_failed();
        self.report_restored();
        let given = self.protocol.room_given();
        if given != self.room_given {
            self.budget.added(given.saturating_sub(self.room_given));
            self.budget.gone(self.room_given.saturating_sub(given));
            self.room_given = given;
        }
        let conflict = self.walks.conflict.take();
        let region = || self.memory.name().to_owned();
        let error = error.or_else(|| {
            conflict.map(|conflict| MemoryError::Conflict { region: region(), conflict })
        });
        error.map_or(Ok(result), Err)
    }

    /// Keeps what has to wait for a flush from leaving, and has go on what has waited for one.
    fn let_go(&mut self, first: usize, outgoing: &mut Vec<Outgoing>) {
        if outgoing[first..].iter().any(|message| message.after.is_some()) {
            let held = outgoing.extract_if(first.., |message| message.after.is_some());
            self.walks.held.extend(held);
        }
        if !self.walks.held.is_empty() || !self.walks.waiting.is_empty() {
            self.walks.release(self.protocol.in_force(), outgoing);
        }
        // After what waited: what finds nothing to wait for must not go before it.
        if !self.protocol.flushes() {
            self.sharing = false;
            self.shares.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Calls `then` when what was stored so far to walk-shared pages is in force everywhere.
    pub(super) fn flush(
        &mut self,
        then: Flushed,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        match self.run(&[], outgoing, |protocol, world| protocol.flush(world))? {
            Some(number) if number > self.protocol.in_force() => {
                self.walks.waiting.push((number, then));
            }
            _ => then(),
        }
        Ok(())
    }

    /// Tells the others now and then what was stored to walk-shared pages.
    pub(super) fn walk_tick(&mut self, outgoing: &mut Vec<Outgoing>) -> Result<(), MemoryError> {
        if self.protocol.walk_shared() == 0 {
            return Ok(());
        }
        self.run(&[], outgoing, |protocol, world| protocol.walk_tick(world))
    }

    /// The bytes of a page that is being sent, for the duration of the sending.
    pub(super) fn frame_bytes(&self, page: Page) -> Result<&[u8; PAGE_SIZE], MemoryError> {
        let frame = self.memory.frame(page)?;
        // SAFETY: a frame is PAGE_SIZE readable bytes in the alias, mapped as long as `memory`
        // lives. Nobody writes them during the borrow: this node gave up its right to write before
        // the grant was made, only this thread could take it back, and `fill` needs `&mut self`.
        Ok(unsafe { frame.cast().as_ref() })
    }

    fn record(&mut self, installed: &[Page]) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        for page in installed {
            if let Some((since, kind)) = self.waiting.remove(page) {
                let time = now.duration_since(since).as_nanos();
                self.latency[kind as usize].record(u64::try_from(time).unwrap_or(u64::MAX));
            }
        }
    }

    /// Handles a fault of the userfaultfd.
    pub(super) fn fault(
        &mut self,
        fault: &Fault,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        let Some(page) = self.memory.page_at(fault.address) else { return Ok(()) };
        let now = Instant::now();
        let taken = self.watch.fault(fault.thread, page, self.protocol.clock(), now);
        let kind = self.kind(page, fault.access);
        let again = self.waiting.contains_key(&page);
        self.waiting.entry(page).or_insert((now, kind));
        if let Some(observer) = &self.observer {
            let Fault { access, thread, .. } = *fault;
            observer(Observed::Fault { page, access, kind, thread, again });
        }
        let ahead = self.read_ahead.fault(fault.thread, page, fault.access);
        let rest = self.read_ahead.rest(fault.thread, page);
        self.run(&[], outgoing, |protocol, world| {
            if taken.ended {
                protocol.thread_quiet(fault.thread, world);
            }
            let before = world.outgoing.len();
            protocol.fault_since(fault.thread, taken.since, page, fault.access, world);
            // A page of the stretch that had to be asked for: the rest of it was not asked for either.
            let refused = world.outgoing.len() > before;
            let ahead = ahead.or(rest.filter(|_| refused)).filter(|_| !world.budget.is_tight());
            if let Some(ahead) = ahead {
                let pages: Vec<Page> = (ahead.start.0..ahead.end.0).map(Page).collect();
                protocol.prefetch(&pages, world);
            }
        })
    }

    pub(super) fn observe(&mut self, observer: Option<Observer>) {
        self.observer = observer;
    }

    fn kind(&self, page: Page, access: Access) -> FaultKind {
        if self.protocol.owns(page) && self.protocol.copyset(page).is_empty() {
            return FaultKind::Local;
        }
        match (self.protocol.state(page), access) {
            (PageState::Shared, Access::Write) => FaultKind::Upgrade,
            (_, Access::Write) => FaultKind::Write,
            (_, Access::Read) => FaultKind::Read,
        }
    }

    /// Handles a message that was sent in `epoch`, and whose payload is `payload`.
    pub(super) fn receive(
        &mut self,
        from: NodeId,
        epoch: u16,
        message: Message,
        payload: &[u8],
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<Result<(), Violation>, MemoryError> {
        self.run(payload, outgoing, |protocol, world| {
            protocol.receive_in(from, epoch, message, world)
        })
    }

    /// The messages of this turn are on their way: now for what nobody waits for.
    pub(super) fn messages_left(&mut self) {
        self.watch.read_clocks();
    }

    /// Looks at the threads whose pages someone waits for. Says whether any is left to watch.
    /// Sets the pace of the region's threads.
    pub(super) fn set_pace(&mut self, pace: Pace, nudge: Option<Arc<dyn Nudge>>) {
        self.watch.set_pace(pace);
        self.nudge = nudge;
        if pace.walks {
            self.protocol.set_walks_write();
        }
    }

    /// See [`Pace`].
    pub(super) fn pace(&self) -> Pace {
        self.watch.pace()
    }

    pub(super) fn attend(&mut self, outgoing: &mut Vec<Outgoing>) -> Result<bool, MemoryError> {
        let contenders = self.protocol.contenders();
        if contenders.is_empty() {
            return Ok(false);
        }
        let now = Instant::now();
        let mut watched = false;
        for thread in contenders {
            if self.holds.contains_key(&thread) {
                continue;
            }
            self.contentions += 1;
            let waits = self.protocol.is_waiting(thread);
            let idle = self.nudge.as_ref().is_some_and(|nudge| nudge.found_idle(thread));
            let progress = self.watch.progress(thread, waits, idle, now);
            let keeps = matches!(progress, Progress::None | Progress::Ran);
            watched |= keeps;
            if let Some(nudge) = self.nudge.as_ref().filter(|_| keeps && !waits)
                && self.watch.is_due(thread, now)
            {
                nudge.nudge(thread);
            }
            self.run(&[], outgoing, |protocol, world| match progress {
                Progress::None => {}
                Progress::Ran => protocol.thread_ran(thread, world),
                Progress::Quiet => protocol.thread_quiet(thread, world),
                Progress::Gone => protocol.thread_gone(thread, world),
            })?;
        }
        Ok(watched)
    }

    /// Forgets threads that have not faulted for a while, and ends holds whose time is up.
    pub(super) fn sweep(
        &mut self,
        idle: std::time::Duration,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        let now = Instant::now();
        for thread in self.watch.expire(idle, now) {
            self.read_ahead.forget(thread);
            self.run(&[], outgoing, |protocol, world| protocol.thread_gone(thread, world))?;
        }
        let due = |hold: &Hold| now >= hold.deadline;
        let expired: Vec<ThreadId> =
            self.holds.iter().filter(|(_, hold)| due(hold)).map(|(&id, _)| id).collect();
        for id in expired {
            let gathering = self.holds.remove(&id).and_then(|hold| hold.reply);
            match gathering {
                Some(reply) => _ = reply.try_send(Err(HoldError::TimedOut)),
                None => {
                    self.holds_expired += 1;
                    log::warn!(
                        "region {:?}: a hold was kept longer than allowed; its pages are free",
                        self.memory.name()
                    );
                }
            }
            self.run(&[], outgoing, |protocol, world| protocol.thread_quiet(id, world))?;
        }
        Ok(())
    }

    /// When the worker has to look next for the sake of a hold, or of pages that find no frames.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let holds = self.holds.values().map(|hold| hold.deadline);
        holds.chain(self.restores.deadline(self.budget.full_after())).min()
    }

    pub(super) fn hold(
        &mut self,
        request: HoldRequest,
        reply: Reply<Result<(), HoldError>>,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        if self.protocol.has_ended() {
            let _ = reply.try_send(Err(HoldError::Ended));
            return Ok(());
        }
        let HoldRequest { id, pages, access, deadline, keep_max } = request;
        self.holds
            .insert(id, Hold { deadline, keep_max, pages: pages.len() as u64, reply: Some(reply) });
        self.run(&[], outgoing, |protocol, world| protocol.hold(id, &pages, access, world))
    }

    pub(super) fn release(
        &mut self,
        id: ThreadId,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        self.holds.remove(&id);
        self.run(&[], outgoing, |protocol, world| protocol.thread_quiet(id, world))
    }

    /// Tells those who wait for a hold that it is complete; its time of keeping begins.
    fn report_ready(&mut self) {
        for id in self.protocol.take_ready() {
            if let Some(hold) = self.holds.get_mut(&id)
                && let Some(reply) = hold.reply.take()
            {
                hold.deadline = Instant::now() + hold.keep_max;
                let _ = reply.try_send(Ok(()));
            }
        }
    }

    pub(super) fn prefetch(
        &mut self,
        pages: &[Page],
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        self.run(&[], outgoing, |protocol, world| protocol.prefetch(pages, world))
    }

    pub(super) fn set_fault_around(&mut self, on: bool) {
        self.protocol.set_fault_around(on);
        self.read_ahead.set_on(on);
    }

    /// The region ends: waiting accesses learn that their pages are lost.
    pub(super) fn end(&mut self, outgoing: &mut Vec<Outgoing>) -> Result<(), MemoryError> {
        for (_, hold) in self.holds.drain() {
            if let Some(reply) = hold.reply {
                let _ = reply.try_send(Err(HoldError::Ended));
            }
        }
        self.waiting.clear();
        self.restores.end();
        self.walks.end();
        self.run(&[], outgoing, |protocol, world| protocol.end(world))
    }

    pub(super) fn stats(&self) -> RegionStats {
        let mut stats = RegionStats {
            counters: *self.protocol.counters(),
            latency: self.latency.clone(),
            metadata_bytes: self.protocol.metadata_bytes() + self.residency.allocated_bytes(),
            frames: self.residency.count(),
            holds: self.holds.len() as u64,
            pages_held: self.holds.values().map(|hold| hold.pages).sum(),
            holds_expired: self.holds_expired,
            contentions: self.contentions,
            walk_shared: self.protocol.walk_shared() as u64,
            ended: self.protocol.has_ended(),
            ..RegionStats::default()
        };
        stats.set_contended(&self.contended);
        stats
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.budget.gone(self.residency.count() + self.room_given);
        self.shares.fetch_sub(usize::from(self.sharing), Ordering::SeqCst);
        self.walks.end();
    }
}
