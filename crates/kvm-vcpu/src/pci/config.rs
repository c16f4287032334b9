//! Registers of a function (PCI Local Bus 3.0, section 6.1, header type 0).

use crate::bus::Data;

/// Bytes that a function without extended capabilities has.
pub const CONFIG_BYTES: usize = 256;

/// Offsets of registers, and their bits.
pub mod register {
    /// Vendor; the device follows.
    pub const VENDOR: usize = 0x00;
    /// Device.
    pub const DEVICE: usize = 0x02;
    /// What the function may do.
    pub const COMMAND: usize = 0x04;
    /// What it is capable of.
    pub const STATUS: usize = 0x06;
    /// Revision; the class follows.
    pub const REVISION: usize = 0x08;
    /// Programming interface, subclass, class.
    pub const CLASS: usize = 0x09;
    /// Layout of the rest.
    pub const HEADER_TYPE: usize = 0x0e;
    /// The first of six base address registers.
    pub const BAR0: usize = 0x10;
    /// Vendor of the subsystem; the subsystem follows.
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    /// Subsystem.
    pub const SUBSYSTEM: usize = 0x2e;
    /// Offset of the first capability.
    pub const CAPABILITIES: usize = 0x34;
    /// A byte for the guest's own use, and the pin, 0 for none.
    pub const INTERRUPT_LINE: usize = 0x3c;

    /// Of the command register: answers in memory.
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    /// Of the command register: may access memory, and send interrupts as messages.
    pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
    /// Of the command register: does not use its pin.
    pub const COMMAND_NO_PIN: u16 = 1 << 10;
    /// Of the status register: there are capabilities.
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
}

use register::*;

/// First byte after the header.
const HEADER_BYTES: u8 = 0x40;
/// A memory range of 64 bits.
const BAR_64_BITS: u32 = 0b100;
/// Low bits of a base address register that say what it is.
const BAR_FLAGS: u32 = 0xf;

/// What a function is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// What it is.
    pub device: u16,
    /// Its revision.
    pub revision: u8,
    /// Class, subclass, programming interface.
    pub class: [u8; 3],
    /// Who made the board.
    pub subsystem_vendor: u16,
    /// What the board is.
    pub subsystem: u16,
}

/// The memory of a function: registers 0 and 1, as one of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemoryBar {
    /// Where it is.
    pub address: u64,
    /// Bytes, a power of two, 16 at least; the address is a multiple of it.
    pub len: u64,
}

/// Configuration space as it is; a clone of a new one is what it is after a reset.
#[derive(Clone)]
pub struct ConfigSpace {
    registers: [u8; CONFIG_BYTES],
    /// Bits that a guest may change.
    writable: [u8; CONFIG_BYTES],
    /// Where the next capability goes, and where its offset does.
    next: u8,
    link: usize,
    bar: Option<MemoryBar>,
}

impl ConfigSpace {
    /// A function with this identity and memory, without capabilities.
    pub fn new(identity: &Identity, bar: Option<MemoryBar>) -> Self {
        let mut space = Self {
            registers: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            next: HEADER_BYTES,
            link: CAPABILITIES,
            bar,
        };
        space.set_u16(VENDOR, identity.vendor);
        space.set_u16(DEVICE, identity.device);
        space.registers[REVISION] = identity.revision;
        let [class, subclass, interface] = identity.class;
        space.registers[CLASS..CLASS + 3].copy_from_slice(&[interface, subclass, class]);
        space.set_u16(SUBSYSTEM_VENDOR, identity.subsystem_vendor);
        space.set_u16(SUBSYSTEM, identity.subsystem);
        space.writable[INTERRUPT_LINE] = 0xff;
        let mut command = COMMAND_BUS_MASTER | COMMAND_NO_PIN;
        if let Some(MemoryBar { address, len }) = bar {
            command |= COMMAND_MEMORY;
            let registers = (address | u64::from(BAR_64_BITS)).to_le_bytes();
            space.registers[BAR0..BAR0 + 8].copy_from_slice(&registers);
            // What a guest finds after it wrote all ones is the size.
            let size_mask = !(len - 1) & !u64::from(BAR_FLAGS);
            space.writable[BAR0..BAR0 + 8].copy_from_slice(&size_mask.to_le_bytes());
        }
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        space
    }

    /// Adds a capability, given what follows its id and link, and which bits of that a guest may
    /// write; says at which offset it begins. `None` where there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let at = usize::from(self.next);
        let end = at + 2 + body.len();
        if end > CONFIG_BYTES || writable.len() > body.len() {
            return None;
        }
        self.registers[at] = id;
        self.registers[at + 2..end].copy_from_slice(body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.registers[self.link] = at as u8;
        self.link = at + 1;
        self.set_u16(STATUS, self.u16(STATUS) | STATUS_CAPABILITIES);
        // Beyond the last one, nothing fits.
        self.next = u8::try_from(end.next_multiple_of(4)).unwrap_or(u8::MAX);
        Some(at as u8)
    }

    /// Reads; what is beyond the registers is 0, which is "no extended capabilities".
    pub fn read(&self, offset: u64, len: usize) -> Data {
        let register = |at: u64| usize::try_from(at).ok().and_then(|at| self.registers.get(at));
        Data::gather(offset, len, |at| register(at).copied().unwrap_or(0))
    }

    /// Writes the bits that may be written.
    pub fn write(&mut self, offset: u64, data: Data) {
        data.scatter(offset, |at, byte| {
            let Ok(at) = usize::try_from(at) else { return };
            if let (Some(register), Some(mask)) =
                (self.registers.get_mut(at), self.writable.get(at))
            {
                *register = *register & !mask | byte & mask;
            }
        });
    }

    /// Two bytes, of registers that exist.
    pub fn u16(&self, at: usize) -> u16 {
        self.read(at as u64, 2).to_u64() as u16
    }

    /// Four bytes, of registers that exist.
    pub fn u32(&self, at: usize) -> u32 {
        self.read(at as u64, 4).to_u64() as u32
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self.registers[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// Whether the function may access memory and send messages.
    pub fn is_bus_master(&self) -> bool {
        self.u16(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Whether it answers in memory, at its place.
    pub fn answers_in_memory(&self) -> bool {
        self.u16(COMMAND) & COMMAND_MEMORY != 0 && self.is_in_place()
    }

    /// Whether its base address registers hold what they did after the reset.
    pub fn is_in_place(&self) -> bool {
        let held = self.read(BAR0 as u64, 8).to_u64() & !u64::from(BAR_FLAGS);
        self.bar.is_none_or(|bar| bar.address == held)
    }
}
