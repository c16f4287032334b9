//! What a node is told at its start.

use std::time::Duration;

use dsm_core::engine::{EngineConfig, WaitMode};
use dsm_core::transport::{Address, AddressError};
use dsm_core::types::{Epoch, NODES_MAX, NodeId, NodeSet, PAGE_SIZE};
use dsm_core::wire::{Channel, ClusterId, Hello, Identity, Incarnation};
use xxhash_rust::xxh3::xxh3_128;

use super::api::NodeError;
use super::etcd::EtcdConfig;
use crate::membership;

/// One node of the cluster's list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSpec {
    /// Its name, unique in the list.
    pub name: String,
    /// Where it listens: `unix:/path` or `HOST:PORT`.
    pub address: String,
    /// How much memory it gives to regions, in bytes.
    pub memory_bytes: u64,
    /// The start does not wait for it: it joins when it comes. Not the first of a list.
    pub late: bool,
}

/// Fills a place of a list of nodes. Places are filled one after the other, and again when who was there
/// is gone.
pub(super) fn list(nodes: &mut Vec<NodeSpec>, node: NodeId, spec: NodeSpec) {
    match nodes.get_mut(node.index()) {
        Some(place) => *place = spec,
        None => nodes.push(spec),
    }
}

/// A cluster as one of its nodes sees it. All but `me` and `wait` must be the same on every node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// The cluster's name.
    pub cluster: String,
    /// This node's position in `nodes`.
    pub me: usize,
    /// All nodes. The first one decides on membership. Where etcd does: this node only, until the
    /// node has started.
    pub nodes: Vec<NodeSpec>,
    /// etcd, if it decides on membership.
    pub etcd: Option<EtcdConfig>,
    /// Interval between heartbeats.
    pub heartbeat: Duration,
    /// Silence after which a node is lost.
    pub timeout: Duration,
    /// Worker threads of every node.
    pub workers: usize,
    /// How this node's workers wait.
    pub wait: WaitMode,
    /// Allows addresses that other machines can reach, although nothing authenticates them yet.
    pub insecure: bool,
    /// How long to wait for all nodes at the start; `None`: for ever.
    pub join_timeout: Option<Duration>,
}

impl NodeConfig {
    /// Checks everything that can be checked without I/O.
    pub(super) fn check(&self) -> Result<Checked, NodeError> {
        let invalid = |what: String| NodeError::Config { what };
        let me = NodeId::new(self.me).filter(|_| self.me < self.nodes.len());
        let me = me.ok_or_else(|| {
            invalid(format!(
                "this node has number {}, but the list has {}",
                self.me,
                self.nodes.len()
            ))
        })?;
        if self.nodes.len() > NODES_MAX {
            let nodes = self.nodes.len();
            return Err(invalid(format!("{nodes} nodes; a cluster has at most {NODES_MAX}")));
        }
        self.check_etcd().map_err(invalid)?;
        if self.workers == 0 || self.workers > 64 {
            return Err(invalid(format!("{} workers; a node has 1 to 64", self.workers)));
        }
        let addresses = self
            .nodes
            .iter()
            .map(|node| node.address.parse::<Address>())
            .collect::<Result<Vec<_>, AddressError>>()
            .map_err(|error| invalid(error.to_string()))?;
        for (node, address) in self.nodes.iter().zip(&addresses) {
            if !self.insecure && !address.is_loopback() {
                return Err(NodeError::NotLoopback {
                    node: node.name.clone(),
                    address: address.to_string(),
                });
            }
        }
        let mut membership = membership::Config::new(
            self.nodes.iter().map(|node| node.name.clone()).collect(),
            me,
            incarnation(),
        );
        membership.heartbeat_ms = whole_ms(self.heartbeat);
        membership.timeout_ms = whole_ms(self.timeout);
        membership.margin_ms = membership.margin_ms.max(membership.margin_ms_min());
        membership.join_timeout_ms = self.join_timeout.map(whole_ms);
        membership.late = self.late();
        membership.check().map_err(|error| invalid(error.to_string()))?;
        Ok(Checked { me, addresses, membership })
    }

    fn check_etcd(&self) -> Result<(), String> {
        let Some(etcd) = &self.etcd else { return Ok(()) };
        if etcd.endpoints.is_empty() || etcd.endpoints.iter().any(|it| !it.starts_with("http://")) {
            return Err("etcd's addresses must be like http://127.0.0.1:2379".into());
        }
        if let Some(nodes) = etcd.nodes.filter(|nodes| !(1..=NODES_MAX).contains(nodes)) {
            return Err(format!("{nodes} nodes; a cluster has 1 to {NODES_MAX}"));
        }
        if self.cluster.is_empty() || self.cluster.contains('/') {
            return Err(format!("cluster name {:?} can't be part of etcd's keys", self.cluster));
        }
        Ok(())
    }

    fn late(&self) -> NodeSet {
        let nodes = self.nodes.iter().enumerate().filter(|(_, node)| node.late);
        nodes.filter_map(|(index, _)| NodeId::new(index)).collect()
    }

    /// The first epoch of a cluster that starts.
    pub(super) fn first_epoch(&self) -> Epoch {
        Epoch::first(1, NodeSet::first(self.nodes.len()).minus(self.late()))
    }

    pub(super) fn engine(&self, me: NodeId) -> EngineConfig {
        let share = self.nodes.get(self.me).map_or(u64::MAX, |node| node.memory_bytes);
        EngineConfig {
            workers: self.workers,
            wait: self.wait,
            frames: share / PAGE_SIZE as u64,
            ..EngineConfig::new(me, self.places())
        }
    }

    /// Most nodes that the cluster can come to have: where etcd decides, new ones may join.
    pub(super) fn places(&self) -> usize {
        if self.etcd.is_some() { NODES_MAX } else { self.nodes.len() }
    }

    /// Nodes with different lists must not meet: the list is part of the cluster's identity. etcd has
    /// only one, which changes.
    fn cluster_id(&self) -> ClusterId {
        let mut text = self.cluster.clone();
        let listed = if self.etcd.is_some() { &[][..] } else { &self.nodes[..] };
        for node in listed {
            text.push_str(&format!("\0{}\0{}\0{}", node.name, node.address, node.memory_bytes));
            text.push_str(if node.late { "\0late" } else { "" });
        }
        text.push_str(&format!("\0{:?}\0{:?}", self.heartbeat, self.timeout));
        ClusterId(xxh3_128(text.as_bytes()).to_le_bytes())
    }

    pub(super) fn identity(&self, me: NodeId, incarnation: u64, epoch: u64) -> Identity {
        Identity {
            cluster: self.cluster_id(),
            epoch,
            node: me,
            nodes: self.places() as u8,
            workers: self.workers as u8,
            incarnation: Incarnation(incarnation),
        }
    }

    /// What to say to `to` first.
    pub(super) fn hello(&self, from: Identity, to: NodeId, channel: Channel) -> Hello {
        Hello { from, to, channel }
    }
}

/// A configuration that can work.
pub(super) struct Checked {
    pub(super) me: NodeId,
    pub(super) addresses: Vec<Address>,
    pub(super) membership: membership::Config,
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Differs between two processes of one node, also over a restart of the machine.
fn incarnation() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanoseconds = now.map_or(0, |now| now.as_nanos() as u64);
    xxhash_rust::xxh3::xxh3_64_with_seed(&nanoseconds.to_le_bytes(), std::process::id().into())
}
