//! A node's memory: one value a page, and the right to it. Checks what the protocol does to it.

use std::ops::Range;

use dsm_core::protocol::{Change, Conflict, Effects, Message, Walk, WalkTable};
use dsm_core::{Access, NodeId, Page};

use super::causality::{WORDS, with_word, word};

/// A value of word 0 with this bit is none of a page table.
pub const UNFIT: u64 = 1 << 31;

/// What a page is to the threads of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mapping {
    None,
    Read,
    Write,
    Poisoned,
}

impl Mapping {
    pub fn of(access: Access) -> Self {
        if access == Access::Read { Self::Read } else { Self::Write }
    }

    pub fn allows(self, access: Access) -> bool {
        match self {
            Self::None | Self::Poisoned => false,
            Self::Read => access == Access::Read,
            Self::Write => true,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Memory {
    pub frames: Vec<u64>,
    pub mappings: Vec<Mapping>,
    /// Whether the frame exists; one that does not reads as zero.
    pub present: Vec<bool>,
    /// Pages that are page tables.
    pub tables: Vec<bool>,
    /// Of pages that are walk-shared here, what all agreed on.
    pub twins: Vec<Option<u64>>,
    /// Frames from which on a page has to wait for one.
    pub capacity: usize,
    /// The node goes on after losses: a page that was lost gives its frame back like others.
    pub recovers: bool,
    /// What the pages that are being restored are to have.
    pub staged: Option<u64>,
}

impl Memory {
    pub fn new(pages: u64, tables: &[u64], capacity: usize) -> Self {
        let tables = (0..pages).map(|page| tables.contains(&page)).collect();
        let pages = pages as usize;
        let (frames, mappings) = (vec![0; pages], vec![Mapping::None; pages]);
        let (present, twins) = (vec![false; pages], vec![None; pages]);
        Self { frames, mappings, present, tables, twins, capacity, recovers: false, staged: None }
    }

    /// Frames that exist.
    pub fn count(&self) -> usize {
        self.present.iter().filter(|&&present| present).count()
    }

    pub fn mapping(&self, page: Page) -> Mapping {
        self.mappings[page.0 as usize]
    }

    pub fn frame(&self, page: Page) -> u64 {
        self.frames[page.0 as usize]
    }

    pub fn allows(&self, page: Page, access: Access) -> bool {
        self.mapping(page).allows(access)
    }

    /// Whether something was stored to a walk-shared page that this node has told nobody.
    pub fn has_changes(&self) -> bool {
        self.twins.iter().zip(&self.frames).any(|(twin, frame)| twin.is_some_and(|it| it != *frame))
    }
}

/// One event at one node: what the machine does to the memory, and what it sends.
pub struct Turn<'a> {
    pub memory: &'a mut Memory,
    /// Values that came with the message.
    pub payload: &'a [u64],
    pub sent: Vec<(NodeId, Message, Vec<u64>)>,
    pub installed: Vec<(Page, Access)>,
    pub poisoned: bool,
    /// Pages that have new content.
    pub restored: Vec<Page>,
    /// Pages whose mapping or bytes changed.
    pub touched: Vec<Page>,
    /// The first misuse of the memory.
    pub wrong: Option<String>,
}

impl<'a> Turn<'a> {
    pub fn new(memory: &'a mut Memory, payload: &'a [u64]) -> Self {
        Self {
            memory,
            payload,
            sent: Vec::new(),
            installed: Vec::new(),
            poisoned: false,
            restored: Vec::new(),
            touched: Vec::new(),
            wrong: None,
        }
    }

    fn require(&mut self, holds: bool, what: &str, page: Page) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(format!("effects: {what} ({page:?})"));
        }
    }

    /// A frame is used, so it exists from then on.
    fn use_frame(&mut self, page: Page) {
        self.memory.present[page.0 as usize] = true;
    }

    fn set(&mut self, page: Page, mapping: Mapping) {
        self.memory.mappings[page.0 as usize] = mapping;
        self.touched.push(page);
    }
}

