//! What a page's state means for the view: mapped or not, writable or not.
//!
//! Each call is idempotent, so that repeated faults and messages do no harm. When it returns, no
//! CPU and no vCPU can use the old right.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::memory::{MemoryError, RegionMemory};
use crate::types::{Access, Page};
use crate::uffd::{Progress, Userfaultfd, Wake};

impl RegionMemory {
    /// Invalid -> Shared (`Read`) or -> Modified (`Write`): maps the pages' frames and has the
    /// threads that wait for them go on. A frame that doesn't exist yet is zero.
    ///
    /// Pages that are mapped already become writable for `Write`, and are left alone for `Read`.
    /// Not for poisoned pages, which it may revive.
    ///
    /// # Errors
    /// For pages outside of the region, and when memory is short.
    pub fn install(&self, pages: Range<Page>, access: Access) -> Result<(), MemoryError> {
        for (uffd, part) in self.by_stripe(self.check(&pages)?) {
            self.install_part(uffd, part, access)?;
        }
        Ok(())
    }

    fn install_part(
        &self,
        uffd: &Userfaultfd,
        part: Range<u64>,
        access: Access,
    ) -> Result<(), MemoryError> {
        let (mut at, mut populated) = (part.start, false);
        while at < part.end {
            let rest = at..part.end;
            let next = at..at + 1;
            let call = "UFFDIO_CONTINUE";
            match uffd
                .map(self.addresses(rest.clone()), access)
                .map_err(self.failed(call, &rest))?
            {
                Progress::Done(bytes) => at += Self::whole_pages(bytes),
                Progress::Exists => {
                    let address = self.addresses(next.clone());
                    match access {
                        Access::Read => uffd.wake(address),
                        Access::Write => uffd.clear_write_protect(address, Wake::Yes),
                    }
                    .map_err(self.failed("waking readers or writers", &next))?;
                    at += 1;
                }
                Progress::NoFrame if !populated => {
                    self.populate(rest)?;
                    populated = true;
                }
                Progress::NoFrame => {
                    let source = io::Error::from_raw_os_error(libc::EFAULT);
                    return Err(self.failed(call, &next)(source));
                }
            }
        }
        Ok(())
    }

    /// Has all frames of `pages` exist, without a change to their bytes.
    ///
    /// A write fault on the alias costs as much as `fallocate(2)` (1.2 + 0.3 us against 0.5 + 1.0
    /// for a page and its mapping; 22 + 1.4 against 7 + 14 for 16), needs no lock on the file, and
    /// has the alias mapped for the next transfer. By `madvise`, so that lack of memory is an error
    /// and not a signal.
    fn populate(&self, pages: Range<u64>) -> Result<(), MemoryError> {
        self.alias
            .advise(Self::offsets(pages.clone()), libc::MADV_POPULATE_WRITE)
            .map_err(self.failed("allocating memory", &pages))
    }

    /// Shared -> Modified: makes mapped pages writable, and wakes those who wait.
    ///
    /// A page that isn't mapped (its frame was swapped out) stays so: who waits for it faults
    /// again, as for any page that is mapped less than its state allows, and is answered by
    /// [`RegionMemory::install`].
    ///
    /// # Errors
    /// For pages outside of the region.
    pub fn upgrade(&self, pages: Range<Page>) -> Result<(), MemoryError> {
        self.each_stripe(pages, "clearing write protection", |uffd, addresses| {
            uffd.clear_write_protect(addresses, Wake::Yes)
        })
    }

    /// Modified -> Shared: makes the pages read-only. Their frames can then be sent.
    ///
    /// # Errors
    /// For pages outside of the region, and when memory for page tables is short.
    pub fn protect(&self, pages: Range<Page>) -> Result<(), MemoryError> {
        self.each_stripe(pages, "write protection", Userfaultfd::write_protect)
    }

    /// Any -> Invalid: no access to the pages goes through until they are installed again. Their
    /// frames stay.
    ///
    /// # Errors
    /// For pages outside of the region.
    pub fn revoke(&self, pages: Range<Page>) -> Result<(), MemoryError> {
        let pages = self.check(&pages)?;
        if pages.is_empty() {
            return Ok(());
        }
        self.view
            .advise(Self::offsets(pages.clone()), libc::MADV_DONTNEED)
            .map_err(self.failed("madvise", &pages))
    }

    /// Any -> lost: every access to the pages, waiting ones included, ends in `SIGBUS` (see
    /// [`super::sigbus`]), and system calls on them in `EFAULT`.
    ///
    /// Takes 8 bytes of page table a page: for a large region, revoke it whole and poison each page
    /// as it is touched. Undone by [`RegionMemory::revoke`] and [`RegionMemory::install`].
    ///
    /// # Errors
    /// For pages outside of the region, and when memory for page tables is short.
    pub fn poison(&self, pages: Range<Page>) -> Result<(), MemoryError> {
        self.revoke(pages.clone())?;
        // The kernel keeps the mark of write protection over the revocation, and poisons no page
        // that has one. Clearing it can't let a write through: nothing is mapped.
        self.each_stripe(pages.clone(), "clearing write protection", |uffd, addresses| {
            uffd.clear_write_protect(addresses, Wake::No)
        })?;
        for (uffd, part) in self.by_stripe(self.check(&pages)?) {
            let mut at = part.start;
            while at < part.end {
                let rest = at..part.end;
                let next = at..at + 1;
                match uffd
                    .poison(self.addresses(rest.clone()))
                    .map_err(self.failed("UFFDIO_POISON", &rest))?
                {
                    Progress::Done(bytes) => at += Self::whole_pages(bytes),
                    Progress::Exists | Progress::NoFrame => {
                        // Nothing maps a page but this worker, so what exists is the poison.
                        uffd.wake(self.addresses(next.clone()))
                            .map_err(self.failed("UFFDIO_WAKE", &next))?;
                        at += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Has the threads that wait on the pages try again, without a change to the pages.
    ///
    /// # Errors
    /// For pages outside of the region.
    pub fn wake(&self, pages: Range<Page>) -> Result<(), MemoryError> {
        self.each_stripe(pages, "UFFDIO_WAKE", Userfaultfd::wake)
    }

    /// Gives the frames of revoked pages back to the kernel; when next used, they are zero.
    ///
    /// # Errors
    /// For pages outside of the region.
    pub fn punch(&self, pages: Range<Page>) -> Result<(), MemoryError> {
        let pages = self.check(&pages)?;
        if pages.is_empty() {
            return Ok(());
        }
        let offsets = Self::offsets(pages.clone());
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        loop {
            // SAFETY: the descriptor is open. The call zeroes frames that, being revoked, nobody
            // reads but the worker that makes it.
            let status = unsafe {
                libc::fallocate(
                    self.memfd.as_raw_fd(),
                    mode,
                    offsets.start as libc::off_t,
                    offsets.len() as libc::off_t,
                )
            };
            if status == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(self.failed("fallocate", &pages)(error));
            }
        }
    }

    fn each_stripe(
        &self,
        pages: Range<Page>,
        call: &'static str,
        act: impl Fn(&Userfaultfd, Range<usize>) -> io::Result<()>,
    ) -> Result<(), MemoryError> {
        for (uffd, part) in self.by_stripe(self.check(&pages)?) {
            act(uffd, self.addresses(part.clone())).map_err(self.failed(call, &part))?;
        }
        Ok(())
    }

    /// Pages in what the kernel says it has done: at least one, so that loops over it end.
    fn whole_pages(bytes: usize) -> u64 {
        (bytes / crate::types::PAGE_SIZE).max(1) as u64
    }
}
