//! The coherence protocol: Ivy with a dynamic distributed manager, as a machine without I/O.
//!
//! K. Li and P. Hudak, "Memory Coherence in Shared Virtual Memory Systems", TOCS 7(4), 1989 (*IVY*
//! below), section 3.3. A page has one owner; other nodes follow hints to it. The owner answers the
//! requester directly. A reader joins the owner's copyset; a writer takes the page with ownership
//! and copyset, invalidates the copies in parallel, and writes when all have acknowledged.
//!
//! Where this departs from the paper:
//!
//! - *Hints carry the version at which their target became owner, and only ever move forward.*
//!   IVY points a forwarder of a write at the requester, which then queues what arrives until it
//!   is owner itself. With holds ordered by age, such a distributed queue lets a young request stand
//!   in front of an old one where nobody can see it. Here requests wait at the owner only, which
//!   serves the oldest first and hands the rest over with the page; forwarders learn the owner from
//!   a [`Hint`] when the request has been answered. Following hints strictly raises the version, so
//!   it ends at the owner, or at a node to which a grant is under way.
//! - *An invalidation that overtakes a grant* is acknowledged at once, and the grant is void when
//!   it comes: grants below the invalidation's version are not installed. Nothing waits, and no
//!   old copy can appear after the acknowledgement.
//! - *Versions* (48 bits, raised at every entry to `Modified`) name bytes. An owner knows since which
//!   version the bytes are the same, so a frame from then on needs no data, also when a page came
//!   back unwritten.
//! - *Walk-shared pages*, which several nodes may write at once: see [`walk`].
//!
//! The machine changes memory and sends messages through [`Effects`]; the engine, the model checker
//! and the simulator implement it. It has no clock: the engine says when a thread has run.

mod counters;
mod episode;
mod evict;
#[cfg(feature = "mutations")]
mod inspect;
mod local;
mod message;
mod mutation;
mod owner;
mod pattern;
mod receiver;
mod recover;
mod room;
mod table;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use counters::Arrivals;
pub use counters::Counters;
pub use evict::Eviction;
pub use message::{
    COMPANIONS_MAX, Companion, Grant, HandOver, Hint, Invalidate, InvalidateAck, Message,
    PageGrant, Request, Right, Room, RoomUnused, RoomWanted,
};
pub use mutation::Mutation;
pub use recover::{Held, Holding, Holdings, RUNS_MAX, Recover, Restored, Run, Verdict, Yours};
pub use room::HAND_OVER_MAX;
pub use table::{Homes, PageState};
pub use walk::{
    CHANGES_MAX, Change, Conflict, Freeze, Join, Link, Offer, Report, Table as WalkTable,
    WALK_HOME, WALK_PAGES_MAX, Walk,
};

use crate::types::{Access, Age, NodeId, NodeSet, Page, ThreadId, Version};
use episode::{Episodes, Rewant};
use pattern::{Convoys, Guesses, Streams};
use recover::Recovery;
use table::Table;
use walk::Walks;

/// Pages of a lease block: 2 MiB.
pub const LEASE_PAGES: u64 = 512;

