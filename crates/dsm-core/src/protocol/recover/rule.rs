//! What a recoverer rules, when all survivors have reported, and how verdicts take effect.

use std::ops::Range;

use super::super::mutation::Mutation;
use super::super::table::{Entry, Role, Sharing};
use super::super::{Effects, Message, PageState, Protocol, Violation};
use super::report::{parts, push};
use super::{Held, Holding, Parts, Recover, Run, Verdict, Yours};
use crate::types::{NodeId, NodeSet, Page, Version};

/// What becomes of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ruling {
    /// This survivor has it.
    Kept(NodeId),
    /// Its owner was lost; one survivor with a valid copy becomes owner, with the others as copyset.
    Inherited(NodeId, NodeSet),
    /// Its first owner was lost, and nobody can have touched it: the recoverer has it.
    Adopted,
    /// Nothing is left.
    Lost,
    /// Nobody has said to touch it: news for who has just arrived.
    Untouched,
}

/// Who has what of one page.
#[derive(Clone, Copy, Default)]
struct Reports {
    owned: NodeSet,
    copies: NodeSet,
    given: NodeSet,
    lost: NodeSet,
}

impl Reports {
    fn of(&mut self, holding: Holding) -> &mut NodeSet {
        match holding {
            Holding::Owned => &mut self.owned,
            Holding::Copy => &mut self.copies,
            Holding::Given => &mut self.given,
            Holding::Lost => &mut self.lost,
        }
    }
}

impl Protocol {
    /// Rules on all pages that this node is the recoverer of.
    pub(super) fn rule<E: Effects>(
        &mut self,
        members: NodeSet,
        fx: &mut E,
    ) -> Result<(), Violation> {
        let reported = std::mem::take(&mut self.recovery.holdings);
        let highest = reported.values().map(|reported| reported.highest).max().unwrap_or_default();
        let version = if self.mutated(Mutation::RecoverKeepingVersions) {
            Version::ZERO.next()
        } else {
            highest.next()
        };
        self.recovery.above = version;
        let mut held: Vec<(NodeId, Held)> = Vec::new();
        for (node, reported) in reported {
            held.extend(reported.runs.into_iter().map(|run| (node, run)));
        }
        held.sort_unstable_by_key(|(_, held)| held.run.first);
        let mut rulings: Vec<(Run, Ruling)> = Vec::new();
        let mut rest = &held[..];
        for (recoverer, range) in self.table.chunks(self.served.clone()) {
            if recoverer == self.me() {
                let before = rest.partition_point(|(_, held)| held.run.first < range.start);
                rest = &rest[before..];
                let here = rest.partition_point(|(_, held)| held.run.first < range.end);
                self.rule_on(range, &rest[..here], &mut rulings)?;
                rest = &rest[here..];
            }
        }
        self.pronounce(rulings, version, members, fx);
        Ok(())
    }

    /// Rules on the pages in `range`, of which `held` says who has what.
    fn rule_on(
        &self,
        range: Range<Page>,
        held: &[(NodeId, Held)],
        rulings: &mut Vec<(Run, Ruling)>,
    ) -> Result<(), Violation> {
        // Where something begins or ends, in order; between two of these all pages are alike.
        let homes = self.settings.homes.ends();
        let mut cuts: Vec<Page> = vec![range.start, range.end];
        cuts.extend(homes.filter(|page| range.contains(page)));
        cuts.extend(self.cuts_of_touches(range.clone()));
        let mut events: Vec<(Page, bool, NodeId, Holding)> = Vec::new();
        for &(node, Held { run, holding }) in held {
            let end = run.end().min(range.end);
            events.push((run.first, true, node, holding));
            events.push((end, false, node, holding));
            cuts.extend([run.first, end]);
        }
        events.sort_unstable();
        cuts.sort_unstable();
        cuts.dedup();
        let mut events = events.into_iter().peekable();
        let mut reports = Reports::default();
        for pages in cuts.windows(2) {
            let (start, end) = (pages[0], pages[1]);
            while let Some((_, begins, node, holding)) = events.next_if(|event| event.0 <= start) {
                let set = reports.of(holding);
                if begins {
                    set.insert(node);
                } else {
                    set.remove(node);
                }
            }
            if let Some(ruling) = self.ruling(start, reports)? {
                push(rulings, start..end, ruling);
            }
        }
        Ok(())
    }

    /// Whether `page`, whose first owner was lost, is zero for all that this node knows.
    fn may_adopt(&self, page: Page) -> bool {
        self.settings.features.zeros && self.table.may_adopt(page, &self.served)
    }

    /// Where blocks that may be adopted and others meet.
    fn cuts_of_touches(&self, range: Range<Page>) -> Vec<Page> {
        if !self.settings.features.zeros {
            return Vec::new();
        }
        let blocks = self.table.by_block(range);
        let differ =
            |pair: &&[Range<Page>]| self.may_adopt(pair[0].start) != self.may_adopt(pair[1].start);
        blocks.windows(2).filter(differ).map(|pair| pair[1].start).collect()
    }

