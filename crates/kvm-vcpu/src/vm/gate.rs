//! Whether the vCPUs of a machine run.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the threads of a machine are to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Order {
    /// Wait outside of the guest.
    Park = 0,
    /// Run the guest.
    Run = 1,
    /// Return.
    End = 2,
}

/// Where the threads of a machine wait while it is paused.
pub(super) struct Gate {
    order: AtomicU8,
    /// Threads that are not parked and have not ended.
    out: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// The gate of a machine that is paused; every thread is as good as parked before it starts.
    pub(super) fn new() -> Self {
        Self {
            order: AtomicU8::new(Order::Park as u8),
            out: Mutex::new(0),
            changed: Condvar::new(),
        }
    }

    fn out(&self) -> MutexGuard<'_, usize> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The order in force.
    pub(super) fn order(&self) -> Order {
        match self.order.load(Ordering::SeqCst) {
            0 => Order::Park,
            1 => Order::Run,
            _ => Order::End,
        }
    }

    /// Gives an order; the threads learn of it when they are kicked. There is none after the end.
    pub(super) fn set(&self, order: Order) {
        let guard = self.out();
        if self.order() != Order::End {
            self.order.store(order as u8, Ordering::SeqCst);
        }
        drop(guard);
        self.changed.notify_all();
    }

    /// Waits for the order to run, and counts the thread as out; false at the end.
    pub(super) fn go(&self) -> bool {
        let mut out = self.out();
        loop {
            match self.order() {
                Order::Park => {
                    out = self.changed.wait(out).unwrap_or_else(PoisonError::into_inner);
                }
                Order::Run => {
                    *out += 1;
                    return true;
                }
                Order::End => return false,
            }
        }
    }

    /// A thread that was out is out no more.
    pub(super) fn back(&self) {
        *self.out() -= 1;
        self.changed.notify_all();
    }

    /// Waits until no thread is out; says whether that came about in time.
    pub(super) fn wait_parked(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut out = self.out();
        while *out > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            out = self.changed.wait_timeout(out, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
