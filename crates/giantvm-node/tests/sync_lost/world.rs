//! A small world for locks, barriers and counters: nodes with threads, ordered links on which
//! messages take their time, nodes that stop, nodes that join, and members that are told of it some
//! time later. It checks what is promised after every single step.

use std::collections::{HashMap, VecDeque};

use dsm_core::types::{Epoch, NodeId, NodeSet};
use giantvm_node::sync::{
    ClientOutput, EVERY_NODE, Kind, Outcome, SyncClient, SyncError, SyncHome, SyncName, SyncOp,
    SyncReply, ToHome, home_of,
};

use crate::history::History;
use crate::model::Model;

mod rest;

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
    /// Whether it knows an epoch at all.
    begun: bool,
    /// The last epoch that it was told of, by its position in the history.
    told: usize,
    /// The number of the last of these with which it was told of a loss; 0 before the first.
    loss: u16,
    /// The number of the epoch in which this process joined; 0 if it was there from the start.
    joined: u16,
    /// Its processes begin from 1 each.
    last_ticket: u64,
    threads: [Thread; 3],
}

impl Site {
    fn new(index: usize, nodes: usize, epoch: &Epoch) -> Self {
        Self {
            client: SyncClient::new(nodes, epoch),
            home: SyncHome::new(node(index), nodes, epoch),
            up: epoch.members.contains(node(index)),
            begun: true,
            told: 0,
            loss: 0,
            joined: 0,
            last_ticket: 0,
            threads: [Thread::Idle; 3],
        }
    }
}

/// The ticket of a process, as all the world names it.
fn global(index: usize, joined: u16, own: u64) -> u64 {
    u64::from(joined) << 40 | (index as u64) << 32 | own
}

