//! Which survivor rules on a page, and from then on knows its owner; and what this makes of a table.

use std::ops::Range;

use super::super::table::{Entry, Origin, Role, Table};
use super::super::{Homes, PageState};
use crate::types::{NodeId, NodeSet, Page, Version};

/// Most chunks of lease blocks that one recoverer each rules on: enough to spread what is touched,
/// and few enough to name one by one.
const CHUNKS_MAX: u64 = 1024;

/// Who rules on which page: chunks of lease blocks, by turns.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(in super::super) struct Recoverers {
    survivors: Vec<NodeId>,
    /// Whose turn it is first; so that it is not always the same node's where regions are small.
    turn: u64,
    /// Lease blocks of a chunk.
    chunk: u64,
}

impl Recoverers {
    /// The same for all survivors. There is at least one, since somebody asks.
    pub(super) fn new(survivors: NodeSet, epoch: u16, blocks: u64) -> Self {
        let chunk = blocks.div_ceil(CHUNKS_MAX).max(1);
        Self { survivors: survivors.iter().collect(), turn: epoch.into(), chunk }
    }

    fn of_block(&self, block: u64) -> Option<NodeId> {
        let turn = (block / self.chunk).wrapping_add(self.turn);
        let at = turn.checked_rem(self.survivors.len() as u64)?;
        self.survivors.get(at as usize).copied()
    }
}

impl Homes {
    /// Where the range of each node ends.
    pub(super) fn ends(&self) -> impl Iterator<Item = Page> {
        self.ends.iter().copied().map(Page)
    }
}

impl Entry {
    fn is_held(&self) -> bool {
        self.is_owner() || !matches!(self.state, PageState::Invalid | PageState::Lost)
    }
}

impl Table {
    /// From now on, hints lead by these. Forgets where blocks are that are not here.
    pub(super) fn recover(&mut self, recoverers: Recoverers) {
        self.recoverers = Some(recoverers);
        for block in 0..self.blocks() {
            let first = Page(block * self.lease_pages);
            let given = self.is_first(first);
            match self.origin(first) {
                Origin::Leased(owner) if owner == self.me => {}
                Origin::Leased(_) | Origin::Pointed(_) if given => {
                    self.set_origin(first, Origin::Given);
                }
                Origin::Leased(_) | Origin::Pointed(_) => self.set_origin(first, Origin::Home),
                Origin::Home | Origin::Given | Origin::Adopted | Origin::Lost => {}
            }
        }
    }

    /// Who ruled on `page` after the last loss.
    pub(in super::super) fn recoverer(&self, page: Page) -> Option<NodeId> {
        self.recoverers.as_ref()?.of_block(page.0 / self.lease_pages)
    }

    /// The first hint, after a loss, of a page not owned here: the recoverer, and there the first owner.
    pub(super) fn hint_after_loss(&self, page: Page) -> Option<Role> {
        let recoverer = self.recoverer(page)?;
        let owner = if recoverer == self.me { self.homes.of(page) } else { recoverer };
        Some(Role::Holder { owner, owner_since: Version::ZERO })
    }

    /// Lease blocks of the region.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Whether something is known of single pages of the lease block of `page`.
    pub(super) fn is_allocated(&self, page: Page) -> bool {
        self.blocks[(page.0 / self.lease_pages) as usize].is_some()
    }

