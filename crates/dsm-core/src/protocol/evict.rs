//! Memory is short: frames are given back.
//!
//! A frame that has gone reads as zeros, which is version 0 of its page. So the node says that it has
//! version 0, and gets bytes where it would have needed none before. That makes the frame's version a
//! promise to whoever answers a request: while a copy of a request that names it is under way, the
//! frame stays.

use super::mutation::Mutation;
use super::table::{Entry, Role, Sharing};
use super::{Effects, PageState, Protocol};
use crate::types::{Access, Age, Page, Version};

/// What became of a page that was to give its frame back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Eviction {
    /// The frame has gone; whoever needs the page faults.
    Done,
    /// Something needs the frame: what is under way for the page, a hold, or an episode.
    Kept,
    /// The frame has the only bytes.
    Owned,
}

impl Protocol {
    /// An age younger than that of every episode, for what nobody waits for.
    pub fn youngest(&self) -> Age {
        Age { clock: u64::MAX, node: self.me() }
    }

    /// The age for whose sake frames are given back: that of the oldest that waits for one, so that it
    /// gets those of younger episodes, and not its own; the youngest if nobody waits.
    pub fn shortage_age(&self) -> Age {
        let need = |page| self.pending.get(page).and_then(|pending| pending.need);
        let oldest = self.starved.iter().filter_map(need).map(|need| need.age).min();
        oldest.map_or(self.youngest(), |age| Age { clock: age.clock.saturating_add(1), ..age })
    }

    /// Whether the frame of `page` may go for the sake of something of this age.
    pub fn may_evict(&self, page: Page, age: Age) -> bool {
        let requested =
            self.pending.contains_key(&page) && !self.mutated(Mutation::EvictWhileRequested);
        let held =
            self.episodes.keeps(page, Access::Write, age) && !self.mutated(Mutation::EvictHeld);
        let shared = self.is_walk_shared(page);
        let known = page.0 < self.table.pages();
        // Ownership that is counted on may come without the bytes.
        let frozen = self.is_recovering() && !self.mutated(Mutation::RecoverEvicting);
        !self.ended && !frozen && known && !shared && !requested && !held && !self.promised(page)
    }

    /// Whether the page can do without its frame, as far as is known without looking at the bytes.
    pub fn is_dispensable(&self, page: Page) -> bool {
        match self.table.get(page).role {
            Role::Holder { .. } => true,
            Role::Owner { same_since, sharing, .. } => {
                let same =
                    matches!(sharing, Sharing::Copies(_)) || self.settings.features.unchanged;
                same && same_since == Version::ZERO || self.mutated(Mutation::EvictTheOnlyBytes)
            }
        }
    }

    /// Whether the copies of a request that are under way speak of the frame of `page`.
    fn promised(&self, page: Page) -> bool {
        let relies = |closed: bool| match closed {
            true => !self.mutated(Mutation::EvictWhileCopiesAreUnderWay),
            false => !self.mutated(Mutation::EvictWhileRequested),
        };
        self.outbound.values().any(|outbound| {
            (outbound.page == page || outbound.companions.contains(&page))
                && relies(outbound.closed)
        })
    }

    /// Gives the frame of `page` back, if no episode older than `age` keeps it and nothing is lost.
    ///
    /// A copy goes without a word: its owner still counts it, and its invalidation is acknowledged
    /// like any that finds no copy. An owner's frame goes if its bytes are zero.
    pub fn evict<E: Effects>(&mut self, page: Page, age: Age, fx: &mut E) -> Eviction {
        if !self.may_evict(page, age) {
            return Eviction::Kept;
        }
        let entry = self.table.get(page);
        if entry.is_owner() && !self.is_zero(page, &entry, fx) {
            return Eviction::Owned;
        }
        let entry = self.table.get(page);
        let version = match entry.role {
            Role::Holder { .. } if !self.mutated(Mutation::EvictWithoutForgetting) => Version::ZERO,
            _ => entry.version,
        };
        let state = match entry.state {
            // If it was poisoned, whoever touches it faults once more, and it is again.
            PageState::Lost => PageState::Lost,
            _ => PageState::Invalid,
        };
        self.table.put(page, Entry { state, version, ..entry });
        self.counters.evicted += 1;
        fx.discard(page);
        self.episodes.lost(page, None, &mut self.rewant);
        self.settle(fx);
        Eviction::Done
    }

    /// Whether a page owned here is zero as far as this node knows. A page that was zero when this
    /// node came to write it becomes `Invalid` for the comparison.
    fn is_zero<E: Effects>(&mut self, page: Page, entry: &Entry, fx: &mut E) -> bool {
        match entry.role {
            Role::Owner { sharing: Sharing::Copies(_), .. }
                if self.mutated(Mutation::EvictTheOnlyBytes) =>
            {
                true
            }
            Role::Owner { same_since, migratory, sharing: Sharing::Sole(_) }
                if same_since == Version::ZERO && self.settings.features.unchanged =>
            {
                fx.revoke(&[page]);
                let (same_since, _, copyset) = self.close_entry(page, entry, fx);
                let role = Role::Owner { same_since, migratory, sharing: Sharing::Copies(copyset) };
                self.table.put(page, Entry { state: PageState::Invalid, role, ..*entry });
                self.episodes.lost(page, None, &mut self.rewant);
                same_since == Version::ZERO
            }
            Role::Owner { same_since, sharing: Sharing::Copies(_), .. } => {
                same_since == Version::ZERO
            }
            _ => false,
        }
    }
}
