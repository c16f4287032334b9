//! Whether threads have run since they faulted, by their processor-time clocks.
//!
//! Looked at only when a page is wanted by two: without contention nothing here costs anything but
//! one clock reading a fault.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::types::{Page, ThreadId};

use super::ages::{Ages, Seen, Stamp};
use super::pace::Pace;

/// Processor time after which a thread has surely used the page it waited for, in system calls: for
/// slow and emulated machines, where it is more than [`Pace::ran`].
const RAN_CALLS: u64 = 8;
/// How often in a row a thread's episode of a single page may end before it is quiet.
const HASTY_MAX: u8 = 32;
/// Wall time that stands for the above where a thread has no clock that this process can read.
const UNKNOWN_RAN: Duration = Duration::from_micros(100);

/// How far a thread has come since its last fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// It may not have run yet.
    None,
    /// It has used the page it waited for.
    Ran,
    /// It has run on without another fault.
    Quiet,
    /// It no longer exists.
    Gone,
}

#[derive(Clone, Copy)]
struct Watched {
    /// Its fault here among those at all workers.
    stamp: Stamp,
    cpu_ns: Option<u64>,
    /// Its clock at the last look.
    looked_ns: Option<u64>,
    since: Instant,
    /// The page it faulted on.
    page: Page,
    /// Faulted on no other since it was quiet: there is nothing gathered that could be torn apart.
    single: bool,
    /// How often in a row it was called quiet early.
    hasty: u8,
    /// When it was nudged last.
    nudged: Option<Instant>,
}

/// The threads that faulted lately.
pub(super) struct Watch {
    ages: Arc<Ages>,
    threads: HashMap<ThreadId, Watched>,
    /// Threads whose clock has not been read since their fault.
    unread: Vec<ThreadId>,
    /// Processor time of a system call on this machine.
    call_ns: u64,
    /// Processor time after which a thread has used its page.
    ran_ns: u64,
    pace: Pace,
}

/// A fault, as the worker is to take it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Taken {
    /// The episode that the thread had here is over.
    pub(super) ended: bool,
    /// Clock at which its episode began.
    pub(super) since: u64,
}

impl Watch {
    pub(super) fn new(ages: Arc<Ages>) -> Self {
        let call_ns = call_ns();
        let mut watch = Self {
            ages,
            threads: HashMap::new(),
            unread: Vec::new(),
            call_ns,
            ran_ns: 0,
            pace: Pace::THREADS,
        };
        watch.set_pace(Pace::THREADS);
        watch
    }

