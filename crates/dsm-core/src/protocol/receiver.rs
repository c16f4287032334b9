//! What arrives from other nodes: grants, invalidations, acknowledgements, hints.

use super::mutation::Mutation;
use super::table::{Entry, Role, Sharing};
use super::{
    Effects, Grant, Hint, Invalidate, InvalidateAck, Message, Outstanding, PageGrant, PageState,
    Protocol, Request, Right, Violation,
};
use crate::types::{Access, NodeId, NodeSet, Page};

impl Protocol {
    /// Handles a message of `from`.
    ///
    /// # Errors
    ///
    /// A [`Violation`] if no correct peer would send it; the machine's state is then as before the
    /// part of the message that is wrong, and the peer is to be disconnected.
    pub fn receive<E: Effects>(
        &mut self,
        from: NodeId,
        message: Message,
        fx: &mut E,
    ) -> Result<(), Violation> {
        self.receive_in(from, self.epoch(), message, fx)
    }

    /// Handles a message of this epoch, while nothing is being recovered.
    pub(super) fn handle<E: Effects>(
        &mut self,
        from: NodeId,
        message: Message,
        fx: &mut E,
    ) -> Result<(), Violation> {
        match message {
            Message::Request(request) => self.receive_request(request, fx),
            Message::Grant(grant) => self.receive_grant(from, grant, fx)?,
            Message::Invalidate(invalidate) => self.receive_invalidate(from, invalidate, fx)?,
            Message::InvalidateAck(ack) => self.receive_ack(from, ack, fx),
            Message::Hint(hint) => self.receive_hint(hint),
            Message::RoomWanted(wanted) => self.receive_room_wanted(from, wanted),
            Message::Room(room) => self.receive_room(from, room)?,
            Message::RoomUnused(unused) => self.receive_room_unused(from, unused)?,
            Message::HandOver(hand_over) => self.receive_hand_over(from, hand_over, fx)?,
            Message::Recover(_) => return Err(Violation::Recovery { node: from.index() }),
            Message::Walk(walk) => self.receive_walk(from, walk, fx)?,
        }
        Ok(())
    }

    /// Pages and nodes within bounds; the decoder has checked the rest.
    pub(super) fn check(&self, from: NodeId, message: &Message) -> Result<(), Violation> {
        self.check_node(from)?;
        match message {
            Message::Request(request) => self.check_request(request),
            Message::Grant(grant) => {
                let lease = grant.lease.iter().copied();
                for page in grant.pages.iter().map(|granted| granted.page).chain(lease) {
                    self.check_page(page)?;
                }
                grant.waiters.iter().try_for_each(|waiter| self.check_request(waiter))
            }
            Message::Invalidate(Invalidate { page, age, .. }) => {
                self.check_page(*page)?;
                self.check_node(age.node)
            }
            Message::InvalidateAck(ack) => self.check_page(ack.page),
            Message::Hint(hint) => {
                self.check_page(hint.page)?;
                self.check_node(hint.owner)
            }
            Message::HandOver(hand_over) => {
                hand_over.pages.iter().try_for_each(|granted| self.check_page(granted.page))
            }
            Message::RoomWanted(wanted) => self.check_node(wanted.age.node),
            Message::Room(_) | Message::RoomUnused(_) => Ok(()),
            Message::Recover(message) => self.check_recover(message),
            Message::Walk(walk) => self.check_walk(walk),
        }
    }

    pub(super) fn check_request(&self, request: &Request) -> Result<(), Violation> {
        self.check_page(request.page)?;
        for companion in &request.companions {
            self.check_page(companion.page)?;
        }
        self.check_node(request.requester)?;
        self.check_node(request.age.node)?;
        self.check_nodes(request.via)
    }

    pub(super) fn check_page(&self, page: Page) -> Result<(), Violation> {
        let pages = self.table.pages();
        if page.0 < pages { Ok(()) } else { Err(Violation::PageOutOfRange { page: page.0, pages }) }
    }

    fn check_node(&self, node: NodeId) -> Result<(), Violation> {
        self.check_nodes(NodeSet::only(node))
    }

