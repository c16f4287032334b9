//! What one membership says and does, event by event.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use dsm_core::types::{Epoch, NodeId};
use giantvm_node::control::{Change, Heartbeat, MemberMessage};
use giantvm_node::membership::{Action, Config, ConfigError, EndReason, Event, Membership, State};

fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

fn config(me: usize) -> Config {
    let names = ["anna", "bert", "carl"].map(String::from).to_vec();
    Config::new(names, node(me), 100 + me as u64)
}

fn beat(from: &Membership, me: usize, sent_ms: u64, echo_ms: Option<u64>) -> MemberMessage {
    MemberMessage::Heartbeat(Heartbeat {
        epoch: from.epoch(),
        incarnation: 100 + me as u64,
        sent_ms,
        echo_ms,
        connected: [0, 1, 2].map(node).into_iter().collect(),
    })
}

fn message(from: usize, message: MemberMessage) -> Event {
    Event::Message { from: node(from), message }
}

/// Node `me` of three in a cluster that started at time 0.
fn running(me: usize) -> Membership {
    let mut machine = Membership::new(config(me), 0).unwrap();
    let others = (0..3).filter(|other| *other != me);
    for other in others.clone() {
        let incarnation = 100 + other as u64;
        machine.step(0, Event::Connected { node: node(other), incarnation });
    }
    for other in others {
        let heartbeat = beat(&machine, other, 0, Some(0));
        machine.step(0, message(other, heartbeat));
    }
    if me != 0 {
        let update = MemberMessage::MemberUpdate {
            epoch: 1,
            members: [0, 1, 2].map(node).into_iter().collect(),
            change: Change::Started { incarnations: vec![100, 101, 102] },
        };
        let actions = machine.step(0, message(0, update));
        assert!(actions.contains(&Action::BecameRunning(first_epoch(3))));
    }
    assert_eq!((machine.state(), machine.epoch()), (&State::Running, 1));
    machine
}

fn first_epoch(nodes: usize) -> Epoch {
    Epoch::first(1, (0..nodes).map(node).collect())
}

fn end_of(actions: &[Action]) -> Option<&EndReason> {
    actions.iter().find_map(|action| match action {
        Action::Ended { reason } => Some(reason),
        _ => None,
    })
}

#[test]
fn a_joining_node_names_whom_it_waits_for() {
    let mut machine = Membership::new(config(0), 0).unwrap();
    assert_eq!(machine.waiting_for(), "bert, carl");
    machine.step(0, Event::Connected { node: node(1), incarnation: 101 });
    assert_eq!(machine.waiting_for(), "carl, bert's connection to anna and bert and carl");
    let heartbeat = beat(&machine, 1, 0, None);
    machine.step(0, message(1, heartbeat));
    assert_eq!(machine.waiting_for(), "carl");
    assert_eq!(machine.missing().iter().collect::<Vec<_>>(), [node(2)]);
}

#[test]
fn a_cluster_of_one_runs_at_once_and_leaves_at_once() {
    let alone = Config::new(vec!["solo".into()], node(0), 1);
    let mut machine = Membership::new(alone, 0).unwrap();
    assert_eq!(machine.step(0, Event::Tick), [Action::BecameRunning(first_epoch(1))]);
    let actions = machine.step(60_000 / 60, Event::LeaveRequested);
    assert_eq!(actions, [Action::Ended { reason: EndReason::Left }]);
}

#[test]
fn a_stopped_node_is_out_before_it_takes_in_anything() {
    for me in 0..3 {
        let mut machine = running(me);
        let heartbeat = beat(&machine, (me + 1) % 3, 2_000, Some(0));
        let actions = machine.step(2_001, message((me + 1) % 3, heartbeat));
        assert_eq!(end_of(&actions), Some(&EndReason::Stopped { stopped_ms: 2_001 }), "{me}");
        let text = end_of(&actions).unwrap().to_string();
        assert_eq!(text, "this node was stopped for 2001 ms; the others go on without it");
        assert!(!actions.iter().any(|a| matches!(a, Action::BecameRunning(_))));
        assert_eq!(machine.step(2_001, Event::Tick), [], "ended is final");
    }
}

