//! Poisoned pages, and what a process that touches one says.

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use dsm_core::pages::RegionMemory;
use dsm_core::pages::sigbus::{
    EXIT_MEMORY_LOST, REGISTRATIONS_MAX, Registration, SigbusError, survive_lost_memory,
};
use dsm_core::{Access, PAGE_SIZE, Page};

use crate::support::*;

#[test]
fn system_calls_on_poisoned_pages_fail() {
    let Some(memory) = small() else { return };
    fill(&memory, 0, 1);
    // From every state: never touched, a frame only, writable, read-only, and poisoned already.
    memory.install(page(2), Access::Write).unwrap();
    memory.install(page(3), Access::Read).unwrap();
    memory.install(page(4), Access::Read).unwrap();
    memory.revoke(page(4)).unwrap();
    memory.poison(page(5)).unwrap();
    memory.poison(Page(0)..Page(16)).unwrap();
    for number in 0..16 {
        let at = address(&memory, number);
        let outcome = watched(&memory, || write_to_pipe(at, 8), refuse);
        assert_eq!(outcome, (Err(libc::EFAULT), vec![]), "page {number}");
    }
    // What lies around is not touched.
    assert_eq!(read(&memory, 16).1.len(), 1);
    // What was before it is sent.
    memory.install(page(16), Access::Read).unwrap();
    memory.poison(page(17)).unwrap();
    let sent = write_to_pipe(address(&memory, 16), 2 * PAGE_SIZE).unwrap();
    assert_eq!(sent.len(), PAGE_SIZE);
}

#[test]
fn poison_ends_a_wait() {
    let Some(memory) = full() else { return };
    let at = address(&memory, 0);
    let (sent, seen) =
        watched(&memory, || write_to_pipe(at, 8), |memory, _| memory.poison(page(0)).unwrap());
    assert_eq!((sent, seen.len()), (Err(libc::EFAULT), 1));
}

/// A region whose pages 2 and 3 are lost with node beta.
fn lose(memory: &RegionMemory) -> Registration {
    let registration = Registration::new("grid\n", memory.view()).unwrap();
    registration.mark_lost("gamma", "lost before, and settled");
    registration.mark_lost("beta", "no heartbeat for 3 s");
    memory.poison(Page(2)..Page(4)).unwrap();
    registration
}

fn ended_with_the_line(output: &Output, offset: &str) {
    assert_eq!(output.status.code(), Some(EXIT_MEMORY_LOST), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "giantvm: region \"grid?\" offset {offset}: lost with node beta (no heartbeat for 3 s); \
             see docs/operations.md\n"
        )
    );
}

#[test]
fn reading_lost_memory_ends_the_process_with_one_line() {
    if small().is_none() {
        return;
    }
    let name = "lost::reading_lost_memory_ends_the_process_with_one_line";
    let outcome = own_process(name, || {
        let memory = small().unwrap();
        let _lost = lose(&memory);
        load(address(&memory, 3) + 0xabc);
    });
    if let Some(output) = outcome {
        ended_with_the_line(&output, "0x3abc");
    }
}

#[test]
fn a_thread_that_was_told_finds_zeros_and_the_others_do_not() {
    if small().is_none() {
        return;
    }
    let name = "lost::a_thread_that_was_told_finds_zeros_and_the_others_do_not";
    let outcome = own_process(name, || {
        let memory = small().unwrap();
        let _lost = lose(&memory);
        let at = address(&memory, 2);
        let survivor = std::thread::scope(|scope| {
            let survivor = scope.spawn(|| {
                survive_lost_memory(Arc::new(AtomicBool::new(true)));
                let first = load(at + 8);
                store(at, 1);
                (first, load(at))
            });
            survivor.join().unwrap()
        });
        assert_eq!(survivor, (0, 1));
        // One that was not told of the loss, as where memory is full and the region lives on.
        survive_lost_memory(Arc::new(AtomicBool::new(false)));
        load(address(&memory, 3));
    });
    if let Some(output) = outcome {
        ended_with_the_line(&output, "0x3000");
    }
}

#[test]
fn many_threads_that_touch_lost_memory_write_one_line() {
    if small().is_none() {
        return;
    }
    let name = "lost::many_threads_that_touch_lost_memory_write_one_line";
    let outcome = own_process(name, || {
        let memory = small().unwrap();
        let _lost = lose(&memory);
        let at = address(&memory, 2);
        let together = std::sync::Barrier::new(16);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    together.wait();
                    store(at, 1);
                });
            }
        });
    });
    if let Some(output) = outcome {
        ended_with_the_line(&output, "0x2000");
    }
}

#[test]
fn a_thread_that_waits_for_a_lost_page_ends_the_process() {
    if small().is_none() {
        return;
    }
    let name = "lost::a_thread_that_waits_for_a_lost_page_ends_the_process";
    let outcome = own_process(name, || {
        let memory = small().unwrap();
        let _lost = lose(&memory);
        let at = address(&memory, 5);
        watched(&memory, || store(at, 1), |memory, _| memory.poison(page(5)).unwrap());
    });
    if let Some(output) = outcome {
        ended_with_the_line(&output, "0x5000");
    }
}

#[test]
fn a_stderr_that_nobody_reads_delays_no_exit() {
    if small().is_none() {
        return;
    }
    let name = "lost::a_stderr_that_nobody_reads_delays_no_exit";
    let outcome = own_process(name, || {
        let memory = small().unwrap();
        let _lost = lose(&memory);
        let (_reader, writer) = std::io::pipe().unwrap();
        // SAFETY: makes the pipe this process's stderr, fills it up, and blocks from then on.
        unsafe {
            libc::dup2(writer.as_raw_fd(), 2);
            libc::fcntl(2, libc::F_SETFL, libc::O_NONBLOCK);
            while libc::write(2, b"x".as_ptr().cast(), 1) == 1 {}
            libc::fcntl(2, libc::F_SETFL, 0);
        }
        load(address(&memory, 2));
    });
    if let Some(output) = outcome {
        assert_eq!(output.status.code(), Some(EXIT_MEMORY_LOST), "{output:?}");
    }
}

