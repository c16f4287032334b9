//! Each right of a page, as its accesses show it.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use dsm_core::pages::{MemoryError, ZERO_PAGE_FINGERPRINT};
use dsm_core::uffd::{FaultBuffer, FaultKind, Mode, Progress};
use dsm_core::{Access, PAGE_SIZE, Page};

use crate::support::*;

#[test]
fn a_page_goes_through_all_states() {
    let Some(memory) = small() else { return };
    fill(&memory, 3, 7);

    // Invalid: a read faults as a read. Shared: reads go through, a write faults as a write.
    assert_eq!(read(&memory, 3), (7, vec![(0, 3, Access::Read, FaultKind::Minor)]));
    assert_eq!(read(&memory, 3), (7, vec![]));
    let at = address(&memory, 3);
    let (_, seen) = watched(&memory, || store(at, 8), |memory, _| memory.upgrade(page(3)).unwrap());
    assert_eq!(seen, [(0, 3, Access::Write, FaultKind::WriteProtect)]);

    // Modified: everything goes through.
    assert_eq!(write(&memory, 3, 9), []);
    assert_eq!(read(&memory, 3), (9, vec![]));

    // Shared again: the bytes are in the frame, reads go through, writes don't.
    memory.protect(page(3)).unwrap();
    let mut bytes = [0; PAGE_SIZE];
    memory.copy_out(Page(3), &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[1]), (9, 7));
    assert_eq!(read(&memory, 3), (9, vec![]));
    assert_eq!(write(&memory, 3, 10), [(0, 3, Access::Write, FaultKind::WriteProtect)]);

    // Invalid again: nothing goes through.
    memory.revoke(page(3)).unwrap();
    assert_eq!(write(&memory, 3, 11), [(0, 3, Access::Write, FaultKind::Minor)]);
    memory.revoke(page(3)).unwrap();
    assert_eq!(read(&memory, 3), (11, vec![(0, 3, Access::Read, FaultKind::Minor)]));
}

#[test]
fn a_shared_page_that_was_revoked_is_not_shared() {
    let Some(memory) = small() else { return };
    fill(&memory, 0, 1);
    memory.install(page(0), Access::Read).unwrap();
    memory.revoke(page(0)).unwrap();
    assert_eq!(read(&memory, 0), (1, vec![(0, 0, Access::Read, FaultKind::Minor)]));
    // Writable after the kernel's own mark of write protection outlived a revocation.
    memory.revoke(page(0)).unwrap();
    memory.install(page(0), Access::Write).unwrap();
    assert_eq!(write(&memory, 0, 2), []);
}

#[test]
fn frames_outlive_a_revocation_and_take_new_bytes() {
    let Some(memory) = small() else { return };
    memory.install(page(5), Access::Write).unwrap();
    write(&memory, 5, 42);
    memory.revoke(page(5)).unwrap();
    let mut bytes = [0; PAGE_SIZE];
    memory.copy_out(Page(5), &mut bytes).unwrap();
    assert_eq!(bytes[0], 42);
    fill(&memory, 5, 43);
    assert_eq!(read(&memory, 5), (43, vec![(0, 5, Access::Read, FaultKind::Minor)]));
}

#[test]
fn the_first_touch_of_a_hole_is_a_missing_fault_and_zero() {
    let Some(memory) = small() else { return };
    assert_eq!(memory.resident().unwrap(), 0);
    assert_eq!(read(&memory, 1), (0, vec![(0, 1, Access::Read, FaultKind::Missing)]));
    assert_eq!(memory.resident().unwrap(), PAGE_SIZE as u64);
    assert_eq!(write(&memory, 2, 1), [(0, 2, Access::Write, FaultKind::Missing)]);
    assert_eq!(memory.resident().unwrap(), 2 * PAGE_SIZE as u64);
    assert_eq!(memory.fingerprint(Page(1)).unwrap(), ZERO_PAGE_FINGERPRINT);
    assert_ne!(memory.fingerprint(Page(2)).unwrap(), ZERO_PAGE_FINGERPRINT);
}

