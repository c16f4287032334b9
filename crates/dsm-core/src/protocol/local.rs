//! What threads of this node ask for: faults, holds, prefetches, and the requests they cause.

use std::collections::BTreeSet;

use super::mutation::Mutation;
use super::table::{Entry, Role, Sharing};
use super::{
    COMPANIONS_MAX, Companion, Effects, Invalidate, Invalidating, Message, Need, NodeSet, Outbound,
    Outstanding, PageState, Protocol, Request, oldest, right_of,
};
use crate::types::{Access, Age, Page, ThreadId, Version};

impl Protocol {
    /// `thread` faulted on `page`. May be repeated.
    ///
    /// Pages beyond the region are ignored.
    pub fn fault<E: Effects>(&mut self, thread: ThreadId, page: Page, access: Access, fx: &mut E) {
        self.fault_since(thread, self.clock + 1, page, access, fx);
    }

    /// As [`Protocol::fault`], for a thread that several machines of a node serve: if it opens an
    /// episode, that began at `since` of their common clock.
    pub fn fault_since<E: Effects>(
        &mut self,
        thread: ThreadId,
        since: u64,
        page: Page,
        access: Access,
        fx: &mut E,
    ) {
        if page.0 >= self.table.pages() {
            return;
        }
        let me = self.me();
        let clock = &mut self.clock;
        let (age, kept) = self.episodes.fault(thread, page, access, || {
            *clock = since.max(*clock);
            Age { clock: since, node: me }
        });
        if kept {
            // The thread waits again: what it kept against older episodes, they get.
            self.attend_all(self.episodes.pages(thread), fx);
        }
        let entry = self.table.get(page);
        let mut with = Vec::new();
        if right_of(entry.state) < Some(access) {
            if self.settings.features.convoys && access == Access::Write && !entry.is_alone() {
                with = self.convoys.take(thread, page);
            }
            if self.settings.features.fault_around && with.is_empty() {
                with = self.streams.ahead(thread, page, access, self.table.pages());
            }
        }
        self.count_fault(&entry, access);
        self.need(page, access, age, &with, fx);
        if access == Access::Write {
            self.claim_along(page, age, &with, fx);
        }
        self.settle(fx);
    }

    /// Those of `with` that are this node's own, with copies elsewhere: `leader` is about to be
    /// written, and they are then, so that their copies go at the same time. Nobody waits for them.
    fn claim_along<E: Effects>(&mut self, leader: Page, age: Age, with: &[Page], fx: &mut E) {
        if self.ended || self.is_recovering() {
            return;
        }
        for &page in with {
            let entry = self.table.get(page);
            let copied =
                entry.is_owner() && !entry.copyset().is_empty() && entry.state == PageState::Shared;
            let idle = !self.pending.contains_key(&page);
            if copied && idle && self.served.contains(&page) {
                self.convoys.came(page, leader);
                self.counters.claimed_along += 1;
                self.claim(page, age, fx);
            }
        }
    }

    /// The Lamport clock: no episode seen began later.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// Whether `thread` waits for a page.
    pub fn is_waiting(&self, thread: ThreadId) -> bool {
        self.episodes.is_waiting(thread)
    }

    /// `thread` has run since its last fault: it has used what it waited for.
    pub fn thread_ran<E: Effects>(&mut self, thread: ThreadId, fx: &mut E) {
        let pages = self.episodes.ran(thread);
        self.attend_all(pages, fx);
        self.settle(fx);
    }

    /// `thread` has run for a while without a fault, idles, or is gone: its episode ends. Also
    /// releases a hold.
    pub fn thread_quiet<E: Effects>(&mut self, thread: ThreadId, fx: &mut E) {
        self.convoys.end(thread);
        let pages = self.episodes.end(thread);
        self.attend_all(pages, fx);
        self.settle(fx);
    }

