//! Losses and joins step by step: one home, or one client, and what must come out.

use dsm_core::types::{Epoch, NodeId, NodeSet};
use giantvm_node::limits::SYNC_OBJECTS_MAX;
use giantvm_node::sync::{
    ClientOutput, EVERY_NODE, Held, Hold, Outcome, SyncClient, SyncError, SyncHome, SyncName,
    SyncOp, SyncReply, SyncReport, SyncRequest, ToHome, home_of,
};

use crate::world::node;

use Outcome::{Abandoned, Granted, Unlocked, Value};

pub(crate) type Result = std::result::Result<Outcome, SyncError>;

pub(crate) const NODES: usize = 4;

pub(crate) fn set(nodes: &[usize]) -> NodeSet {
    nodes.iter().map(|&index| node(index)).collect()
}

/// Of all nodes, these are lost. The first epoch has number 0 here, so that a number says how many
/// are.
fn without(lost: &[usize]) -> Epoch {
    Epoch::first(lost.len() as u16, NodeSet::first(NODES).minus(set(lost)))
}

/// Names that are kept by the last of `homes`, one after the other, as the nodes before it are
/// lost.
pub(crate) fn names(homes: &[usize]) -> impl Iterator<Item = SyncName> {
    let all = (0..).map(|number| SyncName::new(&format!("name {number}")).unwrap());
    all.filter(move |name| {
        (0..homes.len())
            .all(|lost| home_of(name, NODES, set(&homes[..lost])) == Some(node(homes[lost])))
    })
}

pub(crate) fn name(homes: &[usize]) -> SyncName {
    names(homes).next().unwrap()
}

/// Node 0 as a home: what it answers node and ticket.
pub(crate) struct Home(pub(crate) SyncHome);

impl Home {
    fn new() -> Self {
        Self::of(&without(&[]))
    }

    pub(crate) fn of(epoch: &Epoch) -> Self {
        Self(SyncHome::new(node(0), NODES, epoch))
    }

    pub(crate) fn ask(
        &mut self,
        from: usize,
        epoch: u16,
        ticket: u64,
        name: &SyncName,
        op: SyncOp,
    ) -> Vec<(usize, u64, Result)> {
        let request = SyncRequest { ticket, epoch, name: name.clone(), op };
        plain(self.0.request(node(from), request))
    }

    pub(crate) fn report(
        &mut self,
        from: usize,
        epoch: u16,
        holds: &[Hold],
    ) -> Vec<(usize, u64, Result)> {
        let report = SyncReport { epoch, last: true, holds: holds.to_vec() };
        plain(self.0.report(node(from), report))
    }

    fn lost(&mut self, lost: &[usize]) -> Vec<(usize, u64, Result)> {
        self.changed(&without(lost))
    }

    pub(crate) fn changed(&mut self, epoch: &Epoch) -> Vec<(usize, u64, Result)> {
        plain(self.0.changed(epoch))
    }

    /// All but node 0 and the lost ones report nothing; then node 0.
    fn rebuild(&mut self, lost: &[usize]) -> Vec<(usize, u64, Result)> {
        let epoch = lost.len() as u16;
        let others = (0..NODES).rev().filter(|index| !lost.contains(index));
        others.flat_map(|index| self.report(index, epoch, &[])).collect()
    }
}

pub(crate) fn plain(replies: Vec<(NodeId, SyncReply)>) -> Vec<(usize, u64, Result)> {
    replies.into_iter().map(|(to, reply)| (to.index(), reply.ticket, reply.result)).collect()
}

pub(crate) fn hold(ticket: u64, name: &SyncName, held: Held) -> Hold {
    Hold { ticket, name: name.clone(), held, abandoned: None }
}

pub(crate) const LOCK: SyncOp = SyncOp::MutexLock;
const READ: SyncOp = SyncOp::ReadLock;
const WRITE: SyncOp = SyncOp::WriteLock;

pub(crate) fn unlock(holder: u64) -> SyncOp {
    SyncOp::MutexUnlock { holder }
}

