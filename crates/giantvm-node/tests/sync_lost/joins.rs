//! Joins step by step: one home, or one client, and what must come out.

use std::collections::BTreeMap;

use dsm_core::types::{Epoch, NodeSet};
use giantvm_node::limits::SYNC_TICKETS_PER_NODE_MAX;
use giantvm_node::sync::{
    EVERY_NODE, Held, Outcome, SyncClient, SyncError, SyncOp, SyncReply, SyncReport, SyncRequest,
    ToHome,
};

use crate::steps::{
    Home, LOCK, NODES, answers, hold, name, names, plain, reply, request, sent, set, unlock,
};
use crate::world::node;

use Outcome::{Abandoned, Granted, Passed, Unlocked, Value};

/// Most requests of one node that a home keeps.
const KEPT_MAX: u64 = 3 * SYNC_TICKETS_PER_NODE_MAX as u64;

/// `members`, of which those of `joined` came in these epochs.
fn epoch(number: u16, members: &[usize], joined: &[(usize, u16)]) -> Epoch {
    let joined: BTreeMap<_, _> =
        joined.iter().map(|&(index, number)| (node(index), number)).collect();
    Epoch { number, members: set(members), joined }
}

fn first() -> Epoch {
    Epoch::first(1, NodeSet::first(NODES))
}

/// Node 4, which is not in the starting list, joins.
fn fifth() -> Epoch {
    epoch(2, &[0, 1, 2, 3, 4], &[(4, 2)])
}

#[test]
fn a_join_moves_nothing_and_breaks_nothing() {
    let (mut home, x) = (Home::of(&first()), name(&[0]));
    let [counter, lock] = [1, 2].map(|other| names(&[0]).nth(other).unwrap());
    let moved = name(&[3, 0]);
    let meet = SyncOp::BarrierWait { parties: 3 };
    home.ask(1, 1, 1, &counter, SyncOp::CounterAdd { delta: 7 });
    home.ask(2, 1, 2, &lock, LOCK);
    assert_eq!(home.ask(1, 1, 3, &x, meet), []);
    assert_eq!(home.changed(&fifth()), []);
    // One that does not know of the join, and the newcomer.
    assert_eq!(home.ask(2, 1, 4, &x, meet), []);
    let met = [
        (4, 1, Ok(Passed { index: 2 })),
        (1, 3, Ok(Passed { index: 0 })),
        (2, 4, Ok(Passed { index: 1 })),
    ];
    assert_eq!(home.ask(4, 2, 1, &x, meet), met);
    assert_eq!(home.ask(4, 2, 2, &counter, SyncOp::CounterGet), [(4, 2, Ok(Value(7)))]);
    assert_eq!(home.ask(4, 2, 3, &lock, LOCK), []);
    assert_eq!(home.ask(2, 1, 5, &lock, unlock(2)), [(2, 5, Ok(Unlocked)), (4, 3, Ok(Granted))]);
    assert_eq!(home.ask(4, 2, 4, &moved, LOCK), [(4, 4, Err(SyncError::NotHome))]);
}

#[test]
fn a_meeting_of_every_node_waits_for_who_joins_meanwhile() {
    let (mut home, x) = (Home::of(&first()), name(&[0]));
    let meet = SyncOp::BarrierWait { parties: EVERY_NODE };
    for from in 1..4 {
        assert_eq!(home.ask(from, 1, 1, &x, meet), []);
    }
    assert_eq!(home.changed(&fifth()), []);
    assert_eq!(home.ask(4, 2, 1, &x, meet), []);
    let three = home.ask(4, 2, 2, &x, SyncOp::BarrierWait { parties: 3 });
    let other = SyncError::PartiesMismatch { expected: EVERY_NODE, got: 3 };
    assert_eq!(three, [(4, 2, Err(other))]);
    let text = "those who wait at the barrier expect one party of every node, this one 3 parties";
    assert_eq!(other.to_string(), text);
    assert_eq!(home.ask(0, 1, 1, &x, meet).len(), 5);
    // A loss ends the meeting, as any other.
    assert_eq!(home.ask(2, 2, 2, &x, meet), []);
    let broken = Err(SyncError::BarrierBroken { node: node(4), epoch: 3 });
    assert_eq!(home.changed(&epoch(3, &[0, 1, 2, 3], &[])), [(2, 2, broken)]);
    assert_eq!(home.ask(3, 2, 2, &x, meet), [(3, 2, broken)]);
}

