//! What an owner does: requests wait here, the oldest is served first, and pages are given.

use super::mutation::Mutation;
use super::table::{Entry, Role, Sharing};
use super::{
    Effects, Grant, Hint, Message, PageGrant, PageState, Protocol, Request, Right, oldest,
};
use crate::types::{Access, Age, NodeId, NodeSet, Page, Version};

/// How often in a row the reader must have gone on to write before the next one gets the page at once.
const MIGRATORY: u8 = 3;

/// One page on its way out.
struct Outgoing {
    page: Page,
    /// The version of the bytes at the receiver.
    have: Version,
    /// Ownership goes along.
    give: bool,
}

impl Protocol {
    pub(super) fn receive_request<E: Effects>(&mut self, mut request: Request, fx: &mut E) {
        self.observe(request.age);
        let page = request.page;
        if request.requester == self.me() {
            return self.own_request_came_back(request, fx);
        }
        if self.announce(page, Some(&request), fx) || request.lease && self.lease(&request, fx) {
            return;
        }
        let entry = self.table.get(page);
        let grant_under_way = request.owner_since > entry.known();
        match entry.role {
            Role::Holder { owner, owner_since } if !grant_under_way => {
                // IVY section 3.3: a request follows probable owners. No hint changes here: see the
                // module's documentation.
                if self.mutated(Mutation::RedirectForwarderOnRead) && request.access == Access::Read
                {
                    let role = Role::Holder { owner: request.requester, owner_since };
                    self.table.put(page, Entry { role, ..entry });
                }
                self.counters.forwards += 1;
                request.via.insert(self.me());
                request.owner_since = owner_since;
                self.send(owner, Message::Request(request), fx);
            }
            _ => {
                self.enqueue(request, fx);
                self.attend(page, fx);
            }
        }
    }

    /// A repeated request of ours met our own ownership, or a grant of it under way to us.
    fn own_request_came_back<E: Effects>(&mut self, request: Request, fx: &mut E) {
        let entry = self.table.get(request.page);
        match entry.role {
            Role::Holder { owner, owner_since } if request.owner_since <= owner_since => {
                let asked = |outbound: &super::Outbound| !outbound.closed;
                if self.outbound.get(&request.seq).is_some_and(asked) {
                    let request = Request { owner_since, ..request };
                    self.send(owner, Message::Request(request), fx);
                } else {
                    self.count_answered(request.seq, request.copies);
                }
            }
            // The page is on its way to us; to ask again before it is here would only run in
            // circles, and forget what a lease under way belongs to.
            Role::Holder { .. } => self.enqueue(request, fx),
            Role::Owner { .. } => self.close_own(&request, fx),
        }
    }

    /// First touch of memory that nobody has touched: the whole block changes hands.
    fn lease<E: Effects>(&mut self, request: &Request, fx: &mut E) -> bool {
        let page = request.page;
        let untouched = self.table.is_untouched(page) || self.mutated(Mutation::LeaseTouchedBlock);
        if !untouched || !self.table.get(page).is_owner() {
            return false;
        }
        self.table.lease(page, request.requester);
        self.counters.leases += 1;
        let lease = Some(self.table.block_start(page));
        let grant = Grant { lease, ..refusal(request) };
        self.send(request.requester, Message::Grant(grant), fx);
        true
    }

    /// Queues a request; one of the same node for the page replaces an earlier one.
    pub(super) fn enqueue<E: Effects>(&mut self, mut request: Request, fx: &mut E) {
        let (page, age) = (request.page, request.age);
        // Whoever queues it does not lease: the block has been touched.
        request.lease = false;
        let waiters = &mut self.pending(page).waiters;
        let mut replaced = None;
        match waiters.iter_mut().find(|waiter| waiter.requester == request.requester) {
            Some(waiter) if waiter.seq == request.seq => {
                waiter.age = waiter.age.min(age);
                waiter.copies = waiter.copies.saturating_add(request.copies);
            }
            Some(waiter) if newer(request.seq, waiter.seq) => {
                replaced = Some(std::mem::replace(waiter, request));
            }
            Some(_) => replaced = Some(request),
            None => waiters.push(request),
        }
        if let Some(old) = replaced.take_if(|old| old.requester == self.me()) {
            self.close_own(&old, fx);
        }
        if let Some(old) = replaced {
            // The requester has moved on: close the earlier request, its companions refused.
            self.send(old.requester, Message::Grant(refusal(&old)), fx);
        }
        self.hurry_invalidation(page, age, fx);
    }

