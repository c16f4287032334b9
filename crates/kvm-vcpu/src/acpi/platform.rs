//! What the tables are made of.

use std::collections::BTreeSet;

/// A vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vcpu {
    /// Its APIC id, unique.
    pub apic_id: u32,
    /// The node on which it runs: its proximity domain.
    pub node: u32,
}

/// A range of RAM and the node whose share it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its proximity domain.
    pub node: u32,
}

/// An interrupt of the ISA bus that is not wired to the input of its number, or not edge-triggered
/// and active-high.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IrqOverride {
    /// Number on the ISA bus.
    pub irq: u8,
    /// The global system interrupt.
    pub gsi: u32,
    /// Polarity and trigger mode, as in ACPI 6.5, table 5.26: 0 as the bus has it, 0xd level and
    /// active-high, 0xf level and active-low.
    pub flags: u16,
}

/// The I/O APIC. Linux starts further CPUs only where there is one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Address of its registers.
    pub address: u32,
    /// The global system interrupt of its first input.
    pub gsi_base: u32,
    /// Interrupts of the ISA bus that are not what they are by default.
    pub overrides: Vec<IrqOverride>,
}

/// A 16550 with eight ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SerialPort {
    /// The first port: 0x3f8 for COM1.
    pub port: u16,
    /// Its global system interrupt, edge-triggered and active-high.
    pub irq: u32,
}

/// Configuration space of PCI Express, one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ecam {
    /// Address of bus 0's configuration space.
    pub base: u64,
    /// First bus.
    pub bus_first: u8,
    /// Last bus.
    pub bus_last: u8,
}

/// A PCI host bridge with one root bus, behind which nothing moves: what the guest finds configured is
/// to stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciHost {
    /// Configuration space; its first bus is the root bus.
    pub ecam: Ecam,
    /// First address of the functions' memory.
    pub memory_start: u32,
    /// Bytes of it.
    pub memory_len: u32,
}

/// A port, and the value that has the effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// The port, of one byte.
    pub port: u16,
    /// What to write.
    pub value: u8,
}

/// The sleep registers of hardware-reduced ACPI, a byte each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sleep {
    /// A write of [`SLEEP_CONTROL_S5`](super::SLEEP_CONTROL_S5) powers off.
    pub control_port: u16,
    /// Reads as [`SLEEP_STATUS_WAKE`](super::SLEEP_STATUS_WAKE) after a wake-up.
    pub status_port: u16,
}

/// A machine, as far as ACPI describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Platform {
    /// The vCPUs, the boot CPU first: Linux takes the first for it.
    pub vcpus: Vec<Vcpu>,
    /// RAM by node. Linux drops the table if it covers less than the memory map.
    pub memory: Vec<MemoryRange>,
    /// Distance between two nodes, where 10 is the distance of a node to itself, 11 to 254. From 31
    /// on, Linux balances load between nodes rarely, and wakes no task on another node.
    pub node_distance: u8,
    /// The I/O APIC, if there is one.
    pub ioapic: Option<IoApic>,
    /// Whether there are two 8259s beside it.
    pub pic: bool,
    /// The console, if there is one.
    pub serial: Option<SerialPort>,
    /// Whether there is an 8042 at ports 0x60 and 0x64.
    pub i8042: bool,
    /// Whether there is a clock of CMOS at ports 0x70 and 0x71.
    pub rtc: bool,
    /// Port of the 32-bit ACPI timer, if there is one.
    pub pm_timer_port: Option<u16>,
    /// The PCI host bridge, if there is one.
    pub pci: Option<PciHost>,
    /// How the guest resets the machine.
    pub reset: Register,
    /// How the guest powers off.
    pub sleep: Sleep,
    /// Further devices: terms of AML, to stand within `\_SB`.
    pub devices: Vec<u8>,
}

/// A machine that ACPI cannot describe.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AcpiError {
    /// Nothing to run on.
    #[error("a machine without vCPUs has no ACPI tables")]
    NoVcpus,
    /// An id that means all, or more than one vCPU.
    #[error("APIC id {apic_id:#x} is reserved or given to two vCPUs")]
    ApicId {
        /// The id.
        apic_id: u32,
    },
    /// A distance that means "the same node" or "unreachable".
    #[error("node distance {distance} is outside 11..=254")]
    Distance {
        /// The distance.
        distance: u8,
    },
    /// Node numbers that are not 0, 1, 2 and so on, of which the distances would be a sparse matrix.
    #[error("node {node} has vCPUs or memory, but {nodes} nodes in all must be numbered from 0")]
    Nodes {
        /// The highest number.
        node: u32,
        /// How many different numbers there are.
        nodes: usize,
    },
    /// Too many vCPUs or nodes, or too much AML.
    #[error(
        "the ACPI tables take {len} bytes, more than {len_max}: fewer vCPUs or devices are needed"
    )]
    TooLarge {
        /// Bytes needed.
        len: u64,
        /// Bytes possible.
        len_max: u64,
    },
}

impl Platform {
    /// How many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.node_numbers().len()
    }

    fn node_numbers(&self) -> BTreeSet<u32> {
        let memory = self.memory.iter().map(|range| range.node);
        self.vcpus.iter().map(|vcpu| vcpu.node).chain(memory).collect()
    }

    pub(super) fn check(&self) -> Result<(), AcpiError> {
        if self.vcpus.is_empty() {
            return Err(AcpiError::NoVcpus);
        }
        let mut ids = BTreeSet::new();
        for &Vcpu { apic_id, .. } in &self.vcpus {
            // All ones addresses all processors.
            if apic_id == u32::MAX || !ids.insert(apic_id) {
                return Err(AcpiError::ApicId { apic_id });
            }
        }
        if !(11..=254).contains(&self.node_distance) {
            return Err(AcpiError::Distance { distance: self.node_distance });
        }
        let numbers = self.node_numbers();
        match numbers.last() {
            Some(&node) if node as usize != numbers.len() - 1 => {
                Err(AcpiError::Nodes { node, nodes: numbers.len() })
            }
            _ => Ok(()),
        }
    }
}