#[test]
fn the_next_holder_of_what_a_lost_node_held_is_told_once() {
    let (mut home, x) = (Home::new(), name(&[0]));
    assert_eq!(home.ask(3, 0, 1, &x, LOCK), [(3, 1, Ok(Granted))]);
    assert_eq!(home.ask(1, 0, 2, &x, LOCK), []);
    assert_eq!(home.ask(3, 0, 3, &x, LOCK), []);
    assert_eq!(home.ask(2, 0, 4, &x, LOCK), []);
    let told = Ok(Abandoned { node: node(3) });
    assert_eq!(home.lost(&[3]), [(1, 2, told)]);
    assert_eq!(home.ask(1, 0, 5, &x, unlock(2)), [(1, 5, Ok(Unlocked)), (2, 4, Ok(Granted))]);
    assert_eq!(home.ask(3, 0, 6, &x, LOCK), [], "what a lost node sent is void");
    assert_eq!(home.0.tickets(), 1);
}

#[test]
fn an_abandoned_lock_waits_for_its_next_holder() {
    let (mut home, x) = (Home::new(), name(&[0]));
    home.ask(3, 0, 1, &x, LOCK);
    assert_eq!(home.lost(&[3]), []);
    assert_eq!((home.0.objects(), home.0.tickets()), (1, 0));
    let told = Ok(Abandoned { node: node(3) });
    assert_eq!(home.ask(1, 1, 2, &x, SyncOp::MutexTryLock), [(1, 2, told)]);
    // Its caller had turned away: the next is told.
    assert_eq!(home.ask(1, 1, 2, &x, SyncOp::GiveBack { holder: 2 }), [(1, 2, Ok(Unlocked))]);
    assert_eq!(home.ask(2, 1, 3, &x, LOCK), [(2, 3, told)]);
    assert_eq!(home.ask(2, 1, 4, &x, unlock(3)), [(2, 4, Ok(Unlocked))]);
    assert_eq!(home.0.objects(), 0);
}

#[test]
fn readers_are_told_until_a_writer_is() {
    let (mut home, x) = (Home::new(), name(&[0]));
    home.ask(3, 0, 1, &x, WRITE);
    for (ticket, op) in [(2, READ), (3, READ), (4, WRITE), (5, READ)] {
        assert_eq!(home.ask(1, 0, ticket, &x, op), []);
    }
    let told = Ok(Abandoned { node: node(3) });
    assert_eq!(home.lost(&[3]), [(1, 2, told), (1, 3, told)]);
    home.ask(1, 1, 6, &x, SyncOp::ReadUnlock { holder: 2 });
    let next = home.ask(1, 1, 7, &x, SyncOp::ReadUnlock { holder: 3 });
    assert_eq!(next, [(1, 7, Ok(Unlocked)), (1, 4, told)]);
    let next = home.ask(1, 1, 8, &x, SyncOp::WriteUnlock { holder: 4 });
    assert_eq!(next, [(1, 8, Ok(Unlocked)), (1, 5, Ok(Granted))]);
}

#[test]
fn lost_readers_leave_nothing_half_done() {
    let (mut home, x) = (Home::new(), name(&[0]));
    home.ask(3, 0, 1, &x, READ);
    home.ask(1, 0, 2, &x, WRITE);
    assert_eq!(home.lost(&[3]), [(1, 2, Ok(Granted))]);
}

#[test]
fn a_loss_breaks_meetings_also_of_those_who_do_not_know_of_it() {
    let (mut home, x) = (Home::new(), name(&[0]));
    let meet = SyncOp::BarrierWait { parties: 3 };
    home.ask(1, 0, 1, &x, meet);
    home.ask(3, 0, 2, &x, meet);
    let broken = Err(SyncError::BarrierBroken { node: node(3), epoch: 1 });
    assert_eq!(home.lost(&[3]), [(1, 1, broken)]);
    assert_eq!(home.ask(2, 0, 3, &x, meet), [(2, 3, broken)]);
    // One that knows of another loss, which the home will be told of.
    assert_eq!(home.ask(1, 2, 4, &x, SyncOp::BarrierWait { parties: 1 }), []);
    assert_eq!(home.0.waiting(), 1);
    home.lost(&[3, 2]);
    assert_eq!((home.0.waiting(), home.0.tickets()), (0, 0));
}