    /// What becomes of `page`; none where its first owner goes on as at the start.
    fn ruling(&self, page: Page, reports: Reports) -> Result<Option<Ruling>, Violation> {
        let Reports { owned, copies, given, lost } = reports;
        if owned.len() > 1 {
            return Err(Violation::SecondOwner { page: page.0 });
        }
        let first = self.settings.homes.of(page);
        let mentioned = [copies, given, lost].into_iter().any(|nodes| nodes.contains(first));
        let trusted = self.mutated(Mutation::RecoverUnprovenZeros) && copies.is_empty();
        if let Some(owner) = owned.iter().next() {
            return Ok(Some(Ruling::Kept(owner)));
        }
        if !mentioned && !self.is_void(first) {
            return Ok(None);
        }
        let heir = if copies.contains(self.me()) { Some(self.me()) } else { copies.iter().next() };
        Ok(Some(match heir {
            Some(heir) => Ruling::Inherited(heir, copies.without(heir)),
            // Who ruled before may have known more, and may have told only some.
            None if lost.is_empty() && self.may_adopt(page) => Ruling::Adopted,
            None if trusted => Ruling::Inherited(self.me(), NodeSet::EMPTY),
            None => Ruling::Lost,
        }))
    }

    /// Lets the rulings take effect here, and tells all others what concerns them.
    fn pronounce<E: Effects>(
        &mut self,
        mut rulings: Vec<(Run, Ruling)>,
        version: Version,
        members: NodeSet,
        fx: &mut E,
    ) {
        let me = self.me();
        let arrivals = self.recovery.arrivals;
        if !arrivals.is_empty() {
            self.add_untouched(&mut rulings);
        }
        for &(run, ruling) in &rulings {
            match ruling {
                Ruling::Kept(owner) | Ruling::Inherited(owner, _) if owner != me => {
                    self.table.point(run.first..run.end(), owner);
                }
                Ruling::Adopted => {
                    self.table.adopt(run.first..run.end());
                    self.counters.pages_adopted += u64::from(run.pages);
                }
                _ => {}
            }
        }
        for node in members.iter() {
            let concerns: Vec<(Run, Ruling)> = rulings
                .iter()
                .copied()
                .filter(|(_, ruling)| match ruling {
                    Ruling::Kept(_) | Ruling::Adopted => false,
                    Ruling::Inherited(heir, _) => *heir == node,
                    Ruling::Lost => true,
                    Ruling::Untouched => arrivals.contains(node),
                })
                .collect();
            for (part, last, rulings) in parts(&concerns) {
                let verdict = verdict(part, last, version, rulings);
                if node == me {
                    self.obey(&verdict);
                } else {
                    self.send(node, Message::Recover(Recover::Verdict(verdict)), fx);
                }
            }
        }
        self.recovery.verdicts.insert(me, Parts { come: 1, all: Some(1), highest: 0 });
    }

    /// Does what a recoverer has decided; whether it fits what is here.
    pub(super) fn obey(&mut self, verdict: &Verdict) -> bool {
        for &Yours { run, copyset } in &verdict.yours {
            for page in (run.first.0..run.end().0).map(Page) {
                let entry = self.table.get(page);
                let fits = entry.state == PageState::Shared && !entry.is_owner();
                let stale = self.mutated(Mutation::RecoverStaleFrames)
                    || self.mutated(Mutation::RecoverUnprovenZeros);
                if !fits && !stale || copyset.contains(self.me()) {
                    return false;
                }
                let role = Role::Owner {
                    same_since: verdict.version,
                    migratory: 0,
                    sharing: Sharing::Copies(copyset),
                };
                self.table.put(page, Entry { version: verdict.version, role, ..entry });
                self.counters.pages_inherited += 1;
            }
        }
        for run in &verdict.lost {
            let pages = run.first..run.end();
            if self.table.holds_any(pages.clone()) {
                return false;
            }
            self.counters.pages_lost += self.table.lose(pages);
        }
        if !self.mutated(Mutation::RecoverJoiningUntold) {
            verdict
                .untouched
                .iter()
                .for_each(|run| self.table.note_untouched(run.first..run.end()));
        }
        true
    }

    /// Adds the blocks of this node's chunks that nobody has said to touch, in rows.
    fn add_untouched(&self, rulings: &mut Vec<(Run, Ruling)>) {
        let chunks = self.table.chunks(self.served.clone()).into_iter();
        for (_, chunk) in chunks.filter(|(recoverer, _)| *recoverer == self.me()) {
            let blocks = self.table.by_block(chunk).into_iter();
            for block in blocks.filter(|block| !self.table.was_touched(block.start)) {
                push(rulings, block, Ruling::Untouched);
            }
        }
    }
}

fn verdict(part: u32, last: bool, version: Version, rulings: &[(Run, Ruling)]) -> Verdict {
    let (yours, lost, untouched) = (Vec::new(), Vec::new(), Vec::new());
    let mut verdict = Verdict { part, last, version, yours, lost, untouched };
    for &(run, ruling) in rulings {
        match ruling {
            Ruling::Inherited(_, copyset) => verdict.yours.push(Yours { run, copyset }),
            Ruling::Lost => verdict.lost.push(run),
            Ruling::Untouched => verdict.untouched.push(run),
            Ruling::Kept(_) | Ruling::Adopted => {}
        }
    }
    verdict
}
