//! What every node does with an event.

use dsm_core::types::{NodeId, NodeSet};

use super::event::{Action, EndReason, Event, State};
use super::join::Start;
use super::machine::{DECIDING, Membership};
use crate::control::{Change, Heartbeat, MemberMessage, clip_reason};

impl Membership {
    pub(super) fn take(&mut self, now_ms: u64, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Connected { node, incarnation } => {
                self.on_connected(now_ms, node, incarnation, out);
            }
            _ if self.has_ended() => {}
            Event::Disconnected { node, incarnation, why } => {
                self.on_disconnected(node, incarnation, &why, out);
            }
            Event::Message { from, message } => {
                let known = self.peers.get(from).is_some_and(|p| p.incarnation.is_some());
                if known && from != self.config.me {
                    self.on_message(now_ms, from, message, out);
                }
            }
            Event::LeaveRequested => self.on_leave_requested(now_ms, out),
            Event::Abandon => self.end(EndReason::Abandoned, out),
            Event::Etcd(_) => {} // nobody asked it
        }
    }

    /// Tells the deciding node once of each live member that is silent towards this node.
    pub(super) fn report_silent(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        for node in self.silent(now_ms).without(DECIDING).iter() {
            let timeout_ms = self.config.timeout_ms;
            self.suspect(node, &format!("not heard for {timeout_ms} ms"), out);
        }
    }

    fn on_connected(&mut self, now_ms: u64, node: NodeId, incarnation: u64, out: &mut Vec<Action>) {
        if node == self.config.me || node.index() >= self.peers.len() {
            let reason = "it is not another node of this cluster's list; compare the lists".into();
            return out.push(Action::Refuse { node, incarnation, reason });
        }
        match &self.state {
            State::Ended { reason } => {
                // Not the other's fault: it may wait for another process of this node.
                let me = self.config.name(self.config.me);
                let reason = clip_reason(&format!("node `{me}` has ended: {reason}"));
                out.push(Action::Postpone { node, incarnation, reason });
            }
            _ if self.members.contains(node) => {
                self.on_member_connected(now_ms, node, incarnation, out);
            }
            _ => self.accept(now_ms, node, incarnation, out),
        }
    }

    /// Talks to a node from now on: a member, or one that may become a member.
    pub(super) fn accept(
        &mut self,
        now_ms: u64,
        node: NodeId,
        incarnation: u64,
        out: &mut Vec<Action>,
    ) {
        self.peers.connect(now_ms, node, incarnation);
        // Everyone waits for this news.
        self.send_heartbeats(now_ms, out);
    }

    fn on_disconnected(
        &mut self,
        node: NodeId,
        incarnation: u64,
        why: &str,
        out: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.incarnation != Some(incarnation) {
            return;
        }
        peer.incarnation = None;
        if self.epoch == 0 || !self.is_live(node) {
            return; // one of the two joins: it may come again; otherwise it is lost already
        }
        if self.is_deciding() {
            self.lose(node, &format!("its connection to the deciding node broke: {why}"), out);
        } else if node == DECIDING {
            let name = self.config.name(DECIDING);
            self.end(EndReason::Disconnected { name, why: clip_reason(why) }, out);
        } else {
            self.suspect(node, &format!("connection broke: {why}"), out);
        }
    }

    /// Reports a live member to the deciding node, once. A connection that breaks is no news to
    /// act on before the deciding node has spoken: the node may just have left.
    pub(super) fn suspect(&mut self, node: NodeId, why: &str, out: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if !std::mem::replace(&mut peer.suspected, true) {
            let reason = clip_reason(why);
            let message = MemberMessage::Suspect { node, reason };
            out.push(Action::Send { to: DECIDING, message });
        }
    }

    fn on_leave_requested(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let connected = self.peers.connected().contains(DECIDING);
        match self.state {
            State::Joining => {
                // The deciding node may be starting the cluster just now.
                if !self.is_deciding() && connected {
                    out.push(Action::Send { to: DECIDING, message: MemberMessage::Leave });
                }
                self.end(EndReason::Left, out);
            }
            State::Running => {
                self.state = State::Leaving { since_ms: now_ms };
                if !self.is_deciding() {
                    out.push(Action::Send { to: DECIDING, message: MemberMessage::Leave });
                }
            }
            State::Leaving { .. } | State::Ended { .. } => {}
        }
    }

    fn on_message(
        &mut self,
        now_ms: u64,
        from: NodeId,
        message: MemberMessage,
        out: &mut Vec<Action>,
    ) {
        let name = self.config.name(from);
        match message {
            MemberMessage::Heartbeat(beat) => self.on_heartbeat(now_ms, from, &beat, out),
            MemberMessage::MemberUpdate { epoch, members, change } if from == DECIDING => {
                self.on_update(now_ms, epoch, members, change, out);
            }
            MemberMessage::LeaveAck { .. } if from == DECIDING => {
                if matches!(self.state, State::Leaving { .. }) {
                    self.end(EndReason::Left, out);
                }
            }
            MemberMessage::Suspect { node, reason } if self.is_deciding() => {
                if self.is_live(from) && self.is_live(node) && node != from && node != DECIDING {
                    self.lose(node, &format!("node `{name}` can't talk to it: {reason}"), out);
                }
            }
            MemberMessage::Leave if self.is_deciding() => {
                if self.is_live(from) {
                    self.let_leave(from, out);
                } else {
                    self.peers.disregard(from);
                }
            }
            MemberMessage::Gone { reason } => self.on_gone(now_ms, from, name, &reason, out),
            MemberMessage::Fatal { reason } => {
                // Who is no member has no say in who is.
                if self.epoch == 0 || self.members.contains(from) {
                    self.end(EndReason::Refused { name, reason }, out);
                }
            }
            MemberMessage::NotYet { reason } => {
                if let Some(peer) = self.peers.get_mut(from) {
                    peer.not_yet = Some(reason); // its connection ends next
                }
            }
            MemberMessage::MemberUpdate { .. }
            | MemberMessage::LeaveAck { .. }
            | MemberMessage::Suspect { .. }
            | MemberMessage::Leave => {
                self.drop_peer(
                    from,
                    "it sent what only passes between a node and the deciding \
                     node; compare the lists of nodes",
                    out,
                );
            }
        }
    }

    /// Epochs of other members may differ for a moment, as updates reach each in its own time. The
    /// deciding node's own is always the newest, and its updates go ahead of its heartbeats.
    fn on_heartbeat(&mut self, now_ms: u64, from: NodeId, beat: &Heartbeat, out: &mut Vec<Action>) {
        let is_member = self.members.contains(from);
        let Some(peer) = self.peers.get_mut(from) else { return };
        if peer.incarnation != Some(beat.incarnation) {
            return self.drop_peer(from, "its heartbeat has another incarnation", out);
        }
        let newest = if is_member { self.epoch } else { 0 };
        if self.config.me == DECIDING && beat.epoch > newest {
            let reason = format!("its epoch {} is not of this run of the cluster", beat.epoch);
            return self.drop_peer(from, &reason, out);
        }
        if from == DECIDING && self.epoch > 0 && beat.epoch != self.epoch {
            let what = format!("its epoch is {}, here it is {}", beat.epoch, self.epoch);
            return self.lose_step(what, out);
        }
        if self.config.me == DECIDING && is_member && beat.epoch == 0 {
            // It doesn't know yet that it is a member. If it never learns that, it counts as silent;
            // so it is not told that it was heard either.
            return;
        }
        peer.hear(now_ms, beat);
        // A time that this node's clock has not reached is no time that it sent.
        if from == DECIDING && beat.echo_ms.is_some_and(|echo_ms| echo_ms <= now_ms) {
            self.confirmed_ms = self.confirmed_ms.max(beat.echo_ms);
        }
    }

    fn on_gone(
        &mut self,
        now_ms: u64,
        from: NodeId,
        name: String,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        if self.epoch == 0 || !self.members.contains(from) {
            self.peers.disregard(from); // it may be started again: its connection ends next
        } else if from == DECIDING {
            let why = clip_reason(reason);
            self.end(EndReason::DecidingNodeEnded { name, why }, out);
        } else if self.is_deciding() {
            self.lose_ended(from, &format!("it ended and says: {reason}"), now_ms, out);
        } else if self.is_live(from) {
            self.suspect(from, &format!("it ended and says: {reason}"), out);
        }
    }

    fn on_update(
        &mut self,
        now_ms: u64,
        epoch: u64,
        members: NodeSet,
        change: Change,
        out: &mut Vec<Action>,
    ) {
        match change {
            Change::Started { incarnations, joined } => {
                self.on_started(now_ms, &Start { epoch, members, incarnations, joined }, out);
            }
            _ if self.epoch == 0 => {
                self.lose_step(format!("a change at epoch {epoch} before the start"), out);
            }
            Change::Lost { node, reason } => {
                if epoch != self.epoch || members != self.members || node == self.config.me {
                    let what = format!("it lost node {node} at epoch {epoch}");
                    return self.lose_step(what, out);
                }
                if self.is_live(node) {
                    self.lost.insert(node);
                    self.peers.refuse(node, &format!("declared lost: {reason}"), out);
                    out.push(Action::PeerLost { node, reason });
                }
            }
            Change::Joined { node, incarnation } => {
                self.on_joined(now_ms, epoch, members, (node, incarnation), out);
            }
            Change::Removed { node } => self.on_new_epoch(epoch, members, node, out),
            Change::Left { node } => {
                out.push(Action::PeerLeft { node });
                self.on_new_epoch(epoch, members, node, out);
            }
        }
    }

    fn on_new_epoch(&mut self, epoch: u64, members: NodeSet, node: NodeId, out: &mut Vec<Action>) {
        let fits = self.is_next(epoch)
            && self.members.contains(node)
            && node != self.config.me
            && members == self.members.without(node);
        if !fits {
            return self.lose_step(format!("epoch {epoch} doesn't follow {}", self.epoch), out);
        }
        self.new_epoch(node, out);
    }

    /// Closes the connection to a peer that sends nonsense, with what follows from that.
    fn drop_peer(&mut self, node: NodeId, what: &str, out: &mut Vec<Action>) {
        let incarnation = self.peers.get(node).and_then(|peer| peer.incarnation);
        if node == DECIDING {
            return self.lose_step(what.to_owned(), out);
        }
        if let Some(incarnation) = incarnation {
            let reason = clip_reason(what);
            out.push(Action::Refuse { node, incarnation, reason });
            self.on_disconnected(node, incarnation, what, out);
        }
    }

    pub(super) fn lose_step(&mut self, what: String, out: &mut Vec<Action>) {
        let name = self.config.name(DECIDING);
        self.end(EndReason::LostStep { name, what }, out);
    }
}
