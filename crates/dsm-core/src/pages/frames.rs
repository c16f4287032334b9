//! The bytes of pages, through the alias.
//!
//! View and alias are the same memory. It is only ever touched by raw pointers, never by Rust
//! references, since programs and guests change it behind the compiler's back. The engine uses a
//! frame's bytes when the page isn't writable in the view: after [`RegionMemory::protect`] or
//! [`RegionMemory::revoke`], or before [`RegionMemory::install`]. Otherwise a copy may mix old and
//! new bytes; it harms nothing else.

use std::ptr::NonNull;

use xxhash_rust::xxh3::xxh3_64;

use super::memory::{MemoryError, RegionMemory};
use crate::types::{PAGE_SIZE, PAGE_WORDS, Page};

/// [`RegionMemory::fingerprint`] of a page of zeros, for pages whose frame needn't exist to be
/// known.
pub const ZERO_PAGE_FINGERPRINT: u64 = 0x93d7_6fe1_48c6_89ba;

impl RegionMemory {
    /// Address of a page's frame in the alias, 4096 bytes, for transfers straight from and to it.
    /// Frames of successive pages follow one another.
    ///
    /// It ends with this value. Reading or writing a frame that doesn't exist yet allocates it.
    ///
    /// # Errors
    /// For a page outside of the region.
    pub fn frame(&self, page: Page) -> Result<NonNull<u8>, MemoryError> {
        let end = Page(page.0.saturating_add(1));
        let pages = self.check(&(page..end))?;
        // SAFETY: `check` has found the page in the region, and the alias maps all of that.
        Ok(unsafe { self.alias.base().add(Self::offsets(pages).start) })
    }

    /// Copies a page's bytes out of its frame.
    ///
    /// # Errors
    /// For a page outside of the region.
    pub fn copy_out(&self, page: Page, bytes: &mut [u8; PAGE_SIZE]) -> Result<(), MemoryError> {
        let frame = self.frame(page)?;
        // SAFETY: a frame is PAGE_SIZE readable bytes, and `bytes` is no part of a region that
        // anyone holds a reference to.
        unsafe { frame.as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), PAGE_SIZE) };
        Ok(())
    }

    /// Copies a page's bytes into its frame, which exists from then on.
    ///
    /// # Errors
    /// For a page outside of the region.
    pub fn copy_in(&self, page: Page, bytes: &[u8; PAGE_SIZE]) -> Result<(), MemoryError> {
        let frame = self.frame(page)?;
        // SAFETY: a frame is PAGE_SIZE writable bytes, and `bytes` is no part of a region that
        // anyone holds a reference to.
        unsafe { frame.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), PAGE_SIZE) };
        Ok(())
    }

    /// Copies a page's words out of its frame, each as a whole: others may store meanwhile.
    ///
    /// # Errors
    /// For a page outside of the region.
    pub fn copy_words(&self, page: Page, words: &mut [u64; PAGE_WORDS]) -> Result<(), MemoryError> {
        let frame = self.frame(page)?.cast::<u64>();
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: a frame is PAGE_WORDS aligned words in the alias, which this value keeps mapped.
            *word = unsafe { frame.as_ptr().add(index).read_volatile() };
        }
        Ok(())
    }

    /// One word of a page's frame; 0 beyond its last.
    ///
    /// # Errors
    /// For a page outside of the region.
    pub fn word(&self, page: Page, index: u16) -> Result<u64, MemoryError> {
        let frame = self.frame(page)?.cast::<u64>();
        if usize::from(index) >= PAGE_WORDS {
            return Ok(0);
        }
        // SAFETY: as in `copy_words`, of which this is one word.
        Ok(unsafe { frame.as_ptr().add(index.into()).read_volatile() })
    }

    /// Changes one word of a page's frame; none beyond its last.
    ///
    /// # Errors
    /// For a page outside of the region.
    pub fn set_word(&self, page: Page, index: u16, word: u64) -> Result<(), MemoryError> {
        let frame = self.frame(page)?.cast::<u64>();
        if usize::from(index) < PAGE_WORDS {
            // SAFETY: as in `word`; nothing but this memory is changed.
            unsafe { frame.as_ptr().add(index.into()).write_volatile(word) };
        }
        Ok(())
    }

    /// Whether a page's frame has these words. Others may store meanwhile: then it has them, or not.
    ///
    /// # Errors
    /// For a page outside of the region.
    pub fn equals(&self, page: Page, words: &[u64; PAGE_WORDS]) -> Result<bool, MemoryError> {
        let frame = self.frame(page)?;
        // SAFETY: both are PAGE_SIZE readable bytes. The C library reads them by no Rust reference.
        let order =
            unsafe { libc::memcmp(frame.as_ptr().cast(), words.as_ptr().cast(), PAGE_SIZE) };
        Ok(order == 0)
    }

    /// A 64-bit hash (XXH3) of a page's bytes.
    ///
    /// Allocates a frame that doesn't exist yet: who knows that a page is untouched takes
    /// [`ZERO_PAGE_FINGERPRINT`].
    ///
    /// # Errors
    /// For a page outside of the region.
    pub fn fingerprint(&self, page: Page) -> Result<u64, MemoryError> {
        let mut bytes = [0; PAGE_SIZE];
        self.copy_out(page, &mut bytes)?;
        Ok(xxh3_64(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_of_zeros_is_right() {
        assert_eq!(xxh3_64(&[0; PAGE_SIZE]), ZERO_PAGE_FINGERPRINT);
    }
}
