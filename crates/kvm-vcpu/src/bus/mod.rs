//! Who answers an access to a port or an address: a device here, or the node where it lives.

mod access;

pub use access::{Access, Data, Device, Direct, Immediate, Reply, Simple, Space};
