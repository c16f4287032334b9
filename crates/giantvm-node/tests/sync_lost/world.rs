//! A small world for locks, barriers and counters: nodes with threads, ordered links on which
//! messages take their time, nodes that stop, and survivors that are told of it some time later. It
//! checks what is promised after every single step.

use std::collections::{HashMap, VecDeque};

use dsm_core::types::{NodeId, NodeSet};
use giantvm_node::sync::{
    ClientOutput, EVERY_NODE, Outcome, SyncClient, SyncError, SyncHome, SyncName, SyncOp,
    SyncReply, ToHome, home_of,
};

use crate::model::Model;

pub(crate) fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) as usize % limit.max(1)
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// What happened how often, over all histories: a test in which nothing happens proves nothing.
#[derive(Default, Debug)]
pub(crate) struct Seen(pub(crate) HashMap<&'static str, u64>);

impl Seen {
    pub(crate) fn note(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thread {
    Idle,
    /// Waits for the answer to a ticket, and for that to its cancellation, if there is one.
    Waits(u64, Option<u64>),
    Holds(u64),
    /// Waits for the end of an unlock.
    Unlocks(u64),
}

struct Site {
    client: SyncClient<u64>,
    home: SyncHome,
    up: bool,
    /// How many losses it was told of.
    told: usize,
    threads: [Thread; 3],
}

enum Message {
    ToHome(ToHome),
    Reply(SyncReply),
}

/// What is known of a ticket.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) node: usize,
    pub(crate) name: SyncName,
    pub(crate) op: SyncOp,
    /// The sender's epoch, when it was sent last.
    pub(crate) epoch: u16,
}

pub(crate) struct World<'a> {
    random: Random,
    seen: &'a mut Seen,
    sites: Vec<Site>,
    /// From each to each.
    links: Vec<Vec<VecDeque<Message>>>,
    /// In the order in which they stopped.
    losses: Vec<NodeId>,
    tickets: HashMap<u64, Ticket>,
    last_ticket: u64,
    names: [Vec<SyncName>; 4],
    model: Model,
}

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, seen: &'a mut Seen) -> Self {
        let mut random = Random(seed);
        let nodes = 3 + random.below(3);
        let site = |index| Site {
            client: SyncClient::new(nodes),
            home: SyncHome::new(node(index), nodes),
            up: true,
            told: 0,
            threads: [Thread::Idle; 3],
        };
        let names = ["mutex", "rwlock", "barrier", "counter"].map(|kind| {
            (0..3).map(|i| SyncName::new(&format!("{kind} {i} of {seed}")).unwrap()).collect()
        });
        Self {
            random,
            seen,
            sites: (0..nodes).map(site).collect(),
            links: (0..nodes).map(|_| (0..nodes).map(|_| VecDeque::new()).collect()).collect(),
            losses: Vec::new(),
            tickets: HashMap::new(),
            last_ticket: 0,
            names,
            model: Model::default(),
        }
    }

    /// Plays one history to its end.
    pub(crate) fn play(&mut self) {
        let steps = 100 + self.random.below(300);
        let losses = self.random.below(3);
        let moments: Vec<usize> = (0..losses).map(|_| self.random.below(steps)).collect();
        // In some histories messages pile up, in others survivors learn late.
        let (slow, late) = (1 + self.random.below(4), 2 + self.random.below(40));
        for step in 0..steps {
            for _ in moments.iter().filter(|moment| **moment == step) {
                self.lose();
            }
            if self.random.one_in(late) {
                self.tell();
            }
            if self.random.one_in(slow) {
                self.arrive();
            }
            let (index, thread) = (self.random.below(self.sites.len()), self.random.below(3));
            if self.sites[index].up {
                self.act(index, thread);
            }
        }
        self.come_to_rest();
        self.probe();
    }

    fn lost(&self, told: usize) -> NodeSet {
        self.losses.iter().take(told).copied().collect()
    }

    /// A node stops; of what it sent last, some never arrives.
    fn lose(&mut self) {
        let up: Vec<usize> = (0..self.sites.len()).filter(|&i| self.sites[i].up).collect();
        let victim = up[self.random.below(up.len())];
        if self.sites.iter().any(|site| site.up && site.home.waiting() > 0) {
            self.seen.note("loss while requests wait");
        }
        for link in &mut self.links[victim] {
            let rest = self.random.below(link.len() + 1);
            link.truncate(rest);
        }
        let (nodes, lost) = (self.sites.len(), self.lost(usize::MAX));
        for name in self.names.iter().flatten() {
            if home_of(name, nodes, lost) == Some(node(victim)) {
                self.model.home_lost(name);
            }
        }
        for thread in self.sites[victim].threads {
            match thread {
                Thread::Holds(ticket) => self.model.holder_lost(&self.tickets[&ticket], ticket),
                Thread::Waits(ticket, _) | Thread::Unlocks(ticket) => {
                    self.model.interest_lost(&self.tickets[&ticket].name);
                }
                Thread::Idle => {}
            }
        }
        self.model.given_up_lost(victim);
        self.sites[victim].up = false;
        self.losses.push(node(victim));
    }

    /// A survivor is told of one loss or more.
    fn tell(&mut self) {
        let all = self.losses.len();
        let late: Vec<usize> = (0..self.sites.len())
            .filter(|&i| self.sites[i].up && self.sites[i].told < all)
            .collect();
        if late.is_empty() {
            return;
        }
        let index = late[self.random.below(late.len())];
        let told = self.sites[index].told + 1;
        let told = told + self.random.below(all - told + 1);
        if told > self.sites[index].told + 1 {
            self.seen.note("two losses told at once");
        }
        self.sites[index].told = told;
        let lost = self.lost(told);
        let replies = self.sites[index].home.lost(lost);
        self.replies(index, replies);
        let output = self.sites[index].client.lost(lost);
        self.output(index, output);
    }

    /// A message arrives.
    fn arrive(&mut self) -> bool {
        let nodes = self.sites.len();
        let full: Vec<(usize, usize)> = (0..nodes * nodes)
            .map(|link| (link / nodes, link % nodes))
            .filter(|&(from, to)| self.sites[to].up && !self.links[from][to].is_empty())
            .collect();
        if full.is_empty() {
            return false;
        }
        let (from, to) = full[self.random.below(full.len())];
        match self.links[from][to].pop_front().unwrap() {
            Message::ToHome(message) => self.at_home(from, to, message),
            Message::Reply(reply) => {
                let output = self.sites[to].client.reply(node(from), &reply);
                self.output(to, output);
            }
        }
        true
    }

    fn at_home(&mut self, from: usize, to: usize, message: ToHome) {
        let home = &mut self.sites[to].home;
        let replies = match message {
            ToHome::Request(request) => home.request(node(from), request),
            ToHome::Report(report) => {
                if !report.holds.is_empty() {
                    self.seen.note("held lock reported");
                }
                home.report(node(from), report)
            }
        };
        self.replies(to, replies);
    }

    fn replies(&mut self, from: usize, replies: Vec<(NodeId, SyncReply)>) {
        self.check_meetings(from, &replies);
        for (to, reply) in replies {
            if to == node(from) {
                let output = self.sites[from].client.reply(to, &reply);
                self.output(from, output);
            } else {
                self.links[from][to.index()].push_back(Message::Reply(reply));
            }
        }
    }

    /// No meeting has fewer parties than it should, or one that does not know what its home knows.
    fn check_meetings(&mut self, home: usize, replies: &[(NodeId, SyncReply)]) {
        // By name and by who came as the how-manieth: there may be more than one meeting.
        let mut met: HashMap<(&SyncName, u32), HashMap<u32, usize>> = HashMap::new();
        let told = self.sites[home].told;
        for (to, reply) in replies {
            let Ok(Outcome::Passed { index }) = reply.result else { continue };
            let ticket = &self.tickets[&reply.ticket];
            let SyncOp::BarrierWait { parties } = ticket.op else { panic!("{ticket:?} passed") };
            assert_eq!(usize::from(ticket.epoch), told, "a party from before a loss");
            assert!(!self.lost(told).contains(*to), "a lost party");
            *met.entry((&ticket.name, parties)).or_default().entry(index).or_default() += 1;
        }
        for ((name, parties), came) in met {
            let meetings = came.values().max().copied().unwrap_or(0);
            let all = (0..parties).all(|index| came.get(&index) == Some(&meetings));
            assert!(all && came.len() == parties as usize, "{name}: {came:?} of {parties}");
            self.seen.note("barrier passed");
        }
    }

    fn output(&mut self, at: usize, output: Vec<ClientOutput<u64>>) {
        for output in output {
            match output {
                ClientOutput::Send { to, message } => {
                    if let ToHome::Request(request) = &message
                        && !matches!(request.op, SyncOp::GiveBack { .. })
                    {
                        let (name, op, epoch) = (request.name.clone(), request.op, request.epoch);
                        let sent = Ticket { node: at, name, op, epoch };
                        self.tickets.insert(request.ticket, sent);
                    }
                    if to == node(at) {
                        self.at_home(at, at, message);
                    } else {
                        self.links[at][to.index()].push_back(Message::ToHome(message));
                    }
                }
                ClientOutput::Answer { reply_to, result } => self.answer(at, reply_to, result),
            }
        }
    }

    fn ask(&mut self, name: &SyncName, op: SyncOp) -> u64 {
        self.last_ticket += 1;
        self.model.asked(name, op);
        self.last_ticket
    }

    fn send(&mut self, at: usize, ticket: u64, name: SyncName, op: SyncOp) {
        let output = self.sites[at].client.request(ticket, name, op, ticket);
        self.output(at, output);
    }

    /// A thread does something.
    fn act(&mut self, at: usize, thread: usize) {
        match self.sites[at].threads[thread] {
            Thread::Idle => self.begin(at, thread),
            Thread::Waits(ticket, None) if self.random.one_in(8) => {
                self.cancel(at, thread, ticket);
            }
            Thread::Waits(ticket, Some(_)) if self.random.one_in(8) => {
                self.seen.note("given up");
                self.model.gave_up(at, &self.tickets[&ticket].name, ticket);
                self.sites[at].threads[thread] = Thread::Idle;
                let output = self.sites[at].client.give_up(ticket);
                self.output(at, output);
            }
            Thread::Holds(holder) if self.random.one_in(3) => self.unlock(at, thread, holder),
            _ => {}
        }
    }

    fn begin(&mut self, at: usize, thread: usize) {
        let kind = [0, 0, 1, 1, 2, 3][self.random.below(6)];
        let which = self.random.below(3);
        let name = self.names[kind][which].clone();
        let op = match (kind, self.random.below(4)) {
            (0, 0) => SyncOp::MutexTryLock,
            (0, _) => SyncOp::MutexLock,
            (1, 0) => SyncOp::WriteTryLock,
            (1, 1) => SyncOp::WriteLock,
            (1, _) => SyncOp::ReadLock,
            (2, _) if which == 0 => SyncOp::BarrierWait { parties: EVERY_NODE },
            (2, _) => SyncOp::BarrierWait { parties: 2 },
            (_, 0) => SyncOp::CounterGet,
            _ => SyncOp::CounterAdd { delta: 1 },
        };
        let ticket = self.ask(&name, op);
        self.sites[at].threads[thread] = Thread::Waits(ticket, None);
        self.send(at, ticket, name, op);
    }

    fn cancel(&mut self, at: usize, thread: usize, waiter: u64) {
        let asked = self.tickets[&waiter].clone();
        let op = SyncOp::Cancel { waiter };
        let ticket = self.ask(&asked.name, op);
        self.sites[at].threads[thread] = Thread::Waits(waiter, Some(ticket));
        self.send(at, ticket, asked.name, op);
    }

    fn unlock(&mut self, at: usize, thread: usize, holder: u64) {
        let asked = self.tickets[&holder].clone();
        self.model.unlocks(&asked, holder);
        let op = match asked.op {
            SyncOp::MutexLock | SyncOp::MutexTryLock => SyncOp::MutexUnlock { holder },
            SyncOp::ReadLock => SyncOp::ReadUnlock { holder },
            _ => SyncOp::WriteUnlock { holder },
        };
        let ticket = self.ask(&asked.name, op);
        self.sites[at].threads[thread] = Thread::Unlocks(ticket);
        self.send(at, ticket, asked.name, op);
    }

    fn answer(&mut self, at: usize, ticket: u64, result: Result<Outcome, SyncError>) {
        let threads = self.sites[at].threads;
        let asked = threads.iter().position(|thread| match thread {
            Thread::Waits(own, cancel) => *own == ticket || *cancel == Some(ticket),
            Thread::Unlocks(own) => *own == ticket,
            _ => false,
        });
        let Some(thread) = asked else {
            let cancels = matches!(self.tickets[&ticket].op, SyncOp::Cancel { .. });
            assert!(
                cancels || self.model.may_be_late(ticket),
                "nobody waits for {ticket}: {result:?}"
            );
            return;
        };
        let next = match threads[thread] {
            Thread::Waits(own, Some(cancel)) if cancel == ticket => {
                self.cancelled(own, result);
                Thread::Idle
            }
            Thread::Waits(own, _) => self.answered(own, result),
            _ => {
                assert_eq!(result, Ok(Outcome::Unlocked));
                Thread::Idle
            }
        };
        self.sites[at].threads[thread] = next;
    }

    /// The end of a cancellation, with no answer before it.
    fn cancelled(&mut self, waiter: u64, result: Result<Outcome, SyncError>) {
        let asked = self.tickets[&waiter].clone();
        let meets = matches!(asked.op, SyncOp::BarrierWait { .. });
        match result {
            Ok(Outcome::Cancelled) => self.seen.note("cancelled"),
            // The node keeps the answer until it has been told of the loss.
            Ok(Outcome::NotWaiting) if meets => self.model.may_come_late(waiter),
            other => panic!("{asked:?} was cancelled: {other:?}"),
        }
    }

    /// What a thread does when it has its answer.
    fn answered(&mut self, ticket: u64, result: Result<Outcome, SyncError>) -> Thread {
        let asked = self.tickets[&ticket].clone();
        match (asked.op.takes(), result) {
            (Some(_), Ok(outcome @ (Outcome::Granted | Outcome::Abandoned { .. }))) => {
                if let Outcome::Abandoned { node } = outcome {
                    self.seen.note("abandoned");
                    assert!(self.losses.contains(&node), "{node} is not lost");
                }
                self.model.grant(&asked, ticket, outcome);
                return Thread::Holds(ticket);
            }
            (Some(_), Ok(Outcome::Busy)) => {}
            (None, Ok(Outcome::Passed { .. })) => {}
            (None, Err(SyncError::BarrierBroken { node, epoch })) => {
                self.seen.note("barrier broken");
                let site = &self.sites[asked.node];
                assert!(usize::from(epoch) <= site.told, "it can't wait again");
                assert!(self.lost(site.told).contains(node));
            }
            (None, Ok(Outcome::Value(before))) => self.model.value(&asked, before),
            (None, Err(SyncError::ValueLost { node })) => {
                self.seen.note("value lost");
                assert!(self.losses.contains(&node));
                self.model.value_lost(&asked.name);
            }
            (_, other) => panic!("{asked:?}: {other:?}"),
        }
        Thread::Idle
    }

    /// All are told of everything, all messages arrive, all locks are released.
    fn come_to_rest(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "something goes on for ever");
            while self.arrive() {}
            let told = self.sites.iter().all(|site| !site.up || site.told == self.losses.len());
            if !told {
                self.tell();
                continue;
            }
            if !self.release_one() && !self.leave_one_barrier() {
                break;
            }
        }
        for (index, site) in self.sites.iter().enumerate().filter(|(_, site)| site.up) {
            let left: Vec<_> = site.threads.iter().filter(|it| **it != Thread::Idle).collect();
            let what = |thread: &&Thread| match thread {
                Thread::Waits(ticket, _) => format!("{:?}", self.tickets[ticket]),
                other => format!("{other:?}"),
            };
            let left: Vec<_> = left.iter().map(what).collect();
            assert!(left.is_empty(), "{index} hangs: {left:?}");
            assert_eq!((site.client.open(), site.client.held()), (0, 0), "left at {index}");
            assert_eq!((site.home.tickets(), site.home.waiting()), (0, 0), "left at home {index}");
        }
    }

    fn release_one(&mut self) -> bool {
        self.first(|thread, _| matches!(thread, Thread::Holds(_))).is_some_and(|(at, thread)| {
            if let Thread::Holds(holder) = self.sites[at].threads[thread] {
                self.unlock(at, thread, holder);
            }
            true
        })
    }

    fn leave_one_barrier(&mut self) -> bool {
        let meets = |ticket: &Ticket| matches!(ticket.op, SyncOp::BarrierWait { .. });
        let found = self.first(
            |thread, tickets| matches!(thread, Thread::Waits(own, None) if meets(&tickets[own])),
        );
        found.is_some_and(|(at, thread)| {
            if let Thread::Waits(ticket, None) = self.sites[at].threads[thread] {
                self.cancel(at, thread, ticket);
            }
            true
        })
    }

    fn first(&self, is: impl Fn(&Thread, &HashMap<u64, Ticket>) -> bool) -> Option<(usize, usize)> {
        let all = (0..self.sites.len() * 3).map(|i| (i / 3, i % 3));
        all.filter(|&(at, _)| self.sites[at].up)
            .find(|&(at, thread)| is(&self.sites[at].threads[thread], &self.tickets))
    }

    /// At rest, every lock is to be had at once, every counter has the value that it must have, and
    /// all survivors meet.
    fn probe(&mut self) {
        let up: Vec<usize> = (0..self.sites.len()).filter(|&i| self.sites[i].up).collect();
        let names = self.names.clone();
        let probes = [SyncOp::MutexLock, SyncOp::WriteLock];
        for (op, name) in (0..6).map(|i| (probes[i / 3], &names[i / 3][i % 3])) {
            let at = up[self.random.below(up.len())];
            self.one(at, 0, name, op);
            let Thread::Holds(holder) = self.sites[at].threads[0] else {
                panic!("{name} is taken")
            };
            self.unlock(at, 0, holder);
            while self.arrive() {}
        }
        for name in &names[3] {
            self.one(up[0], 0, name, SyncOp::CounterGet);
            self.model.check_total(name);
        }
        for &at in &up {
            self.one(at, 0, &names[2][0], SyncOp::BarrierWait { parties: EVERY_NODE });
        }
        let idle = |at: &usize| self.sites[*at].threads[0] == Thread::Idle;
        assert!(up.iter().all(idle), "the survivors do not meet");
    }

    fn one(&mut self, at: usize, thread: usize, name: &SyncName, op: SyncOp) {
        let ticket = self.ask(name, op);
        self.sites[at].threads[thread] = Thread::Waits(ticket, None);
        self.send(at, ticket, name.clone(), op);
        while self.arrive() {}
    }
}
