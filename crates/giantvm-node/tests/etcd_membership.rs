//! What one membership that etcd decides on says and does, event by event.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use dsm_core::types::{Epoch, NodeId, NodeSet};
use giantvm_node::control::{Heartbeat, MemberMessage};
use giantvm_node::membership::etcd::{
    Announcement, EtcdMembership, Lease, Listed, Present, Proposal, Record, Settings, Standing,
    View,
};
use giantvm_node::membership::{Action, Config, EndReason, Event, Machine, Said, State};

const LEASE_MS: u64 = 2_000;
/// The lease less two heartbeats of 100, a thousandth of it, and 250 for the end of the memory.
const RIGHT_MS: u64 = 1_548;

fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

fn record(started: bool) -> Record {
    let listed = |index: u64| Listed {
        name: ["anna", "bert", "carl"][index as usize].into(),
        listen: format!("unix:/{index}"),
        memory_bytes: 1 << 30,
        incarnation: 100 + index,
        lease: 7 + index,
        standing: Standing::Member,
    };
    Record { started, nodes: (0..3).map(listed).collect() }
}

/// What etcd has: `record` at `revision`, and the keys of `there`.
fn has(revision: u64, record: Record, there: &[usize]) -> Event {
    let present = |index: &usize| Present {
        name: record.nodes[*index].name.clone(),
        lease: record.nodes[*index].lease,
        since: 1,
        says: Announcement {
            listen: String::new(),
            memory_bytes: 0,
            incarnation: 0,
            settings: Settings { nodes: Some(3), heartbeat_ms: 100, timeout_ms: 2_000, workers: 1 },
        },
    };
    let present = there.iter().map(present).collect();
    Event::Etcd(Said::Has(View { revision, record: Some(record), present }))
}

fn joining() -> EtcdMembership {
    let names = record(false).nodes.iter().map(|it| it.name.clone()).collect();
    let config = Config::new(names, node(0), 100);
    let endpoints = "http://etcd:2379".into();
    let lease = Lease { lease_ms: LEASE_MS, confirmed_ms: 0, endpoints };
    let mut machine = EtcdMembership::new(config, lease, 5, record(false), 0).unwrap();
    for peer in 1..3 {
        let incarnation = 100 + peer as u64;
        machine.step(0, Event::Connected { node: node(peer), incarnation });
    }
    machine
}

fn beat(machine: &mut EtcdMembership, now_ms: u64, from: usize) -> Vec<Action> {
    let message = MemberMessage::Heartbeat(Heartbeat {
        epoch: 0,
        incarnation: 100 + from as u64,
        sent_ms: now_ms,
        echo_ms: None,
        connected: (0..3).map(node).collect(),
    });
    machine.step(now_ms, Event::Message { from: node(from), message })
}

fn running() -> EtcdMembership {
    let mut machine = joining();
    let actions = machine.step(0, has(6, record(true), &[0, 1, 2]));
    assert!(actions.contains(&Action::BecameRunning(Epoch::first(1, NodeSet::first(3)))));
    machine
}

fn proposal(actions: &[Action]) -> &Proposal {
    let found = actions.iter().find_map(|action| match action {
        Action::Propose(proposal) => Some(&**proposal),
        _ => None,
    });
    found.unwrap()
}

