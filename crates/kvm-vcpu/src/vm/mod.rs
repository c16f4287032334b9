//! The KVM machine of one node: every vCPU of the virtual machine, real or as a stand-in.
//!
//! [`Machine`] creates all vCPUs. Those placed here run the guest. Each of the others is a
//! *stand-in*: the local APIC of KVM resolves every kind of destination among them all, an interrupt
//! for a vCPU of another node lands in its stand-in, and from there leaves through [`Outside`] to
//! the node of the real one, which injects it with [`Machine::interrupt`].

mod errors;
mod gate;
mod halt;
mod kick;
mod machine;
mod outside;
mod private;
mod ram;
mod real;
mod run_page;
mod stand_in;
mod system;
mod tsc;

pub use errors::KvmError;
pub use machine::{BootState, GsiRoute, Machine, MachineConfig, Placement};
pub use outside::{Interrupt, Io, IoData, Outside, Registers, Stop, VcpuId};
pub use ram::{Ram, RamError};
pub use real::RESET_REQUEST;
pub use system::{Kvm, Limits};
pub use tsc::TscSetting;
