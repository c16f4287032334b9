//! The engine as the rest of the node sees it.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
#[cfg(feature = "mutations")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::pages::RegionMemory;
#[cfg(feature = "mutations")]
use crate::protocol::Mutation;
use crate::protocol::{Features, Homes, LEASE_PAGES, Settings};
use crate::transport::Transport;
use crate::types::{Access, NodeId, Page, RegionId, ThreadId};

use super::ages::Ages;
use super::budget::Budget;
use super::command::{Command, HoldRequest};
use super::event::EngineEvent;
use super::observe::Observer;
use super::pace::{Nudge, Pace};
use super::source::Wake;
use super::stats::RegionStats;
use super::wait::WaitMode;
use super::walks::{Flushed, PageTables};
use super::worker::{Shared, Worker};

/// What an engine is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// This node.
    pub me: NodeId,
    /// Nodes in the cluster.
    pub nodes: usize,
    /// Worker threads; the same number on every node.
    pub workers: usize,
    /// How workers wait.
    pub wait: WaitMode,
    /// Frames that the node gives to regions; beyond, those that can be had again are given back.
    pub frames: u64,
    /// Most holds at a time.
    pub holds_max: u32,
    /// Most pages of one hold, and of one prefetch.
    pub hold_pages_max: u64,
    /// Longest time a hold is kept.
    pub hold_keep_max: Duration,
}

impl EngineConfig {
    /// The defaults for node `me` of `nodes`: one worker that waits adaptively; any amount of memory; 64 holds of 64 MiB
    /// for 10 seconds.
    pub fn new(me: NodeId, nodes: usize) -> Self {
        Self {
            me,
            nodes,
            workers: 1,
            wait: WaitMode::default(),
            frames: u64::MAX,
            holds_max: 64,
            hold_pages_max: 16 * 1024,
            hold_keep_max: Duration::from_secs(10),
        }
    }
}

/// A region to serve.
#[derive(Clone)]
pub struct RegionSpec {
    /// Its number, the same on every node.
    pub region: RegionId,
    /// Its memory, with at most one stripe a worker.
    pub memory: Arc<RegionMemory>,
    /// The nodes' shares of it in the epoch in which it begins, or began, in any unit: none for who is no
    /// member then.
    pub shares: Vec<u64>,
    /// That epoch, if this node has joined since. `None`: the region begins now, for all members.
    pub since: Option<u16>,
    /// Switches of the protocol.
    pub features: Features,
}

/// Why the engine did not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A worker could not be started.
    #[error("can't start a worker thread")]
    Start(#[source] io::Error),
    /// The region's memory has more stripes than the engine has workers.
    #[error("the region's memory has {stripes} stripes, but this node has {workers} workers")]
    Stripes {
        /// Stripes of the memory.
        stripes: usize,
        /// Workers of the engine.
        workers: usize,
    },
    /// The engine has been stopped.
    #[error("this node has been closed")]
    Stopped,
}

/// Why pages are not held.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HoldError {
    /// The pages did not come in time.
    #[error("the pages could not be gathered in time; another hold or a busy page keeps them")]
    TimedOut,
    /// The region has ended, because a node was lost.
    #[error("the region has ended because a node was lost")]
    Ended,
    /// A page was lost with a node.
    #[error("a page of the range was lost with a node")]
    Lost,
    /// More pages or holds than allowed.
    #[error("{what}: {asked} asked for, {most} allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much was asked for.
        asked: u64,
        /// How much is allowed.
        most: u64,
    },
    /// The range is not in the region.
    #[error("pages {start}..{end} are not in the region of {pages} pages")]
    OutOfRange {
        /// First page.
        start: u64,
        /// Page after the last.
        end: u64,
        /// Pages in the region.
        pages: u64,
    },
    /// The engine has been stopped, or does not serve the region.
    #[error("this node does not serve the region any more")]
    Stopped,
}

/// Hold numbers share the space of thread ids, above every real one.
const HOLD_IDS: u32 = 1 << 31;

/// Extra time that a command's answer may take beyond its own time limit, before the worker counts
/// as gone. Reached only if a worker thread has died.
const ANSWER_MAX: Duration = Duration::from_secs(60);

struct WorkerHandle {
    commands: Sender<Command>,
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    fn tell(&self, command: Command) -> Result<(), EngineError> {
        self.commands.send(command).map_err(|_| EngineError::Stopped)?;
        self.wake.signal();
        Ok(())
    }
}

