//! A node's membership where etcd decides, and its clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use dsm_core::types::{NodeId, NodeSet};

use super::forming::{Present, Proposal};
use super::record::{Record, Standing};
use crate::control::clip_reason;
use crate::membership::config::{Config, ConfigError};
use crate::membership::event::{Action, EndReason, Event, State};
use crate::membership::peers::Peers;
use crate::membership::{Machine, Verdict};

/// This node's lease in etcd.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Lease {
    /// How long etcd keeps it after a renewal, in milliseconds.
    pub lease_ms: u64,
    /// When the last request that renewed it was sent, in milliseconds of this node's clock.
    pub confirmed_ms: u64,
    /// etcd's addresses, for people.
    pub endpoints: String,
}

impl Lease {
    /// What it is to this node that etcd has dropped its lease.
    pub fn ended(&self, now_ms: u64) -> EndReason {
        let silent_ms = now_ms.saturating_sub(self.confirmed_ms);
        EndReason::LeaseEnded { endpoints: self.endpoints.clone(), silent_ms }
    }
}

/// One node's view of a cluster that etcd decides on; see [the module](super).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EtcdMembership {
    pub(super) config: Arc<Config>,
    pub(super) state: State,
    pub(super) lease: Lease,
    /// The latest revision of the epoch key that was seen, and what it says.
    pub(super) revision: u64,
    pub(super) record: Record,
    /// Nodes whose lease holds, as far as this node knows.
    pub(super) present: NodeSet,
    /// Nodes that could be taken in, in the order in which they came. Any member may come to be the
    /// eldest, which takes them in.
    pub(super) arrivals: Vec<Present>,
    /// Why this node takes nobody in any more, for people.
    pub(super) closed: Option<String>,
    /// Connections of processes that the record doesn't list, as far as this node has read it: since
    /// when, and their incarnations.
    pub(super) early: BTreeMap<NodeId, (u64, u64)>,
    pub(super) peers: Peers,
    /// Live members that this node can't talk to: since when, and why.
    pub(super) suspects: BTreeMap<NodeId, (u64, String)>,
    /// A transaction is under way.
    pub(super) proposed: bool,
    /// Why etcd was not reached at the last attempt, for people.
    pub(super) failure: Option<String>,
    created_ms: u64,
    stepped_ms: u64,
    next_heartbeat_ms: u64,
}

impl EtcdMembership {
    /// A node that is listed in `record`, which was seen at `revision`.
    ///
    /// # Errors
    /// [`ConfigError`] if `config` can't work.
    pub fn new(
        config: Config,
        lease: Lease,
        revision: u64,
        record: Record,
        now_ms: u64,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let shortest_ms = config.margin_ms_for(lease.lease_ms).saturating_add(config.heartbeat_ms);
        if lease.lease_ms <= shortest_ms || record.nodes.len() != config.names.len() {
            return Err(ConfigError::Time {
                setting: "the lease in etcd",
                value: lease.lease_ms,
                min: shortest_ms,
                max: u64::MAX,
            });
        }
        let present = record.members().union(record.joining());
        Ok(Self {
            state: State::Joining,
            lease,
            revision,
            record,
            present,
            arrivals: Vec::new(),
            closed: None,
            early: BTreeMap::new(),
            peers: Peers::new(&config),
            suspects: BTreeMap::new(),
            proposed: false,
            failure: None,
            created_ms: now_ms,
            stepped_ms: now_ms,
            next_heartbeat_ms: now_ms,
            config: Arc::new(config),
        })
    }

    /// What the epoch key said when this node saw it last.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// How long this node may run after the request that renewed its lease was sent.
    fn right_ms(&self) -> u64 {
        self.lease.lease_ms.saturating_sub(self.config.margin_ms_for(self.lease.lease_ms))
    }

