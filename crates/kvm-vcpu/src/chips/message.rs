//! Interrupts as messages: a write to 0xfeexxxxx (Intel SDM 3A 11.11).

/// Where message-signalled interrupts go: the top 12 bits of a 32-bit address.
const BASE: u64 = 0xfee0_0000;

/// One interrupt on its way to the local APICs, in the format that guests write into MSI
/// capabilities: the destination's low 8 bits in address bits 12 to 19, and, with KVM's
/// `MSI_EXT_DEST_ID`, 7 more in bits 5 to 11.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Message {
    /// Address of the write.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

impl Message {
    /// The vector, which means nothing for NMI, SMI and INIT.
    pub fn vector(&self) -> u8 {
        self.data as u8
    }

    /// Whether it is level-triggered: its EOI is broadcast to the IOAPICs.
    pub fn is_level(&self) -> bool {
        self.data & DATA_LEVEL != 0
    }

    /// The destination: an APIC id, or a logical destination.
    pub fn destination(&self) -> u32 {
        let low = (self.address >> 12) as u32 & 0xff;
        let high = (self.address >> 5) as u32 & 0x7f;
        high << 8 | low
    }

    /// The APIC id and the vector, if it goes to one processor by its id: fixed or lowest priority,
    /// edge-triggered, in the format that guests write.
    pub fn single(&self) -> Option<(u32, u8)> {
        let plain = self.address & !DESTINATION_BITS == BASE && self.data & !DATA_SINGLE == 0;
        (plain && self.vector() >= 16).then(|| (self.destination(), self.vector()))
    }

    /// The same in the format of KVM (`KVM_CAP_X2APIC_API` with 32-bit ids): the destination's
    /// high bits are in the upper half of the address.
    #[must_use]
    pub fn for_kvm(self) -> Self {
        let extended = self.address & EXTENDED_DESTINATION;
        // As QEMU does: already in KVM's format, or in that of interrupt remapping.
        if extended == 0 || self.address & REMAPPABLE != 0 || self.address >> 32 != 0 {
            return self;
        }
        Self { address: self.address & !EXTENDED_DESTINATION | extended << 35, ..self }
    }
}

const DATA_LEVEL: u32 = 1 << 15;
const DATA_ASSERT: u32 = 1 << 14;
/// Of the address: the destination, and the hint that it may be lowered in priority, which changes
/// nothing for one.
const DESTINATION_BITS: u64 = 0xff << 12 | EXTENDED_DESTINATION | 1 << 3;
/// Of the data: the vector, whether the level is asserted, and lowest priority.
const DATA_SINGLE: u32 = 0xff | DATA_ASSERT | 1 << 8;
const EXTENDED_DESTINATION: u64 = 0x7f << 5;
const REMAPPABLE: u64 = 1 << 4;

/// Parts of a message, as an IOAPIC's entry has them.
pub(super) struct Parts {
    pub(super) vector: u8,
    /// 3 bits.
    pub(super) delivery_mode: u8,
    pub(super) logical: bool,
    /// 15 bits.
    pub(super) destination: u16,
    pub(super) level: bool,
}

impl From<Parts> for Message {
    fn from(parts: Parts) -> Self {
        let destination = u64::from(parts.destination);
        let address = BASE
            | (destination & 0xff) << 12
            | (destination >> 8 & 0x7f) << 5
            | u64::from(parts.logical) << 2;
        let mut data = u32::from(parts.vector) | u32::from(parts.delivery_mode & 7) << 8;
        if parts.level {
            data |= DATA_LEVEL | DATA_ASSERT;
        }
        Self { address, data }
    }
}

/// Where the interrupts of a pin (a GSI) go. Every node has the same in its KVM, so that KVM tells
/// of the EOI of a level-triggered interrupt wherever it happens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Route {
    /// Address of the message, as in [`Message::address`].
    pub address: u64,
    /// Data of the message.
    pub data: u32,
    /// Whether it is level-triggered.
    pub level: bool,
}

impl Route {
    /// The message it sends.
    pub fn message(&self) -> Message {
        Message { address: self.address, data: self.data }
    }
}

impl From<Message> for Route {
    fn from(message: Message) -> Self {
        Self { address: message.address, data: message.data, level: message.is_level() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_land_where_the_manual_has_them() {
        let parts =
            Parts { vector: 0x31, delivery_mode: 1, logical: true, destination: 0x7f, level: true };
        let message = Message::from(parts);
        assert_eq!(message, Message { address: 0xfee7_f004, data: 0xc131 });
        assert_eq!((message.vector(), message.destination()), (0x31, 0x7f));
    }

    #[test]
    fn only_what_goes_to_one_processor_is_single() {
        let single = |address, data| Message { address, data }.single();
        assert_eq!(single(0xfee0_3000, 0x41), Some((3, 0x41)));
        assert_eq!(single(0xfeeb_cf40, 0x4141), Some((0x7abc, 0x41)), "extended, asserted");
        assert_eq!(single(0xfee0_3008, 0x141), Some((3, 0x41)), "lowest priority of one");
        for (address, data, what) in [
            (0xfee0_3004, 0x41, "logical"),
            (0xfee0_3000, 0x8041, "level"),
            (0xfee0_3000, 0x441, "NMI"),
            (0xfee0_3000, 0x0f, "no vector"),
            (0xfee0_3010, 0x41, "remapped"),
            (0x1_0000_fee0_3000, 0x41, "KVM's own format"),
            (0xfec0_3000, 0x41, "no interrupt"),
        ] {
            assert_eq!(single(address, data), None, "{what}");
        }
    }

    #[test]
    fn ids_beyond_255_move_to_the_upper_half_for_kvm() {
        let parts = |destination| Parts {
            vector: 0x40,
            delivery_mode: 0,
            logical: false,
            destination,
            level: false,
        };
        let message = Message::from(parts(0x7abc));
        assert_eq!(message.address, 0xfeeb_cf40);
        assert_eq!(message.destination(), 0x7abc);
        assert_eq!(message.for_kvm().address, 0x7a00_feeb_c000);
        assert_eq!(message.for_kvm().for_kvm(), message.for_kvm(), "done once");
        let low = Message::from(parts(0xff));
        assert_eq!(low.for_kvm(), low);
    }
}
