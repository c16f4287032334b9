//! What only the deciding node does: start, declare lost, remove, let leave.

use dsm_core::types::{Epoch, NodeId, NodeSet};

use super::event::{Action, EndReason, State};
use super::machine::Membership;
use crate::control::{Change, MemberMessage, clip_reason};

impl Membership {
    /// Starts the cluster as soon as everyone is connected with everyone.
    pub(super) fn decide_start(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let all = self.config.all();
        let ready = self.state == State::Joining && self.is_deciding() && self.peers.are_ready(all);
        if !ready {
            return;
        }
        // The echo goes ahead of the start: it is the right to run.
        self.send_heartbeats(now_ms, out);
        let incarnations = self.peers.incarnations(self.config.incarnation);
        self.begin(1, now_ms, out);
        self.announce(Change::Started { incarnations }, out);
    }

    /// Becomes a member of the first epoch.
    pub(super) fn begin(&mut self, epoch: u64, now_ms: u64, out: &mut Vec<Action>) {
        self.state = State::Running;
        self.epoch = epoch;
        self.members = self.config.all();
        // At the deciding node each peer has just been heard, or was a little earlier: later is the
        // safe side for its removal.
        self.peers.hear_all(now_ms);
        out.push(Action::BecameRunning(self.as_epoch()));
    }

    pub(super) fn declare_silent_lost(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        for node in self.silent(now_ms).iter() {
            let reason = format!(
                "the deciding node `{}` didn't hear it for {} ms",
                self.config.name(self.config.me),
                self.config.timeout_ms
            );
            self.lose(node, &reason, out);
        }
    }

    /// Live members that this node hasn't heard for the timeout.
    pub(super) fn silent(&self, now_ms: u64) -> NodeSet {
        self.peers.silent(self.live(), now_ms, self.config.timeout_ms)
    }

    /// Declares a live member lost, and plans its removal for when its right to run is over.
    pub(super) fn lose(&mut self, node: NodeId, reason: &str, out: &mut Vec<Action>) {
        if !self.is_live(node) {
            return;
        }
        let heard_ms = self.peers.get(node).map_or(u64::MAX, |peer| peer.heard_ms);
        let stopped_ms =
            heard_ms.saturating_add(self.config.timeout_ms).saturating_add(self.config.margin_ms);
        self.lost.insert(node);
        self.removals_ms.insert(node, stopped_ms);
        let reason = clip_reason(reason);
        self.peers.refuse(node, &format!("declared lost: {reason}"), out);
        self.announce(Change::Lost { node, reason: reason.clone() }, out);
        out.push(Action::PeerLost { node, reason });
    }

    /// `node` says that it has ended: its right to run need not run out, but its memory must.
    pub(super) fn lose_ended(
        &mut self,
        node: NodeId,
        reason: &str,
        now_ms: u64,
        out: &mut Vec<Action>,
    ) {
        self.lose(node, reason, out);
        if let Some(stopped_ms) = self.removals_ms.get_mut(&node) {
            *stopped_ms = (*stopped_ms).min(now_ms.saturating_add(self.config.margin_ms));
        }
    }

    pub(super) fn decide_removals(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        while let Some((&node, _)) =
            self.removals_ms.iter().find(|(_, stopped_ms)| **stopped_ms <= now_ms)
        {
            self.removals_ms.remove(&node);
            self.new_epoch(node, out);
            self.announce(Change::Removed { node }, out);
        }
    }

    /// Lets a live member go that has asked for it.
    pub(super) fn let_leave(&mut self, node: NodeId, out: &mut Vec<Action>) {
        out.push(Action::PeerLeft { node });
        self.new_epoch(node, out);
        self.announce(Change::Left { node }, out);
        let message = MemberMessage::LeaveAck { epoch: self.epoch };
        out.push(Action::Send { to: node, message });
    }

    /// The deciding node goes last, or when it has waited long enough for the others.
    pub(super) fn decide_own_leave(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if let State::Leaving { since_ms } = self.state
            && self.is_deciding()
        {
            let waited_ms = now_ms.saturating_sub(since_ms);
            let alone = self.members == NodeSet::only(self.config.me);
            if alone || waited_ms >= self.config.leave_wait_ms {
                self.end(EndReason::Left, out);
            }
        }
    }

    /// The next epoch, without `node`.
    pub(super) fn new_epoch(&mut self, node: NodeId, out: &mut Vec<Action>) {
        self.epoch += 1;
        self.members.remove(node);
        self.lost.remove(node);
        out.push(Action::NewEpoch(self.as_epoch()));
    }

    fn as_epoch(&self) -> Epoch {
        // It rises by one for each of 64 nodes at most.
        Epoch::first(u16::try_from(self.epoch).unwrap_or(u16::MAX), self.members)
    }

    fn announce(&self, change: Change, out: &mut Vec<Action>) {
        for node in self.peers.others_connected().iter() {
            if self.is_live(node) {
                let message = MemberMessage::MemberUpdate {
                    epoch: self.epoch,
                    members: self.members,
                    change: change.clone(),
                };
                out.push(Action::Send { to: node, message });
            }
        }
    }
}
