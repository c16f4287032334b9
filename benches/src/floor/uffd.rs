//! The few userfaultfd calls that floors need, written apart from the product's own layer: a floor must
//! not inherit a cost from what it is compared with.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::BenchError;

// linux/userfaultfd.h. The ioctl numbers hold the size of their argument; the asserts below tie them.
const UFFD_API: u64 = 0xAA;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFDIO_API: libc::c_ulong = 0xC018_AA3F;
const UFFDIO_REGISTER: libc::c_ulong = 0xC020_AA00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_AA01;
const UFFDIO_COPY: libc::c_ulong = 0xC028_AA03;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xC018_AA06;
const UFFDIO_CONTINUE: libc::c_ulong = 0xC020_AA07;
const REGISTER_MISSING_WP_MINOR: u64 = 0b111;
const WRITEPROTECT_SET: u64 = 1;
const CONTINUE_WP: u64 = 2;
const EVENT_PAGEFAULT: u8 = 0x12;

const fn argument_size(ioctl: libc::c_ulong) -> usize {
    (ioctl >> 16) as usize & 0x3FFF
}

const _: () = assert!(argument_size(UFFDIO_API) == size_of::<Api>());
const _: () = assert!(argument_size(UFFDIO_REGISTER) == size_of::<Register>());
const _: () = assert!(argument_size(UFFDIO_UNREGISTER) == size_of::<Range>());
const _: () = assert!(argument_size(UFFDIO_COPY) == size_of::<CopyPage>());
const _: () = assert!(argument_size(UFFDIO_WRITEPROTECT) == size_of::<WriteProtect>());
const _: () = assert!(argument_size(UFFDIO_CONTINUE) == size_of::<Continue>());

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyPage {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

#[repr(C)]
struct Continue {
    range: Range,
    mode: u64,
    mapped: i64,
}

/// The right with which a page is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// Reads only; the first write faults.
    Read,
    /// Reads and writes.
    Write,
}

/// Who accesses a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accessors {
    /// Only instructions of this program, which needs no right.
    Program,
    /// The kernel, too, for a guest.
    Kernel,
}

/// A userfaultfd over one mapping.
#[derive(Debug)]
pub(super) struct Uffd {
    file: File,
    range: Range,
}

impl Uffd {
    /// Registers the mapping of `len` bytes at `start` for missing, minor and write-protect faults.
    ///
    /// # Safety
    /// The mapping must be one of the caller's own shared memfd, page-aligned, and stay for as long as this lives;
    /// its accesses block until somebody answers the faults.
    pub(super) unsafe fn register(
        start: *mut u8,
        len: usize,
        accessors: Accessors,
    ) -> Result<Self, BenchError> {
        let only = if accessors == Accessors::Program { UFFD_USER_MODE_ONLY } else { 0 };
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | only;
        // SAFETY: takes one integer, returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(BenchError::last_os("opening a userfaultfd"));
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
        let uffd = Self { file, range: Range { start: start as u64, len: len as u64 } };
        let features = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_MINOR_SHMEM | FEATURE_WP_HUGETLBFS_SHMEM;
        let mut api = Api { api: UFFD_API, features, ioctls: 0 };
        uffd.ioctl(UFFDIO_API, &mut api, "the userfaultfd handshake")?;
        let mut register =
            Register { range: uffd.range, mode: REGISTER_MISSING_WP_MINOR, ioctls: 0 };
        uffd.ioctl(UFFDIO_REGISTER, &mut register, "UFFDIO_REGISTER")?;
        Ok(uffd)
    }

    /// The address of the next fault; none when nobody waits.
    pub(super) fn next_fault(&self) -> Result<Option<u64>, BenchError> {
        let mut message = [0u8; 32];
        match (&self.file).read(&mut message) {
            Ok(32) if message[0] == EVENT_PAGEFAULT => {
                let mut address = [0u8; 8];
                address.copy_from_slice(&message[16..24]);
                Ok(Some(u64::from_ne_bytes(address)))
            }
            Ok(_) => Err(BenchError::Peer("got a userfaultfd message that is no fault".into())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(source) => Err(BenchError::Os { doing: "reading a userfaultfd", source }),
        }
    }

    /// Maps what the memfd holds at `offset`, and wakes who waits for it.
    pub(super) fn install(&self, offset: u64, len: u64, right: Right) -> Result<(), BenchError> {
        let mode = if right == Right::Read { CONTINUE_WP } else { 0 };
        let mut argument = Continue { range: self.sub(offset, len), mode, mapped: 0 };
        self.ioctl(UFFDIO_CONTINUE, &mut argument, "UFFDIO_CONTINUE")
    }

    /// Fills the missing page at `offset` with `page`, and wakes who waits for it.
    pub(super) fn copy(&self, offset: u64, page: &[u8; 4096]) -> Result<(), BenchError> {
        let range = self.sub(offset, 4096);
        let from = page.as_ptr() as u64;
        let mut argument = CopyPage { to: range.start, from, len: range.len, mode: 0, copied: 0 };
        self.ioctl(UFFDIO_COPY, &mut argument, "UFFDIO_COPY")
    }

    /// Takes the right to write away, or gives it and wakes who waits for it.
    pub(super) fn protect(&self, offset: u64, len: u64, right: Right) -> Result<(), BenchError> {
        let mode = if right == Right::Read { WRITEPROTECT_SET } else { 0 };
        let mut argument = WriteProtect { range: self.sub(offset, len), mode };
        self.ioctl(UFFDIO_WRITEPROTECT, &mut argument, "UFFDIO_WRITEPROTECT")
    }

    /// Ends the registration: who waits goes on with plain memory. For a floor that has failed.
    pub(super) fn release(&self) {
        let mut range = self.range;
        // The failure that led here is the one to tell; and there is no other way out than this.
        let _ = self.ioctl(UFFDIO_UNREGISTER, &mut range, "UFFDIO_UNREGISTER");
    }

    fn sub(&self, offset: u64, len: u64) -> Range {
        assert!(offset + len <= self.range.len, "outside the registered mapping");
        Range { start: self.range.start + offset, len }
    }

    fn ioctl<T>(
        &self,
        number: libc::c_ulong,
        argument: &mut T,
        doing: &'static str,
    ) -> Result<(), BenchError> {
        debug_assert_eq!(argument_size(number), size_of::<T>());
        // SAFETY: `argument` is live and exclusive, of the size that `number` says; the addresses in it lie
        // in the registered mapping, whose pages the kernel maps or protects without changing their bytes,
        // or (UFFDIO_COPY) in a borrowed page that it only reads.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), number, std::ptr::from_mut(argument)) } != 0
        {
            return Err(BenchError::last_os(doing));
        }
        Ok(())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
