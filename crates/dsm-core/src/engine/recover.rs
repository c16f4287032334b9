//! Nodes are lost, and regions go on without them.

use std::ops::Range;

use super::command::Command;
use super::handle::{Engine, EngineError, HoldError};
use super::shard::{Outgoing, Shard};
use crate::pages::MemoryError;
use crate::types::{NodeId, NodeSet, Page, RegionId};

/// The losses so far, in the epoch that the last one began.
#[derive(Clone, Copy, Default)]
pub(super) struct Losses {
    pub(super) lost: NodeSet,
    pub(super) epoch: u16,
}

impl Losses {
    fn add(&mut self, lost: NodeSet, epoch: u16) {
        self.lost = self.lost.union(lost);
        self.epoch = self.epoch.max(epoch);
    }

    /// The shares of nodes that are left.
    pub(super) fn shares(self, shares: &[u64]) -> Vec<u64> {
        let even = shares.iter().all(|&share| share == 0);
        let share = |(node, &share): (usize, &u64)| {
            let lost = NodeId::new(node).is_some_and(|node| self.lost.contains(node));
            if lost { 0 } else { share.max(even.into()) }
        };
        shares.iter().enumerate().map(share).collect()
    }
}

impl Engine {
    /// The nodes in `lost` are lost, which begins `epoch`: the next number, counted from 1. Their
    /// connections are closed, and regions with [`crate::protocol::Features::recover`] go on without
    /// them; the others end, as by [`Engine::end`]. All survivors are to be told of the same losses
    /// with the same numbers. [`super::EngineEvent::Recovered`] says when a region has settled.
    ///
    /// Regions opened later have no part at lost nodes. No region may be opened at some nodes before,
    /// and at others after a loss.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn lose(&self, lost: NodeSet, epoch: u16) -> Result<(), EngineError> {
        lost.iter().for_each(|node| self.detach(node));
        self.losses_mut().add(lost, epoch);
        self.ask_all(|reply| Command::Lose { lost, epoch, reply }).map(drop)
    }

    /// Pages of a region of which nothing is left after losses, lowest first: who touches one ends like
    /// one who touches lost memory.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn lost_pages(&self, region: RegionId) -> Result<Vec<Range<Page>>, EngineError> {
        let parts = self.ask_all(|reply| Command::LostPages { region, reply })?;
        Ok(parts.into_iter().flatten().collect())
    }
}

impl super::worker::Worker {
    /// Nodes are lost: all regions learn it.
    pub(super) fn lose(&mut self, lost: NodeSet, epoch: u16) {
        self.losses.add(lost, epoch);
        let mut outgoing = std::mem::take(&mut self.outgoing);
        self.each_shard(|shard| shard.lose(lost, epoch, &mut outgoing));
        self.outgoing = outgoing;
    }

    /// Says which regions have settled after a loss.
    pub(super) fn report_recovered(&mut self) {
        for shard in self.shards.values_mut() {
            if shard.has_recovered() {
                let (region, epoch) = (shard.region, shard.protocol.epoch());
                let lost = shard.lost_pages();
                (self.events)(super::EngineEvent::Recovered { region, epoch, lost });
            }
        }
    }
}

impl Shard {
    fn lose(
        &mut self,
        lost: NodeSet,
        epoch: u16,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        if !self.protocol.recovers() {
            return self.end(outgoing);
        }
        self.recovering = true;
        self.run(&[], outgoing, |protocol, world| protocol.lost(lost, epoch, world))
    }

    /// Whether a recovery has ended since the last call.
    fn has_recovered(&mut self) -> bool {
        let recovered = self.recovering && !self.protocol.is_recovering();
        self.recovering &= !recovered;
        recovered
    }

    pub(super) fn lost_pages(&self) -> Vec<Range<Page>> {
        let runs = self.protocol.lost_pages().into_iter();
        runs.map(|run| run.first..run.end()).collect()
    }

    /// Tells those who wait for a hold that has a lost page.
    pub(super) fn report_failed(&mut self) {
        for id in self.protocol.take_failed() {
            if let Some(reply) = self.holds.remove(&id).and_then(|hold| hold.reply) {
                let _ = reply.try_send(Err(HoldError::Lost));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_nodes_have_no_share_of_new_regions() {
        let mut losses = Losses::default();
        assert_eq!(losses.shares(&[1, 2, 3]), [1, 2, 3]);
        losses.add(NodeSet::only(NodeId::new(1).unwrap()), 1);
        assert_eq!(losses.shares(&[1, 2, 3]), [1, 0, 3]);
        // All shares zero counts as all equal.
        assert_eq!(losses.shares(&[0, 0, 0]), [1, 0, 1]);
    }
}
