//! What the epoch key says: who belongs to the cluster, and what became of each.

use dsm_core::types::{Epoch, NODES_MAX, NodeId, NodeSet};
use serde_json::{Value, json};
use thiserror::Error;

use crate::control::clip_reason;
use crate::limits::{
    JOIN_EPOCH_MAX, NODE_ADDRESS_BYTES_MAX, NODE_NAME_BYTES_MAX, REASON_BYTES_MAX,
};

/// The value of the epoch key. A process's standing only ever moves on, and the epoch only rises.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// The epoch; 0 until everyone was connected with everyone. It rises whenever the members change.
    pub epoch: u16,
    /// All nodes; a node's number is its place. Who joins gets the place of one that is gone, or one
    /// more.
    pub nodes: Vec<Listed>,
    /// Why the cluster takes nobody in any more, for people.
    pub closed: Option<String>,
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
    /// The epoch that it joined with; 0 if it was there from the start, or is no member yet.
    pub joined: u16,
    /// What became of it.
    pub standing: Standing,
}

/// What became of a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    /// It is on its way into the cluster that runs, and no member yet.
    Joining,
    /// It was on its way in, and has certainly stopped.
    Gone,
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
    pub(super) fn is_member(&self) -> bool {
        matches!(self, Self::Member | Self::Lost { .. })
    }

    /// Whether its place may be given again.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Gone | Self::Removed { .. } | Self::Left)
    }

    /// Whether `next` can be what became of it later.
    fn leads_to(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Joining, _) => true,
            (Self::Member, next) => !matches!(next, Self::Joining | Self::Gone),
            (Self::Lost { reason }, Self::Removed { reason: later }) => reason == later,
            _ => self == next,
        }
    }
}

impl Listed {
    /// Whether both are about one process.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.listen == other.listen
            && self.memory_bytes == other.memory_bytes
            && self.incarnation == other.incarnation
            && self.lease == other.lease
    }

    /// Whether it is none that was ever a member.
    pub(super) fn is_newcomer(&self) -> bool {
        matches!(self.standing, Standing::Joining | Standing::Gone)
    }

    /// Whether it can have come after `epoch`.
    fn comes_after(&self, epoch: u16) -> bool {
        self.joined > epoch || self.is_newcomer()
    }

    /// Whether `next` can be later at the same place, seen from `epoch`.
    fn leads_to(&self, next: &Self, epoch: u16) -> bool {
        if !self.is_same(next) {
            return next.comes_after(epoch);
        }
        let joins = match self.standing {
            Standing::Joining => next.comes_after(epoch),
            _ => self.joined == next.joined,
        };
        joins && self.standing.leads_to(&next.standing)
    }
}

/// Why a value is no [`Record`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct RecordError(String);

impl Record {
    /// Whether the cluster runs, or ran.
    pub fn has_started(&self) -> bool {
        self.epoch > 0
    }

    /// The epoch, for those who go by it.
    pub fn in_force(&self) -> Epoch {
        let members = self.numbered().filter(|(_, it)| it.standing.is_member());
        let joined = members.filter(|(_, it)| it.joined > 0).map(|(node, it)| (node, it.joined));
        Epoch { number: self.epoch, members: self.members(), joined: joined.collect() }
    }

    /// The members, lost ones included until they are removed.
    pub fn members(&self) -> NodeSet {
        self.select(Standing::is_member)
    }

    /// The members that are not lost.
    pub fn live(&self) -> NodeSet {
        self.select(|standing| *standing == Standing::Member)
    }

    /// The member that takes newcomers in, as long as it is not lost. Who it is changes only when it
    /// is a member no more: whoever joins has a later epoch than all that are there.
    pub(super) fn eldest(&self) -> Option<NodeId> {
        self.in_force().eldest()
    }

    /// The nodes that are on their way in.
    pub fn joining(&self) -> NodeSet {
        self.select(|standing| *standing == Standing::Joining)
    }

    fn select(&self, which: impl Fn(&Standing) -> bool) -> NodeSet {
        self.numbered().filter(|(_, it)| which(&it.standing)).map(|(node, _)| node).collect()
    }

