//! How a node becomes a member: by the start, or taken in by a cluster that runs.

use std::collections::BTreeMap;

use dsm_core::types::{NodeId, NodeSet};

use super::event::{Action, State};
use super::machine::{DECIDING, Membership};
use crate::control::{Change, clip_reason};
use crate::limits::JOIN_EPOCH_MAX;

/// What the deciding node tells a new member, besides the epoch.
pub(super) struct Start {
    pub(super) epoch: u64,
    pub(super) members: NodeSet,
    pub(super) incarnations: Vec<u64>,
    pub(super) joined: BTreeMap<NodeId, u16>,
}

// At the deciding node.
impl Membership {
    /// Takes a node in, if one is ready; refuses all if none may join any more.
    pub(super) fn decide_joins(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if !self.is_deciding() || self.epoch == 0 {
            return;
        }
        let newcomers = self.peers.others_connected().minus(self.members);
        if let Some(reason) = self.why_closed() {
            for node in newcomers.iter() {
                self.peers.refuse(node, &reason, out);
            }
        } else if self.state == State::Running
            && let Some(node) = newcomers.iter().find(|node| self.is_ready_to_join(now_ms, *node))
        {
            self.take_in(now_ms, node, out);
        }
    }

    fn why_closed(&self) -> Option<String> {
        let exhausted = || {
            format!(
                "the cluster has seen {JOIN_EPOCH_MAX} nodes come or go, and takes no more in; end \
                 all nodes, then start them again"
            )
        };
        let full = self.epoch >= JOIN_EPOCH_MAX.into();
        self.closed.clone().or_else(|| full.then(exhausted))
    }

    /// Whether all members know that no earlier process has this node's number, and have a
    /// connection with it.
    fn is_ready_to_join(&self, now_ms: u64, node: NodeId) -> bool {
        let Some(newcomer) = self.peers.get(node) else { return false };
        // Who has not been heard for so long would be lost at once.
        let fresh = now_ms.saturating_sub(newcomer.heard_ms) < self.config.timeout_ms / 2;
        let meets_all = self.members.minus(newcomer.connected).is_empty();
        let mut members = self.peers.iter().filter(|(member, _)| self.members.contains(*member));
        let all_met = members.all(|(_, member)| {
            // From an earlier epoch, it may mean the connection with an earlier process. What it said
            // against that process has come, too.
            member.epoch == self.epoch && member.connected.contains(node)
        });
        self.lost.is_empty() && fresh && meets_all && all_met
    }

    fn take_in(&mut self, now_ms: u64, node: NodeId, out: &mut Vec<Action>) {
        let Some(incarnation) = self.peers.get(node).and_then(|peer| peer.incarnation) else {
            return;
        };
        // The echo goes ahead of the rest: it is the right to run.
        self.send_heartbeat(now_ms, node, out);
        let known = self.members;
        self.admit(now_ms, node, incarnation);
        self.announce(known, Change::Joined { node, incarnation }, out);
        let incarnations = self.peers.incarnations(self.members, self.config.incarnation);
        let started = Change::Started { incarnations, joined: self.joined.clone() };
        self.announce(NodeSet::only(node), started, out);
        // After the news: what the driver sends now finds members.
        out.push(Action::NewEpoch(self.current()));
    }
}

// At every member.
impl Membership {
    /// The next epoch, with `node`.
    fn admit(&mut self, now_ms: u64, node: NodeId, incarnation: u64) {
        self.epoch += 1;
        self.members.insert(node);
        self.joined.insert(node, self.current().number);
        // Heard just now, or a little earlier: later is the safe side for its removal.
        self.peers.admit(node, incarnation, now_ms);
    }

    pub(super) fn on_joined(
        &mut self,
        now_ms: u64,
        epoch: u64,
        members: NodeSet,
        (node, incarnation): (NodeId, u64),
        out: &mut Vec<Action>,
    ) {
        let fits = self.is_next(epoch)
            && node.index() < self.peers.len()
            && !self.members.contains(node)
            && self.lost.is_empty()
            && members == self.members.union(NodeSet::only(node));
        if !fits {
            return self.lose_step(format!("node {node} joined at epoch {epoch}"), out);
        }
        // A connection with another process is with one that has ended since, or with one that came
        // after the new member. If none comes in time, the new member counts as silent.
        let reason = self.earlier_process(node);
        self.peers.keep_only(node, incarnation, &reason, out);
        self.admit(now_ms, node, incarnation);
        out.push(Action::NewEpoch(self.current()));
    }

    /// A connection with a node that is a member. One that broke is not mended: what was under way on
    /// it is gone.
    pub(super) fn on_member_connected(
        &mut self,
        now_ms: u64,
        node: NodeId,
        incarnation: u64,
        out: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get(node) else { return };
        let name = self.config.name(node);
        let is_member = peer.member == Some(incarnation);
        if is_member && self.lost.contains(node) {
            let reason = clip_reason(&format!("node `{name}` was declared lost"));
            return out.push(Action::Refuse { node, incarnation, reason });
        }
        if is_member && peer.incarnation.is_none() && !peer.suspected {
            // One of the two has just joined, and the connection came late.
            return self.accept(now_ms, node, incarnation, out);
        }
        let reason = if is_member {
            format!("the connection with node `{name}` broke")
        } else {
            self.earlier_process(node)
        };
        out.push(Action::Postpone { node, incarnation, reason: clip_reason(&reason) });
    }

