//! What leaves the virtual machine's part on this node.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::bus::{Data, Space};

/// A vCPU, by its position in the machine; also its x2APIC id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What one processor sends to another (Intel SDM vol. 3, 11.6.1), once it is known to which.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Interrupt {
    /// A vector of the interrupt table, 16 to 255.
    Fixed {
        /// The vector.
        vector: u8,
        /// Level-triggered: its end is to be reported.
        level: bool,
    },
    /// Not maskable.
    Nmi,
    /// INIT: the processor is reset and waits for a start-up.
    Init,
    /// Start-up: begins at `vector << 12` in real mode, if it waits for that.
    Startup {
        /// The vector.
        vector: u8,
    },
}

/// The data of an access to a port or address.
pub enum IoData<'a> {
    /// To be filled: one element after the other.
    Read(&'a mut [u8]),
    /// To be written: one element after the other.
    Write(&'a [u8]),
}

/// An access that no memory answers.
pub struct Io<'a> {
    /// Port or address.
    pub space: Space,
    /// The port or address, the same for all elements.
    pub address: u64,
    /// Bytes of an element: 1, 2, 4, and for addresses 8 (also 1 to 8 of any number: an access that
    /// straddles a page is cut).
    pub size: usize,
    /// The elements, `rep ins` and `rep outs` have several.
    pub data: IoData<'a>,
}

impl Io<'_> {
    /// Answers a read as nobody would: all ones.
    pub fn nobody(&mut self) {
        if let IoData::Read(data) = &mut self.data {
            data.fill(0xff);
        }
    }

    /// Runs every element through `read` or `write`.
    pub fn each(&mut self, mut read: impl FnMut(usize) -> Data, mut write: impl FnMut(Data)) {
        let size = self.size.max(1);
        match &mut self.data {
            IoData::Read(data) => {
                for element in data.chunks_mut(size) {
                    let answer = read(element.len());
                    let len = answer.len().min(element.len());
                    element[..len].copy_from_slice(&answer.bytes()[..len]);
                }
            }
            IoData::Write(data) => data.chunks(size).for_each(|element| write(Data::new(element))),
        }
    }
}

/// The registers of a vCPU that stopped, for people.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Registers {
    /// General registers.
    pub regs: kvm_regs,
    /// Segments and control registers.
    pub sregs: kvm_sregs,
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (r, s) = (&self.regs, &self.sregs);
        writeln!(
            f,
            "rip {:#018x} rsp {:#018x} rflags {:#x} cs {:#x} ss {:#x}",
            r.rip, r.rsp, r.rflags, s.cs.selector, s.ss.selector
        )?;
        writeln!(
            f,
            "rax {:#018x} rbx {:#018x} rcx {:#018x} rdx {:#018x}",
            r.rax, r.rbx, r.rcx, r.rdx
        )?;
        writeln!(
            f,
            "rsi {:#018x} rdi {:#018x} rbp {:#018x} r8  {:#018x}",
            r.rsi, r.rdi, r.rbp, r.r8
        )?;
        writeln!(
            f,
            "r9  {:#018x} r10 {:#018x} r11 {:#018x} r12 {:#018x}",
            r.r9, r.r10, r.r11, r.r12
        )?;
        writeln!(f, "r13 {:#018x} r14 {:#018x} r15 {:#018x}", r.r13, r.r14, r.r15)?;
        write!(
            f,
            "cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} gdt {:#x}+{:#x} idt {:#x}+{:#x}",
            s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit
        )
    }
}

/// Why the guest can't go on. The vCPU that reports it has stopped; the others have not yet.
#[derive(Clone, PartialEq, Debug)]
pub enum Stop {
    /// An exception while the processor could not even report a double fault.
    TripleFault(Box<Registers>),
    /// The guest switched its APIC out of x2APIC mode.
    LeftX2apic {
        /// What it wrote to IA32_APIC_BASE.
        value: u64,
    },
    /// KVM can't carry out an instruction, or failed otherwise.
    Kvm {
        /// What it said.
        reason: String,
        /// The state of the vCPU.
        registers: Box<Registers>,
    },
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault(registers) => write!(f, "triple fault\n{registers}"),
            Self::LeftX2apic { value } => write!(
                f,
                "the guest left x2APIC mode (it wrote {value:#x} to IA32_APIC_BASE), but its vCPUs \
                 on other nodes can be reached in that mode only; don't boot it with \"nox2apic\""
            ),
            Self::Kvm { reason, registers } => write!(f, "{reason}\n{registers}"),
        }
    }
}

/// The rest of the virtual machine, as the threads of its vCPUs see it.
///
/// All but [`Outside::io`] return at once, and none takes Python's lock.
pub trait Outside: Send + Sync {
    /// An interrupt for a vCPU that runs on another node, in the order in which they came. Called
    /// on the thread of its stand-in.
    fn interrupt(&self, to: VcpuId, interrupt: Interrupt);

    /// A vCPU of this node has ended a level-triggered interrupt.
    fn end_of_interrupt(&self, vcpu: VcpuId, vector: u8);

    /// Answers an access of a vCPU of this node; it waits for that long.
    fn io(&self, vcpu: VcpuId, io: Io<'_>);

    /// A vCPU of this node was asked where the guest is ([`Machine::sample`](super::Machine::sample)):
    /// its instruction pointer.
    fn sampled(&self, vcpu: VcpuId, rip: u64) {
        let _ = (vcpu, rip);
    }

    /// A vCPU of this node can't go on.
    fn stopped(&self, vcpu: VcpuId, stop: Stop);

    /// A thread of this machine can't work any more; the reason is for people.
    fn failed(&self, vcpu: VcpuId, reason: String);
}