/// The ticket as its process names it.
fn own(ticket: u64) -> u64 {
    ticket & 0xffff_ffff
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
    /// From whom, to whom: what processes sent whose numbers others have now.
    stale: Vec<(usize, usize, VecDeque<Message>)>,
    history: History,
    tickets: HashMap<u64, Ticket>,
    names: [Vec<SyncName>; 4],
    model: Model,
}

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, seen: &'a mut Seen) -> Self {
        let mut random = Random(seed);
        let nodes = 3 + random.below(3);
        // In some histories one that is listed comes late, if at all; one always is not listed.
        let late = usize::from(random.one_in(3));
        let history = History::new(nodes, NodeSet::first(nodes - late));
        let mut sites: Vec<_> =
            (0..=nodes).map(|index| Site::new(index, nodes, history.epoch(0))).collect();
        // Without such a one, who is told of a later epoch first knows whom it has missed.
        let begins_late = late == 0 && random.one_in(2);
        sites[random.below(nodes)].begun = !begins_late;
        let names = ["mutex", "rwlock", "barrier", "counter"].map(|kind| {
            (0..3).map(|i| SyncName::new(&format!("{kind} {i} of {seed}")).unwrap()).collect()
        });
        Self {
            random,
            seen,
            sites,
            links: (0..=nodes).map(|_| (0..=nodes).map(|_| VecDeque::new()).collect()).collect(),
            stale: Vec::new(),
            history,
            tickets: HashMap::new(),
            names,
            model: Model::default(),
        }
    }

    /// Plays one history to its end.
    pub(crate) fn play(&mut self) {
        let steps = 100 + self.random.below(300);
        let (losses, joins) = (self.random.below(4), self.random.below(4));
        let mut moments =
            |count| -> Vec<usize> { (0..count).map(|_| self.random.below(steps)).collect() };
        let (losses, joins) = (moments(losses), moments(joins));
        // In some histories messages pile up, in others members learn late.
        let (slow, late) = (1 + self.random.below(4), 2 + self.random.below(40));
        for step in 0..steps {
            for _ in losses.iter().filter(|moment| **moment == step) {
                self.lose();
            }
            for _ in joins.iter().filter(|moment| **moment == step) {
                self.join();
            }
            if self.random.one_in(late) {
                self.tell();
            }
            if self.random.one_in(slow) {
                self.arrive();
            }
            let (index, thread) = (self.random.below(self.sites.len()), self.random.below(3));
            if self.sites[index].up && self.sites[index].begun {
                self.act(index, thread);
            }
        }
        self.come_to_rest();
        self.probe();
    }

    /// A node stops; of what it sent last, some never arrives.
    fn lose(&mut self) {
        let up: Vec<usize> = (0..self.sites.len()).filter(|&i| self.sites[i].up).collect();
        if up.len() == 1 {
            return;
        }
        let victim = up[self.random.below(up.len())];
        if self.sites.iter().any(|site| site.up && site.home.waiting() > 0) {
            self.seen.note("loss while requests wait");
        }
        for link in &mut self.links[victim] {
            let rest = self.random.below(link.len() + 1);
            link.truncate(rest);
        }
        let (nodes, barred) = (self.history.nodes(), self.history.barred(self.history.last()));
        for name in self.names.iter().flatten() {
            if home_of(name, nodes, barred) == Some(node(victim)) {
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
        let step = 1 + self.random.below(2) as u16;
        self.history.lose(victim, step);
    }

    /// A process begins: on a node that was lost, or a new one.
    fn join(&mut self) {
        let down: Vec<usize> = (0..self.sites.len()).filter(|&i| !self.sites[i].up).collect();
        if down.is_empty() {
            return;
        }
        let index = down[self.random.below(down.len())];
        let step = 1 + self.random.below(2) as u16;
        let joined = self.history.join(index, step);
        self.seen.note("join");
        if self.random.one_in(4) {
            self.lose(); // before the new process knows of anything
        }
        for other in 0..self.sites.len() {
            let sent = std::mem::take(&mut self.links[index][other]);
            self.stale.push((index, other, sent));
            if self.random.one_in(2) {
                self.links[other][index].clear();
            }
        }
        self.stale.retain(|(.., sent)| !sent.is_empty());
        let told = self.history.last();
        let site = Site::new(index, self.history.nodes(), self.history.epoch(told));
        self.sites[index] = Site { told, joined, ..site };
        let output = self.sites[index].client.begin();
        self.output(index, output);
    }

    /// A member is told of one change or more.
    fn tell(&mut self) {
        let all = self.history.last();
        let late: Vec<usize> = (0..self.sites.len())
            .filter(|&i| self.sites[i].up && (self.sites[i].told < all || !self.sites[i].begun))
            .collect();
        if late.is_empty() {
            return;
        }
        let index = late[self.random.below(late.len())];
        if !self.sites[index].begun {
            return self.begin_late(index);
        }
        let before = self.sites[index].told;
        let told = before + 1 + self.random.below(all - before);
        let gone = self.history.gone(before, told);
        let (before, epoch) = (self.history.epoch(before), self.history.epoch(told).clone());
        if !gone.is_empty() {
            self.sites[index].loss = epoch.number;
        }
        if told > self.sites[index].told + 1 {
            self.seen.note("several changes told at once");
        }
        if epoch.joined_after(before.number).iter().any(|node| before.members.contains(node)) {
            self.seen.note("returned before its loss was told");
        }
        self.sites[index].told = told;
        let replies = self.sites[index].home.changed(&epoch);
        self.replies(index, replies);
        let output = self.sites[index].client.changed(&epoch);
        self.output(index, output);
    }

    /// A node that was there from the start is told of its first epoch.
    fn begin_late(&mut self, index: usize) {
        let told = self.random.below(self.history.last() + 1);
        let epoch = self.history.epoch(told);
        let site = Site::new(index, self.history.nodes(), epoch);
        let knows_of_loss = !self.history.barred(told).is_empty();
        let loss = if knows_of_loss { epoch.number } else { 0 };
        self.sites[index] = Site { told, loss, ..site };
        if knows_of_loss {
            self.seen.note("first told after a loss");
        }
        let output = self.sites[index].client.begin();
        self.output(index, output);
    }

    /// A message arrives.
    fn arrive(&mut self) -> bool {
        let nodes = self.sites.len();
        let full: Vec<(usize, usize)> = (0..nodes * nodes)
            .map(|link| (link / nodes, link % nodes))
            .filter(|&(_, to)| self.sites[to].up && self.sites[to].begun)
            .filter(|&(from, to)| !self.links[from][to].is_empty())
            .collect();
        let which = self.random.below(full.len() + self.stale.len());
        let (from, to, message) = match full.get(which) {
            Some(&(from, to)) => (from, to, self.links[from][to].pop_front().unwrap()),
            None if self.stale.is_empty() => return false,
            None => {
                let (from, to, sent) = &mut self.stale[which - full.len()];
                let (from, to, message) = (*from, *to, sent.pop_front().unwrap());
                self.stale.retain(|(.., sent)| !sent.is_empty());
                if !self.sites[to].up || !self.sites[to].begun {
                    return true; // to nobody
                }
                self.seen.note("message of an earlier process");
                (from, to, message)
            }
        };
        match message {
            Message::ToHome(message) => self.at_home(from, to, message),
            Message::Reply(reply) => {
                let output = self.sites[to].client.reply(node(from), &reply);
                self.output(to, output);
            }
        }
        true
    }

    fn at_home(&mut self, from: usize, to: usize, message: ToHome) {
        let number = self.history.epoch(self.sites[to].told).number;
        let is_newcomer = self.sites[from].joined > number;
        let home = &mut self.sites[to].home;
        let replies = match message {
            ToHome::Request(request) => {
                if is_newcomer && request.epoch > number {
                    self.seen.note("request of a newcomer kept");
                }
                home.request(node(from), request)
            }
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
        let epoch = self.history.epoch(told);
        for (to, reply) in replies {
            let joined = epoch.joined.get(to).copied().unwrap_or(0);
            let ticket = &self.tickets[&global(to.index(), joined, reply.ticket)];
            if reply.result == Ok(Outcome::Cancelled) && ticket.op.kind() == Some(Kind::Barrier) {
                self.seen.note("taken off a barrier after a loss");
            }
            let Ok(Outcome::Passed { index }) = reply.result else { continue };
            let SyncOp::BarrierWait { parties } = ticket.op else { panic!("{ticket:?} passed") };
            assert!(ticket.epoch >= self.sites[home].loss, "a party from before a loss");
            if ticket.epoch < epoch.number {
                self.seen.note("barrier passed after a join");
            }
            assert!(epoch.members.contains(*to), "a lost party");
            let parties = if parties == EVERY_NODE { epoch.members.len() as u32 } else { parties };
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
                        && request.op != (SyncOp::Cancel { waiter: request.ticket })
                    {
                        let (name, op, epoch) = (request.name.clone(), request.op, request.epoch);
                        let sent = Ticket { node: at, name, op, epoch };
                        let ticket = global(at, self.sites[at].joined, request.ticket);
                        self.tickets.insert(ticket, sent);
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

    fn ask(&mut self, at: usize, name: &SyncName, op: SyncOp) -> u64 {
        let site = &mut self.sites[at];
        site.last_ticket += 1;
        let ticket = global(at, site.joined, site.last_ticket);
        // Some are answered without having been sent.
        let asked = Ticket { node: at, name: name.clone(), op, epoch: 0 };
        self.tickets.insert(ticket, asked);
        self.model.asked(name, op);
        ticket
    }

    fn send(&mut self, at: usize, ticket: u64, name: SyncName, op: SyncOp) {
        let output = self.sites[at].client.request(own(ticket), name, op, ticket);
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
                let output = self.sites[at].client.give_up(own(ticket));
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
        let ticket = self.ask(at, &name, op);
        self.sites[at].threads[thread] = Thread::Waits(ticket, None);
        self.send(at, ticket, name, op);
    }

    fn cancel(&mut self, at: usize, thread: usize, waiter: u64) {
        let asked = self.tickets[&waiter].clone();
        let op = SyncOp::Cancel { waiter: own(waiter) };
        let ticket = self.ask(at, &asked.name, op);
        self.sites[at].threads[thread] = Thread::Waits(waiter, Some(ticket));
        self.send(at, ticket, asked.name, op);
    }

    fn unlock(&mut self, at: usize, thread: usize, holder: u64) {
        let asked = self.tickets[&holder].clone();
        self.model.unlocks(&asked, holder);
        let holder = own(holder);
        let op = match asked.op {
            SyncOp::MutexLock | SyncOp::MutexTryLock => SyncOp::MutexUnlock { holder },
            SyncOp::ReadLock => SyncOp::ReadUnlock { holder },
            _ => SyncOp::WriteUnlock { holder },
        };
        let ticket = self.ask(at, &asked.name, op);
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
                    assert!(self.history.is_lost(node, self.history.last()), "{node} is not lost");
                }
                self.model.grant(&asked, ticket, outcome);
                return Thread::Holds(ticket);
            }
            (Some(_), Ok(Outcome::Busy)) => {}
            (None, Ok(Outcome::Passed { .. })) => {}
            (None, Err(SyncError::BarrierBroken { node, epoch })) => {
                self.seen.note("barrier broken");
                let site = &self.sites[asked.node];
                let last = self.history.epoch(site.told).number;
                assert!(epoch <= last, "it can't wait again");
                assert!(self.history.is_lost(node, site.told), "broken by nobody");
            }
            (None, Ok(Outcome::Value(before))) => self.model.value(&asked, before),
            (None, Err(SyncError::ValueLost { node })) => {
                self.seen.note("value lost");
                assert!(self.history.is_lost(node, self.history.last()));
                self.model.value_lost(&asked.name);
            }
            (_, Err(SyncError::NoHome)) => {
                self.seen.note("no home");
                let told = self.sites[asked.node].told;
                assert!(self.history.homes(told).is_empty(), "there are homes");
            }
            (_, other) => panic!("{asked:?}: {other:?}"),
        }
        Thread::Idle
    }
}
