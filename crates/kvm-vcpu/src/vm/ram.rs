//! The memory of the guest.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::mmap::{GuestRegionMmap, MmapRegionBuilder};
use vm_memory::{GuestAddress, GuestMemoryMmap, MmapRegion};

/// Why mappings can't be a guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// A range that isn't made of pages.
    #[error("guest memory {start:#x}+{len:#x} at {host:#x} is not made of whole pages")]
    Pages {
        /// First guest address.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// Where it is mapped.
        host: usize,
    },
    /// Ranges that overlap, or are not in order.
    #[error("guest memory {first:#x?} and {second:#x?} overlap or are not in ascending order")]
    Overlap {
        /// The first range.
        first: Range<u64>,
        /// The one after it.
        second: Range<u64>,
    },
    /// A range where the machine keeps something else.
    #[error("guest memory {range:#x?} reaches into {taken:#x?}, where the machine keeps {what}")]
    Taken {
        /// The range.
        range: Range<u64>,
        /// What is taken.
        taken: Range<u64>,
        /// By what.
        what: &'static str,
    },
    /// No memory at all.
    #[error("a virtual machine needs memory")]
    Empty,
    /// The memory crate refuses.
    #[error("guest memory can't be described: {0}")]
    Refused(String),
}

/// Guest memory: ranges of guest addresses, each mapped in this process.
#[derive(Clone)]
pub struct Ram {
    pub(super) ranges: Vec<(Range<u64>, usize)>,
    memory: GuestMemoryMmap,
    _keep: Arc<dyn Any + Send + Sync>,
}

/// Where the machine itself keeps something in the guest's addresses.
pub(super) const TAKEN: [(Range<u64>, &str); 2] = [
    (0xfec0_0000..0xff00_0000, "interrupt controllers and stand-ins"),
    (0xfffb_0000..0x1_0000_0000, "pages of KVM and the reset vector"),
];

impl Ram {
    /// The ranges of guest addresses, ascending, and where each is mapped in this process.
    ///
    /// # Errors
    /// [`RamError`] for ranges that can't be.
    ///
    /// # Safety
    /// As long as `keep` lives, each range must be mapped readable and writable where it says, for
    /// its whole length, as memory that anyone may change at any time; no Rust reference may point
    /// into it.
    pub unsafe fn new(
        ranges: Vec<(Range<u64>, usize)>,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, RamError> {
        check(&ranges)?;
        let mut regions = Vec::new();
        for (range, host) in &ranges {
            let (start, len) = (range.start, range.end - range.start);
            let refused = |error: &dyn std::fmt::Display| RamError::Refused(error.to_string());
            let len = usize::try_from(len).map_err(|error| refused(&error))?;
            // SAFETY: the caller says that this range is mapped so, and for how long; the mapping
            // is not the builder's to unmap.
            let region: MmapRegion = unsafe {
                MmapRegionBuilder::new(len)
                    .with_raw_mmap_pointer(*host as *mut u8)
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_SHARED)
                    .build()
            }
            .map_err(|error| refused(&error))?;
            let region = GuestRegionMmap::new(region, GuestAddress(start));
            regions.push(region.ok_or_else(|| refused(&"a range that wraps"))?);
        }
        let memory = GuestMemoryMmap::from_regions(regions);
        let memory = memory.map_err(|error| RamError::Refused(error.to_string()))?;
        Ok(Self { ranges, memory, _keep: keep })
    }

    /// The memory, for loaders and devices: accesses go through the same mappings as the guest's.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The ranges of guest addresses, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges.iter().map(|(range, _)| range.clone())
    }

    /// Bytes in all ranges together.
    pub fn bytes(&self) -> u64 {
        self.ranges().map(|range| range.end - range.start).sum()
    }
}

fn check(ranges: &[(Range<u64>, usize)]) -> Result<(), RamError> {
    if ranges.is_empty() {
        return Err(RamError::Empty);
    }
    for (range, host) in ranges {
        let aligned = |value: u64| value.is_multiple_of(4096);
        if !aligned(range.start)
            || !aligned(range.end)
            || !aligned(*host as u64)
            || range.is_empty()
        {
            let len = range.end.saturating_sub(range.start);
            return Err(RamError::Pages { start: range.start, len, host: *host });
        }
        for (taken, what) in TAKEN {
            if range.start < taken.end && taken.start < range.end {
                return Err(RamError::Taken { range: range.clone(), taken, what });
            }
        }
    }
    for pair in ranges.windows(2) {
        if let [(first, _), (second, _)] = pair
            && first.end > second.start
        {
            return Err(RamError::Overlap { first: first.clone(), second: second.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_can_not_be_memory_are_refused() {
        assert!(matches!(check(&[]), Err(RamError::Empty)));
        assert!(matches!(check(&[(0..100, 0)]), Err(RamError::Pages { len: 100, .. })));
        assert!(matches!(check(&[(0..4096, 8)]), Err(RamError::Pages { host: 8, .. })));
        let overlap = [(0..0x3000, 0), (0x2000..0x4000, 0x10000)];
        assert!(matches!(check(&overlap), Err(RamError::Overlap { .. })));
        let hole = [(0..0xfee0_1000, 0)];
        assert!(matches!(check(&hole), Err(RamError::Taken { .. })));
        assert!(check(&[(0..0xc000_0000, 0), (1 << 32..1 << 33, 0x1000)]).is_ok());
    }
}
