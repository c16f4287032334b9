//! What a node's workers must agree on about each thread: the age of its episode.
//!
//! One instruction can need pages of several stripes, and so of several workers. Its thread has the
//! same age with all of them, and each can tell whether it has faulted at another since.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::types::ThreadId;

/// Threads told apart; two that fall on one slot share an age, which harms no more than that neither
/// goes before the other.
const SLOTS: usize = 1 << 16;

#[derive(Default)]
struct Slot {
    /// Clock at which the episode began; 0 without one.
    since: AtomicU64,
    /// Faults at any worker.
    faults: AtomicU32,
}

/// The ages of all threads of a node.
pub(super) struct Ages {
    /// Lamport clock of the node.
    clock: AtomicU64,
    slots: Box<[Slot]>,
}

/// A thread's fault among those at all workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    /// Clock at which its episode began.
    pub(super) since: u64,
    /// Number of the fault.
    pub(super) fault: u32,
}

impl Ages {
    pub(super) fn new() -> Self {
        let slots = (0..SLOTS).map(|_| Slot::default()).collect();
        Self { clock: AtomicU64::new(0), slots }
    }

    fn slot(&self, thread: ThreadId) -> &Slot {
        &self.slots[thread.0 as usize % SLOTS]
    }

    /// `thread` faulted at a worker whose clock is `clock`: continues its episode, or opens one.
    pub(super) fn fault(&self, thread: ThreadId, clock: u64) -> Stamp {
        let slot = self.slot(thread);
        let fault = slot.faults.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let since = match slot.since.load(Ordering::Relaxed) {
            0 => self.open(slot, clock),
            since => since,
        };
        Stamp { since, fault }
    }

    fn open(&self, slot: &Slot, clock: u64) -> u64 {
        self.clock.fetch_max(clock, Ordering::Relaxed);
        let fresh = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        match slot.since.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => fresh,
            Err(other) => other,
        }
    }

    /// What a worker finds now of a thread that it knows by `stamp`.
    pub(super) fn look(&self, thread: ThreadId, stamp: Stamp) -> Seen {
        let slot = self.slot(thread);
        if slot.since.load(Ordering::Relaxed) != stamp.since {
            Seen::Ended
        } else if slot.faults.load(Ordering::Relaxed) != stamp.fault {
            Seen::Elsewhere
        } else {
            Seen::Here
        }
    }

    /// The thread's episode is over.
    pub(super) fn end(&self, thread: ThreadId, since: u64) {
        let slot = self.slot(thread);
        let _ = slot.since.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Where a thread's last fault was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// At this worker.
    Here,
    /// At another: it has used what it waited for here.
    Elsewhere,
    /// Its episode is over, as another worker has found.
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: ThreadId = ThreadId(70_000);

    #[test]
    fn a_thread_has_one_age_with_all_workers() {
        let ages = Ages::new();
        let first = ages.fault(T, 5);
        assert_eq!(first.since, 6);
        assert_eq!(ages.look(T, first), Seen::Here);
        let second = ages.fault(T, 90);
        assert_eq!(second.since, 6);
        assert_eq!(ages.look(T, first), Seen::Elsewhere);
        assert_eq!(ages.look(T, second), Seen::Here);
        ages.end(T, first.since);
        assert_eq!(ages.look(T, second), Seen::Ended);
        // A later episode is younger than anything seen.
        assert!(ages.fault(T, 90).since > 90);
    }

    #[test]
    fn an_ended_episode_does_not_end_the_next() {
        let ages = Ages::new();
        let old = ages.fault(T, 0);
        ages.end(T, old.since);
        let new = ages.fault(T, 0);
        ages.end(T, old.since);
        assert_eq!(ages.look(T, new), Seen::Here);
    }
}
