//! The floors: minimal programs in plain system calls, with nothing of giantvm in them.
//!
//! The nodes of a floor are processes: the one that measures, and peers that it starts from its own
//! executable ([`peer`]). Between batches every thread of a floor sleeps.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::placement::{CpuSet, Placement, Spin};

mod faults;
mod frame;
pub mod guest;
mod link;
mod memory;
pub mod peer;
mod ping_pong;
mod raw_fault;
mod remote_fault;
mod socket;
mod uffd;

pub use link::connected_pair;
pub use ping_pong::PingPong;
pub use raw_fault::{Cores, RawFault, RawKind};
pub use remote_fault::{FaultKind, PAGES as REMOTE_FAULT_PAGES, RemoteFault};
pub use socket::{RoundTrip, Stream};

/// What connects the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP over the loopback, with `TCP_NODELAY`.
    Tcp,
    /// A Unix stream socket.
    Unix,
}

/// How threads wait for messages and faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// They sleep in the kernel.
    Blocking,
    /// They look again and again.
    Busy,
}

/// A transport and a way to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// What connects the nodes.
    pub transport: Transport,
    /// How their engines wait.
    pub wake: Wake,
}

impl Variant {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self { transport: Transport::Tcp, wake: Wake::Blocking },
        Self { transport: Transport::Tcp, wake: Wake::Busy },
        Self { transport: Transport::Unix, wake: Wake::Blocking },
        Self { transport: Transport::Unix, wake: Wake::Busy },
    ];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        })
    }
}

impl fmt::Display for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocking => "blocking",
            Self::Busy => "busy",
        })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport, self.wake)
    }
}

/// How the threads of one node wait, and where they run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seat {
    wake: Wake,
    spin: Spin,
    cpus: CpuSet,
}

impl Seat {
    fn new(placement: &Placement, wake: Wake, node: usize, nodes: usize) -> Self {
        Self { wake, spin: placement.spin(nodes), cpus: placement.node(node, nodes) }
    }
}

/// The pages `0..count` in a fixed order without runs or strides, so that neither a prefetcher nor
/// fault-around has anything to guess. Floors and giantvm touch pages in this order.
pub fn page_order(count: usize) -> Vec<usize> {
    let mut pages: Vec<usize> = (0..count).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    for last in (1..count).rev() {
        // xorshift64: any spread will do, but the same in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pages.swap(last, (state % (last as u64 + 1)) as usize);
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_order_visits_each_page_once_and_hides_neighbours() {
        let order = page_order(1024);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1024));
        let neighbours = order.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
        assert!(neighbours < 10, "{neighbours} steps go to a neighbour");
    }
}
