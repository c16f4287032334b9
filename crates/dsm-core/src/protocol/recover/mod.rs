//! Survivors go on without nodes that were lost, and take nodes in.
//!
//! Membership, elsewhere, decides who is lost and who joins, and in which order; each change begins the
//! next *epoch*. Every machine is told, at a moment of its own ([`Protocol::change`]). Then:
//!
//! | phase | what a member does | it ends when |
//! |---|---|---|
//! | draining | hears the lost nodes no more; takes back its requests and claims; tells all others that it has *entered*, and how many messages with ownership it ever sent them | all have entered, and all ownership that survivors had sent it is here |
//! | deciding | reports what it has of each page to the page's *recoverer*, a survivor by the page's number; as recoverer it rules when all have reported | all recoverers' verdicts are here |
//! | settling | tells all that it has settled; serves again, asks for nothing yet | all have settled |
//!
//! After that its threads ask for what they need anew.
//!
//! # Why it is right
//!
//! *Old messages.* Every message belongs to the epoch of its sender ([`Protocol::epoch`]). What comes from
//! an older epoch is dropped, for all that it asked is asked anew: requests, invalidations and copies.
//! Only ownership must not be dropped, since it may be the only one; it is counted, so that it needs no
//! order on the links, and taken while draining, without being answered or claimed. No message
//! of a newer epoch but *entered* can reach a node that has not entered: everything else is sent
//! after all have.
//!
//! *A valid copy is the latest completed content.* Whoever writes first needs an acknowledgement of each
//! valid copy; a survivor that has entered gives none until all is ruled, and what it gave
//! before, it has no valid copy of. So while a survivor's copy is readable, no node, and no lost one, has
//! completed a write that the copy lacks. Nothing else proves this: the frame of a page that is
//! `Invalid` may be any number of writes old, also if this node was its last known owner, since the
//! next one may have written without a word. Such frames are never revived.
//!
//! *One owner.* When all have drained, ownership is at a survivor or lost: none is under way, and none can
//! come. If a survivor has it, it keeps the page, and its copyset is right as it is: all valid copies
//! are in it, or among those it was invalidating, which come back into it. If none has it, one holder of
//! a valid copy gets it, with the others as copyset. If nobody has a copy, nothing is left: the
//! page is [`PageState::Lost`], and who touches it learns so, until somebody [restores](restore) it.
//!
//! *Untouched pages* need no report: a first owner that survives owns what it does not report as given
//! away. What a lost node had in its own range may have been written without a word to
//! anybody, so it is lost, except where a survivor reports otherwise, or where first touches are
//! announced ([`touch`]).
//!
//! *Versions.* All pages of lost owners go on at one version above all that any frame at a survivor has,
//! so that no frame is ever taken for what it is not. (A copy may have a version above another's
//! with the same bytes, where ownership moved without a write.)
//!
//! *Hints* may point to the lost, to a grant of theirs that will never come, or past these. All are reset, to
//! the page's recoverer, at version 0; and there, to the owner. From the owner on they rise
//! as ever, so that a path still ends, two steps longer at most.
//!
//! *A second loss* at any moment begins the next epoch, with the same steps from the state as it is then.
//! A verdict that only some have got is no harm: at each moment, valid copies are the latest, they
//! are known to the owner if there is one, and no page has two. Only what may be *adopted* depends on
//! who rules; so losses that some have been told of are reported where that can be.
//!
//! *A node that joins* goes the same way, as a member that has nothing ([`Protocol::arrive`]). It may have
//! the number of an earlier process. What that one was the first owner of is ruled like what a lost node
//! was, at each epoch from then on: the newcomer is the first owner of nothing. It takes all blocks for
//! touched until those who rule tell it which are not, and does not rule itself in the epoch in which it
//! joins. It may open the region at any moment after it joined: who had not heard of it when it entered the
//! epoch says so again, when the newcomer has entered.
//!
//! *It ends.* Each phase waits for messages of members only, which wait for nothing but the phase before.
//!
//! Walk-shared pages have several writers, whose home may be lost: with them, regions end.

mod directory;
mod epoch;
mod message;
mod report;
mod restore;
mod rule;
mod touch;

