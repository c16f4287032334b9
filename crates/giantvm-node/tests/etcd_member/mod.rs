//! One membership that etcd decides on, and what can be said to it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use dsm_core::types::NodeId;
use giantvm_node::control::{Heartbeat, MemberMessage};
use giantvm_node::membership::etcd::{
    Announcement, EtcdMembership, Lease, Listed, Present, Proposal, Record, Settings, Standing,
    View,
};
use giantvm_node::membership::{Action, Config, EndReason, Event, Machine, Said, State};

pub(crate) const LEASE_MS: u64 = 2_000;
/// The lease less two heartbeats of 100, a thousandth of it, and 250 for the end of the memory.
pub(crate) const RIGHT_MS: u64 = 1_548;

pub(crate) fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

/// The three that start, in the epoch 0 or 1.
pub(crate) fn record(epoch: u16) -> Record {
    Record { epoch, nodes: (0..3).map(listed).collect(), closed: None }
}

pub(crate) fn listed(index: u64) -> Listed {
    Listed {
        name: ["anna", "bert", "carl", "dora"][index as usize].into(),
        listen: format!("unix:/{index}"),
        memory_bytes: 1 << 30,
        incarnation: 100 + index,
        lease: 7 + index,
        joined: 0,
        standing: Standing::Member,
    }
}

/// What etcd has: `record` at `revision`, and the keys of `there`.
pub(crate) fn has(revision: u64, record: Record, there: &[usize]) -> Event {
    let present: Vec<_> = there.iter().map(|index| key_of(&record.nodes[*index])).collect();
    has_keys(revision, record, present)
}

pub(crate) fn has_keys(revision: u64, record: Record, present: Vec<Present>) -> Event {
    Event::Etcd(Said::Has(View { revision, record: Some(record), present }))
}

pub(crate) fn key_of(listed: &Listed) -> Present {
    Present {
        name: listed.name.clone(),
        lease: listed.lease,
        since: listed.lease,
        says: Announcement {
            listen: listed.listen.clone(),
            memory_bytes: listed.memory_bytes,
            incarnation: listed.incarnation,
            settings: Settings { nodes: Some(3), heartbeat_ms: 100, timeout_ms: 2_000, workers: 1 },
        },
    }
}

/// A heartbeat of one that is in `epoch` and connected with the first `nodes`.
pub(crate) fn beat_in(
    machine: &mut EtcdMembership,
    epoch: u64,
    now_ms: u64,
    from: usize,
    incarnation: u64,
    nodes: usize,
) -> Vec<Action> {
    let message = MemberMessage::Heartbeat(Heartbeat {
        epoch,
        incarnation,
        sent_ms: now_ms,
        echo_ms: None,
        connected: (0..nodes).map(node).collect(),
    });
    machine.step(now_ms, Event::Message { from: node(from), message })
}

pub(crate) fn proposal(actions: &[Action]) -> &Proposal {
    proposed(actions).unwrap()
}

pub(crate) fn proposed(actions: &[Action]) -> Option<&Proposal> {
    actions.iter().find_map(|action| match action {
        Action::Propose(proposal) => Some(&**proposal),
        _ => None,
    })
}

pub(crate) fn end_of(machine: &EtcdMembership) -> EndReason {
    match machine.verdict().state {
        State::Ended { reason } => reason.clone(),
        other => panic!("{other:?}"),
    }
}

/// A node of the list that is connected with all others.
pub(crate) fn joining(me: usize) -> EtcdMembership {
    let names = record(0).nodes.iter().map(|it| it.name.clone()).collect();
    let config = Config::new(names, node(me), 100 + me as u64);
    let endpoints = "http://etcd:2379".into();
    let lease = Lease { lease_ms: LEASE_MS, confirmed_ms: 0, endpoints };
    let mut machine = EtcdMembership::new(config, lease, 5, record(0), 0).unwrap();
    for peer in (0..3).filter(|peer| *peer != me) {
        let incarnation = 100 + peer as u64;
        machine.step(0, Event::Connected { node: node(peer), incarnation });
    }
    machine
}

/// A node of the list that runs.
pub(crate) fn running(me: usize) -> EtcdMembership {
    let mut machine = joining(me);
    let actions = machine.step(0, has(6, record(1), &[0, 1, 2]));
    assert!(actions.contains(&Action::BecameRunning(record(1).in_force())));
    machine
}
