//! What a survivor reports: where it differs from what the region was at its start.

use std::ops::Range;

use super::super::mutation::Mutation;
use super::super::table::{Role, Sharing};
use super::super::{Effects, Message, PageState, Protocol};
use super::{Held, Holding, Holdings, Phase, RUNS_MAX, Recover, Recoverers, Run};
use crate::types::{NodeId, NodeSet, Page, Version};

impl Protocol {
    /// All ownership is here: forgets what it believed of the lost, and reports to each recoverer.
    pub(super) fn report_holdings<E: Effects>(&mut self, fx: &mut E) {
        debug_assert_eq!(self.recovery.phase, Phase::Deciding, "reported before all had entered");
        self.rooms = Default::default();
        let rulers = self.rulers();
        self.table.recover(Recoverers::new(rulers, self.epoch(), self.table.blocks()));
        let highest = self.forget_the_lost();
        let me = self.me();
        for (recoverer, runs) in self.holdings() {
            for (part, last, runs) in parts(&runs) {
                let holdings = Holdings { part, last, highest, runs: runs.to_vec() };
                if recoverer == me {
                    let mine = self.recovery.holdings.entry(me).or_default();
                    mine.parts.add(part, last);
                    mine.highest = highest;
                    mine.runs.extend_from_slice(runs);
                } else {
                    let message = Message::Recover(Recover::Holdings(holdings));
                    self.send(recoverer, message, fx);
                }
            }
        }
    }

    /// Who rules in this epoch: those who may know which memory nobody has touched.
    fn rulers(&self) -> NodeSet {
        let old = self.members().minus(self.recovery.now.newcomers());
        if old.is_empty() || self.mutated(Mutation::RecoverJoiningAsRuler) {
            return self.members();
        }
        old
    }

    /// Takes the lost out of copysets and resets all hints. Returns the highest version of a frame.
    fn forget_the_lost(&mut self) -> Version {
        let mut highest = Version::ZERO.next();
        let trusts_hints = self.mutated(Mutation::RecoverTrustingHints);
        let keeps_copysets = self.mutated(Mutation::RecoverKeepingCopysets);
        let strangers = std::mem::take(&mut self.recovery.strangers);
        let known = self.table.allocated(self.served.clone()).into_iter();
        for page in known.flat_map(|part| part.start.0..part.end.0).map(Page) {
            let mut entry = self.table.get(page);
            highest = highest.max(entry.version);
            match &mut entry.role {
                Role::Owner { sharing: Sharing::Copies(copies), .. } if !keeps_copysets => {
                    *copies = copies.minus(strangers);
                }
                Role::Owner { .. } => {}
                Role::Holder { owner, .. } if trusts_hints && !strangers.contains(*owner) => {}
                role @ Role::Holder { .. } => {
                    *role = self.table.hint_after_loss(page).unwrap_or(*role);
                }
            }
            self.table.put(page, entry);
        }
        highest
    }

    /// What this node has, by recoverer.
    fn holdings(&self) -> Vec<(NodeId, Vec<Held>)> {
        let mut all: Vec<_> = self.members().iter().map(|node| (node, Vec::new())).collect();
        for (recoverer, range) in self.table.chunks(self.served.clone()) {
            let runs = self.runs_of(range, |page| self.holding(page));
            if let Some((_, held)) = all.iter_mut().find(|(node, _)| *node == recoverer) {
                held.extend(runs.into_iter().map(|(run, holding)| Held { run, holding }));
            }
        }
        all
    }

    /// What this node has of `page`, where that is not what it had at the start.
    fn holding(&self, page: Page) -> Option<Holding> {
        let entry = self.table.get(page);
        let first = self.table.is_first(page);
        let stale = self.mutated(Mutation::RecoverStaleFrames) && entry.version > Version::ZERO;
        let told = self.settings.features.zeros;
        match (entry.is_owner(), entry.state) {
            (true, _) => (!first).then_some(Holding::Owned),
            (false, PageState::Shared) => Some(Holding::Copy),
            (false, PageState::Lost)
                if told && !self.mutated(Mutation::RecoverForgettingLosses) =>
            {
                Some(Holding::Lost)
            }
            (false, PageState::Invalid) if stale => Some(Holding::Copy),
            (false, _) => first.then_some(Holding::Given),
        }
    }

    /// The runs of pages in `range` for which `of` says the same. Untouched blocks are asked about once.
    pub(super) fn runs_of<T: PartialEq + Copy>(
        &self,
        range: Range<Page>,
        of: impl Fn(Page) -> Option<T>,
    ) -> Vec<(Run, T)> {
        let mut runs: Vec<(Run, T)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let block = self.table.block_pages(self.table.block_start(at));
            let next = if self.table.is_allocated(at) { Page(at.0 + 1) } else { block.end };
            let next = next.min(range.end);
            if let Some(what) = of(at) {
                push(&mut runs, at..next, what);
            }
            at = next;
        }
        runs
    }
}

/// Appends pages to runs, to the last of these if they go on with it.
pub(super) fn push<T: PartialEq>(runs: &mut Vec<(Run, T)>, pages: Range<Page>, what: T) {
    let count = pages.end.0.saturating_sub(pages.start.0);
    if let Some((last, same)) = runs.last_mut()
        && last.end() == pages.start
        && *same == what
        && let Some(longer) = u64::from(last.pages).checked_add(count)
        && let Ok(longer) = u32::try_from(longer)
    {
        last.pages = longer;
        return;
    }
    // A lease block and a recoverer's chunk are far below what the number can count.
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    runs.push((Run { first: pages.start, pages: count }, what));
}

/// Cuts `items` into parts of a message; there is at least one. Says of each its number, and whether it
/// is the last.
pub(super) fn parts<T>(items: &[T]) -> Vec<(u32, bool, &[T])> {
    let mut parts: Vec<&[T]> = items.chunks(RUNS_MAX).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let last = parts.len() - 1;
    let numbered = parts.into_iter().enumerate();
    numbered.map(|(number, part)| (number as u32, number == last, part)).collect()
}