use std::collections::BTreeMap;

pub(super) use directory::Recoverers;
pub use message::{Held, Holding, Holdings, RUNS_MAX, Recover, Run, Verdict, Yours};
pub use restore::Restored;

use super::mutation::Mutation;
use super::table::{Role, Sharing};
use super::{Effects, Message, PageState, Protocol, Right, Violation};
use crate::types::{Age, Epoch, NodeId, NodeSet, Page, ThreadId, Version};

/// Where a machine stands in a recovery.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Phase {
    #[default]
    None,
    Draining,
    Deciding,
    Settling,
}

/// What a machine knows of who belongs to the cluster.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Recovery {
    now: Epoch,
    /// The epoch in which the region began.
    birth: u16,
    phase: Phase,
    /// Nodes that went or came since this node reported last: who had their number before is in no
    /// copyset any more.
    strangers: NodeSet,
    /// This node has opened the region after others had, and no epoch has been settled since.
    arrives: bool,
    /// Who has entered this epoch and says that of itself.
    arrivals: NodeSet,
    /// Who has said something since it joined: it has the region open.
    heard: NodeSet,
    /// Who had not when this node entered this epoch, and may not have heard that.
    unaware: NodeSet,
    /// Messages that give ownership, ever sent to and received from each node.
    sent: BTreeMap<NodeId, u64>,
    received: BTreeMap<NodeId, u64>,
    /// Who has entered a newer epoch than this node, and what it said.
    early: BTreeMap<NodeId, (u16, Entering)>,
    /// Who has entered this epoch, and what it said.
    entered: BTreeMap<NodeId, u64>,
    holdings: BTreeMap<NodeId, Reported>,
    verdicts: BTreeMap<NodeId, Parts>,
    settled: NodeSet,
    touches: touch::Touches,
    /// When this node last ruled, no frame at a survivor had this version or a higher one.
    above: Version,
    restoring: Option<restore::Restoring>,
    /// What became of the last restore, not reported yet.
    restored: Option<Restored>,
    /// Holds that will never be complete, not reported yet.
    failed: Vec<ThreadId>,
}

/// What a node said when it entered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Entering {
    sent: u64,
    arrives: bool,
}

impl Recovery {
    /// For a region that begins in the first epoch.
    pub(super) fn new(members: NodeSet) -> Self {
        Self { now: Epoch::first(0, members), heard: members, ..Self::default() }
    }
}

/// Holdings of one survivor, as far as they have come.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Reported {
    parts: Parts,
    highest: Version,
    runs: Vec<Held>,
}

/// How much of a message in several parts has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Parts {
    come: u32,
    all: Option<u32>,
    highest: u32,
}

impl Parts {
    /// Part number `part` comes; whether it may.
    fn add(&mut self, part: u32, last: bool) -> bool {
        if last && self.all.is_none() {
            self.all = part.checked_add(1);
        } else if last {
            return false;
        }
        self.come = self.come.saturating_add(1);
        self.highest = self.highest.max(part);
        self.all.is_none_or(|all| self.highest < all && self.come <= all)
    }

    fn are_complete(self) -> bool {
        self.all == Some(self.come)
    }
}

impl Message {
    /// Whether ownership of some page goes along: then the network's message is all there is of it.
    pub fn gives_ownership(&self) -> bool {
        match self {
            Self::Grant(grant) => {
                let gives = |right| matches!(right, Right::Ownership { .. });
                grant.lease.is_some() || grant.pages.iter().any(|granted| gives(granted.right))
            }
            Self::HandOver(_) => true,
            _ => false,
        }
    }
}

impl Protocol {
    /// The number of the epoch that messages sent now belong to.
    pub fn epoch(&self) -> u16 {
        self.recovery.now.number
    }

    /// Whether an epoch has begun and what follows is not settled: nothing is asked for.
    pub fn is_recovering(&self) -> bool {
        self.recovery.phase != Phase::None
    }

    /// Holds that wait for a lost page, since the last call: they will not be complete, and have ended.
    pub fn take_failed(&mut self) -> Vec<ThreadId> {
        std::mem::take(&mut self.recovery.failed)
    }

