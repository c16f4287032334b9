//! Nodes are lost, or join, and regions go on.

use std::ops::Range;

use super::command::Command;
use super::handle::{Engine, EngineError, HoldError};
use super::shard::{Outgoing, Shard};
use crate::pages::MemoryError;
use crate::types::{Epoch, Page, RegionId};

impl Engine {
    /// `epoch` begins. Connections to nodes that are no members any more must have been closed. Regions
    /// with [`crate::protocol::Features::recover`] go on; the others end, as by [`Engine::end`]. All
    /// members are to be told of the same epochs ([`crate::protocol::Protocol::change`]).
    /// [`super::EngineEvent::Recovered`] says when a region has settled.
    ///
    /// All members must open a region in the same epoch; who joins later opens it as one that was there
    /// before ([`super::RegionSpec::since`]).
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn change(&self, epoch: &Epoch) -> Result<(), EngineError> {
        self.ask_all(|reply| Command::Change { epoch: Box::new(epoch.clone()), reply }).map(drop)
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
    /// An epoch begins: all regions learn it.
    pub(super) fn change(&mut self, epoch: Epoch) {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        self.each_shard(|shard| shard.change(&epoch, &mut outgoing));
        (self.outgoing, self.epoch) = (outgoing, epoch);
    }

    /// Says which regions have settled after an epoch began.
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
    fn change(&mut self, epoch: &Epoch, outgoing: &mut Vec<Outgoing>) -> Result<(), MemoryError> {
        if !self.protocol.recovers() {
            return self.end(outgoing);
        }
        self.recovering = true;
        self.run(&[], outgoing, |protocol, world| protocol.change(epoch, world))
    }

    /// The region has been there since epoch `birth`, and this node has joined.
    pub(super) fn arrive(
        &mut self,
        birth: u16,
        epoch: &Epoch,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        self.recovering = true;
        self.run(&[], outgoing, |protocol, world| protocol.arrive(birth, epoch, world))
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
