//! What one membership that etcd decides on says and does, event by event.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use dsm_core::types::{Epoch, NodeId};
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

/// The three that start, in the epoch 0 or 1.
fn record(epoch: u16) -> Record {
    Record { epoch, nodes: (0..3).map(listed).collect(), closed: None }
}

fn listed(index: u64) -> Listed {
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
fn has(revision: u64, record: Record, there: &[usize]) -> Event {
    let present: Vec<_> = there.iter().map(|index| key_of(&record.nodes[*index])).collect();
    has_keys(revision, record, present)
}

fn has_keys(revision: u64, record: Record, present: Vec<Present>) -> Event {
    Event::Etcd(Said::Has(View { revision, record: Some(record), present }))
}

fn key_of(listed: &Listed) -> Present {
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

/// As a new process: the one with that number, started again.
fn again(index: u64) -> Listed {
    Listed { incarnation: 200 + index, lease: 20 + index, ..listed(index) }
}

fn joining_as(listed: Listed) -> Listed {
    Listed { standing: Standing::Joining, ..listed }
}

fn removed(index: u64) -> Listed {
    Listed { standing: Standing::Removed { reason: "killed".into() }, ..listed(index) }
}

/// The three in the first epoch, then `change`d.
fn changed(epoch: u16, change: impl Fn(&mut Vec<Listed>)) -> Record {
    let mut record = record(epoch);
    change(&mut record.nodes);
    record
}

fn named(listed: &Listed, place: usize) -> Action {
    Action::Listed {
        node: node(place),
        name: listed.name.clone(),
        listen: listed.listen.clone(),
        memory_bytes: listed.memory_bytes,
        incarnation: listed.incarnation,
    }
}

fn joining() -> EtcdMembership {
    let names = record(0).nodes.iter().map(|it| it.name.clone()).collect();
    let config = Config::new(names, node(0), 100);
    let endpoints = "http://etcd:2379".into();
    let lease = Lease { lease_ms: LEASE_MS, confirmed_ms: 0, endpoints };
    let mut machine = EtcdMembership::new(config, lease, 5, record(0), 0).unwrap();
    for peer in 1..3 {
        let incarnation = 100 + peer as u64;
        machine.step(0, Event::Connected { node: node(peer), incarnation });
    }
    machine
}

fn beat(machine: &mut EtcdMembership, now_ms: u64, from: usize) -> Vec<Action> {
    beat_in(machine, 0, now_ms, from, 100 + from as u64, 3)
}

/// A heartbeat of one that is in `epoch` and connected with the first `nodes`.
fn beat_in(
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

fn running() -> EtcdMembership {
    let mut machine = joining();
    let actions = machine.step(0, has(6, record(1), &[0, 1, 2]));
    assert!(actions.contains(&Action::BecameRunning(record(1).in_force())));
    machine
}

fn proposal(actions: &[Action]) -> &Proposal {
    proposed(actions).unwrap()
}

fn proposed(actions: &[Action]) -> Option<&Proposal> {
    actions.iter().find_map(|action| match action {
        Action::Propose(proposal) => Some(&**proposal),
        _ => None,
    })
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
    assert_eq!((start.revision, &start.record), (5, &record(1)));
    assert_eq!(start.present.len(), 3, "all must still be there");
    assert!(!beat(&mut machine, 0, 2).iter().any(|it| matches!(it, Action::Propose(_))));
}

#[test]
fn a_node_that_ends_before_the_start_ends_it_for_all() {
    let mut machine = joining();
    machine.step(0, has(5, record(0), &[0, 1]));
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
    let mut lost = record(1);
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

// Joining a cluster that runs.

/// `dora`, a fourth that joins the three.
fn dora(record: &Record) -> EtcdMembership {
    let names = record.nodes.iter().map(|it| it.name.clone()).collect();
    let mut config = Config::new(names, node(3), 103);
    config.join_timeout_ms = Some(1_000);
    let lease = Lease { lease_ms: LEASE_MS, confirmed_ms: 0, endpoints: "etcd".into() };
    EtcdMembership::new(config, lease, 9, record.clone(), 0).unwrap()
}

fn with_dora(epoch: u16) -> Record {
    changed(epoch, |nodes| nodes.push(joining_as(listed(3))))
}

#[test]
fn the_first_node_lists_a_newcomer_once_all_know_the_epoch() {
    let mut machine = running();
    let keys = (0..4).map(|index| key_of(&listed(index))).collect();
    let actions = machine.step(10, has_keys(6, record(1), keys));
    assert_eq!(proposed(&actions), None, "not all have said that they run");
    assert_eq!(proposed(&beat_in(&mut machine, 1, 10, 1, 101, 3)), None);
    let actions = beat_in(&mut machine, 1, 10, 2, 102, 3);
    let listing = proposal(&actions);
    assert_eq!((listing.revision, &listing.record), (6, &with_dora(1)));
    assert_eq!(listing.present, [("dora".to_owned(), 10)]);
    assert!(listing.absent.is_empty());
    let actions = machine.step(20, has(7, with_dora(1), &[0, 1, 2, 3]));
    assert!(actions.contains(&named(&listed(3), 3)), "{actions:?}");
    assert!(!actions.iter().any(|it| matches!(it, Action::NewEpoch(_))));
    let verdict = machine.verdict();
    assert_eq!((verdict.live.len(), verdict.missing), (3, [node(3)].into_iter().collect()));
    // It may be gone again, which concerns nobody.
    let actions = machine.step(30, has(7, with_dora(1), &[0, 1, 2]));
    assert_eq!(proposal(&actions).record.standing(node(3)), &Standing::Gone);
    assert_eq!(proposal(&actions).record.epoch, 1);
    assert_eq!(proposal(&actions).absent, [("dora".to_owned(), 10)]);
}

#[test]
fn a_place_is_given_to_who_had_it_or_else_to_anyone_who_comes() {
    let two = changed(2, |nodes| nodes[2] = removed(2));
    let ready = |record: &Record, keys: Vec<Present>| {
        let mut machine = running();
        machine.step(10, has_keys(7, record.clone(), keys));
        beat_in(&mut machine, 2, 20, 1, 101, 2)
    };
    let keys = |more: &[Present]| {
        let keys = (0..2).map(|index| key_of(&listed(index)));
        keys.chain(more.iter().cloned()).collect::<Vec<_>>()
    };
    // It is carl's, who comes later.
    let carl = Present { since: 99, ..key_of(&again(2)) };
    let actions = ready(&two, keys(&[key_of(&listed(3)), carl]));
    let expected = changed(2, |nodes| nodes[2] = joining_as(again(2)));
    assert_eq!(proposal(&actions).record, expected);
    assert_eq!(proposal(&actions).absent, [("carl".to_owned(), 9)]);
    let actions = ready(&two, keys(&[key_of(&listed(3))]));
    assert_eq!(proposal(&actions).record, changed(2, |nodes| nodes[2] = joining_as(listed(3))));
    // Who left may still be about to stop: it keeps its place as long as its key is there.
    let actions = ready(&two, keys(&[key_of(&listed(2)), key_of(&listed(3))]));
    let expected = changed(2, |nodes| nodes.extend([removed(2), joining_as(listed(3))]));
    assert_eq!(proposal(&actions).record.nodes[3], expected.nodes[4]);
    // Nobody gets a place who doesn't fit, or where none is to be given.
    let mut odd = key_of(&listed(3));
    odd.says.settings.workers = 2;
    assert_eq!(proposed(&ready(&two, keys(&[odd]))), None);
    let closed = Record { closed: Some("vm".into()), ..two };
    assert_eq!(proposed(&ready(&closed, keys(&[key_of(&listed(3))]))), None);
}

#[test]
fn a_newcomer_is_a_member_when_all_have_said_that_they_are_connected_with_it() {
    let mut machine = dora(&with_dora(1));
    assert_eq!(machine.verdict().epoch, 0);
    assert_eq!(machine.verdict().missing.len(), 3);
    for peer in 0..3 {
        let incarnation = 100 + peer as u64;
        machine.step(0, Event::Connected { node: node(peer), incarnation });
    }
    for peer in 0..3 {
        assert_eq!(proposed(&beat_in(&mut machine, 1, 0, peer, 100 + peer as u64, 3)), None);
    }
    assert_eq!(proposed(&beat_in(&mut machine, 1, 0, 0, 100, 4)), None);
    assert_eq!(proposed(&beat_in(&mut machine, 1, 0, 1, 101, 4)), None);
    let actions = beat_in(&mut machine, 1, 0, 2, 102, 4);
    let joining = proposal(&actions).clone();
    let member = Listed { joined: 2, ..listed(3) };
    let joined = changed(2, |nodes| nodes.push(member.clone()));
    assert_eq!((joining.revision, &joining.record), (9, &joined));
    assert_eq!(joining.present.len(), 4);
    // What it reads next may be later than that: bert is lost and removed.
    let later = changed(3, |nodes| {
        nodes[1] = removed(1);
        nodes.push(member.clone());
    });
    let actions = machine.step(10, has(12, later.clone(), &[0, 2, 3]));
    let told: Vec<_> =
        actions.into_iter().filter(|it| !matches!(it, Action::Refuse { .. })).collect();
    let lost = Action::PeerLost { node: node(1), reason: "killed".into() };
    let first = joined.in_force();
    assert!(first.newcomers().contains(node(3)));
    assert_eq!(told[..3], [Action::BecameRunning(first), lost, Action::NewEpoch(later.in_force())]);
}

#[test]
fn a_newcomer_waits_for_the_end_of_who_is_lost_and_says_so() {
    let lost = Standing::Lost { reason: "silent".into() };
    let mut record = with_dora(1);
    record.nodes[2].standing = lost;
    let mut machine = dora(&record);
    for peer in 0..2 {
        let incarnation = 100 + peer as u64;
        machine.step(0, Event::Connected { node: node(peer), incarnation });
        assert_eq!(proposed(&beat_in(&mut machine, 1, 0, peer, incarnation, 4)), None);
    }
    machine.step(1_000, Event::Tick);
    match end_of(&machine) {
        EndReason::JoinTimeout { missing, .. } => assert_eq!(missing, "the end of carl"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_newcomer_ends_where_nobody_can_take_it_in_any_more() {
    let closed = Record { closed: Some("a virtual machine runs".into()), ..with_dora(1) };
    let left = Listed { standing: Standing::Left, ..listed(0) };
    let without = changed(2, |nodes| {
        nodes[0] = left.clone();
        nodes.push(joining_as(listed(3)));
    });
    let cases = [
        (closed, &[0, 1, 2, 3][..], "a virtual machine runs"),
        (without, &[1, 2, 3], "node `anna`, which keeps the list of regions, is gone"),
        (with_dora(1), &[1, 2, 3], "node `anna`, which keeps the list of regions, is gone"),
    ];
    for (record, there, why) in cases {
        let mut machine = dora(&with_dora(1));
        machine.step(10, has(10, record, there));
        let text = end_of(&machine).to_string();
        assert_eq!(text, format!("the cluster takes this node in no more: {why}"));
        assert_eq!(machine.verdict().epoch, 0);
    }
}

#[test]
fn who_runs_a_virtual_machine_closes_the_cluster() {
    let mut machine = running();
    machine.close("a virtual machine runs");
    let actions = machine.step(10, Event::Tick);
    let closed = Record { closed: Some("a virtual machine runs".into()), ..record(1) };
    assert_eq!(proposal(&actions).record, closed);
    machine.close("another reason");
    let actions = machine.step(20, has(7, closed, &[0, 1, 2]));
    assert_eq!(proposed(&actions), None);
}

#[test]
fn a_newcomer_that_calls_before_it_is_known_to_be_listed_is_kept() {
    let mut machine = running();
    let calls = Event::Connected { node: node(3), incarnation: 103 };
    assert_eq!(machine.step(10, calls.clone()), []);
    assert_eq!(beat_in(&mut machine, 0, 10, 3, 103, 4), [], "it has nothing to say yet");
    let actions = machine.step(20, has(7, with_dora(1), &[0, 1, 2, 3]));
    let beats = |action: &Action| match action {
        Action::Send { to, message: MemberMessage::Heartbeat(beat) } => {
            *to == node(3) && beat.connected.contains(node(3))
        }
        _ => false,
    };
    assert!(actions.iter().any(beats), "{actions:?}");
    // It can't end a member, nor does its own end concern one.
    let message = MemberMessage::Fatal { reason: "odd".into() };
    machine.step(30, Event::Message { from: node(3), message });
    let why = "reset".to_owned();
    let actions = machine.step(30, Event::Disconnected { node: node(3), incarnation: 103, why });
    assert_eq!((proposed(&actions), machine.verdict().state), (None, &State::Running));

    // Who is never listed is refused; a member's number is nobody else's at all.
    let mut machine = running();
    machine.step(10, calls);
    machine.step(1_000, Event::Etcd(Said::Renewed { sent_ms: 1_000 }));
    let actions = machine.step(2_010, Event::Tick);
    assert!(matches!(actions[0], Action::Refuse { incarnation: 103, .. }), "{actions:?}");
    let mut machine = running();
    let actions = machine.step(10, Event::Connected { node: node(2), incarnation: 202 });
    assert!(matches!(actions[0], Action::Refuse { incarnation: 202, .. }), "{actions:?}");
}

#[test]
fn who_comes_back_is_another_process_and_a_newcomer_of_its_epoch() {
    let mut machine = running();
    let gone = changed(2, |nodes| nodes[2] = removed(2));
    machine.step(10, has(7, gone, &[0, 1]));
    let back = changed(2, |nodes| nodes[2] = joining_as(again(2)));
    let actions = machine.step(20, has(8, back, &[0, 1, 2]));
    assert!(actions.contains(&named(&again(2), 2)), "{actions:?}");
    machine.step(30, Event::Connected { node: node(2), incarnation: 202 });
    let member = Listed { joined: 3, ..again(2) };
    let joined = changed(3, |nodes| nodes[2] = member.clone());
    let actions = machine.step(40, has(9, joined.clone(), &[0, 1, 2]));
    let epoch = joined.in_force();
    assert_eq!(epoch.newcomers(), [node(2)].into_iter().collect());
    assert!(actions.contains(&Action::NewEpoch(epoch)), "{actions:?}");
    // Silence counts from when it joined.
    machine.step(1_500, Event::Etcd(Said::Renewed { sent_ms: 1_500 }));
    assert_eq!(machine.verdict().live.len(), 3);

    // Who skips all that is between is told the same, in an order that makes sense.
    let mut machine = running();
    let actions = machine.step(40, has(9, joined.clone(), &[0, 1, 2]));
    let told: Vec<_> = actions
        .into_iter()
        .filter(|it| !matches!(it, Action::Refuse { .. } | Action::Send { .. }))
        .take(3)
        .collect();
    let reason = "another process has its place".into();
    let lost = Action::PeerLost { node: node(2), reason };
    assert_eq!(told, [lost, named(&again(2), 2), Action::NewEpoch(joined.in_force())]);
    // One that joined and was lost since is first a member, and then lost.
    let mut machine = running();
    let lost = Standing::Lost { reason: "silent".into() };
    let quick = Listed { joined: 2, standing: lost, ..listed(3) };
    let record = changed(2, |nodes| nodes.push(quick.clone()));
    let actions = machine.step(40, has(9, record.clone(), &[0, 1, 2, 3]));
    let lost = Action::PeerLost { node: node(3), reason: "silent".into() };
    assert_eq!(actions[..3], [named(&quick, 3), Action::NewEpoch(record.in_force()), lost]);
}

#[test]
fn a_record_that_cannot_follow_is_somebody_elses() {
    let odd: [(&str, Record); 7] = [
        ("no new epoch", changed(1, |nodes| nodes[2] = removed(2))),
        ("an earlier epoch", record(0)),
        ("a member too few", changed(2, |nodes| drop(nodes.pop()))),
        ("joined from the start", changed(2, |nodes| nodes.push(listed(3)))),
        ("another start", changed(2, |nodes| nodes[1].joined = 2)),
        ("the first place", changed(2, |nodes| nodes[0] = joining_as(again(0)))),
        ("a member joins", changed(1, |nodes| nodes[1].standing = Standing::Joining)),
    ];
    for (what, odd) in odd {
        let mut machine = running();
        machine.step(10, has(7, odd, &[]));
        assert!(matches!(end_of(&machine), EndReason::Overwritten { .. }), "{what}");
    }
    let mut machine = running();
    let closed = Record { closed: Some("vm".into()), ..record(1) };
    machine.step(10, has(7, closed, &[0, 1, 2]));
    machine.step(20, has(8, record(1), &[0, 1, 2]));
    assert!(matches!(end_of(&machine), EndReason::Overwritten { .. }), "closed stays");
}

#[test]
fn a_newcomer_that_went_away_while_it_joined_is_missed_at_once() {
    let joined = changed(2, |nodes| nodes.push(Listed { joined: 2, ..listed(3) }));
    for connected in [true, false] {
        let mut machine = running();
        machine.step(10, has(7, with_dora(1), &[0, 1, 2, 3]));
        if connected {
            machine.step(10, Event::Connected { node: node(3), incarnation: 103 });
        }
        let actions = machine.step(20, has(8, joined.clone(), &[0, 1, 2, 3]));
        let reason = "node `anna` can't talk to it: it went away while it joined".to_owned();
        let lost = Standing::Lost { reason };
        let proposed = proposed(&actions).map(|it| it.record.standing(node(3)).clone());
        assert_eq!(proposed, (!connected).then_some(lost));
    }
}

#[test]
fn a_newcomer_has_a_right_to_run_like_others_and_loses_its_place_with_its_lease() {
    let mut machine = dora(&with_dora(1));
    machine.step(900, Event::Etcd(Said::Renewed { sent_ms: 0 }));
    machine.step(RIGHT_MS, Event::Tick);
    assert!(matches!(end_of(&machine), EndReason::EtcdUnreachable { .. }));

    let gone = Listed { standing: Standing::Gone, ..listed(3) };
    let cases = [
        (gone, "its lease in etcd ended before it was a member"),
        (joining_as(again(3)), "another process has its place"),
    ];
    for (place, reason) in cases {
        let mut machine = dora(&with_dora(1));
        machine.step(10, has(10, changed(1, |nodes| nodes.push(place.clone())), &[0, 1, 2]));
        assert_eq!(end_of(&machine), EndReason::Excluded { reason: reason.into() });
    }
}

#[test]
fn what_is_left_of_the_last_process_at_a_place_ends_when_it_is_given_again() {
    let refuses = |actions: &[Action], gone: u64| {
        actions
            .iter()
            .any(|it| matches!(it, Action::Refuse { incarnation, .. } if *incarnation == gone))
    };
    let mut machine = running();
    let left = Listed { standing: Standing::Left, ..listed(2) };
    let actions = machine.step(10, has(7, changed(2, |nodes| nodes[2] = left.clone()), &[0, 1, 2]));
    assert!(actions.contains(&Action::PeerLeft { node: node(2) }) && !refuses(&actions, 102));
    let back = changed(2, |nodes| nodes[2] = joining_as(again(2)));
    let actions = machine.step(20, has(8, back, &[0, 1, 2]));
    assert!(refuses(&actions, 102), "{actions:?}");
    // So it is with a newcomer that is gone before it was in.
    machine.step(30, Event::Connected { node: node(2), incarnation: 202 });
    let gone = Listed { standing: Standing::Gone, ..again(2) };
    let actions = machine.step(40, has(9, changed(2, |nodes| nodes[2] = gone.clone()), &[0, 1]));
    assert!(refuses(&actions, 202), "{actions:?}");
    let is_told = |it: &Action| matches!(it, Action::PeerLost { .. } | Action::NewEpoch(_));
    assert!(!actions.iter().any(is_told), "it was no member");
}
