//! One node's part of a virtual machine whose vCPUs run on several nodes.
//!
//! - [`vm`]: the KVM machine, its vCPU threads, and the stand-ins of vCPUs that run elsewhere;
//! - [`bus`]: who answers an access to a port or an address, here or on another node;
//! - [`chips`]: the interrupt chips that KVM leaves to userspace;
//! - [`devices`]: the platform devices that kernels expect;
//! - [`pci`]: functions, their configuration and interrupts; [`virtio`]: disks, networks, consoles and
//!   random numbers;
//! - [`boot`]: loaders of kernels, and the state in which they start; [`acpi`]: the tables they read;
//! - [`cpuid`]: what a processor says of itself, the same on every node;
//! - [`paging`]: the guest's page tables, read from outside;
//! - [`time`]: one clock for all nodes.
//!
//! Nothing here knows how memory stays coherent or how nodes talk: guest memory comes in as mapped
//! ranges, and what has an effect elsewhere leaves through a trait.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod chips;
pub mod cpuid;
pub mod devices;
pub mod paging;
pub mod pci;
pub mod time;
pub mod virtio;
pub mod vm;
