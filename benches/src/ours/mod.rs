//! giantvm's own figures: nodes as processes, each with an engine and an application thread.
//!
//! A node here is what a floor's node is: a process on the CPUs that
//! [`Placement`](crate::placement::Placement) deals it, with one thread that touches memory and one
//! that answers. The process that measures is no node: it tells the nodes what to do over a socket
//! of its own, and stops them (`SIGSTOP`) while others have their turn, for a busy engine never sleeps.

mod cluster;
mod control;
mod evict;
mod faults;
pub mod guest;
pub mod node;
mod ping_pong;
mod region;
mod scan;

pub use evict::{EvictingScan, Way, resident_over_share};
pub use faults::RemoteFault;
pub use ping_pong::PingPong;
pub use region::{metadata_bytes_per_page, open_seconds, recovery_us};
pub use scan::{Freshness, Scan};

use dsm_core::engine::WaitMode;

use crate::floor::Wake;

/// The engine's counterpart of a floor's way to wait.
fn node_wait(wake: Wake) -> WaitMode {
    match wake {
        Wake::Blocking => WaitMode::Blocking,
        Wake::Busy => WaitMode::Busy,
    }
}
