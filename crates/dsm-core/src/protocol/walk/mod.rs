//! Page-table pages that several nodes may write at once, because nobody really does.
//!
//! Where a processor's walk of a guest's page tables counts as a write, though it stores nothing, two
//! nodes swap these pages for ever. A *walk-shared* page is mapped writable at several nodes. Each has
//! a *twin* of it, the bytes that all agreed on, and finds real stores by comparing the two.
//!
//! One node, the *home*, owns all walk-shared pages and puts everything that happens to them in
//! order. It holds who shares which page in the copyset, as of any page it owns.
//!
//! - *In*: an owner that alone has a page that another node asks to write, or whose bytes came back
//!   unchanged, and that can prove it to be a page table in which walks have nothing to set, gives it
//!   to the home instead of to who asks for it. The proof is made again with writes forbidden, then the bytes become the twin. The home
//!   answers further requests for it, to read or to write, with the twin's bytes ([`Join`]).
//! - *Flush*: before a node sends what lets another see its later stores, and after it has given up
//!   its right to what it sends, it compares. What it finds is one [`Report`], and the message waits
//!   until that is in force everywhere. Of two stores that are found, an earlier one of the same
//!   processor is never missing: the comparison is repeated until it finds nothing.
//! - *In force*: the home takes one report at a time. All who share a page in it take it from their
//!   processors ([`Freeze`]) and say so; when all have, they put in the words and map it again
//!   ([`Thaw`]). So no processor sees a new word while another can still see an old one, and none sees
//!   a part of a report.
//! - *Out*: a page that is no longer linked, or that a walk may have to store to, or that changes
//!   often, leaves in the same flush that found it. All give it up; what they had stored to it they
//!   report before they say so; when the home has put that in force, the page is its own, and
//!   ordinary.
//!
//! Freezing never waits for anything, so reports come through, and what waits for them goes on.
//!
//! Two nodes that change the same word have a guest that keeps more than page tables there: the home
//! finds that a report's old word is not the one in force. That is a [`Conflict`], which ends the
//! region.

mod home;
mod message;

use std::collections::BTreeMap;

pub use message::{
    CHANGES_MAX, Change, Freeze, Join, Link, Offer, Report, Table, WALK_PAGES_MAX, Walk,
};

use super::mutation::Mutation;
use super::pattern::make_room;
use super::table::{Entry, Role};
use super::{Effects, Message, PageState, Protocol, Violation};
use crate::types::{Access, NodeId, Page};
use home::Home;

/// The node that owns walk-shared pages.
pub const WALK_HOME: NodeId = match NodeId::new(0) {
    Some(node) => node,
    None => unreachable!(),
};

/// How often a comparison is repeated while processors store; then they are kept from it.
const PASSES: usize = 4;
/// Pages whose departures are counted.
const SCORES_MAX: usize = 4096;
/// Changes of a page within [`WINDOW`] ticks with which it is no longer walk-shared.
const CHANGES_OFTEN: u16 = 16;
/// Ticks over which the changes of a page are counted.
const WINDOW: u32 = 20;
/// Ticks after which a page's twins are compared.
const AUDIT: u32 = 4;

/// The same word was changed at two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Conflict {
    /// The page.
    pub page: Page,
    /// Which of its 512 words of 8 bytes.
    pub index: u16,
    /// What it was made by the one, or should have been.
    pub one: u64,
    /// What it was made by the other.
    pub other: u64,
}

/// What a node knows of walk-shared pages.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Walks {
    pages: BTreeMap<Page, Shared>,
    scores: BTreeMap<Page, Score>,
    /// Reports made here, and those of them that are in force.
    reported: u64,
    in_force: u64,
    /// What is frozen here: its order, and what will apply.
    frozen: Option<Freeze>,
    home: Home,
    ticks: u32,
}

/// A page that is walk-shared here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Shared {
    table: Table,
    /// Taken from this node's processors until a change applies.
    frozen: bool,
    /// Found unfit, and reported.
    leaves: bool,
    /// At the home: all have given it up, or are about to.
    closing: bool,
    /// At the home: nobody joins before this report of the home is in force.
    joins_after: u64,
    /// At the home: changes in this window.
    changes: u16,
}

impl Shared {
    fn new(table: Table) -> Self {
        Self { table, frozen: false, leaves: false, closing: false, joins_after: 0, changes: 0 }
    }
}

