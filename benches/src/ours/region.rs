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

/// Microseconds that two nodes take to go on without a third one, from the moment at which they are told:
/// it has written `pages` pages, and one of them has copies of half of these.
///
/// # Errors
/// When the kernel refuses the memory or a process.
pub fn recovery_us(placement: &Placement, pages: usize) -> Result<f64, BenchError> {
    let bytes = (pages * 4096) as u64;
    let mut cluster = Cluster::start(3, Transport::Unix, WaitMode::default(), placement, bytes)?;
    let touch = |store, order, count| Command::Touch { store, order, count, each: false };
    cluster.ask(2, &touch(true, Order::Ascending, pages))?;
    cluster.ask(0, &touch(false, Order::Ascending, pages / 2))?;
    let took = cluster.ask_first(2, &Command::Lose)?.concat();
    Ok(took.into_iter().fold(0.0, f64::max))
}