    pub(super) fn attend_all<E: Effects>(&mut self, pages: Vec<Page>, fx: &mut E) {
        for page in pages {
            self.attend(page, fx);
        }
    }

    /// Does for `page` what no episode prevents any more.
    pub(super) fn attend<E: Effects>(&mut self, page: Page, fx: &mut E) {
        self.serve(page, fx);
        if let Some((_, invalidate)) = self.pending.get(&page).and_then(|p| p.deferred)
            && !self.episodes.keeps(page, Access::Write, invalidate.age)
        {
            self.drop_deferred(page, fx);
        }
        self.tidy(page);
    }

    /// Serves waiting requests, the oldest first, until one must wait.
    fn serve<E: Effects>(&mut self, page: Page, fx: &mut E) {
        while let Some((requester, access, age)) = self.next_waiter(page) {
            if !self.table.get(page).is_owner()
                && !self.mutated(Mutation::AnswerWaiterWithoutOwnership)
            {
                return;
            }
            let own = requester == self.me();
            if self.is_walk_shared(page) || !own && self.enter(page, access, fx) {
                if !own && self.is_walk_closed(page) {
                    return;
                }
            } else if !own && self.keeps(page, access, age) {
                self.counters.kept += 1;
                return;
            }
            match self.take_waiter(page, requester) {
                Some(request) if own => self.close_own(&request, fx),
                Some(request) if self.is_walk_shared(page) => self.join(&request, fx),
                Some(request) => {
                    if let Some(request) = self.offer(request, fx) {
                        self.grant(request, fx);
                    }
                }
                None => return,
            }
        }
    }

    /// The request to serve next: our own that came back, or the oldest. None while copies go.
    fn next_waiter(&self, page: Page) -> Option<(NodeId, Access, Age)> {
        let pending = self.pending.get(&page).filter(|p| p.invalidating.is_none())?;
        let own = pending.waiters.iter().find(|waiter| waiter.requester == self.me());
        let next = own.or_else(|| oldest(&pending.waiters))?;
        Some((next.requester, next.access, next.age))
    }

    fn take_waiter(&mut self, page: Page, requester: NodeId) -> Option<Request> {
        let waiters = &mut self.pending.get_mut(&page)?.waiters;
        let at = waiters.iter().position(|waiter| waiter.requester == requester)?;
        Some(waiters.swap_remove(at))
    }

    fn keeps(&self, page: Page, access: Access, age: Age) -> bool {
        self.episodes.keeps(page, access, age)
            || self.mutated(Mutation::KeepAgainstOlder) && self.episodes.gathered(page, access)
    }

