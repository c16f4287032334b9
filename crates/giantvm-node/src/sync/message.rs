//! What is asked of a home, and what it answers. Byte layout: `wire`.

use std::fmt;

use dsm_core::types::NodeId;
use thiserror::Error;

use crate::limits::NAME_BYTES_MAX;

/// The name of a synchronisation object: 1 to 200 bytes of UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SyncName(Box<str>);

impl SyncName {
    /// `name` as an object's name.
    ///
    /// # Errors
    /// [`NameError`] if it is empty or longer than 200 bytes.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(NameError { len: name.len() });
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SyncName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text can't be the name of a synchronisation object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a name must have 1 to {NAME_BYTES_MAX} bytes, this one has {len}")]
pub struct NameError {
    /// Its length, in bytes.
    pub len: usize,
}

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// One holder.
    Mutex,
    /// One writer or many readers.
    RwLock,
    /// A meeting of a stated number of waiters.
    Barrier,
    /// A 64-bit number.
    Counter,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mutex => "mutex",
            Self::RwLock => "read-write lock",
            Self::Barrier => "barrier",
            Self::Counter => "counter",
        })
    }
}

/// One request to the home of `name`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SyncRequest {
    /// The requester's number for it; the reply repeats it. For a lock it names the holder.
    pub ticket: u64,
    /// The number of the epoch that the requester was told of last.
    pub epoch: u16,
    /// The object.
    pub name: SyncName,
    /// What to do.
    pub op: SyncOp,
}

/// What to do with an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SyncOp {
    /// Waits for a mutex. Reply: [`Outcome::Granted`] or [`Outcome::Abandoned`], as for every lock.
    MutexLock,
    /// Takes a mutex if that needs no waiting. Reply: [`Outcome::Granted`] or [`Outcome::Busy`].
    MutexTryLock,
    /// Releases a mutex. Reply: [`Outcome::Unlocked`].
    MutexUnlock {
        /// The ticket that locked.
        holder: u64,
    },
    /// Waits to enter a read-write lock beside other readers.
    ReadLock,
    /// Enters beside other readers if that needs no waiting.
    ReadTryLock,
    /// A reader goes.
    ReadUnlock {
        /// The ticket that locked.
        holder: u64,
    },
    /// Waits to enter a read-write lock alone.
    WriteLock,
    /// Enters alone if that needs no waiting.
    WriteTryLock,
    /// The writer goes.
    WriteUnlock {
        /// The ticket that locked.
        holder: u64,
    },
    /// Waits until `parties` waiters are there. Reply: [`Outcome::Passed`].
    BarrierWait {
        /// How many; 1 to 16,384, or [`EVERY_NODE`], and the same for all that meet.
        parties: u32,
    },
    /// Adds, wrapping around at the ends of 64 bits. Reply: the value before.
    CounterAdd {
        /// What to add.
        delta: i64,
    },
    /// Reply: the value; 0 for a counter that nobody has set.
    CounterGet,
    /// Sets the value. Reply: the value before, or 0 where that is lost.
    CounterSet {
        /// The new value.
        value: i64,
    },
    /// Sets the value to `new` if it is `expected`. Reply: [`Outcome::Exchanged`].
    CompareExchange {
        /// The value it must have.
        expected: i64,
        /// The value it then gets.
        new: i64,
    },
    /// Takes a waiter off the object's queue. Reply: [`Outcome::Cancelled`] or
    /// [`Outcome::NotWaiting`].
    Cancel {
        /// The waiter's ticket. The request may have the same.
        waiter: u64,
    },
    /// Releases a lock, held in whatever way, that nobody here wants any more: if it was abandoned,
    /// the next holder is told again. Reply: [`Outcome::Unlocked`].
    GiveBack {
        /// The ticket that locked.
        holder: u64,
    },
}

/// As the number of parties of a [`SyncOp::BarrierWait`]: one for each member, by the epoch that the
/// home was told of last when the last of them comes.
pub const EVERY_NODE: u32 = u32::MAX;

impl SyncOp {
    /// The kind of object it is for, unless it is for more than one.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Self::MutexLock | Self::MutexTryLock | Self::MutexUnlock { .. } => Some(Kind::Mutex),
            Self::ReadLock
            | Self::ReadTryLock
            | Self::ReadUnlock { .. }
            | Self::WriteLock
            | Self::WriteTryLock
            | Self::WriteUnlock { .. } => Some(Kind::RwLock),
            Self::BarrierWait { .. } => Some(Kind::Barrier),
            Self::CounterAdd { .. }
            | Self::CounterGet
            | Self::CounterSet { .. }
            | Self::CompareExchange { .. } => Some(Kind::Counter),
            Self::Cancel { .. } | Self::GiveBack { .. } => None,
        }
    }

    /// The ticket whose lock it releases, and how that is held, if it says so.
    pub fn releases(self) -> Option<(u64, Option<Held>)> {
        match self {
            Self::MutexUnlock { holder } => Some((holder, Some(Held::Mutex))),
            Self::ReadUnlock { holder } => Some((holder, Some(Held::Read))),
            Self::WriteUnlock { holder } => Some((holder, Some(Held::Write))),
            Self::GiveBack { holder } => Some((holder, None)),
            _ => None,
        }
    }

    /// How it holds the lock that it asks for.
    pub fn takes(self) -> Option<Held> {
        match self {
            Self::MutexLock | Self::MutexTryLock => Some(Held::Mutex),
            Self::ReadLock | Self::ReadTryLock => Some(Held::Read),
            Self::WriteLock | Self::WriteTryLock => Some(Held::Write),
            _ => None,
        }
    }
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Held {
    /// A mutex.
    Mutex,
    /// A read-write lock, beside other readers.
    Read,
    /// A read-write lock, alone.
    Write,
}

