//! What the home of walk-shared pages does: it owns them, lets nodes in, and takes one report at a
//! time.

use std::collections::{BTreeMap, VecDeque};

use super::super::mutation::Mutation;
use super::super::table::{Entry, Role, Sharing};
use super::super::{
    Effects, Hint, Message, PageGrant, PageState, Protocol, Request, Right, Violation,
};
use super::{
    CHANGES_OFTEN, Change, Conflict, Freeze, Join, Offer, Report, Shared, WALK_HOME, Walk,
    involved, parts,
};
use crate::types::{Access, NodeId, NodeSet, Page, Version};

/// What the home has to do, in order.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Home {
    /// Reports of which parts are missing.
    partial: BTreeMap<NodeId, Report>,
    queue: VecDeque<Step>,
    current: Option<Current>,
    order: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Step {
    /// Puts a report of this node in force.
    Report(NodeId, Report),
    /// All reports that can speak of the page are in force, and nobody else shares it.
    Close(Page),
}

/// The report that is being put in force.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Current {
    from: NodeId,
    report: Report,
    order: u64,
    /// Who has yet to say that it has frozen the pages.
    missing: NodeSet,
    told: NodeSet,
}

impl Home {
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.current.is_none() && self.partial.is_empty()
    }
}

impl Protocol {
    /// Whether nobody may join `page` for now.
    pub(in super::super) fn is_walk_closed(&self, page: Page) -> bool {
        let Some(shared) = self.walks.pages.get(&page) else { return false };
        let under_way = self.walks.home.current.as_ref().is_some_and(|current| {
            let Report { changes, leave, .. } = &current.report;
            changes.iter().any(|change| change.page == page) || leave.contains(&page)
        });
        let whatever = self.mutated(Mutation::WalkJoinWhileFrozen);
        let unknown = shared.joins_after > self.walks.in_force;
        (under_way || shared.frozen) && !whatever
            || shared.closing
            || unknown && !whatever && !self.mutated(Mutation::WalkEnterWithoutFlush)
    }

    /// At the home: shares a page that it alone has and that somebody asks for, if it may be. Nobody
    /// loses a right by that, so no episode keeps it.
    pub(in super::super) fn enter<E: Effects>(
        &mut self,
        page: Page,
        access: Access,
        fx: &mut E,
    ) -> bool {
        if self.me() != WALK_HOME {
            return false;
        }
        let Some(likely) = self.candidate(page, access) else { return false };
        let Some(table) = self.prove(page, likely, Access::Write, fx) else { return false };
        let entry = self.table.get(page);
        let (same_since, _, _) = self.close_entry(page, &entry, fx);
        self.share(page, entry.version, same_since, fx);
        // What is in the page may follow what this node stored to others, and nobody knows yet.
        let joins_after = self.flush_now(fx).unwrap_or(0);
        self.walks.pages.insert(page, Shared { joins_after, ..Shared::new(table) });
        self.install(page, Access::Write, fx);
        true
    }

    fn share<E: Effects>(&mut self, page: Page, version: Version, same_since: Version, fx: &mut E) {
        fx.copy_twin(page);
        self.counters.walk_entered += 1;
        let sharing = Sharing::Copies(NodeSet::EMPTY);
        let role = Role::Owner { same_since, migratory: 0, sharing };
        self.table.put(page, Entry { state: PageState::WalkShared, version, role });
    }

    /// Elsewhere: gives a page that is asked for to the home, if it may be walk-shared. Otherwise
    /// returns the request.
    pub(in super::super) fn offer<E: Effects>(
        &mut self,
        request: Request,
        fx: &mut E,
    ) -> Option<Request> {
        let page = request.page;
        if self.me() == WALK_HOME {
            return Some(request);
        }
        let candidate = self.candidate(page, request.access);
        let table = candidate.and_then(|likely| self.prove(page, likely, Access::Read, fx));
        let Some(table) = table else { return Some(request) };
        let entry = self.table.get(page);
        let (same_since, _, _) = self.close_entry(page, &entry, fx);
        self.account_given(page, &entry, WALK_HOME);
        let owner_since = entry.version.next();
        let mut waiters = std::mem::take(&mut self.pending(page).waiters);
        let via = request.via.without(self.me()).without(WALK_HOME);
        waiters.push(request);
        for waiter in &mut waiters {
            waiter.companions.clear();
            waiter.owner_since = owner_since;
        }
        self.counters.pages_sent += 1;
        let version = entry.version;
        let offer = Offer { page, version, same_since, table, waiters };
        self.send(WALK_HOME, Message::Walk(Walk::Offer(offer)), fx);
        for node in via.iter() {
            let hint = Hint { page, owner: WALK_HOME, owner_since };
            self.send(node, Message::Hint(hint), fx);
        }
        None
    }