/// What the machine does to the world; every call takes effect before it returns.
pub trait Effects {
    /// Sends `message` to `to`. For a [`Grant`] or a [`HandOver`], the bytes of each page with `data`
    /// are those of the frame now, in order; so for an [`Offer`]. For a [`Join`] they are the twin's.
    fn send(&mut self, to: NodeId, message: Message);
    /// Puts the bytes that came with the message being handled into the frame of `page`; `payload`
    /// counts the pages of the message that have data.
    fn fill(&mut self, page: Page, payload: usize);
    /// Makes the frame accessible, and wakes the threads that wait for it.
    fn install(&mut self, page: Page, right: Access);
    /// Takes away the right to write.
    fn protect(&mut self, pages: &[Page]);
    /// Takes away every right; the frame keeps its bytes.
    fn revoke(&mut self, pages: &[Page]);
    /// Takes away every right, and gives the frame back: its bytes are zero from now on.
    fn discard(&mut self, page: Page);
    /// Whether `page` has a frame, or may take one now.
    fn may_take(&mut self, page: Page) -> bool;
    /// Takes away every right, until [`Effects::unpoison`]: who touches the page learns that it is lost.
    fn poison(&mut self, page: Page);
    /// These pages are not lost any more: who touches one faults.
    fn unpoison(&mut self, pages: Range<Page>);
    /// Puts the content that this node restores into the frame of `page`, which nobody can read.
    fn restore(&mut self, page: Page);
    /// A fingerprint of the frame's bytes. Called only while nobody can write them.
    fn fingerprint(&mut self, page: Page) -> u64;
    /// The fingerprint of zeros.
    fn zero_fingerprint(&self) -> u64;
    /// `page` leaves `Modified`; whether its bytes are those with which it got there. For people.
    fn left_modified(&mut self, page: Page, unchanged: bool) {
        let _ = (page, unchanged);
    }
    /// Where `page` stands in a page table that a processor of this node uses, if that can be proven
    /// from what is here, and a walk has nothing to store to it. `here` tells which pages are. Asked
    /// for any page that somebody wants to write; `likely`, if something speaks for it.
    fn table(
        &mut self,
        page: Page,
        likely: bool,
        here: &dyn Fn(Page) -> bool,
    ) -> Option<WalkTable> {
        let _ = (page, likely, here);
        None
    }
    /// Whether a page that stood at `table` still does as far as this node can see, and, if it has
    /// `changed`, still is one that a walk has nothing to store to.
    fn is_table(
        &mut self,
        page: Page,
        table: WalkTable,
        changed: bool,
        here: &dyn Fn(Page) -> bool,
    ) -> bool {
        let _ = (page, table, changed, here);
        false
    }
    /// Makes the bytes of the frame the twin of `page`.
    fn copy_twin(&mut self, page: Page) {
        let _ = page;
    }
    /// `page` needs no twin any more.
    fn drop_twin(&mut self, page: Page) {
        let _ = page;
    }
    /// Appends the words in which the frame of `page` differs from its twin, and puts them into the
    /// twin.
    fn take_changes(&mut self, page: Page, changes: &mut Vec<Change>) {
        let _ = (page, changes);
    }
    /// A word of the twin of `page`.
    fn twin_word(&mut self, page: Page, index: u16) -> u64 {
        let _ = (page, index);
        0
    }
    /// A fingerprint of the twin of `page`.
    fn twin_fingerprint(&mut self, page: Page) -> u64 {
        let _ = page;
        0
    }
    /// Puts the new words into frames and twins. Says where the frame already had another value than
    /// the twin and the new one.
    fn apply(&mut self, changes: &[Change]) -> Option<Conflict> {
        let _ = changes;
        None
    }
    /// Two nodes have changed the same word of a walk-shared page: the region can't go on.
    fn conflict(&mut self, conflict: Conflict) {
        let _ = conflict;
    }
}

/// What a protocol machine is told at its start; the same on all nodes, but for `me`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Settings {
    /// This node.
    pub me: NodeId,
    /// Nodes in the cluster.
    pub nodes: usize,
    /// Pages in the region.
    pub pages: u64,
    /// Pages that a first touch leases at once.
    pub lease_pages: u64,
    /// First owners.
    pub homes: Homes,
    /// Features that can be switched off.
    pub features: Features,
    /// Changes the protocol for the worse; for tests of the model checker.
    #[cfg(feature = "mutations")]
    pub mutation: Option<Mutation>,
}

/// Switches. On by default, but for `recover`, `zeros` and `walk_shared`; `check` is on in debug builds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Features {
    /// Untouched memory of another node is taken over by the lease block.
    pub lease: bool,
    /// Scans ask for pages ahead.
    pub fault_around: bool,
    /// Pages that go together are asked for together.
    pub convoys: bool,
    /// Readers that always go on to write get the page itself.
    pub migratory: bool,
    /// A page that came back as it went needs no data.
    pub unchanged: bool,
    /// Grants without data carry a fingerprint, and the receiver compares.
    pub check: bool,
    /// Threads walk page tables that lie in these pages, and that may count as a write.
    pub walks_write: bool,
    /// Page-table pages are walk-shared when somebody else asks to write them, or when they came back
    /// unchanged so often; none: no page is. The same on all nodes. Off unless somebody can tell which
    /// pages those are, [`Effects::table`].
    pub walk_shared: Option<u8>,
    /// Survivors go on when nodes are lost, [`Protocol::change`]. The same on all nodes.
    pub recover: bool,
    /// With `recover`: the first touch of a lease block is announced to all, so that survivors keep
    /// memory of a lost node that nobody has touched. The same on all nodes.
    pub zeros: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            lease: true,
            fault_around: true,
            convoys: true,
            migratory: true,
            unchanged: true,
            check: cfg!(debug_assertions),
            walks_write: false,
            walk_shared: None,
            recover: false,
            zeros: false,
        }
    }
}

