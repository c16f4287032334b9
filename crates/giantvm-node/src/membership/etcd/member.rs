//! What a node does with an event, where etcd decides.

use dsm_core::types::{NodeId, NodeSet};

use super::machine::EtcdMembership;
use super::record::{Record, Standing};
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
                if view.revision > self.revision {
                    self.revision = view.revision;
                    self.on_record(now_ms, record, out);
                }
                self.check_forming(out);
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
        if !self.record.leads_to(&next) {
            return self.overwritten("what it says doesn't follow what it said", out);
        }
        let before = std::mem::replace(&mut self.record, next);
        match self.record.standing(self.config.me) {
            Standing::Lost { reason } | Standing::Removed { reason } => {
                let reason = reason.clone();
                return self.end(EndReason::Excluded { reason }, out);
            }
            Standing::Left => return self.end(EndReason::Left, out),
            Standing::Member => {}
        }
        if !before.started && self.record.started {
            self.begin(now_ms, out);
        }
        let changes: Vec<_> = self
            .record
            .numbered()
            .filter(|(node, listed)| *before.standing(*node) != listed.standing)
            .map(|(node, listed)| (node, listed.standing.clone()))
            .collect();
        for (node, standing) in changes {
            let known = matches!(before.standing(node), Standing::Lost { .. });
            match standing {
                Standing::Lost { reason } | Standing::Removed { reason } if !known => {
                    self.peers.refuse(node, &format!("declared lost: {reason}"), out);
                    out.push(Action::PeerLost { node, reason });
                }
                Standing::Left => out.push(Action::PeerLeft { node }),
                _ => {}
            }
            self.suspects.remove(&node);
        }
        if before.started && before.epoch() != self.record.epoch() {
            out.push(Action::NewEpoch(self.current()));
        }
    }

    fn begin(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        self.state = State::Running;
        self.peers.hear_all(now_ms);
        out.push(Action::BecameRunning(self.current()));
        for node in self.missing().iter() {
            self.suspect(now_ms, node, "it went away while the cluster started");
        }
    }

    // Peers.

    fn on_connected(&mut self, now_ms: u64, node: NodeId, incarnation: u64, out: &mut Vec<Action>) {
        let listed = self.record.nodes.get(node.index()).map(|listed| listed.incarnation);
        let refusal = match &self.state {
            State::Ended { reason } => {
                Some(format!("node `{}` has ended: {reason}", self.config.name(self.config.me)))
            }
            State::Joining if listed == Some(incarnation) && node != self.config.me => None,
            _ => Some(format!(
                "it is not the process that etcd lists for this cluster, or no longer (epoch {})",
                self.record.epoch()
            )),
        };
        if let Some(reason) = refusal {
            out.push(Action::Refuse { node, incarnation, reason: clip_reason(&reason) });
            return;
        }
        self.peers.connect(now_ms, node, incarnation);
        self.send_heartbeats(now_ms, out); // everyone waits for this news
    }

    fn on_disconnected(&mut self, now_ms: u64, node: NodeId, incarnation: u64, why: &str) {
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
