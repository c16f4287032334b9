//! Gets a thread out of the guest.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

use super::run_page::RunPage;

/// The signal that ends a thread's `KVM_RUN`; its handler does nothing.
pub(super) fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Installs that handler, once for the process.
pub(super) fn prepare() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: a zeroed sigaction is valid; the handler has the type of one without SA_SIGINFO,
        // and touches nothing.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(signal(), &action, std::ptr::null_mut()) != 0
        };
        if failed {
            result = Err(io::Error::last_os_error());
        }
    });
    result
}

/// Puts this thread before all of ordinary priority: interrupts must not wait for a vCPU that has the
/// processor. Where the process may not, they do.
pub(super) fn outrank() {
    let low = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is this thread; the parameter outlives the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const low) } != 0 {
        log::debug!("stand-in: no real-time priority: {}", io::Error::last_os_error());
    }
}

/// Gets one vCPU's thread out of `KVM_RUN`.
pub(super) struct Kick {
    page: RunPage,
    thread: AtomicI32,
}

impl Kick {
    pub(super) fn new(page: RunPage) -> Self {
        Self { page, thread: AtomicI32::new(0) }
    }

    /// Called by the vCPU's thread when it starts and, with `false`, before it ends.
    pub(super) fn this_thread(&self, runs: bool) {
        // SAFETY: no arguments, no memory.
        let thread = if runs { unsafe { libc::gettid() } } else { 0 };
        self.thread.store(thread, Ordering::SeqCst);
    }

    /// Whether the vCPU's thread is this one.
    pub(super) fn is(&self, thread: u32) -> bool {
        thread != 0 && self.thread.load(Ordering::SeqCst) == thread as i32
    }

    /// The vCPU's thread does not stay in the guest: it comes out now, or as soon as it goes in.
    pub(super) fn kick(&self) {
        self.page.set_immediate_exit(true);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: sends a signal whose handler does nothing; should the thread have just ended,
            // the call fails.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }

    /// The thread has come out: the next entry may last.
    pub(super) fn came_out(&self) {
        self.page.set_immediate_exit(false);
    }
}