impl Effects for Turn<'_> {
    fn send(&mut self, to: NodeId, message: Message) {
        let mut payload = Vec::new();
        let pages = match &message {
            Message::Grant(grant) => &grant.pages[..],
            Message::HandOver(hand_over) => &hand_over.pages,
            _ => &[],
        };
        match &message {
            Message::Walk(Walk::Offer(offer)) => {
                let writable = self.memory.allows(offer.page, Access::Write);
                self.require(!writable, "offered while it can be written", offer.page);
                payload.push(self.memory.frame(offer.page));
            }
            Message::Walk(Walk::Join(join)) => {
                payload.push(self.memory.twins[join.page.0 as usize].unwrap_or(u64::MAX));
            }
            _ => {}
        }
        for granted in pages {
            let writable = self.memory.allows(granted.page, Access::Write);
            self.require(!writable, "granted while it can be written", granted.page);
            if granted.data {
                payload.push(self.memory.frame(granted.page));
                self.use_frame(granted.page);
            }
        }
        self.sent.push((to, message, payload));
    }

    fn fill(&mut self, page: Page, payload: usize) {
        let Some(&value) = self.payload.get(payload) else {
            return self.require(false, "filled from bytes that did not come", page);
        };
        let same = self.memory.frame(page) == value;
        let mapped = self.memory.allows(page, Access::Read);
        self.require(!mapped || same, "bytes changed under a reader", page);
        self.memory.frames[page.0 as usize] = value;
        self.use_frame(page);
        self.touched.push(page);
    }

    fn install(&mut self, page: Page, right: Access) {
        let mapping = self.memory.mapping(page);
        self.require(mapping != Mapping::Poisoned, "installed after poisoning", page);
        let lowers = mapping == Mapping::Write && right == Access::Read;
        self.require(!lowers, "an installation took away a right", page);
        self.set(page, Mapping::of(right));
        self.use_frame(page);
        self.installed.push((page, right));
    }

    fn protect(&mut self, pages: &[Page]) {
        for &page in pages {
            let mapping = self.memory.mapping(page);
            self.require(mapping == Mapping::Write, "protected, but not writable", page);
            self.set(page, Mapping::Read);
        }
    }

    fn revoke(&mut self, pages: &[Page]) {
        for &page in pages {
            let mapped = self.memory.allows(page, Access::Read);
            self.require(mapped, "revoked, but not mapped", page);
            self.set(page, Mapping::None);
        }
    }

    fn may_take(&mut self, page: Page) -> bool {
        self.memory.present[page.0 as usize] || self.memory.count() < self.memory.capacity
    }

    fn discard(&mut self, page: Page) {
        let mapping = self.memory.mapping(page);
        let allowed = mapping != Mapping::Poisoned || self.memory.recovers;
        self.require(allowed, "discarded after poisoning", page);
        self.set(page, Mapping::None);
        self.memory.frames[page.0 as usize] = 0;
        self.memory.present[page.0 as usize] = false;
    }

    fn poison(&mut self, page: Page) {
        self.poisoned = true;
        self.set(page, Mapping::Poisoned);
    }

    fn unpoison(&mut self, pages: Range<Page>) {
        for page in (pages.start.0..pages.end.0).map(Page) {
            let mapped = self.memory.allows(page, Access::Read);
            self.require(!mapped, "unpoisoned, but mapped", page);
            self.set(page, Mapping::None);
        }
    }

    fn restore(&mut self, page: Page) {
        let mapped = self.memory.allows(page, Access::Read);
        self.require(!mapped, "restored under a reader", page);
        let Some(value) = self.memory.staged else {
            return self.require(false, "restored without content", page);
        };
        self.memory.frames[page.0 as usize] = value;
        self.use_frame(page);
        self.restored.push(page);
    }

    fn fingerprint(&mut self, page: Page) -> u64 {
        let writable = self.memory.allows(page, Access::Write);
        self.require(!writable, "fingerprint of bytes that can be written", page);
        self.use_frame(page);
        self.memory.frame(page)
    }

    fn zero_fingerprint(&self) -> u64 {
        0
    }

    fn table(&mut self, page: Page, _: bool, here: &dyn Fn(Page) -> bool) -> Option<WalkTable> {
        let table = WalkTable { level: 1, link: None };
        self.is_table(page, table, true, here).then_some(table)
    }

    fn is_table(&mut self, page: Page, _: WalkTable, _: bool, _: &dyn Fn(Page) -> bool) -> bool {
        self.memory.tables[page.0 as usize] && self.memory.frame(page) & UNFIT == 0
    }

    fn copy_twin(&mut self, page: Page) {
        let writable = self.memory.allows(page, Access::Write);
        self.require(!writable, "twin of bytes that can be written", page);
        self.memory.twins[page.0 as usize] = Some(self.memory.frame(page));
    }

    fn drop_twin(&mut self, page: Page) {
        self.memory.twins[page.0 as usize] = None;
    }

    fn take_changes(&mut self, page: Page, changes: &mut Vec<Change>) {
        let (frame, twin) = (self.memory.frame(page), self.memory.twins[page.0 as usize]);
        let Some(twin) = twin else { return self.require(false, "a page without a twin", page) };
        for index in 0..WORDS {
            let (old, new) = (word(twin, index), word(frame, index));
            if old != new {
                changes.push(Change { page, index, old, new });
            }
        }
        self.memory.twins[page.0 as usize] = Some(frame);
    }

    fn twin_word(&mut self, page: Page, index: u16) -> u64 {
        self.memory.twins[page.0 as usize].map_or(u64::MAX, |twin| word(twin, index))
    }

    fn twin_fingerprint(&mut self, page: Page) -> u64 {
        self.memory.twins[page.0 as usize].unwrap_or(u64::MAX)
    }

    fn apply(&mut self, changes: &[Change]) -> Option<Conflict> {
        let mut conflict = None;
        for &Change { page, index, new, .. } in changes {
            let mapped = self.memory.allows(page, Access::Read);
            self.require(!mapped, "words changed under a processor", page);
            let (frame, Some(twin)) = (self.memory.frame(page), self.memory.twins[page.0 as usize])
            else {
                self.require(false, "words of a page without a twin", page);
                continue;
            };
            let mine = word(frame, index);
            if mine != word(twin, index) && mine != new {
                conflict = Some(Conflict { page, index, one: mine, other: new });
            }
            self.memory.frames[page.0 as usize] = with_word(frame, index, new);
            self.memory.twins[page.0 as usize] = Some(with_word(twin, index, new));
            self.touched.push(page);
        }
        conflict
    }

    fn conflict(&mut self, conflict: Conflict) {
        self.require(false, &format!("{conflict:x?}"), conflict.page);
    }
}