    fn look_at_clock(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let gap_ms = now_ms - self.stepped_ms;
        self.stepped_ms = now_ms;
        self.refuse_unlisted(now_ms, out);
        let silent_ms = now_ms.saturating_sub(self.lease.confirmed_ms);
        if silent_ms >= self.right_ms() {
            let reason = if gap_ms >= self.right_ms() {
                EndReason::Stopped { stopped_ms: gap_ms }
            } else {
                EndReason::EtcdUnreachable {
                    endpoints: self.lease.endpoints.clone(),
                    silent_ms,
                    why: self.failure.clone().unwrap_or_else(|| "no answer".into()),
                }
            };
            return self.end(reason, out);
        }
        if self.state == State::Joining {
            let waited_ms = now_ms.saturating_sub(self.created_ms);
            if self.config.join_timeout_ms.is_some_and(|timeout_ms| waited_ms >= timeout_ms) {
                let missing = self.waiting_for();
                self.end(EndReason::JoinTimeout { waited_ms, missing }, out);
            }
            return;
        }
        self.peers.forgive_own_gap(gap_ms, now_ms, self.config.heartbeat_ms);
        let timeout_ms = self.config.timeout_ms;
        for node in self.peers.silent(self.record.live(), now_ms, timeout_ms).iter() {
            self.suspect(now_ms, node, &format!("not heard for {timeout_ms} ms"));
        }
    }

    /// Asks for a transaction where what is known asks for one, if none is under way.
    fn decide(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if self.proposed {
            return;
        }
        let proposal = match self.state {
            State::Joining if self.record.has_started() => self.come_in(),
            State::Joining => self.start(),
            _ => self.go_on(now_ms).or_else(|| self.take_in()),
        };
        if let Some(proposal) = proposal {
            self.proposed = true;
            out.push(Action::Propose(Box::new(proposal)));
        }
    }

    fn start(&self) -> Option<Proposal> {
        let all = self.config.all();
        self.peers.are_ready(all).then(|| Proposal {
            revision: self.revision,
            record: self.record.with_member(self.config.me),
            present: self.keys(all),
            absent: Vec::new(),
        })
    }

    /// What has become of others, and what becomes of this one.
    fn go_on(&self, now_ms: u64) -> Option<Proposal> {
        let mut next = self.record.clone();
        let mut stopped = NodeSet::EMPTY;
        for (node, listed) in self.record.numbered().filter(|(node, _)| *node != self.config.me) {
            if let Some(standing) = self.verdict_on(now_ms, node, &listed.standing) {
                if standing.is_over() {
                    stopped.insert(node);
                }
                next.set(node, standing);
            }
        }
        if matches!(self.state, State::Leaving { .. }) {
            next.set(self.config.me, Standing::Left);
        }
        if next.closed.is_none() {
            next.closed.clone_from(&self.closed);
        }
        next.follow(&self.record);
        (next != self.record).then(|| Proposal {
            revision: self.revision,
            record: next,
            present: Vec::new(),
            absent: self.keys(stopped),
        })
    }

    /// The keys of `nodes`: names and leases.
    pub(super) fn keys(&self, nodes: NodeSet) -> Vec<(String, u64)> {
        let listed = nodes.iter().filter_map(|node| self.record.get(node));
        listed.map(|it| (it.name.clone(), it.lease)).collect()
    }

    /// What should become of another node, if it should change.
    fn verdict_on(&self, now_ms: u64, node: NodeId, standing: &Standing) -> Option<Standing> {
        let gone = !self.present.contains(node);
        match standing {
            Standing::Lost { reason } if gone => Some(Standing::Removed { reason: reason.clone() }),
            Standing::Joining => gone.then_some(Standing::Gone),
            Standing::Member if gone => {
                let known = self.suspects.get(&node).map(|(_, why)| self.accuse(why));
                let ended = || "its lease in etcd ended: etcd didn't hear it".to_owned();
                Some(Standing::Removed { reason: known.unwrap_or_else(ended) })
            }
            Standing::Member => {
                let (since_ms, why) = self.suspects.get(&node)?;
                let waited_ms = now_ms.saturating_sub(*since_ms);
                (waited_ms >= self.hesitation_ms(now_ms))
                    .then(|| Standing::Lost { reason: self.accuse(why) })
            }
            _ => None,
        }
    }

    fn accuse(&self, why: &str) -> String {
        let me = self.config.name(self.config.me);
        clip_reason(&format!("node `{me}` can't talk to it: {why}"))
    }

