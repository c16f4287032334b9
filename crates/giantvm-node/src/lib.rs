//! One giantvm node: who belongs to the cluster, and what nodes agree on besides pages.
//!
//! - [`membership`]: joining, heartbeats, epochs, the loss of a node;
//! - [`sync`]: mutexes, read-write locks, barriers and counters, each at its home node;
//! - [`control`]: the messages that carry both between nodes, and their bytes;
//! - [`limits`]: every bound, with its reason.
//!
//! - [`vm`]: a virtual machine whose vCPUs run on these nodes, in a region.
//!
//! The first four are sans-IO: an event and the time go in, actions come out. [`node`]
//! drives them: it owns the clock and the connections.

#![deny(unsafe_code)]

pub mod control;
pub mod limits;
pub mod membership;
pub mod node;
pub mod sync;
pub mod vm;
