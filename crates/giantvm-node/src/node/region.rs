//! A region, as programs use it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use dsm_core::engine::{
    Engine, Flushed, HoldError, Nudge, Observer, Pace, PageTables, RegionStats, RestoreError,
};
use dsm_core::pages::RegionMemory;
use dsm_core::types::{Access, PAGE_SIZE, Page, RegionId, ThreadId};

use super::api::{Node, NodeError, check_name};
use super::driver::{RegionReply, ToDriver};
use super::patience::Patience;
use super::regions::NO_ROOM;
use super::status;

/// How often a page table comes back unchanged before it is walk-shared, unless another node asked to
/// write it before: once may be by chance.
const UNCHANGED: u8 = 2;

/// A region that this node has open. Its memory stays mapped as long as a handle lives.
#[derive(Clone)]
pub struct Region {
    node: Arc<Node>,
    region: RegionId,
    memory: Arc<RegionMemory>,
}

impl Region {
    pub(super) fn new(node: Arc<Node>, region: RegionId, memory: Arc<RegionMemory>) -> Self {
        Self { node, region, memory }
    }

    /// The region's name.
    pub fn name(&self) -> &str {
        self.memory.name()
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.memory.pages() * PAGE_SIZE as u64
    }

    pub(crate) fn shared_memory(&self) -> Arc<RegionMemory> {
        Arc::clone(&self.memory)
    }

    /// Its memory: what [`RegionMemory::view`] says may be read and written at any time.
    pub fn memory(&self) -> &RegionMemory {
        &self.memory
    }

    /// Offset of the named block, the same on all nodes; the first to ask places it.
    ///
    /// # Errors
    ///
    /// [`NodeError::Region`] if the block exists with another size or alignment,
    /// [`NodeError::NoRoom`].
    pub fn allocate(
        &self,
        name: &str,
        bytes: u64,
        align: u64,
        patience: &Patience<'_>,
    ) -> RegionReply {
        check_name(name)?;
        let region = self.region;
        let result =
            self.node.ask_regions(&format!("block \"{name}\""), patience, |ticket, reply| {
                ToDriver::Allocate { ticket, region, name: name.to_owned(), bytes, align, reply }
            });
        match result {
            Err(NodeError::Region { reason }) if reason.starts_with(NO_ROOM) => {
                Err(NodeError::NoRoom { reason })
            }
            result => result,
        }
    }

    /// The region is a guest's memory, used by vCPUs: what keeps pages together for them takes
    /// longer, and nothing that moves pages may wait for a vCPU that has the processor.
    /// `nudge` finds out whether a vCPU, given by its thread, is halted.
    pub(crate) fn serve_vcpus(&self, nudge: Arc<dyn Nudge>) {
        self.node.engine.set_pace(self.region, Pace::vcpus(), Some(nudge));
        self.node.engine.outrank();
    }

    /// Has the guest's page tables be walk-shared, once other nodes walk them. Says whether
    /// they will be: all nodes must have been asked before any uses the region.
    pub(crate) fn share_walked(&self, tables: &Arc<dyn PageTables>) -> bool {
        let shares = self.node.engine.share_walked(self.region, UNCHANGED, tables);
        shares.unwrap_or(false)
    }

    /// What tells other nodes of this one's stores to walk-shared pages.
    pub(crate) fn flusher(&self) -> Flusher {
        Flusher { engine: Arc::clone(&self.node.engine), region: self.region }
    }

    /// Has `observer` told of the region's faults and pages on this node.
    pub(crate) fn observe(&self, observer: Observer) {
        self.node.engine.observe(self.region, Some(observer));
    }

    /// What its memory did on this node.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub fn stats(&self) -> Result<RegionStats, NodeError> {
        self.node.engine.stats(self.region).map_err(|_| NodeError::Closed)
    }

    /// [`Region::stats`] as a JSON object.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub fn stats_json(&self) -> Result<String, NodeError> {
        Ok(status::render_stats(&self.stats()?).to_string())
    }

    /// The ranges of bytes of which nothing is left after losses of nodes, lowest first: who touches them
    /// ends like one who touches lost memory. Whole pages.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub fn lost(&self) -> Result<Vec<Range<u64>>, NodeError> {
        let pages = self.node.engine.lost_pages(self.region).map_err(|_| NodeError::Closed)?;
        Ok(pages.into_iter().map(bytes).collect())
    }

    /// Gives lost pages from byte `start` on the content `data`, for all nodes: whole pages. Waits while
    /// regions recover from a loss.
    ///
    /// # Errors
    ///
    /// [`NodeError::Restore`], which says what of the range has the content all the same;
    /// [`NodeError::Lost`].
    pub fn restore(&self, start: u64, data: &[u8]) -> Result<(), NodeError> {
        if !start.is_multiple_of(PAGE_SIZE as u64) {
            return Err(NodeError::Region { reason: format!("byte {start} begins no page") });
        }
        let first = Page(start / PAGE_SIZE as u64);
        self.node.engine.restore(self.region, first, data).map_err(|error| match error {
            RestoreError::Ended => self.node.gone(),
            RestoreError::Stopped => NodeError::Closed,
            error => NodeError::Restore(error),
        })
    }

    /// Asks for copies of the pages of a range of bytes, without waiting.
    pub fn prefetch(&self, bytes: Range<u64>) {
        self.node.engine.prefetch(self.region, pages(bytes));
    }

    /// Switches fault-around: off for random access, on otherwise.
    pub fn set_fault_around(&self, on: bool) {
        self.node.engine.set_fault_around(self.region, on);
    }

    /// Fetches the pages of a range of bytes and keeps them here until [`Region::release`], or for
    /// ten seconds at most.
    ///
    /// # Errors
    ///
    /// [`NodeError::Hold`].
    pub fn hold(
        &self,
        bytes: Range<u64>,
        access: Access,
        timeout: Duration,
    ) -> Result<ThreadId, NodeError> {
        let hold = self.node.engine.hold(self.region, pages(bytes), access, timeout);
        match hold {
            Ok(hold) => Ok(hold.into_id()),
            Err(HoldError::Ended) => Err(self.node.gone()),
            Err(error) => Err(NodeError::Hold(error)),
        }
    }

    /// Ends a hold, once.
    pub fn release(&self, hold: ThreadId) {
        self.node.engine.release(self.region, hold);
    }
}

/// Tells other nodes of this one's stores to the walk-shared pages of a region.
pub(crate) struct Flusher {
    engine: Arc<Engine>,
    region: RegionId,
}

impl Flusher {
    /// Whether there may be stores to tell of.
    pub(crate) fn must_flush(&self) -> bool {
        self.engine.must_flush()
    }

    /// Calls `then` when what this thread stored, or saw of what other threads here did, is in force
    /// everywhere; in the order of the calls. Returns at once.
    pub(crate) fn flush(&self, then: Flushed) {
        self.engine.flush(self.region, then);
    }
}

/// The pages that contain a range of bytes.
fn pages(bytes: Range<u64>) -> Range<Page> {
    Page(bytes.start / PAGE_SIZE as u64)..Page(bytes.end.div_ceil(PAGE_SIZE as u64))
}

/// The bytes of a range of pages.
pub(super) fn bytes(pages: Range<Page>) -> Range<u64> {
    pages.start.0 * PAGE_SIZE as u64..pages.end.0 * PAGE_SIZE as u64
}
