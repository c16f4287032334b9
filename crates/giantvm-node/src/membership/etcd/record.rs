//! What the epoch key says: who belongs to the cluster, and what became of each.

use dsm_core::types::{NODES_MAX, NodeId, NodeSet};
use serde_json::{Value, json};
use thiserror::Error;

use crate::control::clip_reason;
use crate::limits::{NODE_ADDRESS_BYTES_MAX, NODE_NAME_BYTES_MAX, REASON_BYTES_MAX};

/// The value of the epoch key. A node's standing only ever moves on, and so the epoch only rises.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// Whether the cluster runs: everyone was connected with everyone.
    pub started: bool,
    /// All nodes; a node's number is its place.
    pub nodes: Vec<Listed>,
}

/// One node of a [`Record`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: String,
    /// Its share of memory, in bytes.
    pub memory_bytes: u64,
    /// Its process.
    pub incarnation: u64,
    /// Its lease; it is there as long as its own key is, under this lease.
    pub lease: u64,
    /// What became of it.
    pub standing: Standing,
}

/// What became of a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    /// It belongs to the cluster.
    Member,
    /// It is lost, but may not know yet: still a member of the epoch.
    Lost {
        /// Why, for people.
        reason: String,
    },
    /// It was lost and has certainly stopped.
    Removed {
        /// Why it was lost, for people.
        reason: String,
    },
    /// It left of its own will.
    Left,
}

impl Standing {
    fn is_member(&self) -> bool {
        matches!(self, Self::Member | Self::Lost { .. })
    }

    /// Whether `next` can be what became of it later.
    fn leads_to(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Member, _) => true,
            (Self::Lost { reason }, Self::Removed { reason: later }) => reason == later,
            _ => self == next,
        }
    }
}

/// Why a value is no [`Record`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct RecordError(String);

impl Record {
    /// The epoch: 0 before the start, then one more for each node that is no member any more.
    pub fn epoch(&self) -> u64 {
        let gone = self.nodes.iter().filter(|node| !node.standing.is_member()).count();
        if self.started { 1 + gone as u64 } else { 0 }
    }

    /// The members, lost ones included until they are removed.
    pub fn members(&self) -> NodeSet {
        self.select(Standing::is_member)
    }

    /// The members that are not lost.
    pub fn live(&self) -> NodeSet {
        self.select(|standing| *standing == Standing::Member)
    }

    fn select(&self, which: impl Fn(&Standing) -> bool) -> NodeSet {
        self.numbered().filter(|(_, it)| which(&it.standing)).map(|(node, _)| node).collect()
    }

    /// The nodes with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (NodeId, &Listed)> {
        let numbers = self.nodes.iter().enumerate();
        numbers.filter_map(|(index, listed)| Some((NodeId::new(index)?, listed)))
    }

    /// What became of `node`; an unknown one has left.
    pub fn standing(&self, node: NodeId) -> &Standing {
        self.nodes.get(node.index()).map_or(&Standing::Left, |listed| &listed.standing)
    }

    pub(super) fn set(&mut self, node: NodeId, standing: Standing) {
        if let Some(listed) = self.nodes.get_mut(node.index()) {
            listed.standing = standing;
        }
    }

    /// Whether `next` can be a later state of this cluster.
    pub(super) fn leads_to(&self, next: &Self) -> bool {
        let same = |(a, b): (&Listed, &Listed)| {
            a.standing.leads_to(&b.standing)
                && *a == Listed { standing: a.standing.clone(), ..b.clone() }
        };
        self.nodes.len() == next.nodes.len()
            && self.nodes.iter().zip(&next.nodes).all(same)
            && (next.started || !self.started)
    }

    /// As text, for the key's value.
    pub fn to_json(&self) -> String {
        let nodes: Vec<Value> = self.nodes.iter().map(listed_to_json).collect();
        json!({ "started": self.started, "epoch": self.epoch(), "nodes": nodes }).to_string()
    }

    /// Reads a key's value.
    ///
    /// # Errors
    /// [`RecordError`] names the first field that is wrong.
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        let value: Value = serde_json::from_str(text).map_err(|e| RecordError(e.to_string()))?;
        let started = value.get("started").and_then(Value::as_bool);
        let nodes = value.get("nodes").and_then(Value::as_array);
        let (Some(started), Some(nodes)) = (started, nodes) else {
            return Err(RecordError("`started` or `nodes` is missing".into()));
        };
        if nodes.is_empty() || nodes.len() > NODES_MAX {
            return Err(RecordError(format!("{} nodes; a cluster has 1 to 64", nodes.len())));
        }
        let nodes = nodes.iter().map(listed_from_json).collect::<Result<_, _>>()?;
        Ok(Self { started, nodes })
    }
}

fn listed_to_json(node: &Listed) -> Value {
    let (standing, reason) = match &node.standing {
        Standing::Member => ("member", None),
        Standing::Lost { reason } => ("lost", Some(reason)),
        Standing::Removed { reason } => ("removed", Some(reason)),
        Standing::Left => ("left", None),
    };
    json!({
        "name": node.name,
        "listen": node.listen,
        "memory_bytes": node.memory_bytes,
        "incarnation": node.incarnation,
        "lease": node.lease,
        "standing": standing,
        "reason": reason,
    })
}

fn listed_from_json(value: &Value) -> Result<Listed, RecordError> {
    let reason = || text(value, "reason", REASON_BYTES_MAX).map(|reason| clip_reason(&reason));
    Ok(Listed {
        name: text(value, "name", NODE_NAME_BYTES_MAX)?,
        listen: text(value, "listen", NODE_ADDRESS_BYTES_MAX)?,
        memory_bytes: number(value, "memory_bytes")?,
        incarnation: number(value, "incarnation")?,
        lease: number(value, "lease")?,
        standing: match text(value, "standing", NODE_NAME_BYTES_MAX)?.as_str() {
            "member" => Standing::Member,
            "lost" => Standing::Lost { reason: reason()? },
            "removed" => Standing::Removed { reason: reason()? },
            "left" => Standing::Left,
            other => return Err(RecordError(format!("standing is `{other}`"))),
        },
    })
}

pub(super) fn text(value: &Value, field: &str, bytes_max: usize) -> Result<String, RecordError> {
    match value.get(field).and_then(Value::as_str) {
        Some(text) if !text.is_empty() && text.len() <= bytes_max => Ok(text.to_owned()),
        _ => Err(RecordError(format!("`{field}` is no text of 1 to {bytes_max} bytes"))),
    }
}

pub(super) fn number(value: &Value, field: &str) -> Result<u64, RecordError> {
    let number = value.get(field).and_then(Value::as_u64);
    number.ok_or_else(|| RecordError(format!("`{field}` is no whole number")))
}
