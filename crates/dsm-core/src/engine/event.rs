//! What workers report.

use std::ops::Range;

use crate::types::{NodeId, Page, RegionId};

/// What a worker reports; called on the worker's thread, so it must not block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EngineEvent {
    /// The connection to a peer is of no use any more.
    LinkFailed {
        /// The peer.
        peer: NodeId,
        /// What happened.
        reason: String,
    },
    /// Threads wait for pages of a region that find no frame, here or at any other node: they go on
    /// waiting until there is one, or until [`super::Engine::give_up`] ends their accesses.
    MemoryFull {
        /// The region.
        region: RegionId,
    },
    /// The part of a region that one worker serves has settled after a loss.
    Recovered {
        /// The region.
        region: RegionId,
        /// The epoch that the loss began.
        epoch: u16,
        /// Pages of which nothing is left, also after earlier losses; lowest first.
        lost: Vec<Range<Page>>,
    },
    /// The kernel refused an operation on a region's memory; the region cannot go on.
    MemoryFailed {
        /// The region.
        region: RegionId,
        /// What happened.
        reason: String,
    },
}
