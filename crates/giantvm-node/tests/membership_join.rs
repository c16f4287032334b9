//! How a cluster that runs takes a node in, event by event.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use std::collections::BTreeMap;

use dsm_core::types::{Epoch, NodeId, NodeSet};
use giantvm_node::control::{Change, Heartbeat, MemberMessage};
use giantvm_node::limits::JOIN_EPOCH_MAX;
use giantvm_node::membership::{Action, Config, EndReason, Event, Machine, Membership, State};

/// The incarnation of the process that comes back.
const AGAIN: u64 = 900;

fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

fn nodes(indices: &[usize]) -> NodeSet {
    indices.iter().map(|&index| node(index)).collect()
}

/// Of a cluster that starts with its first two nodes; the third one comes late.
fn config(me: usize) -> Config {
    let names = ["anna", "bert", "carl"].map(String::from).to_vec();
    let mut config = Config::new(names, node(me), 100 + me as u64);
    config.late = nodes(&[2]);
    config
}

fn message(from: usize, message: MemberMessage) -> Event {
    Event::Message { from: node(from), message }
}

fn connected(index: usize, incarnation: u64) -> Event {
    Event::Connected { node: node(index), incarnation }
}

fn disconnected(index: usize, incarnation: u64) -> Event {
    Event::Disconnected { node: node(index), incarnation, why: "reset".into() }
}

/// A heartbeat of `from`, with its incarnation, its epoch and its connections.
fn beat(from: usize, incarnation: u64, epoch: u64, sent_ms: u64, all: &[usize]) -> Event {
    let echo_ms = Some(sent_ms);
    let connected = nodes(all);
    message(
        from,
        MemberMessage::Heartbeat(Heartbeat { epoch, incarnation, sent_ms, echo_ms, connected }),
    )
}

/// Has the machine look at the clock as often as it asks for, until before `until_ms`.
fn wait(machine: &mut Membership, until_ms: u64) {
    while machine.next_tick_ms() < until_ms {
        machine.step(machine.next_tick_ms(), Event::Tick);
    }
}

fn update(epoch: u64, members: &[usize], change: Change) -> Event {
    message(0, MemberMessage::MemberUpdate { epoch, members: nodes(members), change })
}

fn started(incarnations: [u64; 3], joined: &[(usize, u16)]) -> Change {
    let joined = joined.iter().map(|&(index, epoch)| (node(index), epoch)).collect();
    Change::Started { incarnations: incarnations.to_vec(), joined }
}

fn third_joins(number: u16) -> Epoch {
    Epoch { number, members: nodes(&[0, 1, 2]), joined: BTreeMap::from([(node(2), number)]) }
}

/// One of the first two nodes, in a cluster that has started at time 0.
fn running(me: usize) -> Membership {
    let mut machine = Membership::new(config(me), 0).unwrap();
    let other = 1 - me;
    machine.step(0, connected(other, 100 + other as u64));
    let actions = if me == 0 {
        machine.step(0, beat(1, 101, 0, 0, &[0, 1]))
    } else {
        machine.step(0, beat(0, 100, 0, 0, &[0, 1]));
        machine.step(0, update(1, &[0, 1], started([100, 101, 0], &[])))
    };
    let first = Epoch::first(1, nodes(&[0, 1]));
    assert!(actions.contains(&Action::BecameRunning(first)), "{actions:?}");
    machine
}

/// The deciding node, when the third node and the second have met, but the latter has not said so.
fn almost_met() -> Membership {
    let mut machine = running(0);
    machine.step(10, connected(2, 102));
    let actions = machine.step(20, beat(2, 102, 0, 5, &[0, 1, 2]));
    assert!(!joins(&actions));
    machine
}

/// The third node, when it is connected with both others and they run.
fn newcomer() -> Membership {
    let mut machine = Membership::new(config(2), 0).unwrap();
    machine.step(0, connected(0, 100));
    machine.step(0, connected(1, 101));
    for other in [0, 1] {
        let actions = machine.step(10, beat(other, 100 + other as u64, 1, 5, &[0, 1, 2]));
        assert_eq!(end_of(&actions), None);
    }
    machine
}

fn joins(actions: &[Action]) -> bool {
    actions.iter().any(|it| matches!(it, Action::NewEpoch(epoch) if !epoch.newcomers().is_empty()))
}

fn end_of(actions: &[Action]) -> Option<&EndReason> {
    actions.iter().find_map(|action| match action {
        Action::Ended { reason } => Some(reason),
        _ => None,
    })
}

