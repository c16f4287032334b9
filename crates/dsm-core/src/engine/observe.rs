//! What an observer, such as a profiler, is told of a region.

use std::sync::Arc;

use crate::types::{Access, Page, ThreadId};

use super::stats::FaultKind;

/// Something that happened to a page on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Observed {
    /// A thread faulted, and does not run yet.
    Fault {
        /// The page.
        page: Page,
        /// What the thread is about to do.
        access: Access,
        /// Why that takes time.
        kind: FaultKind,
        /// The thread.
        thread: ThreadId,
        /// The page was waited for before: the kernel repeats faults that a signal interrupts, and
        /// other threads may wait for it.
        again: bool,
    },
    /// This node no longer may write a page that it alone had.
    Left {
        /// The page.
        page: Page,
        /// Its bytes are those that it came with: nobody has stored to it, or only what was there.
        unchanged: bool,
    },
}

/// Called on a worker's thread, once for each [`Observed`]; must return at once.
pub type Observer = Arc<dyn Fn(Observed) + Send + Sync>;