/// The workers of one node. Dropping it stops them.
pub struct Engine {
    config: EngineConfig,
    workers: Vec<WorkerHandle>,
    regions: Mutex<HashMap<RegionId, Arc<RegionMemory>>>,
    /// Regions of which something may have to be flushed.
    shares: Arc<AtomicUsize>,
    holds: AtomicU32,
    last_hold: AtomicU32,
}

/// Pages kept at this node; released when dropped.
pub struct Hold<'e> {
    engine: &'e Engine,
    region: RegionId,
    id: ThreadId,
}

impl Hold<'_> {
    /// Forgets the guard without releasing the hold; its number goes to [`Engine::release`] later.
    pub fn into_id(self) -> ThreadId {
        let id = self.id;
        std::mem::forget(self);
        id
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.engine.release(self.region, self.id);
    }
}

/// See [`seed`].
#[cfg(feature = "mutations")]
static SEEDED: OnceLock<Mutation> = OnceLock::new();

/// Has every region that this process opens from now on make a mistake: shows that tests of whole
/// programs notice it. The first call counts.
#[cfg(feature = "mutations")]
pub fn seed(mutation: Mutation) {
    let _ = SEEDED.set(mutation);
}

impl Engine {
    /// Starts the workers. `events` is called on their threads.
    ///
    /// # Errors
    ///
    /// [`EngineError::Start`] if the kernel refuses a thread, an epoll or an eventfd.
    pub fn start(
        config: EngineConfig,
        events: impl Fn(EngineEvent) + Send + Sync + 'static,
    ) -> Result<Self, EngineError> {
        let events: Arc<dyn Fn(EngineEvent) + Send + Sync> = Arc::new(events);
        let ages = Arc::new(Ages::new());
        let budget = Arc::new(Budget::new(config.frames, config.workers, config.hold_keep_max));
        let shares = Arc::new(AtomicUsize::new(0));
        let shared = Shared { ages, budget: Arc::clone(&budget), shares: Arc::clone(&shares) };
        let mut workers: Vec<WorkerHandle> = Vec::new();
        for index in 0..config.workers.max(1) {
            let (commands, receiver) = mpsc::channel();
            let wake = Arc::new(Wake::new().map_err(EngineError::Start)?);
            let worker = Worker::new(
                index,
                config,
                receiver,
                Arc::clone(&wake),
                Arc::clone(&events),
                shared.clone(),
            )
            .map_err(EngineError::Start)?;
            let thread = std::thread::Builder::new()
                .name(format!("gvm-dsm-{index}"))
                .spawn(move || worker.run())
                .map_err(EngineError::Start)?;
            workers.push(WorkerHandle { commands, wake, thread: Some(thread) });
        }
        budget.set_workers(workers.iter().map(|worker| Arc::clone(&worker.wake)).collect());
        Ok(Self {
            config,
            workers,
            regions: Mutex::default(),
            shares,
            holds: AtomicU32::new(0),
            last_hold: AtomicU32::new(0),
        })
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Gives worker `worker` its connection to `peer`, in place of an earlier one.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn attach(
        &self,
        worker: usize,
        peer: NodeId,
        transport: Box<dyn Transport>,
    ) -> Result<(), EngineError> {
        self.tell(worker, Command::Attach { peer, transport })
    }

    pub(super) fn tell(&self, worker: usize, command: Command) -> Result<(), EngineError> {
        self.workers.get(worker).ok_or(EngineError::Stopped)?.tell(command)
    }

    /// The memory of a region that is served here.
    pub(super) fn memory(&self, region: RegionId) -> Option<Arc<RegionMemory>> {
        self.regions_mut().get(&region).cloned()
    }

    /// Closes the connections to `peer`.
    pub fn detach(&self, peer: NodeId) {
        for worker in &self.workers {
            let _ = worker.tell(Command::Detach { peer });
        }
    }

    /// Serves a region from now on: its faults and its messages.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stripes`], [`EngineError::Stopped`].
    pub fn open(&self, spec: &RegionSpec) -> Result<(), EngineError> {
        self.open_with(spec, self.settings(spec))
    }

    /// Has page tables of a region be walk-shared when another node asks to write them, or when they
    /// came back unchanged `after` times; `tables` knows which pages these are. Says whether they will:
    /// not where a node has several workers. All nodes must have been told before programs of theirs
    /// use the region.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn share_walked(
        &self,
        region: RegionId,
        after: u8,
        tables: &Arc<dyn PageTables>,
    ) -> Result<bool, EngineError> {
        if self.workers.len() > 1 {
            // A flush compares the pages of one worker.
            return Ok(false);
        }
        let tables = || Arc::clone(tables);
        self.ask_all(|reply| Command::SetTables { region, after, tables: tables(), reply })?;
        Ok(true)
    }