/// How often a page went away with the bytes that it came with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Score {
    unchanged: u8,
    /// How often it has been walk-shared and left again.
    left: u8,
}

impl Walks {
    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.in_force == self.reported && self.frozen.is_none() && self.home.is_idle()
    }

    fn is_frozen(&self, page: Page) -> bool {
        self.pages.get(&page).is_some_and(|shared| shared.frozen)
    }
}

impl Protocol {
    /// Threads walk page tables in these pages from now on, and that may count as a write.
    pub fn set_walks_write(&mut self) {
        self.settings.features.walks_write = true;
    }

    /// Page tables that somebody else asks to write, or that came back unchanged `after` times, are
    /// walk-shared from now on.
    pub fn share_walked(&mut self, after: u8) {
        self.settings.features.walk_shared = Some(after);
    }

    /// Pages that are walk-shared here.
    pub fn walk_shared(&self) -> usize {
        self.walks.pages.len()
    }

    /// Whether a message that other nodes' sight of stores depends on has to wait for
    /// [`Protocol::flush`].
    pub fn flushes(&self) -> bool {
        !self.walks.pages.is_empty() || self.walks.in_force < self.walks.reported
    }

    /// Tells the other nodes what was stored to walk-shared pages. What is sent from now on that
    /// [`Message::waits_for_flush`] may leave when [`Protocol::in_force`] has reached the number;
    /// at once if there is none.
    pub fn flush<E: Effects>(&mut self, fx: &mut E) -> Option<u64> {
        let number = self.flush_now(fx);
        self.settle(fx);
        number
    }

    fn flush_now<E: Effects>(&mut self, fx: &mut E) -> Option<u64> {
        if !self.flushes() || self.ended || self.mutated(Mutation::WalkWithoutFlush) {
            return None;
        }
        self.counters.walk_flushes += 1;
        let changes = self.compare(fx);
        let leave = self.unfit(&changes, fx);
        if !changes.is_empty() || !leave.is_empty() {
            self.counters.walk_reports += 1;
            self.counters.walk_words += changes.len() as u64;
            self.report(changes, leave, fx);
        }
        let Walks { reported, in_force, .. } = self.walks;
        (in_force < reported && !self.mutated(Mutation::WalkWithoutWaiting)).then_some(reported)
    }

    /// The last report of this node that is in force everywhere.
    pub fn in_force(&self) -> u64 {
        self.walks.in_force
    }

    /// Some milliseconds have passed: stores to walk-shared pages get about without any other message.
    pub fn walk_tick<E: Effects>(&mut self, fx: &mut E) {
        if self.walks.pages.is_empty() || self.ended {
            return;
        }
        self.flush_now(fx);
        self.walks.ticks = self.walks.ticks.wrapping_add(1);
        if self.walks.ticks.is_multiple_of(WINDOW) {
            self.walks.pages.values_mut().for_each(|shared| shared.changes = 0);
        }
        if self.me() == WALK_HOME && self.walks.ticks.is_multiple_of(AUDIT) {
            self.audit_next(self.walks.ticks / AUDIT, fx);
        }
        self.settle(fx);
    }

    /// All stores that the processors of this node have made to walk-shared pages and not reported.
    ///
    /// A store that is found may follow another of the same processor in a page that was compared
    /// before. So this goes on until it finds nothing new.
    fn compare<E: Effects>(&mut self, fx: &mut E) -> Vec<Change> {
        let pages: Vec<Page> = self.walks.pages.keys().copied().collect();
        let mut changes = Vec::new();
        let mut stopped = Vec::new();
        for pass in 0..=PASSES {
            if pass == PASSES {
                stopped = pages.iter().copied().filter(|&it| !self.walks.is_frozen(it)).collect();
                fx.protect(&stopped);
            }
            let before = changes.len();
            pages.iter().for_each(|&page| fx.take_changes(page, &mut changes));
            if changes.len() == before {
                break;
            }
        }
        stopped.into_iter().for_each(|page| fx.install(page, Access::Write));
        merge(changes)
    }

    /// Pages that should not be walk-shared any more; each is found once.
    fn unfit<E: Effects>(&mut self, changes: &[Change], fx: &mut E) -> Vec<Page> {
        let mut unfit = Vec::new();
        let table = &self.table;
        let here = |page: Page| table.is_readable(page);
        for (&page, shared) in &mut self.walks.pages {
            let at = changes.partition_point(|change| change.page < page);
            let changed = changes.get(at).is_some_and(|change| change.page == page);
            if !shared.leaves && !fx.is_table(page, shared.table, changed, &here) {
                shared.leaves = true;
                unfit.push(page);
            }
        }
        unfit
    }