/// A message that no correct peer sends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A page beyond the region.
    #[error("page {page} is beyond the region's {pages} pages")]
    PageOutOfRange {
        /// The page.
        page: u64,
        /// Pages in the region.
        pages: u64,
    },
    /// A node beyond the cluster.
    #[error("a message names nodes beyond the cluster's {nodes}")]
    UnknownNode {
        /// Nodes in the cluster.
        nodes: usize,
    },
    /// Ownership of a page that is owned here.
    #[error("page {page} was granted to its owner")]
    SecondOwner {
        /// The page.
        page: u64,
    },
    /// An invalidation of a page that is owned here.
    #[error("page {page} was invalidated at its owner")]
    OwnerInvalidated {
        /// The page.
        page: u64,
    },
    /// A grant without data for bytes that this node does not have.
    #[error("page {page} was granted without data, but the bytes here differ")]
    WrongBytes {
        /// The page.
        page: u64,
    },
    /// Pages without room for them, or room that was not asked for.
    #[error("node {node} hands over, or gives, what was not agreed on")]
    Room {
        /// The node.
        node: usize,
    },
    /// A message about a loss that is not due, or one that the loss should have kept back.
    #[error("node {node} sent a message that is not due in the recovery from a loss")]
    Recovery {
        /// The node.
        node: usize,
    },
    /// A message about walk-shared pages that is not due.
    #[error("node {node} sent a message about walk-shared pages that is not due")]
    WalkShared {
        /// The node.
        node: usize,
    },
    /// A message about a page that is, or is not, walk-shared.
    #[error("page {page} is not walk-shared where a message says so, or is where it must not be")]
    WalkPage {
        /// The page.
        page: u64,
    },
    /// A grant that contradicts itself.
    #[error("a grant of page {page} is malformed")]
    MalformedGrant {
        /// The page.
        page: u64,
    },
}

/// One region at one node, or the part of it that one worker serves.
#[derive(Clone)]
pub struct Protocol {
    settings: Settings,
    /// Pages that this machine serves; other workers serve the rest of the region.
    served: Range<Page>,
    table: Table,
    /// Pages with something under way.
    pending: BTreeMap<Page, Pending>,
    /// Requests without an answer, by number.
    outbound: BTreeMap<u32, Outbound>,
    /// Lease blocks asked for, by first page, with the number of the request.
    leasing: BTreeMap<Page, u32>,
    episodes: Episodes,
    streams: Streams,
    convoys: Convoys,
    guesses: Guesses,
    /// Lamport clock: ages of episodes.
    clock: u64,
    last_seq: u32,
    /// Holds that became complete and have not been reported.
    ready: Vec<ThreadId>,
    /// Pages that a hold lost while it gathered.
    rewant: Vec<Rewant>,
    /// Threads whose episodes kept a companion of some request here.
    blamed: BTreeSet<ThreadId>,
    rooms: room::Rooms,
    /// Pages that threads need and that find no frame.
    starved: BTreeSet<Page>,
    recovery: Recovery,
    walks: Walks,
    ended: bool,
    arrivals: Arrivals,
    counters: Counters,
}

/// What is under way for one page.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Pending {
    /// What threads of this node wait for.
    need: Option<Need>,
    /// The request that is to bring it.
    request: Option<Outstanding>,
    /// This node owns the page and waits for copies to go.
    invalidating: Option<Invalidating>,
    /// Requests that wait here: for an episode to end, for `invalidating`, or for a grant to us.
    waiters: Vec<Request>,
    /// An invalidation that waits for an episode to end.
    deferred: Option<(NodeId, Invalidate)>,
}

impl Pending {
    fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Need {
    access: Access,
    age: Age,
}

/// A request for a page, or one that it accompanies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Outstanding {
    seq: u32,
    access: Access,
    age: Age,
    /// Copies below this version are void: an invalidation has overtaken them.
    void_below: Version,
}

/// A request without an answer, or one of which copies are still under way.
///
/// A copy may be answered at any time, and without bytes if the frame had them when it was sent: so
/// the frames that it speaks of stay until none is under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Outbound {
    page: Page,
    companions: Vec<Page>,
    /// Copies under way; at the most that the type can count, it is not known any more.
    copies: u8,
    /// It has been answered.
    closed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Invalidating {
    missing: NodeSet,
    version: Version,
    age: Age,
}

/// Counters are not part of a machine's state: the model checker would tell states apart by them.
impl std::hash::Hash for Protocol {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.table.hash(state);
        self.pending.hash(state);
        self.outbound.hash(state);
        self.leasing.hash(state);
        self.episodes.hash(state);
        self.streams.hash(state);
        self.convoys.hash(state);
        self.guesses.hash(state);
        (self.clock, self.last_seq, self.ended).hash(state);
        (&self.ready, &self.rewant, &self.rooms, &self.starved).hash(state);
        (&self.recovery, &self.walks).hash(state);
    }
}