    /// Answers `request`, for a page owned here that nothing keeps.
    fn grant<E: Effects>(&mut self, request: Request, fx: &mut E) {
        let outgoing = self.outgoing(&request);
        let gives = outgoing[0].give;
        let of_state = |this: &Self, give: bool, states: &[PageState]| -> Vec<Page> {
            let pages = outgoing.iter().filter(|out| out.give == give).map(|out| out.page);
            pages.filter(|&page| states.contains(&this.table.get(page).state)).collect()
        };
        let downgraded = of_state(self, false, &[PageState::Modified]);
        let dropped = of_state(self, true, &[PageState::Modified, PageState::Shared]);
        if !downgraded.is_empty() && !self.mutated(Mutation::SkipDowngradeOnRead) {
            fx.protect(&downgraded);
        }
        if !dropped.is_empty() && !self.mutated(Mutation::KeepOwnerCopyOnGive) {
            fx.revoke(&dropped);
        }
        let pages: Vec<PageGrant> =
            outgoing.iter().map(|out| self.account(out, &request, fx)).collect();
        let (owner, owner_since) = if gives {
            (request.requester, pages[0].version.next())
        } else {
            (self.me(), pages[0].version)
        };
        let mut waiters = Vec::new();
        if gives {
            waiters = std::mem::take(&mut self.pending(request.page).waiters);
            if self.mutated(Mutation::ForgetWaitersOnGive) {
                waiters.clear();
            }
            for waiter in &mut waiters {
                // Companions are a matter of the moment; the requester asks again if need be.
                waiter.companions.clear();
                waiter.owner_since = owner_since;
            }
        }
        let grant = Grant { pages, waiters, ..refusal(&request) };
        self.send(request.requester, Message::Grant(grant), fx);
        for node in request.via.without(self.me()).without(request.requester).iter() {
            let hint = Hint { page: request.page, owner, owner_since };
            self.send(node, Message::Hint(hint), fx);
        }
    }

    /// The requested page, and the companions that can go with it.
    fn outgoing(&mut self, request: &Request) -> Vec<Outgoing> {
        let mut outgoing = vec![Outgoing {
            page: request.page,
            have: request.have,
            give: self.gives(request.page, request),
        }];
        for companion in &request.companions {
            let page = companion.page;
            let entry = self.table.get(page);
            let give = self.gives(page, request);
            let access = if give { Access::Write } else { Access::Read };
            let idle = self.mutated(Mutation::CompanionWhileBusy)
                || self.pending.get(&page).is_none_or(|pending| {
                    pending.invalidating.is_none() && pending.waiters.is_empty()
                });
            let free = !give || entry.copyset().without(request.requester).is_empty();
            let closed = entry.state == PageState::WalkShared || self.is_unannounced(page);
            if !entry.is_owner() || !idle || !free || closed {
                continue;
            }
            if self.keeps(page, access, request.age) {
                let keepers: Vec<_> = self.episodes.keepers(page, access, request.age).collect();
                self.blamed.extend(keepers);
            } else {
                outgoing.push(Outgoing { page, have: companion.have, give });
            }
        }
        outgoing
    }

    /// Whether `request` gets the page itself, rather than a copy.
    fn gives(&mut self, page: Page, request: &Request) -> bool {
        if request.access == Access::Write {
            return true;
        }
        match self.table.get(page).role {
            Role::Owner { migratory, .. } => {
                self.settings.features.migratory
                    && migratory >= MIGRATORY
                    && self.table.get(page).copyset().is_empty()
                    && !self.episodes.keeps(page, Access::Write, request.age)
                    && self.guesses.may_give(page)
            }
            Role::Holder { .. } => false,
        }
    }

    /// Changes this node's entry for a page that goes out, and describes it for the receiver.
    fn account<E: Effects>(&mut self, out: &Outgoing, to: &Request, fx: &mut E) -> PageGrant {
        let Outgoing { page, have, give } = *out;
        let entry = self.table.get(page);
        let (same_since, migratory, copyset) = self.close_entry(page, &entry, fx);
        let data = !(same_since..=entry.version).contains(&have)
            && !self.mutated(Mutation::OmitNeededData);
        let step = u8::from(self.guesses.counts(entry.version));
        let migratory = learn_migratory(migratory, step, copyset, to, give);
        let right = if give {
            self.account_given(page, &entry, to.requester);
            if to.access == Access::Read {
                self.counters.migratory_grants += 1;
                self.guesses.given(page, entry.version);
            }
            let copyset = if self.mutated(Mutation::KeepStaleCopyset) {
                NodeSet::EMPTY
            } else {
                copyset.without(to.requester)
            };
            Right::Ownership { same_since, copyset, migratory }
        } else {
            let mut copyset = copyset;
            copyset.insert(to.requester);
            let role = Role::Owner { same_since, migratory, sharing: Sharing::Copies(copyset) };
            let state = match entry.state {
                PageState::Modified => PageState::Shared,
                state => state,
            };
            self.table.put(page, Entry { state, role, ..entry });
            self.episodes.lost(page, Some(Access::Read), &mut self.rewant);
            Right::Copy
        };
        self.counters.pages_sent += 1;
        self.counters.sent_without_data += u64::from(!data);
        let check = (self.settings.features.check && !data).then(|| fx.fingerprint(page));
        PageGrant { page, version: entry.version, right, data, check }
    }