    /// Sets what counts as having run, and as quiet.
    pub(super) fn set_pace(&mut self, pace: Pace) {
        self.ran_ns = nanos(pace.ran).max(RAN_CALLS * self.call_ns);
        self.pace = pace;
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// `thread` faulted on `page`, and does not run; `clock` is that of the worker's protocol.
    pub(super) fn fault(
        &mut self,
        thread: ThreadId,
        page: Page,
        clock: u64,
        now: Instant,
    ) -> Taken {
        let before = self.threads.get(&thread).copied();
        let (quiet, ended) = before.map_or((false, false), |it| self.was_quiet(thread, it, now));
        let stamp = self.ages.fault(thread, clock);
        let first = Watched {
            stamp,
            cpu_ns: None,
            looked_ns: None,
            since: now,
            page,
            single: true,
            hasty: 0,
            nudged: None,
        };
        self.unread.push(thread);
        let watched = match before {
            Some(before) if !quiet => {
                // No other page, here or at another worker: nothing gathered could be torn apart.
                let next = before.stamp.fault.wrapping_add(1) == stamp.fault;
                let single = before.single && before.page == page && next;
                Watched { single, hasty: before.hasty, ..first }
            }
            _ => first,
        };
        self.threads.insert(thread, watched);
        Taken { ended, since: stamp.since }
    }

    /// Whether a thread that faults again had been quiet, and whether its episode is over, be it
    /// because it was called quiet early.
    fn was_quiet(&self, thread: ThreadId, before: Watched, now: Instant) -> (bool, bool) {
        let seen = self.ages.look(thread, before.stamp);
        // The worker of its last fault knows better. And in less time than that no thread becomes
        // quiet, whatever its clock says.
        let early = now.duration_since(before.since) < self.pace.quiet;
        if seen == Seen::Elsewhere || early {
            return (false, seen == Seen::Ended);
        }
        let quiet = self.judge(before, thread_cpu_ns(thread), now) == Progress::Quiet;
        if quiet {
            self.ages.end(thread, before.stamp.since);
        }
        (quiet, quiet || seen == Seen::Ended)
    }

    /// Reads the clocks of the threads that have faulted: when what they wait for has been asked for,
    /// for a thread that waits does not run.
    pub(super) fn read_clocks(&mut self) {
        for thread in self.unread.drain(..) {
            if let Some(watched) = self.threads.get_mut(&thread) {
                watched.cpu_ns = thread_cpu_ns(thread);
            }
        }
    }

    /// How far `thread` has come since its last fault; `waits` if it is known to wait for a page, `idle`
    /// if it is known to have gone to sleep.
    ///
    /// A thread that sleeps for another reason, such as a lock, is quiet: it has used its page before.
    /// Its clock stands still between two looks, and between them the worker has read all faults, so
    /// it does not sleep in one.
    ///
    /// A thread that has gathered no more than the page it waited for is quiet once it has run:
    /// keeping the page longer helps nobody. Should a slow machine have it called so too early, again
    /// and again, it is given its full time now and then, so that it gathers what it needs.
    pub(super) fn progress(
        &mut self,
        thread: ThreadId,
        waits: bool,
        idle: bool,
        now: Instant,
    ) -> Progress {
        let progress = self.look(thread, waits, idle, now);
        if matches!(progress, Progress::Quiet | Progress::Gone)
            && let Some(watched) = self.threads.get(&thread)
        {
            self.ages.end(thread, watched.stamp.since);
        }
        progress
    }

    fn look(&mut self, thread: ThreadId, waits: bool, idle: bool, now: Instant) -> Progress {
        let Some(watched) = self.threads.get_mut(&thread) else { return Progress::Quiet };
        match self.ages.look(thread, watched.stamp) {
            Seen::Ended => return Progress::Quiet,
            Seen::Elsewhere if now.duration_since(watched.since) >= self.pace.bound => {
                return Progress::Quiet;
            }
            Seen::Elsewhere => return Progress::Ran,
            Seen::Here => {}
        }
        let cpu_ns = thread_cpu_ns(thread);
        if cpu_ns.is_none() && watched.cpu_ns.is_some() {
            return Progress::Gone;
        }
        let progress = judge(*watched, cpu_ns, now, self.ran_ns, self.pace);
        let may_be_hasty = cpu_ns.is_some() && watched.single && watched.hasty < HASTY_MAX;
        if progress == Progress::Ran && may_be_hasty {
            watched.hasty += 1;
            return Progress::Quiet;
        }
        let stands = cpu_ns.is_some() && watched.looked_ns == cpu_ns;
        watched.looked_ns = cpu_ns;
        if (stands || idle) && !waits && sleeps(thread) {
            return Progress::Quiet;
        }
        progress
    }

    fn judge(&self, watched: Watched, cpu_ns: Option<u64>, now: Instant) -> Progress {
        judge(watched, cpu_ns, now, self.ran_ns, self.pace)
    }

    /// Whether it is time to nudge `thread`, which then counts as nudged.
    pub(super) fn is_due(&mut self, thread: ThreadId, now: Instant) -> bool {
        let Some(watched) = self.threads.get_mut(&thread) else { return false };
        let since = watched.nudged.map_or(watched.since, |nudged| nudged.max(watched.since));
        let due = now.duration_since(since) >= self.pace.nudge;
        if due {
            watched.nudged = Some(now);
        }
        due
    }

    /// Removes and returns threads that have not faulted for `age`.
    pub(super) fn expire(&mut self, age: Duration, now: Instant) -> Vec<ThreadId> {
        let old = |watched: &Watched| now.duration_since(watched.since) >= age;
        let expired: Vec<ThreadId> =
            self.threads.iter().filter(|(_, w)| old(w)).map(|(&thread, _)| thread).collect();
        expired.iter().for_each(|thread| _ = self.threads.remove(thread));
        expired
    }
}

fn judge(watched: Watched, cpu_ns: Option<u64>, now: Instant, ran_ns: u64, pace: Pace) -> Progress {
    let waited = now.duration_since(watched.since);
    if waited >= pace.bound {
        return Progress::Quiet;
    }
    match (watched.cpu_ns, cpu_ns) {
        (Some(before), Some(after)) => match after.saturating_sub(before) {
            used if used >= nanos(pace.quiet).max(2 * ran_ns) => Progress::Quiet,
            used if used >= ran_ns => Progress::Ran,
            _ => Progress::None,
        },
        _ if waited >= 2 * UNKNOWN_RAN => Progress::Quiet,
        _ if waited >= UNKNOWN_RAN => Progress::Ran,
        _ => Progress::None,
    }
}

/// Whether a thread of this process is neither running nor ready to run; proc(5), `stat`.
fn sleeps(thread: ThreadId) -> bool {
    let stat = std::fs::read(format!("/proc/self/task/{}/stat", thread.0)).unwrap_or_default();
    // The name before the state may contain anything, parentheses included.
    let state = stat.iter().rposition(|&byte| byte == b')').and_then(|at| stat.get(at + 2));
    state.is_some_and(|state| b"SD".contains(state))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Processor time of a system call, on this machine.
pub(super) fn call_ns() -> u64 {
    // SAFETY: no arguments, no memory.
    let me = ThreadId(unsafe { libc::gettid() } as u32);
    let clock = || thread_cpu_ns(me).unwrap_or(0);
    (0..16).map(|_| clock().abs_diff(clock())).min().unwrap_or(0)
}

/// Processor time of a thread of this process in nanoseconds; `None` for others and for the dead.
fn thread_cpu_ns(thread: ThreadId) -> Option<u64> {
    // clock_getcpuclockid(3): the inverted id, shifted by three, with CPUCLOCK_SCHED (2) and the
    // per-thread bit (4).
    let clock = !(thread.0 as libc::clockid_t) << 3 | 6;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the call fills; any clock id is allowed.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    (result == 0).then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Page = Page(7);
    const BOUND: Duration = Pace::THREADS.bound;
    const QUIET_NS: u64 = Pace::THREADS.quiet.as_nanos() as u64;

    fn gettid() -> ThreadId {
        // SAFETY: no arguments, no memory.
        ThreadId(unsafe { libc::gettid() } as u32)
    }

    #[test]
    fn a_thread_that_computes_becomes_quiet() {
        let mut watch = Watch::new(Arc::new(Ages::new()));
        let now = Instant::now();
        assert!(!watch.fault(gettid(), PAGE, 0, now).ended);
        watch.read_clocks();
        let start = thread_cpu_ns(gettid()).unwrap();
        while thread_cpu_ns(gettid()).unwrap() - start < 2 * QUIET_NS {
            std::hint::spin_loop();
        }
        assert_eq!(watch.progress(gettid(), false, false, now), Progress::Quiet);
        let later = now + Duration::from_nanos(QUIET_NS);
        assert!(watch.fault(gettid(), PAGE, 0, later).ended);
    }

    #[test]
    fn who_has_gathered_one_page_is_quiet_once_it_ran_and_who_has_two_is_not() {
        let mut watch = Watch { ran_ns: 1, ..Watch::new(Arc::new(Ages::new())) };
        let now = Instant::now();
        watch.fault(gettid(), PAGE, 0, now);
        watch.read_clocks();
        assert_eq!(watch.progress(gettid(), false, false, now), Progress::Quiet);
        // Reading the clock takes some time of its own, but far less than until the thread is quiet.
        watch.fault(gettid(), Page(8), 0, now);
        watch.read_clocks();
        assert_eq!(watch.progress(gettid(), false, false, now), Progress::Ran);
    }

    #[test]
    fn who_computes_between_faults_may_be_called_quiet_early_for_ever() {
        let mut watch = Watch { ran_ns: 1, ..Watch::new(Arc::new(Ages::new())) };
        let mut now = Instant::now();
        for _ in 0..3 * u32::from(HASTY_MAX) {
            watch.fault(gettid(), PAGE, 0, now);
            watch.read_clocks();
            let start = thread_cpu_ns(gettid()).unwrap();
            while thread_cpu_ns(gettid()).unwrap() - start < 2 * QUIET_NS {
                std::hint::spin_loop();
            }
            let watched = watch.threads.get_mut(&gettid()).unwrap();
            assert!(watched.hasty < HASTY_MAX);
            // As if it had been looked at when it had just run.
            watched.hasty += 1;
            watch.ages.end(gettid(), watched.stamp.since);
            now += Duration::from_nanos(2 * QUIET_NS);
        }
    }

    #[test]
    fn a_blocked_thread_makes_no_progress_until_the_bound_and_a_dead_one_is_gone() {
        let (send_id, id) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send_id.send(gettid()).unwrap();
            let _ = stopped.recv();
        });
        let id = id.recv().unwrap();
        // Blocked in `recv` once its clock stands still.
        let mut last = None;
        while thread_cpu_ns(id) != last {
            last = thread_cpu_ns(id);
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut watch = Watch::new(Arc::new(Ages::new()));
        let now = Instant::now();
        watch.fault(id, PAGE, 0, now);
        watch.read_clocks();
        assert_eq!(watch.progress(id, true, false, now), Progress::None);
        // Asleep, but not in a fault: known at the second look, or at the first of one that said so.
        assert_eq!(watch.progress(id, false, false, now), Progress::Quiet);
        watch.fault(id, PAGE, 0, now);
        watch.read_clocks();
        assert_eq!(watch.progress(id, false, true, now), Progress::Quiet);
        // Whoever runs has been woken since.
        watch.fault(gettid(), PAGE, 0, now);
        watch.fault(gettid(), Page(8), 0, now);
        watch.read_clocks();
        assert_ne!(watch.progress(gettid(), false, true, now), Progress::Quiet);
        watch.fault(id, PAGE, 0, now);
        watch.read_clocks();
        assert_eq!(watch.progress(id, true, false, now + BOUND), Progress::Quiet);
        watch.fault(id, PAGE, 0, now);
        watch.read_clocks();
        drop(stop);
        thread.join().unwrap();
        while thread_cpu_ns(id).is_some() {
            std::thread::yield_now();
        }
        assert_eq!(watch.progress(id, true, false, now), Progress::Gone);
    }

    #[test]
    fn a_thread_that_faulted_at_another_worker_has_run_here() {
        let ages = Arc::new(Ages::new());
        let (mut one, mut two) = (Watch::new(Arc::clone(&ages)), Watch::new(ages));
        let now = Instant::now();
        let first = one.fault(gettid(), PAGE, 0, now);
        let second = two.fault(gettid(), Page(9), 50, now);
        assert_eq!(first.since, second.since);
        assert_eq!(one.progress(gettid(), false, false, now), Progress::Ran);
        // One finds that its time is over: so does the other.
        assert_eq!(two.progress(gettid(), false, false, now + BOUND), Progress::Quiet);
        assert_eq!(one.progress(gettid(), false, false, now), Progress::Quiet);
    }

    #[test]
    fn a_thread_without_a_clock_counts_by_wall_time() {
        let mut watch = Watch::new(Arc::new(Ages::new()));
        let now = Instant::now();
        let init = ThreadId(1);
        watch.fault(init, PAGE, 0, now);
        watch.read_clocks();
        assert_eq!(watch.progress(init, false, false, now), Progress::None);
        assert_eq!(watch.progress(init, false, false, now + UNKNOWN_RAN), Progress::Ran);
        assert_eq!(watch.progress(init, false, false, now + 2 * UNKNOWN_RAN), Progress::Quiet);
        assert_eq!(watch.expire(BOUND, now + BOUND), [init]);
    }
}
