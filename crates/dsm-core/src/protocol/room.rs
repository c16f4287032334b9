//! A node that owns more than its share hands pages over to nodes with room.
//!
//! It first asks one for room; the other answers how many frames it keeps free for it, none if it has
//! none itself. Only against such a credit are pages handed over, so a page never comes to a node that
//! has no frame for it, and nobody waits for another's eviction while keeping him waiting for his own:
//! who is asked answers at once.

use std::collections::{BTreeMap, BTreeSet};

use super::mutation::Mutation;
use super::table::{Entry, Role, Sharing};
use super::{
    Effects, HandOver, Message, PageGrant, PageState, Protocol, Right, Room, RoomUnused,
    RoomWanted, Violation,
};
use crate::types::{Age, NodeId, NodeSet, Page, Version};

/// Most pages of one [`HandOver`].
pub const HAND_OVER_MAX: usize = 16;

/// Credits given and taken.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Rooms {
    /// Frames kept free here, by the node for whose pages they are.
    given: BTreeMap<NodeId, u32>,
    /// Frames that other nodes keep free for pages from here.
    taken: BTreeMap<NodeId, u32>,
    /// Nodes that wait for this node's answer, with what they want.
    asked: BTreeMap<NodeId, RoomWanted>,
    /// Nodes that have not answered yet.
    asking: BTreeSet<NodeId>,
}

impl Rooms {
    /// Nobody will answer what was asked before a loss, and nobody waits for an answer.
    pub(super) fn forget_questions(&mut self) {
        self.asked.clear();
        self.asking.clear();
    }
}

impl Protocol {
    /// Whether threads wait for pages that found no frame.
    pub fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// There may be frames again: goes on with the pages that found none, the oldest need first.
    pub fn feed<E: Effects>(&mut self, fx: &mut E) {
        let starved = std::mem::take(&mut self.starved).into_iter();
        let need = |page: &Page| self.pending.get(page).and_then(|pending| pending.need);
        let mut needed: Vec<(Age, Page)> =
            starved.filter_map(|page| need(&page).map(|need| (need.age, page))).collect();
        needed.sort_unstable();
        for (_, page) in needed {
            self.resume(page, fx);
        }
        self.settle(fx);
    }

    /// There will be no frame for the pages that wait for one: their threads learn that they are lost.
    pub fn give_up_starved<E: Effects>(&mut self, fx: &mut E) {
        for page in std::mem::take(&mut self.starved) {
            let Some(pending) = self.pending.get_mut(&page) else { continue };
            pending.need = None;
            self.tidy(page);
            self.lose(page, fx);
        }
    }

    /// Asks `node` for room for pages from here, unless it has been asked.
    pub fn ask_room<E: Effects>(&mut self, node: NodeId, wanted: RoomWanted, fx: &mut E) {
        let member = self.members().contains(node) && node != self.me();
        let asks = !self.ended && !self.is_recovering() && member;
        if asks && self.rooms.asking.insert(node) {
            self.send(node, Message::RoomWanted(wanted), fx);
        }
    }

    /// Whether some node has yet to answer.
    pub fn is_asking_room(&self) -> bool {
        !self.rooms.asking.is_empty()
    }

    /// A node that waits for this one's answer, and what it wants.
    pub fn room_asked(&self) -> Option<(NodeId, RoomWanted)> {
        self.rooms.asked.first_key_value().map(|(&node, &wanted)| (node, wanted))
    }

    /// Answers `node`: `frames` are free for its pages from now on.
    pub fn give_room<E: Effects>(&mut self, node: NodeId, frames: u8, fx: &mut E) {
        if self.rooms.asked.remove(&node).is_none() {
            return;
        }
        *self.rooms.given.entry(node).or_default() += u32::from(frames);
        self.send(node, Message::Room(Room { frames }), fx);
    }

    /// Frames that are kept free here for pages of other nodes.
    pub fn room_given(&self) -> u64 {
        self.rooms.given.values().map(|&frames| u64::from(frames)).sum()
    }

    /// A node that keeps frames free for pages from here, and how many.
    pub fn room_taken(&self) -> Option<(NodeId, u32)> {
        let taken = self.rooms.taken.first_key_value().filter(|_| !self.is_recovering());
        taken.map(|(&node, &frames)| (node, frames))
    }

    /// Gives back what `node` keeps free.
    pub fn return_room<E: Effects>(&mut self, node: NodeId, fx: &mut E) {
        if self.is_recovering() {
            return;
        }
        let Some(frames) = self.rooms.taken.remove(&node) else { return };
        self.send(node, Message::RoomUnused(RoomUnused { frames }), fx);
    }

    /// Whether this node owns `page`, and may hand it over for the sake of something of this age.
    pub fn may_hand_over(&self, page: Page, age: Age) -> bool {
        self.table.get(page).is_owner()
            && !self.is_unannounced(page)
            && (self.may_evict(page, age) || self.mutated(Mutation::HandOverWhileBusy))
    }

