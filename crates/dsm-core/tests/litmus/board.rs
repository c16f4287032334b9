//! Ordinary memory that the processes of a test share: barriers, start signals, results.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Words for what a test wants to share.
pub(crate) const WORDS: usize = 1 << 16;

/// All zeros at first, which every field takes as its start.
#[repr(C)]
struct Layout {
    arrived: AtomicU32,
    generation: AtomicU32,
    words: [AtomicU64; WORDS],
}

/// A mapping of the shared memory; it stays for the life of the process.
#[derive(Clone, Copy)]
pub(crate) struct Board {
    layout: &'static Layout,
    parties: u32,
}

impl Board {
    /// Makes the memory, for barriers of `parties` processes.
    pub(crate) fn create(parties: u32) -> (Self, OwnedFd) {
        // SAFETY: the name ends with NUL; the result is checked before it is owned.
        let fd = unsafe {
            let fd = libc::memfd_create(c"board".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0, "memfd_create");
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: no memory is involved.
        let status = unsafe { libc::ftruncate(fd.as_raw_fd(), size_of::<Layout>() as i64) };
        assert_eq!(status, 0, "ftruncate");
        (Self::map(fd.as_raw_fd(), parties), fd)
    }

    /// Maps the memory behind an inherited descriptor.
    pub(crate) fn map(fd: RawFd, parties: u32) -> Self {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Layout>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED, "mmap");
        // SAFETY: mapped for good, page-aligned, of this size, made of atomics only.
        let layout = unsafe { &*address.cast::<Layout>() };
        Self { layout, parties }
    }

    pub(crate) fn word(&self, index: usize) -> &'static AtomicU64 {
        &self.layout.words[index]
    }

    /// Waits for all processes; `watch` is called now and then, and its error ends the wait.
    pub(crate) fn barrier_watched(
        &self,
        mut watch: impl FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        let generation = self.layout.generation.load(Ordering::SeqCst);
        if self.layout.arrived.fetch_add(1, Ordering::SeqCst) + 1 == self.parties {
            self.layout.arrived.store(0, Ordering::SeqCst);
            self.layout.generation.store(generation + 1, Ordering::SeqCst);
            wake_all(&self.layout.generation);
            return Ok(());
        }
        loop {
            wait(&self.layout.generation, generation, Duration::from_millis(200));
            // Who has passed may have ended since: look at the barrier first.
            if self.layout.generation.load(Ordering::SeqCst) != generation {
                return Ok(());
            }
            watch()?;
        }
    }

    /// Waits for all processes. Who hangs here is ended by the parent.
    pub(crate) fn barrier(&self) {
        let _ = self.barrier_watched(|| Ok(()));
    }
}

fn wait(word: &AtomicU32, value: u32, most: Duration) {
    let timeout =
        libc::timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
    // SAFETY: the word and the timeout outlive the call.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, value, &timeout) };
}

fn wake_all(word: &AtomicU32) {
    // SAFETY: the word outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX) };
}

/// Keeps a descriptor open over `exec`; async-signal-safe.
pub(crate) fn inherit(fd: &impl AsFd) -> std::io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
