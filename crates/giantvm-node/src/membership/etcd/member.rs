//! What a node does with an event, where etcd decides.

use std::sync::Arc;

use dsm_core::types::{NodeId, NodeSet};

use super::joining::{Welcome, not_listed};
use super::machine::EtcdMembership;
use super::record::{Listed, Record, Standing};
use crate::control::{MemberMessage, clip_reason};
use crate::membership::event::{Action, EndReason, Event, Said, State};

impl EtcdMembership {
    pub(super) fn take(&mut self, now_ms: u64, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Connected { node, incarnation } => {
                self.on_connected(now_ms, node, incarnation, out);
            }
            _ if self.has_ended() => {}
            Event::Disconnected { node, incarnation, why } => {
                self.on_disconnected(now_ms, node, incarnation, &why);
            }
            Event::Message { from, message } => self.on_message(now_ms, from, message, out),
            Event::LeaveRequested => match self.state {
                State::Joining => self.end(EndReason::Left, out),
                State::Running => self.state = State::Leaving { since_ms: now_ms },
                State::Leaving { .. } | State::Ended { .. } => {}
            },
            Event::Abandon => self.end(EndReason::Abandoned, out),
            Event::Etcd(said) => self.on_etcd(now_ms, said, out),
        }
    }

    // etcd.

    fn on_etcd(&mut self, now_ms: u64, said: Said, out: &mut Vec<Action>) {
        match said {
            Said::Renewed { sent_ms } => {
                // A time that this node's clock has not reached is no time that it sent.
                let sent_ms = sent_ms.min(now_ms);
                self.lease.confirmed_ms = self.lease.confirmed_ms.max(sent_ms);
                self.failure = None;
            }
            Said::LeaseEnded => {
                let reason = self.lease.ended(now_ms);
                self.end(reason, out);
            }
            Said::NotRenewed { why } => self.failure = Some(clip_reason(&why)),
            Said::Failed { why } => {
                self.proposed = false; // whether it was carried out shows when etcd answers again
                self.failure = Some(clip_reason(&why));
            }
            Said::Has(view) => {
                let Some(record) = view.record.clone() else {
                    return self.overwritten("it is gone", out);
                };
                if view.revision < self.revision {
                    return;
                }
                self.proposed = false;
                let there = record.numbered().filter(|(_, listed)| view.has(listed));
                self.present = there.map(|(node, _)| node).collect();
                self.arrivals = view.arrivals(&record).into_iter().cloned().collect();
                if view.revision > self.revision {
                    self.revision = view.revision;
                    self.on_record(now_ms, record, out);
                }
                if self.record.has_started() {
                    self.check_way_in(&view, out);
                } else {
                    self.check_forming(out);
                }
            }
        }
    }

    fn overwritten(&mut self, what: &str, out: &mut Vec<Action>) {
        self.end(EndReason::Overwritten { what: what.to_owned() }, out);
    }

    /// The cluster starts with all of its list or not at all.
    fn check_forming(&mut self, out: &mut Vec<Action>) {
        let gone = self.config.all().bits() & !self.present.bits();
        let first = NodeSet::from_bits(gone).iter().next();
        if let (State::Joining, Some(node)) = (&self.state, first) {
            let name = self.config.name(node);
            self.end(EndReason::FormingFailed { name }, out);
        }
    }

    fn on_record(&mut self, now_ms: u64, next: Record, out: &mut Vec<Action>) {
        let me = self.config.me;
        if !self.record.leads_to(&next) {
            return self.overwritten("what it says doesn't follow what it said", out);
        }
        if !self.record.get(me).zip(next.get(me)).is_some_and(|(own, it)| own.is_same(it)) {
            let reason = "another process has its place".into();
            return self.end(EndReason::Excluded { reason }, out);
        }
        let mut before = std::mem::replace(&mut self.record, next);
        match self.record.standing(me) {
            Standing::Lost { reason } | Standing::Removed { reason } => {
                let reason = reason.clone();
                return self.end(EndReason::Excluded { reason }, out);
            }
            Standing::Gone => {
                let reason = "its lease in etcd ended before it was a member".into();
                return self.end(EndReason::Excluded { reason }, out);
            }
            Standing::Left => return self.end(EndReason::Left, out),
            Standing::Member | Standing::Joining => {}
        }
        if self.state == State::Joining && self.runs() {
            // Nobody else makes this node a member: it was the next record after the last one seen.
            before = before.with_member(me);
            if !before.leads_to(&self.record) {
                return self.overwritten("this node joined otherwise than it meant to", out);
            }
            self.begin(now_ms, &before, out);
        }
        self.tell_changes(now_ms, &before, out);
        self.welcome_listed(now_ms, out);
    }

    /// This node is a member from `first` on.
    fn begin(&mut self, now_ms: u64, first: &Record, out: &mut Vec<Action>) {
        self.state = State::Running;
        self.peers.hear_all(now_ms);
        out.push(Action::BecameRunning(first.in_force()));
        for node in self.others(first.live()).minus(self.peers.connected()).iter() {
            self.suspect(now_ms, node, "it went away while the cluster started");
        }
    }

    /// Tells what happened to others between the record `before` and the present one.
    fn tell_changes(&mut self, now_ms: u64, before: &Record, out: &mut Vec<Action>) {
        let is_in = self.runs();
        let names = self.record.nodes.iter().map(|it| it.name.clone()).collect();
        if self.config.names != names {
            Arc::make_mut(&mut self.config).names = names;
            self.peers.grow(self.record.nodes.len());
        }
        let changes: Vec<_> = self
            .record
            .numbered()
            .filter(|(node, listed)| before.get(*node) != Some(*listed))
            .map(|(node, listed)| (node, listed.clone()))
            .collect();
        let mut late = Vec::new();
        for (node, listed) in changes {
            let known = before.get(node).filter(|was| was.is_same(&listed));
            let was = known.map_or(&Standing::Joining, |was| &was.standing);
            if known.is_none() {
                self.give_place(node, before.standing(node), &listed, out);
            }
            self.suspects.remove(&node);
            if *was == Standing::Joining {
                late.extend(self.tell_of_newcomer(now_ms, node, listed.standing, out));
            } else {
                self.tell_of_member(node, was, listed.standing, out);
            }
        }
        if is_in && before.epoch != self.record.epoch {
            out.push(Action::NewEpoch(self.record.in_force()));
        }
        out.append(&mut late);
    }

    /// Another process has the place of one that was `before`.
    fn give_place(&mut self, node: NodeId, before: &Standing, to: &Listed, out: &mut Vec<Action>) {
        let reason = "another process has its place";
        self.peers.refuse(node, reason, out);
        if self.runs() && *before == Standing::Member {
            // Who gives a place waits until every member knows what became of the last one. Should it
            // not have: whoever uses what that one had must be told all the same.
            out.push(Action::PeerLost { node, reason: reason.into() });
        }
        out.push(Action::Listed {
            node,
            name: to.name.clone(),
            listen: to.listen.clone(),
            memory_bytes: to.memory_bytes,
            incarnation: to.incarnation,
        });
    }

    /// A process that was no member when the record was read last is `now` something. Returns what
    /// is to be told after the epoch with which it joined.
    fn tell_of_newcomer(
        &mut self,
        now_ms: u64,
        node: NodeId,
        now: Standing,
        out: &mut Vec<Action>,
    ) -> Option<Action> {
        match now {
            Standing::Joining => None,
            Standing::Member => {
                let peer = self.peers.get_mut(node)?;
                peer.heard_ms = now_ms;
                if peer.incarnation.is_none() {
                    self.suspect(now_ms, node, "it went away while it joined");
                }
                None
            }
            Standing::Lost { reason } => {
                self.peers.refuse(node, &format!("declared lost: {reason}"), out);
                self.runs().then_some(Action::PeerLost { node, reason })
            }
            Standing::Gone | Standing::Removed { .. } | Standing::Left => {
                self.peers.refuse(node, "it is gone", out);
                None
            }
        }
    }

    fn tell_of_member(
        &mut self,
        node: NodeId,
        was: &Standing,
        now: Standing,
        out: &mut Vec<Action>,
    ) {
        let (known, is_in) = (matches!(was, Standing::Lost { .. }), self.runs());
        match now {
            Standing::Lost { reason } | Standing::Removed { reason } if !known => {
                self.peers.refuse(node, &format!("declared lost: {reason}"), out);
                if is_in {
                    out.push(Action::PeerLost { node, reason });
                }
            }
            Standing::Left if is_in => out.push(Action::PeerLeft { node }),
            _ => {}
        }
    }

    // Peers.

    pub(super) fn on_connected(
        &mut self,
        now_ms: u64,
        node: NodeId,
        incarnation: u64,
        out: &mut Vec<Action>,
    ) {
        let refusal = match (&self.state, self.welcome(node, incarnation)) {
            (State::Ended { reason }, _) => {
                format!("node `{}` has ended: {reason}", self.config.name(self.config.me))
            }
            (_, Welcome::Now) => {
                self.peers.connect(now_ms, node, incarnation);
                return self.send_heartbeats(now_ms, out); // everyone waits for this news
            }
            (_, Welcome::Later) => {
                self.early.insert(node, (now_ms, incarnation));
                return;
            }
            (_, Welcome::Never) => not_listed(self.record.epoch),
        };
        out.push(Action::Refuse { node, incarnation, reason: clip_reason(&refusal) });
    }

    fn on_disconnected(&mut self, now_ms: u64, node: NodeId, incarnation: u64, why: &str) {
        if self.early.get(&node).is_some_and(|(_, early)| *early == incarnation) {
            self.early.remove(&node);
        }
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.incarnation == Some(incarnation) {
            peer.incarnation = None;
            self.suspect(now_ms, node, &format!("connection broke: {why}"));
        }
    }

    fn on_message(
        &mut self,
        now_ms: u64,
        from: NodeId,
        message: MemberMessage,
        out: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        let Some(incarnation) = peer.incarnation else { return };
        let nonsense = match message {
            MemberMessage::Heartbeat(beat) if beat.incarnation == incarnation => {
                return peer.hear(now_ms, &beat);
            }
            MemberMessage::Gone { reason } => {
                let why = format!("it ended and says: {reason}");
                return self.suspect(now_ms, from, &why);
            }
            // A newcomer has no say, and what members say to one is etcd's to say.
            MemberMessage::Fatal { .. }
                if self.record.has_started()
                    && !(self.runs() && self.record.live().contains(from)) =>
            {
                return;
            }
            MemberMessage::Fatal { reason } => {
                let name = self.config.name(from);
                return self.end(EndReason::Refused { name, reason }, out);
            }
            MemberMessage::Heartbeat(_) => "its heartbeat has another incarnation",
            _ => "it sent what only passes between a node and a deciding node",
        };
        self.peers.refuse(from, nonsense, out);
        self.suspect(now_ms, from, nonsense);
    }
}
