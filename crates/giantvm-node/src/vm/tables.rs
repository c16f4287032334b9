//! Which pages of the guest's memory are page tables that its vCPUs use, for
//! [walk-shared pages](dsm_core::engine::PageTables).
//!
//! The vCPUs of this node say now and then where their walks begin; from there the tables are read as
//! far as this node has them. That a page looks like a table proves nothing: the guest's other pages
//! do so too. A chain of entries that begins at a root in use does.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, Weak};
use std::time::{Duration, Instant};

use dsm_core::engine::{Frames, PageTables};
use dsm_core::protocol::{Link, WalkTable};
use dsm_core::types::{PAGE_SIZE, PAGE_WORDS, Page};
use kvm_vcpu::boot::layout::{Layout, RamRange};
use kvm_vcpu::paging::{self, Root};

use super::hub::Hub;
use crate::node::lock;

/// How often the tables are read anew, at most, when a page is not found in them that behaves like one.
const REREAD: Duration = Duration::from_millis(20);
/// How often that happens for other pages, and vCPUs are asked for their roots. That costs an exit, and
/// a vCPU that is halted in the guest may wake.
const ASK: Duration = Duration::from_millis(250);
/// How long a root counts as in use after a vCPU was last seen to use it: a guest goes back and forth
/// between its programs.
const IN_USE: Duration = Duration::from_secs(10);
/// Roots that are remembered; of more, the one that was seen longest ago is forgotten.
const ROOTS_MAX: usize = 64;
/// Tables that one reading reads.
const READ_MAX: usize = 1024;

/// The page tables of this node's vCPUs.
pub(super) struct GuestTables {
    hub: Weak<Hub>,
    places: Places,
    state: Mutex<State>,
}

/// The pages that can be read here.
trait Words {
    fn word(&self, page: Page, index: u16) -> Option<u64>;
    fn words(&self, page: Page) -> Option<Box<[u64; PAGE_WORDS]>>;
}

impl Words for Frames<'_> {
    fn word(&self, page: Page, index: u16) -> Option<u64> {
        Frames::word(self, page, index)
    }

    fn words(&self, page: Page) -> Option<Box<[u64; PAGE_WORDS]>> {
        Frames::words(self, page)
    }
}

/// Where RAM is.
struct Places(Vec<RamRange>);

impl Places {
    fn page(&self, address: u64) -> Option<Page> {
        let range = self.0.iter().find(|ram| address.wrapping_sub(ram.start) < ram.len)?;
        Some(Page((address - range.start + range.offset) / PAGE_SIZE as u64))
    }
}

/// A root that a vCPU of this node used.
#[derive(Clone, Copy)]
struct Seen {
    level: u8,
    at: Instant,
}

impl Seen {
    fn in_use(self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < IN_USE
    }
}

#[derive(Default)]
struct State {
    /// The guest's generation that all of this is about.
    generation: u32,
    roots: HashMap<Page, Seen>,
    tables: HashMap<Page, WalkTable>,
    asked: Option<Instant>,
    read: Option<Instant>,
}

/// Whether `then` is so long ago, or never was.
fn is_past(then: Option<Instant>, now: Instant, span: Duration) -> bool {
    then.is_none_or(|then| now.saturating_duration_since(then) >= span)
}

impl GuestTables {
    pub(super) fn new(hub: Weak<Hub>, layout: &Layout) -> Self {
        Self { hub, places: Places(layout.ranges()), state: Mutex::default() }
    }

    /// Takes in what the vCPUs said, and asks them anew if that was `span` ago.
    fn refresh(&self, state: &mut State, now: Instant, span: Duration) {
        let Some(hub) = self.hub.upgrade() else { return };
        if hub.generation() != state.generation {
            // The guest has started again, with other tables.
            *state = State { generation: hub.generation(), ..State::default() };
        }
        let Some(machine) = hub.machine() else { return };
        for root in machine.roots() {
            state.saw(root, &self.places, now);
        }
        if is_past(state.asked, now, span) {
            state.asked = Some(now);
            machine.ask_roots();
        }
    }
}

impl PageTables for GuestTables {
    fn find(&self, page: Page, likely: bool, frames: &Frames<'_>) -> Option<WalkTable> {
        let (now, mut state) = (Instant::now(), lock(&self.state));
        self.refresh(&mut state, now, ASK);
        let found = state.proven(page, &self.places, frames, now);
        if found.is_some() || !is_past(state.read, now, if likely { REREAD } else { ASK }) {
            return found;
        }
        state.read = Some(now);
        state.read(&self.places, frames, now);
        let found = state.proven(page, &self.places, frames, now);
        if found.is_none() && likely {
            // Maybe a vCPU uses other tables by now.
            self.refresh(&mut state, now, REREAD);
        }
        found
    }

