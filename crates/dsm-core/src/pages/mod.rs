//! The memory of a region at one node.
//!
//! A region is one memfd, mapped twice. Programs, guests and devices use the *view*; each access to
//! it that the page's state doesn't allow becomes a fault at the userfaultfd of its stripe. The
//! engine uses the *alias*, which never faults to anyone: pages are received into it and sent from
//! it. An engine thread that touched the view would wait for itself.
//!
//! One worker at a time changes the rights of a page: the one that owns its stripe.

mod frames;
mod mapping;
mod memory;
mod rights;
pub mod sigbus;

pub use frames::ZERO_PAGE_FINGERPRINT;
pub use memory::{BYTES_MAX, MemoryError, NAME_BYTES_MAX, RegionMemory, STRIPES_MAX};
