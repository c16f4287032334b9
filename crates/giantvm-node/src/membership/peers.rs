//! What a node knows of the others, whoever decides.

use dsm_core::types::{NodeId, NodeSet};

use super::config::Config;
use super::event::Action;
use crate::control::{Heartbeat, MemberMessage, clip_reason};

/// What this node knows of another one.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Peer {
    /// The incarnation of the connection, if there is one.
    pub(super) incarnation: Option<u64>,
    /// The incarnation of the member with this number, if there is one; not where etcd decides. A
    /// live member has no connection but with this one.
    pub(super) member: Option<u64>,
    pub(super) heard_ms: u64,
    /// The latest time of the peer's clock that came with a heartbeat.
    pub(super) sent_ms: Option<u64>,
    /// Its epoch at that time; 0 before it is a member.
    pub(super) epoch: u64,
    /// With whom the peer was connected at that time.
    pub(super) connected: NodeSet,
    /// This node has reported it to the deciding node.
    pub(super) suspected: bool,
    /// Why it closed the last connection, for people, if it may be made again.
    pub(super) not_yet: Option<String>,
}

impl Peer {
    /// A heartbeat came.
    pub(super) fn hear(&mut self, now_ms: u64, beat: &Heartbeat) {
        self.heard_ms = now_ms;
        self.sent_ms = self.sent_ms.max(Some(beat.sent_ms));
        self.epoch = beat.epoch;
        self.connected = beat.connected;
        self.not_yet = None;
    }
}

/// The peers of one node, by number. The entry of the node itself is never used.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Peers {
    me: NodeId,
    all: Vec<Peer>,
}

impl Peers {
    pub(super) fn new(config: &Config) -> Self {
        Self { me: config.me, all: vec![Peer::default(); config.names.len()] }
    }

