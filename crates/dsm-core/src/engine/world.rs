//! The world of one call of the protocol: real pages, and messages that will leave.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use crate::pages::{MemoryError, RegionMemory, ZERO_PAGE_FINGERPRINT};
use crate::protocol::{Change, Conflict, Effects, Message, Protocol, Walk, WalkTable};
use crate::types::{Access, NodeId, PAGE_SIZE, Page, RegionId};

use super::budget::Budget;
use super::observe::{Observed, Observer};
use super::read_ahead::Milestones;
use super::residency::Residency;
use super::restore::Restore;
use super::shard::Outgoing;
use super::stats::{Contended, FaultKind};
use super::walks::Walks;

/// The world as the protocol sees it during one call.
pub(super) struct World<'a> {
    pub(super) region: RegionId,
    pub(super) memory: &'a RegionMemory,
    pub(super) payload: &'a [u8],
    pub(super) outgoing: &'a mut Vec<Outgoing>,
    pub(super) installs: Vec<(Page, Access)>,
    pub(super) installed: Vec<Page>,
    pub(super) contended: &'a mut Contended,
    pub(super) observer: Option<&'a Observer>,
    pub(super) left_out: Option<&'a mut Milestones>,
    /// Pages that threads have faulted on.
    pub(super) waiting: &'a mut HashMap<Page, (Instant, FaultKind)>,
    pub(super) residency: &'a mut Residency,
    pub(super) budget: &'a Budget,
    pub(super) walks: &'a mut Walks,
    pub(super) discards: Vec<Page>,
    /// What is being restored.
    pub(super) restoring: Option<&'a Restore>,
    pub(super) error: Option<MemoryError>,
}

impl World<'_> {
    fn keep(&mut self, result: Result<(), MemoryError>) {
        if let Err(error) = result
            && self.error.is_none()
        {
            self.error = Some(error);
        }
    }

    /// Looks for stores to walk-shared pages, as long as there are messages from `first` on that need
    /// it. Each is told what it has to wait for.
    pub(super) fn flush(&mut self, protocol: &mut Protocol, first: usize) {
        let mut at = first;
        while at < self.outgoing.len() && protocol.flushes() {
            let end = self.outgoing.len();
            let waits = |outgoing: &Outgoing| outgoing.message.waits_for_flush();
            let number = match self.outgoing[at..end].iter().any(waits) {
                true => protocol.flush(self),
                false => None,
            };
            if number.is_some() {
                for index in at..end {
                    if waits(&self.outgoing[index]) {
                        self.outgoing[index].after = number;
                        self.copy_frames(index);
                    }
                }
            }
            at = end;
        }
    }

    /// Takes the bytes that go with a grant: its frames may change before it leaves.
    fn copy_frames(&mut self, index: usize) {
        let Message::Grant(grant) = &self.outgoing[index].message else { return };
        let with_data = grant.pages.iter().filter(|granted| granted.data);
        let pages: Vec<Page> = with_data.map(|granted| granted.page).collect();
        let copied = pages.into_iter().map(|page| self.copy_out(page)).collect();
        self.outgoing[index].copied = copied;
    }

    fn copy_out(&mut self, page: Page) -> [u8; PAGE_SIZE] {
        let mut bytes = [0; PAGE_SIZE];
        let result = self.memory.copy_out(page, &mut bytes);
        self.keep(result);
        bytes
    }

    fn use_and_copy(&mut self, page: Page) -> [u8; PAGE_SIZE] {
        self.use_frame(page);
        self.copy_out(page)
    }

    /// Installs what was collected, neighbours with the same right in one call.
    pub(super) fn apply_installs(&mut self) {
        let mut installs = std::mem::take(&mut self.installs);
        installs.sort_unstable_by_key(|&(page, right)| (page, std::cmp::Reverse(right)));
        installs.dedup_by_key(|&mut (page, _)| page);
        for run in installs.chunk_by(|a, b| a.0.0 + 1 == b.0.0 && a.1 == b.1) {
            let pages = run[0].0..Page(run[run.len() - 1].0.0 + 1);
            let result = self.memory.install(pages, run[0].1);
            self.keep(result);
            let new = run.iter().filter(|&&(page, _)| self.residency.mapped(page)).count();
            self.budget.added(new as u64);
            self.installed.extend(run.iter().map(|&(page, _)| page));
        }
    }

    /// Gives back the frames that were collected, neighbours in one call.
    pub(super) fn apply_discards(&mut self) {
        let mut discards = std::mem::take(&mut self.discards);
        discards.sort_unstable();
        for run in discards.chunk_by(|a, b| a.0 + 1 == b.0) {
            let pages = run[0]..Page(run[run.len() - 1].0 + 1);
            let result = self.memory.revoke(pages.clone()).and_then(|()| self.memory.punch(pages));
            self.keep(result);
            let gone = run.iter().filter(|&&page| self.residency.gone(page)).count();
            self.budget.gone(gone as u64);
        }
    }

    /// The frame of `page` is about to be used, which makes one if there is none.
    fn use_frame(&mut self, page: Page) {
        if self.discards.contains(&page) {
            self.apply_discards();
        }
        self.budget.added(u64::from(self.residency.exists(page)));
    }

    /// Rights are about to be taken from `pages`: what was collected comes first.
    fn settle(&mut self, pages: &[Page]) {
        if self.installs.iter().any(|(page, _)| pages.contains(page)) {
            self.apply_installs();
        }
    }

    fn over_runs(
        &mut self,
        pages: &[Page],
        take: impl Fn(&RegionMemory, Range<Page>) -> Result<(), MemoryError>,
    ) {
        self.settle(pages);
        let mut sorted = pages.to_vec();
        sorted.sort_unstable();
        for run in sorted.chunk_by(|a, b| a.0 + 1 == b.0) {
            let result = take(self.memory, run[0]..Page(run[run.len() - 1].0 + 1));
            self.keep(result);
        }
        sorted.iter().for_each(|&page| self.contended.left(page));
    }
}

