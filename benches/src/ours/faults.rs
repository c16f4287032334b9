//! What a fault costs when the page is on another node, as the application sees it.

use super::cluster::Cluster;
use super::control::{Command, Order};
use super::node_wait;
use crate::error::BenchError;
use crate::floor::{FaultKind, REMOTE_FAULT_PAGES, Variant};
use crate::placement::Placement;
use crate::sample::Sampler;

/// Faults of one kind on pages of other nodes, in the same order as the floor's.
#[derive(Debug)]
pub struct RemoteFault {
    kind: FaultKind,
    cluster: Cluster,
}

impl RemoteFault {
    /// Starts the nodes.
    ///
    /// # Errors
    /// When the kernel refuses userfaultfd, a socket or a process.
    pub fn new(
        kind: FaultKind,
        variant: Variant,
        placement: &Placement,
    ) -> Result<Self, BenchError> {
        let bytes = (REMOTE_FAULT_PAGES * 4096) as u64;
        let wait = node_wait(variant.wake);
        let mut cluster = Cluster::start(kind.nodes(), variant.transport, wait, placement, bytes)?;
        cluster.stop()?;
        Ok(Self { kind, cluster })
    }
}

/// Brings the pages to where the faults of this kind begin, and says who writes them then.
fn prepare(cluster: &mut Cluster, kind: FaultKind, count: usize) -> Result<(), BenchError> {
    let order = Order::Shuffled(REMOTE_FAULT_PAGES);
    let mut touch = |node, store| {
        cluster.ask(node, &Command::Touch { store, order, count, each: false }).map(drop)
    };
    match kind {
        FaultKind::Read => touch(1, true),
        FaultKind::Write => touch(1, true).and_then(|()| touch(2, false)),
        FaultKind::Upgrade => touch(0, true).and_then(|()| touch(1, false)),
    }
}

impl Sampler for RemoteFault {
    /// Microseconds a fault.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        let (kind, store) = (self.kind, self.kind != FaultKind::Read);
        self.cluster.awake(|cluster| {
            let mut times = Vec::with_capacity(count);
            while times.len() < count {
                let count = REMOTE_FAULT_PAGES.min(count - times.len());
                prepare(cluster, kind, count)?;
                let order = Order::Shuffled(REMOTE_FAULT_PAGES);
                times.extend(cluster.ask(0, &Command::Touch { store, order, count, each: true })?);
            }
            Ok(times)
        })
    }
}
