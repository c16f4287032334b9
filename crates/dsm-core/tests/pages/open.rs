//! What opening and closing a region costs and leaves behind.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use dsm_core::pages::STRIPES_MAX;
use dsm_core::uffd::{FaultBuffer, Mode, Userfaultfd};
use dsm_core::{Access, PAGE_SIZE, Page};

use crate::support::*;

const TIB: u64 = 1 << 40;

fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_tebibyte_costs_address_space_only() {
    if small().is_none() {
        return;
    }
    let outcome = own_process("open::a_tebibyte_costs_address_space_only", || {
        let used = || status_kib("VmRSS:") + status_kib("VmPTE:");
        let before = used();
        let start = Instant::now();
        let memory = memory(TIB / PAGE_SIZE as u64, STRIPES_MAX, Mode::FullOrUserMode).unwrap();
        let opened = start.elapsed();
        assert_eq!(memory.stripes().len(), STRIPES_MAX);
        let last = memory.pages() - 1;
        assert_eq!(write(&memory, last, 1).len(), 1);
        assert_eq!(memory.resident().unwrap(), PAGE_SIZE as u64);
        assert!(status_kib("VmSize:") >= 2 * (TIB >> 10), "two mappings of a tebibyte");
        let grown = used() - before;
        assert!(grown < 4 << 10, "{grown} KiB for a touched page");
        let start = Instant::now();
        drop(memory);
        println!("1 TiB: opened in {opened:?}, {grown} KiB, closed in {:?}", start.elapsed());
    });
    if let Some(output) = outcome {
        succeeded(&output);
        print!("{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// What the process has open and mapped of regions.
fn belongings() -> Vec<String> {
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    let mut all: Vec<_> = fds
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|link| link.contains("giantvm:") || link.contains("userfaultfd"))
        .collect();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    all.extend(maps.lines().filter(|line| line.contains("giantvm:")).map(String::from));
    all
}

#[test]
fn closing_leaves_nothing_behind() {
    if small().is_none() {
        return;
    }
    let outcome = own_process("open::closing_leaves_nothing_behind", || {
        let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = fds();
        for _ in 0..20 {
            let memory = memory(4 * 512, 4, Mode::FullOrUserMode).unwrap();
            memory.install(Page(0)..Page(64), Access::Write).unwrap();
            memory.protect(Page(0)..Page(32)).unwrap();
            memory.poison(Page(100)..Page(101)).unwrap();
            // One memfd, four userfaultfds, the view in four mappings, the alias in one.
            assert_eq!(belongings().len(), 1 + 4 + 4 + 1, "{:#?}", belongings());
            assert!(belongings()[0].contains("giantvm:test"), "{:#?}", belongings());
        }
        assert_eq!(belongings(), [""; 0]);
        assert_eq!(fds(), before);
    });
    if let Some(output) = outcome {
        succeeded(&output);
    }
}

#[test]
fn the_size_is_sealed() {
    // Of a size of its own, so that it is found among those of other tests.
    let Some(memory) = memory(77, 1, Mode::FullOrUserMode) else { return };
    let bytes = 77 * PAGE_SIZE as u64;
    let is_ours = |path: &PathBuf| {
        let is_region =
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("giantvm:"));
        is_region && fs::metadata(path).is_ok_and(|data| data.len() == bytes)
    };
    let mut fds = fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path());
    let path = fds.find(is_ours).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    for size in [0, bytes - 4096, bytes + 4096] {
        assert_eq!(file.set_len(size).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
    drop(memory);
}

#[test]
fn mappings_stay_out_of_core_dumps_children_and_huge_pages() {
    let Some(memory) = small() else { return };
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", memory.view().start);
    let flags = smaps
        .lines()
        .skip_while(|line| !line.starts_with(&start))
        .find(|line| line.starts_with("VmFlags:"))
        .unwrap();
    for flag in ["dd", "dc", "nh", "um", "uw", "ui"] {
        assert!(flags.split_whitespace().any(|f| f == flag), "{flag} is not in {flags}");
    }
}

#[test]
fn few_stripes_where_there_are_few_pages() {
    let Some(memory) = memory(513, 64, Mode::FullOrUserMode) else { return };
    assert_eq!(memory.stripes().len(), 2);
    assert_eq!(memory.stripe_pages(0), Page(0)..Page(512));
    assert_eq!(memory.stripe_pages(1), Page(512)..Page(513));
    assert!(memory.stripe_pages(2).is_empty() && memory.stripe_pages(usize::MAX).is_empty());
}

#[test]
fn an_unregistered_range_is_ordinary_memory() {
    let Some(memory) = small() else { return };
    let uffd = &memory.stripes()[0];
    uffd.unregister(memory.view()).unwrap();
    let at = address(&memory, 0);
    assert_eq!(watched(&memory, || load(at), refuse), (0, vec![]));
    // Free for another userfaultfd, which then has it alone.
    let other = Userfaultfd::open(Mode::FullOrUserMode).unwrap();
    other.register(memory.view()).unwrap();
    let busy = uffd.register(memory.view()).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
}

#[test]
fn a_forked_child_has_no_copy() {
    let Some(memory) = small() else { return };
    memory.install(page(0), Access::Write).unwrap();
    let frame = memory.frame(Page(0)).unwrap().as_ptr() as usize;
    let mapped = |address: usize| {
        let mut resident = 0;
        // SAFETY: the call reads no memory of ours, and writes one byte for the one page.
        unsafe { libc::mincore(address as *mut _, PAGE_SIZE, &mut resident) == 0 }
    };
    let at = address(&memory, 0);
    assert!(mapped(at) && mapped(frame));
    // SAFETY: the child makes two system calls that need no state of other threads, and ends.
    let status = unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            libc::_exit(i32::from(mapped(at)) + 2 * i32::from(mapped(frame)));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status
    };
    assert_eq!(status, 0, "mappings in the child");
}

#[test]
fn closing_ends_a_wait_by_signal() {
    if small().is_none() {
        return;
    }
    let name = "open::closing_ends_a_wait_by_signal";
    let outcome = own_process(name, || {
        let memory = small().unwrap();
        fill(&memory, 0, 7);
        let at = address(&memory, 0);
        let reader = std::thread::spawn(move || println!("value {}", load(at)));
        let mut buffer = FaultBuffer::new(1);
        while memory.stripes()[0].read_faults(&mut buffer).unwrap().is_empty() {
            std::thread::yield_now();
        }
        drop(memory);
        reader.join().unwrap();
    });
    if let Some(output) = outcome {
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("value"), "{output:?}");
    }
}