    /// Pages in rows of which nothing is left, lowest first.
    pub fn lost_pages(&self) -> Vec<Run> {
        let lost = |page| self.table.get(page).state == PageState::Lost;
        self.runs_of(self.served.clone(), |page| lost(page).then_some(()))
            .into_iter()
            .map(|(run, ())| run)
            .collect()
    }

    /// Whether the region goes on when a node is lost.
    pub fn recovers(&self) -> bool {
        let features = self.settings.features;
        features.recover && features.walk_shared.is_none()
    }

    /// As [`Protocol::receive`], for a message that its sender sent in `epoch`.
    ///
    /// # Errors
    ///
    /// As [`Protocol::receive`].
    pub fn receive_in<E: Effects>(
        &mut self,
        from: NodeId,
        epoch: u16,
        message: Message,
        fx: &mut E,
    ) -> Result<(), Violation> {
        self.check(from, &message)?;
        if epoch > self.epoch() || self.members().contains(from) {
            self.recovery.heard.insert(from);
        }
        if self.ended || self.ignores(from, epoch, &message) {
            return Ok(());
        }
        if self.settings.features.recover && message.gives_ownership() {
            *self.recovery.received.entry(from).or_default() += 1;
        }
        let phase = self.recovery.phase;
        match message {
            Message::Recover(message) => self.receive_recover(from, epoch, message, fx)?,
            message if epoch < self.epoch() && message.gives_ownership() => {
                if phase != Phase::Draining {
                    return Err(Violation::Recovery { node: from.index() });
                }
                self.absorb(from, message, fx)?;
                self.advance(fx)?;
            }
            _ if epoch > self.epoch()
                || matches!(phase, Phase::Draining | Phase::Deciding) && epoch == self.epoch() =>
            {
                return Err(Violation::Recovery { node: from.index() });
            }
            message => self.handle(from, message, fx)?,
        }
        self.settle(fx);
        Ok(())
    }

    /// Whether a message means nothing to this node any more: it is from a node that went, or from an
    /// older epoch and gives no ownership.
    pub fn ignores(&self, from: NodeId, epoch: u16, message: &Message) -> bool {
        // Who joins may know of that before this node does.
        let lost = epoch <= self.epoch() && !self.members().contains(from);
        let old = epoch < self.epoch() && !message.gives_ownership();
        lost && !self.mutated(Mutation::RecoverHearingTheLost)
            || old && !self.mutated(Mutation::RecoverHearingThePast)
    }

    pub(super) fn check_recover(&self, message: &Recover) -> Result<(), Violation> {
        let check = |run: &Run| {
            self.check_page(run.first)?;
            let last = run.end().0.checked_sub(1).filter(|_| run.pages > 0);
            self.check_page(Page(last.unwrap_or(u64::MAX)))
        };
        match message {
            Recover::Entered { .. } | Recover::Settled => Ok(()),
            Recover::Touch { page } | Recover::Noted { page } => self.check_page(*page),
            Recover::Restore { run } | Recover::Cleared { run } => check(run),
            Recover::NotLost { run, page } => check(run).and_then(|()| self.check_page(*page)),
            Recover::Unlost { run, owner, .. } => {
                check(run)?;
                self.check_nodes(NodeSet::only(*owner))
            }
            Recover::Holdings(holdings) => {
                holdings.runs.iter().try_for_each(|held| check(&held.run))
            }
            Recover::Verdict(verdict) => {
                verdict.lost.iter().chain(&verdict.untouched).try_for_each(check)?;
                verdict.yours.iter().try_for_each(|yours| {
                    check(&yours.run)?;
                    self.check_nodes(yours.copyset)
                })
            }
        }
    }