#[test]
fn counters_keep_their_value_at_their_home_and_lose_it_with_it() {
    let mut home = Home::new();
    let (stays, moved, lock) = (name(&[0]), name(&[3, 0]), names(&[3, 0]).nth(1).unwrap());
    home.ask(1, 0, 1, &stays, SyncOp::CounterAdd { delta: 7 });
    home.lost(&[3]);
    home.rebuild(&[3]);
    assert_eq!(home.ask(1, 1, 2, &stays, SyncOp::CounterGet), [(1, 2, Ok(Value(7)))]);
    let lost = Err(SyncError::ValueLost { node: node(3) });
    for op in [
        SyncOp::CounterGet,
        SyncOp::CounterAdd { delta: 1 },
        SyncOp::CompareExchange { expected: 0, new: 1 },
    ] {
        assert_eq!(home.ask(1, 1, 3, &moved, op), [(1, 3, lost)]);
    }
    assert_eq!(home.0.objects(), 1);
    home.ask(1, 1, 4, &moved, SyncOp::CounterSet { value: 1 });
    home.ask(1, 1, 5, &moved, SyncOp::CounterAdd { delta: -1 });
    assert_eq!(home.ask(2, 1, 6, &moved, SyncOp::CounterGet), [(2, 6, Ok(Value(0)))]);
    home.ask(1, 1, 7, &lock, LOCK);
    let refused = home.ask(1, 1, 8, &lock, SyncOp::CounterGet);
    assert!(matches!(refused[..], [(1, 8, Err(SyncError::KindMismatch { .. }))]), "{refused:?}");
}

#[test]
fn a_new_home_serves_when_all_have_told_what_they_hold() {
    let mut home = Home::new();
    let [held, read, free] = names(&[3, 0]).take(3).collect::<Vec<_>>().try_into().unwrap();
    home.lost(&[3]);
    assert_eq!(home.ask(1, 1, 1, &held, LOCK), []);
    assert_eq!(home.ask(2, 1, 2, &free, LOCK), []);
    assert_eq!(home.ask(2, 1, 3, &name(&[0]), LOCK), [(2, 3, Ok(Granted))], "it did not move");
    assert_eq!(home.report(2, 1, &[hold(10, &held, Held::Mutex), hold(11, &read, Held::Read)]), []);
    assert_eq!(home.report(1, 1, &[hold(12, &read, Held::Read)]), []);
    let told = Ok(Abandoned { node: node(3) });
    assert_eq!(home.report(0, 1, &[]), [(2, 2, told)]);
    assert_eq!(home.ask(2, 1, 4, &held, unlock(10)), [(2, 4, Ok(Unlocked)), (1, 1, Ok(Granted))]);
    assert_eq!(home.ask(0, 1, 5, &read, WRITE), []);
    home.ask(2, 1, 6, &read, SyncOp::ReadUnlock { holder: 11 });
    let last = home.ask(1, 1, 7, &read, SyncOp::ReadUnlock { holder: 12 });
    assert_eq!(last, [(1, 7, Ok(Unlocked)), (0, 5, Ok(Granted))]);
    // It was seen free: the next holder has nothing to look after.
    home.ask(2, 1, 8, &free, unlock(2));
    assert_eq!(home.ask(1, 1, 9, &free, LOCK), [(1, 9, Ok(Granted))]);
}

#[test]
fn a_second_loss_while_a_home_rebuilds_changes_whom_it_waits_for() {
    let (mut home, x) = (Home::new(), name(&[3, 0]));
    home.lost(&[3]);
    assert_eq!(home.ask(1, 1, 1, &x, LOCK), []);
    home.report(0, 1, &[]);
    // Node 1 knows more: its report is for both losses.
    assert_eq!(home.report(1, 2, &[]), []);
    assert_eq!(home.report(2, 1, &[hold(10, &x, Held::Mutex)]), []);
    assert_eq!(home.lost(&[3, 2]), []);
    assert_eq!(home.report(0, 2, &[]), [(1, 1, Ok(Abandoned { node: node(3) }))]);
    assert_eq!(home.0.waiting(), 0);
}