    /// Number of nodes, this one included.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Peer> {
        self.all.get(node.index())
    }

    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut Peer> {
        self.all.get_mut(node.index())
    }

    /// All but the node itself.
    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Peer)> {
        self.all
            .iter()
            .enumerate()
            .filter_map(|(index, peer)| Some((NodeId::new(index)?, peer)))
            .filter(|(node, _)| *node != self.me)
    }

    /// Of all connections with `members`, 0 for other nodes; `own` is that of this one.
    pub(super) fn incarnations(&self, members: NodeSet, own: u64) -> Vec<u64> {
        let mut incarnations = vec![0; self.all.len()];
        for (node, incarnation) in NodeSet::first(self.all.len()).iter().zip(&mut incarnations) {
            let connection = self.get(node).and_then(|peer| peer.incarnation);
            *incarnation = match connection {
                _ if node == self.me => own,
                Some(theirs) if members.contains(node) => theirs,
                _ => 0,
            };
        }
        incarnations
    }

    /// The nodes with a connection to this one.
    pub(super) fn others_connected(&self) -> NodeSet {
        self.iter().filter(|(_, peer)| peer.incarnation.is_some()).map(|(node, _)| node).collect()
    }

    /// The nodes with a connection to this one, itself included.
    pub(super) fn connected(&self) -> NodeSet {
        self.others_connected().iter().chain([self.me]).collect()
    }

    /// The nodes without a connection to this one.
    pub(super) fn missing(&self) -> NodeSet {
        self.iter().filter(|(_, peer)| peer.incarnation.is_none()).map(|(node, _)| node).collect()
    }

    /// Whether all of `nodes` are connected with each other.
    pub(super) fn are_ready(&self, nodes: NodeSet) -> bool {
        let is_ready =
            |peer: &Peer| peer.incarnation.is_some() && nodes.minus(peer.connected).is_empty();
        self.iter().filter(|(node, _)| nodes.contains(*node)).all(|(_, peer)| is_ready(peer))
    }

    /// Those of `nodes` that this node has not heard for `silence_ms`.
    pub(super) fn silent(&self, nodes: NodeSet, now_ms: u64, silence_ms: u64) -> NodeSet {
        let is_silent = |peer: &Peer| now_ms.saturating_sub(peer.heard_ms) >= silence_ms;
        self.iter()
            .filter(|(node, peer)| nodes.contains(*node) && is_silent(peer))
            .map(|(node, _)| node)
            .collect()
    }

    /// The list has become longer.
    pub(super) fn grow(&mut self, nodes: usize) {
        let nodes = nodes.max(self.all.len());
        self.all.resize(nodes, Peer::default());
    }

    /// A connection was made.
    pub(super) fn connect(&mut self, now_ms: u64, node: NodeId, incarnation: u64) {
        if let Some(peer) = self.get_mut(node) {
            *peer = Peer {
                incarnation: Some(incarnation),
                member: peer.member,
                heard_ms: now_ms,
                not_yet: peer.not_yet.take(),
                ..Peer::default()
            };
        }
    }

    /// `node` is no member any more: nothing of what was known of it holds for one that comes after
    /// it, and its connection, if it still stands, is of no use.
    pub(super) fn forget(&mut self, node: NodeId) {
        if let Some(peer) = self.get_mut(node) {
            *peer = Peer::default();
        }
    }

    /// `node` says that it goes: nothing starts with it.
    pub(super) fn disregard(&mut self, node: NodeId) {
        if let Some(peer) = self.get_mut(node) {
            peer.connected = NodeSet::EMPTY;
        }
    }

    /// The process `incarnation` is a member from now on. Silence counts from `heard_ms`.
    pub(super) fn admit(&mut self, node: NodeId, incarnation: u64, heard_ms: u64) {
        if let Some(peer) = self.get_mut(node) {
            peer.member = Some(incarnation);
            peer.heard_ms = heard_ms;
        }
    }

    /// Closes the connection to `node` if it is not with the process `incarnation`; says whether
    /// there is one with that.
    pub(super) fn keep_only(
        &mut self,
        node: NodeId,
        incarnation: u64,
        reason: &str,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(peer) = self.get_mut(node) else { return false };
        match peer.incarnation {
            Some(other) if other != incarnation => {
                peer.incarnation = None;
                let reason = clip_reason(reason);
                out.push(Action::Postpone { node, incarnation: other, reason });
                false
            }
            connection => connection.is_some(),
        }
    }

    /// Silence counts from now.
    pub(super) fn hear_all(&mut self, now_ms: u64) {
        self.all.iter_mut().for_each(|peer| peer.heard_ms = now_ms);
    }

    /// While this node didn't run, others may have spoken: what they said is still to be read. Only
    /// makes others look less silent, so it only delays decisions about them.
    pub(super) fn forgive_own_gap(&mut self, gap_ms: u64, now_ms: u64, heartbeat_ms: u64) {
        if gap_ms > heartbeat_ms.saturating_mul(2) {
            for peer in &mut self.all {
                peer.heard_ms = peer.heard_ms.saturating_add(gap_ms).min(now_ms);
            }
        }
    }

    /// A heartbeat to another node.
    pub(super) fn heartbeat(&self, config: &Config, epoch: u64, now_ms: u64, to: NodeId) -> Action {
        let message = MemberMessage::Heartbeat(Heartbeat {
            epoch,
            incarnation: config.incarnation,
            sent_ms: now_ms,
            echo_ms: self.get(to).and_then(|peer| peer.sent_ms),
            connected: self.connected(),
        });
        Action::Send { to, message }
    }

    /// Tells all that are connected that this node has ended.
    pub(super) fn say_gone(&self, reason: &str, out: &mut Vec<Action>) {
        let reason = clip_reason(reason);
        for to in self.others_connected().iter() {
            out.push(Action::Send { to, message: MemberMessage::Gone { reason: reason.clone() } });
        }
    }

    /// Closes the connection to `node`, if there is one, and tells it why.
    pub(super) fn refuse(&mut self, node: NodeId, reason: &str, out: &mut Vec<Action>) {
        let connection = self.get_mut(node).and_then(|peer| peer.incarnation.take());
        if let Some(incarnation) = connection {
            out.push(Action::Refuse { node, incarnation, reason: clip_reason(reason) });
        }
    }
}