    fn receive_recover<E: Effects>(
        &mut self,
        from: NodeId,
        epoch: u16,
        message: Recover,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let violation = Violation::Recovery { node: from.index() };
        if !self.settings.features.recover {
            return Err(violation);
        }
        let number = self.epoch();
        let recovery = &mut self.recovery;
        if let Recover::Entered { sent, arrives } = message
            && epoch > number
        {
            // This node will be told, too. Only the last that the other entered can come to count.
            let entering = (epoch, Entering { sent, arrives });
            let early = recovery.early.entry(from).or_insert(entering);
            *early = (*early).max(entering);
            return Ok(());
        }
        if epoch != number {
            return Err(violation);
        }
        let fits = match message {
            Recover::Entered { sent, arrives } => {
                self.receive_entered(from, Entering { sent, arrives }, fx)
            }
            Recover::Holdings(Holdings { part, last, highest, runs }) => {
                let reported = recovery.holdings.entry(from).or_default();
                // No two runs have a page in common, so this bounds what a peer can have kept here.
                let full = last || runs.len() == RUNS_MAX;
                let fits = (reported.runs.len() + runs.len()) as u64 <= self.table.pages();
                reported.highest = reported.highest.max(highest);
                reported.runs.extend(runs);
                full && fits && reported.parts.add(part, last)
            }
            Recover::Verdict(verdict) => {
                let parts = recovery.verdicts.entry(from).or_default();
                let fits =
                    recovery.phase == Phase::Deciding && parts.add(verdict.part, verdict.last);
                fits && self.obey(&verdict)
            }
            Recover::Touch { page } => self.receive_touch(from, page, fx),
            Recover::Noted { page } => {
                self.receive_noted(from, page, fx);
                true
            }
            Recover::Restore { run } => self.receive_restore(from, run, fx),
            Recover::Unlost { run, owner, version } => {
                self.receive_unlost(from, (run, owner, version), fx)
            }
            Recover::Cleared { run } => self.receive_cleared(from, run, fx),
            Recover::NotLost { run, page } => self.receive_not_lost(from, run, page),
            Recover::Settled => {
                let new = !recovery.settled.contains(from);
                recovery.settled.insert(from);
                new
            }
        };
        if !fits {
            return Err(violation);
        }
        self.advance(fx)
    }

    /// The region ends.
    pub(super) fn forget_recovery(&mut self) {
        self.recovery.phase = Phase::None;
        self.recovery.touches.clear();
        self.recovery.restoring = None;
    }

    /// Whether no restore waits for answers.
    pub(super) fn has_restored(&self) -> bool {
        self.recovery.restoring.is_none()
    }

    /// Whether no first touch waits for being noted.
    pub(super) fn has_announced(&self) -> bool {
        self.recovery.touches.is_empty()
    }

    /// These holds wait for a lost page.
    pub(super) fn fail_holds(&mut self, holds: Vec<ThreadId>) {
        self.recovery.failed.extend(holds);
    }

    /// Ownership leaves: who recovers from a loss waits until it has come.
    pub(super) fn count_ownership(&mut self, to: NodeId, message: &Message) {
        if self.settings.features.recover && message.gives_ownership() {
            *self.recovery.sent.entry(to).or_default() += 1;
        }
    }

    /// Goes on to the next phase as far as what has come allows.
    fn advance<E: Effects>(&mut self, fx: &mut E) -> Result<(), Violation> {
        let members = self.members();
        if self.recovery.phase == Phase::Draining && self.is_drained(members) {
            self.recovery.phase = Phase::Deciding;
            self.report_holdings(fx);
        }
        if self.recovery.phase == Phase::Deciding {
            let me = self.me();
            if !self.recovery.verdicts.contains_key(&me) && self.has_all_holdings(members) {
                self.rule(members, fx)?;
            }
            let verdict = |node| self.recovery.verdicts.get(&node).copied();
            let ruled = |node| verdict(node).is_some_and(Parts::are_complete);
            let early = self.mutated(Mutation::RecoverWithoutAVerdict);
            if members.iter().all(ruled) || early && ruled(me) {
                self.recovery.phase = Phase::Settling;
                self.recovery.settled.insert(me);
                for node in members.without(me).iter() {
                    self.send(node, Message::Recover(Recover::Settled), fx);
                }
            }
        }
        let all = members.iter().all(|node| self.recovery.settled.contains(node));
        let early = self.mutated(Mutation::RecoverWithoutSettling);
        if self.recovery.phase == Phase::Settling && (all || early) {
            (self.recovery.phase, self.recovery.arrives) = (Phase::None, false);
            self.ask_anew(fx);
        }
        Ok(())
    }