#[test]
fn reports_that_cannot_be_are_refused() {
    let mut home = Home::new();
    let [held, other] = names(&[3, 0]).take(2).collect::<Vec<_>>().try_into().unwrap();
    let here = name(&[0]);
    assert_eq!(home.ask(1, 0, 1, &here, LOCK), [(1, 1, Ok(Granted))]);
    home.lost(&[3]);
    home.report(3, 1, &[hold(30, &other, Held::Mutex)]);
    let claims = [
        hold(10, &held, Held::Mutex),
        hold(10, &other, Held::Mutex),
        hold(11, &here, Held::Mutex),
        hold(12, &name(&[3, 1]), Held::Mutex),
    ];
    home.report(1, 1, &claims);
    home.report(2, 1, &[hold(20, &held, Held::Mutex), hold(21, &held, Held::Read)]);
    home.report(0, 1, &[]);
    assert_eq!(home.0.tickets(), 2, "1 and 10");
    home.report(1, 1, &[hold(13, &other, Held::Mutex)]);
    assert_eq!(home.ask(2, 1, 2, &held, LOCK), []);
    let told = Ok(Abandoned { node: node(3) });
    assert_eq!(home.ask(2, 1, 3, &other, LOCK), [(2, 3, told)]);
    let not_here = home.ask(2, 1, 4, &name(&[1]), LOCK);
    assert_eq!(not_here, [(2, 4, Err(SyncError::NotHome))]);
}

#[test]
fn more_free_locks_than_it_remembers_are_abandoned_once_more() {
    let mut home = Home::new();
    home.lost(&[3]);
    home.rebuild(&[3]);
    let mut use_once = |name: &SyncName| {
        let told = home.ask(1, 1, 1, name, LOCK);
        home.ask(1, 1, 2, name, unlock(1));
        told[0].2
    };
    let told = Ok(Abandoned { node: node(3) });
    let first = name(&[3, 0]);
    assert_eq!([use_once(&first), use_once(&first)], [told, Ok(Granted)]);
    for name in names(&[3, 0]).take(SYNC_OBJECTS_MAX + 1).skip(1) {
        assert_eq!(use_once(&name), told);
    }
    assert_eq!([use_once(&first), use_once(&first)], [told, Ok(Granted)]);
}

// The client.

pub(crate) fn sent(output: Vec<ClientOutput<u64>>) -> Vec<(usize, ToHome)> {
    let send = |output| match output {
        ClientOutput::Send { to, message } => Some((to.index(), message)),
        ClientOutput::Answer { .. } => None,
    };
    output.into_iter().filter_map(send).collect()
}

pub(crate) fn answers(output: &[ClientOutput<u64>]) -> Vec<(u64, Result)> {
    let answer = |output: &ClientOutput<u64>| match output {
        ClientOutput::Answer { reply_to, result } => Some((*reply_to, *result)),
        ClientOutput::Send { .. } => None,
    };
    output.iter().filter_map(answer).collect()
}

/// A reply of the last epoch that there is here.
pub(crate) fn reply(ticket: u64, result: Result) -> SyncReply {
    SyncReply { ticket, epoch: 9, result }
}

pub(crate) fn request(epoch: u16, ticket: u64, name: &SyncName, op: SyncOp) -> ToHome {
    ToHome::Request(SyncRequest { ticket, epoch, name: name.clone(), op })
}