    /// What an owner knows of its page; leaving `Modified`, whether the bytes have changed.
    pub(super) fn close_entry<E: Effects>(
        &mut self,
        page: Page,
        entry: &Entry,
        fx: &mut E,
    ) -> (Version, u8, NodeSet) {
        match entry.role {
            Role::Owner { same_since, migratory, sharing: Sharing::Copies(copyset) } => {
                (same_since, migratory, copyset)
            }
            Role::Owner { same_since, migratory, sharing: Sharing::Sole(fingerprint) } => {
                let unchanged =
                    self.settings.features.unchanged && fx.fingerprint(page) == fingerprint;
                let came = self.arrivals.remove(page);
                fx.left_modified(page, unchanged);
                self.count_departure(page, unchanged);
                let super::Features { walks_write, walk_shared, .. } = self.settings.features;
                // Where walks count as writes, a page that was not written was walked, unless pages
                // that are walked are walk-shared.
                if !walks_write || walk_shared.is_some() {
                    self.convoys.left(page, !unchanged);
                }
                if unchanged {
                    self.counters.left_unchanged += 1;
                    self.counters.came_back_unchanged += u64::from(came);
                    // Whoever had it did not write it: it does not migrate.
                    (same_since, 0, NodeSet::EMPTY)
                } else {
                    (entry.version, migratory, NodeSet::EMPTY)
                }
            }
            Role::Holder { .. } => (entry.version, 0, NodeSet::EMPTY),
        }
    }

    pub(super) fn account_given(&mut self, page: Page, entry: &Entry, to: NodeId) {
        let role = Role::Holder { owner: to, owner_since: entry.version.next() };
        let given = Entry { state: PageState::Invalid, version: entry.version, role };
        self.table.put(page, given);
        self.episodes.lost(page, None, &mut self.rewant);
    }
}

impl Protocol {
    /// Answers `request` with nothing: the requester asks again if need be.
    pub(super) fn refuse<E: Effects>(&mut self, request: &Request, fx: &mut E) {
        self.send(request.requester, Message::Grant(refusal(request)), fx);
    }
}

/// The answer to `request` that gives nothing.
fn refusal(request: &Request) -> Grant {
    let Request { seq, copies, .. } = *request;
    Grant { seq, pages: Vec::new(), lease: None, waiters: Vec::new(), copies }
}

/// Migratory detection after Cox and Fowler, "Adaptive Cache Coherency for Detecting Migratory
/// Shared Data", ISCA 1993: a sole reader that goes on to write raises the score by `step`, a second
/// reader ends it. So does an owner that writes first, where it claims the page.
fn learn_migratory(score: u8, step: u8, copyset: NodeSet, request: &Request, give: bool) -> u8 {
    let others = !copyset.without(request.requester).is_empty();
    match (give, request.access) {
        (false, _) if others => 0,
        (true, Access::Write) if others => 0,
        (true, Access::Write) if copyset.contains(request.requester) => {
            (score + step).min(MIGRATORY)
        }
        _ => score,
    }
}

/// Whether request number `a` was made after `b`; numbers wrap around.
fn newer(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < u32::MAX / 2
}
