//! What a region costs before and while it is used.

use dsm_core::engine::WaitMode;

use super::cluster::Cluster;
use super::control::{Command, Order};
use crate::error::BenchError;
use crate::floor::Transport;
use crate::placement::Placement;

/// Seconds that a node takes to open a region of `bytes`, once for each of `count` openings.
///
/// # Errors
/// When the kernel refuses the memory or a process.
pub fn open_seconds(
    placement: &Placement,
    bytes: u64,
    count: usize,
) -> Result<Vec<f64>, BenchError> {
    let mut cluster = Cluster::start(1, Transport::Unix, WaitMode::default(), placement, 4096)?;
    let mut seconds = Vec::new();
    for _ in 0..count {
        seconds.extend(cluster.ask(0, &Command::Open { bytes })?);
    }
    Ok(seconds)
}

/// Bytes of metadata that a node has for each of `pages` pages when two nodes have both touched them
/// all, on average over the nodes.
///
/// # Errors
/// When the kernel refuses the memory or a process.
pub fn metadata_bytes_per_page(placement: &Placement, pages: usize) -> Result<f64, BenchError> {
    let bytes = (pages * 4096) as u64;
    let mut cluster = Cluster::start(2, Transport::Unix, WaitMode::default(), placement, bytes)?;
    for node in 0..2 {
        let touch =
            Command::Touch { store: node == 0, order: Order::Ascending, count: pages, each: false };
        cluster.ask(node, &touch)?;
    }
    let of_nodes = cluster.ask_all(&Command::Metadata)?.concat();
    Ok(of_nodes.iter().sum::<f64>() / of_nodes.len().max(1) as f64 / pages as f64)
}