#[test]
fn no_byte_of_a_closing_region_can_be_read() {
    // In user mode a system call on a page that isn't there fails and doesn't wait: so it can try
    // again and again while the region closes. Many stripes make that take long.
    let stripes = 64;
    let region = || memory(stripes * 512, stripes as usize, Mode::UserMode);
    if region().is_none() {
        return;
    }
    let outcome = own_process("open::no_byte_of_a_closing_region_can_be_read", || {
        for _ in 0..20 {
            let memory = region().unwrap();
            fill(&memory, 0, 7);
            let at = address(&memory, 0);
            let (tries, closed) = (AtomicU32::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (_reader, writer) = std::io::pipe().unwrap();
                    while !closed.load(Ordering::Acquire) {
                        // SAFETY: the kernel reads a byte if there is one, and fails if not.
                        let sent = unsafe { libc::write(writer.as_raw_fd(), at as *const _, 1) };
                        assert_eq!(sent, -1, "a byte of a region that closes");
                        tries.fetch_add(1, Ordering::Release);
                    }
                });
                while tries.load(Ordering::Acquire) == 0 {
                    std::thread::yield_now();
                }
                drop(memory);
                closed.store(true, Ordering::Release);
            });
        }
    });
    if let Some(output) = outcome {
        succeeded(&output);
    }
}
