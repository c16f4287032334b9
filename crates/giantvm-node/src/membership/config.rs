//! What a node must know before it can join.

use dsm_core::types::{NODES_MAX, NodeId, NodeSet};
use thiserror::Error;

use super::machine::DECIDING;
use crate::limits::{
    CLOCK_DRIFT_ONE_IN, HEARTBEAT_MS_DEFAULT, HEARTBEAT_MS_MIN, HEARTBEATS_PER_TIMEOUT_MIN,
    LEAVE_WAIT_MS_DEFAULT, MARGIN_MS_DEFAULT, NODE_NAME_BYTES_MAX, STOP_MS, TIMEOUT_MS_DEFAULT,
    TIMEOUT_MS_MAX,
};

/// The cluster's list and its times. List and times must be the same on every node. Who is late
/// counts at the deciding node only.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// The names of all nodes; the first one decides.
    pub names: Vec<String>,
    /// Nodes of the list that the start does not wait for: they join when they come.
    pub late: NodeSet,
    /// This node.
    pub me: NodeId,
    /// A number that no earlier process of this node had.
    pub incarnation: u64,
    /// Interval between heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// Silence after which a node is out, in milliseconds.
    pub timeout_ms: u64,
    /// What the others wait beyond the timeout before they go on, in milliseconds.
    pub margin_ms: u64,
    /// How long to wait for the others at the start, in milliseconds; `None`: for ever.
    pub join_timeout_ms: Option<u64>,
    /// How long the deciding node, asked to leave, waits for the others to leave, in milliseconds.
    pub leave_wait_ms: u64,
}

impl Config {
    /// The default times for node `me` of `names`.
    pub fn new(names: Vec<String>, me: NodeId, incarnation: u64) -> Self {
        Self {
            names,
            late: NodeSet::EMPTY,
            me,
            incarnation,
            heartbeat_ms: HEARTBEAT_MS_DEFAULT,
            timeout_ms: TIMEOUT_MS_DEFAULT,
            margin_ms: MARGIN_MS_DEFAULT,
            join_timeout_ms: None,
            leave_wait_ms: LEAVE_WAIT_MS_DEFAULT,
        }
    }

    /// The least margin for these times; see [`membership`](crate::membership).
    pub fn margin_ms_min(&self) -> u64 {
        self.margin_ms_for(self.timeout_ms)
    }

    /// The least time between the end of a node's right to run and the end of a promise to it that
    /// lasts `span_ms` by another clock.
    pub(super) fn margin_ms_for(&self, span_ms: u64) -> u64 {
        let drift_ms = span_ms.div_ceil(CLOCK_DRIFT_ONE_IN);
        self.heartbeat_ms.saturating_mul(2).saturating_add(drift_ms).saturating_add(STOP_MS)
    }

    /// Checks that the list and the times can work.
    ///
    /// # Errors
    /// [`ConfigError`] names the first thing that can't.
    pub fn check(&self) -> Result<(), ConfigError> {
        let nodes = self.names.len();
        if nodes == 0 || nodes > NODES_MAX {
            return Err(ConfigError::Nodes { nodes });
        }
        if self.me.index() >= nodes {
            return Err(ConfigError::NotInList { node: self.me, nodes });
        }
        for (index, name) in self.names.iter().enumerate() {
            if name.is_empty() || name.len() > NODE_NAME_BYTES_MAX {
                return Err(ConfigError::Name { name: name.clone() });
            }
            if self.names.iter().take(index).any(|earlier| earlier == name) {
                return Err(ConfigError::NameTwice { name: name.clone() });
            }
        }
        if self.late.contains(DECIDING) || !self.late.within(nodes) {
            return Err(ConfigError::Late { nodes });
        }
        self.check_times()
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let times = [
            ("heartbeat_ms", self.heartbeat_ms, HEARTBEAT_MS_MIN, TIMEOUT_MS_MAX),
            (
                "timeout_ms",
                self.timeout_ms,
                self.heartbeat_ms.saturating_mul(HEARTBEATS_PER_TIMEOUT_MIN),
                TIMEOUT_MS_MAX,
            ),
            ("margin_ms", self.margin_ms, self.margin_ms_min(), TIMEOUT_MS_MAX),
        ];
        for (setting, value, min, max) in times {
            if value < min || value > max {
                return Err(ConfigError::Time { setting, value, min, max });
            }
        }
        Ok(())
    }

    /// All nodes of the list.
    pub(super) fn all(&self) -> NodeSet {
        NodeSet::first(self.names.len())
    }

    /// The nodes that the start waits for.
    pub(super) fn first_members(&self) -> NodeSet {
        self.all().minus(self.late)
    }

    /// The node's name, or its number if it is not in the list.
    pub(super) fn name(&self, node: NodeId) -> String {
        self.names.get(node.index()).cloned().unwrap_or_else(|| format!("#{node}"))
    }
}

/// Why a [`Config`] can't work.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ConfigError {
    /// Too few or too many nodes.
    #[error("the list has {nodes} nodes; a cluster has 1 to {NODES_MAX}")]
    Nodes {
        /// How many there are.
        nodes: usize,
    },
    /// This node is not in the list.
    #[error("this node has number {node}, but the list ends before it, at {nodes} nodes")]
    NotInList {
        /// Its number.
        node: NodeId,
        /// The length of the list.
        nodes: usize,
    },
    /// A name is empty or too long.
    #[error("node name `{name}` must have 1 to {NODE_NAME_BYTES_MAX} bytes")]
    Name {
        /// The name.
        name: String,
    },
    /// A name occurs twice.
    #[error("node name `{name}` is in the list twice; give every node its own")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// The first node is to come late, or a node that is not in the list.
    #[error("late nodes must be in the list, at 1 to {}: the first node decides", nodes.saturating_sub(1))]
    Late {
        /// The length of the list.
        nodes: usize,
    },
    /// A time is outside its bounds.
    #[error("{setting} is {value}; with the other times it must be {min} to {max}")]
    Time {
        /// The setting.
        setting: &'static str,
        /// Its value, in milliseconds.
        value: u64,
        /// The least, in milliseconds.
        min: u64,
        /// The most, in milliseconds.
        max: u64,
    },
}
