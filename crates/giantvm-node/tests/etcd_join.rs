//! What one membership that etcd decides on does about those who join, and as one that joins.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod etcd_member;

use etcd_member::*;
use giantvm_node::control::MemberMessage;
use giantvm_node::membership::etcd::{
    EtcdMembership, Lease, Listed, Present, Proposal, Record, Standing,
};
use giantvm_node::membership::{Action, Config, EndReason, Event, Machine, Said, State};

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

fn left(index: u64) -> Listed {
    Listed { standing: Standing::Left, ..listed(index) }
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
fn the_eldest_lists_a_newcomer_once_all_know_the_epoch() {
    let mut machine = running(0);
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

fn keys_of(there: &[Listed]) -> Vec<Present> {
    there.iter().map(key_of).collect()
}

/// What `me` of the three proposes when `record` and the keys of `there` are in etcd, and all others
/// have said that they know it.
fn asked(me: usize, record: &Record, there: &[Listed]) -> Option<Proposal> {
    let mut machine = running(me);
    let has = |revision, record: &Record| has_keys(revision, record.clone(), keys_of(there));
    let mut before = Record { epoch: record.epoch.saturating_sub(1), ..record.clone() };
    for it in before.nodes.iter_mut().filter(|it| it.joined > 0) {
        *it = joining_as(Listed { joined: 0, ..it.clone() });
    }
    if before.joining() != record.joining() {
        machine.step(5, has(7, &before));
        for (node, it) in before.numbered().filter(|(_, it)| it.standing == Standing::Joining) {
            machine.step(5, Event::Connected { node, incarnation: it.incarnation });
        }
    }
    let mut actions = machine.step(10, has(8, record));
    for (peer, it) in record.nodes.iter().enumerate().filter(|(peer, _)| *peer != me) {
        let (epoch, incarnation) = (record.epoch.into(), it.incarnation);
        machine.step(10, Event::Connected { node: node(peer), incarnation });
        actions.extend(beat_in(&mut machine, epoch, 10, peer, incarnation, record.nodes.len()));
    }
    proposed(&actions).cloned()
}

#[test]
fn only_the_eldest_takes_in_and_the_next_one_does_after_it() {
    let comes = [0, 1, 2, 3].map(listed);
    for me in 0..3 {
        assert_eq!(asked(me, &record(1), &comes).is_some(), me == 0, "{me}");
    }
    for over in [removed(0), left(0)] {
        let two = changed(2, |nodes| nodes[0] = over.clone());
        // The place is free like any other: to whom it was, and else to anyone.
        for new in [listed(3), again(0)] {
            let there = [listed(1), listed(2), new.clone()];
            assert_eq!(asked(2, &two, &there), None);
            let listing = asked(1, &two, &there).unwrap();
            assert_eq!(listing.record, changed(2, |nodes| nodes[0] = joining_as(new.clone())));
            assert_eq!(listing.present, [(new.name, new.lease)]);
            assert_eq!(listing.absent, [("anna".to_owned(), 7)]);
        }
        // As long as the last process may run it is nobody's.
        let listing = asked(1, &two, &comes).unwrap();
        assert_eq!(listing.record.nodes[0], over);
        assert_eq!(listing.record.nodes[3], joining_as(listed(3)));
    }
}

#[test]
fn nobody_takes_in_while_the_eldest_is_lost_and_not_removed() {
    let lost = Standing::Lost { reason: "silent".into() };
    let record = changed(1, |nodes| nodes[0].standing = lost.clone());
    for me in [1, 2] {
        assert_eq!(asked(me, &record, &[0, 1, 2, 3].map(listed)), None);
    }
    // When its key is gone that is said first.
    let removal = asked(1, &record, &[1, 2, 3].map(listed)).unwrap().record;
    assert_eq!((removal.epoch, removal.nodes.len()), (2, 3));
    assert!(matches!(removal.nodes[0].standing, Standing::Removed { .. }));
}

#[test]
fn the_first_node_comes_back_as_the_youngest() {
    let back = Listed { joined: 3, ..again(0) };
    let three = changed(3, |nodes| nodes[0] = back.clone());
    let there = [back.clone(), listed(1), listed(2), listed(3)];
    assert!(asked(1, &three, &there).is_some());
    assert_eq!(asked(2, &three, &there), None);
    // The newcomer itself takes nobody in either.
    let listing = changed(2, |nodes| nodes[0] = joining_as(again(0)));
    let names = listing.nodes.iter().map(|it| it.name.clone()).collect();
    let lease = Lease { lease_ms: LEASE_MS, confirmed_ms: 0, endpoints: "etcd".into() };
    let config = Config::new(names, node(0), 200);
    let mut machine = EtcdMembership::new(config, lease, 9, listing, 0).unwrap();
    for peer in 1..3 {
        let incarnation = 100 + peer as u64;
        machine.step(0, Event::Connected { node: node(peer), incarnation });
        let actions = beat_in(&mut machine, 2, 0, peer, incarnation, 3);
        assert_eq!(proposed(&actions).map(|it| &it.record), (peer == 2).then_some(&three));
    }
    let actions = machine.step(10, has_keys(10, three.clone(), keys_of(&there)));
    assert!(actions.contains(&Action::BecameRunning(three.in_force())), "{actions:?}");
    for peer in 1..3 {
        let actions = beat_in(&mut machine, 3, 20, peer, 100 + peer as u64, 3);
        assert_eq!(proposed(&actions), None);
    }
    // After the others it is the eldest: of those who joined, the first to have done so.
    let mut four = three;
    four.nodes.push(joining_as(listed(3)));
    machine.step(20, has_keys(11, four, keys_of(&there)));
    machine.step(20, Event::Connected { node: node(3), incarnation: 103 });
    let later = Listed { joined: 4, ..listed(3) };
    let alone = Record { epoch: 6, nodes: vec![back, left(1), removed(2), later], closed: None };
    let there = [alone.nodes[0].clone(), alone.nodes[3].clone(), again(1)];
    machine.step(30, has_keys(14, alone, keys_of(&there)));
    let actions = beat_in(&mut machine, 6, 30, 3, 103, 4);
    assert_eq!(proposal(&actions).record.nodes[1], joining_as(again(1)));
}

#[test]
fn who_was_listed_by_one_that_is_gone_gets_in_all_the_same() {
    let mut machine = dora(&with_dora(1));
    machine.step(5, has(9, with_dora(1), &[1, 2, 3]));
    let without = changed(2, |nodes| {
        nodes[0] = removed(0);
        nodes.push(joining_as(listed(3)));
    });
    machine.step(10, has(10, without, &[1, 2, 3]));
    assert_eq!(machine.verdict().state, &State::Joining);
    for peer in 1..3 {
        let incarnation = 100 + peer as u64;
        machine.step(20, Event::Connected { node: node(peer), incarnation });
        let actions = beat_in(&mut machine, 2, 20, peer, incarnation, 4);
        let joined = proposed(&actions).map(|it| it.record.nodes[3].joined);
        assert_eq!(joined, (peer == 2).then_some(3));
    }
}

#[test]
fn a_place_is_given_to_who_had_it_or_else_to_anyone_who_comes() {
    let two = changed(2, |nodes| nodes[2] = removed(2));
    let ready = |record: &Record, keys: Vec<Present>| {
        let mut machine = running(0);
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
    let ending = changed(3, |nodes| {
        (nodes[0], nodes[1]) = (left(0), removed(1));
        nodes[2].standing = Standing::Lost { reason: "silent".into() };
        nodes.push(joining_as(listed(3)));
    });
    let ended = changed(4, |nodes| {
        (nodes[0], nodes[1], nodes[2]) = (left(0), removed(1), left(2));
        nodes.push(joining_as(listed(3)));
    });
    let over = "none of its members is there any more";
    let cases = [
        (closed, &[0, 1, 2, 3][..], "a virtual machine runs"),
        (with_dora(1), &[3], over),
        // Who left may not have stopped, and who is lost not know it; neither takes anybody in.
        (ending, &[0, 2, 3], over),
        (ended, &[0, 3], over),
    ];
    for (record, there, why) in cases {
        // It may be what there was when it was listed, too: then nothing comes of that.
        for listed in [with_dora(1), record.clone()] {
            let mut machine = dora(&listed);
            assert_eq!(proposed(&machine.step(5, Event::Tick)), None);
            machine.step(10, has(10, record.clone(), there));
            let text = end_of(&machine).to_string();
            assert_eq!(text, format!("the cluster takes this node in no more: {why}"));
            assert_eq!(machine.verdict().epoch, 0);
        }
    }
}

#[test]
fn who_runs_a_virtual_machine_closes_the_cluster() {
    let mut machine = running(0);
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
    let mut machine = running(0);
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
    let mut machine = running(0);
    machine.step(10, calls);
    machine.step(1_000, Event::Etcd(Said::Renewed { sent_ms: 1_000 }));
    let actions = machine.step(2_010, Event::Tick);
    assert!(matches!(actions[0], Action::Refuse { incarnation: 103, .. }), "{actions:?}");
    let mut machine = running(0);
    let actions = machine.step(10, Event::Connected { node: node(2), incarnation: 202 });
    assert!(matches!(actions[0], Action::Refuse { incarnation: 202, .. }), "{actions:?}");
}

#[test]
fn who_comes_back_is_another_process_and_a_newcomer_of_its_epoch() {
    let mut machine = running(0);
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
    let mut machine = running(0);
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
    let mut machine = running(0);
    let lost = Standing::Lost { reason: "silent".into() };
    let quick = Listed { joined: 2, standing: lost, ..listed(3) };
    let record = changed(2, |nodes| nodes.push(quick.clone()));
    let actions = machine.step(40, has(9, record.clone(), &[0, 1, 2, 3]));
    let lost = Action::PeerLost { node: node(3), reason: "silent".into() };
    assert_eq!(actions[..3], [named(&quick, 3), Action::NewEpoch(record.in_force()), lost]);
}

#[test]
fn a_record_that_cannot_follow_is_somebody_elses() {
    let odd: [(&str, Record); 6] = [
        ("no new epoch", changed(1, |nodes| nodes[2] = removed(2))),
        ("an earlier epoch", record(0)),
        ("a member too few", changed(2, |nodes| drop(nodes.pop()))),
        ("joined from the start", changed(2, |nodes| nodes.push(listed(3)))),
        ("another start", changed(2, |nodes| nodes[1].joined = 2)),
        ("a member joins", changed(1, |nodes| nodes[1].standing = Standing::Joining)),
    ];
    for (what, odd) in odd {
        let mut machine = running(0);
        machine.step(10, has(7, odd, &[]));
        assert!(matches!(end_of(&machine), EndReason::Overwritten { .. }), "{what}");
    }
    let mut machine = running(0);
    let closed = Record { closed: Some("vm".into()), ..record(1) };
    machine.step(10, has(7, closed, &[0, 1, 2]));
    machine.step(20, has(8, record(1), &[0, 1, 2]));
    assert!(matches!(end_of(&machine), EndReason::Overwritten { .. }), "closed stays");
}

#[test]
fn a_newcomer_that_went_away_while_it_joined_is_missed_at_once() {
    let joined = changed(2, |nodes| nodes.push(Listed { joined: 2, ..listed(3) }));
    for connected in [true, false] {
        let mut machine = running(0);
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
    let mut machine = running(0);
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
