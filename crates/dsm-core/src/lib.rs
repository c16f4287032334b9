//! Distributed shared memory in userspace, on stock Linux kernels.
//!
//! Data goes one way: a fault ([`uffd`]) enters the [`protocol`], whose messages leave through a
//! [`transport`], and whose rights take effect on [`pages`]; [`engine`] threads carry it around.
//! The protocol itself is a pure state machine; the model checker, the simulator and the product
//! run the same code.

pub mod engine;
pub mod pages;
pub mod protocol;
pub mod report;
pub mod transport;
pub mod types;
pub mod uffd;
pub mod wire;

pub use types::{
    Access, Age, Epoch, NodeId, NodeSet, PAGE_SIZE, Page, RegionId, ThreadId, Version,
};