/// The right that a state gives.
fn right_of(state: PageState) -> Option<Access> {
    match state {
        PageState::Invalid | PageState::Lost => None,
        PageState::Shared => Some(Access::Read),
        PageState::Modified | PageState::WalkShared => Some(Access::Write),
    }
}

impl Protocol {
    /// A machine for a region that nobody has touched.
    pub fn new(settings: Settings) -> Self {
        let table =
            Table::new(settings.me, settings.pages, settings.lease_pages, settings.homes.clone());
        let recovery = Recovery::new(NodeSet::first(settings.nodes));
        let arrivals = Arrivals::new(settings.pages);
        Self {
            served: Page(0)..Page(settings.pages),
            settings,
            table,
            pending: BTreeMap::new(),
            outbound: BTreeMap::new(),
            leasing: BTreeMap::new(),
            episodes: Episodes::default(),
            streams: Streams::default(),
            convoys: Convoys::default(),
            guesses: Guesses::default(),
            clock: 0,
            last_seq: 0,
            ready: Vec::new(),
            rewant: Vec::new(),
            blamed: BTreeSet::new(),
            rooms: room::Rooms::default(),
            starved: BTreeSet::new(),
            recovery,
            walks: Walks::default(),
            ended: false,
            arrivals,
            counters: Counters::default(),
        }
    }

    /// Has the machine ask only for these pages along with others: a worker's stripe.
    pub fn restricted_to(mut self, pages: Range<Page>) -> Self {
        self.served = pages;
        self
    }

    /// The state of `page` at this node.
    pub fn state(&self, page: Page) -> PageState {
        self.table.get(page).state
    }

    /// Whether this node owns `page`.
    pub fn owns(&self, page: Page) -> bool {
        self.table.get(page).is_owner()
    }

    /// The copyset of a page owned here.
    pub fn copyset(&self, page: Page) -> NodeSet {
        self.table.get(page).copyset()
    }

    /// Whether nothing is under way at this node.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
            && self.outbound.is_empty()
            && self.leasing.is_empty()
            && self.walks.is_idle()
            && !self.is_recovering()
            && self.has_announced()
            && self.has_restored()
    }

    /// Requests of this node without an answer.
    pub fn outstanding(&self) -> usize {
        self.outbound.values().filter(|outbound| !outbound.closed).count()
    }

    /// What has happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Bytes of metadata allocated for pages.
    pub fn metadata_bytes(&self) -> u64 {
        self.table.allocated_bytes()
    }

    /// Holds that have become complete since the last call.
    pub fn take_ready(&mut self) -> Vec<ThreadId> {
        std::mem::take(&mut self.ready)
    }

    /// Threads whose episodes something waits for, or was refused because of: the engine looks
    /// whether they have run.
    pub fn contenders(&mut self) -> BTreeSet<ThreadId> {
        let mut threads = std::mem::take(&mut self.blamed);
        for (&page, pending) in &self.pending {
            if pending.invalidating.is_none()
                && let Some(waiter) = oldest(&pending.waiters)
            {
                threads.extend(self.episodes.keepers(page, waiter.access, waiter.age));
            }
            if let Some((_, invalidate)) = pending.deferred {
                threads.extend(self.episodes.keepers(page, Access::Write, invalidate.age));
            }
        }
        threads
    }

    /// Frames are short: counts all threads among the next contenders, since one that has used its
    /// pages and sleeps would keep them.
    pub fn blame_all(&mut self) {
        self.blamed.extend(self.episodes.threads());
    }

    fn me(&self) -> NodeId {
        self.settings.me
    }

    fn send<E: Effects>(&mut self, to: NodeId, message: Message, fx: &mut E) {
        self.counters.messages_sent += 1;
        self.count_ownership(to, &message);
        fx.send(to, message);
    }

    fn tick(&mut self) -> Age {
        self.clock += 1;
        Age { clock: self.clock, node: self.me() }
    }

    /// Lamport 1978, rule IR2.
    fn observe(&mut self, age: Age) {
        self.clock = self.clock.max(age.clock);
    }

    fn pending(&mut self, page: Page) -> &mut Pending {
        self.pending.entry(page).or_default()
    }

    fn tidy(&mut self, page: Page) {
        if self.pending.get(&page).is_some_and(Pending::is_idle) {
            self.pending.remove(&page);
        }
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        #[cfg(feature = "mutations")]
        return self.settings.mutation == Some(mutation);
        #[cfg(not(feature = "mutations"))]
        {
            let _ = mutation;
            false
        }
    }
}

/// The request to serve first.
fn oldest(waiters: &[Request]) -> Option<&Request> {
    waiters.iter().min_by_key(|waiter| waiter.age)
}