    fn is_drained(&self, members: NodeSet) -> bool {
        let come = |node: &NodeId| self.recovery.received.get(node).copied().unwrap_or(0);
        members.without(self.me()).iter().all(|node| {
            let sent = self.recovery.entered.get(&node);
            sent.is_some_and(|&sent| {
                come(&node) >= sent || self.mutated(Mutation::RecoverWithoutDraining)
            })
        })
    }

    fn has_all_holdings(&self, members: NodeSet) -> bool {
        let complete = |node: NodeId| {
            self.recovery.holdings.get(&node).is_some_and(|reported| reported.parts.are_complete())
        };
        let skipped = self.mutated(Mutation::RecoverWithoutAReport);
        members.iter().all(|node| complete(node) || skipped && node != self.me())
    }

    /// Takes back all that this node has asked for, and what it was about to answer.
    fn take_back(&mut self) {
        self.outbound.clear();
        self.leasing.clear();
        self.starved.clear();
        self.recovery.touches.clear();
        self.interrupt_restore();
        self.rooms.forget_questions();
        let pages: Vec<Page> = self.pending.keys().copied().collect();
        for page in pages {
            let keeps_claim = self.mutated(Mutation::RecoverKeepingClaims);
            let Some(pending) = self.pending.get_mut(&page) else { continue };
            pending.request = None;
            pending.waiters.clear();
            pending.deferred = None;
            if !keeps_claim && let Some(claim) = pending.invalidating.take() {
                // The copies that have not gone are copies again. The version stays raised.
                let missing = if self.mutated(Mutation::RecoverForgettingAcks) {
                    NodeSet::EMPTY
                } else {
                    claim.missing
                };
                let mut entry = self.table.get(page);
                if let Role::Owner { sharing, .. } = &mut entry.role {
                    *sharing = Sharing::Copies(missing);
                }
                self.table.put(page, entry);
            }
            self.tidy(page);
        }
    }

    /// Ownership from before the loss is here: it is taken, and nothing is made of it yet.
    fn absorb<E: Effects>(
        &mut self,
        from: NodeId,
        message: Message,
        fx: &mut E,
    ) -> Result<(), Violation> {
        if self.mutated(Mutation::RecoverDroppingOwnership) {
            return Ok(());
        }
        match message {
            Message::Grant(grant) => {
                if let Some(page) = grant.lease {
                    let start = self.table.block_start(page);
                    let fits = self.table.is_untouched(start);
                    if !fits || self.settings.homes.of(start) != from {
                        return Err(Violation::MalformedGrant { page: page.0 });
                    }
                    self.table.lease(start, self.me());
                }
                let mut payload = 0;
                for granted in &grant.pages {
                    let source = granted.data.then_some(payload);
                    payload += usize::from(granted.data);
                    if matches!(granted.right, Right::Ownership { .. }) {
                        self.take_ownership(granted, source, fx)?;
                    }
                }
                Ok(())
            }
            Message::HandOver(hand_over) => self.accept_hand_over(from, &hand_over, fx),
            _ => Ok(()),
        }
    }

    /// All have settled: what threads still need is asked for anew, the oldest first.
    fn ask_anew<E: Effects>(&mut self, fx: &mut E) {
        let needs =
            self.pending.iter().filter_map(|(&page, pending)| Some((pending.need?.age, page)));
        let mut needs: Vec<(Age, Page)> = needs.collect();
        needs.sort_unstable();
        for (_, page) in needs {
            self.resume(page, fx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_complete_in_any_order_and_no_more_may_come() {
        let mut parts = Parts::default();
        assert!(parts.add(1, false) && parts.add(2, true) && !parts.are_complete());
        assert!(parts.add(0, false) && parts.are_complete());
        assert!(!parts.add(1, false));
        let mut parts = Parts::default();
        assert!(parts.add(0, true) && parts.are_complete());
        assert!(!parts.add(1, true));
        let mut parts = Parts::default();
        assert!(parts.add(3, false) && !parts.add(2, true));
    }
}
