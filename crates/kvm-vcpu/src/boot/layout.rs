//! Where guest memory lies: what backs which guest-physical addresses, and what the guest is told.
//!
//! ```text
//!           0 ..     9_fc00  RAM
//!      9_fc00 ..    10_0000  reserved: the EBDA, the adapter window, the tables of ACPI at e_0000
//!     10_0000 ..    3 GiB    RAM
//!       3 GiB ..    4 GiB    no RAM: PCI, a program's own devices (from d000_0000), ECAM, IOAPIC, local
//!                            APICs, the private pages of the VM
//!       4 GiB ..             the RAM that is left
//! ```
//!
//! Memory below 1 MiB is backed without a gap, so that one mapping serves all of it.

/// First address after conventional memory; the EBDA's place in a PC.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Where the tables of ACPI begin; guests search for the RSDP from here to [`HIGH_MEMORY_START`].
pub const ACPI_START: u64 = 0xe_0000;
/// First address of extended memory.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// First address without RAM below 4 GiB.
pub const HOLE_START: u64 = 3 << 30;
/// First address after the hole.
pub const HOLE_END: u64 = 4 << 30;
/// Where PCI functions have their memory.
pub const PCI_MEMORY_START: u64 = HOLE_START;
/// Length of that, in bytes.
pub const PCI_MEMORY_LEN: u64 = 256 << 20;
/// Configuration space of PCI Express: 256 buses of 1 MiB.
pub const ECAM_START: u64 = 0xe000_0000;
/// Length of the configuration space, in bytes.
pub const ECAM_LEN: u64 = 256 << 20;
/// The registers of the IOAPIC.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// The registers of the local APICs.
pub const LAPIC_ADDRESS: u32 = 0xfee0_0000;

/// Linux with four-level page tables uses no more physical addresses than this.
const ADDRESS_MAX: u64 = 1 << 46;
const PAGE: u64 = 4096;

/// A piece of guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RamRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where its bytes are in the memory that backs the guest.
    pub offset: u64,
}

/// What an entry of the memory map says of its addresses. The values are those of E820, which PVH and
/// Multiboot share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum MapKind {
    /// For the guest to use.
    Ram = 1,
    /// Not RAM, or RAM that something else uses.
    Reserved = 2,
}

/// An entry of the memory map that the guest is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MapEntry {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What is there.
    pub kind: MapKind,
}

impl MapEntry {
    /// First address after it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// RAM of a size that cannot be laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("guest RAM of {bytes} bytes: it must be a multiple of 4096, from 2 MiB to 64 TiB - 1 GiB")]
pub struct LayoutError {
    /// What was asked for.
    pub bytes: u64,
}

/// The guest-physical address space of a machine with so much RAM.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    ram: u64,
}

impl Layout {
    /// Lays out `bytes` of RAM.
    ///
    /// # Errors
    /// If `bytes` is no multiple of 4096, less than 2 MiB, or so much that addresses exceed 46 bits.
    pub fn new(bytes: u64) -> Result<Self, LayoutError> {
        let sizes = 2 << 20..=ADDRESS_MAX - (HOLE_END - HOLE_START);
        if !bytes.is_multiple_of(PAGE) || !sizes.contains(&bytes) {
            return Err(LayoutError { bytes });
        }
        Ok(Self { ram: bytes })
    }

    /// Bytes of RAM.
    pub fn ram(&self) -> u64 {
        self.ram
    }

    /// First address after the RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.ram.min(HOLE_START)
    }

    /// The pieces of RAM, ascending: each is to be one memory slot.
    pub fn ranges(&self) -> Vec<RamRange> {
        self.ranges_of(0, self.ram)
    }

    /// The guest-physical addresses of `len` bytes from `offset` of the backing memory, ascending; of
    /// those that exist. A node's share of the memory becomes its part of the SRAT with it.
    pub fn ranges_of(&self, offset: u64, len: u64) -> Vec<RamRange> {
        let end = offset.saturating_add(len).min(self.ram);
        let pieces = [(0, self.low_end(), 0), (HOLE_START, self.ram, HOLE_END - HOLE_START)];
        let piece = |(from, to, shift): (u64, u64, u64)| {
            let (from, to) = (from.max(offset), to.min(end));
            (from < to).then(|| RamRange { start: from + shift, len: to - from, offset: from })
        };
        pieces.into_iter().filter_map(piece).collect()
    }

    /// The memory map for the guest, ascending and without overlaps.
    pub fn map(&self) -> Vec<MapEntry> {
        use MapKind::{Ram, Reserved};
        let mut spans = vec![
            (0, LOW_MEMORY_END, Ram),
            (LOW_MEMORY_END, 0xa_0000, Reserved),
            (ACPI_START, HIGH_MEMORY_START, Reserved),
            (HIGH_MEMORY_START, self.low_end(), Ram),
            // Linux uses ECAM only where the memory map or a device reserves it.
            (ECAM_START, ECAM_START + ECAM_LEN, Reserved),
            // Interrupt controllers and the private pages: no PCI device may be put here.
            (u64::from(IOAPIC_ADDRESS), HOLE_END, Reserved),
        ];
        if self.ram > HOLE_START {
            spans.push((HOLE_END, self.ram + (HOLE_END - HOLE_START), Ram));
        }
        spans
            .into_iter()
            .map(|(start, end, kind)| MapEntry { start, len: end - start, kind })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_beyond_the_hole_continues_at_four_gib() {
        let layout = Layout::new(5 << 30).unwrap();
        assert_eq!(
            layout.ranges(),
            [
                RamRange { start: 0, len: 3 << 30, offset: 0 },
                RamRange { start: 4 << 30, len: 2 << 30, offset: 3 << 30 },
            ]
        );
        assert_eq!(Layout::new(3 << 30).unwrap().ranges().len(), 1);
    }

    #[test]
    fn a_share_that_spans_the_hole_has_two_ranges() {
        let layout = Layout::new(4 << 30).unwrap();
        assert_eq!(
            layout.ranges_of(2 << 30, 2 << 30),
            [
                RamRange { start: 2 << 30, len: 1 << 30, offset: 2 << 30 },
                RamRange { start: 4 << 30, len: 1 << 30, offset: 3 << 30 },
            ]
        );
        assert_eq!(layout.ranges_of(4 << 30, 4096), []);
        assert_eq!(layout.ranges_of(0, u64::MAX), layout.ranges());
    }

    #[test]
    fn the_map_is_ordered_and_its_ram_is_backed() {
        for bytes in [2 << 20, 160 << 20, 3 << 30, (3 << 30) + 4096, 70 << 30] {
            let layout = Layout::new(bytes).unwrap();
            let map = layout.map();
            assert!(map.windows(2).all(|two| two[0].end() <= two[1].start), "{map:x?}");
            assert!(map.iter().all(|entry| entry.len > 0));
            for entry in map.iter().filter(|entry| entry.kind == MapKind::Ram) {
                let backed = |range: &RamRange| {
                    range.start <= entry.start && entry.end() <= range.start + range.len
                };
                assert!(layout.ranges().iter().any(backed), "{entry:x?}");
            }
            let ram: u64 = map.iter().filter(|e| e.kind == MapKind::Ram).map(|e| e.len).sum();
            assert_eq!(ram, bytes - (HIGH_MEMORY_START - LOW_MEMORY_END));
        }
    }

    #[test]
    fn odd_sizes_are_refused() {
        for bytes in [0, 4096, (2 << 20) + 1, u64::MAX - 4095] {
            assert_eq!(Layout::new(bytes), Err(LayoutError { bytes }));
        }
    }
}