    /// `thread` no longer exists: forgets its scan as well.
    pub fn thread_gone<E: Effects>(&mut self, thread: ThreadId, fx: &mut E) {
        self.streams.forget(thread);
        self.thread_quiet(thread, fx);
    }

    /// Fetches `pages` and keeps them until `thread_quiet(thread)`. The hold is complete when
    /// [`Protocol::take_ready`] names `thread`, a number that no thread has. Pages beyond the region
    /// are ignored.
    pub fn hold<E: Effects>(
        &mut self,
        thread: ThreadId,
        pages: &[Page],
        access: Access,
        fx: &mut E,
    ) {
        // A page named twice would be waited for twice, and installed once.
        let pages: BTreeSet<Page> =
            pages.iter().copied().filter(|page| page.0 < self.table.pages()).collect();
        let pages: Vec<Page> = pages.into_iter().collect();
        let age = self.tick();
        self.episodes.hold(thread, &pages, access, age, &mut self.ready);
        for batch in pages.chunks(COMPANIONS_MAX + 1) {
            for &page in batch {
                self.need(page, access, age, batch, fx);
            }
        }
        self.settle(fx);
    }

    /// Pages that the hold `thread` still lacks.
    pub fn hold_missing(&self, thread: ThreadId) -> Vec<Page> {
        self.episodes.missing(thread)
    }

    /// Asks for copies of `pages` that are not here, for nobody in particular. Pages beyond the
    /// region are ignored.
    pub fn prefetch<E: Effects>(&mut self, pages: &[Page], fx: &mut E) {
        if self.ended || self.is_recovering() {
            return;
        }
        let age = self.tick();
        for batch in pages.chunks(COMPANIONS_MAX + 1) {
            for &page in batch {
                if page.0 >= self.table.pages() {
                    continue;
                }
                let entry = self.table.get(page);
                let asked = self.pending.get(&page).is_some_and(|p| p.request.is_some());
                let leasing = self.leasing.contains_key(&self.table.block_start(page));
                let wanted = entry.state == PageState::Invalid && !entry.is_owner();
                if wanted && !asked && !leasing && fx.may_take(page) {
                    self.request(page, Access::Read, age, batch, fx);
                }
            }
        }
    }

    /// The region ends here: a node was lost. Waiting threads learn it; pages that are accessible
    /// stay so, since nobody can write them any more without this node's consent.
    pub fn end<E: Effects>(&mut self, fx: &mut E) {
        self.ended = true;
        self.forget_recovery();
        self.outbound.clear();
        self.leasing.clear();
        self.starved.clear();
        for (page, pending) in std::mem::take(&mut self.pending) {
            if pending.need.is_some() {
                self.lose(page, fx);
            }
        }
    }

    /// Switches fault-around, for programs that know their access to be random.
    pub fn set_fault_around(&mut self, on: bool) {
        self.settings.features.fault_around = on;
    }

