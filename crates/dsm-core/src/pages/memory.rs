//! Making and ending the memory of a region.

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::mapping::Mapping;
use crate::protocol::Conflict;
use crate::types::{PAGE_SIZE, Page};
use crate::uffd::{Mode, OpenError, Privilege, Userfaultfd};

/// Largest region: 16 TiB. View and alias together take a quarter of the addresses of a process.
pub const BYTES_MAX: u64 = 16 << 40;

/// Most stripes of a region.
pub const STRIPES_MAX: usize = 64;

/// Longest name of a region in bytes, so that the kernel takes it as the name of a memfd.
pub const NAME_BYTES_MAX: usize = 200;

/// Stripes begin at multiples of this many pages (2 MiB), so that what is leased together or
/// has its page-table entries together belongs to one worker.
const STRIPE_ALIGN: u64 = 512;

/// Why the memory of a region can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size isn't possible.
    #[error(
        "a region of {bytes} bytes is not possible: take a multiple of 4096, from 4096 to 16 TiB"
    )]
    Size {
        /// The size asked for.
        bytes: u64,
    },
    /// The number of stripes isn't possible.
    #[error("a region of {stripes} stripes is not possible: take from 1 to 64")]
    Stripes {
        /// The number asked for.
        stripes: usize,
    },
    /// The name isn't possible.
    #[error("{name:?} can't name a region: take 1 to 200 bytes of text without control characters")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// There is no userfaultfd to be had.
    #[error("region {region:?} can't watch its memory")]
    Userfaultfd {
        /// The region's name.
        region: String,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// A system call failed while the memory was made.
    #[error("{call} failed for the {bytes} bytes of region {region:?}; {advice}")]
    Open {
        /// The region's name.
        region: String,
        /// Its size.
        bytes: u64,
        /// The call that failed.
        call: &'static str,
        /// What may help.
        advice: &'static str,
        /// What the call said.
        #[source]
        source: io::Error,
    },
    /// A page outside of the region.
    #[error("pages {} to {} are not all in region {region:?}, which has {pages}", first.0, end.0)]
    OutOfRange {
        /// The region's name.
        region: String,
        /// Number of pages in it.
        pages: u64,
        /// First page asked for.
        first: Page,
        /// The page after the last one asked for.
        end: Page,
    },
    /// Two nodes have changed the same word of a page that they share because it is a page table.
    #[error(
        "word {} of page {} of region {region:?} was made {:#x} at one node and {:#x} at another: \
         the guest keeps more than page tables there; have it started with walk_shared = false",
        conflict.index, conflict.page.0, conflict.one, conflict.other
    )]
    Conflict {
        /// The region's name.
        region: String,
        /// Where, and by what.
        conflict: Conflict,
    },
    /// A system call failed on some pages.
    #[error("{call} failed on region {region:?}, {count} pages from page {}", first.0)]
    Pages {
        /// The region's name.
        region: String,
        /// The call that failed.
        call: &'static str,
        /// First of the pages.
        first: Page,
        /// Number of pages.
        count: u64,
        /// What the call said.
        #[source]
        source: io::Error,
    },
}

/// The memory of one region at this node.
///
/// Shared by the workers through an `Arc`. Changing a page's rights or bytes is for the one worker
/// that owns its stripe.
#[derive(Debug)]
pub struct RegionMemory {
    name: String,
    pages: u64,
    stripe_pages: u64,
    // Dropped in this order. The view goes before its userfaultfds: the other way round, an access
    // in between would find ordinary memory and read bytes that may be old. Threads that wait for
    // a page are woken by the closing and find no mapping.
    pub(super) view: Mapping,
    stripes: Vec<Userfaultfd>,
    pub(super) alias: Mapping,
    pub(super) memfd: OwnedFd,
}

impl RegionMemory {
    /// Makes the memory of a region: `bytes` long, all `Invalid` and zero, in at most `stripes`
    /// stripes; [`RegionMemory::stripes`] has their number.
    ///
    /// Costs address space only; frames are allocated as they are used.
    ///
    /// # Errors
    /// For sizes, counts and names out of bounds, and when the kernel refuses.
    pub fn open(name: &str, bytes: u64, stripes: usize, mode: Mode) -> Result<Self, MemoryError> {
        if bytes == 0 || bytes > BYTES_MAX || !bytes.is_multiple_of(PAGE_SIZE as u64) {
            return Err(MemoryError::Size { bytes });
        }
        if stripes == 0 || stripes > STRIPES_MAX {
            return Err(MemoryError::Stripes { stripes });
        }
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(MemoryError::Name { name: name.into() });
        }
        let failed = |call, advice, source| MemoryError::Open {
            region: name.into(),
            bytes,
            call,
            advice,
            source,
        };
        let len = usize::try_from(bytes).map_err(|_| MemoryError::Size { bytes })?;
        let memfd = memfd(name, bytes)
            .map_err(|e| failed("memfd_create", "check the limits nofile and fsize", e))?;
        let map = || {
            Mapping::new(memfd.as_fd(), len)
                .map_err(|e| failed("mmap", "check `ulimit -v` and vm.max_map_count", e))
        };
        let (view, alias) = (map()?, map()?);

