//! Accesses that nobody answers: counted, and told of without flooding the log.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Access, Range, Space};

/// How many accesses nobody answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unclaimed {
    /// Reads, which found all ones.
    pub reads: u64,
    /// Writes, which were dropped.
    pub writes: u64,
    /// Where the last read was, if there was one.
    pub last_read: Option<(Space, u64)>,
    /// Where the last write was, if there was one.
    pub last_write: Option<(Space, u64)>,
}

/// The counts, for all vCPU threads.
#[derive(Debug, Default)]
pub(super) struct Counter {
    reads: Last,
    writes: Last,
}

impl Counter {
    pub(super) fn count(&self, space: Space, access: &Access) {
        let (last, what) = match access {
            Access::Read { .. } => (&self.reads, "a read"),
            Access::Write { .. } => (&self.writes, "a write"),
        };
        let count = last.count(space, access.offset());
        // The first, second, fourth, eighth...: a guest that probes for ever cannot fill a disk.
        if count.is_power_of_two() {
            let range = Range { space, start: access.offset(), len: access.len() as u64 };
            log::debug!("{what} of {range} that no device claims, number {count} of its kind");
        }
    }

    pub(super) fn get(&self) -> Unclaimed {
        let (reads, last_read) = self.reads.get();
        let (writes, last_write) = self.writes.get();
        Unclaimed { reads, writes, last_read, last_write }
    }
}

/// A count, and the last address in each space. Statistics: the fields need not agree exactly.
#[derive(Debug, Default)]
struct Last {
    count: AtomicU64,
    /// Bit 63 tells ports from memory; no processor has addresses that long.
    address: AtomicU64,
}

const PORT: u64 = 1 << 63;

impl Last {
    fn count(&self, space: Space, address: u64) -> u64 {
        let flag = if space == Space::Pio { PORT } else { 0 };
        self.address.store(address & !PORT | flag, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    fn get(&self) -> (u64, Option<(Space, u64)>) {
        let count = self.count.load(Ordering::Relaxed);
        let address = self.address.load(Ordering::Relaxed);
        let space = if address & PORT != 0 { Space::Pio } else { Space::Mmio };
        (count, (count > 0).then_some((space, address & !PORT)))
    }
}