    /// The part of `range` in each lease block.
    pub(super) fn by_block(&self, range: Range<Page>) -> Vec<Range<Page>> {
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = self.block_pages(self.block_start(at)).end.min(range.end);
            parts.push(at..end);
            at = end;
        }
        parts
    }

    /// The parts of `range` of which single pages are known.
    pub(super) fn allocated(&self, range: Range<Page>) -> Vec<Range<Page>> {
        let mut parts = self.by_block(range);
        parts.retain(|part| self.is_allocated(part.start));
        parts
    }

    /// The chunks of `range`, each with its recoverer.
    pub(super) fn chunks(&self, range: Range<Page>) -> Vec<(NodeId, Range<Page>)> {
        let Some(recoverers) = &self.recoverers else { return Vec::new() };
        let mut chunks: Vec<(NodeId, Range<Page>)> = Vec::new();
        for part in self.by_block(range) {
            let block = part.start.0 / self.lease_pages;
            let Some(recoverer) = recoverers.of_block(block) else { continue };
            match chunks.last_mut() {
                Some((_, last)) if !block.is_multiple_of(recoverers.chunk) => last.end = part.end,
                _ => chunks.push((recoverer, part)),
            }
        }
        chunks
    }

    /// At the recoverer: `owner`, another node, has these pages.
    pub(super) fn point(&mut self, range: Range<Page>, owner: NodeId) {
        for part in self.by_block(range) {
            if self.is_whole_block(&part) {
                self.set_origin(part.start, Origin::Pointed(owner));
                continue;
            }
            for page in (part.start.0..part.end.0).map(Page) {
                let entry = self.get(page);
                if !entry.is_owner() {
                    let role = Role::Holder { owner, owner_since: Version::ZERO };
                    self.put(page, Entry { role, ..entry });
                }
            }
        }
    }

    /// Whether nobody can have touched the block of `page`, whose first owner was lost, and all of it is
    /// in `served`.
    pub(super) fn may_adopt(&self, page: Page, served: &Range<Page>) -> bool {
        let block = self.block_pages(self.block_start(page));
        let whole = served.start <= block.start && block.end <= served.end;
        let known = self.is_allocated(page) || self.was_touched(page);
        whole && !known && matches!(self.origin(page), Origin::Home | Origin::Adopted)
    }

    /// Whole blocks that nobody has touched are here from now on.
    pub(super) fn adopt(&mut self, range: Range<Page>) {
        for part in self.by_block(range) {
            self.set_origin(part.start, Origin::Adopted);
        }
    }

    /// Nothing is left of these pages. Returns how many of them were not known to be lost.
    pub(super) fn lose(&mut self, range: Range<Page>) -> u64 {
        let mut new = 0;
        for part in self.by_block(range) {
            if self.is_whole_block(&part) {
                if self.origin(part.start) != Origin::Lost {
                    self.set_origin(part.start, Origin::Lost);
                    new += part.end.0 - part.start.0;
                }
                continue;
            }
            for page in (part.start.0..part.end.0).map(Page) {
                let entry = self.get(page);
                if entry.state != PageState::Lost {
                    let (state, owner_since) = (PageState::Lost, Version::ZERO);
                    let role = Role::Holder { owner: self.homes.of(page), owner_since };
                    self.put(page, Entry { state, role, ..entry });
                    new += 1;
                }
            }
        }
        new
    }

    /// Whether this node owns or may read one of these pages.
    pub(super) fn holds_any(&self, range: Range<Page>) -> bool {
        self.by_block(range).into_iter().any(|part| {
            if self.is_allocated(part.start) {
                (part.start.0..part.end.0).any(|page| self.get(Page(page)).is_held())
            } else {
                self.get(part.start).is_held()
            }
        })
    }

    /// Whether `part` is all of a block of which no single page is known.
    fn is_whole_block(&self, part: &Range<Page>) -> bool {
        let whole = *part == self.block_pages(self.block_start(part.start));
        whole && !self.is_allocated(part.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(index: usize) -> NodeId {
        NodeId::new(index).unwrap()
    }

    #[test]
    fn every_page_has_one_recoverer_and_they_take_turns() {
        let homes = Homes::spread(100, 8, &[1, 1, 1]);
        let mut table = Table::new(node(0), 100, 8, homes);
        table.recover(Recoverers::new(NodeSet::from_bits(0b101), 1, table.blocks()));
        let chunks = table.chunks(Page(4)..Page(99));
        assert_eq!(chunks[0], (node(2), Page(4)..Page(8)));
        assert_eq!(chunks[1], (node(0), Page(8)..Page(16)));
        assert_eq!(chunks.last(), Some(&(node(2), Page(96)..Page(99))));
        let mut at = Page(4);
        for (_, chunk) in chunks {
            assert_eq!(chunk.start, at);
            at = chunk.end;
        }
    }

    #[test]
    fn regions_have_a_bounded_number_of_chunks() {
        let pages = 1 << 30;
        let homes = Homes::spread(pages, 512, &[1, 1]);
        let mut table = Table::new(node(0), pages, 512, homes);
        table.recover(Recoverers::new(NodeSet::from_bits(0b11), 1, table.blocks()));
        assert_eq!(table.chunks(Page(0)..Page(pages)).len() as u64, CHUNKS_MAX);
    }

    #[test]
    fn losing_whole_untouched_blocks_allocates_nothing() {
        let homes = Homes::spread(64, 8, &[0, 1]);
        let mut table = Table::new(node(0), 64, 8, homes);
        table.recover(Recoverers::new(NodeSet::only(node(0)), 1, table.blocks()));
        let empty = table.allocated_bytes();
        assert_eq!(table.lose(Page(8)..Page(24)), 16);
        assert_eq!(table.allocated_bytes(), empty);
        assert_eq!(table.get(Page(23)).state, PageState::Lost);
        assert_eq!(table.get(Page(24)).state, PageState::Invalid);
        assert_eq!(table.lose(Page(8)..Page(26)), 2);
        assert_eq!(table.get(Page(25)).state, PageState::Lost);
        assert!(!table.holds_any(Page(8)..Page(26)));
    }
}