/// Why the connection with a process of `index` is put off.
fn put_off(actions: &[Action], index: usize) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Postpone { node: it, reason, .. } if *it == node(index) => Some(reason.as_str()),
        _ => None,
    })
}

fn refused(actions: &[Action], index: usize) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Refuse { node: it, reason, .. } if *it == node(index) => Some(reason.as_str()),
        _ => None,
    })
}

fn sent(actions: &[Action], index: usize) -> Vec<&MemberMessage> {
    let to = |action| match action {
        &Action::Send { to, ref message } if to == node(index) => Some(message),
        _ => None,
    };
    actions.iter().filter_map(to).collect()
}

#[test]
fn the_start_does_not_wait_for_late_nodes_even_if_they_are_there() {
    let mut machine = Membership::new(config(0), 0).unwrap();
    assert_eq!(machine.waiting_for(), "bert");
    assert_eq!(machine.verdict().missing, nodes(&[1]));
    machine.step(0, connected(2, 102));
    machine.step(0, connected(1, 101));
    let actions = machine.step(0, beat(1, 101, 0, 0, &[0, 1, 2]));
    assert!(actions.contains(&Action::BecameRunning(Epoch::first(1, nodes(&[0, 1])))));
    let MemberMessage::MemberUpdate { change, .. } = sent(&actions, 1).pop().unwrap() else {
        panic!("{actions:?}");
    };
    assert_eq!(*change, started([100, 101, 0], &[]));
    assert!(sent(&actions, 2).iter().all(|it| matches!(it, MemberMessage::Heartbeat(_))));

    let mut alone = config(0);
    alone.late = nodes(&[1, 2]);
    let actions = Membership::new(alone, 0).unwrap().step(0, Event::Tick);
    assert_eq!(actions, [Action::BecameRunning(Epoch::first(1, nodes(&[0])))]);
}

