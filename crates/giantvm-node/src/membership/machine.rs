//! The state of a node's membership, and its clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use dsm_core::types::{NodeId, NodeSet};

use super::config::{Config, ConfigError};
use super::event::{Action, EndReason, Event, State};
use super::peers::Peers;

/// One node's view of the cluster; see [the module](super).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Membership {
    pub(super) config: Arc<Config>,
    pub(super) state: State,
    /// 0 until the cluster runs.
    pub(super) epoch: u64,
    /// The members of `epoch`.
    pub(super) members: NodeSet,
    /// Members that are lost but not yet removed.
    pub(super) lost: NodeSet,
    /// When each lost member may be removed; at the deciding node only.
    pub(super) removals_ms: BTreeMap<NodeId, u64>,
    pub(super) peers: Peers,
    /// The latest time of this node's clock that the deciding node has confirmed.
    pub(super) confirmed_ms: Option<u64>,
    created_ms: u64,
    stepped_ms: u64,
    next_heartbeat_ms: u64,
}

impl Membership {
    /// A node that begins to join at `now_ms`.
    ///
    /// # Errors
    /// [`ConfigError`] if `config` can't work.
    pub fn new(config: Config, now_ms: u64) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            state: State::Joining,
            epoch: 0,
            members: NodeSet::EMPTY,
            lost: NodeSet::EMPTY,
            removals_ms: BTreeMap::new(),
            peers: Peers::new(&config),
            confirmed_ms: None,
            created_ms: now_ms,
            stepped_ms: now_ms,
            next_heartbeat_ms: now_ms,
            config: Arc::new(config),
        })
    }

    /// Where this node stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The epoch; 0 before the cluster runs. It only rises.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The members of the epoch, lost ones included until they are removed.
    pub fn members(&self) -> NodeSet {
        self.members
    }

    /// The members that can be talked to.
    pub fn live(&self) -> NodeSet {
        self.members.minus(self.lost)
    }

    /// The nodes of the list without a connection to this one: whom it waits for while it joins.
    pub fn missing(&self) -> NodeSet {
        self.peers.missing()
    }

    /// When the next [`Event::Tick`] is due at the latest, in milliseconds.
    pub fn next_tick_ms(&self) -> u64 {
        self.next_heartbeat_ms
    }

    /// Whom the start waits for and why, for people; empty if nobody.
    pub fn waiting_for(&self) -> String {
        let mut parts: Vec<_> = self.missing().iter().map(|node| self.config.name(node)).collect();
        for (node, peer) in self.peers.iter() {
            let missing = self.config.all().bits() & !peer.connected.bits();
            if peer.incarnation.is_some() && missing != 0 {
                let names: Vec<_> =
                    NodeSet::from_bits(missing).iter().map(|n| self.config.name(n)).collect();
                let name = self.config.name(node);
                parts.push(format!("{name}'s connection to {}", names.join(" and ")));
            }
        }
        parts.join(", ")
    }

    /// Takes in one event that happened at `now_ms`. Looks at the clock before the event.
    pub fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        // A clock that goes back would be the driver's error; standing still is the safe reading.
        let now_ms = now_ms.max(self.stepped_ms);
        if !self.has_ended() {
            self.look_at_clock(now_ms, &mut out);
        }
        self.take(now_ms, event, &mut out);
        if !self.has_ended() {
            self.decide_start(now_ms, &mut out);
            self.decide_removals(now_ms, &mut out);
            self.decide_own_leave(now_ms, &mut out);
        }
        if !self.has_ended() && now_ms >= self.next_heartbeat_ms {
            self.next_heartbeat_ms = now_ms.saturating_add(self.config.heartbeat_ms);
            self.send_heartbeats(now_ms, &mut out);
        }
        out
    }

    fn look_at_clock(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let gap_ms = now_ms - self.stepped_ms;
        self.stepped_ms = now_ms;
        match self.state {
            State::Joining => {
                let waited_ms = now_ms.saturating_sub(self.created_ms);
                if self.config.join_timeout_ms.is_some_and(|timeout_ms| waited_ms >= timeout_ms) {
                    let missing = self.waiting_for();
                    self.end(EndReason::JoinTimeout { waited_ms, missing }, out);
                }
            }
            State::Running | State::Leaving { .. } => {
                if gap_ms > self.config.timeout_ms {
                    return self.end(EndReason::Stopped { stopped_ms: gap_ms }, out);
                }
                self.peers.forgive_own_gap(gap_ms, now_ms, self.config.heartbeat_ms);
                if self.is_deciding() {
                    self.declare_silent_lost(now_ms, out);
                } else if let Some(reason) = self.right_to_run_over(now_ms) {
                    self.end(reason, out);
                } else {
                    self.report_silent(now_ms, out);
                }
            }
            State::Ended { .. } => {}
        }
    }

    /// Why this node must end now, if it must: the deciding node has not confirmed to hear it.
    pub(super) fn right_to_run_over(&self, now_ms: u64) -> Option<EndReason> {
        let silent_ms = now_ms.saturating_sub(self.confirmed_ms.unwrap_or(self.created_ms));
        let holds = self.confirmed_ms.is_some() && silent_ms < self.config.timeout_ms;
        let name = || self.config.name(DECIDING);
        (!holds).then(|| EndReason::Unreachable { name: name(), silent_ms })
    }

    pub(super) fn end(&mut self, reason: EndReason, out: &mut Vec<Action>) {
        // After a clean leave everyone who matters has been told by the deciding node.
        if reason != EndReason::Left || (self.is_deciding() && self.live().len() > 1) {
            self.peers.say_gone(&reason.to_string(), out);
        }
        self.state = State::Ended { reason: reason.clone() };
        out.push(Action::Ended { reason });
    }

    pub(super) fn send_heartbeats(&self, now_ms: u64, out: &mut Vec<Action>) {
        for node in self.peers.others_connected().iter() {
            if self.epoch == 0 || self.is_live(node) {
                self.send_heartbeat(now_ms, node, out);
            }
        }
    }

    pub(super) fn send_heartbeat(&self, now_ms: u64, to: NodeId, out: &mut Vec<Action>) {
        out.push(self.peers.heartbeat(&self.config, self.epoch, now_ms, to));
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    pub(super) fn is_deciding(&self) -> bool {
        self.config.me == DECIDING
    }

    /// Whether `node` is a member that isn't lost.
    pub(super) fn is_live(&self, node: NodeId) -> bool {
        self.live().contains(node)
    }
}

/// The node that decides: the first of the list.
pub(super) const DECIDING: NodeId = match NodeId::new(0) {
    Some(node) => node,
    None => unreachable!(),
};
