//! One node reads what another has written, from the first page to the last, with default settings.

use dsm_core::engine::WaitMode;

use super::cluster::Cluster;
use super::control::{Command, Order};
use crate::error::BenchError;
use crate::floor::Transport;
use crate::placement::Placement;
use crate::sample::Sampler;

/// Whether the reader has had the region before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It never has: its frames do not exist yet.
    First,
    /// It read it all before the owner wrote it again.
    Repeat,
}

/// A region that one node writes and another reads, one word of each page.
///
/// One word, since the floor does not look at the bytes at all: what a program does with them is its
/// own cost.
#[derive(Debug)]
pub struct Scan {
    freshness: Freshness,
    cluster: Cluster,
    bytes: u64,
}

impl Scan {
    /// Starts the nodes.
    ///
    /// # Errors
    /// When the kernel refuses userfaultfd, a socket or a process.
    pub fn new(
        freshness: Freshness,
        transport: Transport,
        placement: &Placement,
        bytes: u64,
    ) -> Result<Self, BenchError> {
        let mut cluster = Cluster::start(2, transport, WaitMode::default(), placement, bytes)?;
        let touch = |store| touch(store, bytes);
        cluster.ask(1, &touch(true))?;
        cluster.ask(0, &touch(false))?;
        cluster.stop()?;
        Ok(Self { freshness, cluster, bytes })
    }
}

fn touch(store: bool, bytes: u64) -> Command {
    let count = (bytes / 4096) as usize;
    Command::Touch { store, order: Order::Ascending, count, each: false }
}

impl Sampler for Scan {
    /// Megabytes a second, over the whole region.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        let (freshness, bytes) = (self.freshness, self.bytes);
        self.cluster.awake(|cluster| {
            let mut rates = Vec::new();
            for _ in 0..count {
                if freshness == Freshness::First {
                    cluster.ask_all(&Command::Open { bytes })?;
                }
                cluster.ask(1, &touch(true, bytes))?;
                let took = cluster.ask(0, &touch(false, bytes))?;
                rates.extend(took.iter().map(|us| bytes as f64 / us));
            }
            Ok(rates)
        })
    }
}