    /// Calls `then` on a worker's thread when what this thread has stored to walk-shared pages, or
    /// seen of what others of this node have, is in force at all nodes; in the order of the calls.
    /// For what other nodes are told by other ways than pages. A worker that has stopped does not call.
    pub fn flush(&self, region: RegionId, then: Flushed) {
        // There are walk-shared pages only where there is one worker.
        if let Some(worker) = self.workers.first() {
            let _ = worker.tell(Command::Flush { region, then });
        }
    }

    /// Whether there is something to flush. If not, whoever calls may do at once what others are to
    /// see after its stores, as soon as all its calls of [`Engine::flush`] have called back.
    pub fn must_flush(&self) -> bool {
        self.shares.load(Ordering::SeqCst) > 0
    }

    /// As [`Engine::open`], with a seeded mistake: shows that tests on real pages notice it.
    ///
    /// # Errors
    ///
    /// As [`Engine::open`].
    #[cfg(feature = "mutations")]
    pub fn open_mutated(&self, spec: &RegionSpec, mutation: Mutation) -> Result<(), EngineError> {
        self.open_with(spec, Settings { mutation: Some(mutation), ..self.settings(spec) })
    }

    fn settings(&self, spec: &RegionSpec) -> Settings {
        let pages = spec.memory.pages();
        Settings {
            me: self.config.me,
            nodes: self.config.nodes,
            pages,
            lease_pages: LEASE_PAGES,
            homes: Homes::spread(pages, LEASE_PAGES, &spec.shares),
            features: spec.features,
            #[cfg(feature = "mutations")]
            mutation: SEEDED.get().copied(),
        }
    }

    fn open_with(&self, spec: &RegionSpec, settings: Settings) -> Result<(), EngineError> {
        let (stripes, workers) = (spec.memory.stripes().len(), self.workers.len());
        if stripes > workers {
            return Err(EngineError::Stripes { stripes, workers });
        }
        self.regions_mut().insert(spec.region, Arc::clone(&spec.memory));
        self.ask_all(|reply| Command::Open {
            region: spec.region,
            memory: Arc::clone(&spec.memory),
            settings: Box::new(settings.clone()),
            since: spec.since,
            reply,
        })?;
        Ok(())
    }