fn end_of(machine: &EtcdMembership) -> EndReason {
    match machine.verdict().state {
        State::Ended { reason } => reason.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_knows_that_all_are_connected_proposes_the_start_once() {
    let mut machine = joining();
    assert!(!beat(&mut machine, 0, 1).iter().any(|it| matches!(it, Action::Propose(_))));
    let actions = beat(&mut machine, 0, 2);
    let start = proposal(&actions);
    assert_eq!((start.revision, &start.record), (5, &record(true)));
    assert_eq!(start.present.len(), 3, "all must still be there");
    assert!(!beat(&mut machine, 0, 2).iter().any(|it| matches!(it, Action::Propose(_))));
}

#[test]
fn a_node_that_ends_before_the_start_ends_it_for_all() {
    let mut machine = joining();
    machine.step(0, has(5, record(false), &[0, 1]));
    let text = end_of(&machine).to_string();
    assert_eq!(text, "node `carl` ended while the cluster was starting; start all nodes again");
}

#[test]
fn the_right_to_run_counts_from_when_a_renewal_was_sent() {
    let mut machine = running();
    machine.step(900, Event::Etcd(Said::Renewed { sent_ms: 500 }));
    machine.step(1_000, Event::Etcd(Said::Failed { why: "http://etcd:2379: refused".into() }));
    machine.step(500 + RIGHT_MS - 1, Event::Tick);
    assert_eq!(machine.verdict().state, &State::Running);
    let actions = machine.step(500 + RIGHT_MS, Event::Tick);
    assert!(actions.iter().any(|it| matches!(it, Action::Ended { .. })));
    let text = end_of(&machine).to_string();
    assert!(text.contains("can't reach etcd at http://etcd:2379: no lease for 1548 ms"), "{text}");
    assert!(text.contains("(http://etcd:2379: refused); check that etcd runs there"), "{text}");
}

#[test]
fn a_stopped_node_is_out_before_it_takes_in_anything() {
    let mut machine = running();
    machine.step(5_000, Event::Etcd(Said::Renewed { sent_ms: 5_000 }));
    assert_eq!(end_of(&machine), EndReason::Stopped { stopped_ms: 5_000 });
}

#[test]
fn a_broken_connection_is_a_loss_at_once_and_a_removal_when_the_lease_is_gone() {
    let mut machine = running();
    let gone = Event::Disconnected { node: node(2), incarnation: 102, why: "reset".into() };
    let actions = machine.step(10, gone);
    let lost = proposal(&actions).record.clone();
    let reason = "node `anna` can't talk to it: connection broke: reset".to_owned();
    assert_eq!(lost.standing(node(2)), &Standing::Lost { reason: reason.clone() });
    assert!(proposal(&actions).absent.is_empty());
    let actions = machine.step(20, has(7, lost.clone(), &[0, 1, 2]));
    assert!(actions.contains(&Action::PeerLost { node: node(2), reason: reason.clone() }));
    assert_eq!((machine.verdict().epoch, machine.verdict().live.len()), (1, 2));
    let actions = machine.step(30, has(7, lost, &[0, 1]));
    let removed = proposal(&actions);
    assert_eq!(removed.absent, [("carl".to_owned(), 9)]);
    assert_eq!(removed.record.standing(node(2)), &Standing::Removed { reason });
    let removed = removed.record.clone();
    let actions = machine.step(40, has(8, removed, &[0, 1]));
    let members = [0, 1].map(node).into_iter().collect();
    assert!(actions.contains(&Action::NewEpoch(Epoch::first(2, members))));
    assert!(!actions.iter().any(|it| matches!(it, Action::PeerLost { .. })), "told once");
}

#[test]
fn whoever_cannot_talk_to_most_others_lets_them_speak_first() {
    let mut machine = running();
    // Both fall silent at the start and are missed after the timeout of 2,000; another 1,000 pass.
    for now_ms in (100..=3_000).step_by(100) {
        let renewed = Event::Etcd(Said::Renewed { sent_ms: now_ms });
        let actions = machine.step(now_ms, renewed);
        let proposes = actions.iter().any(|it| matches!(it, Action::Propose(_)));
        assert_eq!(proposes, now_ms == 3_000, "at {now_ms}");
    }
}

#[test]
fn what_others_decided_ends_this_node_with_their_reason() {
    let mut machine = running();
    let mut lost = record(true);
    lost.nodes[0].standing = Standing::Lost { reason: "node `bert` can't talk to it".into() };
    machine.step(10, has(7, lost, &[0, 1, 2]));
    let text = end_of(&machine).to_string();
    assert_eq!(text, "the others go on without this node: node `bert` can't talk to it");
}

#[test]
fn a_lease_or_a_key_that_somebody_took_away_ends_the_node() {
    let mut machine = running();
    machine.step(10, Event::Etcd(Said::LeaseEnded));
    assert!(end_of(&machine).to_string().contains("has ended this node's lease"));

    let mut machine = running();
    machine.step(10, Event::Etcd(Said::Has(View::default())));
    assert_eq!(end_of(&machine), EndReason::Overwritten { what: "it is gone".into() });

    let mut machine = running();
    let mut other = record(true);
    other.nodes[1].incarnation = 1;
    machine.step(10, has(7, other, &[0, 1, 2]));
    assert!(matches!(end_of(&machine), EndReason::Overwritten { .. }));
}

#[test]
fn a_lease_that_leaves_no_time_to_run_is_refused() {
    let names = record(false).nodes.iter().map(|it| it.name.clone()).collect();
    let lease = Lease { lease_ms: 300, confirmed_ms: 0, endpoints: String::new() };
    assert!(
        EtcdMembership::new(Config::new(names, node(0), 100), lease, 5, record(false), 0).is_err()
    );
}
