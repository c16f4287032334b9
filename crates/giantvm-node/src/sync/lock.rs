//! One lock: who holds it and who waits, in the order of arrival.

use std::collections::{BTreeSet, VecDeque};

use dsm_core::types::NodeId;

/// One request of one node: holds a lock or waits for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Owner {
    pub(super) node: NodeId,
    pub(super) ticket: u64,
}

/// How a lock is held. A mutex is a lock that is only ever held alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Shared,
    Alone,
}

#[derive(Default, Debug)]
pub(super) struct Lock {
    writer: Option<Owner>,
    readers: BTreeSet<Owner>,
    queue: VecDeque<(Owner, Mode)>,
}

impl Lock {
    /// Takes the lock if nobody has to be overtaken for that.
    pub(super) fn try_lock(&mut self, owner: Owner, mode: Mode) -> bool {
        let free = self.queue.is_empty() && self.admits(mode);
        if free {
            self.enter(owner, mode);
        }
        free
    }

    pub(super) fn wait(&mut self, owner: Owner, mode: Mode) {
        self.queue.push_back((owner, mode));
    }

    pub(super) fn waiters(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writer.is_none() && self.readers.is_empty() && self.queue.is_empty()
    }

    /// Takes `owner`'s hold away; says whether it held in that mode. Call [`Lock::admit`] next.
    pub(super) fn unlock(&mut self, owner: Owner, mode: Mode) -> bool {
        match mode {
            Mode::Shared => self.readers.remove(&owner),
            Mode::Alone => self.writer.take_if(|writer| *writer == owner).is_some(),
        }
    }

    /// Takes `owner` off the queue; says whether it was there. Call [`Lock::admit`] next: a writer
    /// that goes may have kept readers waiting.
    pub(super) fn cancel(&mut self, owner: Owner) -> bool {
        let before = self.queue.len();
        self.queue.retain(|(waiter, _)| *waiter != owner);
        self.queue.len() != before
    }

    /// Lets in from the front of the queue whoever may enter now, in order.
    pub(super) fn admit(&mut self) -> Vec<Owner> {
        let mut entered = Vec::new();
        while let Some(&(owner, mode)) = self.queue.front()
            && self.admits(mode)
        {
            self.queue.pop_front();
            self.enter(owner, mode);
            entered.push(owner);
        }
        entered
    }

    /// Takes all of `node` off; returns how many it held and how many of it waited.
    pub(super) fn forget(&mut self, node: NodeId) -> (usize, usize) {
        let before = (self.holders(), self.queue.len());
        self.writer.take_if(|writer| writer.node == node);
        self.readers.retain(|reader| reader.node != node);
        self.queue.retain(|(waiter, _)| waiter.node != node);
        (before.0 - self.holders(), before.1 - self.queue.len())
    }

    /// Those who wait, in order.
    pub(super) fn queue(&self) -> impl Iterator<Item = Owner> {
        self.queue.iter().map(|&(owner, _)| owner)
    }

    fn holders(&self) -> usize {
        self.readers.len() + usize::from(self.writer.is_some())
    }

    fn admits(&self, mode: Mode) -> bool {
        self.writer.is_none() && (mode == Mode::Shared || self.readers.is_empty())
    }

    fn enter(&mut self, owner: Owner, mode: Mode) {
        match mode {
            Mode::Shared => {
                self.readers.insert(owner);
            }
            Mode::Alone => self.writer = Some(owner),
        }
    }
}
