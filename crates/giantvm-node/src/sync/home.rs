//! The objects that live at one node.

use std::collections::{HashMap, HashSet, VecDeque};

use dsm_core::types::{NODES_MAX, NodeId, NodeSet};

use super::lock::{Lock, Mode, Owner};
use super::message::{Kind, Outcome, SyncError, SyncName, SyncOp, SyncReply, SyncRequest};
use crate::limits::{
    BARRIER_PARTIES_MAX, SYNC_OBJECTS_MAX, SYNC_QUEUE_MAX, SYNC_TICKETS_PER_NODE_MAX,
};

/// A reply and the node it goes to.
type Addressed = (NodeId, SyncReply);

/// The synchronisation objects whose home is this node.
///
/// Feed it the requests of each node in the order in which that node sent them, this node's own
/// included, and deliver the replies to each node in the order in which they come out.
#[derive(Debug)]
pub struct SyncHome {
    objects: HashMap<SyncName, Object>,
    /// Every ticket that holds or waits, wherever it does.
    tickets: HashSet<Owner>,
    tickets_of: [usize; NODES_MAX],
    /// Nodes that left: what they sent before is void.
    gone: NodeSet,
    lost: Option<NodeId>,
}

#[derive(Debug)]
enum Object {
    Mutex(Lock),
    RwLock(Lock),
    Barrier { parties: u32, waiters: VecDeque<Owner> },
    Counter(i64),
}

impl Object {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Mutex => Self::Mutex(Lock::default()),
            Kind::RwLock => Self::RwLock(Lock::default()),
            Kind::Barrier => Self::Barrier { parties: 0, waiters: VecDeque::new() },
            Kind::Counter => Self::Counter(0),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Mutex(_) => Kind::Mutex,
            Self::RwLock(_) => Kind::RwLock,
            Self::Barrier { .. } => Kind::Barrier,
            Self::Counter(_) => Kind::Counter,
        }
    }

    /// Whether a new object of its kind would be just the same.
    fn is_idle(&self) -> bool {
        match self {
            Self::Mutex(lock) | Self::RwLock(lock) => lock.is_idle(),
            Self::Barrier { waiters, .. } => waiters.is_empty(),
            Self::Counter(value) => *value == 0,
        }
    }

    fn waiters(&self) -> Vec<Owner> {
        match self {
            Self::Mutex(lock) | Self::RwLock(lock) => lock.queue().collect(),
            Self::Barrier { waiters, .. } => waiters.iter().copied().collect(),
            Self::Counter(_) => Vec::new(),
        }
    }
}

impl Default for SyncHome {
    fn default() -> Self {
        Self::new()
    }
}

impl SyncHome {
    /// A home without objects.
    pub fn new() -> Self {
        Self {
            objects: HashMap::new(),
            tickets: HashSet::new(),
            tickets_of: [0; NODES_MAX],
            gone: NodeSet::EMPTY,
            lost: None,
        }
    }

    /// How many objects are in use.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// How many tickets hold or wait.
    pub fn tickets(&self) -> usize {
        self.tickets.len()
    }

    /// Answers a request of `from`: with replies to it, and to others that it sets free.
    pub fn request(&mut self, from: NodeId, request: &SyncRequest) -> Vec<Addressed> {
        if self.gone.contains(from) {
            return Vec::new();
        }
        let owner = Owner { node: from, ticket: request.ticket };
        if let Some(node) = self.lost {
            return vec![reply(owner, Err(SyncError::PeerLost { node }))];
        }
        let mut replies = Vec::new();
        let result = self.apply(owner, &request.name, request.op, &mut replies);
        // The requester first: its unlock is done before anyone is let in by it.
        if let Some(result) = result.transpose() {
            replies.insert(0, reply(owner, result));
        }
        self.drop_if_idle(&request.name);
        replies
    }

    /// `node` left of its own will: its waiters go, and what it still held is handed on.
    pub fn node_left(&mut self, node: NodeId) -> Vec<Addressed> {
        self.gone.insert(node);
        let mut replies = Vec::new();
        let mut names: Vec<_> = self.objects.keys().cloned().collect();
        names.sort_unstable(); // the same replies in the same order in every run
        for name in names {
            let Some(object) = self.objects.get_mut(&name) else { continue };
            let mut entered = Vec::new();
            match object {
                Object::Mutex(lock) | Object::RwLock(lock) => {
                    let (held, _) = lock.forget(node);
                    if held > 0 {
                        log::error!(
                            "node {node} left while it held {held} locks on `{name}`; they go to \
                             the next in line, who may see its work half done"
                        );
                    }
                    entered = lock.admit();
                }
                Object::Barrier { waiters, .. } => waiters.retain(|waiter| waiter.node != node),
                Object::Counter(_) => {}
            }
            replies.extend(entered.into_iter().map(|owner| reply(owner, Ok(Outcome::Granted))));
            self.drop_if_idle(&name);
        }
        self.tickets.retain(|owner| owner.node != node);
        if let Some(count) = self.tickets_of.get_mut(node.index()) {
            *count = 0;
        }
        replies
    }