/// To the new home of objects whose home was lost: the locks among them that the sender holds, or
/// some of them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SyncReport {
    /// The number of the epoch that the sender was told of last.
    pub epoch: u16,
    /// Whether the report of this epoch is complete with this part.
    pub last: bool,
    /// The locks.
    pub holds: Vec<Hold>,
}

/// One lock that is held.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Hold {
    /// The ticket that locked.
    pub ticket: u64,
    /// The lock.
    pub name: SyncName,
    /// How.
    pub held: Held,
    /// With which node it had gone, if the holder was told that it is abandoned.
    pub abandoned: Option<NodeId>,
}

/// The answer to one [`SyncRequest`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SyncReply {
    /// [`SyncRequest::ticket`].
    pub ticket: u64,
    /// The number of the epoch that the home was told of last, or that of the request that it
    /// refuses to keep: not lower than [`SyncRequest::epoch`]. A process that joined later is not meant.
    pub epoch: u16,
    /// What came of it.
    pub result: Result<Outcome, SyncError>,
}

/// What a request came to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// The requester holds the lock.
    Granted,
    /// The requester holds the lock, and what it protects may be half done: `node` is gone, and held
    /// it, or was its home, so that nobody knows who held it. Readers are told until a holder
    /// that is alone has been.
    Abandoned {
        /// The node.
        node: NodeId,
    },
    /// A try would have had to wait; nothing is held.
    Busy,
    /// The lock is released.
    Unlocked,
    /// All parties of the barrier are there.
    Passed {
        /// The requester was the `index`-th to come, from 0.
        index: u32,
    },
    /// A counter's value: before the operation, if it changes it.
    Value(i64),
    /// The end of a [`SyncOp::CompareExchange`].
    Exchanged {
        /// Whether the counter was as expected and is now changed.
        done: bool,
        /// The value before.
        before: i64,
    },
    /// The waiter is off the queue; no other reply to its ticket will come.
    Cancelled,
    /// The ticket doesn't wait there: its own reply, maybe a grant, was sent before this one.
    NotWaiting,
}

/// Why a home refuses a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
pub enum SyncError {
    /// The name is in use for something else.
    #[error("the name is in use for a {found}; choose another name for the {wanted}")]
    KindMismatch {
        /// What it is.
        found: Kind,
        /// What was asked for.
        wanted: Kind,
    },
    /// An unlock by one who doesn't hold the lock.
    #[error("the lock is not held by the one who unlocks it")]
    NotHolder,
    /// Waiters of one barrier disagree.
    #[error(
        "those who wait at the barrier expect {}, this one {}", parties(*expected), parties(*got)
    )]
    PartiesMismatch {
        /// What the first waiter said.
        expected: u32,
        /// What this one said.
        got: u32,
    },
    /// A number of parties that can't be.
    #[error("a barrier has 1 to {max} parties, not {got}")]
    PartiesOutOfRange {
        /// The request's.
        got: u32,
        /// The largest.
        max: u32,
    },
    /// The home has as many objects in use as it can.
    #[error("the home node already keeps {limit} objects; release some")]
    TooManyObjects {
        /// The bound.
        limit: u32,
    },
    /// The object has as many waiters as it can.
    #[error("{limit} requests already wait for the object")]
    QueueFull {
        /// The bound.
        limit: u32,
    },
    /// The node waits for and holds as much as it can.
    #[error("this node already waits for or holds {limit} locks")]
    TooManyTickets {
        /// The bound.
        limit: u32,
    },
    /// The ticket is already waiting or holding: an error in the requester.
    #[error("the ticket is already in use at the home node")]
    DuplicateTicket,
    /// A node was lost while some waited at the barrier: nobody waits there any more.
    #[error("node {node} is lost, and the meeting is void; wait again with those that are left")]
    BarrierBroken {
        /// The lost node.
        node: NodeId,
        /// The number of the epoch with which the home, or this node, was told of that.
        epoch: u16,
    },
    /// The counter's value was lost with its home; whether the operation was done is not known.
    #[error("the value was lost with node {node}; set it again")]
    ValueLost {
        /// The lost home.
        node: NodeId,
    },
    /// The request came to a node that isn't the object's home: an error in the requester.
    #[error("the request came to a node that does not keep the object; please report this")]
    NotHome,
    /// No node can be the object's home.
    #[error(
        "no node is left that was there from the start, and only such nodes keep locks, barriers and \
         counters"
    )]
    NoHome,
}

fn parties(number: u32) -> String {
    match number {
        EVERY_NODE => "one party of every node".into(),
        number => format!("{number} parties"),
    }
}
