//! What one node was told of who is there, and which homes objects have by that.

use dsm_core::types::{Epoch, NodeId, NodeSet};

use super::home_of;
use super::message::SyncName;

/// The number of a cluster's first epoch.
pub(super) const FIRST_EPOCH: u16 = 1;

#[derive(Debug)]
pub(super) struct Known {
    /// How many nodes the starting list has.
    nodes: usize,
    epoch: Epoch,
    /// Nodes of the starting list that are no homes.
    barred: NodeSet,
}

/// What an epoch changed.
#[derive(Debug)]
pub(super) struct Change {
    /// Whose processes are gone. Another process with the same number may be there.
    pub(super) gone: NodeSet,
    pub(super) moves: Moves,
}

/// Which objects an epoch moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moves {
    nodes: usize,
    /// Nodes of the starting list that were no homes before.
    pub(super) barred_before: NodeSet,
    barred: NodeSet,
}

impl Moves {
    /// The last home of `name`, if that is lost now.
    pub(super) fn lost_home(self, name: &SyncName) -> Option<NodeId> {
        let before = home_of(name, self.nodes, self.barred_before);
        before.filter(|home| self.barred.contains(*home))
    }
}

impl Known {
    pub(super) fn new(nodes: usize, epoch: &Epoch) -> Self {
        Self { nodes, epoch: epoch.clone(), barred: barred(nodes, epoch) }
    }

    pub(super) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    pub(super) fn number(&self) -> u16 {
        self.epoch.number
    }

    pub(super) fn barred(&self) -> NodeSet {
        self.barred
    }

    /// All homes.
    pub(super) fn homes(&self) -> NodeSet {
        NodeSet::first(self.nodes).minus(self.barred)
    }

    pub(super) fn home(&self, name: &SyncName) -> Option<NodeId> {
        self.home_without(name, self.barred)
    }

    /// The home of `name` when these nodes were no homes.
    pub(super) fn home_without(&self, name: &SyncName, barred: NodeSet) -> Option<NodeId> {
        home_of(name, self.nodes, barred)
    }

    /// Whether what `from` sent in epoch `number` is from a process that is a member. The process that
    /// had a member's number before it can have known no epoch since that one joined.
    pub(super) fn is_of_member(&self, from: NodeId, number: u16) -> bool {
        self.epoch.members.contains(from)
            && self.epoch.joined.get(&from).is_none_or(|joined| *joined <= number)
    }

    /// Takes in an epoch; `None` if it is not a later one.
    pub(super) fn change(&mut self, epoch: &Epoch) -> Option<Change> {
        if epoch.number <= self.epoch.number {
            return None;
        }
        let before = std::mem::replace(&mut self.epoch, epoch.clone());
        let stayed = epoch.members.minus(epoch.joined_after(before.number));
        let barred_before = self.barred;
        // Who is no home never becomes one.
        self.barred = barred_before.union(barred(self.nodes, epoch));
        let moves = Moves { nodes: self.nodes, barred_before, barred: self.barred };
        Some(Change { gone: before.members.minus(stayed), moves })
    }
}

fn barred(nodes: usize, epoch: &Epoch) -> NodeSet {
    let joined = epoch.joined.keys().copied().collect();
    NodeSet::first(nodes).minus(epoch.members.minus(joined))
}
