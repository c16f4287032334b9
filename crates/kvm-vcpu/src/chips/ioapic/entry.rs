//! One entry of the redirection table (82093AA 3.2.4).

use crate::chips::Message;
use crate::chips::message::Parts;

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const LOGICAL: u64 = 1 << 11;
/// Delivery status and remote IRR.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;
/// What a guest may set: the low 17 bits, and the destination with KVM's 7 more bits (49 to 55).
/// Bit 48, the format bit of interrupt remapping, is not among them: there is none.
const WRITABLE: u64 = (0x1_ffff | 0xfffe << 48) & !READ_ONLY;

const MODE_FIXED: u8 = 0;
const MODE_LOWEST: u8 = 1;
const MODE_EXTINT: u8 = 7;

/// The entry's 64 bits, with accessors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry(u64);

impl Default for Entry {
    fn default() -> Self {
        Self(MASKED)
    }
}

impl Entry {
    pub(super) fn half(self, high: bool) -> u32 {
        (self.0 >> if high { 32 } else { 0 }) as u32
    }

    pub(super) fn set_half(&mut self, high: bool, value: u32) {
        let (value, kept) = match high {
            true => (u64::from(value) << 32, self.0 & 0xffff_ffff),
            false => (u64::from(value), self.0 & !0xffff_ffff),
        };
        self.0 = (value | kept) & WRITABLE | self.0 & READ_ONLY;
        // Linux ends an interrupt that no EOI reached by switching the pin to edge and back.
        if !self.is_level() {
            self.set_remote_irr(false);
        }
    }

    pub(super) fn vector(self) -> u8 {
        self.0 as u8
    }

    pub(super) fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    /// Whether interrupts are level-triggered, which only fixed and lowest-priority ones can be.
    pub(super) fn is_level(self) -> bool {
        self.0 & LEVEL != 0 && matches!(self.delivery_mode(), MODE_FIXED | MODE_LOWEST)
    }

    pub(super) fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    pub(super) fn set_remote_irr(&mut self, on: bool) {
        self.0 = self.0 & !REMOTE_IRR | if on { REMOTE_IRR } else { 0 };
    }

    /// What the pin sends; nothing for ExtINT.
    pub(super) fn message(self) -> Option<Message> {
        let delivery_mode = self.delivery_mode();
        if delivery_mode == MODE_EXTINT {
            return None;
        }
        Some(Message::from(Parts {
            vector: self.vector(),
            delivery_mode,
            logical: self.0 & LOGICAL != 0,
            destination: (self.0 >> 56) as u16 | ((self.0 >> 49) as u16 & 0x7f) << 8,
            level: self.is_level(),
        }))
    }

    fn delivery_mode(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }
}
