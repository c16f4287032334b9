//! The host's time-stamp counter.

use core::arch::x86_64::{_mm_lfence, _rdtsc};

/// The host's time-stamp counter, read neither before what precedes nor after what follows
/// (SDM vol. 2B, RDTSC).
pub fn now() -> u64 {
    // SAFETY: every x86-64 processor has both instructions, and neither touches memory. RDTSC faults
    // only where a process asked for that with prctl(PR_SET_TSC), which this one doesn't.
    unsafe {
        _mm_lfence();
        let now = _rdtsc();
        _mm_lfence();
        now
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_counter_does_not_go_back() {
        let mut last = super::now();
        for _ in 0..10_000 {
            let now = super::now();
            assert!(now >= last);
            last = now;
        }
    }
}
