//! Threads that touch memory, and a handler that watches them.

use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use dsm_core::pages::{MemoryError, RegionMemory};
use dsm_core::uffd::{Fault, FaultBuffer, FaultKind, Mode};
use dsm_core::{Access, PAGE_SIZE, Page, ThreadId};

/// After so long without an event, a test has hung and fails.
const HUNG: Duration = Duration::from_secs(30);

/// A region, or `None`, with the reason printed, where this machine gives this user none.
pub(crate) fn memory(pages: u64, stripes: usize, mode: Mode) -> Option<RegionMemory> {
    match RegionMemory::open("test", pages * PAGE_SIZE as u64, stripes, mode) {
        Ok(memory) => Some(memory),
        Err(MemoryError::Userfaultfd { source, .. }) if source.is_refusal() => {
            eprintln!("skipped: {source}");
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

/// A region of one stripe that serves the kernel's own accesses if it can.
pub(crate) fn small() -> Option<RegionMemory> {
    memory(64, 1, Mode::FullOrUserMode)
}

/// As [`small`], but only with the kernel's faults.
pub(crate) fn full() -> Option<RegionMemory> {
    memory(64, 1, Mode::Full)
}

pub(crate) fn page(number: u64) -> std::ops::Range<Page> {
    Page(number)..Page(number + 1)
}

pub(crate) fn address(memory: &RegionMemory, page: u64) -> usize {
    memory.view().start + page as usize * PAGE_SIZE
}

pub(crate) fn load(address: usize) -> u8 {
    // SAFETY: callers pass addresses of a view that outlives the call.
    unsafe { std::ptr::read_volatile(address as *const u8) }
}

pub(crate) fn store(address: usize, value: u8) {
    // SAFETY: as in `load`.
    unsafe { std::ptr::write_volatile(address as *mut u8, value) }
}

pub(crate) fn thread_id() -> ThreadId {
    // SAFETY: the call has no arguments and no effect.
    ThreadId(unsafe { libc::gettid() } as u32)
}

pub(crate) fn fill(memory: &RegionMemory, page: u64, value: u8) {
    memory.copy_in(Page(page), &[value; PAGE_SIZE]).unwrap();
}

pub(crate) fn byte(memory: &RegionMemory, page: u64) -> u8 {
    let mut bytes = [0; PAGE_SIZE];
    memory.copy_out(Page(page), &mut bytes).unwrap();
    assert!(bytes[1..].iter().all(|&b| b == bytes[1]), "a page written in one byte only");
    bytes[0]
}

/// A fault as tests compare it: stripe, page, access, kind.
pub(crate) type Seen = (usize, u64, Access, FaultKind);

/// Runs `access` in a thread of its own and answers its faults by `serve`, until it ends. Returns
/// its result and its faults. All faults must be its own.
pub(crate) fn watched<T: Send>(
    memory: &RegionMemory,
    access: impl FnOnce() -> T + Send,
    mut serve: impl FnMut(&RegionMemory, Fault),
) -> (T, Vec<Seen>) {
    let mut buffer = FaultBuffer::new(16);
    let mut seen = Vec::new();
    thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let accessor = scope.spawn(move || {
            sender.send(thread_id()).unwrap();
            access()
        });
        let id = receiver.recv().unwrap();
        let mut last = Instant::now();
        while !accessor.is_finished() {
            for stripe in readable(memory) {
                for &fault in memory.stripes()[stripe].read_faults(&mut buffer).unwrap() {
                    assert_eq!(fault.thread, id);
                    let page = memory.page_at(fault.address).unwrap();
                    assert_eq!(fault.address % PAGE_SIZE, 0);
                    seen.push((stripe, page.0, fault.access, fault.kind));
                    serve(memory, fault);
                    last = Instant::now();
                }
            }
            if last.elapsed() > HUNG {
                eprintln!("hung: an access waits for ever; faults so far: {seen:?}");
                std::process::abort();
            }
        }
        (accessor.join().unwrap(), seen)
    })
}

/// Answers a fault with the least right that it asks for.
pub(crate) fn grant(memory: &RegionMemory, fault: Fault) {
    let page = memory.page_at(fault.address).unwrap();
    memory.install(page..Page(page.0 + 1), fault.access).unwrap();
}

/// No fault is expected: one ends the test.
pub(crate) fn refuse(_: &RegionMemory, fault: Fault) {
    eprintln!("unexpected {fault:?}");
    std::process::abort();
}

pub(crate) fn read(memory: &RegionMemory, page: u64) -> (u8, Vec<Seen>) {
    let address = address(memory, page);
    watched(memory, move || load(address), grant)
}

pub(crate) fn write(memory: &RegionMemory, page: u64, value: u8) -> Vec<Seen> {
    let address = address(memory, page);
    watched(memory, move || store(address, value), grant).1
}

/// Stripes with faults, after a short wait for one.
fn readable(memory: &RegionMemory) -> Vec<usize> {
    let mut fds: Vec<_> = memory
        .stripes()
        .iter()
        .map(|uffd| libc::pollfd { fd: uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: pointer and length are those of `fds`.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 2) };
    (0..fds.len()).filter(|&i| fds[i].revents & libc::POLLIN != 0).collect()
}

/// `write(2)` of the first `len` bytes at `address` into a pipe: what arrived, or the errno.
pub(crate) fn write_to_pipe(address: usize, len: usize) -> Result<Vec<u8>, i32> {
    use std::io::Read;
    let (mut reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the kernel reads addresses of a view, and fails where it can't.
    let written = unsafe { libc::write(writer.as_raw_fd(), address as *const _, len) };
    if written < 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap());
    }
    drop(writer);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    Ok(bytes)
}

/// Runs the test `name` once more in a process of its own, where `body` runs; there the result is
/// `None`, here it is how that process ended.
pub(crate) fn own_process(name: &str, body: impl FnOnce()) -> Option<Output> {
    const VARIABLE: &str = "DSM_TEST_CHILD";
    if std::env::var(VARIABLE).as_deref() == Ok(name) {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the argument is a local; no core dumps of tests that die on purpose.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
        body();
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    Some(output)
}

/// What a process of [`own_process`] wrote on stderr, if it ended well.
pub(crate) fn succeeded(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "the test has another name: {out}");
}