    fn report<E: Effects>(&mut self, changes: Vec<Change>, leave: Vec<Page>, fx: &mut E) {
        self.walks.reported += 1;
        let number = self.walks.reported;
        if self.me() == WALK_HOME {
            // Its twins have the words already; others must not, before they are in force.
            for page in involved(&changes, &[]) {
                if let Some(shared) = self.walks.pages.get_mut(&page) {
                    shared.joins_after = number;
                }
            }
            return self.order_report(WALK_HOME, Report { number, changes, leave, last: true }, fx);
        }
        for (changes, leave, last) in parts(changes, leave) {
            let report = Report { number, changes, leave, last };
            self.send(WALK_HOME, Message::Walk(Walk::Report(report)), fx);
        }
    }

    pub(super) fn receive_walk<E: Effects>(
        &mut self,
        from: NodeId,
        walk: Walk,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let to_home = matches!(walk, Walk::Offer(_) | Walk::Report(_) | Walk::Frozen { .. });
        let (home, other) = if to_home { (self.me(), from) } else { (from, self.me()) };
        if self.settings.features.walk_shared.is_none() || home != WALK_HOME || other == WALK_HOME {
            return Err(Violation::WalkShared { node: from.index() });
        }
        match walk {
            Walk::Offer(offer) => self.receive_offer(offer, fx),
            Walk::Join(join) => self.receive_join(join, fx),
            Walk::Report(report) => self.receive_report(from, report, fx),
            Walk::Reported { number } => self.receive_reported(number, fx),
            Walk::Freeze(freeze) => self.receive_freeze(freeze, fx),
            Walk::Frozen { order } => self.receive_frozen(from, order, fx),
            Walk::Thaw { order } => self.receive_thaw(order, fx),
            Walk::Audit { page, fingerprint } => {
                self.receive_audit(page, fingerprint, fx);
                Ok(())
            }
        }
    }

    /// Pages and nodes within bounds; the decoder has checked the rest.
    pub(super) fn check_walk(&self, walk: &Walk) -> Result<(), Violation> {
        let check = |changes: &[Change], leave: &[Page]| {
            let pages = changes.iter().map(|change| change.page).chain(leave.iter().copied());
            pages.into_iter().try_for_each(|page| self.check_page(page))
        };
        match walk {
            Walk::Offer(offer) => {
                self.check_page(offer.page)?;
                offer.waiters.iter().try_for_each(|waiter| self.check_request(waiter))
            }
            Walk::Join(Join { page, .. }) | Walk::Audit { page, .. } => self.check_page(*page),
            Walk::Report(Report { changes, leave, .. })
            | Walk::Freeze(Freeze { changes, leave, .. }) => check(changes, leave),
            Walk::Reported { .. } | Walk::Frozen { .. } | Walk::Thaw { .. } => Ok(()),
        }
    }

    /// This node shares `page` from now on.
    fn receive_join<E: Effects>(&mut self, join: Join, fx: &mut E) -> Result<(), Violation> {
        let Join { seq, copies, page, version, table } = join;
        let entry = self.table.get(page);
        self.count_answered(seq, copies);
        if entry.is_owner() || entry.state == PageState::Shared {
            return Err(Violation::WalkPage { page: page.0 });
        }
        if entry.state == PageState::Invalid {
            self.counters.pages_received += 1;
            fx.fill(page, 0);
            fx.copy_twin(page);
            let role = Role::Holder { owner: WALK_HOME, owner_since: version };
            self.table.put(page, Entry { state: PageState::WalkShared, version, role });
            self.walks.pages.insert(page, Shared::new(table));
            self.counters.walk_joined += 1;
            self.install(page, Access::Write, fx);
        }
        self.close(seq, fx);
        Ok(())
    }

    fn receive_reported<E: Effects>(&mut self, number: u64, fx: &mut E) -> Result<(), Violation> {
        if number <= self.walks.in_force || number > self.walks.reported {
            return Err(Violation::WalkShared { node: WALK_HOME.index() });
        }
        self.reported(number, fx);
        Ok(())
    }