#[test]
fn who_is_back_before_its_loss_was_told_is_another_process() {
    let (mut home, x) = (Home::of(&first()), name(&[0]));
    let y = names(&[0]).nth(1).unwrap();
    home.ask(3, 1, 1, &x, LOCK);
    home.ask(1, 1, 1, &x, LOCK);
    home.ask(3, 1, 2, &y, SyncOp::BarrierWait { parties: 2 });
    home.ask(1, 1, 2, &y, SyncOp::BarrierWait { parties: 3 });
    // Its first words, and the last of the one before.
    assert_eq!(home.ask(3, 3, 1, &y, LOCK), []);
    assert_eq!(home.ask(3, 2, 3, &y, LOCK), []);
    assert_eq!(home.0.waiting(), 2);
    let told = Ok(Abandoned { node: node(3) });
    let out = home.changed(&epoch(3, &[0, 1, 2, 3], &[(3, 3)]));
    assert_eq!(out, [(1, 1, told), (3, 1, Ok(Granted))]);
    assert_eq!(home.ask(3, 2, 4, &x, LOCK), [], "the one before is void");
    assert_eq!(home.ask(3, 3, 2, &y, unlock(1)), [(3, 2, Ok(Unlocked))]);
    assert_eq!((home.0.waiting(), home.0.tickets()), (0, 1));
}

#[test]
fn a_home_waits_for_no_report_from_before_a_join() {
    let (mut home, x) = (Home::of(&first()), name(&[3, 0]));
    home.changed(&epoch(2, &[0, 1, 2], &[]));
    assert_eq!(home.ask(1, 2, 1, &x, LOCK), []);
    home.report(0, 2, &[]);
    home.report(1, 2, &[]);
    home.changed(&epoch(3, &[0, 1, 2, 4], &[(4, 3)]));
    // Node 2 was told of both at once; the newcomer may know of more, and then more is to be told.
    assert_eq!(home.report(2, 3, &[hold(9, &x, Held::Mutex)]), []);
    assert_eq!(home.report(4, 4, &[]), []);
    assert_eq!(home.changed(&epoch(4, &[0, 1, 2, 3, 4], &[(4, 3), (3, 4)])), []);
    assert_eq!(home.report(3, 4, &[]), [], "node 2 holds it");
    assert_eq!(home.ask(2, 3, 10, &x, unlock(9)), [(2, 10, Ok(Unlocked)), (1, 1, Ok(Granted))]);
}

#[test]
fn what_a_process_reported_goes_with_it_also_if_nobody_was_told_of_it() {
    let (mut home, x) = (Home::of(&first()), name(&[3, 0]));
    // Node 4 joined in epoch 2, and node 3 was lost in epoch 3.
    home.report(4, 3, &[hold(1, &x, Held::Mutex)]);
    home.changed(&epoch(4, &[0, 1, 2], &[]));
    home.changed(&epoch(6, &[0, 1, 2, 4], &[(4, 5)]));
    for from in [0, 1, 2, 4] {
        home.report(from, 6, &[]);
    }
    let told = Ok(Abandoned { node: node(3) });
    assert_eq!(home.ask(1, 6, 1, &x, LOCK), [(1, 1, told)]);
}

#[test]
fn a_home_that_is_told_of_a_later_epoch_first_rebuilds() {
    let x = name(&[3, 0]);
    let mut home = Home::of(&epoch(3, &[0, 1, 2], &[]));
    assert_eq!(home.ask(1, 3, 1, &x, LOCK), []);
    for from in 0..3 {
        let holds = [hold(9, &x, Held::Mutex)];
        assert_eq!(home.report(from, 3, if from == 2 { &holds } else { &[] }), []);
    }
    assert_eq!(home.ask(2, 3, 10, &x, unlock(9)), [(2, 10, Ok(Unlocked)), (1, 1, Ok(Granted))]);
    // One that is listed and was not there at first was no home.
    let mut home = Home::of(&epoch(1, &[0, 1, 2], &[]));
    assert_eq!(home.ask(1, 1, 1, &x, LOCK), [(1, 1, Ok(Granted))]);
}

#[test]
fn who_has_the_number_of_a_lost_home_is_silent_to_those_who_do_not_know() {
    let mut home = Home::of(&epoch(3, &[0, 1, 2, 3], &[(0, 3)]));
    let x = name(&[0]);
    assert_eq!(home.ask(1, 1, 1, &x, LOCK), []);
    assert_eq!(home.ask(1, 3, 1, &x, LOCK), [(1, 1, Err(SyncError::NotHome))]);
}

#[test]
fn replies_say_for_which_process_they_are() {
    let (mut home, x) = (Home::of(&first()), name(&[0]));
    let epoch_of = |replies: Vec<(_, SyncReply)>| replies.first().map(|(_, reply)| reply.epoch);
    let ask =
        |epoch, ticket| SyncRequest { ticket, epoch, name: name(&[0]), op: SyncOp::CounterGet };
    assert_eq!(epoch_of(home.0.request(node(1), ask(1, 1))), Some(1));
    home.changed(&fifth());
    assert_eq!(epoch_of(home.0.request(node(1), ask(1, 2))), Some(2));
    // The refusal to keep one more goes to the process that asked.
    let refused =
        (0..=KEPT_MAX).find_map(|ticket| epoch_of(home.0.request(node(1), ask(7, ticket))));
    assert_eq!(refused, Some(7));

    let mut client = SyncClient::new(NODES, &epoch(3, &[0, 1, 2, 3], &[(3, 3)]));
    client.request(1, x, LOCK, 1);
    let old = SyncReply { ticket: 1, epoch: 2, result: Ok(Granted) };
    assert_eq!(client.reply(node(0), &old), []);
    let new = SyncReply { epoch: 3, ..old };
    assert_eq!(answers(&client.reply(node(0), &new)), [(1, Ok(Granted))]);
}

