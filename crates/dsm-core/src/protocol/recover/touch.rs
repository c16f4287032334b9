//! First touches are announced, so that survivors can tell which memory of a lost node is still zero.
//!
//! A first owner may write pages of its own range without a word to anybody. When it is lost, nobody
//! could tell these from pages that are still zero. With [`super::super::Features::zeros`] it therefore
//! announces the first touch of each lease block, its own or another's, to all nodes, and waits for all
//! to have noted it; a round trip for 2 MiB. So when survivors rule on a block that one of them has not
//! noted, the owner was not through with the announcement: nobody has touched the block, nor
//! been given a page of it. Who rules then *adopts* the block, and must itself announce its first touch.
//!
//! What one survivor has noted and another has not may go either way: it was not touched, but who rules
//! may not know.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::mutation::Mutation;
use super::super::table::{Origin, Table};
use super::super::{Effects, Message, Protocol, Request};
use super::{Phase, Recover};
use crate::types::{NodeId, NodeSet, Page};

/// First touches that not all have noted, by the first page of the block.
pub(super) type Touches = BTreeMap<Page, Touching>;

/// A block whose first touch waits.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Touching {
    missing: NodeSet,
    /// Requests of others that are a first touch.
    waiting: Vec<Request>,
}

impl Table {
    /// Whether somebody may have touched the lease block of `page` whom this node cannot ask.
    pub(in super::super) fn was_touched(&self, page: Page) -> bool {
        self.touched[(page.0 / self.lease_pages) as usize]
    }

    /// Nobody has touched these blocks, as far as who rules on them knows.
    pub(super) fn note_untouched(&mut self, pages: Range<Page>) {
        for part in self.by_block(pages) {
            self.touched[(part.start.0 / self.lease_pages) as usize] = false;
        }
    }

    fn note_touch(&mut self, page: Page) {
        self.touched[(page.0 / self.lease_pages) as usize] = true;
    }

    /// Whether the block of `page` is untouched, and this node's to give.
    fn is_mine_untouched(&self, page: Page) -> bool {
        let mine = match self.origin(page) {
            Origin::Home => self.is_first(page),
            Origin::Adopted => true,
            _ => false,
        };
        mine && !self.was_touched(page)
    }
}

impl Protocol {
    /// Whether nothing may be done with `page`, owned here, before its first touch is announced.
    pub(in super::super) fn is_unannounced(&self, page: Page) -> bool {
        self.settings.features.zeros
            && self.recovers()
            && self.table.is_mine_untouched(page)
            && self.table.get(page).is_owner()
    }

    /// Announces the first touch of the block of `page`, owned here; whether it has to wait. A request
    /// that is the touch waits with it.
    pub(in super::super) fn announce<E: Effects>(
        &mut self,
        page: Page,
        request: Option<&Request>,
        fx: &mut E,
    ) -> bool {
        if !self.is_unannounced(page) {
            return false;
        }
        let start = self.table.block_start(page);
        if !self.recovery.touches.contains_key(&start) {
            let others = self.members().without(self.me());
            for node in others.iter() {
                self.send(node, Message::Recover(Recover::Touch { page: start }), fx);
            }
            if others.is_empty() || self.mutated(Mutation::RecoverTouchingEarly) {
                self.table.note_touch(start);
                return false;
            }
            let touching = Touching { missing: others, waiting: Vec::new() };
            self.recovery.touches.insert(start, touching);
        }
        if let Some(touching) = self.recovery.touches.get_mut(&start) {
            touching.waiting.extend(request.cloned());
        }
        true
    }

    /// A block is about to be touched by its owner, or has said so: whether that is due.
    pub(super) fn receive_touch<E: Effects>(
        &mut self,
        from: NodeId,
        page: Page,
        fx: &mut E,
    ) -> bool {
        self.table.note_touch(page);
        self.send(from, Message::Recover(Recover::Noted { page }), fx);
        matches!(self.recovery.phase, Phase::None | Phase::Settling)
    }

    /// `from` has noted the first touch of a block. When all have, what has waited goes on.
    pub(super) fn receive_noted<E: Effects>(&mut self, from: NodeId, page: Page, fx: &mut E) {
        let start = self.table.block_start(page);
        let Some(touching) = self.recovery.touches.get_mut(&start) else { return };
        touching.missing.remove(from);
        if !touching.missing.is_empty() {
            return;
        }
        let waiting = self.recovery.touches.remove(&start).unwrap_or_default().waiting;
        self.table.note_touch(start);
        let pages: Vec<Page> =
            self.pending.range(self.table.block_pages(start)).map(|(&page, _)| page).collect();
        for page in pages {
            self.resume(page, fx);
        }
        for request in waiting {
            self.receive_request(request, fx);
        }
    }
}