    /// Reports of this node up to `number` are in force.
    fn reported<E: Effects>(&mut self, number: u64, fx: &mut E) {
        self.walks.in_force = number;
        let waited = |shared: &Shared| shared.joins_after == number;
        let pages = self.walks.pages.iter().filter(|(_, shared)| waited(shared));
        let pages = pages.map(|(&page, _)| page).collect();
        self.attend_all(pages, fx);
    }

    /// Words are about to change, or pages to leave: this node's processors lose them.
    fn receive_freeze<E: Effects>(&mut self, part: Freeze, fx: &mut E) -> Result<(), Violation> {
        let pages: Vec<Page> = involved(&part.changes, &part.leave);
        if let Some(page) = pages.iter().find(|page| !self.walks.pages.contains_key(page)) {
            return Err(Violation::WalkPage { page: page.0 });
        }
        let freeze = match self.walks.frozen.take() {
            None => part,
            Some(mut earlier) if earlier.order == part.order && !earlier.last => {
                earlier.changes.extend(part.changes);
                (earlier.leave, earlier.last) = (part.leave, part.last);
                earlier
            }
            Some(_) => return Err(Violation::WalkShared { node: WALK_HOME.index() }),
        };
        self.freeze(&pages, fx);
        if !freeze.last {
            self.walks.frozen = Some(freeze);
            return Ok(());
        }
        let (order, leave) = (freeze.order, freeze.leave.clone());
        self.walks.frozen = Some(freeze);
        self.leave(&leave, fx);
        self.send(WALK_HOME, Message::Walk(Walk::Frozen { order }), fx);
        leave.into_iter().for_each(|page| self.resume(page, fx));
        Ok(())
    }

    /// Takes `pages` from this node's processors, until [`Protocol::thaw`].
    fn freeze<E: Effects>(&mut self, pages: &[Page], fx: &mut E) {
        if self.mutated(Mutation::WalkWithoutFreeze) {
            return;
        }
        let mut taken = Vec::new();
        for page in pages {
            if let Some(shared) = self.walks.pages.get_mut(page)
                && !std::mem::replace(&mut shared.frozen, true)
            {
                taken.push(*page);
            }
        }
        if !taken.is_empty() {
            fx.revoke(&taken);
        }
    }

    /// Gives up frozen pages for good. What was stored to them, and what was stored before to other
    /// pages, is reported first.
    fn leave<E: Effects>(&mut self, pages: &[Page], fx: &mut E) {
        if pages.is_empty() {
            return;
        }
        for page in pages {
            if let Some(shared) = self.walks.pages.get_mut(page) {
                shared.leaves = true;
            }
        }
        if !self.mutated(Mutation::WalkLeaveWithoutReport) {
            self.flush_now(fx);
        }
        for &page in pages {
            self.forget_walk(page, fx);
            let entry = self.table.get(page);
            self.table.put(page, Entry { state: PageState::Invalid, ..entry });
            self.episodes.lost(page, None, &mut self.rewant);
        }
    }

    fn forget_walk<E: Effects>(&mut self, page: Page, fx: &mut E) {
        self.walks.pages.remove(&page);
        fx.drop_twin(page);
        self.counters.walk_left += 1;
        let score = self.walks.scores.entry(page).or_default();
        *score = Score { unchanged: 0, left: score.left.saturating_add(1) };
    }

    fn receive_thaw<E: Effects>(&mut self, order: u64, fx: &mut E) -> Result<(), Violation> {
        let ready = self.walks.frozen.take_if(|frozen| frozen.order == order && frozen.last);
        let Some(freeze) = ready else {
            return Err(Violation::WalkShared { node: WALK_HOME.index() });
        };
        self.thaw(&freeze.changes, fx);
        Ok(())
    }

    /// Puts the words into this node's pages, and gives these back to its processors.
    fn thaw<E: Effects>(&mut self, changes: &[Change], fx: &mut E) {
        if let Some(conflict) = fx.apply(changes) {
            fx.conflict(conflict);
        }
        for page in involved(changes, &[]) {
            if let Some(shared) = self.walks.pages.get_mut(&page)
                && !shared.closing
            {
                shared.frozen = false;
                self.install(page, Access::Write, fx);
            }
        }
    }

    fn receive_audit<E: Effects>(&mut self, page: Page, fingerprint: u64, fx: &mut E) {
        let Walks { reported, in_force, frozen, .. } = &self.walks;
        let quiet = reported == in_force && frozen.is_none();
        if !quiet || !self.walks.pages.contains_key(&page) {
            return;
        }
        self.counters.walk_audits += 1;
        let found = fx.twin_fingerprint(page);
        if found != fingerprint {
            fx.conflict(Conflict { page, index: 0, one: fingerprint, other: found });
        }
    }