#[test]
fn a_newcomer_reports_to_all_homes_and_others_at_each_change() {
    let nothing = |epoch| {
        let report = SyncReport { epoch, last: true, holds: vec![] };
        move |to: usize| (to, ToHome::Report(report.clone()))
    };
    let newcomer = SyncClient::<u64>::new(NODES, &epoch(5, &[0, 1, 3, 4], &[(3, 4), (4, 5)]));
    assert_eq!(sent(newcomer.begin()), [0, 1].map(nothing(5)));
    let mut other = SyncClient::<u64>::new(NODES, &first());
    assert_eq!(other.begin(), []);
    let output = sent(other.changed(&fifth()));
    assert_eq!(output, [0, 1, 2, 3].map(nothing(2)));
    assert_eq!(other.changed(&fifth()), [], "told twice");
}

#[test]
fn a_client_leaves_meetings_that_its_home_may_not_end() {
    let (mut client, x) = (SyncClient::new(NODES, &fifth()), name(&[0]));
    let meet = SyncOp::BarrierWait { parties: 5 };
    let leave = |ticket| (0, request(3, ticket, &name(&[0]), SyncOp::Cancel { waiter: ticket }));
    (1..=3).for_each(|ticket| {
        client.request(ticket, x.clone(), meet, ticket);
    });
    let output = sent(client.changed(&epoch(3, &[0, 1, 2, 3], &[])));
    assert_eq!(output[4..], [1, 2, 3].map(leave));
    let broken = Err(SyncError::BarrierBroken { node: node(4), epoch: 3 });
    let cancelled = client.reply(node(0), &reply(1, Ok(Outcome::Cancelled)));
    assert_eq!(answers(&cancelled), [(1, broken)]);
    // The home knew, or all were there before.
    for (ticket, result) in [(2, broken), (3, Ok(Passed { index: 0 }))] {
        assert_eq!(answers(&client.reply(node(0), &reply(ticket, result))), [(ticket, result)]);
        assert_eq!(client.reply(node(0), &reply(ticket, Ok(Outcome::NotWaiting))), []);
    }
    assert_eq!(client.open(), 0);
}

#[test]
fn without_a_home_requests_end_and_locks_are_released() {
    let (mut client, x) = (SyncClient::new(NODES, &first()), name(&[3]));
    for ticket in 1..=2 {
        client.request(ticket, x.clone(), SyncOp::ReadLock, ticket);
        client.reply(node(3), &reply(ticket, Ok(Granted)));
    }
    client.request(3, x.clone(), SyncOp::WriteLock, 3);
    let none = Err(SyncError::NoHome);
    let output = client.changed(&epoch(9, &[0, 1], &[(0, 8), (1, 9)]));
    assert_eq!((sent(output.clone()), answers(&output)), (vec![], vec![(3, none)]));
    let read_unlock = SyncOp::ReadUnlock { holder: 1 };
    let ends = [
        (read_unlock, Ok(Unlocked)),
        (read_unlock, Err(SyncError::NotHolder)),
        (SyncOp::Cancel { waiter: 3 }, Ok(Outcome::NotWaiting)),
        (LOCK, none),
        (SyncOp::BarrierWait { parties: EVERY_NODE }, none),
        (SyncOp::CounterGet, none),
    ];
    for (op, end) in ends {
        let output = client.request(5, x.clone(), op, 5);
        assert_eq!((sent(output.clone()), answers(&output)), (vec![], vec![(5, end)]));
    }
    assert_eq!(client.give_up(2), []);
    assert_eq!((client.open(), client.held()), (0, 0));
}

#[test]
fn nonsense_of_a_member_stays_bounded_and_goes_with_it() {
    let (mut home, x) = (Home::of(&first()), name(&[0]));
    assert_eq!(plain(home.0.request(node(63), unknown(1))), [], "no member");
    for ticket in 0..=KEPT_MAX {
        home.ask(3, u16::MAX, ticket, &x, LOCK);
    }
    assert_eq!(home.0.waiting() as u64, KEPT_MAX);
    home.report(3, u16::MAX, &[hold(1, &x, Held::Mutex)]);
    home.report(3, u16::MAX, &[hold(2, &x, Held::Mutex)]);
    // Others are served, and after the next loss, too.
    assert_eq!(home.ask(1, 1, 1, &x, LOCK), [(1, 1, Ok(Granted))]);
    home.changed(&epoch(2, &[0, 1, 2], &[]));
    for from in 0..3 {
        home.report(from, 2, &[]);
    }
    let told = Ok(Abandoned { node: node(3) });
    assert_eq!(home.ask(1, 2, 2, &name(&[3, 0]), LOCK), [(1, 2, told)]);
}

fn unknown(ticket: u64) -> SyncRequest {
    SyncRequest { ticket, epoch: 0, name: name(&[0]), op: LOCK }
}
