//! Two nodes that count in turns in one page, as the floor's do.

use super::cluster::Cluster;
use super::control::Command;
use super::node_wait;
use crate::error::BenchError;
use crate::floor::Variant;
use crate::placement::Placement;
use crate::sample::Sampler;

/// A page that two nodes write in turns.
#[derive(Debug)]
pub struct PingPong {
    cluster: Cluster,
}

impl PingPong {
    /// Starts the nodes.
    ///
    /// # Errors
    /// When the kernel refuses userfaultfd, a socket or a process.
    pub fn new(variant: Variant, placement: &Placement) -> Result<Self, BenchError> {
        let wait = node_wait(variant.wake);
        let mut cluster = Cluster::start(2, variant.transport, wait, placement, 4096)?;
        cluster.stop()?;
        Ok(Self { cluster })
    }
}

impl Sampler for PingPong {
    /// Microseconds a turn: half of what passes from one turn of node 0 to its next.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        let stamps = self.cluster.awake(|cluster| {
            // One more turn than intervals.
            cluster.ask_each(|node| Command::TakeTurns { parity: node as u64, turns: count + 1 })
        })?;
        let stamps = stamps.into_iter().next().unwrap_or_default();
        Ok(stamps.windows(2).map(|pair| (pair[1] - pair[0]) / 2.0).collect())
    }
}