    /// The nodes with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (NodeId, &Listed)> {
        let numbers = self.nodes.iter().enumerate();
        numbers.filter_map(|(index, listed)| Some((NodeId::new(index)?, listed)))
    }

    /// Who has a place.
    pub fn get(&self, node: NodeId) -> Option<&Listed> {
        self.nodes.get(node.index())
    }

    /// What became of `node`; an unknown one has left.
    pub fn standing(&self, node: NodeId) -> &Standing {
        self.get(node).map_or(&Standing::Left, |listed| &listed.standing)
    }

    pub(super) fn set(&mut self, node: NodeId, standing: Standing) {
        if let Some(listed) = self.nodes.get_mut(node.index()) {
            listed.standing = standing;
        }
    }

    /// Makes this the record that follows `before`: a new epoch if the members are others.
    pub(super) fn follow(&mut self, before: &Self) {
        if self.members() != before.members() {
            self.epoch = before.epoch.saturating_add(1);
        }
    }

    /// What follows when `node` becomes a member: all of the list, if the cluster has not started.
    pub(super) fn with_member(&self, node: NodeId) -> Self {
        let mut next = Self { epoch: self.epoch.saturating_add(1), ..self.clone() };
        if self.has_started()
            && let Some(listed) = next.nodes.get_mut(node.index())
        {
            (listed.standing, listed.joined) = (Standing::Member, next.epoch);
        }
        next
    }

    /// Why nobody can be taken in, if that is so for good whoever is there; for people.
    pub(super) fn no_way_in(&self) -> Option<String> {
        if let Some(reason) = &self.closed {
            return Some(reason.clone());
        }
        let too_many = self.epoch >= JOIN_EPOCH_MAX;
        too_many.then(|| "too many nodes have come and gone".into())
    }

    /// The place for a node called `name`: the one that it had, or that of a node that is gone, or a
    /// new one. `None` if there is none now.
    pub(super) fn place_for(&self, name: &str, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        let own = self.nodes.iter().position(|it| it.name == name);
        let is_over = |it: &Listed| it.standing.is_over();
        let can_have =
            |index: &usize| self.nodes.get(*index).is_some_and(is_over) && is_free(*index);
        if own.is_some() {
            return own.filter(can_have);
        }
        let another = (0..self.nodes.len()).find(can_have);
        another.or_else(|| (self.nodes.len() < NODES_MAX).then_some(self.nodes.len()))
    }

    /// Whether `next` can be a later state of this cluster; there may have been others between.
    pub(super) fn leads_to(&self, next: &Self) -> bool {
        let places = || self.nodes.iter().zip(&next.nodes);
        let mut more = next.nodes.iter().skip(self.nodes.len());
        let same_members = self.members() == next.members()
            && places().all(|(a, b)| a.is_same(b) || !a.standing.is_member());
        self.nodes.len() <= next.nodes.len()
            && places().all(|(a, b)| a.leads_to(b, self.epoch))
            && more.all(|it| it.comes_after(self.epoch))
            && (self.epoch < next.epoch || self.epoch == next.epoch && same_members)
            && (self.closed.is_none() || self.closed == next.closed)
    }

    /// As text, for the key's value.
    pub fn to_json(&self) -> String {
        let nodes: Vec<Value> = self.nodes.iter().map(listed_to_json).collect();
        json!({ "epoch": self.epoch, "closed": self.closed, "nodes": nodes }).to_string()
    }

    /// Reads a key's value.
    ///
    /// # Errors
    /// [`RecordError`] names the first field that is wrong.
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        let value: Value = serde_json::from_str(text).map_err(|e| RecordError(e.to_string()))?;
        let Some(nodes) = value.get("nodes").and_then(Value::as_array) else {
            return Err(RecordError("`nodes` is missing".into()));
        };
        if nodes.is_empty() || nodes.len() > NODES_MAX {
            return Err(RecordError(format!("{} nodes; a cluster has 1 to 64", nodes.len())));
        }
        let nodes = nodes.iter().map(listed_from_json).collect::<Result<_, _>>()?;
        let closed = match value.get("closed") {
            None | Some(Value::Null) => None,
            Some(_) => Some(reason(&value, "closed")?),
        };
        let record = Self { epoch: epoch(&value, "epoch")?, nodes, closed };
        record.check()?;
        Ok(record)
    }

    /// What no single field shows.
    fn check(&self) -> Result<(), RecordError> {
        for (index, it) in self.nodes.iter().enumerate() {
            if it.joined > self.epoch || it.joined > 0 && it.is_newcomer() {
                return Err(RecordError(format!("`{}` joined in epoch {}", it.name, it.joined)));
            }
            if self.nodes.iter().take(index).any(|earlier| earlier.name == it.name) {
                return Err(RecordError(format!("`{}` is listed twice", it.name)));
            }
        }
        Ok(())
    }
}

fn listed_to_json(node: &Listed) -> Value {
    let (standing, reason) = match &node.standing {
        Standing::Joining => ("joining", None),
        Standing::Gone => ("gone", None),
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
        "joined": node.joined,
        "standing": standing,
        "reason": reason,
    })
}

fn listed_from_json(value: &Value) -> Result<Listed, RecordError> {
    let reason = || reason(value, "reason");
    Ok(Listed {
        name: text(value, "name", NODE_NAME_BYTES_MAX)?,
        listen: text(value, "listen", NODE_ADDRESS_BYTES_MAX)?,
        memory_bytes: number(value, "memory_bytes")?,
        incarnation: number(value, "incarnation")?,
        lease: number(value, "lease")?,
        joined: epoch(value, "joined")?,
        standing: match text(value, "standing", NODE_NAME_BYTES_MAX)?.as_str() {
            "joining" => Standing::Joining,
            "gone" => Standing::Gone,
            "member" => Standing::Member,
            "lost" => Standing::Lost { reason: reason()? },
            "removed" => Standing::Removed { reason: reason()? },
            "left" => Standing::Left,
            other => return Err(RecordError(format!("standing is `{other}`"))),
        },
    })
}

fn reason(value: &Value, field: &str) -> Result<String, RecordError> {
    text(value, field, REASON_BYTES_MAX).map(|reason| clip_reason(&reason))
}

fn epoch(value: &Value, field: &str) -> Result<u16, RecordError> {
    u16::try_from(number(value, field)?)
        .map_err(|_| RecordError(format!("`{field}` is over {}", u16::MAX)))
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
