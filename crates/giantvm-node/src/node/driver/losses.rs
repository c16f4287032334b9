//! What the control thread does when a node is lost, leaves or joins, and the others go on.
//!
//! A node is *lost* first, and *gone* once it has certainly stopped ([`crate::membership`]). In between,
//! who needs it waits: its pages, and the objects that it keeps. What is done when it is gone is the
//! same, and in the same order, on every node that is left, whatever that node does: pages and objects
//! are recovered by all members together, in the *epoch* that begins then. A node that joins begins one
//! in the same way ([`Epoch`]); the directory has it open the regions that are there. The eldest member keeps the
//! directory ([`crate::node::regions`]).
//!
//! A virtual machine does not survive: with one, all ends as soon as a node is lost.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use dsm_core::types::{Epoch, NodeId, Page, RegionId};

use super::{Driver, lock};
use crate::control::RegionMessage;
use crate::node::lost::{Loss, Lost, mark_lost};
use crate::node::region::bytes;

/// Why no node can join any more.
pub(super) const FRAIL: &str = "a virtual machine runs over this cluster, and its nodes are fixed";

/// What the control thread knows of losses.
pub(super) struct Losses {
    /// Who belongs to the cluster.
    now: Epoch,
    /// All ends with the first loss.
    frail: bool,
    /// Lost nodes that may still run.
    pending: BTreeMap<NodeId, Lost>,
    /// All losses so far that the cluster outlived.
    outlived: Vec<Lost>,
    /// How many of them the program was told of.
    told: usize,
    /// Regions whose parts have not all settled since the last loss.
    settling: HashMap<RegionId, Settling>,
    /// What was lost of each region that has settled.
    settled: HashMap<RegionId, Vec<Range<Page>>>,
    /// What nodes said about regions that can't be handled yet, in order.
    early: Vec<(NodeId, RegionMessage)>,
}

/// Most messages that are kept: far more than there are regions, and threads that ask.
const EARLY_MAX: usize = 4096;

/// The parts of a region that have settled.
#[derive(Default)]
struct Settling {
    parts: usize,
    lost: Vec<Range<Page>>,
}

impl Losses {
    /// Nobody was lost. `first` is the epoch with which the cluster starts, or did.
    pub(super) fn new(first: Epoch) -> Self {
        Self {
            now: first,
            frail: false,
            pending: BTreeMap::new(),
            outlived: Vec::new(),
            told: 0,
            settling: HashMap::new(),
            settled: HashMap::new(),
            early: Vec::new(),
        }
    }

    /// This node is a member from this epoch on.
    pub(super) fn begin(&mut self, epoch: Epoch) {
        self.now = epoch;
    }

    /// Who belongs to the cluster.
    pub(super) fn now(&self) -> &Epoch {
        &self.now
    }

    /// Whether all ends with the first loss.
    pub(super) fn is_frail(&self) -> bool {
        self.frail
    }

    /// Keeps what `from` said until it can be handled.
    pub(super) fn keep(&mut self, from: NodeId, message: RegionMessage) {
        if self.early.len() < EARLY_MAX {
            self.early.push((from, message));
        } else {
            log::error!("node {from} says too much that can't be handled yet: {message:?}");
        }
    }

    /// What was kept.
    pub(super) fn take_early(&mut self) -> Vec<(NodeId, RegionMessage)> {
        std::mem::take(&mut self.early)
    }

    /// The process that was `from` says nothing any more; another may come with its number.
    pub(super) fn drop_early(&mut self, from: NodeId) {
        self.early.retain(|(node, _)| *node != from);
    }

    /// One of the `parts` of a region has settled.
    fn settle(&mut self, region: RegionId, parts: usize, lost: Vec<Range<Page>>) {
        let Some(settling) = self.settling.get_mut(&region) else { return };
        settling.parts += 1;
        settling.lost.extend(lost);
        if settling.parts >= parts
            && let Some(mut settled) = self.settling.remove(&region)
        {
            settled.lost.sort_by_key(|range| range.start);
            self.settled.insert(region, settled.lost);
        }
    }