        let pages = bytes / PAGE_SIZE as u64;
        let stripe_pages = pages.div_ceil(stripes as u64).next_multiple_of(STRIPE_ALIGN);
        let mut memory = Self {
            name: name.into(),
            pages,
            stripe_pages,
            view,
            stripes: Vec::with_capacity(stripes),
            alias,
            memfd,
        };
        for index in 0..pages.div_ceil(stripe_pages) {
            let uffd = Userfaultfd::open(mode)
                .map_err(|source| MemoryError::Userfaultfd { region: name.into(), source })?;
            let first = index * stripe_pages;
            let addresses = memory.addresses(first..pages.min(first + stripe_pages));
            uffd.register(addresses)
                .map_err(|e| failed("UFFDIO_REGISTER", "check vm.max_map_count", e))?;
            memory.stripes.push(uffd);
        }
        Ok(memory)
    }

    /// The region's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Addresses of the view: what programs, guests and devices use, never an engine thread.
    ///
    /// They end with this value; until then they may be read and written at any time, as memory
    /// that other threads and other nodes change too.
    pub fn view(&self) -> Range<usize> {
        self.view.addresses()
    }

    /// The userfaultfd of each stripe, in the order of their pages.
    pub fn stripes(&self) -> &[Userfaultfd] {
        &self.stripes
    }

    /// The stripe of a page; `None` outside of the region.
    pub fn stripe_of(&self, page: Page) -> Option<usize> {
        (page.0 < self.pages).then(|| (page.0 / self.stripe_pages) as usize)
    }

    /// The pages of a stripe; empty from the number of stripes on.
    pub fn stripe_pages(&self, stripe: usize) -> Range<Page> {
        let bound =
            |index: usize| Page((index as u64).saturating_mul(self.stripe_pages).min(self.pages));
        bound(stripe)..bound(stripe.saturating_add(1))
    }

    /// The page at an address of the view, such as that of a fault; `None` elsewhere.
    pub fn page_at(&self, address: usize) -> Option<Page> {
        let view = self.view();
        view.contains(&address).then(|| Page(((address - view.start) / PAGE_SIZE) as u64))
    }

    /// Which faults reach the engine.
    pub fn privilege(&self) -> Privilege {
        self.stripes.first().map_or(Privilege::UserModeOnly, Userfaultfd::privilege)
    }

    /// Bytes of memory that the region's frames take at this node, the swapped-out ones not
    /// counted.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn resident(&self) -> io::Result<u64> {
        // SAFETY: `stat` is plain numbers, for which all zeros is a value.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and `stat` is this function's own.
        if unsafe { libc::fstat(self.memfd.as_raw_fd(), &mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Byte offsets of pages that are in the region.
    pub(super) fn offsets(pages: Range<u64>) -> Range<usize> {
        pages.start as usize * PAGE_SIZE..pages.end as usize * PAGE_SIZE
    }

    /// Addresses in the view of pages that are in the region.
    pub(super) fn addresses(&self, pages: Range<u64>) -> Range<usize> {
        let base = self.view.addresses().start;
        let offsets = Self::offsets(pages);
        base + offsets.start..base + offsets.end
    }

    /// The numbers of `pages`, which must all be in the region; may be empty.
    pub(super) fn check(&self, pages: &Range<Page>) -> Result<Range<u64>, MemoryError> {
        let (first, end) = (pages.start, pages.end);
        if first.0 > end.0 || end.0 > self.pages {
            let region = self.name.clone();
            return Err(MemoryError::OutOfRange { region, pages: self.pages, first, end });
        }
        Ok(first.0..end.0)
    }

    /// Those of `pages` that are in the region, cut at the bounds of stripes: the number of each stripe, and
    /// its part.
    pub(crate) fn parts(&self, pages: Range<Page>) -> impl Iterator<Item = (usize, Range<Page>)> {
        let (mut at, end) = (pages.start.0, pages.end.0.min(self.pages));
        let stripe_pages = self.stripe_pages;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let stripe = at / stripe_pages;
            let part = Page(at)..Page(end.min((stripe + 1) * stripe_pages));
            at = part.end.0;
            Some((stripe as usize, part))
        })
    }

    /// The same for pages that are all in the region, with what handles the faults of each stripe.
    pub(super) fn by_stripe(
        &self,
        pages: Range<u64>,
    ) -> impl Iterator<Item = (&Userfaultfd, Range<u64>)> {
        let parts = self.parts(Page(pages.start)..Page(pages.end));
        parts.filter_map(|(stripe, part)| {
            Some((self.stripes.get(stripe)?, part.start.0..part.end.0))
        })
    }

    pub(super) fn failed(
        &self,
        call: &'static str,
        pages: &Range<u64>,
    ) -> impl FnOnce(io::Error) -> MemoryError + use<'_> {
        let (first, count) = (Page(pages.start), pages.end - pages.start);
        move |source| MemoryError::Pages { region: self.name.clone(), call, first, count, source }
    }
}

/// A sparse memfd of fixed size.
fn memfd(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    let name = CString::new(format!("giantvm:{name}"))?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_NOEXEC_SEAL;
    // SAFETY: `name` is a string that ends with NUL and outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made `fd` for this function; nobody else owns it.
    let memfd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    if unsafe { libc::ftruncate(fd, size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(memfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_regions_are_refused_by_name() {
        let size = |bytes| RegionMemory::open("r", bytes, 1, Mode::FullOrUserMode).unwrap_err();
        for bytes in [0, 1, 4095, 4097, BYTES_MAX + 4096, !4095, u64::MAX] {
            assert!(matches!(size(bytes), MemoryError::Size { bytes: b } if b == bytes));
        }
        for stripes in [0, STRIPES_MAX + 1, usize::MAX] {
            let error = RegionMemory::open("r", 4096, stripes, Mode::FullOrUserMode).unwrap_err();
            assert!(matches!(error, MemoryError::Stripes { .. }), "{error}");
        }
        for name in ["", "a\nb", "a\0b", &"x".repeat(NAME_BYTES_MAX + 1)] {
            let error = RegionMemory::open(name, 4096, 1, Mode::FullOrUserMode).unwrap_err();
            assert!(matches!(error, MemoryError::Name { .. }), "{error}");
        }
    }
}