#[test]
fn a_node_that_all_members_have_met_is_taken_in_and_the_echo_goes_ahead() {
    let mut machine = almost_met();
    let actions = machine.step(30, beat(1, 101, 1, 25, &[0, 1, 2]));
    assert_eq!(actions.last(), Some(&Action::NewEpoch(third_joins(2))), "{actions:?}");
    let joined = MemberMessage::MemberUpdate {
        epoch: 2,
        members: nodes(&[0, 1, 2]),
        change: Change::Joined { node: node(2), incarnation: 102 },
    };
    assert_eq!(sent(&actions, 1), [&joined]);
    let [MemberMessage::Heartbeat(echo), MemberMessage::MemberUpdate { epoch: 2, change, .. }] =
        sent(&actions, 2)[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!((echo.epoch, echo.echo_ms), (1, Some(5)));
    assert_eq!(*change, started([100, 101, 102], &[(2, 2)]));
}

#[test]
fn a_node_is_not_taken_in_before_every_member_has_met_it() {
    // What the third node says, when, and what the second one says.
    let ready = ((0u64, &[0, 1, 2][..]), 30, (1u64, &[0, 1, 2][..]));
    let cases = [
        (ready, true),
        (((0, &[0, 2]), 30, (1, &[0, 1, 2])), false), // it misses the second one
        (((0, &[0, 1, 2]), 30, (1, &[0, 1])), false), // the second one misses it
        (((0, &[0, 1, 2]), 30, (0, &[0, 1, 2])), false), // who doesn't know yet that it is a member
        (((0, &[0, 1, 2]), 1_020, (1, &[0, 1, 2])), false), // silent for half the timeout
    ];
    for (((epoch, third), now_ms, (known, second)), taken) in cases {
        let mut machine = running(0);
        machine.step(10, connected(2, 102));
        machine.step(20, beat(2, 102, epoch, 5, third));
        wait(&mut machine, now_ms);
        let actions = machine.step(now_ms, beat(1, 101, known, 25, second));
        assert_eq!(joins(&actions), taken, "{third:?} {now_ms} {known} {second:?}");
    }
}

#[test]
fn nobody_joins_while_another_one_is_lost_but_may_still_run() {
    let mut machine = running(0);
    machine.step(0, connected(2, 102));
    machine.step(0, beat(1, 101, 1, 0, &[0, 1, 2]));
    machine.step(30, disconnected(1, 101));
    for now_ms in (100..2_500).step_by(100) {
        // It may not know yet that the other one has ended.
        assert!(!joins(&machine.step(now_ms, beat(2, 102, 0, now_ms, &[0, 1, 2]))), "{now_ms}");
    }
    let actions = machine.step(2_500, beat(2, 102, 0, 2_500, &[0, 2]));
    let epochs: Vec<_> = actions
        .iter()
        .filter_map(|it| match it {
            Action::NewEpoch(epoch) => Some((epoch.number, epoch.members)),
            _ => None,
        })
        .collect();
    assert_eq!(epochs, [(2, nodes(&[0])), (3, nodes(&[0, 2]))]);
}

#[test]
fn a_node_that_comes_back_waits_until_its_earlier_process_is_removed() {
    let mut machine = running(0);
    machine.step(10, disconnected(1, 101));
    for now_ms in [20, 2_499] {
        wait(&mut machine, now_ms);
        let actions = machine.step(now_ms, connected(1, AGAIN));
        let reason = "the earlier process of node `bert` is not removed yet (epoch 1)";
        assert_eq!(put_off(&actions, 1), Some(reason));
    }
    assert_eq!((machine.step(2_500, Event::Tick).len(), machine.members()), (1, nodes(&[0])));
    machine.step(2_510, connected(1, AGAIN));
    let actions = machine.step(2_520, beat(1, AGAIN, 0, 2_515, &[0, 1]));
    let joined = BTreeMap::from([(node(1), 3)]);
    let epoch = Epoch { number: 3, members: nodes(&[0, 1]), joined };
    assert!(actions.contains(&Action::NewEpoch(epoch)), "{actions:?}");
    // Nothing is left of what was known of the earlier process.
    let actions = machine.step(2_530, disconnected(1, AGAIN));
    assert!(actions.iter().any(|it| matches!(it, Action::PeerLost { .. })), "{actions:?}");
    let actions = machine.step(2_540, connected(1, AGAIN));
    assert_eq!(refused(&actions, 1), Some("node `bert` was declared lost"));
}

#[test]
fn what_a_node_sent_before_it_left_does_not_bring_it_back() {
    let mut machine = running(0);
    machine.step(10, message(1, MemberMessage::Leave));
    assert_eq!(machine.members(), nodes(&[0]));
    let actions = machine.step(20, beat(1, 101, 1, 15, &[0, 1]));
    assert_eq!((joins(&actions), machine.epoch()), (false, 2));
    machine.step(30, disconnected(1, 101));
    machine.step(40, connected(1, AGAIN));
    assert!(joins(&machine.step(50, beat(1, AGAIN, 0, 45, &[0, 1]))));
}

#[test]
fn what_a_member_said_of_an_earlier_process_does_not_count_for_the_next() {
    let mut machine = almost_met();
    assert!(joins(&machine.step(30, beat(1, 101, 1, 25, &[0, 1, 2]))));
    machine.step(40, beat(1, 101, 2, 35, &[0, 1, 2]));
    machine.step(50, message(2, MemberMessage::Leave));
    machine.step(60, connected(2, AGAIN));
    // The second node means the process that left, until it has heard of that.
    assert!(!joins(&machine.step(70, beat(2, AGAIN, 0, 65, &[0, 1, 2]))));
    assert!(!joins(&machine.step(80, beat(1, 101, 2, 75, &[0, 1, 2]))));
    assert!(joins(&machine.step(90, beat(1, 101, 3, 85, &[0, 1, 2]))));
}

#[test]
fn a_closed_cluster_refuses_newcomers_with_the_reason() {
    let mut machine = almost_met();
    Machine::close(&mut machine, "a virtual machine runs on it");
    machine.close("a second reason");
    let actions = machine.step(30, Event::Tick);
    assert_eq!(refused(&actions, 2), Some("a virtual machine runs on it"));
    let actions = machine.step(40, connected(2, AGAIN));
    assert_eq!(refused(&actions, 2), Some("a virtual machine runs on it"));
    assert_eq!(machine.live(), nodes(&[0, 1]));
    // The start is another matter.
    let mut starting = Membership::new(config(0), 0).unwrap();
    starting.close("closed");
    assert_eq!(refused(&starting.step(0, connected(1, 101)), 1), None);
}

#[test]
fn a_cluster_that_has_seen_too_many_come_and_go_takes_none_in() {
    let mut machine = running(0);
    let mut now_ms = 0;
    while machine.epoch() < JOIN_EPOCH_MAX.into() {
        now_ms += 10;
        machine.step(now_ms, connected(2, now_ms));
        machine.step(now_ms, beat(1, 101, machine.epoch(), now_ms, &[0, 1, 2]));
        machine.step(now_ms, beat(2, now_ms, 0, now_ms, &[0, 1, 2]));
        machine.step(now_ms, message(2, MemberMessage::Leave));
    }
    assert!(machine.epoch() <= u64::from(JOIN_EPOCH_MAX) + 1);
    let actions = machine.step(now_ms, connected(2, AGAIN));
    assert!(refused(&actions, 2).unwrap().contains("65000 nodes come or go"), "{actions:?}");
}

#[test]
fn a_newcomer_says_what_it_waits_for_and_runs_when_it_is_told() {
    let mut machine = Membership::new(config(2), 0).unwrap();
    assert_eq!(machine.waiting_for(), "anna, bert");
    machine.step(0, connected(0, 100));
    let not_yet = MemberMessage::NotYet { reason: "not removed".into() };
    machine.step(0, connected(1, 101));
    machine.step(0, message(1, not_yet));
    machine.step(0, disconnected(1, 101));
    machine.step(10, beat(0, 100, 4, 5, &[0, 1, 2]));
    let text = "the cluster runs; to be taken in: connection to bert (not removed)";
    assert_eq!((machine.waiting_for().as_str(), machine.state()), (text, &State::Joining));
    assert_eq!(machine.verdict().missing, nodes(&[1]));

    let mut machine = newcomer();
    let text = "the cluster runs; to be taken in: the word of node `anna`";
    assert_eq!(machine.waiting_for(), text);
    let change = started([100, 101, 102], &[(2, 2)]);
    let actions = machine.step(20, update(2, &[0, 1, 2], change));
    assert_eq!(actions, [Action::BecameRunning(third_joins(2))]);
    assert!(end_of(&machine.step(30, beat(0, 100, 2, 25, &[0, 1, 2]))).is_none());
}

#[test]
fn a_newcomer_whose_right_to_run_is_over_never_runs() {
    let mut machine = newcomer();
    let change = started([100, 101, 102], &[(2, 2)]);
    let actions = machine.step(2_005, update(2, &[0, 1, 2], change));
    assert!(matches!(end_of(&actions), Some(EndReason::Unreachable { silent_ms: 2_000, .. })));
    assert!(!actions.iter().any(|it| matches!(it, Action::BecameRunning(_))));
}

#[test]
fn a_start_that_cannot_be_is_no_start() {
    let fits = started([100, 101, 102], &[(2, 2)]);
    let members = [0, 1, 2];
    let wrong = [
        update(0, &members, fits.clone()),
        update(1, &members, fits.clone()),
        update(3, &members, fits.clone()),
        update(65_536, &members, fits.clone()),
        update(2, &[0, 1], fits.clone()),
        update(2, &[1, 2], fits.clone()),
        update(2, &[0, 1, 2, 3], fits),
        update(2, &members, started([100, 101, AGAIN], &[(2, 2)])),
        update(2, &members, started([AGAIN, 101, 102], &[(2, 2)])),
        update(2, &members, started([100, 101, 102], &[])),
        update(2, &members, started([100, 101, 102], &[(0, 2), (2, 2)])),
        update(2, &members, started([100, 101, 102], &[(1, 1), (2, 2)])),
        update(2, &members, started([100, 101, 102], &[(1, 3), (2, 2)])),
        update(2, &members, Change::Joined { node: node(2), incarnation: 102 }),
    ];
    for event in wrong {
        let actions = newcomer().step(20, event.clone());
        assert!(matches!(end_of(&actions), Some(EndReason::LostStep { .. })), "{event:?}");
    }
}

#[test]
fn a_member_hears_a_newcomer_before_and_after_it_is_told_of_it() {
    let mut machine = running(1);
    let actions = machine.step(10, connected(2, 102));
    assert_eq!((put_off(&actions, 2), refused(&actions, 2)), (None, None));
    assert!(sent(&actions, 0).len() == 1 && sent(&actions, 2).len() == 1, "{actions:?}");
    // It may know before this node that it is a member.
    for epoch in [0, 2] {
        let actions = machine.step(20, beat(2, 102, epoch, 15, &[0, 1, 2]));
        assert_eq!(actions, []);
    }
    let actions =
        machine.step(30, update(2, &[0, 1, 2], Change::Joined { node: node(2), incarnation: 102 }));
    assert_eq!(actions, [Action::NewEpoch(third_joins(2))]);
    assert_eq!(machine.live(), nodes(&[0, 1, 2]));
    let suspect = |actions: &[Action]| {
        sent(actions, 0).iter().any(|it| matches!(it, MemberMessage::Suspect { .. }))
    };
    assert!(suspect(&machine.step(40, disconnected(2, 102))));
}

#[test]
fn a_join_that_cannot_be_ends_a_member() {
    for (epoch, members, index) in [
        (1, &[0, 1, 2][..], 2),
        (3, &[0, 1, 2], 2),
        (2, &[0, 1], 2),
        (2, &[0, 1], 1),
        (2, &[0, 1, 3], 3),
    ] {
        let joined = Change::Joined { node: node(index), incarnation: 102 };
        let actions = running(1).step(10, update(epoch, members, joined));
        assert!(matches!(end_of(&actions), Some(EndReason::LostStep { .. })), "{epoch}");
    }
}

#[test]
fn a_member_puts_off_another_process_than_the_one_that_was_taken_in() {
    let mut machine = running(1);
    machine.step(10, connected(2, AGAIN));
    let joined = Change::Joined { node: node(2), incarnation: 102 };
    let actions = machine.step(20, update(2, &[0, 1, 2], joined));
    assert!(put_off(&actions, 2).unwrap().contains("`carl` is not removed yet"), "{actions:?}");
    // The one that was taken in may still come. If it does not, it is silent.
    let late = machine.step(30, connected(2, 102));
    assert_eq!(put_off(&late, 2), None);
    assert!(put_off(&machine.step(40, connected(2, AGAIN)), 2).is_some());
}

#[test]
fn a_newcomer_that_misses_a_member_lets_the_member_speak_first() {
    let mut machine = newcomer();
    machine.step(15, disconnected(1, 101));
    let change = started([100, 101, 102], &[(2, 2)]);
    let actions = machine.step(20, update(2, &[0, 1, 2], change));
    assert_eq!(actions, [Action::BecameRunning(third_joins(2))]);
    let mut reported_ms = None;
    for now_ms in (100..6_000).step_by(100) {
        let actions = machine.step(now_ms, beat(0, 100, 2, now_ms, &[0, 1, 2]));
        let suspect = |it: &&MemberMessage| matches!(it, MemberMessage::Suspect { .. });
        if sent(&actions, 0).iter().any(suspect) {
            reported_ms = reported_ms.or(Some(now_ms));
        }
    }
    assert_eq!(reported_ms, Some(4_100), "twice the timeout");
}

#[test]
fn a_newcomer_has_no_say_in_who_is_a_member() {
    let fatal = MemberMessage::Fatal { reason: "go away".into() };
    let gone = MemberMessage::Gone { reason: "out of memory".into() };
    for me in [0, 1] {
        let mut machine = running(me);
        machine.step(10, connected(2, 102));
        assert_eq!(machine.step(20, message(2, fatal.clone())), []);
        assert_eq!(machine.step(20, message(2, gone.clone())), []);
    }
    // One that says that it goes is not taken in any more.
    for last in [gone, MemberMessage::Leave] {
        let mut machine = almost_met();
        machine.step(25, message(2, last));
        assert!(!joins(&machine.step(30, beat(1, 101, 1, 25, &[0, 1, 2]))));
    }
}

#[test]
fn a_newcomer_that_does_not_learn_that_it_is_a_member_is_silent() {
    let mut machine = almost_met();
    assert!(joins(&machine.step(30, beat(1, 101, 1, 25, &[0, 1, 2]))));
    let mut lost_ms = None;
    for now_ms in (100..3_000).step_by(100) {
        machine.step(now_ms, beat(1, 101, 2, now_ms, &[0, 1, 2]));
        let actions = machine.step(now_ms, beat(2, 102, 0, now_ms, &[0, 1, 2]));
        let echoes = sent(&actions, 2).into_iter().filter_map(|it| match it {
            MemberMessage::Heartbeat(beat) => beat.echo_ms,
            _ => None,
        });
        assert!(echoes.into_iter().all(|echo_ms| echo_ms == 5), "{actions:?}");
        if machine.live() == nodes(&[0, 1]) {
            lost_ms = lost_ms.or(Some(now_ms));
        }
    }
    assert_eq!(lost_ms, Some(2_100));
}

#[test]
fn a_process_of_an_earlier_run_of_the_cluster_is_refused() {
    let mut machine = running(0);
    machine.step(10, connected(2, 102));
    let actions = machine.step(20, beat(2, 102, 1, 15, &[0, 1, 2]));
    assert_eq!(refused(&actions, 2), Some("its epoch 1 is not of this run of the cluster"));
    assert_eq!(machine.live(), nodes(&[0, 1]));
}