    /// `node` is lost, and for now the cluster's objects with it: every waiter is told, and so is
    /// every request from now on.
    pub fn node_lost(&mut self, node: NodeId) -> Vec<Addressed> {
        let lost = *self.lost.get_or_insert(node);
        self.gone.insert(node);
        let mut waiters: Vec<_> = self.objects.values().flat_map(Object::waiters).collect();
        waiters.sort_unstable();
        self.objects.clear();
        self.tickets.clear();
        self.tickets_of = [0; NODES_MAX];
        waiters
            .into_iter()
            .filter(|owner| !self.gone.contains(owner.node))
            .map(|owner| reply(owner, Err(SyncError::PeerLost { node: lost })))
            .collect()
    }

    /// Does `op`; the requester's own result, or `None` if it waits. Replies to others go to `out`.
    fn apply(
        &mut self,
        owner: Owner,
        name: &SyncName,
        op: SyncOp,
        out: &mut Vec<Addressed>,
    ) -> Result<Option<Outcome>, SyncError> {
        match op {
            SyncOp::MutexLock => self.lock(owner, name, Kind::Mutex, Mode::Alone, true),
            SyncOp::MutexTryLock => self.lock(owner, name, Kind::Mutex, Mode::Alone, false),
            SyncOp::ReadLock => self.lock(owner, name, Kind::RwLock, Mode::Shared, true),
            SyncOp::ReadTryLock => self.lock(owner, name, Kind::RwLock, Mode::Shared, false),
            SyncOp::WriteLock => self.lock(owner, name, Kind::RwLock, Mode::Alone, true),
            SyncOp::WriteTryLock => self.lock(owner, name, Kind::RwLock, Mode::Alone, false),
            SyncOp::MutexUnlock { holder } => {
                let holder = Owner { ticket: holder, ..owner };
                self.unlock(holder, name, Kind::Mutex, Mode::Alone, out).map(Some)
            }
            SyncOp::ReadUnlock { holder } => {
                let holder = Owner { ticket: holder, ..owner };
                self.unlock(holder, name, Kind::RwLock, Mode::Shared, out).map(Some)
            }
            SyncOp::WriteUnlock { holder } => {
                let holder = Owner { ticket: holder, ..owner };
                self.unlock(holder, name, Kind::RwLock, Mode::Alone, out).map(Some)
            }
            SyncOp::BarrierWait { parties } => self.barrier(owner, name, parties, out),
            SyncOp::CounterAdd { .. }
            | SyncOp::CounterGet
            | SyncOp::CounterSet { .. }
            | SyncOp::CompareExchange { .. } => self.counter(name, op).map(Some),
            SyncOp::Cancel { waiter } => {
                let waiter = Owner { ticket: waiter, ..owner };
                Ok(Some(self.cancel(waiter, name, out)))
            }
        }
    }

    fn lock(
        &mut self,
        owner: Owner,
        name: &SyncName,
        kind: Kind,
        mode: Mode,
        wait: bool,
    ) -> Result<Option<Outcome>, SyncError> {
        self.check_ticket(owner)?;
        let (Object::Mutex(lock) | Object::RwLock(lock)) = self.object(name, kind)? else {
            return Ok(None);
        };
        let outcome = if lock.try_lock(owner, mode) {
            Some(Outcome::Granted)
        } else if !wait {
            return Ok(Some(Outcome::Busy));
        } else if lock.waiters() >= SYNC_QUEUE_MAX {
            return Err(SyncError::QueueFull { limit: SYNC_QUEUE_MAX as u32 });
        } else {
            lock.wait(owner, mode);
            None
        };
        self.add_ticket(owner);
        Ok(outcome)
    }

    fn unlock(
        &mut self,
        holder: Owner,
        name: &SyncName,
        kind: Kind,
        mode: Mode,
        out: &mut Vec<Addressed>,
    ) -> Result<Outcome, SyncError> {
        let object = self.objects.get_mut(name).ok_or(SyncError::NotHolder)?;
        check_kind(object, kind)?;
        let (Object::Mutex(lock) | Object::RwLock(lock)) = object else {
            return Err(SyncError::NotHolder);
        };
        if !lock.unlock(holder, mode) {
            return Err(SyncError::NotHolder);
        }
        out.extend(lock.admit().into_iter().map(|owner| reply(owner, Ok(Outcome::Granted))));
        self.drop_ticket(holder);
        Ok(Outcome::Unlocked)
    }