#[test]
fn sixteen_pages_of_all_kinds_are_installed_at_once() {
    for access in [Access::Read, Access::Write] {
        let Some(memory) = small() else { return };
        // Of every four pages: writable, read-only, a frame only, a hole.
        for first in (0..16).step_by(4) {
            fill(&memory, first, 1);
            fill(&memory, first + 1, 2);
            fill(&memory, first + 2, 3);
            memory.install(page(first), Access::Write).unwrap();
            memory.install(page(first + 1), Access::Read).unwrap();
        }
        memory.install(Page(0)..Page(16), access).unwrap();
        for first in (0..16).step_by(4) {
            for (number, value) in (first..).zip([1, 2, 3, 0]) {
                assert_eq!(read(&memory, number), (value, vec![]), "page {number}");
            }
            // A read-only installation takes no right away, and gives none to write.
            let writable = |number| write(&memory, number, 9).is_empty();
            assert!(writable(first));
            for number in first + 1..first + 4 {
                assert_eq!(writable(number), access == Access::Write, "page {number}");
            }
        }
        assert_eq!(read(&memory, 16).1.len(), 1, "the page after the range");
    }
}

#[test]
fn mapping_says_how_far_it_came() {
    let Some(memory) = small() else { return };
    let uffd = &memory.stripes()[0];
    (0..3).for_each(|number| fill(&memory, number, 1));
    let from = |first| address(&memory, first)..address(&memory, 8);
    let map = |first| uffd.map(from(first), Access::Read).unwrap();
    assert_eq!(map(0), Progress::Done(3 * PAGE_SIZE));
    assert_eq!(map(0), Progress::Exists);
    assert_eq!(map(3), Progress::NoFrame);
    memory.install(page(5), Access::Read).unwrap();
    let poison = |first| uffd.poison(from(first)).unwrap();
    assert_eq!(poison(3), Progress::Done(2 * PAGE_SIZE));
    assert_eq!(poison(5), Progress::Exists);
    assert_eq!(poison(6), Progress::Done(2 * PAGE_SIZE));
}

#[test]
fn ranges_of_pages_are_protected_and_revoked_at_once() {
    let Some(memory) = small() else { return };
    memory.install(Page(8)..Page(24), Access::Write).unwrap();
    memory.protect(Page(9)..Page(23)).unwrap();
    for number in 8..24 {
        assert_eq!(write(&memory, number, 1).is_empty(), number == 8 || number == 23);
    }
    memory.revoke(Page(9)..Page(23)).unwrap();
    for number in 8..24 {
        assert_eq!(read(&memory, number).1.is_empty(), number == 8 || number == 23);
    }
    memory.protect(Page(9)..Page(23)).unwrap();
    memory.upgrade(Page(9)..Page(23)).unwrap();
    assert_eq!(write(&memory, 15, 1), []);
}

#[test]
fn upgrading_a_page_that_is_not_mapped_has_its_waiter_fault_again() {
    let Some(memory) = small() else { return };
    fill(&memory, 0, 5);
    let at = address(&memory, 0);
    let mut faults = 0;
    let (_, seen) = watched(
        &memory,
        || store(at, 6),
        |memory, fault| {
            faults += 1;
            if faults == 1 { memory.upgrade(page(0)).unwrap() } else { grant(memory, fault) }
        },
    );
    assert_eq!(seen, [(0, 0, Access::Write, FaultKind::Minor); 2]);
}

#[test]
fn every_way_of_installing_ends_a_wait() {
    let Some(memory) = small() else { return };
    fill(&memory, 0, 1);
    let at = address(&memory, 0);
    // Mapped by someone else meanwhile: the handler finds the page there, and wakes.
    for access in [Access::Read, Access::Write] {
        memory.revoke(page(0)).unwrap();
        let (value, seen) = watched(
            &memory,
            || load(at),
            |memory, _| {
                memory.install(page(0), Access::Read).unwrap();
                memory.install(page(0), access).unwrap();
            },
        );
        assert_eq!((value, seen.len()), (1, 1));
    }
    // A writer is woken by an installation that doesn't help it, and asks again.
    memory.protect(page(0)).unwrap();
    let mut faults = 0;
    let (_, seen) = watched(
        &memory,
        || store(at, 2),
        |memory, _| {
            faults += 1;
            let access = if faults < 3 { Access::Read } else { Access::Write };
            memory.install(page(0), access).unwrap();
        },
    );
    assert_eq!(seen, [(0, 0, Access::Write, FaultKind::WriteProtect); 3]);
    // A wake without a right: the same fault comes again.
    memory.revoke(page(0)).unwrap();
    let mut faults = 0;
    let (_, seen) = watched(
        &memory,
        || load(at),
        |memory, fault| {
            faults += 1;
            if faults < 3 { memory.wake(page(0)).unwrap() } else { grant(memory, fault) }
        },
    );
    assert_eq!(seen, [(0, 0, Access::Read, FaultKind::Minor); 3]);
}

