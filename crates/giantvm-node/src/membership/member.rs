//! What every node does with an event.

use dsm_core::types::{NodeId, NodeSet};

use super::event::{Action, EndReason, Event, State};
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
        let refusal = match &self.state {
            _ if node == self.config.me || node.index() >= self.peers.len() => {
                Some("it is not another node of this cluster's list; compare the lists".to_owned())
            }
            State::Joining => None,
            State::Running | State::Leaving { .. } => Some(format!(
                "the cluster runs since before (epoch {}) and takes no node in; end all nodes, \
                 then start them again",
                self.epoch
            )),
            State::Ended { reason } => {
                Some(format!("node `{}` has ended: {reason}", self.config.name(self.config.me)))
            }
        };
        if let Some(reason) = refusal {
            out.push(Action::Refuse { node, incarnation, reason: clip_reason(&reason) });
            return;
        }
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
            return; // joining: it may come again; otherwise it left, or is lost already
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
    fn suspect(&mut self, node: NodeId, why: &str, out: &mut Vec<Action>) {
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
                } else if let Some(peer) = self.peers.get_mut(from) {
                    peer.connected = NodeSet::EMPTY; // joining: don't start with it
                }
            }
            MemberMessage::Gone { reason } => self.on_gone(now_ms, from, name, &reason, out),
            MemberMessage::Fatal { reason } => self.end(EndReason::Refused { name, reason }, out),
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
        if self.epoch > 0 && !self.is_live(from) {
            return; // sent before it left or was refused
        }
        let Some(peer) = self.peers.get_mut(from) else { return };
        if peer.incarnation != Some(beat.incarnation) {
            return self.drop_peer(from, "its heartbeat has another incarnation", out);
        }
        if self.config.me == DECIDING && beat.epoch > self.epoch {
            let reason = format!("its epoch {} is ahead of the deciding node's", beat.epoch);
            return self.drop_peer(from, &reason, out);
        }
        if from == DECIDING && beat.epoch != self.epoch {
            let what = format!("its epoch is {}, here it is {}", beat.epoch, self.epoch);
            return self.lose_step(what, out);
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
        if self.epoch == 0 {
            // It may be started again: its connection ends next.
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
            Change::Started { incarnations } => {
                self.on_started(now_ms, epoch, members, &incarnations, out);
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
            Change::Removed { node } => self.on_new_epoch(epoch, members, node, out),
            Change::Left { node } => {
                out.push(Action::PeerLeft { node });
                self.on_new_epoch(epoch, members, node, out);
            }
        }
    }

    fn on_started(
        &mut self,
        now_ms: u64,
        epoch: u64,
        members: NodeSet,
        incarnations: &[u64],
        out: &mut Vec<Action>,
    ) {
        let mine = incarnations.get(self.config.me.index()) == Some(&self.config.incarnation);
        let fits = self.epoch == 0 && epoch > 0 && members == self.config.all() && mine;
        if !fits || incarnations.len() != self.peers.len() {
            return self.lose_step(format!("a start at epoch {epoch} that doesn't fit"), out);
        }
        if let Some(reason) = self.right_to_run_over(now_ms) {
            return self.end(reason, out); // the start came late: the deciding node gave up on us
        }
        self.begin(epoch, now_ms, out);
        let changed: Vec<_> = self
            .peers
            .iter()
            .filter(|(node, peer)| peer.incarnation != incarnations.get(node.index()).copied())
            .map(|(node, _)| node)
            .collect();
        for node in changed {
            self.suspect(node, "it went away while the cluster started", out);
        }
    }

    fn on_new_epoch(&mut self, epoch: u64, members: NodeSet, node: NodeId, out: &mut Vec<Action>) {
        let fits = Some(epoch) == self.epoch.checked_add(1)
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

    fn lose_step(&mut self, what: String, out: &mut Vec<Action>) {
        let name = self.config.name(DECIDING);
        self.end(EndReason::LostStep { name, what }, out);
    }
}
