//! Pages of which nothing was left get new content.
//!
//! A node *restores* a run of lost pages, all of one lease block. It has the content; nobody else needs
//! it before he touches a page, so no bytes travel.
//!
//! 1. It asks the run's recoverer, which has one answer for each page: the first to ask gets all of the
//!    run, if each page of it is still lost there, and whoever comes later gets none.
//! 2. The recoverer tells all survivors that the pages are not lost, who will own them, and from which
//!    version on. Each takes the poison away, points its hints at the owner, and says so to it.
//! 3. When all have said so, the restorer puts the content in place, and owns the pages.
//!
//! # Why it is right
//!
//! *One owner.* No survivor owns a lost page, and nobody comes to but the one that the recoverer
//! has named; it names none for a page that is not lost, and no page is lost anew within an epoch.
//!
//! *The content is in force* when the restorer has all answers, and not before: nobody is told that
//! the page is lost any more, and all paths of hints lead to it.
//! Requests that reach it earlier find it below the version that they were told of, and wait there,
//! as for any grant under way. Its own threads find the page lost until then.
//!
//! *No frame has the version.* The recoverer knows the highest of all frames at survivors from the last
//! ruling, and the frames of a page that is lost get no higher. So an old frame is never taken for the
//! content.
//!
//! *A further loss* ends every restore that lacks an answer: the answers belong to an epoch that is
//! over. Then nobody owns the page, nobody has a copy, and nobody takes it for untouched: who was
//! told knows single pages of the block, and who was not reports it lost, or is its first owner and
//! has given it away. So it is ruled lost, for all. A restorer with all answers is an owner like others:
//! it keeps the page, and nobody has it lost any more.
//!
//! *It ends*, since each step waits for messages of survivors only, which answer at once.

use std::ops::Range;

use super::super::mutation::Mutation;
use super::super::table::{Entry, Role, Sharing};
use super::super::{Effects, Message, PageState, Protocol};
use super::{Phase, Recover, Run};
use crate::types::{NodeId, NodeSet, Page, Version};

/// What became of pages that this node was to restore.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Restored {
    /// They have the new content, for all survivors.
    Done,
    /// Nothing has changed: this one is not lost, or another node restores it.
    NotLost(Page),
    /// They are lost as before, because of a further loss. Another node may come first now.
    Interrupted,
}

/// Pages that this node has begun to restore.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Restoring {
    run: Run,
    /// From which version on it owns them; known when the recoverer has promised them.
    version: Option<Version>,
    /// Who is not known to have been told.
    missing: NodeSet,
}

impl Protocol {
    /// The first of `pages`, which are in the region, of which something is left.
    pub fn first_not_lost(&self, pages: Range<Page>) -> Option<Page> {
        let lost = |page| self.table.get(page).state == PageState::Lost;
        let mut at = pages.start;
        for (run, ()) in self.runs_of(pages.clone(), |page| lost(page).then_some(())) {
            if run.first > at {
                break;
            }
            at = run.end();
        }
        (at < pages.end).then_some(at)
    }

    /// Whether pages can be restored now: no loss is being settled, and no other restore is under way.
    pub fn may_restore(&self) -> bool {
        let recovery = &self.recovery;
        let free = recovery.restoring.is_none() && recovery.restored.is_none();
        !self.ended && !self.is_recovering() && free
    }

    /// Gives new content to the pages in `run`, which are of one lease block: [`Effects::restore`] is asked
    /// for it when it is in force everywhere. [`Protocol::take_restored`] says what became of it. Without
    /// effect unless it [may](Protocol::may_restore) be.
    pub fn restore<E: Effects>(&mut self, run: Run, fx: &mut E) {
        if !self.may_restore() {
            return;
        }
        let begins = self.is_in_one_block(run);
        let Some(recoverer) = self.table.recoverer(run.first).filter(|_| begins) else {
            self.recovery.restored = Some(Restored::NotLost(run.first));
            return;
        };
        if let Some(page) = self.first_not_lost(run.first..run.end()) {
            self.recovery.restored = Some(Restored::NotLost(page));
            return;
        }
        let missing = self.members().without(self.me());
        self.recovery.restoring = Some(Restoring { run, version: None, missing });
        if recoverer == self.me() {
            self.promise(run, recoverer, fx);
        } else {
            self.send(recoverer, Message::Recover(Recover::Restore { run }), fx);
        }
        self.settle(fx);
    }

    /// What became of the last restore; said once.
    pub fn take_restored(&mut self) -> Option<Restored> {
        self.recovery.restored.take()
    }

    /// A loss comes between.
    pub(super) fn interrupt_restore(&mut self) {
        if self.recovery.restoring.take().is_some() {
            self.recovery.restored = Some(Restored::Interrupted);
        }
    }

    /// Whether the pages are in the part of the region that this machine serves, and of one lease block.
    fn is_in_one_block(&self, run: Run) -> bool {
        let served = self.served.start <= run.first && run.end() <= self.served.end;
        served
            && run.pages > 0
            && run.end() <= self.table.block_pages(self.table.block_start(run.first)).end
    }

    /// Whether a message about the restoring of these pages may come: all have settled the last loss.
    fn is_restore_due(&self, run: Run) -> bool {
        matches!(self.recovery.phase, Phase::None | Phase::Settling) && self.is_in_one_block(run)
    }

    /// At the recoverer: `from` wants to restore these pages. Whether it may ask that here.
    pub(super) fn receive_restore<E: Effects>(
        &mut self,
        from: NodeId,
        run: Run,
        fx: &mut E,
    ) -> bool {
        if !self.is_restore_due(run) || self.table.recoverer(run.first) != Some(self.me()) {
            return false;
        }
        match self.first_not_to_give(run) {
            Some(page) => {
                self.send(from, Message::Recover(Recover::NotLost { run, page }), fx);
            }
            None => self.promise(run, from, fx),
        }
        true
    }