    pub(super) fn earlier_process(&self, node: NodeId) -> String {
        let name = self.config.name(node);
        format!("the earlier process of node `{name}` is not removed yet (epoch {})", self.epoch)
    }
}

// At a node that joins.
impl Membership {
    pub(super) fn on_started(&mut self, now_ms: u64, start: &Start, out: &mut Vec<Action>) {
        if !self.can_start(start) {
            let what = format!("a start at epoch {} that doesn't fit", start.epoch);
            return self.lose_step(what, out);
        }
        if let Some(reason) = self.right_to_run_over(now_ms) {
            return self.end(reason, out); // the start came late: the deciding node gave up on us
        }
        self.begin(now_ms, start, out);
        for (node, &incarnation) in self.config.all().iter().zip(&start.incarnations) {
            if node == self.config.me || !self.members.contains(node) {
                continue;
            }
            let reason = self.earlier_process(node);
            if self.peers.keep_only(node, incarnation, &reason, out) {
                continue;
            }
            if start.joined.is_empty() {
                self.suspect(node, "it went away while the cluster started", out);
            } else {
                // Either that member is lost, or it misses this node too, and says so earlier: who
                // has been there for longer stays.
                let heard_ms = now_ms.saturating_add(self.config.timeout_ms);
                self.peers.admit(node, incarnation, heard_ms);
            }
        }
    }

    /// Whether what the deciding node says of the members can be.
    fn can_start(&self, start: &Start) -> bool {
        let Ok(number) = u16::try_from(start.epoch) else { return false };
        let (me, members) = (self.config.me, start.members);
        let said = |node: NodeId| start.incarnations.get(node.index()).copied();
        let connection = |node: NodeId| self.peers.get(node).and_then(|peer| peer.incarnation);
        let joined_fits = |(&node, &joined): (&NodeId, &u16)| {
            node != DECIDING && members.contains(node) && (2..=number).contains(&joined)
        };
        self.epoch == 0
            && number > 0
            && start.incarnations.len() == self.peers.len()
            && members.within(self.peers.len())
            && members.contains(DECIDING)
            && members.contains(me)
            && said(me) == Some(self.config.incarnation)
            && said(DECIDING) == connection(DECIDING)
            && start.joined.iter().all(joined_fits)
            && start.joined.get(&me).copied() == (number > 1).then_some(number)
    }

    /// Becomes a member.
    pub(super) fn begin(&mut self, now_ms: u64, start: &Start, out: &mut Vec<Action>) {
        self.state = State::Running;
        self.epoch = start.epoch;
        self.members = start.members;
        self.joined = start.joined.clone();
        // At the deciding node each peer has just been heard, or was a little earlier: later is the
        // safe side for its removal.
        for (node, &incarnation) in self.config.all().iter().zip(&start.incarnations) {
            if start.members.contains(node) {
                self.peers.admit(node, incarnation, now_ms);
            }
        }
        out.push(Action::BecameRunning(self.current()));
    }

    /// Whom this node waits for: those that the start waits for, or whom a cluster that runs is
    /// connected with.
    pub(super) fn awaited(&self) -> NodeSet {
        let wanted = if self.hears_a_running_cluster() {
            let deciding = self.peers.get(DECIDING).map_or(NodeSet::EMPTY, |peer| peer.connected);
            let members = self.peers.iter().filter(|(_, peer)| peer.epoch > 0);
            let members: NodeSet = members.map(|(node, _)| node).collect();
            members.union(deciding).union(NodeSet::only(DECIDING))
        } else {
            self.config.first_members()
        };
        wanted.minus(self.peers.connected())
    }

    fn hears_a_running_cluster(&self) -> bool {
        self.peers.iter().any(|(_, peer)| peer.incarnation.is_some() && peer.epoch > 0)
    }

    /// Whom this node waits for and why, for people; empty if nobody.
    pub fn waiting_for(&self) -> String {
        let mut parts: Vec<_> = self.awaited().iter().map(|node| self.absence(node)).collect();
        if self.hears_a_running_cluster() {
            if parts.is_empty() {
                parts.push(format!("the word of node `{}`", self.config.name(DECIDING)));
            }
            return format!("the cluster runs; to be taken in: {}", parts.join(", "));
        }
        let first = self.config.first_members();
        for (node, peer) in self.peers.iter().filter(|(node, _)| first.contains(*node)) {
            let missing = first.minus(peer.connected);
            if peer.incarnation.is_some() && !missing.is_empty() {
                let names: Vec<_> = missing.iter().map(|it| self.config.name(it)).collect();
                let name = self.config.name(node);
                parts.push(format!("{name}'s connection to {}", names.join(" and ")));
            }
        }
        parts.join(", ")
    }

    /// A node that is not there, with what it said when it was.
    fn absence(&self, node: NodeId) -> String {
        let name = self.config.name(node);
        let name =
            if self.hears_a_running_cluster() { format!("connection to {name}") } else { name };
        match self.peers.get(node).and_then(|peer| peer.not_yet.as_ref()) {
            Some(reason) => format!("{name} ({reason})"),
            None => name,
        }
    }
}
