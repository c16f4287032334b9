//! The state of a node's membership, and its clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use dsm_core::types::{Epoch, NodeId, NodeSet};

use super::config::{Config, ConfigError};
use super::event::{Action, EndReason, Event, State};
use super::peers::Peers;
use crate::control::clip_reason;

/// One node's view of the cluster; see [the module](super).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Membership {
    pub(super) config: Arc<Config>,
    pub(super) state: State,
    /// 0 until the cluster runs.
    pub(super) epoch: u64,
    /// The members of `epoch`.
    pub(super) members: NodeSet,
    /// When each member joined that was not there from the first epoch on.
    pub(super) joined: BTreeMap<NodeId, u16>,
    /// Why no node is taken in any more.
    pub(super) closed: Option<String>,
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
            joined: BTreeMap::new(),
            closed: None,
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

    /// The epoch with what is known of it.
    pub fn current(&self) -> Epoch {
        Epoch {
            number: u16::try_from(self.epoch).unwrap_or(u16::MAX), // it is checked to be no higher
            members: self.members,
            joined: self.joined.clone(),
        }
    }

    /// From now on this node takes no other in, if it decides on that.
    pub fn close(&mut self, reason: &str) {
        self.closed.get_or_insert_with(|| clip_reason(reason));
    }

    /// The members that can be talked to.
    pub fn live(&self) -> NodeSet {
        self.members.minus(self.lost)
    }

    /// The nodes of the list without a connection to this one; while it joins, only those that it
    /// waits for.
    pub fn missing(&self) -> NodeSet {
        if self.state == State::Joining { self.awaited() } else { self.peers.missing() }
    }

    /// When the next [`Event::Tick`] is due at the latest, in milliseconds.
    pub fn next_tick_ms(&self) -> u64 {
        self.next_heartbeat_ms
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
            self.decide_joins(now_ms, &mut out);
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
            self.send_heartbeat(now_ms, node, out);
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

    /// Whether `epoch` follows this one.
    pub(super) fn is_next(&self, epoch: u64) -> bool {
        Some(epoch) == self.epoch.checked_add(1) && epoch <= u16::MAX.into()
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