    /// A page has left `Modified`: walks count as writes and change nothing.
    pub(super) fn count_departure(&mut self, page: Page, unchanged: bool) {
        if self.settings.features.walk_shared.is_none() {
            return;
        }
        let scores = &mut self.walks.scores;
        if unchanged {
            make_room(scores, page, SCORES_MAX);
            let score = scores.entry(page).or_default();
            score.unchanged = score.unchanged.saturating_add(1);
        } else if let Some(score) = scores.get_mut(&page) {
            score.unchanged = score.unchanged.saturating_sub(1);
        }
    }

    /// Whether `page`, of which this node alone has the bytes and which somebody else asks for, may
    /// be walked there and here, and if so, whether that is likely.
    fn candidate(&self, page: Page, access: Access) -> Option<bool> {
        let after = self.settings.features.walk_shared?;
        if self.table.get(page).state != PageState::Modified
            || self.walks.pages.len() >= WALK_PAGES_MAX
            || self.episodes.holds(page)
        {
            return None;
        }
        let score = self.walks.scores.get(&page).copied().unwrap_or_default();
        let wanted = u32::from(after) << score.left.min(6);
        if u32::from(score.unchanged) >= wanted.min(u8::MAX.into()) {
            return Some(true);
        }
        // Tables that processors use are walked more often than changed, until they show otherwise.
        (access == Access::Write && score.left == 0).then_some(false)
    }

    /// Where a candidate stands in a page table, proven while nobody can write it; its processors
    /// have lost `right` then. Otherwise nothing has changed, but that it must prove itself anew.
    fn prove<E: Effects>(
        &mut self,
        page: Page,
        likely: bool,
        right: Access,
        fx: &mut E,
    ) -> Option<Table> {
        let proof = |fx: &mut E| match self.mutated(Mutation::WalkWithoutProof) {
            true => Some(Table { level: 1, link: None }),
            false => fx.table(page, likely, &|other| self.table.is_readable(other)),
        };
        // Looked at first as it is: most pages that are none need not be taken from anybody.
        if proof(fx).is_some() {
            match right {
                Access::Read => fx.revoke(&[page]),
                Access::Write => fx.protect(&[page]),
            }
            if let Some(table) = proof(fx) {
                return Some(table);
            }
            fx.install(page, Access::Write);
        }
        self.counters.walk_refused += u64::from(likely);
        if let Some(score) = self.walks.scores.get_mut(&page) {
            score.unchanged = 0;
        }
        None
    }

    pub(super) fn is_walk_shared(&self, page: Page) -> bool {
        !self.walks.pages.is_empty() && self.walks.pages.contains_key(&page)
    }

    /// Whether a walk-shared page is taken from the processors just now.
    pub(super) fn is_walk_frozen(&self, page: Page) -> bool {
        self.walks.is_frozen(page)
    }
}

/// One change a word, in order: from the first old value to the last new one.
fn merge(mut changes: Vec<Change>) -> Vec<Change> {
    // Stable: the changes of a word stay in the order in which they were found.
    changes.sort_by_key(|change| (change.page, change.index));
    changes.dedup_by(|later, kept| {
        let same = (later.page, later.index) == (kept.page, kept.index);
        if same {
            kept.new = later.new;
        }
        same
    });
    changes.retain(|change| change.old != change.new);
    changes
}

/// The pages of a report, ascending, each once.
fn involved(changes: &[Change], leave: &[Page]) -> Vec<Page> {
    let mut pages: Vec<Page> = changes.iter().map(|change| change.page).collect();
    pages.extend(leave);
    pages.sort_unstable();
    pages.dedup();
    pages
}

/// Cuts a report into parts that a message can carry.
fn parts(
    changes: Vec<Change>,
    leave: Vec<Page>,
) -> impl Iterator<Item = (Vec<Change>, Vec<Page>, bool)> {
    let mut rest = Some((changes, leave));
    std::iter::from_fn(move || {
        let (mut changes, leave) = rest.take()?;
        if changes.len() <= CHANGES_MAX {
            return Some((changes, leave, true));
        }
        rest = Some((changes.split_off(CHANGES_MAX), leave));
        Some((changes, Vec::new(), false))
    })
}