    fn barrier(
        &mut self,
        owner: Owner,
        name: &SyncName,
        parties: u32,
        out: &mut Vec<Addressed>,
    ) -> Result<Option<Outcome>, SyncError> {
        let max = BARRIER_PARTIES_MAX;
        if parties == 0 || parties > max {
            return Err(SyncError::PartiesOutOfRange { got: parties, max });
        }
        self.check_ticket(owner)?;
        let Object::Barrier { parties: expected, waiters } = self.object(name, Kind::Barrier)?
        else {
            return Ok(None);
        };
        if waiters.is_empty() {
            *expected = parties; // the first waiter of a meeting says how many it is
        } else if *expected != parties {
            return Err(SyncError::PartiesMismatch { expected: *expected, got: parties });
        }
        let index = waiters.len() as u32;
        if index + 1 < parties {
            waiters.push_back(owner);
            self.add_ticket(owner);
            return Ok(None);
        }
        let met = std::mem::take(waiters);
        for (index, waiter) in (0..).zip(met) {
            self.drop_ticket(waiter);
            out.push(reply(waiter, Ok(Outcome::Passed { index })));
        }
        Ok(Some(Outcome::Passed { index }))
    }

    fn counter(&mut self, name: &SyncName, op: SyncOp) -> Result<Outcome, SyncError> {
        let Object::Counter(value) = self.object(name, Kind::Counter)? else {
            return Ok(Outcome::Value(0));
        };
        let before = *value;
        match op {
            SyncOp::CounterAdd { delta } => *value = before.wrapping_add(delta),
            SyncOp::CounterSet { value: new } => *value = new,
            SyncOp::CompareExchange { expected, new } => {
                let done = before == expected;
                if done {
                    *value = new;
                }
                return Ok(Outcome::Exchanged { done, before });
            }
            _ => {}
        }
        Ok(Outcome::Value(before))
    }

    fn cancel(&mut self, waiter: Owner, name: &SyncName, out: &mut Vec<Addressed>) -> Outcome {
        let removed = match self.objects.get_mut(name) {
            Some(Object::Mutex(lock) | Object::RwLock(lock)) => {
                let removed = lock.cancel(waiter);
                out.extend(lock.admit().into_iter().map(|o| reply(o, Ok(Outcome::Granted))));
                removed
            }
            Some(Object::Barrier { waiters, .. }) => {
                let before = waiters.len();
                waiters.retain(|other| *other != waiter);
                waiters.len() != before
            }
            Some(Object::Counter(_)) | None => false,
        };
        if !removed {
            return Outcome::NotWaiting;
        }
        self.drop_ticket(waiter);
        Outcome::Cancelled
    }

    /// The object `name`, made if nobody uses the name.
    fn object(&mut self, name: &SyncName, kind: Kind) -> Result<&mut Object, SyncError> {
        if !self.objects.contains_key(name) && self.objects.len() >= SYNC_OBJECTS_MAX {
            return Err(SyncError::TooManyObjects { limit: SYNC_OBJECTS_MAX as u32 });
        }
        let object = self.objects.entry(name.clone()).or_insert_with(|| Object::new(kind));
        check_kind(object, kind)?;
        Ok(object)
    }

    fn drop_if_idle(&mut self, name: &SyncName) {
        if self.objects.get(name).is_some_and(Object::is_idle) {
            self.objects.remove(name);
        }
    }

    fn check_ticket(&self, owner: Owner) -> Result<(), SyncError> {
        if self.tickets.contains(&owner) {
            return Err(SyncError::DuplicateTicket);
        }
        let count = self.tickets_of.get(owner.node.index()).copied().unwrap_or(usize::MAX);
        if count >= SYNC_TICKETS_PER_NODE_MAX {
            return Err(SyncError::TooManyTickets { limit: SYNC_TICKETS_PER_NODE_MAX as u32 });
        }
        Ok(())
    }

    fn add_ticket(&mut self, owner: Owner) {
        if self.tickets.insert(owner)
            && let Some(count) = self.tickets_of.get_mut(owner.node.index())
        {
            *count += 1;
        }
    }

    fn drop_ticket(&mut self, owner: Owner) {
        if self.tickets.remove(&owner)
            && let Some(count) = self.tickets_of.get_mut(owner.node.index())
        {
            *count -= 1;
        }
    }
}

fn check_kind(object: &Object, wanted: Kind) -> Result<(), SyncError> {
    let found = object.kind();
    if found == wanted { Ok(()) } else { Err(SyncError::KindMismatch { found, wanted }) }
}

fn reply(owner: Owner, result: Result<Outcome, SyncError>) -> Addressed {
    (owner.node, SyncReply { ticket: owner.ticket, result })
}
