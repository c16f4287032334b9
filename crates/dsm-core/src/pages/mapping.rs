//! A mapping of a region's memfd that ends with its owner.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// All of a memfd, mapped shared, readable and writable.
///
/// Not inherited by children, in which it would silently go stale; not in core dumps, for which the
/// kernel would fetch every page; never in huge pages, which can't be given away 4 KiB at a time.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the type owns address space, which belongs to no thread. It hands out the address only;
// those who use it say why they may.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes anything.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` bytes of `memfd`, more than none.
    pub(super) fn new(memfd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                memfd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        let mapping = Self { base, bytes };
        mapping.advise(0..bytes, libc::MADV_DONTFORK)?;
        mapping.advise(0..bytes, libc::MADV_DONTDUMP)?;
        match mapping.advise(0..bytes, libc::MADV_NOHUGEPAGE) {
            // A kernel built without huge pages.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => result?,
        }
        Ok(mapping)
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The addresses of the mapping.
    pub(super) fn addresses(&self) -> Range<usize> {
        let start = self.base.as_ptr() as usize;
        start..start + self.bytes
    }

    /// `madvise(2)` on the bytes `range` of the mapping, with an advice that changes no byte.
    pub(super) fn advise(&self, range: Range<usize>, advice: libc::c_int) -> io::Result<()> {
        if range.start > range.end || range.end > self.bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        loop {
            // SAFETY: the range lies in this mapping. Pages of a shared mapping come back with
            // their bytes after any advice used in this module.
            let status = unsafe {
                libc::madvise(self.base.as_ptr().add(range.start).cast(), range.len(), advice)
            };
            if status == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own. Whoever still uses an address of it broke the
        // contract of `RegionMemory::view`.
        let status = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(status, 0, "munmap of a mapping of our own");
    }
}
