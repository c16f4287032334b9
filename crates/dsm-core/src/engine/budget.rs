//! What the regions of a node may take of its memory, counted by all its workers.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::worker::Wake;

/// Frames that a worker frees beyond what is needed, so that it needn't begin anew for each page.
const SLACK_MAX: u64 = 64;

/// The frames of a node.
pub(super) struct Budget {
    /// Frames that the node gives.
    share: u64,
    /// Frames that exist.
    frames: AtomicU64,
    workers: OnceLock<Vec<Arc<Wake>>>,
}

impl Budget {
    pub(super) fn new(share: u64) -> Self {
        Self { share, frames: AtomicU64::new(0), workers: OnceLock::new() }
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

    /// Frames beyond the share.
    pub(super) fn excess(&self) -> u64 {
        self.frames.load(Ordering::Relaxed).saturating_sub(self.share)
    }

    /// Frames to free, once there is an excess.
    pub(super) fn goal(&self) -> u64 {
        let slack = SLACK_MAX.min(self.share / 16);
        self.frames.load(Ordering::Relaxed).saturating_sub(self.share - slack)
    }
}