    fn stands(&self, page: Page, table: WalkTable, frames: &Frames<'_>) -> Option<bool> {
        let (now, mut state) = (Instant::now(), lock(&self.state));
        self.refresh(&mut state, now, ASK);
        state.stands(page, table, &self.places, frames, now)
    }

    fn fits(&self, level: u8, entries: &[u64; PAGE_WORDS]) -> bool {
        paging::walks_store_nothing(level, entries)
    }
}

impl State {
    fn saw(&mut self, root: Root, places: &Places, now: Instant) {
        let Some(page) = places.page(root.address) else { return };
        if self.roots.len() >= ROOTS_MAX && !self.roots.contains_key(&page) {
            let oldest = self.roots.iter().min_by_key(|(_, seen)| seen.at).map(|(&page, _)| page);
            oldest.map(|page| self.roots.remove(&page));
        }
        let seen = self.roots.insert(page, Seen { level: root.level, at: now });
        if seen.is_none_or(|seen| seen.level != root.level || !seen.in_use(now)) {
            // Nobody has looked below it lately.
            self.read = None;
        }
    }

    fn roots_in_use(&self, now: Instant) -> impl Iterator<Item = (Page, u8)> {
        let roots = self.roots.iter().filter(move |(_, seen)| seen.in_use(now));
        roots.map(|(&page, seen)| (page, seen.level))
    }

    /// Reads the tables from the roots down, as far as they are here.
    fn read(&mut self, places: &Places, frames: &impl Words, now: Instant) {
        self.tables.clear();
        let mut torn: HashSet<Page> = HashSet::new();
        let mut next: Vec<(Page, WalkTable)> = Vec::new();
        for (page, level) in self.roots_in_use(now) {
            next.push((page, WalkTable { level, link: None }));
        }
        let mut left = READ_MAX;
        while let Some((page, table)) = next.pop() {
            if let Some(known) = self.tables.get(&page) {
                if known.level != table.level {
                    // A guest that maps its tables by themselves; what a walk stores differs by level.
                    torn.insert(page);
                }
                continue;
            }
            self.tables.insert(page, table);
            if table.level == 1 || left == 0 {
                continue;
            }
            let Some(words) = frames.words(page) else { continue };
            left -= 1;
            for (index, &word) in words.iter().enumerate() {
                let below = paging::names_table(table.level, word);
                if let Some(below) = below.and_then(|address| places.page(address)) {
                    let link = Some(Link { page, index: index as u16 });
                    next.push((below, WalkTable { level: table.level - 1, link }));
                }
            }
        }
        self.tables.retain(|page, _| !torn.contains(page));
    }

    /// Where `page` stood when the tables were read, if every entry from a root in use down to it is
    /// here and says so still.
    fn proven(
        &self,
        page: Page,
        places: &Places,
        frames: &impl Words,
        now: Instant,
    ) -> Option<WalkTable> {
        let table = *self.tables.get(&page)?;
        let (mut at, mut place) = (page, table);
        while let Some(link) = place.link {
            if let Some(root) = self.naming_root(at, place.level, link, places, frames, now) {
                let link = if at == page { Some(Link { page: root, ..link }) } else { table.link };
                return Some(WalkTable { link, ..table });
            }
            if !names(place.level + 1, frames.word(link.page, link.index)?, at, places) {
                return None;
            }
            let above = *self.tables.get(&link.page)?;
            if above.level != place.level + 1 {
                return None;
            }
            (at, place) = (link.page, above);
        }
        let root = self.roots.get(&at)?;
        (root.level == place.level && root.in_use(now)).then_some(table)
    }

    /// A root in use that names a table right below it: the kernel's are named by all roots, whose
    /// programs come and go, and the one that it was found by may have left.
    fn naming_root(
        &self,
        page: Page,
        level: u8,
        link: Link,
        places: &Places,
        frames: &impl Words,
        now: Instant,
    ) -> Option<Page> {
        let says_so = |root: Page| {
            frames.word(root, link.index).is_some_and(|word| names(level + 1, word, page, places))
        };
        let above = self.roots_in_use(now).filter(|&(_, root_level)| root_level == level + 1);
        above.map(|(root, _)| root).find(|&root| says_so(root))
    }

