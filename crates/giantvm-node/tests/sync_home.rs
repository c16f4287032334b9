//! Synchronisation objects against tables of what must come out, and against a plain model.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use std::collections::HashMap;

use dsm_core::types::{Epoch, NodeId, NodeSet};
use giantvm_node::limits::{SYNC_OBJECTS_MAX, SYNC_QUEUE_MAX, SYNC_TICKETS_PER_NODE_MAX};
use giantvm_node::sync::{Kind, Outcome, SyncError, SyncHome, SyncName, SyncOp, SyncRequest};
use proptest::prelude::*;

use Outcome::{Busy, Cancelled, Granted, NotWaiting, Passed, Unlocked, Value};
use SyncOp::{
    BarrierWait, Cancel, CompareExchange, CounterAdd, CounterGet, CounterSet, GiveBack, MutexLock,
    MutexTryLock, MutexUnlock, ReadLock, ReadTryLock, ReadUnlock, WriteLock, WriteTryLock,
    WriteUnlock,
};

type Result = std::result::Result<Outcome, SyncError>;
/// Who asks (ticket = node * 100 + n), what, and the replies: (ticket, result).
type Row = (u64, SyncOp, &'static [(u64, Result)]);

fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

/// The home of every object.
fn new_home() -> SyncHome {
    SyncHome::new(node(0), 1, &Epoch::first(1, NodeSet::first(4)))
}

fn ask_for(home: &mut SyncHome, name: &str, ticket: u64, op: SyncOp) -> Vec<(u64, Result)> {
    let request = SyncRequest { ticket, epoch: 1, name: SyncName::new(name).unwrap(), op };
    let replies = home.request(node(ticket as usize / 100), request);
    for (to, reply) in &replies {
        assert_eq!(to.index() as u64, reply.ticket / 100, "a reply to the wrong node");
    }
    replies.into_iter().map(|(_, reply)| (reply.ticket, reply.result)).collect()
}

fn ask(home: &mut SyncHome, ticket: u64, op: SyncOp) -> Vec<(u64, Result)> {
    ask_for(home, "x", ticket, op)
}

#[test]
fn tables() {
    let tables: &[(&str, &[Row])] = &[
        (
            "a mutex goes round in the order of arrival, tries don't overtake",
            &[
                (101, MutexLock, &[(101, Ok(Granted))]),
                (201, MutexLock, &[]),
                (301, MutexLock, &[]),
                (102, MutexLock, &[]),
                (302, MutexTryLock, &[(302, Ok(Busy))]),
                (109, MutexUnlock { holder: 101 }, &[(109, Ok(Unlocked)), (201, Ok(Granted))]),
                (209, MutexUnlock { holder: 201 }, &[(209, Ok(Unlocked)), (301, Ok(Granted))]),
                (309, MutexUnlock { holder: 301 }, &[(309, Ok(Unlocked)), (102, Ok(Granted))]),
                (109, MutexUnlock { holder: 102 }, &[(109, Ok(Unlocked))]),
                (302, MutexTryLock, &[(302, Ok(Granted))]),
            ],
        ),
        (
            "a waiting writer keeps later readers out; readers enter together",
            &[
                (101, ReadLock, &[(101, Ok(Granted))]),
                (201, ReadLock, &[(201, Ok(Granted))]),
                (301, WriteLock, &[]),
                (102, ReadLock, &[]),
                (202, ReadLock, &[]),
                (203, ReadTryLock, &[(203, Ok(Busy))]),
                (302, WriteLock, &[]),
                (103, ReadLock, &[]),
                (109, ReadUnlock { holder: 101 }, &[(109, Ok(Unlocked))]),
                (209, ReadUnlock { holder: 201 }, &[(209, Ok(Unlocked)), (301, Ok(Granted))]),
                (
                    309,
                    WriteUnlock { holder: 301 },
                    &[(309, Ok(Unlocked)), (102, Ok(Granted)), (202, Ok(Granted))],
                ),
                (109, ReadUnlock { holder: 102 }, &[(109, Ok(Unlocked))]),
                (209, ReadUnlock { holder: 202 }, &[(209, Ok(Unlocked)), (302, Ok(Granted))]),
                (309, WriteUnlock { holder: 302 }, &[(309, Ok(Unlocked)), (103, Ok(Granted))]),
                (310, WriteTryLock, &[(310, Ok(Busy))]),
                (204, ReadTryLock, &[(204, Ok(Granted))]),
            ],
        ),
        (
            "a writer that gives up lets in the readers behind it",
            &[
                (101, ReadLock, &[(101, Ok(Granted))]),
                (201, WriteLock, &[]),
                (301, ReadLock, &[]),
                (209, Cancel { waiter: 201 }, &[(209, Ok(Cancelled)), (301, Ok(Granted))]),
                (209, Cancel { waiter: 201 }, &[(209, Ok(NotWaiting))]),
            ],
        ),
        (
            "a cancellation after the grant says so, and the lock is still held",
            &[
                (101, MutexLock, &[(101, Ok(Granted))]),
                (201, MutexLock, &[]),
                (109, MutexUnlock { holder: 101 }, &[(109, Ok(Unlocked)), (201, Ok(Granted))]),
                (209, Cancel { waiter: 201 }, &[(209, Ok(NotWaiting))]),
                (102, MutexTryLock, &[(102, Ok(Busy))]),
                (209, MutexUnlock { holder: 201 }, &[(209, Ok(Unlocked))]),
            ],
        ),
        (
            "what is given back goes to the next, however it was held",
            &[
                (101, ReadLock, &[(101, Ok(Granted))]),
                (201, WriteLock, &[]),
                (301, ReadLock, &[]),
                (101, GiveBack { holder: 101 }, &[(101, Ok(Unlocked)), (201, Ok(Granted))]),
                (201, GiveBack { holder: 201 }, &[(201, Ok(Unlocked)), (301, Ok(Granted))]),
            ],
        ),
        (
            "nobody cancels or unlocks for another node, or twice, or in another mode",
            &[
                (101, WriteLock, &[(101, Ok(Granted))]),
                (102, WriteLock, &[]),
                (201, Cancel { waiter: 102 }, &[(201, Ok(NotWaiting))]),
                (201, WriteUnlock { holder: 101 }, &[(201, Err(SyncError::NotHolder))]),
                (109, WriteUnlock { holder: 102 }, &[(109, Err(SyncError::NotHolder))]),
                (109, ReadUnlock { holder: 101 }, &[(109, Err(SyncError::NotHolder))]),
                (209, GiveBack { holder: 101 }, &[(209, Err(SyncError::NotHolder))]),
                (109, GiveBack { holder: 102 }, &[(109, Err(SyncError::NotHolder))]),
                (101, WriteLock, &[(101, Err(SyncError::DuplicateTicket))]),
                (102, WriteLock, &[(102, Err(SyncError::DuplicateTicket))]),
            ],
        ),
        (
            "a barrier meets, and meets again with another number",
            &[
                (101, BarrierWait { parties: 3 }, &[]),
                (201, BarrierWait { parties: 3 }, &[]),
                (
                    302,
                    BarrierWait { parties: 2 },
                    &[(302, Err(SyncError::PartiesMismatch { expected: 3, got: 2 }))],
                ),
                (209, Cancel { waiter: 201 }, &[(209, Ok(Cancelled))]),
                (102, BarrierWait { parties: 3 }, &[]),
                (
                    301,
                    BarrierWait { parties: 3 },
                    &[
                        (301, Ok(Passed { index: 2 })),
                        (101, Ok(Passed { index: 0 })),
                        (102, Ok(Passed { index: 1 })),
                    ],
                ),
                (101, BarrierWait { parties: 2 }, &[]),
                (
                    201,
                    BarrierWait { parties: 2 },
                    &[(201, Ok(Passed { index: 1 })), (101, Ok(Passed { index: 0 }))],
                ),
                (101, BarrierWait { parties: 1 }, &[(101, Ok(Passed { index: 0 }))]),
                (
                    101,
                    BarrierWait { parties: 0 },
                    &[(101, Err(SyncError::PartiesOutOfRange { got: 0, max: 16_384 }))],
                ),
            ],
        ),
        (
            "a counter keeps its value and wraps",
            &[
                (101, CounterGet, &[(101, Ok(Value(0)))]),
                (101, CounterAdd { delta: i64::MAX }, &[(101, Ok(Value(0)))]),
                (201, CounterAdd { delta: 2 }, &[(201, Ok(Value(i64::MAX)))]),
                (201, CounterGet, &[(201, Ok(Value(i64::MIN + 1)))]),
                (301, CounterSet { value: 5 }, &[(301, Ok(Value(i64::MIN + 1)))]),
                (
                    101,
                    CompareExchange { expected: 4, new: 9 },
                    &[(101, Ok(Outcome::Exchanged { done: false, before: 5 }))],
                ),
                (
                    101,
                    CompareExchange { expected: 5, new: 9 },
                    &[(101, Ok(Outcome::Exchanged { done: true, before: 5 }))],
                ),
                (201, CounterGet, &[(201, Ok(Value(9)))]),
            ],
        ),
    ];
    for (what, rows) in tables {
        let mut home = new_home();
        for (index, (ticket, op, expected)) in rows.iter().enumerate() {
            let replies = ask(&mut home, *ticket, *op);
            assert_eq!(replies.as_slice(), *expected, "{what}: row {index}");
        }
    }
}

#[test]
fn a_name_in_use_for_one_kind_is_refused_for_another() {
    let holders = [
        (MutexLock, Kind::Mutex),
        (ReadLock, Kind::RwLock),
        (BarrierWait { parties: 2 }, Kind::Barrier),
        (CounterSet { value: 1 }, Kind::Counter),
    ];
    for (hold, found) in holders {
        for (op, wanted) in holders {
            let mut home = new_home();
            ask(&mut home, 101, hold);
            let replies = ask(&mut home, 201, op);
            let refused = replies == [(201, Err(SyncError::KindMismatch { found, wanted }))];
            assert_eq!(refused, found != wanted, "{found} then {wanted}: {replies:?}");
        }
    }
}

#[test]
fn idle_objects_go_and_counters_keep_their_value() {
    let mut home = new_home();
    ask(&mut home, 101, MutexLock);
    ask(&mut home, 102, MutexUnlock { holder: 101 });
    assert_eq!((home.objects(), home.tickets()), (0, 0));
    ask(&mut home, 101, CounterAdd { delta: 3 });
    assert_eq!(home.objects(), 1);
    ask(&mut home, 101, CounterAdd { delta: -3 });
    assert_eq!(home.objects(), 0);
    assert_eq!(ask(&mut home, 101, CounterGet), [(101, Ok(Value(0)))]);
}

#[test]
fn a_node_that_leaves_hands_on_what_it_held_and_waits_no_more() {
    let mut home = new_home();
    for (name, ticket) in [("a", 101), ("a", 102), ("a", 201), ("b", 202), ("b", 103)] {
        ask_for(&mut home, name, ticket, MutexLock);
    }
    ask_for(&mut home, "c", 104, BarrierWait { parties: 2 });
    let replies = home.changed(&Epoch::first(2, NodeSet::first(4).without(node(1))));
    let tickets: Vec<_> = replies.iter().map(|(_, r)| (r.ticket, r.result)).collect();
    assert_eq!(tickets, [(201, Ok(Outcome::Abandoned { node: node(1) }))]);
    assert_eq!(home.tickets(), 2, "201 and 202 hold");
    assert_eq!(home.objects(), 2, "the barrier is idle");
    assert_eq!(ask_for(&mut home, "d", 105, MutexLock), [], "what it sent before is void");
    assert_eq!(home.objects(), 2);
    assert_eq!(
        ask_for(&mut home, "b", 209, MutexUnlock { holder: 202 }),
        [(209, Ok(Unlocked))],
        "103 is no longer next"
    );
}

#[test]
fn limits_refuse_and_what_is_released_can_be_used_again() {
    let mut home = new_home();
    for i in 0..SYNC_OBJECTS_MAX {
        let result = ask_for(&mut home, &format!("c{i}"), 101, CounterSet { value: 1 });
        assert_eq!(result, [(101, Ok(Value(0)))]);
    }
    let full = SyncError::TooManyObjects { limit: SYNC_OBJECTS_MAX as u32 };
    assert_eq!(ask_for(&mut home, "new", 101, MutexLock), [(101, Err(full))]);
    ask_for(&mut home, "c0", 101, CounterSet { value: 0 });
    assert_eq!(ask_for(&mut home, "new", 101, MutexLock), [(101, Ok(Granted))]);
}

#[test]
fn one_nodes_tickets_are_bounded_and_so_is_each_queue() {
    let mut home = new_home();
    let mut lock = |name: &str, from: usize, ticket: usize| {
        let name = SyncName::new(name).unwrap();
        let request = SyncRequest { ticket: ticket as u64, epoch: 1, name, op: MutexLock };
        home.request(node(from), request).pop().map(|(_, reply)| reply.result)
    };
    assert_eq!(lock("a", 0, 0), Some(Ok(Granted)));
    for ticket in 1..=SYNC_QUEUE_MAX {
        assert_eq!(lock("a", 0, ticket), None);
    }
    let full = SyncError::QueueFull { limit: SYNC_QUEUE_MAX as u32 };
    assert_eq!(lock("a", 1, 0), Some(Err(full)));
    for ticket in SYNC_QUEUE_MAX + 1..SYNC_TICKETS_PER_NODE_MAX {
        assert_eq!(
            lock(&format!("l{}", ticket % 8), 0, ticket).is_some(),
            ticket < SYNC_QUEUE_MAX + 9
        );
    }
    let full = SyncError::TooManyTickets { limit: SYNC_TICKETS_PER_NODE_MAX as u32 };
    assert_eq!(lock("z", 0, SYNC_TICKETS_PER_NODE_MAX), Some(Err(full)));
    assert_eq!(lock("z", 1, 1), Some(Ok(Granted)), "another node is not concerned");
}

proptest! {
    /// Whatever threads do: one writer or many readers, grants of a mode in the order of arrival,
    /// each ticket answered once, and nothing left when all are done.
    #[test]
    fn locks_keep_their_promise(steps in prop::collection::vec((0usize..12, 0u8..6), 1..200)) {
        let mut home = new_home();
        let mut next = 0;
        // What each of 12 threads does: the ticket with which it waits for or holds the lock.
        #[derive(Clone, Copy, PartialEq, Debug)]
        enum Does { Nothing, Waits(u64, bool), Holds(u64, bool) }
        let mut threads = [Does::Nothing; 12];
        let mut arrivals: Vec<u64> = Vec::new();
        let drain = (0..24).flat_map(|_| (0..12).map(|thread| (thread, 5)));
        for (thread, what) in steps.into_iter().chain(drain) {
            next += 1;
            let ticket = thread as u64 / 4 * 100_000 + next;
            let from = node(thread / 4);
            let op = match (threads[thread], what) {
                (Does::Nothing, 0) => ReadLock,
                (Does::Nothing, 1) => WriteLock,
                (Does::Nothing, 2) => ReadTryLock,
                (Does::Nothing, 3) => WriteTryLock,
                (Does::Waits(waiter, _), 4) => Cancel { waiter },
                (Does::Holds(holder, false), 5) => ReadUnlock { holder },
                (Does::Holds(holder, true), 5) => WriteUnlock { holder },
                _ => continue,
            };
            let alone = matches!(op, WriteLock | WriteTryLock);
            if matches!(op, ReadLock | WriteLock) {
                threads[thread] = Does::Waits(ticket, alone);
                arrivals.push(ticket);
            }
            let name = SyncName::new("x").unwrap();
            let replies = home.request(from, SyncRequest { ticket, epoch: 1, name, op });
            let mut answered = HashMap::new();
            for (to, reply) in replies {
                prop_assert_eq!(to.index() as u64, reply.ticket / 100_000);
                let first = answered.insert(reply.ticket, reply.result).is_none();
                prop_assert!(first, "two replies to one ticket");
                match reply.result {
                    Ok(Granted) if arrivals.contains(&reply.ticket) => {
                        prop_assert_eq!(arrivals.remove(0), reply.ticket, "overtaken");
                        let waiter = threads.iter_mut().find(|t| {
                            matches!(t, Does::Waits(ticket, _) if *ticket == reply.ticket)
                        });
                        let waiter = waiter.unwrap();
                        let Does::Waits(ticket, alone) = *waiter else { unreachable!() };
                        *waiter = Does::Holds(ticket, alone);
                    }
                    Ok(Granted) => {
                        prop_assert!(arrivals.is_empty(), "a try overtook");
                        threads[thread] = Does::Holds(ticket, alone);
                    }
                    Ok(Busy) => {}
                    Ok(Unlocked) => threads[thread] = Does::Nothing,
                    Ok(Cancelled) => {
                        let Does::Waits(waiter, _) = threads[thread] else { unreachable!() };
                        arrivals.retain(|other| *other != waiter);
                        threads[thread] = Does::Nothing;
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let writers = threads.iter().filter(|t| matches!(t, Does::Holds(_, true))).count();
            let readers = threads.iter().filter(|t| matches!(t, Does::Holds(_, false))).count();
            prop_assert!(writers == 0 || (writers == 1 && readers == 0));
            // Nobody waits for nothing.
            prop_assert!(arrivals.is_empty() || writers + readers > 0);
        }
        prop_assert!(threads.iter().all(|t| *t == Does::Nothing), "someone waits for ever");
        prop_assert_eq!((home.objects(), home.tickets()), (0, 0));
    }
}