#[test]
fn only_an_echo_prolongs_the_right_to_run() {
    let mut machine = running(1);
    for now_ms in (100..2_000).step_by(100) {
        // The deciding node is heard all the time, but doesn't say that it hears this one; nor
        // does it count that it claims to have heard the future.
        let echo_ms = if now_ms < 500 { Some(0) } else { Some(now_ms + 1) };
        let heartbeat = beat(&machine, 0, now_ms, echo_ms);
        assert_eq!(end_of(&machine.step(now_ms, message(0, heartbeat))), None);
        let heartbeat = beat(&machine, 2, now_ms, None);
        machine.step(now_ms, message(2, heartbeat));
    }
    let actions = machine.step(2_000, Event::Tick);
    let text = end_of(&actions).unwrap().to_string();
    assert_eq!(text, "this node can't reach the deciding node `anna`: no answer for 2000 ms");
}

#[test]
fn a_restarted_node_is_refused_with_what_to_do() {
    let mut machine = running(0);
    let actions = machine.step(10, Event::Connected { node: node(1), incarnation: 999 });
    let Some(Action::Refuse { node: refused, incarnation: 999, reason }) = actions.first() else {
        panic!("{actions:?}");
    };
    assert_eq!(*refused, node(1));
    assert!(reason.contains("end all nodes, then start them again"), "{reason}");
    assert_eq!(machine.live().len(), 3, "the connection of the member is not concerned");

    let mut refused = Membership::new(config(1), 0).unwrap();
    refused.step(0, Event::Connected { node: node(0), incarnation: 100 });
    let fatal = MemberMessage::Fatal { reason: reason.clone() };
    let actions = refused.step(0, message(0, fatal));
    assert!(matches!(end_of(&actions), Some(EndReason::Refused { .. })));
}

#[test]
fn a_broken_connection_is_a_loss_at_once_and_a_removal_when_it_is_safe() {
    let mut machine = running(0);
    let gone = Event::Disconnected { node: node(2), incarnation: 102, why: "reset".into() };
    let actions = machine.step(50, gone);
    assert!(actions.iter().any(|a| matches!(a, Action::PeerLost { node: n, .. } if *n == node(2))));
    assert_eq!((machine.epoch(), machine.live().len()), (1, 2));
    let mut removed_ms = None;
    for now_ms in (100..4_000).step_by(100) {
        let heartbeat = beat(&machine, 1, now_ms, None);
        machine.step(now_ms, message(1, heartbeat));
        if machine.epoch() == 2 {
            removed_ms = removed_ms.or(Some(now_ms));
        }
    }
    // Heard last at 0: the timeout of 2,000 and the margin of 500.
    assert_eq!(removed_ms, Some(2_500));
    assert_eq!(machine.members().iter().collect::<Vec<_>>(), [node(0), node(1)]);
}

#[test]
fn a_node_that_says_it_ended_is_removed_when_its_memory_must_have() {
    let mut machine = running(0);
    let gone = MemberMessage::Gone { reason: "out of memory".into() };
    let actions = machine.step(50, message(2, gone));
    assert!(actions.iter().any(|a| matches!(a, Action::PeerLost { .. })));
    // Its right to run need not run out: the margin of 500.
    assert!(machine.step(549, Event::Tick).iter().all(|a| !matches!(a, Action::NewEpoch(_))));
    let actions = machine.step(550, Event::Tick);
    assert!(actions.iter().any(|a| matches!(a, Action::NewEpoch(Epoch { number: 2, .. }))));
}

#[test]
fn everyone_ends_with_the_deciding_node() {
    let mut machine = running(2);
    let gone = Event::Disconnected { node: node(0), incarnation: 100, why: "reset".into() };
    let text = end_of(&machine.step(50, gone)).unwrap().to_string();
    assert_eq!(text, "this node lost its connection to the deciding node `anna`: reset");
}

#[test]
fn a_member_reports_a_broken_connection_and_lets_the_deciding_node_decide() {
    let mut machine = running(1);
    let gone = Event::Disconnected { node: node(2), incarnation: 102, why: "reset".into() };
    let actions = machine.step(50, gone);
    let suspects = |a: &&Action| matches!(a, Action::Send { to, message: MemberMessage::Suspect { .. } } if *to == node(0));
    assert_eq!(actions.iter().filter(suspects).count(), 1);
    assert!(!actions.iter().any(|a| matches!(a, Action::PeerLost { .. })));
    let left = MemberMessage::MemberUpdate {
        epoch: 2,
        members: [0, 1].map(node).into_iter().collect(),
        change: Change::Left { node: node(2) },
    };
    let actions = machine.step(60, message(0, left));
    assert_eq!(actions.first(), Some(&Action::PeerLeft { node: node(2) }));
    assert_eq!(machine.epoch(), 2);
}