    /// Whether `page` is still reached from a root by `table`; none if this node can't know.
    fn stands(
        &self,
        page: Page,
        table: WalkTable,
        places: &Places,
        frames: &impl Words,
        now: Instant,
    ) -> Option<bool> {
        let (mut at, mut place) = (page, table);
        loop {
            let Some(link) = place.link else {
                return self.roots.get(&at).map(|root| root.in_use(now));
            };
            if self.is_root_level(place.level + 1) {
                return self.under_a_root(at, place.level, link, places, frames, now);
            }
            if !names(place.level + 1, frames.word(link.page, link.index)?, at, places) {
                return Some(false);
            }
            let above =
                self.tables.get(&link.page).filter(|above| above.level == place.level + 1)?;
            (at, place) = (link.page, *above);
        }
    }

    fn is_root_level(&self, level: u8) -> bool {
        self.roots.values().any(|root| root.level == level)
    }

    /// The same for a table right below roots.
    fn under_a_root(
        &self,
        page: Page,
        level: u8,
        link: Link,
        places: &Places,
        frames: &impl Words,
        now: Instant,
    ) -> Option<bool> {
        if self.naming_root(page, level, link, places, frames, now).is_some() {
            return Some(true);
        }
        if self.roots_in_use(now).any(|(root, _)| frames.word(root, link.index).is_none()) {
            return None;
        }
        if self.roots.contains_key(&link.page) {
            // It was in use here, and none that is now names the table.
            return Some(false);
        }
        // A root of other nodes, which watch over it.
        let word = frames.word(link.page, link.index)?;
        if names(level + 1, word, page, places) { None } else { Some(false) }
    }
}