    /// Whether [`Protocol::end`] was called.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn lose<E: Effects>(&mut self, page: Page, fx: &mut E) {
        let mut entry = self.table.get(page);
        if !matches!(entry.state, PageState::Invalid | PageState::Lost) {
            entry.state = PageState::Invalid;
            self.table.put(page, entry);
        }
        fx.poison(page);
        if entry.state == PageState::Lost {
            // The region goes on: nobody must wait for what these threads had gathered.
            if let Some(pending) = self.pending.get_mut(&page) {
                pending.need = None;
                self.tidy(page);
            }
            let failed = self.episodes.give_up(page);
            self.fail_holds(failed);
        }
    }

    fn count_fault(&mut self, entry: &Entry, access: Access) {
        let counters = &mut self.counters;
        match (entry.state, access) {
            (PageState::Lost, _) => {}
            (PageState::Modified | PageState::WalkShared, _)
            | (PageState::Shared, Access::Read) => {
                counters.spurious_faults += 1;
            }
            _ if entry.is_alone() => counters.local_faults += 1,
            (PageState::Invalid, Access::Read) if entry.is_owner() => counters.local_faults += 1,
            (PageState::Shared, Access::Write) => counters.upgrade_faults += 1,
            (PageState::Invalid, Access::Write) if entry.is_owner() => counters.upgrade_faults += 1,
            (PageState::Invalid, Access::Read) => counters.read_faults += 1,
            (PageState::Invalid, Access::Write) => counters.write_faults += 1,
        }
    }

    /// Sees to it that `page` becomes accessible. `with`: pages welcome at the same time.
    pub(super) fn need<E: Effects>(
        &mut self,
        page: Page,
        access: Access,
        age: Age,
        with: &[Page],
        fx: &mut E,
    ) {
        let entry = self.table.get(page);
        if let Some(right) = right_of(entry.state)
            && right >= access
        {
            if entry.state == PageState::WalkShared && self.is_walk_frozen(page) {
                // Mapped again when the change under way applies.
                return self.want(page, access, age);
            }
            return self.install(page, right, fx);
        }
        if self.ended || entry.state == PageState::Lost {
            return self.lose(page, fx);
        }
        if self.is_recovering() {
            return self.want(page, access, age);
        }
        // What brings the page: a request for it, if need be along with another page's; or that
        // for its lease block.
        let asked = self.pending.get(&page).and_then(|pending| pending.request);
        let leasing = self.leasing.get(&self.table.block_start(page)).copied();
        if let Some(seq) = asked.map(|request| request.seq).or(leasing)
            && !entry.is_owner()
        {
            self.want(page, access, age);
            return self.hurry_request(seq, age, fx);
        }
        if !fx.may_take(page) {
            self.counters.starved += 1;
            self.want(page, access, age);
            self.starved.insert(page);
            return;
        }
        match entry.role {
            Role::Owner { .. } if self.announce(page, None, fx) => self.want(page, access, age),
            Role::Owner { .. } => self.need_as_owner(page, entry, access, age, with, fx),
            Role::Holder { .. } => {
                self.want(page, access, age);
                self.request(page, access, age, with, fx);
            }
        }
    }

    fn need_as_owner<E: Effects>(
        &mut self,
        page: Page,
        mut entry: Entry,
        access: Access,
        age: Age,
        with: &[Page],
        fx: &mut E,
    ) {
        if self.pending.get(&page).is_some_and(|pending| pending.invalidating.is_some()) {
            self.want(page, access, age);
            return self.hurry_invalidation(page, age, fx);
        }
        if entry.copyset().is_empty() {
            self.claim(page, age, fx);
            for &next in with {
                if !self.served.contains(&next) || self.is_unannounced(next) {
                    continue;
                }
                let entry = self.table.get(next);
                let idle = !self.pending.contains_key(&next);
                let unused = entry.is_alone() && entry.state == PageState::Invalid;
                if unused && idle && fx.may_take(next) {
                    self.claim(next, age, fx);
                }
            }
            return;
        }
        match access {
            Access::Read => {
                entry.state = PageState::Shared;
                self.table.put(page, entry);
                self.install(page, Access::Read, fx);
            }
            Access::Write => {
                self.want(page, access, age);
                self.claim(page, age, fx);
            }
        }
    }

    /// This node owns `page` and is to write it: raises the version, invalidates the copies.
    pub(super) fn claim<E: Effects>(&mut self, page: Page, age: Age, fx: &mut E) {
        self.begin_claim(page, age, fx);
        self.finish_claim(page, fx);
    }

    /// The first half of a claim. Until the second, the page is not given away.
    pub(super) fn begin_claim<E: Effects>(&mut self, page: Page, age: Age, fx: &mut E) {
        let mut entry = self.table.get(page);
        if !self.mutated(Mutation::KeepVersion) {
            entry.version = entry.version.next();
        }
        let missing = entry.copyset();
        if let Role::Owner { sharing, migratory, .. } = &mut entry.role {
            *sharing = Sharing::Copies(NodeSet::EMPTY);
            if !missing.is_empty() {
                // Whoever read it does not go on to write it: the other half of `learn_migratory`.
                *migratory = 0;
            }
        }
        self.table.put(page, entry);
        let version = entry.version;
        // Whoever keeps a copy keeps it from those who wait here as well.
        let waiting = self.pending.get(&page).and_then(|pending| oldest(&pending.waiters));
        let age = waiting.map_or(age, |waiter| age.min(waiter.age));
        self.pending(page).invalidating = Some(Invalidating { missing, version, age });
        self.invalidate(page, missing, version, age, fx);
    }

    /// The second half: enters `Modified` if there is no copy to wait for.
    pub(super) fn finish_claim<E: Effects>(&mut self, page: Page, fx: &mut E) {
        let invalidating = self.pending.get(&page).and_then(|pending| pending.invalidating);
        let Some(Invalidating { missing, .. }) = invalidating else { return };
        if missing.is_empty() || self.mutated(Mutation::WriteBeforeLastAck) {
            self.enter_modified(page, fx);
        }
    }

    fn invalidate<E: Effects>(
        &mut self,
        page: Page,
        nodes: NodeSet,
        version: Version,
        age: Age,
        fx: &mut E,
    ) {
        // IVY section 3.1 invalidates one by one or by broadcast; here to the copyset, in parallel.
        for node in nodes.iter() {
            self.counters.invalidations_sent += 1;
            self.send(node, Message::Invalidate(Invalidate { page, version, age }), fx);
        }
    }

    /// An older episode waits for the acknowledgements: those who keep their copy must know.
    pub(super) fn hurry_invalidation<E: Effects>(&mut self, page: Page, age: Age, fx: &mut E) {
        let Some(invalidating) = &mut self.pending(page).invalidating else { return };
        if !age.older_than(invalidating.age) {
            return;
        }
        invalidating.age = age;
        let Invalidating { missing, version, .. } = *invalidating;
        self.invalidate(page, missing, version, age, fx);
    }

    /// All copies are gone: this node alone has the page.
    pub(super) fn enter_modified<E: Effects>(&mut self, page: Page, fx: &mut E) {
        let mut entry = self.table.get(page);
        if let Role::Owner { same_since, sharing, .. } = &mut entry.role {
            let fingerprint = if !self.settings.features.unchanged {
                0
            } else if *same_since == Version::ZERO {
                fx.zero_fingerprint()
            } else {
                fx.fingerprint(page)
            };
            *sharing = Sharing::Sole(fingerprint);
        }
        entry.state = PageState::Modified;
        self.table.put(page, entry);
        self.pending(page).invalidating = None;
        self.install(page, Access::Write, fx);
        self.attend(page, fx);
    }

    /// `page` is accessible: threads that waited for it go on.
    pub(super) fn install<E: Effects>(&mut self, page: Page, right: Access, fx: &mut E) {
        fx.install(page, right);
        self.episodes.satisfied(page, right, &mut self.ready);
        if let Some(pending) = self.pending.get_mut(&page) {
            pending.need = pending.need.filter(|need| need.access > right);
            self.tidy(page);
        }
    }

    fn want(&mut self, page: Page, access: Access, age: Age) {
        let need = &mut self.pending(page).need;
        *need = Some(match *need {
            Some(need) => Need { access: need.access.max(access), age: need.age.min(age) },
            None => Need { access, age },
        });
    }

    fn request<E: Effects>(
        &mut self,
        page: Page,
        access: Access,
        age: Age,
        with: &[Page],
        fx: &mut E,
    ) {
        let entry = self.table.get(page);
        let Role::Holder { owner, owner_since } = entry.role else { return };
        let lease = self.settings.features.lease && self.table.is_untouched(page);
        let companions = if lease { Vec::new() } else { self.companions(page, access, with) };
        self.last_seq = self.last_seq.wrapping_add(1);
        let seq = self.last_seq;
        let outstanding = Outstanding { seq, access, age, void_below: Version::ZERO };
        let others = companions.iter().map(|companion| companion.page);
        for page in std::iter::once(page).chain(others.clone()) {
            self.pending(page).request = Some(outstanding);
        }
        let outbound = Outbound { page, companions: others.collect(), copies: 1, closed: false };
        self.outbound.insert(seq, outbound);
        if lease {
            self.leasing.insert(self.table.block_start(page), seq);
        }
        let request = Request {
            page,
            access,
            requester: self.me(),
            seq,
            have: entry.version,
            age,
            owner_since,
            via: NodeSet::EMPTY,
            lease,
            companions,
            copies: 1,
        };
        self.send(owner, Message::Request(request), fx);
        if access == Access::Write && !self.episodes.holds(page) {
            // A copy kept against a writer must not keep out the episode that wants to write it.
            self.drop_deferred(page, fx);
        }
    }

    /// Those of `with` that may go along with a request for `page`.
    fn companions(&self, page: Page, access: Access, with: &[Page]) -> Vec<Companion> {
        let mut companions: Vec<Companion> = with
            .iter()
            .filter(|&&other| other != page && self.served.contains(&other))
            .filter(|&&other| match self.pending.get(&other) {
                Some(pending) => pending.request.is_none() && pending.deferred.is_none(),
                None => true,
            })
            .filter(|&&other| !self.leasing.contains_key(&self.table.block_start(other)))
            .map(|&other| (other, self.table.get(other)))
            .filter(|(_, entry)| !entry.is_owner() && entry.state != PageState::Lost)
            .filter(|(_, entry)| right_of(entry.state) < Some(access))
            .map(|(page, entry)| Companion { page, have: entry.version })
            .collect();
        companions.sort_unstable();
        companions.dedup();
        companions.truncate(COMPANIONS_MAX);
        companions
    }

    /// An older episode waits for a request that is under way: whoever keeps it waiting must know.
    /// The repetition has no companions; if it is answered a second time, no harm is done.
    fn hurry_request<E: Effects>(&mut self, seq: u32, age: Age, fx: &mut E) {
        let Some(outbound) = self.outbound.get(&seq).filter(|outbound| !outbound.closed) else {
            return;
        };
        let page = outbound.page;
        let pages: Vec<Page> =
            std::iter::once(page).chain(outbound.companions.iter().copied()).collect();
        let outstanding = self.pending.get(&page).and_then(|pending| pending.request);
        let Some(outstanding) = outstanding.filter(|request| request.seq == seq) else { return };
        if !age.older_than(outstanding.age) {
            return;
        }
        for other in pages {
            if let Some(request) = &mut self.pending(other).request
                && request.seq == seq
            {
                request.age = age;
            }
            self.tidy(other);
        }
        let entry = self.table.get(page);
        let Role::Holder { owner, owner_since } = entry.role else { return };
        let request = Request {
            page,
            access: outstanding.access,
            requester: self.me(),
            seq,
            have: entry.version,
            age,
            owner_since,
            via: NodeSet::EMPTY,
            lease: self.leasing.get(&self.table.block_start(page)) == Some(&seq),
            companions: Vec::new(),
            copies: 1,
        };
        if let Some(outbound) = self.outbound.get_mut(&seq) {
            outbound.copies = outbound.copies.saturating_add(1);
        }
        self.send(owner, Message::Request(request), fx);
    }

    /// What an event leaves to do: pages that a gathering hold lost are asked for again, and those
    /// that an episode let go are given to who waits for them.
    pub(super) fn settle<E: Effects>(&mut self, fx: &mut E) {
        loop {
            while let Some(rewant) = self.rewant.pop() {
                self.need(rewant.page, rewant.access, rewant.age, &[], fx);
            }
            let let_go = self.episodes.take_let_go();
            if let_go.is_empty() {
                return;
            }
            self.attend_all(let_go, fx);
        }
    }
}
