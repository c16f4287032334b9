//! The objects of one home, and what requests do to them.

use std::collections::{HashMap, HashSet, VecDeque};

use dsm_core::types::{NODES_MAX, NodeId, NodeSet};

use super::lock::{Lock, Mode, Owner};
use super::message::{
    EVERY_NODE, Held, Hold, Kind, Outcome, SyncError, SyncName, SyncOp, SyncReply,
};
use crate::limits::{
    BARRIER_PARTIES_MAX, SYNC_OBJECTS_MAX, SYNC_QUEUE_MAX, SYNC_TICKETS_PER_NODE_MAX,
};

/// A reply and the node it goes to.
pub(super) type Addressed = (NodeId, SyncReply);

/// The objects in use. What is done to an object whose earlier home was lost depends on that:
/// `moved` is this home, if there was one.
#[derive(Debug)]
pub(super) struct Objects {
    objects: HashMap<SyncName, Object>,
    /// Every ticket that holds or waits, wherever it does.
    tickets: HashSet<Owner>,
    tickets_of: [usize; NODES_MAX],
    /// Moved locks that are free, and were since someone held them here. To forget one is safe.
    free: HashSet<SyncName>,
    /// How many parties [`EVERY_NODE`] is.
    members: usize,
}

#[derive(Debug)]
enum Object {
    Mutex(Lock),
    RwLock(Lock),
    Barrier { parties: u32, waiters: VecDeque<Owner> },
    Counter(i64),
}

