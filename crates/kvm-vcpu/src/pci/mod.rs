//! PCI: one root bus of functions, after the PCI Local Bus Specification 3.0.
//!
//! - [`ConfigSpace`]: registers of a function, and which of their bits a guest may write;
//! - [`Msix`]: message-signalled interrupts; there are no interrupt pins;
//! - [`Function`]: what answers in configuration space and in a range of memory, each a window on the
//!   bus ([`ConfigWindow`], [`MemoryWindow`]), so that every function may live on a node of its own;
//! - [`HostBridge`]: function 00:00.0, which all of this is behind;
//! - [`ConfigPorts`]: the old way to configuration space, an address port and a data port.
//!
//! The memory of a function does not move: its place is what the base address registers hold after a
//! reset, and what ACPI says to keep. A guest may write them, as it does to find out sizes; while they
//! hold anything else, nobody answers.

mod bridge;
mod config;
mod function;
mod msix;
mod ports;

pub use bridge::HostBridge;
pub use config::{CONFIG_BYTES, ConfigSpace, Identity, MemoryBar, register};
pub use function::{Absent, ConfigWindow, Function, MemoryWindow};
pub use msix::{MSIX_CAPABILITY, MSIX_ENTRY_BYTES, MessageSink, Msix};
pub use ports::{CONFIG_PORTS, CONFIG_PORTS_START, ConfigPorts, ConfigRoute};

use crate::boot::layout::ECAM_START;
use crate::bus::Range;

/// Devices of a bus.
pub const DEVICES: u8 = 32;
/// Bytes of a function's configuration space in ECAM (PCI Express 4.0, section 7.2.2).
pub const ECAM_FUNCTION_BYTES: u64 = 4096;
/// Functions of a device.
const FUNCTIONS: u64 = 8;
/// Bytes of one bus in ECAM.
pub const ECAM_BUS_BYTES: u64 = DEVICES as u64 * FUNCTIONS * ECAM_FUNCTION_BYTES;

/// Offset of function 0 of a device of bus 0, from the start of ECAM.
pub const fn ecam_offset(device: u8) -> u64 {
    device as u64 * FUNCTIONS * ECAM_FUNCTION_BYTES
}

/// Addresses of the configuration space of function 0 of a device of bus 0.
pub const fn config_range(device: u8) -> Range {
    Range::memory(ECAM_START + ecam_offset(device), ECAM_FUNCTION_BYTES)
}

/// The parts of bus 0's configuration space where no function is, given the devices that exist,
/// ascending.
pub fn absent_ranges(devices: &[u8]) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut at = 0;
    let ends = devices.iter().map(|&device| ecam_offset(device)).chain([ECAM_BUS_BYTES]);
    for end in ends {
        if at < end {
            ranges.push(Range::memory(ECAM_START + at, end - at));
        }
        at = end + ECAM_FUNCTION_BYTES;
    }
    ranges
}

#[cfg(test)]
mod tests;
