//! How the kernel schedules this thread.

use std::io;

/// How late a timed sleep may end; the kernel's default of 50 us is more than what is waited for.
const TIMER_SLACK_NS: libc::c_ulong = 1_000;

/// Puts this thread before all of ordinary priority: what it waits for are events, and what waits for
/// it are threads that would otherwise keep it from the processor (DESIGN.md section 5).
///
/// # Errors
/// The process may not use real-time priorities.
pub fn outrank() -> io::Result<()> {
    let low = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is this thread; the parameter outlives the call.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const low) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has timed sleeps of this thread end in time.
pub(super) fn set_timer_slack() -> io::Result<()> {
    // SAFETY: takes integers, touches no memory of ours.
    match unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK_NS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
