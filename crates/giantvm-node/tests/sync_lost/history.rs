//! Who belongs to the cluster, from the first epoch to the last.

use dsm_core::types::{Epoch, NodeId, NodeSet};

use crate::world::node;

pub(crate) struct History {
    /// How many nodes the starting list has.
    nodes: usize,
    epochs: Vec<Epoch>,
    /// Each with the number of the epoch that began with it.
    losses: Vec<(NodeId, u16)>,
}

impl History {
    pub(crate) fn new(nodes: usize, members: NodeSet) -> Self {
        Self { nodes, epochs: vec![Epoch::first(1, members)], losses: Vec::new() }
    }

    pub(crate) fn nodes(&self) -> usize {
        self.nodes
    }

    /// The position of the last epoch.
    pub(crate) fn last(&self) -> usize {
        self.epochs.len() - 1
    }

    pub(crate) fn epoch(&self, told: usize) -> &Epoch {
        &self.epochs[told]
    }

    /// Begins an epoch, with a number that is `step` higher.
    pub(crate) fn lose(&mut self, index: usize, step: u16) {
        let mut epoch = self.epochs[self.last()].clone();
        epoch.number += step;
        epoch.members.remove(node(index));
        epoch.joined.remove(&node(index));
        self.losses.push((node(index), epoch.number));
        self.epochs.push(epoch);
    }

    /// Begins an epoch, with a number that is `step` higher.
    pub(crate) fn join(&mut self, index: usize, step: u16) -> u16 {
        let mut epoch = self.epochs[self.last()].clone();
        epoch.number += step;
        epoch.members.insert(node(index));
        let number = epoch.number;
        epoch.joined.insert(node(index), number);
        self.epochs.push(epoch);
        number
    }

    /// Whether a process with this number was ever lost, as who was told so much knows.
    pub(crate) fn is_lost(&self, node: NodeId, told: usize) -> bool {
        let last = self.epochs[told].number;
        self.losses.iter().any(|(lost, number)| *lost == node && *number <= last)
    }

    /// Of those that were there when this was told, who is gone when the other is.
    pub(crate) fn gone(&self, before: usize, told: usize) -> NodeSet {
        let (before, epoch) = (&self.epochs[before], &self.epochs[told]);
        before.members.minus(epoch.members.minus(epoch.joined_after(before.number)))
    }

    /// Members of the starting list ever since.
    pub(crate) fn homes(&self, told: usize) -> NodeSet {
        let stayed = (0..=told).map(|it| {
            let epoch = &self.epochs[it];
            epoch.members.minus(epoch.joined.keys().copied().collect())
        });
        stayed.fold(NodeSet::first(self.nodes), |homes, members| {
            NodeSet::from_bits(homes.bits() & members.bits())
        })
    }

    /// Nodes of the starting list that are no homes.
    pub(crate) fn barred(&self, told: usize) -> NodeSet {
        NodeSet::first(self.nodes).minus(self.homes(told))
    }
}