    /// Stops serving a region. Threads that wait for its pages go on waiting: the caller sees to it
    /// that there are none.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn close(&self, region: RegionId) -> Result<(), EngineError> {
        self.regions_mut().remove(&region);
        self.ask_all(|reply| Command::Close { region, reply })?;
        Ok(())
    }

    /// Ends all regions, because a node was lost: who waits for a page, or touches one that this
    /// node cannot vouch for, gets SIGBUS (system calls: `EFAULT`). Returns when it is in force.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn end(&self) -> Result<(), EngineError> {
        self.ask_all(|reply| Command::End { reply }).map(drop)
    }

    /// Ends the accesses that wait for a frame, as for pages that were lost.
    pub fn give_up(&self, region: RegionId) {
        for worker in &self.workers {
            let _ = worker.tell(Command::GiveUp { region });
        }
    }

    /// Fetches pages for `access` and keeps them until the guard is dropped, or the time that a
    /// hold may last is over. Gathering takes `timeout` at most.
    ///
    /// # Errors
    ///
    /// [`HoldError`]; nothing is held then.
    pub fn hold(
        &self,
        region: RegionId,
        pages: Range<Page>,
        access: Access,
        timeout: Duration,
    ) -> Result<Hold<'_>, HoldError> {
        let memory = self.memory(region).ok_or(HoldError::Stopped)?;
        self.check_hold(&memory, &pages)?;
        let id = ThreadId(HOLD_IDS | self.last_hold.fetch_add(1, Ordering::Relaxed));
        // From here on the guard gives everything back.
        let hold = Hold { engine: self, region, id };
        let deadline = Instant::now() + timeout;
        let mut replies = Vec::new();
        for (stripe, part) in memory.parts(pages) {
            let request = HoldRequest {
                id,
                pages: (part.start.0..part.end.0).map(Page).collect(),
                access,
                deadline,
                keep_max: self.config.hold_keep_max,
            };
            let (reply, answer) = mpsc::sync_channel(1);
            let command = Command::Hold { region, hold: request, reply };
            self.tell(stripe, command).map_err(|_| HoldError::Stopped)?;
            replies.push(answer);
        }
        for answer in replies {
            match answer.recv_timeout(timeout + ANSWER_MAX) {
                Ok(result) => result?,
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                    return Err(HoldError::Stopped);
                }
            }
        }
        Ok(hold)
    }

    fn check_hold(&self, memory: &RegionMemory, pages: &Range<Page>) -> Result<(), HoldError> {
        let (start, end) = (pages.start.0, pages.end.0);
        if start >= end || end > memory.pages() {
            // Nothing was counted yet, and the guard does not exist.
            return Err(HoldError::OutOfRange { start, end, pages: memory.pages() });
        }
        if end - start > self.config.hold_pages_max {
            let most = self.config.hold_pages_max;
            return Err(HoldError::TooMany { what: "pages in one hold", asked: end - start, most });
        }
        let held = self.holds.fetch_add(1, Ordering::Relaxed);
        if held >= self.config.holds_max {
            self.holds.fetch_sub(1, Ordering::Relaxed);
            let (asked, most) = (u64::from(held) + 1, u64::from(self.config.holds_max));
            return Err(HoldError::TooMany { what: "holds at a time", asked, most });
        }
        Ok(())
    }

    /// Gives back a hold by its number ([`Hold::into_id`]); once.
    pub fn release(&self, region: RegionId, id: ThreadId) {
        self.holds.fetch_sub(1, Ordering::Relaxed);
        for worker in &self.workers {
            let _ = worker.tell(Command::Release { region, id });
        }
    }

    /// Asks for copies of pages that are not here, without waiting for them; of a longer range, for
    /// the first [`EngineConfig::hold_pages_max`].
    pub fn prefetch(&self, region: RegionId, pages: Range<Page>) {
        let Some(memory) = self.memory(region) else { return };
        let end = pages.start.0.saturating_add(self.config.hold_pages_max).min(pages.end.0);
        for (stripe, part) in memory.parts(pages.start..Page(end)) {
            let pages = (part.start.0..part.end.0).map(Page).collect();
            let _ = self.tell(stripe, Command::Prefetch { region, pages });
        }
    }

    /// Switches fault-around for a region.
    pub fn set_fault_around(&self, region: RegionId, on: bool) {
        for worker in &self.workers {
            let _ = worker.tell(Command::FaultAround { region, on });
        }
    }

    /// Sets how long this node's threads take with the region's pages; [`Pace::THREADS`] at first.
    /// `nudge` is asked about threads whose pages are wanted for longer than [`Pace::nudge`].
    pub fn set_pace(&self, region: RegionId, pace: Pace, nudge: Option<Arc<dyn Nudge>>) {
        for worker in &self.workers {
            let nudge = nudge.clone();
            let _ = worker.tell(Command::SetPace { region, pace, nudge });
        }
    }

    /// Has an observer told of a region's faults and pages from now on, or none; at a price on each
    /// fault.
    pub fn observe(&self, region: RegionId, observer: Option<Observer>) {
        for worker in &self.workers {
            let observer = observer.clone();
            let _ = worker.tell(Command::Observe { region, observer });
        }
    }

    /// Puts the workers before threads of ordinary priority, where the process may: with vCPUs, that
    /// never sleep of their own will.
    pub fn outrank(&self) {
        for worker in &self.workers {
            let _ = worker.tell(Command::Outrank);
        }
    }

    /// What the region's memory did on this node.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn stats(&self, region: RegionId) -> Result<RegionStats, EngineError> {
        let mut stats = RegionStats::default();
        for part in self.ask_all(|reply| Command::Stats { region, reply })? {
            stats.merge(&part);
        }
        Ok(stats)
    }

    pub(super) fn ask_all<T>(
        &self,
        mut command: impl FnMut(mpsc::SyncSender<T>) -> Command,
    ) -> Result<Vec<T>, EngineError> {
        let mut answers: Vec<Receiver<T>> = Vec::new();
        for worker in &self.workers {
            let (reply, answer) = mpsc::sync_channel(1);
            worker.tell(command(reply))?;
            answers.push(answer);
        }
        answers
            .into_iter()
            .map(|answer| answer.recv_timeout(ANSWER_MAX).map_err(|_| EngineError::Stopped))
            .collect()
    }

    fn regions_mut(&self) -> std::sync::MutexGuard<'_, HashMap<RegionId, Arc<RegionMemory>>> {
        // Nothing panics while the lock is held; were it so, the map would still be whole.
        self.regions.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for worker in &self.workers {
            let _ = worker.tell(Command::Stop);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                log::error!("a worker thread has panicked");
            }
        }
    }
}
