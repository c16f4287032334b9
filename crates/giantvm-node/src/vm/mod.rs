//! A virtual machine over the nodes of a cluster.
//!
//! [`Vm`] is one node's part. Its memory is a region; its vCPUs and stand-ins are a
//! [`Machine`](kvm_vcpu::vm::Machine). What leaves that machine goes, on connections of its own,
//! to the node that it is for:
//!
//! | what | from | to |
//! |---|---|---|
//! | interrupts | the thread of a stand-in | the vCPU's node, which injects them |
//! | accesses to devices | the vCPU's thread, which waits | the device's home |
//! | lines, ends of level-triggered interrupts | a device's home, the vCPU's thread | the IOAPIC's home |
//! | routes of interrupts | the IOAPIC's home | all; in force everywhere before the guest goes on |
//! | time | node 0, and between all hosts | the first node of each other host, which keeps its clock by it |
//! | orders: run, pause, reset, end | node 0 | all |
//!
//! Threads: `gvm-vm-hear` takes what comes and does what takes no time; `gvm-vm-life` makes and ends
//! machines; whoever sends does so itself ([`post`]). None takes Python's lock: devices in Python are
//! served by a thread of the program, from a [`DeviceQueue`].

mod access;
mod api;
mod ask;
mod clock;
mod console;
mod core;
mod exchange;
mod hub;
mod lifecycle;
mod maker;
mod message;
mod platform;
mod post;
mod profile;
mod queue;
mod ram;
mod spec;
mod tables;
mod virtio;

pub use api::{BusClaim, ConsoleSink, Interrupts, Vm, VmError, VmOptions, VmReport};
pub use clock::ClockReport;
pub use console::ConsoleOutput;
pub use kvm_vcpu::virtio::MacAddress;
pub use lifecycle::VmState;
pub use message::Outcome;
pub use queue::{DeviceQueue, DeviceRequest};
pub use spec::{DeviceSpec, ImageSpec, SpecError, TscSource, VcpuSpec, VmSpec};
pub use virtio::{VirtioKind, VirtioSpec};