    pub(super) fn receive_offer<E: Effects>(
        &mut self,
        offer: Offer,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let Offer { page, version, same_since, table, waiters } = offer;
        if self.table.get(page).state != PageState::Invalid {
            return Err(Violation::WalkPage { page: page.0 });
        }
        let right = Right::Ownership { same_since, copyset: NodeSet::EMPTY, migratory: 0 };
        let granted = PageGrant { page, version, right, data: true, check: None };
        self.take_ownership(&granted, Some(0), fx)?;
        let (own, others): (Vec<Request>, Vec<Request>) =
            waiters.into_iter().partition(|waiter| waiter.requester == self.me());
        if let Some(pending) = self.pending.get_mut(&page) {
            pending.request = None;
        }
        self.share(page, version.next(), same_since, fx);
        self.walks.pages.insert(page, Shared::new(table));
        self.install(page, Access::Write, fx);
        self.adopt_waiters(page, others, fx);
        own.iter().for_each(|request| self.close_own(request, fx));
        self.attend(page, fx);
        Ok(())
    }

    /// Has the requester share `page`. What it gets is in force everywhere, so nothing has to go
    /// before it.
    pub(in super::super) fn join<E: Effects>(&mut self, request: &Request, fx: &mut E) {
        let Request { page, requester, seq, copies, .. } = *request;
        let mut entry = self.table.get(page);
        let version = entry.version;
        let table = self.walks.pages.get(&page).map(|shared| shared.table);
        let Role::Owner { sharing: Sharing::Copies(copyset), .. } = &mut entry.role else { return };
        let Some(table) = table.filter(|_| !copyset.contains(requester)) else {
            // It has the page, or is about to.
            return self.refuse(request, fx);
        };
        copyset.insert(requester);
        self.table.put(page, entry);
        self.counters.pages_sent += 1;
        let join = Join { seq, copies, page, version, table };
        self.send(requester, Message::Walk(Walk::Join(join)), fx);
        for node in request.via.without(self.me()).without(requester).iter() {
            let hint = Hint { page, owner: WALK_HOME, owner_since: version };
            self.send(node, Message::Hint(hint), fx);
        }
    }

    pub(super) fn receive_report<E: Effects>(
        &mut self,
        from: NodeId,
        part: Report,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let pages = involved(&part.changes, &part.leave);
        let shares = |page: &Page| self.copyset(*page).contains(from) || self.is_closing(*page);
        if let Some(page) = pages.iter().find(|page| !self.is_walk_shared(**page) || !shares(page))
        {
            return Err(Violation::WalkPage { page: page.0 });
        }
        let partial = &mut self.walks.home.partial;
        let report = match partial.remove(&from) {
            None => part,
            Some(mut earlier) if earlier.number == part.number => {
                earlier.changes.extend(part.changes);
                (earlier.leave, earlier.last) = (part.leave, part.last);
                earlier
            }
            Some(_) => return Err(Violation::WalkShared { node: from.index() }),
        };
        if report.last {
            self.order_report(from, report, fx);
        } else {
            partial.insert(from, report);
        }
        Ok(())
    }

    fn is_closing(&self, page: Page) -> bool {
        self.walks.pages.get(&page).is_some_and(|shared| shared.closing)
    }

    /// Puts a report at the end of the queue.
    pub(super) fn order_report<E: Effects>(&mut self, from: NodeId, report: Report, fx: &mut E) {
        self.walks.home.queue.push_back(Step::Report(from, report));
        self.next_steps(fx);
    }

    /// Takes steps until one has to wait.
    fn next_steps<E: Effects>(&mut self, fx: &mut E) {
        while self.walks.home.current.is_none() {
            match self.walks.home.queue.pop_front() {
                Some(Step::Report(from, report)) => self.begin(from, report, fx),
                Some(Step::Close(page)) => self.close_walk(page, fx),
                None => return,
            }
        }
    }

    /// Has everyone who shares a page of the report freeze it.
    fn begin<E: Effects>(&mut self, from: NodeId, mut report: Report, fx: &mut E) {
        if from != WALK_HOME {
            self.look_for_conflicts(&report.changes, fx);
        }
        self.add_restless(&mut report);
        // Several nodes may have found the same page unfit.
        report.leave.retain(|page| self.is_walk_shared(*page) && !self.is_closing(*page));
        self.walks.home.order += 1;
        let order = self.walks.home.order;
        let changed = involved(&report.changes, &[]);
        let sharing = |pages: &[Page]| -> NodeSet {
            let nodes = pages.iter().flat_map(|&page| self.copyset(page).iter());
            nodes.collect()
        };
        let mut missing = sharing(&changed).without(from);
        sharing(&report.leave).iter().for_each(|node| missing.insert(node));
        let current = Current { from, report: report.clone(), order, missing, told: missing };
        self.walks.home.current = Some(current);
        for node in missing.iter() {
            self.send_freeze(node, from, order, &report, fx);
        }
        if from != WALK_HOME {
            self.freeze(&changed, fx);
        }
        self.freeze(&report.leave, fx);
        for page in &report.leave {
            if let Some(shared) = self.walks.pages.get_mut(page) {
                (shared.leaves, shared.closing) = (true, true);
            }
            self.episodes.lost(*page, None, &mut self.rewant);
        }
        if !report.leave.is_empty() && !self.mutated(Mutation::WalkLeaveWithoutReport) {
            self.flush_now(fx);
        }
        self.finish_if_frozen(fx);
    }