#[test]
fn what_was_asked_of_a_lost_home_ends_or_is_sent_again() {
    let mut client = SyncClient::new(NODES, &without(&[]));
    let x = name(&[3, 0]);
    let grant = |client: &mut SyncClient<u64>, ticket| {
        client.request(ticket, x.clone(), READ, ticket);
        client.reply(node(3), &reply(ticket, Ok(Granted)));
    };
    (1..=2).for_each(|ticket| grant(&mut client, ticket));
    let ops = [
        (3, LOCK),
        (4, LOCK),
        (5, SyncOp::MutexTryLock),
        (6, SyncOp::Cancel { waiter: 4 }),
        (7, SyncOp::ReadUnlock { holder: 1 }),
        (8, SyncOp::WriteUnlock { holder: 2 }),
        (9, SyncOp::BarrierWait { parties: 2 }),
        (10, SyncOp::CounterAdd { delta: 1 }),
        (11, SyncOp::Cancel { waiter: 10 }),
    ];
    for (ticket, op) in ops {
        assert_eq!(client.request(ticket, x.clone(), op, ticket).len(), 1);
    }
    let output = client.changed(&without(&[3]));
    let broken = SyncError::BarrierBroken { node: node(3), epoch: 1 };
    let ends = [
        (7, Ok(Unlocked)),
        (8, Err(SyncError::NotHolder)),
        (9, Err(broken)),
        (10, Err(SyncError::ValueLost { node: node(3) })),
        (6, Ok(Outcome::Cancelled)),
        (11, Ok(Outcome::NotWaiting)),
    ];
    assert_eq!(answers(&output), ends);
    let report = |holds| ToHome::Report(SyncReport { epoch: 1, last: true, holds });
    let messages = vec![
        (0, report(vec![hold(2, &x, Held::Read)])),
        (1, report(vec![])),
        (2, report(vec![])),
        (0, request(1, 3, &x, LOCK)),
        (0, request(1, 5, &x, SyncOp::MutexTryLock)),
    ];
    assert_eq!(sent(output), messages);
    let late = reply(3, Ok(Granted));
    assert_eq!(client.reply(node(3), &late), [], "the lost home's grant is void");
    assert_eq!(answers(&client.reply(node(0), &late)), [(3, Ok(Granted))]);
    assert_eq!((client.open(), client.held()), (1, 2));
}

#[test]
fn a_long_report_comes_in_parts() {
    let mut client = SyncClient::new(NODES, &without(&[]));
    for (ticket, name) in (0..).zip(names(&[3, 0]).take(40)) {
        client.request(ticket, name, LOCK, ticket);
        client.reply(node(3), &reply(ticket, Ok(Granted)));
    }
    let parts = sent(client.changed(&without(&[3]))).into_iter().filter(|(to, _)| *to == 0);
    let parts = parts.map(|(_, message)| match message {
        ToHome::Report(report) => (report.holds.len(), report.last),
        ToHome::Request(request) => panic!("{request:?}"),
    });
    assert_eq!(parts.collect::<Vec<_>>(), [(19, false), (19, false), (2, true)]);
}

#[test]
fn who_waits_at_a_barrier_is_told_of_a_loss_when_its_node_is() {
    let mut client = SyncClient::new(NODES, &without(&[]));
    let x = name(&[0]);
    let meet = |client: &mut SyncClient<u64>, ticket| {
        sent(client.request(ticket, x.clone(), SyncOp::BarrierWait { parties: EVERY_NODE }, ticket))
    };
    let all = SyncOp::BarrierWait { parties: EVERY_NODE };
    assert_eq!(meet(&mut client, 1), [(0, request(0, 1, &x, all))]);
    let broken = Err(SyncError::BarrierBroken { node: node(3), epoch: 1 });
    assert_eq!(client.reply(node(0), &reply(1, broken)), []);
    assert_eq!(answers(&client.changed(&without(&[3]))), [(1, broken)]);
    assert_eq!(meet(&mut client, 2), [(0, request(1, 2, &x, all))]);
}

#[test]
fn a_lock_that_comes_when_nobody_waits_any_more_is_given_back() {
    for granted_first in [false, true] {
        let mut client = SyncClient::new(NODES, &without(&[]));
        let x = name(&[0]);
        client.request(1, x.clone(), LOCK, 1);
        let grant = reply(1, Ok(Granted));
        let output = if granted_first {
            client.reply(node(0), &grant);
            client.give_up(1)
        } else {
            assert_eq!(client.give_up(1), []);
            client.reply(node(0), &grant)
        };
        assert_eq!(sent(output), [(0, request(0, 1, &x, SyncOp::GiveBack { holder: 1 }))]);
        assert_eq!(client.reply(node(0), &reply(1, Ok(Unlocked))), []);
        assert_eq!((client.open(), client.held()), (0, 0));
    }
}