    /// A node that can't talk to most others may be the one that is cut off: it gives them time to
    /// say so first. Who missed a few heartbeats counts: not all fall silent in the same moment.
    fn hesitation_ms(&self, now_ms: u64) -> u64 {
        let others = self.others(self.record.live());
        let quiet_ms = self.config.heartbeat_ms.saturating_mul(3);
        let silent = self.peers.silent(others, now_ms, quiet_ms);
        let is_quiet = |node: &NodeId| self.suspects.contains_key(node) || silent.contains(*node);
        let quiet = others.iter().filter(is_quiet).count();
        if quiet >= 2 && 2 * quiet > others.len() { self.config.timeout_ms / 2 } else { 0 }
    }

    pub(super) fn suspect(&mut self, now_ms: u64, node: NodeId, why: &str) {
        if self.state != State::Joining && self.record.live().contains(node) {
            self.suspects.entry(node).or_insert_with(|| (now_ms, clip_reason(why)));
        }
    }

    pub(super) fn end(&mut self, reason: EndReason, out: &mut Vec<Action>) {
        if reason != EndReason::Left {
            self.peers.say_gone(&reason.to_string(), out);
        }
        self.state = State::Ended { reason: reason.clone() };
        out.push(Action::Ended { reason });
    }

    pub(super) fn send_heartbeats(&self, now_ms: u64, out: &mut Vec<Action>) {
        for node in self.peers.others_connected().iter() {
            if self.record.live().contains(node) || self.record.joining().contains(node) {
                out.push(self.peers.heartbeat(&self.config, self.epoch(), now_ms, node));
            }
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    pub(super) fn others(&self, nodes: NodeSet) -> NodeSet {
        nodes.without(self.config.me)
    }

    fn waiting_for(&self) -> String {
        let missing = self.missing();
        let mut parts: Vec<_> = missing.iter().map(|node| self.config.name(node)).collect();
        if self.record.has_started() {
            parts.extend(self.waiting_to_come_in(missing));
        }
        if parts.is_empty() { "other nodes' connections".into() } else { parts.join(", ") }
    }
}

impl Machine for EtcdMembership {
    fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        let now_ms = now_ms.max(self.stepped_ms);
        if !self.has_ended() {
            self.look_at_clock(now_ms, &mut out);
        }
        self.take(now_ms, event, &mut out);
        if !self.has_ended() {
            self.decide(now_ms, &mut out);
        }
        if !self.has_ended() && now_ms >= self.next_heartbeat_ms {
            self.next_heartbeat_ms = now_ms.saturating_add(self.config.heartbeat_ms);
            self.send_heartbeats(now_ms, &mut out);
        }
        out
    }

    fn close(&mut self, reason: &str) {
        let reason = clip_reason(reason);
        let reason = if reason.is_empty() { "it is closed".into() } else { reason };
        self.closed.get_or_insert(reason);
    }

    fn verdict(&self) -> Verdict<'_> {
        Verdict {
            state: &self.state,
            epoch: self.epoch(),
            members: self.members(),
            live: self.live(),
            missing: self.missing(),
        }
    }

    fn next_tick_ms(&self) -> u64 {
        self.next_heartbeat_ms
    }
}

impl EtcdMembership {
    /// Whether it is a member of a cluster that runs, or was.
    pub(super) fn runs(&self) -> bool {
        let own = self.record.get(self.config.me);
        self.record.has_started() && own.is_some_and(|own| !own.is_newcomer())
    }

    fn epoch(&self) -> u64 {
        if self.runs() { self.record.epoch.into() } else { 0 }
    }

    fn members(&self) -> NodeSet {
        if self.runs() { self.record.members() } else { NodeSet::EMPTY }
    }

    fn live(&self) -> NodeSet {
        if self.runs() { self.record.live() } else { NodeSet::EMPTY }
    }

    /// Whom this node would talk to, and has no connection with: who is gone is not missed, and a
    /// newcomer doesn't wait for others.
    pub(super) fn missing(&self) -> NodeSet {
        let newcomers = if self.runs() { self.record.joining() } else { NodeSet::EMPTY };
        let wanted = self.record.live().union(newcomers);
        wanted.minus(self.peers.connected())
    }
}
