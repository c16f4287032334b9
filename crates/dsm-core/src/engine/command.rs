//! What other threads ask of a worker.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crate::pages::RegionMemory;
use crate::protocol::Settings;
use crate::transport::Transport;
use crate::types::{Access, Epoch, NodeId, Page, RegionId, ThreadId};

use super::handle::HoldError;
use super::observe::Observer;
use super::pace::{Nudge, Pace};
use super::restore::Restore;
use super::stats::RegionStats;
use super::walks::{Flushed, PageTables};

/// Sends the answer; whoever asked may be gone.
pub(super) type Reply<T> = SyncSender<T>;

/// A request to hold pages of one worker's stripe.
pub(super) struct HoldRequest {
    pub(super) id: ThreadId,
    pub(super) pages: Vec<Page>,
    pub(super) access: Access,
    /// When to give up gathering.
    pub(super) deadline: Instant,
    /// How long the pages are kept at most.
    pub(super) keep_max: Duration,
}

/// What a worker can be told.
pub(super) enum Command {
    Attach {
        peer: NodeId,
        transport: Box<dyn Transport>,
    },
    Detach {
        peer: NodeId,
    },
    Open {
        region: RegionId,
        memory: Arc<RegionMemory>,
        settings: Box<Settings>,
        /// When it began, if this node has joined since.
        since: Option<u16>,
        reply: Reply<()>,
    },
    Close {
        region: RegionId,
        reply: Reply<()>,
    },
    End {
        reply: Reply<()>,
    },
    /// Nodes were lost, left or joined.
    Change {
        epoch: Box<Epoch>,
        reply: Reply<()>,
    },
    LostPages {
        region: RegionId,
        reply: Reply<Vec<Range<Page>>>,
    },
    /// Lost pages get new content.
    Restore {
        region: RegionId,
        restore: Restore,
    },
    /// Pages that find no frame are lost.
    GiveUp {
        region: RegionId,
    },
    Hold {
        region: RegionId,
        hold: HoldRequest,
        reply: Reply<Result<(), HoldError>>,
    },
    Release {
        region: RegionId,
        id: ThreadId,
    },
    Prefetch {
        region: RegionId,
        pages: Vec<Page>,
    },
    FaultAround {
        region: RegionId,
        on: bool,
    },
    SetPace {
        region: RegionId,
        pace: Pace,
        nudge: Option<Arc<dyn Nudge>>,
    },
    Observe {
        region: RegionId,
        observer: Option<Observer>,
    },
    /// Who knows which pages are page tables.
    SetTables {
        region: RegionId,
        after: u8,
        tables: Arc<dyn PageTables>,
        reply: Reply<()>,
    },
    /// Calls back when stores to walk-shared pages are in force everywhere.
    Flush {
        region: RegionId,
        then: Flushed,
    },
    /// This thread goes before others of the process.
    Outrank,
    Stats {
        region: RegionId,
        reply: Reply<RegionStats>,
    },
    Stop,
}