#[test]
fn leaving_is_over_when_the_deciding_node_says_so() {
    let mut leaver = running(1);
    let actions = leaver.step(10, Event::LeaveRequested);
    assert!(actions.contains(&Action::Send { to: node(0), message: MemberMessage::Leave }));
    let mut deciding = running(0);
    let actions = deciding.step(10, message(1, MemberMessage::Leave));
    let ack = MemberMessage::LeaveAck { epoch: 2 };
    assert!(actions.contains(&Action::PeerLeft { node: node(1) }));
    assert!(actions.contains(&Action::Send { to: node(1), message: ack.clone() }));
    assert_eq!(leaver.step(20, message(0, ack)), [Action::Ended { reason: EndReason::Left }]);
    let gone = Event::Disconnected { node: node(1), incarnation: 101, why: "end".into() };
    let actions = deciding.step(20, gone);
    assert!(!actions.iter().any(|a| matches!(a, Action::PeerLost { .. })), "it left before");
}

#[test]
fn the_deciding_node_leaves_last_or_after_its_wait() {
    let mut machine = running(0);
    assert_eq!(end_of(&machine.step(0, Event::LeaveRequested)), None);
    machine.step(10, message(1, MemberMessage::Leave));
    let actions = machine.step(20, message(2, MemberMessage::Leave));
    assert_eq!(end_of(&actions), Some(&EndReason::Left));

    let mut machine = running(0);
    machine.step(0, Event::LeaveRequested);
    for now_ms in (100..=5_000).step_by(100) {
        for other in [1, 2] {
            let heartbeat = beat(&machine, other, now_ms, None);
            let ended = end_of(&machine.step(now_ms, message(other, heartbeat))).is_some();
            assert_eq!(ended, now_ms == 5_000 && other == 1, "{now_ms}");
        }
    }
}

#[test]
fn nonsense_ends_the_connection_and_names_its_sender() {
    let update = MemberMessage::MemberUpdate {
        epoch: 2,
        members: [0, 1].map(node).into_iter().collect(),
        change: Change::Removed { node: node(2) },
    };
    let mut machine = running(0);
    let actions = machine.step(10, message(1, update.clone()));
    assert!(actions.iter().any(|a| matches!(a, Action::Refuse { incarnation: 101, .. })));
    assert!(actions.iter().any(|a| matches!(a, Action::PeerLost { node: n, .. } if *n == node(1))));

    // From the deciding node: an epoch is never skipped, and no message moves it back.
    for epoch in [0, 1, 3, u64::MAX] {
        let mut machine = running(1);
        let MemberMessage::MemberUpdate { members, change, .. } = update.clone() else { return };
        let jump = MemberMessage::MemberUpdate { epoch, members, change };
        let actions = machine.step(10, message(0, jump));
        assert!(matches!(end_of(&actions), Some(EndReason::LostStep { .. })), "{epoch}");
        assert_eq!(machine.epoch(), 1);
    }
}

#[test]
fn times_and_lists_that_cannot_work_are_refused() {
    let check = |change: fn(&mut Config)| {
        let mut config = config(0);
        change(&mut config);
        config.check()
    };
    assert_eq!(check(|_| ()), Ok(()));
    // 2 heartbeats of 100, a thousandth of 2,000, and 250 for the end of its memory.
    assert_eq!(check(|c| c.margin_ms = 452), Ok(()));
    let low = Err(ConfigError::Time { setting: "margin_ms", value: 451, min: 452, max: 3_600_000 });
    assert_eq!(check(|c| c.margin_ms = 451), low);
    assert_eq!(check(|c| c.timeout_ms = 600), Ok(()));
    assert!(check(|c| c.timeout_ms = 599).is_err());
    assert!(check(|c| c.heartbeat_ms = u64::MAX).is_err());
    assert!(check(|c| c.names.clear()).is_err());
    assert!(check(|c| c.names = vec!["a".into(); 2]).is_err());
    assert!(check(|c| c.names.push(String::new())).is_err());
    assert!(check(|c| c.me = node(3)).is_err());
}
