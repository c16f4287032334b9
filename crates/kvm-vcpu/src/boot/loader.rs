//! What the loaders of all formats share: places, writes, strings.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::File;
use super::claims::Claims;
use super::elf::Elf;
use super::error::Fault;
use super::layout::Layout;

pub(super) const FOUR_GIB: u64 = 1 << 32;
pub(super) const PAGE: u64 = 4096;
/// Structures for the kernel go to the lowest free place from here: above all that a PC's BIOS uses.
pub(super) const STRUCTURES_START: u64 = 0x1000;

/// Guest memory, and what is taken of it.
pub(super) struct Loader<'m, M: ?Sized> {
    memory: &'m M,
    pub(super) claims: Claims,
}

impl<'m, M: GuestMemory + ?Sized> Loader<'m, M> {
    pub(super) fn new(memory: &'m M, layout: &Layout) -> Self {
        Self { memory, claims: Claims::new(layout) }
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|reason| Fault::Memory { address, reason })
    }

    /// Zeroes what an earlier run may have left.
    pub(super) fn zero(&self, range: Range<u64>) -> Result<(), Fault> {
        static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROES.len() as u64);
            self.write(at, &ZEROES[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    /// All segments; every place is checked before the first is written.
    pub(super) fn load_segments(&mut self, elf: &Elf<'_>) -> Result<(), Fault> {
        for (index, segment) in elf.segments.iter().enumerate() {
            self.claims.take(
                segment.start,
                segment.memory_len,
                &format!("load segment {index}"),
            )?;
        }
        for segment in &elf.segments {
            self.write(segment.start, segment.bytes)?;
            let bytes_end = segment.start + segment.bytes.len() as u64;
            self.zero(bytes_end..segment.start + segment.memory_len)?;
        }
        Ok(())
    }

    /// A file to the highest free place.
    pub(super) fn place_highest(
        &mut self,
        within: Range<u64>,
        align: u64,
        file: &File<'_>,
    ) -> Result<u64, Fault> {
        let len = file.bytes.len() as u64;
        let start = self.claims.take_highest(within, len, align, file.name)?;
        self.write(start, file.bytes)?;
        Ok(start)
    }

    /// A file to the lowest free place.
    pub(super) fn place_lowest(
        &mut self,
        within: Range<u64>,
        align: u64,
        file: &File<'_>,
    ) -> Result<u64, Fault> {
        let len = file.bytes.len() as u64;
        let start = self.claims.take_lowest(within, len, align, file.name)?;
        self.write(start, file.bytes)?;
        Ok(start)
    }
}

/// Zero-terminated strings, one after the other, whose addresses are known as they are added.
pub(super) struct Strings {
    start: u64,
    bytes: Vec<u8>,
}

impl Strings {
    pub(super) fn new(start: u64) -> Self {
        Self { start, bytes: Vec::new() }
    }

    pub(super) fn add(&mut self, text: &str) -> u64 {
        let address = self.start + self.bytes.len() as u64;
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        address
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
