//! A node's memory as in the product: one memfd, mapped as a view that faults and an alias that does not.

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::AtomicU64;

use super::uffd::{Accessors, Right, Uffd};
use crate::error::BenchError;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

/// `pages()` pages of shared memory with a view and an alias.
#[derive(Debug)]
pub(super) struct Memory {
    uffd: Uffd,
    view: Mapping,
    alias: Mapping,
    file: File,
}

impl Memory {
    /// All pages have frames, and none is mapped in the view.
    pub(super) fn new(pages: usize) -> Result<Self, BenchError> {
        Self::with(pages, Accessors::Program)
    }

    /// The same for a view that a guest accesses.
    pub(super) fn for_guests(pages: usize) -> Result<Self, BenchError> {
        Self::with(pages, Accessors::Kernel)
    }

    fn with(pages: usize, accessors: Accessors) -> Result<Self, BenchError> {
        // SAFETY: a constant C string and a flag; returns a new descriptor or -1.
        let fd = unsafe { libc::memfd_create(c"giantvm-floor".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(BenchError::last_os("memfd_create"));
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let len = pages * PAGE;
        file.set_len(len as u64).map_err(BenchError::os("sizing a memfd"))?;
        let (view, alias) = (Mapping::new(&file, len)?, Mapping::new(&file, len)?);
        // SAFETY: `view` maps the whole of our own memfd and is dropped after `uffd` (order of fields).
        let uffd = unsafe { Uffd::register(view.start, len, accessors)? };
        let memory = Self { uffd, view, alias, file };
        memory.fill_frames()?;
        Ok(memory)
    }

    pub(super) fn pages(&self) -> usize {
        self.view.len / PAGE
    }

    /// Where the view is, for KVM.
    pub(super) fn view(&self) -> (*mut u8, usize) {
        (self.view.start, self.view.len)
    }

    pub(super) fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// The first word of a page, as the application sees it: access may fault and wait.
    pub(super) fn view_word(&self, page: usize) -> &AtomicU64 {
        self.view.word(page)
    }

    /// The same word as the engine sees it: access never faults.
    pub(super) fn alias_word(&self, page: usize) -> &AtomicU64 {
        self.alias.word(page)
    }

    /// The bytes of `count` pages in the alias, for the kernel to read or fill.
    pub(super) fn alias_span(&self, first: usize, count: usize) -> Span<'_> {
        assert!(first + count <= self.pages(), "no such pages");
        // SAFETY: the offset lies inside the mapping.
        let start = unsafe { self.alias.start.add(first * PAGE) };
        Span { start, len: count * PAGE, memory: PhantomData }
    }

    /// The page that a fault's address belongs to.
    pub(super) fn page_at(&self, address: u64) -> Result<usize, BenchError> {
        let offset = address.checked_sub(self.view.start as u64);
        offset
            .map(|offset| offset as usize / PAGE)
            .filter(|page| *page < self.pages())
            .ok_or_else(|| BenchError::Peer(format!("faulted at {address:#x}, outside the region")))
    }

    /// Maps a page into the view and wakes who waits.
    pub(super) fn install(&self, page: usize, right: Right) -> Result<(), BenchError> {
        self.uffd.install((page * PAGE) as u64, PAGE as u64, right)
    }

    /// Maps all pages, whatever was mapped before.
    pub(super) fn install_all(&self, right: Right) -> Result<(), BenchError> {
        self.drop_all()?;
        self.uffd.install(0, self.view.len as u64, right)
    }

    /// Lets a page be written that was read-only, and wakes who waits.
    pub(super) fn unprotect(&self, page: usize) -> Result<(), BenchError> {
        self.uffd.protect((page * PAGE) as u64, PAGE as u64, Right::Write)
    }

    /// Makes all mapped pages read-only.
    pub(super) fn protect_all(&self) -> Result<(), BenchError> {
        self.uffd.protect(0, self.view.len as u64, Right::Read)
    }

    /// Takes a page out of the view; its frame stays.
    pub(super) fn drop_page(&self, page: usize) -> Result<(), BenchError> {
        self.zap(page * PAGE, PAGE)
    }

    /// Takes all pages out of the view; their frames stay.
    pub(super) fn drop_all(&self) -> Result<(), BenchError> {
        self.zap(0, self.view.len)
    }

    /// Gives all frames back: the next access finds a hole.
    pub(super) fn free_frames(&self) -> Result<(), BenchError> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: works on our own memfd; nothing borrows its bytes as ordinary memory.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, 0, self.view.len as i64) } != 0 {
            return Err(BenchError::last_os("punching a hole into a memfd"));
        }
        Ok(())
    }

    /// Gives every page a frame, mapped in the alias.
    pub(super) fn fill_frames(&self) -> Result<(), BenchError> {
        self.alias.advise(0, self.alias.len, libc::MADV_POPULATE_WRITE, "populating the alias")
    }

    fn zap(&self, offset: usize, len: usize) -> Result<(), BenchError> {
        self.view.advise(offset, len, libc::MADV_DONTNEED, "dropping pages from the view")
    }
}