    /// Hands those of `pages` over to `to` that may go, as far as it keeps frames free for them, and
    /// gives back their frames here. Says how many went.
    pub fn hand_over<E: Effects>(
        &mut self,
        pages: &[Page],
        to: NodeId,
        age: Age,
        fx: &mut E,
    ) -> usize {
        let room = self.rooms.taken.get(&to).map_or(0, |&frames| frames as usize);
        let room = if self.mutated(Mutation::HandOverWithoutRoom) { 1 } else { room };
        let pages: BTreeSet<Page> = pages.iter().copied().collect();
        let pages: Vec<Page> = pages
            .into_iter()
            .filter(|&page| self.may_hand_over(page, age))
            .take(room.min(HAND_OVER_MAX))
            .collect();
        if pages.is_empty() || to == self.me() {
            return 0;
        }
        let mapped: Vec<Page> = pages
            .iter()
            .copied()
            .filter(|&page| self.table.get(page).state != PageState::Invalid)
            .collect();
        if !mapped.is_empty() && !self.mutated(Mutation::HandOverStillMapped) {
            fx.revoke(&mapped);
        }
        let grants = pages.iter().map(|&page| self.close_for(page, to, fx)).collect();
        self.take_credit(to, pages.len());
        self.counters.handed_over += pages.len() as u64;
        self.send(to, Message::HandOver(HandOver { pages: grants }), fx);
        for &page in &pages {
            fx.discard(page);
            self.episodes.lost(page, None, &mut self.rewant);
        }
        self.settle(fx);
        pages.len()
    }

    fn take_credit(&mut self, node: NodeId, frames: usize) {
        if let Some(left) = self.rooms.taken.get_mut(&node) {
            *left = left.saturating_sub(frames as u32);
            if *left == 0 {
                self.rooms.taken.remove(&node);
            }
        }
    }

    /// Gives `page` away, and describes it for the next owner.
    fn close_for<E: Effects>(&mut self, page: Page, to: NodeId, fx: &mut E) -> PageGrant {
        let entry = self.table.get(page);
        let (same_since, migratory, copyset) = self.close_entry(page, &entry, fx);
        let copyset = if self.mutated(Mutation::HandOverWithoutCopyset) {
            NodeSet::EMPTY
        } else {
            copyset.without(to)
        };
        // The frame goes as well: it is version 0 from now on.
        let role = Role::Holder { owner: to, owner_since: entry.version.next() };
        let given = Entry { state: PageState::Invalid, version: Version::ZERO, role };
        self.table.put(page, given);
        let right = Right::Ownership { same_since, copyset, migratory };
        PageGrant { page, version: entry.version, right, data: true, check: None }
    }

    pub(super) fn receive_room_wanted(&mut self, from: NodeId, wanted: RoomWanted) {
        self.rooms.asked.insert(from, wanted);
    }

    pub(super) fn receive_room(&mut self, from: NodeId, room: Room) -> Result<(), Violation> {
        if !self.rooms.asking.remove(&from) {
            return Err(Violation::Room { node: from.index() });
        }
        if room.frames > 0 {
            let taken = self.rooms.taken.entry(from).or_default();
            *taken = taken.saturating_add(room.frames.into());
        }
        Ok(())
    }

    pub(super) fn receive_room_unused(
        &mut self,
        from: NodeId,
        unused: RoomUnused,
    ) -> Result<(), Violation> {
        self.use_room(from, unused.frames)
    }

    /// `frames` of what is kept free for `node` are not any more.
    fn use_room(&mut self, node: NodeId, frames: u32) -> Result<(), Violation> {
        let given = self.rooms.given.get(&node).copied().unwrap_or(0);
        match given.checked_sub(frames) {
            Some(0) => _ = self.rooms.given.remove(&node),
            Some(left) => _ = self.rooms.given.insert(node, left),
            None => return Err(Violation::Room { node: node.index() }),
        }
        Ok(())
    }

    /// Pages come with their ownership, unasked for. Nobody was told to drop a copy: the new owner
    /// takes them as they are, at the next version.
    pub(super) fn receive_hand_over<E: Effects>(
        &mut self,
        from: NodeId,
        hand_over: HandOver,
        fx: &mut E,
    ) -> Result<(), Violation> {
        self.accept_hand_over(from, &hand_over, fx)?;
        for granted in &hand_over.pages {
            // A request of this node that is under way will meet its own ownership.
            self.resume(granted.page, fx);
        }
        Ok(())
    }

    /// Takes the pages, and makes nothing of them yet.
    pub(super) fn accept_hand_over<E: Effects>(
        &mut self,
        from: NodeId,
        hand_over: &HandOver,
        fx: &mut E,
    ) -> Result<(), Violation> {
        self.use_room(from, hand_over.pages.len() as u32)?;
        let mut payload = 0;
        for granted in &hand_over.pages {
            let source = payload;
            payload += usize::from(granted.data);
            self.take_over(granted, source, fx)?;
        }
        Ok(())
    }

    fn take_over<E: Effects>(
        &mut self,
        granted: &PageGrant,
        payload: usize,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let PageGrant { page, version, right, data, .. } = *granted;
        let entry = self.table.get(page);
        let Right::Ownership { same_since, copyset, migratory } = right else {
            return Err(Violation::MalformedGrant { page: page.0 });
        };
        if entry.is_owner() {
            return Err(Violation::SecondOwner { page: page.0 });
        }
        self.check_nodes(copyset)?;
        if same_since > version || !data {
            return Err(Violation::MalformedGrant { page: page.0 });
        }
        self.counters.pages_received += 1;
        // A copy that is readable here has these bytes.
        if entry.state == PageState::Invalid {
            fx.fill(page, payload);
        }
        let sharing = Sharing::Copies(copyset.without(self.me()));
        let role = Role::Owner { same_since, migratory, sharing };
        let version =
            if self.mutated(Mutation::HandOverKeepsVersion) { version } else { version.next() };
        self.table.put(page, Entry { state: entry.state, version, role });
        if let Some(pending) = self.pending.get_mut(&page) {
            pending.request = None;
        }
        Ok(())
    }
}