    /// Who was lost and why, for the line about a page.
    fn names_and_reasons(&self) -> (String, String) {
        let names: Vec<&str> = self.outlived.iter().map(|lost| lost.node.as_str()).collect();
        let reasons: Vec<String> = match &self.outlived[..] {
            [lost] => vec![lost.reason.clone()],
            several => several.iter().map(|it| format!("{}: {}", it.node, it.reason)).collect(),
        };
        (names.join(" or "), reasons.join("; "))
    }
}

impl Driver {
    /// A node is lost; it may not know yet.
    pub(super) fn peer_lost(&mut self, node: NodeId, reason: String) {
        let lost = self.lost(node, reason);
        if self.losses.frail {
            return self.end_with(lost);
        }
        log::error!("lost node {}: {}", lost.node, lost.reason);
        self.losses.pending.insert(node, lost);
    }

    /// This node has what ends with the first node that is lost: now, if one is already.
    pub(super) fn become_frail(&mut self) {
        self.losses.frail = true;
        self.setup.membership.close(FRAIL);
        let lost = self.losses.outlived.first().or(self.losses.pending.values().next());
        if let Some(lost) = lost.cloned() {
            self.end_with(lost);
        }
    }

    /// From now on these are the members: whoever else was has certainly stopped, or left.
    pub(super) fn new_epoch(&mut self, epoch: Epoch) {
        log::info!("epoch {}: {:?}", epoch.number, epoch.members);
        let before = std::mem::replace(&mut self.losses.now, epoch.clone());
        let (gone, joined) =
            (before.members.minus(epoch.members), epoch.joined_after(before.number));
        let ended = lock(&self.setup.shared.lost).is_some();
        if ended || self.leaving || self.losses.frail {
            return;
        }
        for node in gone.iter() {
            let lost = self.losses.pending.remove(&node);
            self.losses.outlived.extend(lost);
        }
        for node in joined.iter() {
            log::info!("node {} has joined", self.name(node));
            lock(&self.setup.shared.status).left.remove(node);
        }
        if let Err(reason) = self.recover_regions() {
            return self.end_with(self.lost(self.setup.me, reason));
        }
        self.directory_changed(&before);
        self.sync_changed(&epoch);
        self.tell_program();
    }

    fn recover_regions(&mut self) -> Result<(), String> {
        let (names, reasons) = self.losses.names_and_reasons();
        if !names.is_empty() {
            // Before the first page is poisoned.
            mark_lost(&self.setup.shared.registrations, &names, &reasons);
        }
        self.losses.settled.clear();
        self.losses.settling = lock(&self.setup.shared.regions)
            .values()
            .map(|open| (open.region, Settling::default()))
            .collect();
        self.setup.engine.change(&self.losses.now).map_err(|error| error.to_string())
    }

    /// A part of a region has settled after a loss.
    pub(super) fn recovered(&mut self, region: RegionId, epoch: u16, lost: Vec<Range<Page>>) {
        if epoch == self.losses.now.number {
            self.losses.settle(region, self.setup.config.workers, lost);
            self.tell_program();
        }
    }

    /// A region that is closed settles no more.
    pub(super) fn forget_region(&mut self, region: RegionId) {
        let is_it = |order: &RegionMessage| matches!(order, RegionMessage::Open { origin, .. } if origin.region == region);
        self.losses.early.retain(|(_, order)| !is_it(order));
        self.losses.settling.remove(&region);
        self.losses.settled.remove(&region);
        self.tell_program();
    }

    /// Tells the program of losses that all regions have settled after.
    fn tell_program(&mut self) {
        let Losses { outlived, told, settling, .. } = &self.losses;
        if *told == outlived.len() || !settling.is_empty() {
            return;
        }
        let regions = lock(&self.setup.shared.regions).clone();
        let mut ranges = BTreeMap::new();
        for (name, open) in regions {
            let lost = self.losses.settled.get(&open.region).cloned().unwrap_or_default();
            let pages: u64 = lost.iter().map(|range| range.end.0 - range.start.0).sum();
            log::warn!("region {name:?} goes on; {pages} of its pages are lost");
            ranges.insert(name, lost.into_iter().map(bytes).collect());
        }
        for lost in self.losses.outlived.iter().skip(self.losses.told) {
            let loss = Loss { lost: lost.clone(), ended: false, ranges: ranges.clone() };
            self.teller.tell(loss);
        }
        self.losses.told = self.losses.outlived.len();
    }
}