    pub(super) fn check_nodes(&self, nodes: NodeSet) -> Result<(), Violation> {
        if nodes.within(self.settings.nodes) {
            Ok(())
        } else {
            Err(Violation::UnknownNode { nodes: self.settings.nodes })
        }
    }

    fn receive_grant<E: Effects>(
        &mut self,
        from: NodeId,
        grant: Grant,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let Grant { seq, pages, lease, waiters, copies } = grant;
        self.count_answered(seq, copies);
        if let Some(page) = lease {
            self.take_lease(from, seq, page)?;
        }
        let first = pages.first().map(|granted| granted.page);
        let mut payload = 0;
        let mut taken = Vec::new();
        for (index, granted) in pages.iter().enumerate() {
            self.counters.companions_received += u64::from(index > 0);
            let source = granted.data.then_some(payload);
            payload += usize::from(granted.data);
            match granted.right {
                Right::Copy => self.take_copy(from, seq, granted, source, fx)?,
                Right::Ownership { .. } => {
                    if let Some(leader) = first.filter(|_| index > 0) {
                        self.convoys.came(granted.page, leader);
                    }
                    self.take_ownership(granted, source, fx)?;
                    self.arrivals.insert(granted.page);
                    taken.push(granted.page);
                }
            }
        }
        match first {
            Some(page) => self.adopt_waiters(page, waiters, fx),
            None if waiters.is_empty() => {}
            None => return Err(Violation::MalformedGrant { page: waiters[0].page.0 }),
        }
        // All are claimed before one is finished: what then answers a waiter may take others along.
        for &page in &taken {
            let age = self.request_age(page);
            self.begin_claim(page, age, fx);
        }
        for page in taken {
            self.finish_claim(page, fx);
        }
        self.close(seq, fx);
        Ok(())
    }

    /// The age under which this node asked for `page`.
    fn request_age(&mut self, page: Page) -> crate::types::Age {
        let waiting = self.pending.get(&page).and_then(|pending| {
            pending.need.map(|need| need.age).or(pending.request.map(|request| request.age))
        });
        let age = waiting.unwrap_or_else(|| self.tick());
        self.pending(page).request = None;
        age
    }

    fn take_lease(&mut self, from: NodeId, seq: u32, page: Page) -> Result<(), Violation> {
        let start = self.table.block_start(page);
        let asked = self.leasing.get(&start) == Some(&seq) && self.table.is_untouched(start);
        if !asked || self.settings.homes.of(start) != from {
            return Err(Violation::MalformedGrant { page: page.0 });
        }
        self.table.lease(start, self.me());
        Ok(())
    }

    fn take_copy<E: Effects>(
        &mut self,
        from: NodeId,
        seq: u32,
        granted: &PageGrant,
        source: Option<usize>,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let page = granted.page;
        let entry = self.table.get(page);
        let Role::Holder { owner, owner_since } = entry.role else {
            // Answers a repeated request; this node owns the page by now.
            return Ok(());
        };
        let request = self.pending.get(&page).and_then(|pending| pending.request);
        let answers = |request: &Outstanding| request.seq == seq && request.access == Access::Read;
        let Some(request) = request.filter(answers) else { return Ok(()) };
        if granted.version < request.void_below && !self.mutated(Mutation::InstallVoidGrant) {
            self.counters.void_grants += 1;
            return Ok(());
        }
        // Without data, the bytes are those that this node had.
        let same_since = if granted.data { granted.version } else { entry.version };
        self.guesses.came_back(page, same_since);
        self.fill(granted, source, fx)?;
        let (owner, owner_since) = if granted.version >= owner_since {
            (from, granted.version)
        } else {
            (owner, owner_since)
        };
        let role = Role::Holder { owner, owner_since };
        self.table.put(page, Entry { state: PageState::Shared, version: granted.version, role });
        self.pending(page).request = None;
        if self.mutated(Mutation::IgnoreUpgradeAfterRead) {
            self.pending(page).need = None;
        }
        self.install(page, Access::Read, fx);
        Ok(())
    }