#[test]
fn punched_frames_are_freed_and_zero() {
    let Some(memory) = small() else { return };
    for number in 0..4 {
        fill(&memory, number, 9);
    }
    memory.install(Page(0)..Page(4), Access::Write).unwrap();
    memory.revoke(Page(1)..Page(3)).unwrap();
    memory.punch(Page(1)..Page(3)).unwrap();
    assert_eq!(memory.resident().unwrap(), 2 * PAGE_SIZE as u64);
    assert_eq!(read(&memory, 0), (9, vec![]));
    assert_eq!(read(&memory, 1), (0, vec![(0, 1, Access::Read, FaultKind::Missing)]));
    assert_eq!(byte(&memory, 2), 0);
    assert_eq!(byte(&memory, 3), 9);
}

#[test]
fn accesses_of_the_kernel_are_served_in_full_mode() {
    let Some(memory) = full() else { return };
    fill(&memory, 0, 3);
    let at = address(&memory, 0);
    let (sent, seen) = watched(&memory, || write_to_pipe(at, 2 * PAGE_SIZE), grant);
    let sent = sent.unwrap();
    assert_eq!(sent.len(), 2 * PAGE_SIZE);
    assert!(sent[..PAGE_SIZE].iter().all(|&b| b == 3) && sent[PAGE_SIZE..].iter().all(|&b| b == 0));
    assert_eq!(
        seen,
        [(0, 0, Access::Read, FaultKind::Minor), (0, 1, Access::Read, FaultKind::Missing)]
    );
    // And into it: a system call that stores faults as a write.
    memory.protect(page(0)).unwrap();
    let (read, seen) = watched(
        &memory,
        || {
            let zero = std::fs::File::open("/dev/zero").unwrap();
            // SAFETY: the kernel writes one byte of the view.
            unsafe { libc::read(zero.as_raw_fd(), at as *mut _, 1) }
        },
        grant,
    );
    assert_eq!((read, load(at)), (1, 0));
    assert_eq!(seen, [(0, 0, Access::Write, FaultKind::WriteProtect)]);
}

#[test]
fn accesses_of_the_kernel_fail_in_user_mode() {
    let Some(memory) = memory(64, 1, Mode::UserMode) else { return };
    fill(&memory, 0, 3);
    let at = address(&memory, 0);
    let (sent, seen) = watched(&memory, || write_to_pipe(at, 16), refuse);
    assert_eq!((sent, seen), (Err(libc::EFAULT), vec![]));
    assert_eq!(read(&memory, 0), (3, vec![(0, 0, Access::Read, FaultKind::Minor)]));
    assert_eq!(write_to_pipe(at, 16), Ok(vec![3; 16]));
}

#[test]
fn stripes_deliver_their_own_pages_to_their_own_descriptors() {
    let pages = 4 * 512 - 100;
    let Some(memory) = memory(pages, 4, Mode::FullOrUserMode) else { return };
    assert_eq!(memory.stripes().len(), 4);
    let mut next = 0;
    for stripe in 0..4 {
        let range = memory.stripe_pages(stripe);
        assert_eq!(range.start, Page(next));
        next = range.end.0;
        for number in [range.start.0, range.end.0 - 1] {
            assert_eq!(memory.stripe_of(Page(number)), Some(stripe));
            let expected = vec![(stripe, number, Access::Read, FaultKind::Missing)];
            assert_eq!(read(&memory, number), (0, expected));
        }
    }
    assert_eq!(next, pages);
    // One call may cross the bounds of stripes.
    memory.revoke(Page(0)..Page(pages)).unwrap();
    memory.install(Page(510)..Page(1026), Access::Write).unwrap();
    for number in [510, 511, 512, 1023, 1024, 1025] {
        assert_eq!(write(&memory, number, 1), [], "page {number}");
    }
    memory.protect(Page(511)..Page(513)).unwrap();
    for number in [511, 512] {
        assert_eq!(write(&memory, number, 1).len(), 1, "page {number}");
    }
}

