//! A world for the protocol: machines, their memory, a network, and threads that run scripts.
//!
//! The model checker explores all its histories, the simulator samples those of larger worlds, and
//! the message counts of the benchmark come from it. The protocol is the product's own code.
#![allow(dead_code, reason = "each of the tests that share this uses a part of it")]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "shared by tests, not part of a crate's interface"
)]

pub mod causality;
pub mod check;
pub mod coverage;
pub mod explore;
pub mod fingerprint;
pub mod memory;
pub mod recover;
pub mod script;
pub mod simulate;
pub mod walks;
pub mod world;
