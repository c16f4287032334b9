//! What the regions of a node may take of its memory, counted by all its workers.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::source::Wake;

/// Frames that a worker frees beyond what is needed, so that it needn't begin anew for each page.
const SLACK_MAX: u64 = 64;

/// How long a refused node's wish counts: it asks again before that.
const WANTED_MS: u64 = 20;

/// What the end of a hold may take to be noticed everywhere, and more.
const FULL_MARGIN: Duration = Duration::from_secs(5);

/// Frames beyond the share, for each worker, for what is on its way here: 2 MiB.
const RESERVE: u64 = 512;

/// The frames of a node.
pub(super) struct Budget {
    /// Frames that the node gives.
    share: u64,
    /// Frames beyond that, for what must be received.
    reserve: u64,
    /// Frames that exist, and those kept free for other nodes' pages.
    frames: AtomicU64,
    /// Frames that another node asked for in vain. Whatever worker has pages that can go, makes room.
    wanted: AtomicU64,
    /// Until when, in milliseconds from `start`.
    wanted_until_ms: AtomicU64,
    start: Instant,
    /// For how long nobody must have room before a page that finds no frame is given up.
    full_after: Duration,
    workers: OnceLock<Vec<Arc<Wake>>>,
}

impl Budget {
    /// For a node that gives `share` frames, has so many workers, and keeps holds for `hold_keep_max`.
    pub(super) fn new(share: u64, workers: usize, hold_keep_max: Duration) -> Self {
        let reserve = RESERVE * workers as u64;
        Self {
            share,
            reserve,
            frames: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            wanted_until_ms: AtomicU64::new(0),
            start: Instant::now(),
            full_after: hold_keep_max + FULL_MARGIN,
            workers: OnceLock::new(),
        }
    }

    /// Whom to wake when one of them finds nothing to give back.
    pub(super) fn set_workers(&self, workers: Vec<Arc<Wake>>) {
        let _ = self.workers.set(workers);
    }

    pub(super) fn wake_all(&self) {
        self.workers.get().into_iter().flatten().for_each(|wake| wake.signal());
    }

    pub(super) fn added(&self, frames: u64) {
        if frames > 0 {
            self.frames.fetch_add(frames, Ordering::Relaxed);
        }
    }

    pub(super) fn gone(&self, frames: u64) {
        if frames > 0 {
            self.frames.fetch_sub(frames, Ordering::Relaxed);
        }
    }

    /// See [`Budget::new`]: what keeps frames for longer than any hold are owned pages, and the
    /// cluster is full.
    pub(super) fn full_after(&self) -> Duration {
        self.full_after
    }

    fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Another node was refused `frames`; 0 if it got what it asked for.
    pub(super) fn want(&self, frames: u64) {
        if frames == 0 && self.wanted.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.wanted_until_ms.store(self.now_ms() + WANTED_MS, Ordering::Relaxed);
        self.wanted.store(frames, Ordering::Relaxed);
        if frames > 0 {
            self.wake_all();
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Frames that the node gives, less those that another waits for.
    fn share_left(&self) -> u64 {
        let wanted = self.wanted.load(Ordering::Relaxed);
        if wanted == 0 {
            return self.share;
        }
        if self.now_ms() > self.wanted_until_ms.load(Ordering::Relaxed) {
            self.wanted.store(0, Ordering::Relaxed);
            return self.share;
        }
        self.share.saturating_sub(wanted)
    }

    /// Frames to give back: beyond the share, or for another node's sake.
    pub(super) fn surplus(&self) -> u64 {
        self.frames().saturating_sub(self.share_left())
    }

    /// Frames beyond the share.
    pub(super) fn excess(&self) -> u64 {
        self.frames().saturating_sub(self.share)
    }

    /// Frames within the share that do not exist.
    pub(super) fn room(&self) -> u64 {
        self.share.saturating_sub(self.frames())
    }

    /// Frames to free, once there is an excess.
    pub(super) fn goal(&self) -> u64 {
        let slack = SLACK_MAX.min(self.share / 16);
        self.frames().saturating_sub(self.share_left().saturating_sub(slack))
    }

    /// Whether pages that nobody waits for had better stay where they are.
    pub(super) fn is_tight(&self) -> bool {
        self.excess() >= self.reserve / 4
    }

    /// Whether a page that needs a frame has to wait. What is on its way then takes the rest of the
    /// reserve.
    pub(super) fn is_full(&self) -> bool {
        self.excess() >= self.reserve / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_when_there_are_more_than_the_share_or_others_want_them() {
        let budget = Budget::new(1000, 1, Duration::ZERO);
        budget.added(1000);
        assert_eq!((budget.surplus(), budget.room()), (0, 0));
        budget.added(10);
        assert_eq!((budget.excess(), budget.surplus(), budget.goal()), (10, 10, 10 + 62));
        assert!(!budget.is_tight() && !budget.is_full());
        budget.want(20);
        assert_eq!((budget.excess(), budget.surplus()), (10, 30));
        budget.want(0);
        assert_eq!(budget.surplus(), 10);
        budget.added(RESERVE / 2 - 10);
        assert!(budget.is_tight() && budget.is_full());
        budget.gone(RESERVE / 2);
        assert_eq!((budget.excess(), budget.room()), (0, 0));
    }

    #[test]
    fn what_others_want_is_forgotten_after_a_while() {
        let budget = Budget::new(100, 1, Duration::ZERO);
        budget.added(100);
        budget.want(5);
        budget.wanted_until_ms.store(0, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(budget.surplus(), 0);
    }
}
