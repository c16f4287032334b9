//! One lock: who holds it and who waits, in the order of arrival.

use std::collections::{BTreeSet, VecDeque};

use dsm_core::types::NodeId;

use super::message::Outcome;

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
    /// The node with which a holder went that was alone, until another has been told.
    abandoned: Option<NodeId>,
    /// What `writer` was told of that.
    told: Option<NodeId>,
}

impl Lock {
    /// A lock that went with `node`, if it did.
    pub(super) fn new(abandoned: Option<NodeId>) -> Self {
        Self { abandoned, ..Self::default() }
    }

    /// Takes the lock if nobody has to be overtaken for that.
    pub(super) fn try_lock(&mut self, owner: Owner, mode: Mode) -> Option<Outcome> {
        let free = self.queue.is_empty() && self.admits(mode);
        free.then(|| self.enter(owner, mode))
    }

    pub(super) fn wait(&mut self, owner: Owner, mode: Mode) {
        self.queue.push_back((owner, mode));
    }

    pub(super) fn waiters(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writer.is_none()
            && self.readers.is_empty()
            && self.queue.is_empty()
            && self.abandoned.is_none()
    }

    /// Takes `owner`'s hold away; says whether it held in that mode. Call [`Lock::admit`] next.
    pub(super) fn unlock(&mut self, owner: Owner, mode: Mode) -> bool {
        match mode {
            Mode::Shared => self.readers.remove(&owner),
            Mode::Alone => {
                let held = self.writer.take_if(|writer| *writer == owner).is_some();
                if held {
                    self.told = None;
                }
                held
            }
        }
    }

    /// The same in whatever mode it held; and the next one is told what it was told. Call
    /// [`Lock::admit`] next.
    pub(super) fn give_back(&mut self, owner: Owner) -> bool {
        let told = self.told;
        let alone = self.unlock(owner, Mode::Alone);
        if alone {
            self.abandoned = told;
        }
        alone || self.unlock(owner, Mode::Shared)
    }

    /// Takes `owner` off the queue; says whether it was there. Call [`Lock::admit`] next: a writer
    /// that goes may have kept readers waiting.
    pub(super) fn cancel(&mut self, owner: Owner) -> bool {
        let before = self.queue.len();
        self.queue.retain(|(waiter, _)| *waiter != owner);
        self.queue.len() != before
    }

    /// Lets in from the front of the queue whoever may enter now, in order.
    pub(super) fn admit(&mut self) -> Vec<(Owner, Outcome)> {
        let mut entered = Vec::new();
        while let Some(&(owner, mode)) = self.queue.front()
            && self.admits(mode)
        {
            self.queue.pop_front();
            entered.push((owner, self.enter(owner, mode)));
        }
        entered
    }

    /// Takes all of `node` off, which is gone; says whether it held alone, so that the lock is
    /// abandoned. Call [`Lock::admit`] next.
    pub(super) fn forget(&mut self, node: NodeId) -> bool {
        self.readers.retain(|reader| reader.node != node);
        self.queue.retain(|(waiter, _)| waiter.node != node);
        let alone = self.writer.take_if(|writer| writer.node == node).is_some();
        if alone {
            self.told = None;
            self.abandoned = Some(node);
        }
        alone
    }

    /// Notes that `owner` holds the lock, and was told that it went with `abandoned`; says whether
    /// that can be. If it is a reader, no writer has been told since.
    pub(super) fn install(&mut self, owner: Owner, mode: Mode, abandoned: Option<NodeId>) -> bool {
        let can_be = self.admits(mode);
        if can_be {
            self.abandoned = abandoned.or(self.abandoned);
            self.enter(owner, mode);
        }
        can_be
    }

    fn admits(&self, mode: Mode) -> bool {
        self.writer.is_none() && (mode == Mode::Shared || self.readers.is_empty())
    }

    /// What it is told as it enters.
    fn enter(&mut self, owner: Owner, mode: Mode) -> Outcome {
        let abandoned = self.abandoned;
        match mode {
            Mode::Shared => {
                self.readers.insert(owner);
            }
            Mode::Alone => {
                self.writer = Some(owner);
                self.told = self.abandoned.take();
            }
        }
        abandoned.map_or(Outcome::Granted, |node| Outcome::Abandoned { node })
    }
}
