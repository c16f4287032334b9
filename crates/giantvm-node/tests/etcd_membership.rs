//! What one membership that etcd decides on says and does, event by event.

mod etcd_member;

use dsm_core::types::Epoch;
use etcd_member::*;
use giantvm_node::membership::etcd::{EtcdMembership, Lease, Standing, View};
use giantvm_node::membership::{Action, Config, EndReason, Event, Machine, Said, State};

fn beat(machine: &mut EtcdMembership, now_ms: u64, from: usize) -> Vec<Action> {
    beat_in(machine, 0, now_ms, from, 100 + from as u64, 3)
}

#[test]
fn who_knows_that_all_are_connected_proposes_the_start_once() {
    let mut machine = joining(0);
    assert!(!beat(&mut machine, 0, 1).iter().any(|it| matches!(it, Action::Propose(_))));
    let actions = beat(&mut machine, 0, 2);
    let start = proposal(&actions);
    assert_eq!((start.revision, &start.record), (5, &record(1)));
    assert_eq!(start.present.len(), 3, "all must still be there");
    assert!(!beat(&mut machine, 0, 2).iter().any(|it| matches!(it, Action::Propose(_))));
}

#[test]
fn a_node_that_ends_before_the_start_ends_it_for_all() {
    let mut machine = joining(0);
    machine.step(0, has(5, record(0), &[0, 1]));
    let text = end_of(&machine).to_string();
    assert_eq!(text, "node `carl` ended while the cluster was starting; start all nodes again");
}

#[test]
fn the_right_to_run_counts_from_when_a_renewal_was_sent() {
    let mut machine = running(0);
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
    let mut machine = running(0);
    machine.step(5_000, Event::Etcd(Said::Renewed { sent_ms: 5_000 }));
    assert_eq!(end_of(&machine), EndReason::Stopped { stopped_ms: 5_000 });
}

#[test]
fn a_broken_connection_is_a_loss_at_once_and_a_removal_when_the_lease_is_gone() {
    let mut machine = running(0);
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
    let mut machine = running(0);
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
    let mut machine = running(0);
    let mut lost = record(1);
    lost.nodes[0].standing = Standing::Lost { reason: "node `bert` can't talk to it".into() };
    machine.step(10, has(7, lost, &[0, 1, 2]));
    let text = end_of(&machine).to_string();
    assert_eq!(text, "the others go on without this node: node `bert` can't talk to it");
}

#[test]
fn a_lease_or_a_key_that_somebody_took_away_ends_the_node() {
    let mut machine = running(0);
    machine.step(10, Event::Etcd(Said::LeaseEnded));
    assert!(end_of(&machine).to_string().contains("has ended this node's lease"));

    let mut machine = running(0);
    machine.step(10, Event::Etcd(Said::Has(View::default())));
    assert_eq!(end_of(&machine), EndReason::Overwritten { what: "it is gone".into() });

    let mut machine = running(0);
    let mut other = record(1);
    other.nodes[1].incarnation = 1;
    machine.step(10, has(7, other, &[0, 1, 2]));
    assert!(matches!(end_of(&machine), EndReason::Overwritten { .. }));
}

#[test]
fn a_lease_that_leaves_no_time_to_run_is_refused() {
    let names = record(0).nodes.iter().map(|it| it.name.clone()).collect();
    let lease = Lease { lease_ms: 300, confirmed_ms: 0, endpoints: String::new() };
    assert!(EtcdMembership::new(Config::new(names, node(0), 100), lease, 5, record(0), 0).is_err());
}