    pub(super) fn take_ownership<E: Effects>(
        &mut self,
        granted: &PageGrant,
        source: Option<usize>,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let PageGrant { page, version, right, .. } = *granted;
        let Right::Ownership { same_since, copyset, migratory } = right else { return Ok(()) };
        let entry = self.table.get(page);
        if entry.is_owner() {
            return Err(Violation::SecondOwner { page: page.0 });
        }
        self.check_nodes(copyset)?;
        if same_since > version {
            return Err(Violation::MalformedGrant { page: page.0 });
        }
        self.guesses.came_back(page, same_since);
        self.fill(granted, source, fx)?;
        let copyset = copyset.without(self.me());
        let role = Role::Owner { same_since, migratory, sharing: Sharing::Copies(copyset) };
        self.table.put(page, Entry { state: entry.state, version, role });
        Ok(())
    }

    fn fill<E: Effects>(
        &mut self,
        granted: &PageGrant,
        source: Option<usize>,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let page = granted.page;
        self.counters.pages_received += 1;
        match (source, granted.check) {
            (Some(payload), _) => fx.fill(page, payload),
            (None, Some(check)) if self.settings.features.check => {
                if fx.fingerprint(page) != check {
                    return Err(Violation::WrongBytes { page: page.0 });
                }
            }
            (None, _) => {}
        }
        self.counters.received_without_data += u64::from(source.is_none());
        Ok(())
    }

    pub(super) fn adopt_waiters<E: Effects>(
        &mut self,
        page: Page,
        waiters: Vec<Request>,
        fx: &mut E,
    ) {
        for waiter in waiters {
            self.observe(waiter.age);
            if waiter.page != page {
                continue;
            }
            if waiter.requester == self.me() {
                self.close_own(&waiter, fx);
            } else {
                self.enqueue(waiter, fx);
            }
        }
    }

    /// Some copies of request `seq` are not under way any more.
    pub(super) fn count_answered(&mut self, seq: u32, copies: u8) {
        let Some(outbound) = self.outbound.get_mut(&seq) else { return };
        if outbound.copies < u8::MAX {
            outbound.copies = outbound.copies.saturating_sub(copies);
        }
        self.forget_answered(seq);
    }

    fn forget_answered(&mut self, seq: u32) {
        if self.outbound.get(&seq).is_some_and(|outbound| outbound.closed && outbound.copies == 0) {
            self.outbound.remove(&seq);
        }
    }

    /// A request of this node has met its own ownership.
    pub(super) fn close_own<E: Effects>(&mut self, request: &Request, fx: &mut E) {
        self.count_answered(request.seq, request.copies);
        self.close(request.seq, fx);
    }

    /// Request `seq` has been answered: what it did not bring and is still needed is asked for again.
    pub(super) fn close<E: Effects>(&mut self, seq: u32, fx: &mut E) {
        let Some(outbound) = self.outbound.get_mut(&seq).filter(|outbound| !outbound.closed) else {
            return;
        };
        outbound.closed = true;
        let outbound = outbound.clone();
        self.forget_answered(seq);
        let start = self.table.block_start(outbound.page);
        let leased = self.leasing.get(&start) == Some(&seq);
        let mut pages = vec![outbound.page];
        pages.extend(outbound.companions);
        for &page in &pages {
            if let Some(pending) = self.pending.get_mut(&page)
                && pending.request.is_some_and(|request| request.seq == seq)
            {
                pending.request = None;
                self.counters.companions_refused += u64::from(page != outbound.page);
            }
        }
        if leased {
            // Faults on other pages of the block waited for this answer.
            self.leasing.remove(&start);
            let block = self.table.block_pages(start);
            pages.extend(self.pending.range(block).map(|(&page, _)| page));
        }
        for page in pages {
            self.resume(page, fx);
        }
    }

