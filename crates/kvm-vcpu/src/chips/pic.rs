//! The two 8259 interrupt controllers (Intel 8259A, and the edge/level registers of the 82371), as
//! far as kernels look for them.
//!
//! They are there and never interrupt: every device is wired to the IOAPIC. Kernels find out by
//! writing a mask and reading it back, as Linux's `probe_8259A`; it reads back, so Linux counts 16
//! legacy interrupts, masks them all, and goes on to the IOAPIC. (With hardware-reduced ACPI tables
//! it does not look at all.) Initialisation is accepted in its full sequence; requests in service
//! and pending read 0, and a poll finds none.

use std::sync::{Mutex, PoisonError};

use crate::bus::{Data, Simple};

/// Offset at which ports 0xa0 and 0xa1 are to be claimed; 0x20 and 0x21 are at 0.
pub const PIC_SLAVE_OFFSET: u64 = 2;
/// Offset at which ports 0x4d0 and 0x4d1 are to be claimed.
pub const ELCR_OFFSET: u64 = 4;

/// Interrupts 0, 1, 2, 8 and 13 are edges always.
const LEVEL_ALLOWED: [u8; 2] = [0xf8, 0xde];

const ICW1: u8 = 1 << 4;
const ICW1_NEEDS_ICW4: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;

/// Both chips and their edge/level registers.
#[derive(Debug, Default)]
pub struct Pic {
    state: Mutex<[Chip; 2]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Chip {
    mask: u8,
    level: u8,
    /// Initialisation words that are still to come on the data port.
    init_left: u8,
}

impl Chip {
    fn command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            self.mask = 0;
            self.init_left =
                1 + u8::from(value & ICW1_SINGLE == 0) + u8::from(value & ICW1_NEEDS_ICW4 != 0);
        }
        // OCW2 ends interrupts that never were; OCW3 chooses between two registers that read 0.
    }

    fn data(&mut self, value: u8) {
        match self.init_left {
            0 => self.mask = value,
            _ => self.init_left -= 1,
        }
    }
}

impl Pic {
    /// Both chips after power-on, with nothing masked.
    pub fn new() -> Self {
        Self::default()
    }

    fn read_byte(&self, offset: u64) -> u8 {
        let chips = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match offset {
            1 => chips[0].mask,
            3 => chips[1].mask,
            4 => chips[0].level,
            5 => chips[1].level,
            _ => 0,
        }
    }

    fn write_byte(&self, offset: u64, value: u8) {
        let mut chips = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match offset {
            0 => chips[0].command(value),
            1 => chips[0].data(value),
            2 => chips[1].command(value),
            3 => chips[1].data(value),
            4 => chips[0].level = value & LEVEL_ALLOWED[0],
            5 => chips[1].level = value & LEVEL_ALLOWED[1],
            _ => {}
        }
    }
}

impl Simple for Pic {
    fn name(&self) -> &str {
        "pic"
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        Data::gather(offset, len, |at| self.read_byte(at))
    }

    fn write(&self, offset: u64, data: Data) {
        data.scatter(offset, |at, byte| self.write_byte(at, byte));
    }

    fn reset(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(pic: &Pic, offset: u64, value: u64) {
        pic.write(offset, Data::from_u64(value, 1));
    }

    #[test]
    fn linux_finds_it_by_its_mask() {
        let pic = Pic::new();
        out(&pic, 3, 0xff);
        out(&pic, 1, 0xfb);
        assert_eq!((pic.read(1, 1).to_u64(), pic.read(3, 1).to_u64()), (0xfb, 0xff));
    }

    #[test]
    fn initialisation_words_do_not_land_in_the_mask() {
        // Words that follow ICW1: ICW2; ICW3 unless single; ICW4 if asked for.
        for (icw1, words) in [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)] {
            let pic = Pic::new();
            out(&pic, 1, 0xaa);
            out(&pic, 0, icw1);
            assert_eq!(pic.read(1, 1).to_u64(), 0, "ICW1 clears the mask");
            for _ in 0..words {
                out(&pic, 1, 0x55);
                assert_eq!(pic.read(1, 1).to_u64(), 0);
            }
            out(&pic, 1, 0xfe);
            assert_eq!(pic.read(1, 1).to_u64(), 0xfe);
        }
    }

    #[test]
    fn level_registers_keep_what_may_be_level() {
        let pic = Pic::new();
        pic.write(ELCR_OFFSET, Data::from_u64(0xffff, 2));
        assert_eq!(pic.read(ELCR_OFFSET, 2).to_u64(), 0xdef8);
    }

    #[test]
    fn nothing_is_ever_pending() {
        let pic = Pic::new();
        for ocw3 in [0x0a, 0x0b, 0x0c] {
            out(&pic, 0, ocw3);
            assert_eq!(pic.read(0, 1).to_u64(), 0);
        }
    }
}
