//! The tested accesses: single instructions that no compiler moves, and how many of them faulted.

use std::arch::asm;

use crate::program::Op;

/// An instruction with its address; fences have none.
#[derive(Clone, Copy)]
pub(crate) struct Step<'m> {
    pub(crate) op: Op,
    pub(crate) word: Option<Word<'m>>,
    /// Turns of a delay before it.
    pub(crate) delay: u32,
}

/// A word that other threads and nodes change too, at any alignment.
#[derive(Clone, Copy)]
pub(crate) struct Word<'m> {
    address: *mut u64,
    memory: std::marker::PhantomData<&'m ()>,
}

impl<'m> Word<'m> {
    /// The eight bytes from `offset` of the addresses `range`.
    ///
    /// # Safety
    ///
    /// `range` is mapped, readable and writable, for `'m`, and reached in no other way than by
    /// `Word`s and atomics.
    pub(crate) unsafe fn new(range: &std::ops::Range<usize>, offset: usize) -> Self {
        assert!(offset + 8 <= range.len());
        let address = (range.start + offset) as *mut u64;
        Self { address, memory: std::marker::PhantomData }
    }

    pub(crate) fn load(self) -> u64 {
        let value: u64;
        // SAFETY: by `new`, the word is mapped; the instruction touches nothing else.
        unsafe {
            asm!("mov {value}, qword ptr [{address}]", value = out(reg) value,
                address = in(reg) self.address, options(nostack, preserves_flags));
        }
        value
    }

    pub(crate) fn store(self, value: u64) {
        // SAFETY: as in `load`.
        unsafe {
            asm!("mov qword ptr [{address}], {value}", value = in(reg) value,
                address = in(reg) self.address, options(nostack, preserves_flags));
        }
    }

    pub(crate) fn exchange(self, mut value: u64) -> u64 {
        // SAFETY: as in `load`.
        unsafe {
            asm!("xchg qword ptr [{address}], {value}", value = inout(reg) value,
                address = in(reg) self.address, options(nostack, preserves_flags));
        }
        value
    }

    pub(crate) fn add(self, mut value: u64) -> u64 {
        // SAFETY: as in `load`.
        unsafe {
            asm!("lock xadd qword ptr [{address}], {value}", value = inout(reg) value,
                address = in(reg) self.address, options(nostack));
        }
        value
    }

    /// Stores `new` if `current` is there; returns what was there.
    pub(crate) fn compare_exchange(self, current: u64, new: u64) -> u64 {
        let mut found = current;
        // SAFETY: as in `load`.
        unsafe {
            asm!("lock cmpxchg qword ptr [{address}], {new}", new = in(reg) new,
                address = in(reg) self.address, inout("rax") found, options(nostack));
        }
        found
    }
}

fn fence() {
    // SAFETY: the instruction touches no memory, and orders what is around it.
    unsafe { asm!("mfence", options(nostack, preserves_flags)) }
}

/// What a thread saw.
#[derive(Clone, Copy, Default)]
pub(crate) struct Observed {
    /// What its instructions read, in their order.
    pub(crate) read: [u64; crate::program::VALUES_MAX],
    /// Page faults that they took.
    pub(crate) faults: u64,
    /// When they began and ended, in nanoseconds of the clock that all processes share.
    pub(crate) began_ns: u64,
    pub(crate) ended_ns: u64,
}

/// Runs the steps; stored values count from `base`.
#[inline(never)]
pub(crate) fn execute(steps: &[Step<'_>], base: u64) -> Observed {
    let mut seen = Observed::default();
    let mut at = 0;
    let before = thread_faults();
    seen.began_ns = now_ns();
    for step in steps {
        for _ in 0..step.delay {
            std::hint::spin_loop();
        }
        let Some(word) = step.word else {
            fence();
            continue;
        };
        let read = match step.op {
            Op::Store(_, value) => {
                word.store(base + value);
                continue;
            }
            Op::Exchange(_, value) => word.exchange(base + value),
            Op::Add(_, value) => word.add(value),
            Op::Load(_) | Op::Fence => word.load(),
        };
        seen.read[at] = read;
        at += 1;
    }
    seen.ended_ns = now_ns();
    seen.faults = thread_faults() - before;
    seen
}

/// Page faults of this thread so far.
///
/// The kernel counts each access that had to fault once, when it succeeds: as major if it had to
/// try again, as those that wait for a userfaultfd do, else as minor. Between the two readings in
/// [`execute`] nothing is touched but the tested words, the stack below it and its code, and the
/// latter two are there already: [`check_counting`].
fn thread_faults() -> u64 {
    // SAFETY: plain numbers, for which zeros are values; the call fills them.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage
    };
    usage.ru_minflt as u64 + usage.ru_majflt as u64
}

fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the local.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Shows on a page that is not here yet that a fault is counted, and that nothing else is; brings
/// code and stack in on the way.
pub(crate) fn check_counting(absent: Word<'_>) {
    let place = crate::program::Place { variable: 0, word: 0 };
    let step = |op| Step { op, word: Some(absent), delay: 1 };
    let steps = [
        step(Op::Load(place)),
        step(Op::Add(place, 1)),
        step(Op::Exchange(place, 2)),
        step(Op::Store(place, 3)),
        Step { op: Op::Fence, word: None, delay: 1 },
    ];
    let first = execute(&steps, 0);
    let second = execute(&steps, 0);
    assert!(first.faults >= 1, "a fault on a region was not counted");
    assert_eq!(second.faults, 0, "accesses without a fault were counted as faults");
    assert_eq!(second.read[..3], [3, 3, 4]);
}
