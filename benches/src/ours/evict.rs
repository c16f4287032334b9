//! Regions larger than the share of a node.

use std::fmt;

use dsm_core::engine::WaitMode;

use super::cluster::Cluster;
use super::control::{Command, Order};
use crate::error::BenchError;
use crate::floor::Transport;
use crate::placement::Placement;
use crate::sample::Sampler;

/// How large the region is, in shares of a node.
const SHARES: usize = 3;

/// The order of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the first page to the last.
    Sequential,
    /// Every page once, in no order.
    Random,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Sequential { "sequential" } else { "random" })
    }
}

/// One node reads, again and again, a region of three times its share that another node has: by the
/// time it comes to a page, its copy has made room for others.
#[derive(Debug)]
pub struct EvictingScan {
    cluster: Cluster,
    read: Command,
    bytes: u64,
}

impl EvictingScan {
    /// Starts the nodes; the reader's frames are in use when it returns.
    ///
    /// # Errors
    /// When the kernel refuses userfaultfd, a socket or a process.
    pub fn new(
        way: Way,
        transport: Transport,
        placement: &Placement,
        bytes: u64,
    ) -> Result<Self, BenchError> {
        let pages = (bytes / 4096) as usize;
        let frames = |node| if node == 0 { pages / SHARES } else { usize::MAX };
        let wait = WaitMode::default();
        let mut cluster = Cluster::start_limited(2, transport, wait, placement, bytes, frames)?;
        let order = match way {
            Way::Sequential => Order::Ascending,
            Way::Random => Order::Shuffled(pages),
        };
        let touch = |store, order| Command::Touch { store, order, count: pages, each: false };
        let read = touch(false, order);
        cluster.ask(1, &touch(true, Order::Ascending))?;
        cluster.ask(0, &read)?;
        cluster.stop()?;
        Ok(Self { cluster, read, bytes })
    }
}

impl Sampler for EvictingScan {
    /// Megabytes a second, over the whole region.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        let (read, bytes) = (self.read.clone(), self.bytes);
        self.cluster.awake(|cluster| {
            let mut rates = Vec::new();
            for _ in 0..count {
                let took = cluster.ask(0, &read)?;
                rates.extend(took.iter().map(|us| bytes as f64 / us));
            }
            Ok(rates)
        })
    }
}

/// The most bytes by which the memory of any of three nodes exceeds its share, while all write all of
/// a region that takes the shares of all three.
///
/// # Errors
/// When the kernel refuses userfaultfd, a socket or a process.
pub fn resident_over_share(
    placement: &Placement,
    share: u64,
    rounds: usize,
) -> Result<f64, BenchError> {
    let bytes = share * SHARES as u64;
    let frames = (share / 4096) as usize;
    let (transport, wait) = (Transport::Unix, WaitMode::default());
    let mut cluster =
        Cluster::start_limited(SHARES, transport, wait, placement, bytes, |_| frames)?;
    let most = cluster.ask_all(&Command::Rewrite { count: SHARES * frames, rounds })?.concat();
    cluster.stop()?;
    Ok(most.into_iter().fold(0.0, f64::max) - share as f64)
}
