//! Who lies where while a kernel is loaded, so that nothing overwrites anything.

use std::ops::Range;

use super::error::Fault;
use super::layout::{Layout, MapKind};

/// End of the real-mode vectors and the BIOS data area.
const BIOS_DATA_END: u64 = 0x500;

/// What is taken of the guest's usable RAM.
pub(super) struct Claims {
    ram: Vec<Range<u64>>,
    taken: Vec<(Range<u64>, String)>,
    low_end: u64,
}

impl Claims {
    pub(super) fn new(layout: &Layout) -> Self {
        let map = layout.map();
        let ram = map.iter().filter(|entry| entry.kind == MapKind::Ram);
        Self {
            ram: ram.map(|entry| entry.start..entry.end()).collect(),
            taken: vec![(0..BIOS_DATA_END, "the BIOS data area".to_owned())],
            low_end: layout.low_end(),
        }
    }

    /// Takes `len` bytes at `start`; nothing if `len` is zero.
    pub(super) fn take(&mut self, start: u64, len: u64, what: &str) -> Result<(), Fault> {
        if len == 0 {
            return Ok(());
        }
        let end = start.checked_add(len);
        let inside = |ram: &Range<u64>| ram.start <= start && end.is_some_and(|end| end <= ram.end);
        let Some(end) = end.filter(|_| self.ram.iter().any(inside)) else {
            return Err(Fault::OutsideRam {
                what: what.to_owned(),
                start,
                end: start.saturating_add(len),
                low_end: self.low_end,
            });
        };
        let place = start..end;
        if let Some((other_place, other)) = self.in_the_way(&place) {
            return Err(Fault::Overlap {
                what: what.to_owned(),
                place,
                other: other.clone(),
                other_place: other_place.clone(),
            });
        }
        self.taken.push((place, what.to_owned()));
        Ok(())
    }

    /// Takes the lowest free place in `within`. `align` is a power of two.
    pub(super) fn take_lowest(
        &mut self,
        within: Range<u64>,
        len: u64,
        align: u64,
        what: &str,
    ) -> Result<u64, Fault> {
        let fits = |ram: &Range<u64>| {
            let mut start = ram.start.max(within.start).checked_next_multiple_of(align)?;
            loop {
                let end = start.checked_add(len).filter(|&end| end <= ram.end.min(within.end))?;
                match self.in_the_way(&(start..end)) {
                    None => return Some(start),
                    Some((other, _)) => start = other.end.checked_next_multiple_of(align)?,
                }
            }
        };
        let start = self.ram.iter().find_map(fits);
        self.take_found(start, within.clone(), len, what)
    }

    /// Takes the highest free place in `within`. `align` is a power of two.
    pub(super) fn take_highest(
        &mut self,
        within: Range<u64>,
        len: u64,
        align: u64,
        what: &str,
    ) -> Result<u64, Fault> {
        let fits = |ram: &Range<u64>| {
            let mut end = ram.end.min(within.end);
            loop {
                let start = end.checked_sub(len)? / align * align;
                if start < ram.start.max(within.start) {
                    return None;
                }
                match self.in_the_way(&(start..start + len)) {
                    None => return Some(start),
                    Some((other, _)) => end = other.start,
                }
            }
        };
        let start = self.ram.iter().rev().find_map(fits);
        self.take_found(start, within.clone(), len, what)
    }

    /// First address after everything taken.
    pub(super) fn end(&self) -> u64 {
        self.taken.iter().map(|(place, _)| place.end).max().unwrap_or(0)
    }

    fn take_found(
        &mut self,
        start: Option<u64>,
        within: Range<u64>,
        len: u64,
        what: &str,
    ) -> Result<u64, Fault> {
        let no_room = || Fault::NoRoom { what: what.to_owned(), len, within };
        let start = start.ok_or_else(no_room)?;
        self.take(start, len, what)?;
        Ok(start)
    }

    fn in_the_way(&self, place: &Range<u64>) -> Option<&(Range<u64>, String)> {
        self.taken.iter().find(|(other, _)| other.start < place.end && place.start < other.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims::new(&Layout::new(16 << 20).unwrap())
    }

    #[test]
    fn the_lowest_place_goes_around_what_is_taken_and_around_the_hole() {
        let mut claims = claims();
        claims.take(0x1000, 0x1001, "a").unwrap();
        assert_eq!(claims.take_lowest(0x1000..1 << 32, 0x1000, 0x1000, "b").unwrap(), 0x3000);
        assert_eq!(claims.take_lowest(0..1 << 32, 0x9_0000, 0x1000, "c").unwrap(), 0x4000);
        assert_eq!(claims.take_lowest(0..1 << 32, 0x9_0000, 0x1000, "d").unwrap(), 0x10_0000);
        assert_eq!(claims.end(), 0x19_0000);
    }

    #[test]
    fn the_highest_place_goes_below_what_is_taken() {
        let mut claims = claims();
        claims.take((16 << 20) - 1, 1, "a").unwrap();
        let place = claims.take_highest(0..1 << 32, 0x1000, 0x1000, "b").unwrap();
        assert_eq!(place, (16 << 20) - 0x2000);
        let place = claims.take_highest(0..0x20_0001, 0x1000, 0x1000, "c").unwrap();
        assert_eq!(place, 0x1f_f000);
        assert!(matches!(
            claims.take_highest(0..1 << 32, 16 << 20, 1, "d"),
            Err(Fault::NoRoom { .. })
        ));
    }

    #[test]
    fn places_without_ram_and_taken_places_are_refused() {
        let mut claims = claims();
        for (start, len) in [(0x9_fc00, 1), (0x9_f000, 0xd00), (16 << 20, 1), (u64::MAX, 2)] {
            assert!(matches!(claims.take(start, len, "a"), Err(Fault::OutsideRam { .. })));
        }
        assert!(matches!(claims.take(0x4ff, 2, "a"), Err(Fault::Overlap { .. })));
        claims.take(0x500, 0x100, "a").unwrap();
        assert!(matches!(claims.take(0x5ff, 1, "b"), Err(Fault::Overlap { .. })));
        claims.take(0x5ff, 0, "nothing").unwrap();
    }
}
