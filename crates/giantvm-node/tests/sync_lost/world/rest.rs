//! The end of a history: nothing hangs, nothing is left, and all can be used.

use std::collections::HashMap;

use giantvm_node::sync::{EVERY_NODE, Kind, SyncName, SyncOp};

use super::{Thread, Ticket, World};

impl World<'_> {
    /// All are told of everything, all messages arrive, all locks are released.
    pub(super) fn come_to_rest(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "something goes on for ever");
            while self.arrive() {}
            let all = self.history.last();
            let told = self.sites.iter().all(|it| !it.up || it.begun && it.told == all);
            if !told {
                self.tell();
                continue;
            }
            self.check_waits();
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

    /// When all is told and all has arrived, nobody waits at a barrier from before a loss.
    fn check_waits(&self) {
        for site in self.sites.iter().filter(|site| site.up) {
            for thread in &site.threads {
                let Thread::Waits(ticket, _) = thread else { continue };
                let asked = &self.tickets[ticket];
                let meets = asked.op.kind() == Some(Kind::Barrier);
                assert!(!meets || asked.epoch >= site.loss, "{asked:?} hangs after a loss");
            }
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
    pub(super) fn probe(&mut self) {
        let up: Vec<usize> = (0..self.sites.len()).filter(|&i| self.sites[i].up).collect();
        let names = self.names.clone();
        if self.history.homes(self.history.last()).is_empty() {
            self.one(up[0], 0, &names[0][0], SyncOp::MutexLock);
            assert_eq!(self.sites[up[0]].threads[0], Thread::Idle);
            return;
        }
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
        let ticket = self.ask(at, name, op);
        self.sites[at].threads[thread] = Thread::Waits(ticket, None);
        self.send(at, ticket, name.clone(), op);
        while self.arrive() {}
    }
}
