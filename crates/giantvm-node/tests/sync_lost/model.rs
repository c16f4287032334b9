//! What must be true of locks and counters, whoever keeps them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use giantvm_node::sync::{Held, Outcome, SyncName, SyncOp};

use crate::world::Ticket;

#[derive(Default)]
struct Lock {
    /// Tickets of nodes that run, as their programs know.
    alone: Option<u64>,
    readers: BTreeSet<u64>,
    /// A program held it alone when its node stopped, and nobody was told.
    abandoned: bool,
    /// How many times it may be said to be abandoned.
    reasons: u32,
}

#[derive(Default)]
struct Counter {
    home_lost: bool,
    sent: i64,
    done: i64,
    before: HashSet<i64>,
    last_read: Option<i64>,
}

#[derive(Default)]
pub(crate) struct Model {
    locks: HashMap<SyncName, Lock>,
    counters: HashMap<SyncName, Counter>,
    /// What callers gave up on, by node.
    given_up: BTreeMap<usize, BTreeSet<SyncName>>,
    late: HashSet<u64>,
}

impl Model {
    fn lock(&mut self, name: &SyncName) -> &mut Lock {
        self.locks.entry(name.clone()).or_default()
    }

    pub(crate) fn asked(&mut self, name: &SyncName, op: SyncOp) {
        if let SyncOp::CounterAdd { delta } = op {
            self.counters.entry(name.clone()).or_default().sent += delta;
        }
    }

    pub(crate) fn grant(&mut self, asked: &Ticket, ticket: u64, outcome: Outcome) {
        let lock = self.lock(&asked.name);
        let told = outcome != Outcome::Granted;
        assert!(lock.alone.is_none(), "{asked:?}: a second holder");
        assert!(told || !lock.abandoned, "{asked:?} was not told that the lock is abandoned");
        assert!(!told || lock.reasons > 0, "{asked:?}: abandoned by nobody");
        if asked.op.takes() == Some(Held::Read) {
            lock.readers.insert(ticket);
            return;
        }
        assert!(lock.readers.is_empty(), "{asked:?}: a writer among readers");
        lock.alone = Some(ticket);
        if told {
            lock.abandoned = false;
            lock.reasons -= 1;
        }
    }

    /// Its program wants to unlock.
    pub(crate) fn unlocks(&mut self, asked: &Ticket, ticket: u64) {
        let lock = self.lock(&asked.name);
        lock.alone.take_if(|own| *own == ticket);
        lock.readers.remove(&ticket);
    }

    pub(crate) fn holder_lost(&mut self, asked: &Ticket, ticket: u64) {
        let lock = self.lock(&asked.name);
        lock.readers.remove(&ticket);
        if lock.alone.take_if(|own| *own == ticket).is_some() {
            lock.abandoned = true;
        }
        lock.reasons += 1;
    }

    /// A node stops that may hold the lock without knowing it.
    pub(crate) fn interest_lost(&mut self, name: &SyncName) {
        self.lock(name).reasons += 1;
    }

    pub(crate) fn home_lost(&mut self, name: &SyncName) {
        self.lock(name).reasons += 1;
        self.counters.entry(name.clone()).or_default().home_lost = true;
    }

    pub(crate) fn gave_up(&mut self, node: usize, name: &SyncName, ticket: u64) {
        self.given_up.entry(node).or_default().insert(name.clone());
        self.late.insert(ticket);
    }

    pub(crate) fn given_up_lost(&mut self, node: usize) {
        for name in self.given_up.remove(&node).unwrap_or_default() {
            self.interest_lost(&name);
        }
    }

    /// A barrier's end may come after its caller has turned away.
    pub(crate) fn may_come_late(&mut self, ticket: u64) {
        self.late.insert(ticket);
    }

    pub(crate) fn may_be_late(&self, ticket: u64) -> bool {
        self.late.contains(&ticket)
    }

    pub(crate) fn value(&mut self, asked: &Ticket, before: i64) {
        let counter = self.counters.entry(asked.name.clone()).or_default();
        match asked.op {
            SyncOp::CounterAdd { delta } => {
                assert!(counter.before.insert(before), "{asked:?}: {before} twice");
                counter.done += delta;
            }
            _ => counter.last_read = Some(before),
        }
    }

    pub(crate) fn value_lost(&mut self, name: &SyncName) {
        let counter = self.counters.entry(name.clone()).or_default();
        assert!(counter.home_lost, "{name} has its home");
        counter.last_read = None;
    }

    /// The counter was read last of all.
    pub(crate) fn check_total(&self, name: &SyncName) {
        let counter = &self.counters[name];
        match counter.last_read {
            // Nobody sets one here: what is lost stays so.
            None => assert!(counter.home_lost, "{name}: no value"),
            Some(value) => {
                assert!(!counter.home_lost, "{name} has a value of old");
                assert!((counter.done..=counter.sent).contains(&value), "{name}: {value}");
            }
        }
    }
}