    /// Goes on with a page that nothing is under way for.
    pub(super) fn resume<E: Effects>(&mut self, page: Page, fx: &mut E) {
        if let Some(pending) = self.pending.get(&page)
            && let Some(need) = pending.need
            && pending.request.is_none()
            && pending.invalidating.is_none()
        {
            self.need(page, need.access, need.age, &[], fx);
        }
        self.attend(page, fx);
    }

    fn receive_invalidate<E: Effects>(
        &mut self,
        from: NodeId,
        invalidate: Invalidate,
        fx: &mut E,
    ) -> Result<(), Violation> {
        self.observe(invalidate.age);
        self.counters.invalidations_received += 1;
        let Invalidate { page, version, age } = invalidate;
        let entry = self.table.get(page);
        let Role::Holder { owner_since, .. } = entry.role else {
            if entry.version < version {
                return Err(Violation::OwnerInvalidated { page: page.0 });
            }
            self.acknowledge(from, invalidate, fx);
            return Ok(());
        };
        if version > owner_since {
            let role = Role::Holder { owner: from, owner_since: version };
            self.table.put(page, Entry { role, ..entry });
        }
        let mut writes = false;
        if let Some(request) = self.pending.get_mut(&page).and_then(|p| p.request.as_mut()) {
            request.void_below = request.void_below.max(version);
            writes = request.access == Access::Write;
        }
        if entry.state == PageState::WalkShared && entry.version < version {
            return Err(Violation::WalkPage { page: page.0 });
        }
        if entry.state == PageState::Invalid || entry.version >= version {
            // No copy, or one that is newer than a repeated invalidation.
            self.acknowledge(from, invalidate, fx);
            return Ok(());
        }
        let pinned = self.episodes.holds(page) && !self.mutated(Mutation::TakeFromHold);
        let yields = writes && !pinned;
        if !yields && self.episodes.keeps(page, Access::Write, age) {
            self.counters.kept += 1;
            let deferred = &mut self.pending(page).deferred;
            let age = deferred.map_or(age, |(_, earlier)| earlier.age.min(age));
            *deferred = Some((from, Invalidate { page, version, age }));
            return Ok(());
        }
        self.pending(page).deferred = Some((from, invalidate));
        self.drop_deferred(page, fx);
        self.tidy(page);
        Ok(())
    }

    /// Drops the copy that a deferred invalidation asks for, and acknowledges.
    pub(super) fn drop_deferred<E: Effects>(&mut self, page: Page, fx: &mut E) {
        let Some((from, invalidate)) = self.pending.get_mut(&page).and_then(|p| p.deferred.take())
        else {
            return;
        };
        let mut entry = self.table.get(page);
        entry.state = PageState::Invalid;
        self.table.put(page, entry);
        if !self.mutated(Mutation::IgnoreInvalidation) {
            fx.revoke(&[page]);
        }
        self.episodes.lost(page, None, &mut self.rewant);
        self.acknowledge(from, invalidate, fx);
    }

    fn acknowledge<E: Effects>(&mut self, to: NodeId, invalidate: Invalidate, fx: &mut E) {
        let Invalidate { page, version, .. } = invalidate;
        if self.mutated(Mutation::DropAcknowledgement) {
            return;
        }
        self.send(to, Message::InvalidateAck(InvalidateAck { page, version }), fx);
    }

    fn receive_ack<E: Effects>(&mut self, from: NodeId, ack: InvalidateAck, fx: &mut E) {
        let Some(pending) = self.pending.get_mut(&ack.page) else { return };
        let Some(invalidating) = &mut pending.invalidating else { return };
        if invalidating.version != ack.version {
            return;
        }
        invalidating.missing.remove(from);
        if invalidating.missing.is_empty() {
            self.enter_modified(ack.page, fx);
        }
    }

    fn receive_hint(&mut self, hint: Hint) {
        let entry = self.table.get(hint.page);
        if let Role::Holder { owner_since, .. } = entry.role
            && hint.owner_since > owner_since
            && hint.owner != self.me()
        {
            let role = Role::Holder { owner: hint.owner, owner_since: hint.owner_since };
            self.table.put(hint.page, Entry { role, ..entry });
        }
    }
}