    /// At the recoverer: the first page of `run` that is not lost, or that this node restores.
    fn first_not_to_give(&self, run: Run) -> Option<Page> {
        if self.mutated(Mutation::RecoverPromisingTwice) {
            return None;
        }
        // What another node restores is not lost here any more.
        let mine = self.recovery.restoring.as_ref().map(|restoring| restoring.run);
        let mine = mine.filter(|mine| mine.first < run.end() && run.first < mine.end());
        let first = mine.map(|mine| mine.first.max(run.first));
        first.or_else(|| self.first_not_lost(run.first..run.end()))
    }

    /// At the recoverer: `owner` gets these pages.
    fn promise<E: Effects>(&mut self, run: Run, owner: NodeId, fx: &mut E) {
        let version = if self.mutated(Mutation::RecoverRestoringOld) {
            Version::ZERO.next()
        } else {
            self.recovery.above
        };
        for node in self.members().without(self.me()).iter() {
            let unlost = Recover::Unlost { run, owner, version };
            self.send(node, Message::Recover(unlost), fx);
        }
        if owner == self.me() {
            self.take_promise(owner, run, version, fx);
        } else {
            self.unlose(run, owner, version, fx);
        }
    }

    /// The recoverer has given these pages to `owner`; whether that is due.
    pub(super) fn receive_unlost<E: Effects>(
        &mut self,
        from: NodeId,
        (run, owner, version): (Run, NodeId, Version),
        fx: &mut E,
    ) -> bool {
        let entitled = self.table.recoverer(run.first) == Some(from) && from != self.me();
        if !self.is_restore_due(run) || !entitled || !self.members().contains(owner) {
            return false;
        }
        if owner == self.me() {
            return self.take_promise(from, run, version, fx);
        }
        let lost = self.first_not_lost(run.first..run.end()).is_none();
        if !lost && !self.mutated(Mutation::RecoverPromisingTwice) {
            return false;
        }
        self.unlose(run, owner, version, fx);
        self.send(owner, Message::Recover(Recover::Cleared { run }), fx);
        true
    }

    /// `owner` will have these pages: who needs one asks it from now on.
    fn unlose<E: Effects>(&mut self, run: Run, owner: NodeId, version: Version, fx: &mut E) {
        for page in (run.first.0..run.end().0).map(Page) {
            let entry = self.table.get(page);
            let role = Role::Holder { owner, owner_since: version };
            self.table.put(page, Entry { state: PageState::Invalid, role, ..entry });
        }
        if !self.mutated(Mutation::RecoverKeepingPoison) {
            fx.unpoison(run.first..run.end());
        }
    }

    /// At the restorer: it will own the pages from this version on; whether it has asked for them.
    fn take_promise<E: Effects>(
        &mut self,
        recoverer: NodeId,
        run: Run,
        version: Version,
        fx: &mut E,
    ) -> bool {
        let restoring = self.recovery.restoring.as_mut().filter(|restoring| restoring.run == run);
        let Some(restoring) = restoring.filter(|restoring| restoring.version.is_none()) else {
            return false;
        };
        restoring.version = Some(version);
        restoring.missing.remove(recoverer);
        self.finish_restore(fx);
        true
    }

    /// At the restorer: `from` has been told; whether that was missing.
    pub(super) fn receive_cleared<E: Effects>(
        &mut self,
        from: NodeId,
        run: Run,
        fx: &mut E,
    ) -> bool {
        let restoring = self.recovery.restoring.as_mut().filter(|restoring| restoring.run == run);
        let Some(restoring) = restoring else { return false };
        let was_missing = restoring.missing.remove(from);
        self.finish_restore(fx);
        was_missing
    }

    /// At the restorer: the recoverer has refused the pages because of this one; whether it was asked.
    pub(super) fn receive_not_lost(&mut self, from: NodeId, run: Run, page: Page) -> bool {
        let asked = |restoring: &mut Restoring| restoring.run == run && restoring.version.is_none();
        let named = (run.first..run.end()).contains(&page);
        let due = named && self.table.recoverer(run.first) == Some(from);
        if !due || self.recovery.restoring.take_if(asked).is_none() {
            return false;
        }
        self.recovery.restored = Some(Restored::NotLost(page));
        true
    }

    /// At the restorer: when all have been told, the content is in force.
    fn finish_restore<E: Effects>(&mut self, fx: &mut E) {
        let enough = usize::from(self.mutated(Mutation::RecoverRestoringEarly));
        let told = |restoring: &mut Restoring| {
            restoring.version.is_some() && restoring.missing.len() <= enough
        };
        let restoring = self.recovery.restoring.take_if(told);
        let Some(Restoring { run, version: Some(version), .. }) = restoring else { return };
        let pages = || (run.first.0..run.end().0).map(Page);
        for page in pages() {
            fx.restore(page);
            // Old frames have other bytes, whatever their version.
            let sharing = Sharing::Copies(NodeSet::EMPTY);
            let role = Role::Owner { same_since: version, migratory: 0, sharing };
            self.table.put(page, Entry { state: PageState::Invalid, version, role });
        }
        fx.unpoison(run.first..run.end());
        self.counters.pages_restored += u64::from(run.pages);
        self.recovery.restored = Some(Restored::Done);
        // Who was told early may have asked.
        self.attend_all(pages().collect(), fx);
    }
}
