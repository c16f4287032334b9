//! Ranges of ports and addresses, and why one cannot be claimed.

use std::fmt;

use super::Space;

/// Number of ports of an x86 processor.
const PORTS: u64 = 0x1_0000;

/// Ports or addresses that one device answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Range {
    /// Ports or memory addresses.
    pub space: Space,
    /// The first.
    pub start: u64,
    /// How many.
    pub len: u64,
}

impl Range {
    /// `len` ports from `start`.
    pub const fn ports(start: u16, len: u16) -> Self {
        Self { space: Space::Pio, start: start as u64, len: len as u64 }
    }

    /// `len` bytes of guest-physical addresses from `start`.
    pub const fn memory(start: u64, len: u64) -> Self {
        Self { space: Space::Mmio, start, len }
    }

    /// The last port or address; `None` if there is none, or it does not exist.
    pub fn last(&self) -> Option<u64> {
        let last = self.start.checked_add(self.len.checked_sub(1)?)?;
        (self.space == Space::Mmio || last < PORTS).then_some(last)
    }

    /// Whether an access of `len` bytes at `address` lies within, all of it.
    pub fn contains(&self, address: u64, len: usize) -> bool {
        let offset = address.checked_sub(self.start);
        offset
            .and_then(|offset| self.len.checked_sub(offset))
            .is_some_and(|left| len > 0 && len as u64 <= left)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (Some(last), Some(other_last)) = (self.last(), other.last()) else { return false };
        self.space == other.space && self.start <= other_last && other.start <= last
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.space {
            Space::Pio => "ports",
            Space::Mmio => "addresses",
        };
        match self.last() {
            Some(last) => write!(f, "{kind} {:#x} to {last:#x}", self.start),
            None => write!(f, "{:#x} {kind} from {:#x}", self.len, self.start),
        }
    }
}

/// Why a range cannot be claimed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nothing in it.
    #[error("device {name} claims no address at {start:#x}: give its range a length")]
    Empty {
        /// Device that claims it.
        name: String,
        /// Where.
        start: u64,
    },
    /// It goes beyond the last port or address.
    #[error("device {name} claims {range}, beyond the end of the address space: move it down")]
    Beyond {
        /// Device that claims it.
        name: String,
        /// What it claims.
        range: Range,
    },
    /// The offsets of its registers overflow.
    #[error("device {name} claims {range} as its offsets from {first_offset:#x}: they overflow")]
    Offset {
        /// Device that claims it.
        name: String,
        /// What it claims.
        range: Range,
        /// Offset of the range's first address within the device.
        first_offset: u64,
    },
    /// Someone else has claimed a part of it.
    #[error("device {name} claims {range}, but {other} has {other_range}: move one of them")]
    Overlap {
        /// Device that claims it.
        name: String,
        /// What it claims.
        range: Range,
        /// Device that came first.
        other: String,
        /// What it has.
        other_range: Range,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_within_only_if_all_of_it_is() {
        let range = Range::ports(0x70, 2);
        assert!(range.contains(0x70, 1) && range.contains(0x70, 2) && range.contains(0x71, 1));
        assert!(!range.contains(0x6f, 1) && !range.contains(0x71, 2) && !range.contains(0x72, 1));
        assert!(!range.contains(0x70, 0), "an access of nothing is nowhere");
        let top = Range::memory(u64::MAX - 3, 4);
        assert!(top.contains(u64::MAX, 1) && !top.contains(u64::MAX, 2));
    }

    #[test]
    fn last_exists_only_within_the_space() {
        assert_eq!(Range::ports(0xffff, 1).last(), Some(0xffff));
        assert_eq!(Range::ports(0xffff, 2).last(), None);
        assert_eq!(Range::memory(u64::MAX, 1).last(), Some(u64::MAX));
        assert_eq!(Range::memory(u64::MAX, 2).last(), None);
        assert_eq!(Range::memory(5, 0).last(), None);
    }
}