/// Whether the entry of a table of `level` names the table in `page`.
fn names(level: u8, entry: u64, page: Page, places: &Places) -> bool {
    paging::names_table(level, entry).and_then(|address| places.page(address)) == Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Present, writable, accessed.
    const TABLE: u64 = 0x23;
    const LARGE: u64 = 0x80;

    #[derive(Clone, Default)]
    struct Guest(HashMap<Page, Box<[u64; PAGE_WORDS]>>);

    impl Guest {
        fn link(&mut self, from: u64, index: u16, to: u64) {
            self.set(from, index, to << 12 | TABLE);
        }

        fn set(&mut self, page: u64, index: u16, word: u64) {
            let words = self.0.entry(Page(page)).or_insert_with(|| Box::new([0; PAGE_WORDS]));
            words[usize::from(index)] = word;
        }

        /// Root 1, and below it tables 2, 3 and 4, where 4 maps pages.
        fn chain() -> Self {
            let mut guest = Self::default();
            for (from, index) in [(1, 511), (2, 3), (3, 0)] {
                guest.link(from, index, from + 1);
            }
            guest.set(4, 9, 0x77 << 12 | TABLE);
            guest
        }
    }

    impl Words for Guest {
        fn word(&self, page: Page, index: u16) -> Option<u64> {
            Some(self.0.get(&page)?[usize::from(index)])
        }

        fn words(&self, page: Page) -> Option<Box<[u64; PAGE_WORDS]>> {
            self.0.get(&page).cloned()
        }
    }

    fn places() -> Places {
        Places(Layout::new(4 << 30).unwrap().ranges())
    }

    fn link(page: u64, index: u16) -> Option<Link> {
        Some(Link { page: Page(page), index })
    }

    /// What a node knows whose vCPUs use these roots, having read the guest.
    fn knows(roots: &[u64], guest: &Guest, now: Instant) -> State {
        let mut state = State::default();
        for root in roots {
            state.saw(Root { address: root << 12, level: 4 }, &places(), now);
        }
        state.read(&places(), guest, now);
        state
    }

    #[test]
    fn tables_are_found_from_the_root_down() {
        let (guest, now) = (Guest::chain(), Instant::now());
        let state = knows(&[1], &guest, now);
        let proven = |page| state.proven(Page(page), &places(), &guest, now);
        assert_eq!(proven(1), Some(WalkTable { level: 4, link: None }));
        assert_eq!(proven(2), Some(WalkTable { level: 3, link: link(1, 511) }));
        assert_eq!(proven(4), Some(WalkTable { level: 1, link: link(3, 0) }));
        assert_eq!(proven(0x77), None, "what a table maps is none");
        assert_eq!(proven(5), None);
    }

    #[test]
    fn a_chain_that_is_cut_or_not_here_proves_nothing() {
        let (guest, now) = (Guest::chain(), Instant::now());
        let state = knows(&[1], &guest, now);
        let proven = |guest: &Guest| state.proven(Page(4), &places(), guest, now);
        assert!(proven(&guest).is_some());
        let mut cut = guest.clone();
        cut.set(2, 3, 0);
        assert_eq!(proven(&cut), None);
        let mut large = guest.clone();
        large.set(3, 0, 4 << 12 | TABLE | LARGE);
        assert_eq!(proven(&large), None);
        let mut away = guest.clone();
        away.0.remove(&Page(2));
        assert_eq!(proven(&away), None);
        let later = now + IN_USE;
        assert_eq!(state.proven(Page(4), &places(), &guest, later), None, "nobody uses the root");
    }

    #[test]
    fn a_chain_leads_from_any_root_in_use() {
        let mut guest = Guest::chain();
        guest.link(8, 511, 2);
        let now = Instant::now();
        let state = knows(&[1, 8], &guest, now);
        for (gone, left) in [(1, 8), (8, 1)] {
            let mut guest = guest.clone();
            guest.0.remove(&Page(gone));
            let proven = |page| state.proven(Page(page), &places(), &guest, now);
            assert_eq!(proven(2), Some(WalkTable { level: 3, link: link(left, 511) }));
            assert_eq!(proven(4), Some(WalkTable { level: 1, link: link(3, 0) }));
            guest.set(left, 511, 0);
            assert_eq!(state.proven(Page(4), &places(), &guest, now), None);
        }
    }

    #[test]
    fn a_table_at_two_levels_is_none() {
        let mut guest = Guest::chain();
        guest.link(1, 0, 4);
        let now = Instant::now();
        let state = knows(&[1], &guest, now);
        assert_eq!(state.proven(Page(4), &places(), &guest, now), None);
        assert!(state.proven(Page(3), &places(), &guest, now).is_some());
    }

    #[test]
    fn a_table_stands_as_long_as_its_links_do() {
        let (guest, now) = (Guest::chain(), Instant::now());
        let state = knows(&[1], &guest, now);
        let table = WalkTable { level: 1, link: link(3, 0) };
        let stands = |guest: &Guest| state.stands(Page(4), table, &places(), guest, now);
        assert_eq!(stands(&guest), Some(true));
        for (page, index) in [(3, 0), (2, 3), (1, 511)] {
            let mut cut = guest.clone();
            cut.set(page, index, 0);
            assert_eq!(stands(&cut), Some(false), "cut in {page}");
            let mut away = guest.clone();
            away.0.remove(&Page(page));
            assert_eq!(stands(&away), None, "{page} is elsewhere");
        }
    }

    #[test]
    fn a_table_that_all_roots_name_outlives_a_root() {
        let mut guest = Guest::chain();
        guest.link(8, 511, 2);
        let now = Instant::now();
        let mut state = knows(&[1], &guest, now);
        let later = now + IN_USE;
        state.saw(Root { address: 8 << 12, level: 4 }, &places(), later);
        let table = WalkTable { level: 3, link: link(1, 511) };
        let stands = |guest: &Guest| state.stands(Page(2), table, &places(), guest, later);
        assert_eq!(stands(&guest), Some(true));
        let root = WalkTable { level: 4, link: None };
        assert_eq!(state.stands(Page(1), root, &places(), &guest, later), Some(false));
        guest.set(8, 511, 0);
        assert_eq!(stands(&guest), Some(false), "no root in use names it");
    }

    #[test]
    fn tables_of_other_nodes_are_for_them_to_watch() {
        let (guest, now) = (Guest::chain(), Instant::now());
        let state = knows(&[], &guest, now);
        let root = WalkTable { level: 4, link: None };
        assert_eq!(state.stands(Page(1), root, &places(), &guest, now), None);
        let table = WalkTable { level: 1, link: link(3, 0) };
        assert_eq!(state.stands(Page(4), table, &places(), &guest, now), None);
        let mut cut = guest.clone();
        cut.set(3, 0, 0);
        assert_eq!(state.stands(Page(4), table, &places(), &cut, now), Some(false));
        assert_eq!(state.proven(Page(4), &places(), &guest, now), None);
    }

    #[test]
    fn entries_behind_the_hole_name_pages_behind_it() {
        let places = places();
        assert_eq!(places.page(4 << 30), Some(Page((3 << 30) >> 12)));
        assert_eq!(places.page(3 << 30), None);
        assert_eq!(places.page(u64::MAX), None);
    }

    #[test]
    fn only_so_many_roots_are_remembered() {
        let (mut state, now) = (State::default(), Instant::now());
        for root in 0..ROOTS_MAX as u64 + 5 {
            let at = now + Duration::from_millis(root);
            state.saw(Root { address: root << 12, level: 4 }, &places(), at);
        }
        assert_eq!(state.roots.len(), ROOTS_MAX);
        assert!(!state.roots.contains_key(&Page(4)) && state.roots.contains_key(&Page(5)));
    }
}