#[test]
fn one_read_brings_the_faults_of_many_threads() {
    let Some(memory) = small() else { return };
    let uffd = &memory.stripes()[0];
    let mut buffer = FaultBuffer::new(64);
    assert!(uffd.read_faults(&mut buffer).unwrap().is_empty());
    let pending = || {
        let info = format!("/proc/self/fdinfo/{}", uffd.as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("pending:")).unwrap();
        line.trim().parse::<u32>().unwrap()
    };
    std::thread::scope(|scope| {
        for number in 0..8 {
            let at = address(&memory, number);
            scope.spawn(move || load(at));
        }
        while pending() < 8 {
            std::thread::yield_now();
        }
        let mut few = FaultBuffer::new(3);
        let mut pages: Vec<_> = [&mut few, &mut buffer]
            .map(|buffer| uffd.read_faults(buffer).unwrap())
            .iter()
            .map(|faults| faults.iter().map(|f| memory.page_at(f.address).unwrap().0).collect())
            .inspect(|pages: &Vec<_>| assert!(pages.len() == 3 || pages.len() == 5, "{pages:?}"))
            .collect::<Vec<_>>()
            .concat();
        memory.install(Page(0)..Page(8), Access::Read).unwrap();
        pages.sort_unstable();
        assert_eq!(pages, [0, 1, 2, 3, 4, 5, 6, 7]);
    });
}

#[test]
fn pages_outside_are_refused_by_every_call() {
    let Some(memory) = small() else { return };
    let mut bytes = [0; PAGE_SIZE];
    for (first, end) in [(0, 65), (64, 65), (u64::MAX - 1, u64::MAX), (3, 2), (0, u64::MAX)] {
        let range = Page(first)..Page(end);
        for result in [
            memory.install(range.clone(), Access::Write),
            memory.upgrade(range.clone()),
            memory.protect(range.clone()),
            memory.revoke(range.clone()),
            memory.poison(range.clone()),
            memory.wake(range.clone()),
            memory.punch(range.clone()),
        ] {
            assert!(matches!(result, Err(MemoryError::OutOfRange { pages: 64, .. })), "{range:?}");
        }
    }
    for number in [64, u64::MAX] {
        assert!(memory.frame(Page(number)).is_err());
        assert!(memory.copy_out(Page(number), &mut bytes).is_err());
        assert!(memory.copy_in(Page(number), &bytes).is_err());
        assert!(memory.fingerprint(Page(number)).is_err());
        assert_eq!(memory.stripe_of(Page(number)), None);
    }
    // Empty ranges are nothing to do.
    for result in [
        memory.install(Page(64)..Page(64), Access::Read),
        memory.upgrade(Page(0)..Page(0)),
        memory.protect(Page(0)..Page(0)),
        memory.revoke(Page(0)..Page(0)),
        memory.poison(Page(0)..Page(0)),
        memory.wake(Page(0)..Page(0)),
        memory.punch(Page(0)..Page(0)),
    ] {
        result.unwrap();
    }
    assert_eq!(memory.page_at(memory.view().start - 1), None);
    assert_eq!(memory.page_at(memory.view().end), None);
    assert_eq!(memory.page_at(memory.view().end - 1), Some(Page(63)));
}

#[test]
fn several_workers_share_a_region_each_with_its_stripe() {
    let Some(memory) = memory(4 * 512, 4, Mode::FullOrUserMode) else { return };
    let memory = std::sync::Arc::new(memory);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for stripe in 0..4 {
            let (memory, done) = (memory.clone(), &done);
            scope.spawn(move || {
                let mut buffer = FaultBuffer::new(8);
                while !done.load(Ordering::Acquire) {
                    for &fault in memory.stripes()[stripe].read_faults(&mut buffer).unwrap() {
                        assert_eq!(
                            memory.stripe_of(memory.page_at(fault.address).unwrap()),
                            Some(stripe)
                        );
                        grant(&memory, fault);
                    }
                    std::thread::yield_now();
                }
            });
        }
        let touch = {
            let memory = memory.clone();
            scope.spawn(move || {
                for number in (0..memory.pages()).step_by(7) {
                    store(address(&memory, number), 1);
                }
            })
        };
        touch.join().unwrap();
        done.store(true, Ordering::Release);
    });
    assert_eq!(memory.resident().unwrap(), memory.pages().div_ceil(7) * PAGE_SIZE as u64);
}