impl Effects for World<'_> {
    fn send(&mut self, to: NodeId, message: Message) {
        let copied = match &message {
            Message::Grant(grant) => {
                let with_data = grant.pages.iter().filter(|granted| granted.data);
                with_data.for_each(|granted| self.use_frame(granted.page));
                Vec::new()
            }
            Message::HandOver(hand_over) => {
                hand_over.pages.iter().map(|granted| self.use_and_copy(granted.page)).collect()
            }
            Message::Walk(Walk::Offer(offer)) => vec![self.use_and_copy(offer.page)],
            Message::Walk(Walk::Join(join)) => {
                self.walks.twin_bytes(join.page).into_iter().collect()
            }
            _ => Vec::new(),
        };
        // The epoch is that at the end of the event.
        let (epoch, after) = (0, None);
        self.outgoing.push(Outgoing { to, region: self.region, epoch, message, copied, after });
    }

    fn fill(&mut self, page: Page, payload: usize) {
        let start = payload * PAGE_SIZE;
        let bytes = self.payload.get(start..start + PAGE_SIZE).and_then(|b| b.try_into().ok());
        // The decoder has checked that every grant with data has its bytes.
        if let Some(bytes) = bytes {
            self.use_frame(page);
            let result = self.memory.copy_in(page, bytes);
            self.keep(result);
        }
    }

    fn install(&mut self, page: Page, right: Access) {
        if right == Access::Read
            && let Some(left_out) = &mut self.left_out
            && left_out.take(page)
            && !self.waiting.contains_key(&page)
        {
            return;
        }
        if self.discards.contains(&page) {
            self.apply_discards();
        }
        self.installs.push((page, right));
    }

    fn protect(&mut self, pages: &[Page]) {
        self.over_runs(pages, RegionMemory::protect);
    }

    fn revoke(&mut self, pages: &[Page]) {
        self.over_runs(pages, RegionMemory::revoke);
    }

    fn may_take(&mut self, page: Page) -> bool {
        !self.budget.is_full() || self.residency.is_present(page)
    }

    fn discard(&mut self, page: Page) {
        self.settle(&[page]);
        self.discards.push(page);
    }

    fn poison(&mut self, page: Page) {
        self.settle(&[page]);
        self.waiting.remove(&page);
        let result = self.memory.poison(page..Page(page.0 + 1));
        self.keep(result);
    }

    fn unpoison(&mut self, pages: Range<Page>) {
        let result = self.memory.revoke(pages);
        self.keep(result);
    }

    fn restore(&mut self, page: Page) {
        // The machine restores what it was asked to.
        if let Some(bytes) = self.restoring.and_then(|restore| restore.bytes_of(page)) {
            self.use_frame(page);
            let result = self.memory.copy_in(page, bytes);
            self.keep(result);
        }
    }

    fn fingerprint(&mut self, page: Page) -> u64 {
        self.use_frame(page);
        match self.memory.fingerprint(page) {
            Ok(fingerprint) => fingerprint,
            Err(error) => {
                self.keep(Err(error));
                0
            }
        }
    }

    fn zero_fingerprint(&self) -> u64 {
        ZERO_PAGE_FINGERPRINT
    }

    fn table(
        &mut self,
        page: Page,
        likely: bool,
        here: &dyn Fn(Page) -> bool,
    ) -> Option<WalkTable> {
        self.walks.table(self.memory, page, likely, here)
    }

    fn is_table(
        &mut self,
        page: Page,
        table: WalkTable,
        changed: bool,
        here: &dyn Fn(Page) -> bool,
    ) -> bool {
        self.walks.is_table((self.memory, self.residency), page, table, changed, here)
    }

    fn copy_twin(&mut self, page: Page) {
        let result = self.walks.copy_twin(self.memory, page);
        self.keep(result);
    }

    fn drop_twin(&mut self, page: Page) {
        self.walks.drop_twin(page);
    }

    fn take_changes(&mut self, page: Page, changes: &mut Vec<Change>) {
        let result = self.walks.take_changes(self.memory, page, changes);
        self.keep(result);
    }

    fn twin_word(&mut self, page: Page, index: u16) -> u64 {
        self.walks.twin_word(page, index)
    }

    fn twin_fingerprint(&mut self, page: Page) -> u64 {
        self.walks.fingerprint(page)
    }

    fn apply(&mut self, changes: &[Change]) -> Option<Conflict> {
        match self.walks.apply(self.memory, changes) {
            Ok(conflict) => conflict,
            Err(error) => {
                self.keep(Err(error));
                None
            }
        }
    }

    fn conflict(&mut self, conflict: Conflict) {
        self.walks.conflict.get_or_insert(conflict);
    }

    fn left_modified(&mut self, page: Page, unchanged: bool) {
        if let Some(observer) = self.observer {
            observer(Observed::Left { page, unchanged });
        }
    }
}
