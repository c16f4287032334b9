//! How long what threads do with their pages takes.

use std::time::Duration;

use crate::types::ThreadId;

use super::watch::call_ns;

/// Asked on a worker's thread about threads whose pages are wanted. Neither may wait.
pub trait Nudge: Send + Sync {
    /// Has `thread` find out whether it is idle: one that is, goes to sleep.
    fn nudge(&self, thread: ThreadId);

    /// Whether `thread` found itself idle when it was nudged last. If it sleeps, it still is, and
    /// counts as quiet; something may have woken it.
    fn found_idle(&self, thread: ThreadId) -> bool;
}

/// What tells that a thread has used the pages it waited for, and that it needs no more of them
/// together: the thresholds of DESIGN.md section 4, in processor time of the thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// A thread that ran for this long has used its page.
    pub ran: Duration,
    /// One that ran for this long without another fault has all it needs.
    pub quiet: Duration,
    /// However little it ran, after this much wall time it counts as quiet: the safety net.
    pub bound: Duration,
    /// How often a worker looks while a page is wanted by two.
    pub look: Duration,
    /// For how long it goes on looking first, before it sleeps between looks.
    pub spin: Duration,
    /// How long a thread has its pages after a fault, and between two nudges, before it is nudged.
    pub nudge: Duration,
    /// The threads walk page tables that lie in these pages, which may count as writes.
    pub walks: bool,
}

impl Pace {
    /// Threads of a program: an instruction ends within microseconds of the page it waited for.
    pub const THREADS: Self = Self {
        ran: Duration::from_micros(2),
        quiet: Duration::from_micros(20),
        bound: Duration::from_millis(10),
        look: Duration::from_micros(20),
        spin: Duration::from_micros(50),
        nudge: Duration::MAX,
        walks: false,
    };

    /// vCPUs: between two faults of one instruction lie exits of the guest, the kernel's own page
    /// tables and an entry, and one instruction may need a page at each level of the guest's page
    /// tables. Measured (FACTS.md): with much less than 2 ms on hardware, or 10 ms on an emulated
    /// host, two nodes that start a kernel's second processor swap the same page-table pages for ever.
    /// A system call of the host is the measure of its speed; about 0.6 us there, and 3 us here.
    ///
    /// A halted vCPU, which KVM keeps in the guest and whose clock runs on, is found by a nudge:
    /// without, it would keep what others wait for.
    pub fn vcpus() -> Self {
        let call = Duration::from_nanos(call_ns().max(100));
        Self {
            ran: 100 * call,
            quiet: 3500 * call,
            bound: Duration::from_millis(400),
            look: 200 * call,
            spin: Duration::ZERO,
            nudge: 500 * call,
            walks: true,
        }
    }
}
