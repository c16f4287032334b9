//! How a newcomer gets into a cluster that runs, where etcd decides.

use dsm_core::types::{NodeId, NodeSet};

use super::forming::{Present, Proposal, View};
use super::machine::EtcdMembership;
use super::record::Standing;
use crate::control::clip_reason;
use crate::membership::event::{Action, EndReason, State};

/// What to do with a connection.
pub(super) enum Welcome {
    Now,
    /// The record that lists the other end may not have been read yet.
    Later,
    Never,
}

impl EtcdMembership {
    // The eldest member takes a newcomer in.

    /// Lists a newcomer, if nothing stands against it.
    ///
    /// The eldest member does it. Whether this node is that follows from the record alone. Where it
    /// is not so any more, this node's record is old, and what it proposes compares the revision.
    pub(super) fn take_in(&self) -> Option<Proposal> {
        let me = self.config.me;
        let may = !self.arrivals.is_empty()
            && self.state == State::Running
            && self.closed.is_none()
            && self.record.no_way_in().is_none()
            && self.record.live().contains(me)
            && self.record.eldest() == Some(me);
        // Everyone has been told of who had a place before it is given again.
        let epoch = u64::from(self.record.epoch);
        let knows = |node| self.peers.get(node).is_some_and(|peer| peer.epoch >= epoch);
        if !may || !self.others(self.record.live()).iter().all(knows) {
            return None;
        }
        // First those who come back: their places are theirs.
        let is_new = |it: &&Present| !self.record.nodes.iter().any(|old| old.name == it.name);
        let (new, back): (Vec<_>, Vec<_>) = self.arrivals.iter().partition(is_new);
        back.into_iter().chain(new).find_map(|it| self.list(it))
    }

    /// Gives `it` a place, if there is one now.
    fn list(&self, it: &Present) -> Option<Proposal> {
        let has_stopped =
            |index| NodeId::new(index).is_some_and(|node| !self.present.contains(node));
        let index = self.record.place_for(&it.name, has_stopped)?;
        let listed = it.listed(Standing::Joining);
        let mut record = self.record.clone();
        match record.nodes.get_mut(index) {
            Some(place) => *place = listed,
            None => record.nodes.push(listed),
        }
        let before = NodeId::new(index).map_or(NodeSet::EMPTY, NodeSet::only);
        Some(Proposal {
            revision: self.revision,
            record,
            present: vec![(it.name.clone(), it.lease)],
            absent: self.keys(before),
        })
    }

    // The newcomer comes in.

    /// Makes this newcomer a member once everyone can talk to it, and no member is about to go. Where
    /// there is none, or the record says that it takes nobody in, it ends with what etcd has next.
    pub(super) fn come_in(&self) -> Option<Proposal> {
        let (me, live) = (self.config.me, self.record.live());
        let settled = live == self.record.members() && live.minus(self.present).is_empty();
        let closed = live.is_empty() || self.record.no_way_in().is_some();
        if closed || !settled || !live.iter().all(|node| self.has_met(node)) {
            return None;
        }
        Some(Proposal {
            revision: self.revision,
            record: self.record.with_member(me),
            present: self.keys(live.union(NodeSet::only(me))),
            absent: Vec::new(),
        })
    }

    /// Whether the other end of the connection has said that it has it too.
    fn has_met(&self, node: NodeId) -> bool {
        let peer = self.peers.get(node);
        peer.is_some_and(|it| it.incarnation.is_some() && it.connected.contains(self.config.me))
    }

    /// What else than connections a newcomer waits for, for people.
    pub(super) fn waiting_to_come_in(&self, missing: NodeSet) -> Vec<String> {
        let (members, live) = (self.record.members(), self.record.live());
        let going = members.minus(live).union(live.minus(self.present));
        let unmet = live.minus(missing).minus(going).iter().filter(|node| !self.has_met(*node));
        let going = going.minus(missing).iter();
        going
            .map(|node| format!("the end of {}", self.config.name(node)))
            .chain(unmet.map(|node| format!("{}'s heartbeat", self.config.name(node))))
            .collect()
    }

    /// Ends a newcomer that nobody can take in any more.
    pub(super) fn check_way_in(&mut self, view: &View, out: &mut Vec<Action>) {
        if self.state == State::Joining
            && let Some(reason) = view.no_way_in(&self.record)
        {
            self.end(EndReason::NotTakenIn { reason }, out);
        }
    }

    // Connections of processes that are new here.

    pub(super) fn welcome(&self, node: NodeId, incarnation: u64) -> Welcome {
        let joins = self.state == State::Joining;
        match self.record.get(node).filter(|it| it.incarnation == incarnation) {
            _ if node == self.config.me => Welcome::Never,
            Some(it) if it.standing == Standing::Joining => Welcome::Now,
            Some(it) if it.standing == Standing::Member && joins => Welcome::Now,
            Some(_) => Welcome::Never,
            // A member knows who had a place before it is given again; a newcomer may not.
            None if !self.record.has_started() => Welcome::Never,
            None if self.record.standing(node).is_member() && !joins => Welcome::Never,
            None => Welcome::Later,
        }
    }

    /// Looks again at those who were not listed, now that there is another record.
    pub(super) fn welcome_listed(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let early: Vec<_> = self.early.iter().map(|(node, (_, it))| (*node, *it)).collect();
        for (node, incarnation) in early {
            if !matches!(self.welcome(node, incarnation), Welcome::Later) {
                self.early.remove(&node);
                self.on_connected(now_ms, node, incarnation, out);
            }
        }
    }

    /// By now this node would have read a record that lists them, or its lease would have ended.
    pub(super) fn refuse_unlisted(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let patience_ms = self.config.timeout_ms;
        let is_late = |since_ms: u64| now_ms.saturating_sub(since_ms) >= patience_ms;
        let late = self.early.extract_if(.., |_, (since_ms, _)| is_late(*since_ms));
        for (node, (_, incarnation)) in late {
            let reason = clip_reason(&not_listed(self.record.epoch));
            out.push(Action::Refuse { node, incarnation, reason });
        }
    }
}

/// Why a connection is refused, for people.
pub(super) fn not_listed(epoch: u16) -> String {
    format!("it is not the process that etcd lists for this cluster, or no longer (epoch {epoch})")
}