    fn send_freeze<E: Effects>(
        &mut self,
        to: NodeId,
        from: NodeId,
        order: u64,
        report: &Report,
        fx: &mut E,
    ) {
        let has = |page: Page| self.copyset(page).contains(to);
        // Of a page that it gives up, a holder needs no words.
        let stays = |page: Page| has(page) && !report.leave.contains(&page);
        let changes = report.changes.iter().filter(|it| to != from && stays(it.page)).copied();
        let leave = report.leave.iter().copied().filter(|&page| has(page));
        let (changes, leave): (Vec<Change>, Vec<Page>) = (changes.collect(), leave.collect());
        for (changes, leave, last) in parts(changes, leave) {
            let freeze = Freeze { order, changes, leave, last };
            self.send(to, Message::Walk(Walk::Freeze(freeze)), fx);
        }
    }

    /// A word whose old value is not the one in force was changed by somebody else, too.
    fn look_for_conflicts<E: Effects>(&mut self, changes: &[Change], fx: &mut E) {
        for &Change { page, index, old, new } in changes {
            let here = fx.twin_word(page, index);
            if here != old && here != new {
                return fx.conflict(Conflict { page, index, one: here, other: new });
            }
        }
    }

    /// Pages that change often leave.
    fn add_restless(&mut self, report: &mut Report) {
        for page in involved(&report.changes, &[]) {
            let Some(shared) = self.walks.pages.get_mut(&page) else { continue };
            shared.changes = shared.changes.saturating_add(1);
            if shared.changes > CHANGES_OFTEN {
                report.leave.push(page);
            }
        }
        report.leave.sort_unstable();
        report.leave.dedup();
    }

    pub(super) fn receive_frozen<E: Effects>(
        &mut self,
        from: NodeId,
        order: u64,
        fx: &mut E,
    ) -> Result<(), Violation> {
        if self.mutated(Mutation::WalkThawEarly) {
            return Ok(());
        }
        let current = self.walks.home.current.as_mut().filter(|current| current.order == order);
        if !current.is_some_and(|current| current.missing.remove(from)) {
            return Err(Violation::WalkShared { node: from.index() });
        }
        self.finish_if_frozen(fx);
        self.next_steps(fx);
        Ok(())
    }

    /// All have frozen the pages of the current report: it is in force.
    fn finish_if_frozen<E: Effects>(&mut self, fx: &mut E) {
        let early = self.mutated(Mutation::WalkThawEarly);
        let frozen = |current: &mut Current| current.missing.is_empty() || early;
        let Some(Current { from, report, order, told, .. }) =
            self.walks.home.current.take_if(frozen)
        else {
            return;
        };
        for node in told.iter() {
            self.send(node, Message::Walk(Walk::Thaw { order }), fx);
        }
        if from != WALK_HOME {
            self.thaw(&report.changes, fx);
        }
        for &page in &report.leave {
            let mut entry = self.table.get(page);
            if let Role::Owner { sharing, .. } = &mut entry.role {
                *sharing = Sharing::Copies(NodeSet::EMPTY);
            }
            self.table.put(page, entry);
            if self.mutated(Mutation::WalkCloseEarly) {
                self.walks.home.queue.push_front(Step::Close(page));
            } else {
                self.walks.home.queue.push_back(Step::Close(page));
            }
        }
        if from == WALK_HOME {
            self.reported(report.number, fx);
        } else {
            let reported = Walk::Reported { number: report.number };
            self.send(from, Message::Walk(reported), fx);
        }
        self.attend_all(involved(&report.changes, &[]), fx);
    }

    /// Nobody else shares the page, and everything stored to it is here: it is an ordinary one.
    fn close_walk<E: Effects>(&mut self, page: Page, fx: &mut E) {
        self.forget_walk(page, fx);
        let entry = self.table.get(page);
        let version = entry.version.next();
        let sharing = Sharing::Copies(NodeSet::EMPTY);
        let role = Role::Owner { same_since: version, migratory: 0, sharing };
        self.table.put(page, Entry { state: PageState::Invalid, version, role });
        self.resume(page, fx);
    }

    /// Has those who share a page compare their twins with the home's.
    pub(super) fn audit_next<E: Effects>(&mut self, turn: u32, fx: &mut E) {
        if !self.walks.home.is_idle() || self.walks.in_force < self.walks.reported {
            return;
        }
        let at = turn as usize % self.walks.pages.len().max(1);
        let Some(&page) = self.walks.pages.keys().nth(at) else { return };
        let fingerprint = fx.twin_fingerprint(page);
        for node in self.copyset(page).iter() {
            self.send(node, Message::Walk(Walk::Audit { page, fingerprint }), fx);
        }
    }
}
