//! Who answers an access to a port or an address: a device here, or the node where it lives.

mod access;
mod builder;
mod map;
mod range;
mod unclaimed;

pub use access::{Access, Data, Device, Direct, Immediate, Reply, Simple, Space};
pub use builder::{BusBuilder, Place};
pub use map::{Bus, Hit};
pub use range::{BusError, Range};
pub use unclaimed::Unclaimed;

#[cfg(test)]
mod tests;
