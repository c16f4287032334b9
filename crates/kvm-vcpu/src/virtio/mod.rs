//! Devices after Virtual I/O Device (VIRTIO) Version 1.2, on PCI (section 4.1), without the legacy
//! interface: disks, networks, consoles and random numbers.
//!
//! A device is a [PCI function](VirtioPci) and the threads that work for it. Registers are served at once, on
//! the threads of vCPUs and of other nodes, and touch no guest memory. Queues belong to the device's own threads,
//! and only these touch guest memory: such a touch may wait for a page of another node. It goes
//! through the same mappings as the guest's own, so that it is as coherent. Files and sockets of the
//! host never see guest memory: bytes go through a buffer of the thread.
//!
//! ```text
//! vCPUs, other nodes ──registers──▶ transport ──start, stop──▶ workers ──▶ files, taps
//!                                       │ └────── kicks ──────────▲│
//!                                       └◀── interrupts, breakage ─┘
//! ```
//!
//! A driver that does what no driver may breaks the device: it stops, says that it needs a reset
//! (section 2.1.2), and touches nothing more. The host does not notice but for a warning.
//!
//! Queues are split ones of at most 128 descriptors, so that all parts of a queue lie in one page: it moves once
//! each way when driver and device are on different nodes. Indirect descriptors would add pages, which the
//! guest's allocator fills up with its own data, and are not offered.

mod block;
mod chain;
mod common;
mod console;
mod crew;
mod interrupts;
mod net;
mod ring;
mod rng;
mod transport;

pub use block::{Disk, DiskError};
pub use console::{ConsoleInput, console};
pub use crew::Begin;
pub use net::{MacAddress, MacError, Tap, TapError, net};
pub use rng::rng;
pub use transport::{BAR_BYTES, DOORBELLS, Model, VirtioPci};

#[cfg(test)]
mod driver;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
