//! What devices need of the machine around them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An interrupt line. Any closure that takes the level is one.
pub trait Line: Send + Sync {
    /// Asserts the line, or lets it go. Must not block.
    fn set(&self, high: bool);
}

impl<F: Fn(bool) + Send + Sync> Line for F {
    fn set(&self, high: bool) {
        self(high);
    }
}

/// The guest's time. Any closure that returns it is one.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the machine started, the same on all nodes; never goes back.
    fn now_ns(&self) -> u64;
}

impl<F: Fn() -> u64 + Send + Sync> Clock for F {
    fn now_ns(&self) -> u64 {
        self()
    }
}

/// Where a console's output goes. Any closure that takes the bytes is one.
pub trait ByteSink: Send + Sync {
    /// Takes output. Called on a vCPU's thread: must not block; what finds no room is lost.
    fn put(&self, bytes: &[u8]);
}

impl<F: Fn(&[u8]) + Send + Sync> ByteSink for F {
    fn put(&self, bytes: &[u8]) {
        self(bytes);
    }
}

/// What the guest asks of the machine as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MachineEvent {
    /// Start again.
    Reset,
    /// Switch off.
    PowerOff,
    /// End with this exit status, as a test guest does.
    DebugExit(u32),
}

/// Where these go. Any closure that takes one is one.
pub trait EventSink: Send + Sync {
    /// Takes an event. Called on a vCPU's thread, in the middle of its access: must not block, nor
    /// wait for vCPUs.
    fn event(&self, event: MachineEvent);
}

impl<F: Fn(MachineEvent) + Send + Sync> EventSink for F {
    fn event(&self, event: MachineEvent) {
        self(event);
    }
}

/// Locks, also after a panic in another thread: every state of a device is a valid one.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a device wants of its line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) high: bool,
    /// Something new happened: an edge is due, even if the line is high already.
    pub(super) edge: bool,
}

/// Drives a line from several threads, in the order of the device's states, without a lock held
/// while it does: one thread drives at a time, and looks again for those that come meanwhile.
pub(super) struct Driver {
    line: Arc<dyn Line>,
    /// Calls of `drive` that the thread which drives has not yet looked for.
    calls: AtomicUsize,
    /// As last set. Only the thread that drives writes it.
    high: AtomicBool,
}

impl Driver {
    pub(super) fn new(line: Arc<dyn Line>) -> Self {
        Self { line, calls: AtomicUsize::new(0), high: AtomicBool::new(false) }
    }

    /// Brings the line to what `wanted` says, here or in the thread that is at it.
    pub(super) fn drive(&self, mut wanted: impl FnMut() -> Wanted) {
        if self.calls.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        let mut seen = 1;
        loop {
            self.set(wanted());
            match self.calls.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(more) => seen = more,
            }
        }
    }

    fn set(&self, wanted: Wanted) {
        let high = self.high.swap(wanted.high, Ordering::AcqRel);
        // Calls that came together may have hidden a fall: an edge too many is harmless, one too
        // few stops the device.
        if high && wanted.edge {
            self.line.set(false);
        }
        if high != wanted.high || wanted.edge {
            self.line.set(wanted.high);
        }
    }
}

#[cfg(test)]
pub(super) mod fake {
    //! Host parts for tests.

    use std::sync::atomic::AtomicU64;

    use super::*;

    /// A clock that stands until moved.
    #[derive(Default, Clone)]
    pub(crate) struct FakeClock(Arc<AtomicU64>);

    impl FakeClock {
        pub(crate) fn set_ns(&self, ns: u64) {
            self.0.store(ns, Ordering::Relaxed);
        }

        pub(crate) fn advance_ns(&self, ns: u64) {
            self.0.fetch_add(ns, Ordering::Relaxed);
        }

        pub(crate) fn shared(&self) -> Arc<dyn Clock> {
            let now = Arc::clone(&self.0);
            Arc::new(move || now.load(Ordering::Relaxed))
        }
    }

    /// Collects what it is given.
    pub(crate) struct Collect<T>(Arc<Mutex<Vec<T>>>);

    impl<T> Default for Collect<T> {
        fn default() -> Self {
            Self(Arc::default())
        }
    }

    impl<T: Copy + Send + 'static> Collect<T> {
        pub(crate) fn take(&self) -> Vec<T> {
            std::mem::take(&mut lock(&self.0))
        }

        pub(crate) fn one(&self) -> impl Fn(T) + Send + Sync + 'static {
            let all = Arc::clone(&self.0);
            move |item| lock(&all).push(item)
        }

        pub(crate) fn many(&self) -> impl Fn(&[T]) + Send + Sync + 'static {
            let all = Arc::clone(&self.0);
            move |items: &[T]| lock(&all).extend_from_slice(items)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_from_within_is_done_by_the_one_that_drives() {
        // The line calls back, as an interrupt that is served at once would.
        let driver = Arc::new(std::sync::OnceLock::<Driver>::new());
        let levels = fake::Collect::default();
        let (record, inner) = (levels.one(), Arc::clone(&driver));
        let line = move |high| {
            record(high);
            if high && let Some(driver) = inner.get() {
                driver.drive(|| unreachable!("another is driving"));
            }
        };
        driver.set(Driver::new(Arc::new(line))).ok().unwrap();
        let mut states = [(true, true), (true, true), (false, false), (false, false)].into_iter();
        driver.get().unwrap().drive(|| {
            let (high, edge) = states.next().unwrap();
            Wanted { high, edge }
        });
        assert_eq!(levels.take(), [true, false, true, false], "a new edge, then the fall");
    }
}
