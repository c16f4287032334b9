//! How a worker waits: in the kernel, or looking again and again.

use std::time::{Duration, Instant};

/// How a node's workers wait for the next event. Wake-ups, not bytes, are the cost of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum WaitMode {
    /// Always in the kernel: costs a wake-up each time, and no processor time.
    Blocking,
    /// Looks again for a while where that has paid lately; never with a single processor.
    #[default]
    Adaptive,
    /// Never sleeps: one processor per worker for the lowest latency.
    Busy,
}

/// Longest time to look before sleeping: about what one wake-up costs.
const SPIN_MAX: Duration = Duration::from_micros(50);
const SPIN_MIN: Duration = Duration::from_micros(2);

/// Decides at each turn whether to sleep.
pub(super) struct Waiter {
    mode: WaitMode,
    window: Duration,
    idle_since: Option<Instant>,
}

impl Waiter {
    pub(super) fn new(mode: WaitMode, processors: usize) -> Self {
        let mode = match mode {
            WaitMode::Adaptive if processors < 2 => WaitMode::Blocking,
            mode => mode,
        };
        Self { mode, window: SPIN_MIN, idle_since: None }
    }

    /// Whether the next wait may sleep.
    pub(super) fn may_sleep(&self) -> bool {
        match self.mode {
            WaitMode::Blocking => true,
            WaitMode::Busy => false,
            WaitMode::Adaptive => {
                self.idle_since.is_some_and(|since| since.elapsed() >= self.window)
            }
        }
    }

    /// A turn is over: whether it found work, and how long it slept, if it did.
    pub(super) fn turned(&mut self, found: bool, slept: Option<Duration>) {
        if found { self.busy(slept) } else { self.idle() }
    }

    fn idle(&mut self) {
        if self.mode == WaitMode::Adaptive && self.idle_since.is_none() {
            self.idle_since = Some(Instant::now());
        }
    }

    /// As KVM's halt polling does: grow the window when sleep was short, shrink it when looking was
    /// in vain.
    fn busy(&mut self, slept: Option<Duration>) {
        if self.mode != WaitMode::Adaptive {
            return;
        }
        match slept {
            Some(slept) if slept < SPIN_MAX => self.window = (self.window * 2).min(SPIN_MAX),
            Some(_) => self.window = (self.window / 2).max(SPIN_MIN),
            None => {}
        }
        self.idle_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_processor_never_spins() {
        let mut waiter = Waiter::new(WaitMode::Adaptive, 1);
        waiter.idle();
        assert!(waiter.may_sleep());
        assert!(!Waiter::new(WaitMode::Adaptive, 2).may_sleep());
    }

    #[test]
    fn short_sleeps_widen_the_window_and_long_ones_narrow_it() {
        let mut waiter = Waiter::new(WaitMode::Adaptive, 2);
        for _ in 0..10 {
            waiter.busy(Some(Duration::from_micros(5)));
        }
        assert_eq!(waiter.window, SPIN_MAX);
        for _ in 0..10 {
            waiter.busy(Some(Duration::from_millis(5)));
        }
        assert_eq!(waiter.window, SPIN_MIN);
    }
}
