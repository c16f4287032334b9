//! One thread wakes another.

use std::sync::{Condvar, Mutex, PoisonError};

/// Rings are counted: none is lost, whether it was waited for yet or not.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.rung.notify_one();
    }

    /// Sleeps until the next ring.
    pub(super) fn wait(&self) {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let rings = self.rung.wait_while(rings, |rings| *rings == 0);
        *rings.unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

/// Puts this thread before all of ordinary priority, as giantvm's are that serve vCPUs. Without the right
/// to, it stays what it is.
pub(super) fn outrank() {
    let low = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is this thread; the parameter outlives the call.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const low) };
}