/// An access behind the end of its file: a SIGBUS that has nothing to do with regions.
fn touch_beyond_a_file() {
    // SAFETY: a mapping of this function's own, of an empty file.
    unsafe {
        let fd = libc::memfd_create(c"empty".as_ptr(), 0);
        let at = libc::mmap(std::ptr::null_mut(), 4096, 1, libc::MAP_SHARED, fd, 0);
        load(at as usize);
    }
}

fn set_handler(handler: usize, flags: i32) {
    // SAFETY: all zeros is a `sigaction`; the handler is SIG_DFL, SIG_IGN or one of those below,
    // with the flags of its type.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()), 0);
    }
}

/// A process that has a lost region and gets a SIGBUS from elsewhere.
fn elsewhere(name: &str, handler: Option<(usize, i32)>, signal: fn()) -> Option<Output> {
    small()?;
    own_process(name, || {
        if let Some((handler, flags)) = handler {
            set_handler(handler, flags);
        }
        let memory = small().unwrap();
        let _lost = lose(&memory);
        signal();
    })
}

#[test]
fn other_faults_still_kill_by_signal() {
    let name = "lost::other_faults_still_kill_by_signal";
    let handler = Some((libc::SIG_DFL, 0));
    let Some(output) = elsewhere(name, handler, touch_beyond_a_file) else { return };
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn other_faults_kill_under_the_handler_of_rust_too() {
    let name = "lost::other_faults_kill_under_the_handler_of_rust_too";
    let Some(output) = elsewhere(name, None, touch_beyond_a_file) else { return };
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

#[test]
fn ignored_faults_still_kill() {
    let name = "lost::ignored_faults_still_kill";
    let handler = Some((libc::SIG_IGN, 0));
    let Some(output) = elsewhere(name, handler, touch_beyond_a_file) else { return };
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

fn send_to_itself() {
    // SAFETY: a signal to this thread.
    unsafe { libc::raise(libc::SIGBUS) };
}

#[test]
fn sent_signals_still_kill() {
    let name = "lost::sent_signals_still_kill";
    let handler = Some((libc::SIG_DFL, 0));
    let Some(output) = elsewhere(name, handler, send_to_itself) else { return };
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

#[test]
fn ignored_signals_are_still_ignored() {
    let name = "lost::ignored_signals_are_still_ignored";
    let handler = Some((libc::SIG_IGN, 0));
    let Some(output) = elsewhere(name, handler, send_to_itself) else { return };
    succeeded(&output);
}

static CALLS: AtomicI32 = AtomicI32::new(0);

extern "C" fn plain(signal: i32) {
    CALLS.fetch_add(signal, Ordering::Relaxed);
}

extern "C" fn detailed(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's own argument, passed on.
    let code = unsafe { (*info).si_code };
    assert!(!context.is_null() && code == libc::SI_TKILL);
    CALLS.fetch_add(signal, Ordering::Relaxed);
}

fn send_twice() {
    send_to_itself();
    send_to_itself();
    assert_eq!(CALLS.load(Ordering::Relaxed), 2 * libc::SIGBUS);
}

#[test]
fn a_plain_handler_before_ours_is_called() {
    let name = "lost::a_plain_handler_before_ours_is_called";
    let handler = Some((plain as *const () as usize, 0));
    let Some(output) = elsewhere(name, handler, send_twice) else { return };
    succeeded(&output);
}

#[test]
fn a_detailed_handler_before_ours_is_called() {
    let name = "lost::a_detailed_handler_before_ours_is_called";
    let handler = Some((detailed as *const () as usize, libc::SA_SIGINFO));
    let Some(output) = elsewhere(name, handler, send_twice) else { return };
    succeeded(&output);
}

#[test]
fn a_handler_for_one_time_is_called_once() {
    let name = "lost::a_handler_for_one_time_is_called_once";
    let handler = Some((plain as *const () as usize, libc::SA_RESETHAND));
    let Some(output) = elsewhere(name, handler, send_twice) else { return };
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

#[test]
fn poison_in_a_region_not_marked_or_no_longer_registered_is_foreign() {
    if small().is_none() {
        return;
    }
    let name = "lost::poison_in_a_region_not_marked_or_no_longer_registered_is_foreign";
    let outcome = own_process(name, || {
        set_handler(libc::SIG_DFL, 0);
        let (memory, other) = (small().unwrap(), small().unwrap());
        drop(lose(&memory));
        let _other = lose(&other);
        let _unmarked = Registration::new("again", memory.view()).unwrap();
        load(address(&memory, 2));
    });
    if let Some(output) = outcome {
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn the_table_of_regions_is_bounded_and_reused() {
    let name = "lost::the_table_of_regions_is_bounded_and_reused";
    let outcome = own_process(name, || {
        let register = || Registration::new("r", 0..1);
        for _ in 0..3 {
            let all: Vec<_> = (0..REGISTRATIONS_MAX).map(|_| register().unwrap()).collect();
            assert!(matches!(register(), Err(SigbusError::TooMany)));
            all.iter().for_each(|registration| registration.mark_lost("n", "r"));
            drop(all);
        }
    });
    if let Some(output) = outcome {
        succeeded(&output);
    }
}