impl Object {
    fn new(kind: Kind, abandoned: Option<NodeId>) -> Self {
        match kind {
            Kind::Mutex => Self::Mutex(Lock::new(abandoned)),
            Kind::RwLock => Self::RwLock(Lock::new(abandoned)),
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

    /// Whether a new object of its kind would be just the same. Without its value a moved counter
    /// is lost.
    fn is_idle(&self, moved: bool) -> bool {
        match self {
            Self::Mutex(lock) | Self::RwLock(lock) => lock.is_idle(),
            Self::Barrier { waiters, .. } => waiters.is_empty(),
            Self::Counter(value) => *value == 0 && !moved,
        }
    }
}

impl Objects {
    pub(super) fn new(members: usize) -> Self {
        Self {
            objects: HashMap::new(),
            tickets: HashSet::new(),
            tickets_of: [0; NODES_MAX],
            free: HashSet::new(),
            members,
        }
    }

    /// How many members the cluster has now. Where it has less than before, also
    /// [`Objects::forget`] those that went: meetings end with that, so that none waits for too many.
    pub(super) fn members(&mut self, members: usize) {
        self.members = members;
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn tickets(&self) -> usize {
        self.tickets.len()
    }

    /// Does `op`: replies to the requester, and to others that it sets free.
    pub(super) fn request(
        &mut self,
        owner: Owner,
        name: &SyncName,
        op: SyncOp,
        moved: Option<NodeId>,
        out: &mut Vec<Addressed>,
    ) {
        let first = out.len();
        let result = self.apply(owner, name, op, moved, out);
        // The requester first: its unlock is done before anyone is let in by it.
        if let Some(result) = result.transpose() {
            out.insert(first, reply(owner, result));
        }
        self.drop_if_idle(name, moved.is_some());
    }

    /// `nodes` are gone: their waiters go, and what they held is abandoned. Barriers at
    /// which someone waits end with `broken`.
    pub(super) fn forget(
        &mut self,
        nodes: NodeSet,
        broken: SyncError,
        is_moved: impl Fn(&SyncName) -> bool,
        out: &mut Vec<Addressed>,
    ) {
        self.tickets.retain(|owner| !nodes.contains(owner.node));
        for node in nodes.iter() {
            if let Some(count) = self.tickets_of.get_mut(node.index()) {
                *count = 0;
            }
        }
        let mut names: Vec<_> = self.objects.keys().cloned().collect();
        names.sort_unstable(); // the same replies in the same order in every run
        let mut abandoned = 0;
        for name in names {
            match self.objects.get_mut(&name) {
                Some(Object::Mutex(lock) | Object::RwLock(lock)) => {
                    abandoned += nodes.iter().filter(|node| lock.forget(*node)).count();
                    out.extend(granted(lock.admit()));
                }
                Some(Object::Barrier { waiters, .. }) => {
                    waiters.retain(|waiter| !nodes.contains(waiter.node));
                    for waiter in std::mem::take(waiters) {
                        self.drop_ticket(waiter);
                        out.push(reply(waiter, Err(broken)));
                    }
                }
                Some(Object::Counter(_)) | None => continue,
            }
            self.drop_if_idle(&name, is_moved(&name));
        }
        if abandoned > 0 {
            log::warn!("{abandoned} locks went with nodes {nodes:?}; their next holders are told");
        }
    }

    /// Notes a lock that a node holds since before it moved here; says whether that can be.
    pub(super) fn install(&mut self, node: NodeId, hold: &Hold) -> bool {
        let owner = Owner { node, ticket: hold.ticket };
        let (kind, mode) = kind_and_mode(hold.held);
        if self.tickets.contains(&owner) {
            return false;
        }
        let object =
            self.objects.entry(hold.name.clone()).or_insert_with(|| Object::new(kind, None));
        let can_be = object.kind() == kind
            && match object {
                Object::Mutex(lock) | Object::RwLock(lock) => {
                    lock.install(owner, mode, hold.abandoned)
                }
                Object::Barrier { .. } | Object::Counter(_) => false,
            };
        if can_be {
            self.add_ticket(owner);
        }
        can_be
    }

    /// The requester's own result, or `None` if it waits. Replies to others go to `out`.
    fn apply(
        &mut self,
        owner: Owner,
        name: &SyncName,
        op: SyncOp,
        moved: Option<NodeId>,
        out: &mut Vec<Addressed>,
    ) -> Result<Option<Outcome>, SyncError> {
        match op {
            SyncOp::MutexLock | SyncOp::ReadLock | SyncOp::WriteLock => {
                self.lock(owner, name, op, moved, true)
            }
            SyncOp::MutexTryLock | SyncOp::ReadTryLock | SyncOp::WriteTryLock => {
                self.lock(owner, name, op, moved, false)
            }
            SyncOp::MutexUnlock { holder }
            | SyncOp::ReadUnlock { holder }
            | SyncOp::WriteUnlock { holder }
            | SyncOp::GiveBack { holder } => {
                let held = op.releases().and_then(|(_, held)| held);
                self.unlock(Owner { ticket: holder, ..owner }, name, held, out).map(Some)
            }
            SyncOp::BarrierWait { parties } => self.barrier(owner, name, parties, out),
            SyncOp::CounterAdd { .. }
            | SyncOp::CounterGet
            | SyncOp::CounterSet { .. }
            | SyncOp::CompareExchange { .. } => self.counter(name, op, moved).map(Some),
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
        op: SyncOp,
        moved: Option<NodeId>,
        wait: bool,
    ) -> Result<Option<Outcome>, SyncError> {
        self.check_ticket(owner)?;
        let (kind, mode) = match op.takes() {
            Some(held) => kind_and_mode(held),
            None => return Ok(None),
        };
        // Nobody reported it, and it was not seen free: a lost node may hold it.
        let abandoned = moved.filter(|_| !self.free.contains(name));
        let (Object::Mutex(lock) | Object::RwLock(lock)) = self.object(name, kind, abandoned)?
        else {
            return Ok(None);
        };
        let outcome = lock.try_lock(owner, mode);
        if outcome.is_none() {
            if !wait {
                return Ok(Some(Outcome::Busy));
            }
            if lock.waiters() >= SYNC_QUEUE_MAX {
                return Err(SyncError::QueueFull { limit: SYNC_QUEUE_MAX as u32 });
            }
            lock.wait(owner, mode);
        }
        self.add_ticket(owner);
        Ok(outcome)
    }

    /// Takes away what `holder` holds as `held`; or gives it back, in whatever way it is held.
    fn unlock(
        &mut self,
        holder: Owner,
        name: &SyncName,
        held: Option<Held>,
        out: &mut Vec<Addressed>,
    ) -> Result<Outcome, SyncError> {
        let object = self.objects.get_mut(name).ok_or(SyncError::NotHolder)?;
        let (found, way) = (object.kind(), held.map(kind_and_mode));
        if let Some((wanted, _)) = way.filter(|(wanted, _)| *wanted != found) {
            return Err(SyncError::KindMismatch { found, wanted });
        }
        let (Object::Mutex(lock) | Object::RwLock(lock)) = object else {
            return Err(SyncError::NotHolder);
        };
        let held = match way {
            Some((_, mode)) => lock.unlock(holder, mode),
            None => lock.give_back(holder),
        };
        if !held {
            return Err(SyncError::NotHolder);
        }
        out.extend(granted(lock.admit()));
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
        if parties == 0 || parties > max && parties != EVERY_NODE {
            return Err(SyncError::PartiesOutOfRange { got: parties, max });
        }
        self.check_ticket(owner)?;
        let needed = if parties == EVERY_NODE { self.members } else { parties as usize };
        let Object::Barrier { parties: expected, waiters } =
            self.object(name, Kind::Barrier, None)?
        else {
            return Ok(None);
        };
        if waiters.is_empty() {
            *expected = parties; // the first waiter of a meeting says how many it is
        } else if *expected != parties {
            return Err(SyncError::PartiesMismatch { expected: *expected, got: parties });
        }
        let index = waiters.len() as u32;
        if waiters.len() + 1 < needed {
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

    fn counter(
        &mut self,
        name: &SyncName,
        op: SyncOp,
        moved: Option<NodeId>,
    ) -> Result<Outcome, SyncError> {
        let sets = matches!(op, SyncOp::CounterSet { .. });
        if let Some(node) = moved.filter(|_| !sets && !self.objects.contains_key(name)) {
            return Err(SyncError::ValueLost { node });
        }
        let Object::Counter(value) = self.object(name, Kind::Counter, None)? else {
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
                out.extend(granted(lock.admit()));
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
    fn object(
        &mut self,
        name: &SyncName,
        kind: Kind,
        abandoned: Option<NodeId>,
    ) -> Result<&mut Object, SyncError> {
        if !self.objects.contains_key(name) && self.objects.len() >= SYNC_OBJECTS_MAX {
            return Err(SyncError::TooManyObjects { limit: SYNC_OBJECTS_MAX as u32 });
        }
        let object =
            self.objects.entry(name.clone()).or_insert_with(|| Object::new(kind, abandoned));
        let found = object.kind();
        if found == kind {
            Ok(object)
        } else {
            Err(SyncError::KindMismatch { found, wanted: kind })
        }
    }

    fn drop_if_idle(&mut self, name: &SyncName, moved: bool) {
        if !self.objects.get(name).is_some_and(|object| object.is_idle(moved)) {
            return;
        }
        let Some((name, object)) = self.objects.remove_entry(name) else { return };
        if moved && matches!(object, Object::Mutex(_) | Object::RwLock(_)) {
            if self.free.len() >= SYNC_OBJECTS_MAX {
                self.free.clear();
            }
            self.free.insert(name);
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

fn kind_and_mode(held: Held) -> (Kind, Mode) {
    match held {
        Held::Mutex => (Kind::Mutex, Mode::Alone),
        Held::Read => (Kind::RwLock, Mode::Shared),
        Held::Write => (Kind::RwLock, Mode::Alone),
    }
}

fn granted(entered: Vec<(Owner, Outcome)>) -> impl Iterator<Item = Addressed> {
    entered.into_iter().map(|(owner, outcome)| reply(owner, Ok(outcome)))
}

/// Its epoch is filled in where it is sent.
pub(super) fn reply(owner: Owner, result: Result<Outcome, SyncError>) -> Addressed {
    (owner.node, SyncReply { ticket: owner.ticket, epoch: 0, result })
}
