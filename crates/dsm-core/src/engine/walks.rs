//! Walk-shared pages on real memory: their twins, and who knows which pages are page tables.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::pages::{MemoryError, RegionMemory};
use crate::protocol::{Change, Conflict, WalkTable};
use crate::types::{PAGE_SIZE, PAGE_WORDS, Page};

use super::residency::Residency;
use super::shard::Outgoing;

/// Called when what was stored so far to walk-shared pages is in force at all nodes.
pub type Flushed = Box<dyn FnOnce() + Send>;

/// Knows the page tables that the processors of this node use. Called on a worker's thread for every
/// flush: must return at once.
pub trait PageTables: Send + Sync {
    /// Where `page` stands in a page table of a processor of this node, as far as `frames` has its
    /// tables. `likely`: the page behaves like one. Others must be looked for without much ado, as
    /// that is any page that another node asks to write.
    fn find(&self, page: Page, likely: bool, frames: &Frames<'_>) -> Option<WalkTable>;
    /// Whether `page` still stands at `table`; none if the frames do not tell.
    fn stands(&self, page: Page, table: WalkTable, frames: &Frames<'_>) -> Option<bool>;
    /// Whether these are the entries of a table of this level, some of them in use, in which a walk
    /// has nothing to set.
    fn fits(&self, level: u8, entries: &[u64; PAGE_WORDS]) -> bool;
}

/// The pages that a node may read.
pub struct Frames<'a> {
    memory: &'a RegionMemory,
    here: &'a dyn Fn(Page) -> bool,
}

impl Frames<'_> {
    /// The words of a page; none if the page is not here.
    pub fn words(&self, page: Page) -> Option<Box<[u64; PAGE_WORDS]>> {
        if !(self.here)(page) {
            return None;
        }
        let mut words = Box::new([0; PAGE_WORDS]);
        self.memory.copy_words(page, &mut words).ok()?;
        Some(words)
    }

    /// One word of a page; none if the page is not here.
    pub fn word(&self, page: Page, index: u16) -> Option<u64> {
        (self.here)(page).then(|| self.memory.word(page, index).ok())?
    }
}

/// What a worker keeps of the walk-shared pages of a region.
#[derive(Default)]
pub(super) struct Walks {
    pub(super) tables: Option<Arc<dyn PageTables>>,
    twins: HashMap<Page, Box<[u64; PAGE_WORDS]>>,
    /// Pages whose link was seen here: if it is not there any more, this node may have cut it.
    linked: HashSet<Page>,
    pub(super) conflict: Option<Conflict>,
    /// Messages that wait until this node's reports up to a number are in force, in order.
    pub(super) held: VecDeque<Outgoing>,
    /// Threads that do.
    pub(super) waiting: Vec<(u64, Flushed)>,
}

impl Walks {
    pub(super) fn table(
        &self,
        memory: &RegionMemory,
        page: Page,
        likely: bool,
        here: &dyn Fn(Page) -> bool,
    ) -> Option<WalkTable> {
        let tables = self.tables.as_ref()?;
        let frames = Frames { memory, here };
        let table = tables.find(page, likely, &frames)?;
        let words = frames.words(page)?;
        tables.fits(table.level, &words).then_some(table)
    }

    pub(super) fn is_table(
        &mut self,
        (memory, residency): (&RegionMemory, &Residency),
        page: Page,
        table: WalkTable,
        changed: bool,
        here: &dyn Fn(Page) -> bool,
    ) -> bool {
        let Some(tables) = &self.tables else { return false };
        if changed {
            let fits = self.twins.get(&page).is_some_and(|twin| tables.fits(table.level, twin));
            if !fits {
                return false;
            }
        }
        match tables.stands(page, table, &Frames { memory, here }) {
            Some(true) => {
                self.linked.insert(page);
                true
            }
            Some(false) => false,
            None => {
                // The table that links it has left, maybe just now, and its frame is as it was then.
                let left = |page: Page| page.0 < memory.pages() && residency.is_present(page);
                let then = tables.stands(page, table, &Frames { memory, here: &left });
                then != Some(false) || !self.linked.contains(&page)
            }
        }
    }

    pub(super) fn copy_twin(
        &mut self,
        memory: &RegionMemory,
        page: Page,
    ) -> Result<(), MemoryError> {
        let mut twin = Box::new([0; PAGE_WORDS]);
        memory.copy_words(page, &mut twin)?;
        self.twins.insert(page, twin);
        Ok(())
    }

    pub(super) fn drop_twin(&mut self, page: Page) {
        self.twins.remove(&page);
        self.linked.remove(&page);
    }

    pub(super) fn take_changes(
        &mut self,
        memory: &RegionMemory,
        page: Page,
        changes: &mut Vec<Change>,
    ) -> Result<(), MemoryError> {
        let Some(twin) = self.twins.get_mut(&page) else { return Ok(()) };
        if memory.equals(page, twin)? {
            return Ok(());
        }
        let mut words = [0; PAGE_WORDS];
        memory.copy_words(page, &mut words)?;
        for (index, (old, new)) in twin.iter_mut().zip(words).enumerate() {
            if *old != new {
                changes.push(Change { page, index: index as u16, old: *old, new });
                *old = new;
            }
        }
        Ok(())
    }

    pub(super) fn twin_word(&self, page: Page, index: u16) -> u64 {
        let twin = self.twins.get(&page);
        twin.and_then(|twin| twin.get(usize::from(index))).copied().unwrap_or_default()
    }

    pub(super) fn fingerprint(&self, page: Page) -> u64 {
        self.twin_bytes(page).map_or(0, |bytes| xxh3_64(&bytes))
    }

    /// The bytes of a twin, as they are sent.
    pub(super) fn twin_bytes(&self, page: Page) -> Option<[u8; PAGE_SIZE]> {
        let twin = self.twins.get(&page)?;
        let mut bytes = [0; PAGE_SIZE];
        for (to, word) in bytes.chunks_exact_mut(8).zip(twin.iter()) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Some(bytes)
    }

    pub(super) fn apply(
        &mut self,
        memory: &RegionMemory,
        changes: &[Change],
    ) -> Result<Option<Conflict>, MemoryError> {
        let mut conflict = None;
        for &Change { page, index, new, .. } in changes {
            let twin = self.twins.get_mut(&page).and_then(|twin| twin.get_mut(usize::from(index)));
            let Some(twin) = twin else { continue };
            let mine = memory.word(page, index)?;
            if mine != *twin && mine != new && conflict.is_none() {
                conflict = Some(Conflict { page, index, one: mine, other: new });
            }
            memory.set_word(page, index, new)?;
            *twin = new;
        }
        Ok(conflict)
    }

    /// Takes what may leave when reports up to `number` are in force.
    pub(super) fn release(&mut self, number: u64, outgoing: &mut Vec<Outgoing>) {
        let ready = |held: &Outgoing| held.after.is_none_or(|after| after <= number);
        while self.held.front().is_some_and(ready) {
            outgoing.extend(self.held.pop_front());
        }
        self.waiting.extract_if(.., |(after, _)| *after <= number).for_each(|(_, then)| then());
    }

    /// Nobody waits any more: the region has ended.
    pub(super) fn end(&mut self) {
        self.held.clear();
        self.waiting.drain(..).for_each(|(_, then)| then());
    }
}
