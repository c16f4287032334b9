//! Whether threads have run since they faulted, by their processor-time clocks.
//!
//! Looked at only when a page is wanted by two: without contention nothing here costs anything but
//! one clock reading a fault.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::types::ThreadId;

/// Processor time after which a thread has surely used the page it waited for: the way out of the
/// kernel and the instruction itself.
const RAN_NS: u64 = 4_000;
/// Processor time without a fault after which a thread's episode is over.
const QUIET_NS: u64 = 20_000;
/// Wall time that stands for the above where a thread has no clock that this process can read.
const UNKNOWN_RAN: Duration = Duration::from_micros(100);
/// However little a thread ran: its episode ends. The safety net of DESIGN.md section 4.
const BOUND: Duration = Duration::from_millis(10);

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
    cpu_ns: Option<u64>,
    since: Instant,
}

/// The threads that faulted lately.
#[derive(Default)]
pub(super) struct Watch {
    threads: HashMap<ThreadId, Watched>,
}

impl Watch {
    /// `thread` faulted, and does not run. Says how far it had come since its fault before.
    pub(super) fn fault(&mut self, thread: ThreadId, now: Instant) -> Option<Progress> {
        let cpu_ns = thread_cpu_ns(thread);
        let before = self.threads.insert(thread, Watched { cpu_ns, since: now });
        before.map(|before| progress(before, cpu_ns, now))
    }

    /// How far `thread` has come since its last fault.
    pub(super) fn progress(&self, thread: ThreadId, now: Instant) -> Progress {
        match self.threads.get(&thread) {
            None => Progress::Quiet,
            Some(&watched) => {
                let cpu_ns = thread_cpu_ns(thread);
                if cpu_ns.is_none() && watched.cpu_ns.is_some() {
                    return Progress::Gone;
                }
                progress(watched, cpu_ns, now)
            }
        }
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

fn progress(watched: Watched, cpu_ns: Option<u64>, now: Instant) -> Progress {
    let waited = now.duration_since(watched.since);
    if waited >= BOUND {
        return Progress::Quiet;
    }
    match (watched.cpu_ns, cpu_ns) {
        (Some(before), Some(after)) => match after.saturating_sub(before) {
            QUIET_NS.. => Progress::Quiet,
            RAN_NS.. => Progress::Ran,
            _ => Progress::None,
        },
        _ if waited >= 2 * UNKNOWN_RAN => Progress::Quiet,
        _ if waited >= UNKNOWN_RAN => Progress::Ran,
        _ => Progress::None,
    }
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

    fn gettid() -> ThreadId {
        // SAFETY: no arguments, no memory.
        ThreadId(unsafe { libc::gettid() } as u32)
    }

    #[test]
    fn a_thread_that_computes_becomes_quiet() {
        let mut watch = Watch::default();
        let now = Instant::now();
        assert_eq!(watch.fault(gettid(), now), None);
        let start = thread_cpu_ns(gettid()).unwrap();
        while thread_cpu_ns(gettid()).unwrap() - start < 2 * QUIET_NS {
            std::hint::spin_loop();
        }
        assert_eq!(watch.progress(gettid(), now), Progress::Quiet);
        assert_eq!(watch.fault(gettid(), now), Some(Progress::Quiet));
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
        let mut watch = Watch::default();
        let now = Instant::now();
        watch.fault(id, now);
        assert_eq!(watch.progress(id, now), Progress::None);
        assert_eq!(watch.progress(id, now + BOUND), Progress::Quiet);
        drop(stop);
        thread.join().unwrap();
        while thread_cpu_ns(id).is_some() {
            std::thread::yield_now();
        }
        assert_eq!(watch.progress(id, now), Progress::Gone);
    }

    #[test]
    fn a_thread_without_a_clock_counts_by_wall_time() {
        let mut watch = Watch::default();
        let now = Instant::now();
        let init = ThreadId(1);
        watch.fault(init, now);
        assert_eq!(watch.progress(init, now), Progress::None);
        assert_eq!(watch.progress(init, now + UNKNOWN_RAN), Progress::Ran);
        assert_eq!(watch.progress(init, now + 2 * UNKNOWN_RAN), Progress::Quiet);
        assert_eq!(watch.expire(BOUND, now + BOUND), [init]);
    }
}