/// A run of bytes in an alias. They may change at any time: they are only for system calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span<'a> {
    start: *mut u8,
    len: usize,
    memory: PhantomData<&'a Memory>,
}

impl Span<'_> {
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// What is left after the first `done` bytes, for a vectored system call.
    pub(super) fn rest(self, done: usize) -> libc::iovec {
        let done = done.min(self.len);
        // SAFETY: `done` stays inside the span, or one past its end with a length of 0.
        libc::iovec { iov_base: unsafe { self.start.add(done) }.cast(), iov_len: self.len - done }
    }
}

#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: the memory is shared and belongs to no thread; it is touched by atomics and system calls only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, len: usize) -> Result<Self, BenchError> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(BenchError::last_os("mapping a memfd"));
        }
        let mapping = Self { start: start.cast(), len };
        mapping.advise(0, len, libc::MADV_NOHUGEPAGE, "keeping huge pages away")?;
        Ok(mapping)
    }

    fn word(&self, page: usize) -> &AtomicU64 {
        assert!(page < self.len / PAGE, "no such page");
        // SAFETY: the word lies inside the mapping, which lives as long as `self`; it is page-aligned,
        // and all of this program's accesses to it are atomic or made by the kernel.
        unsafe { AtomicU64::from_ptr(self.start.add(page * PAGE).cast()) }
    }

    fn advise(
        &self,
        offset: usize,
        len: usize,
        advice: libc::c_int,
        doing: &'static str,
    ) -> Result<(), BenchError> {
        assert!(offset + len <= self.len, "outside the mapping");
        // SAFETY: the range lies inside our own shared mapping, so no advice given here loses its bytes.
        if unsafe { libc::madvise(self.start.add(offset).cast(), len, advice) } != 0 {
            return Err(BenchError::last_os(doing));
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; references into it borrow `self` and are gone.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn view_and_alias_show_the_same_frames() {
        let memory = Memory::new(2).unwrap();
        memory.alias_word(1).store(7, Relaxed);
        memory.install_all(Right::Write).unwrap();
        assert_eq!(memory.view_word(1).load(Relaxed), 7);
        memory.view_word(1).store(8, Relaxed);
        assert_eq!(memory.alias_word(1).load(Relaxed), 8);
    }

    #[test]
    fn each_kind_of_fault_waits_until_it_is_answered() {
        let memory = Memory::new(3).unwrap();
        let answer = |page: usize, answer: &dyn Fn()| {
            std::thread::scope(|scope| {
                let app = scope.spawn(move_touch(&memory, page));
                let address = loop {
                    if let Some(address) = memory.uffd().next_fault().unwrap() {
                        break address;
                    }
                    std::thread::yield_now();
                };
                assert_eq!(memory.page_at(address).unwrap(), page);
                assert!(!app.is_finished());
                answer();
                app.join().unwrap();
            });
        };
        answer(0, &|| memory.install(0, Right::Write).unwrap());
        memory.drop_all().unwrap();
        memory.install_all(Right::Read).unwrap();
        answer(1, &|| memory.unprotect(1).unwrap());
        memory.free_frames().unwrap();
        answer(2, &|| memory.uffd().copy(2 * PAGE as u64, &[0; PAGE]).unwrap());
    }

    fn move_touch(memory: &Memory, page: usize) -> impl FnOnce() + Send + '_ {
        move || memory.view_word(page).store(1, Relaxed)
    }

    #[test]
    fn release_lets_the_waiting_go_on() {
        let memory = Memory::new(1).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| memory.view_word(0).store(9, Relaxed));
            while memory.uffd().next_fault().unwrap().is_none() {
                std::thread::yield_now();
            }
            memory.uffd().release();
        });
        assert_eq!(memory.alias_word(0).load(Relaxed), 9);
    }

    #[test]
    fn addresses_outside_the_region_are_refused() {
        let memory = Memory::new(1).unwrap();
        assert!(memory.page_at(0).is_err());
        assert!(memory.page_at(u64::MAX).is_err());
    }
}
