//! What the threads of a world do, and what world it is.

use dsm_core::protocol::{Features, Homes, Mutation, Settings};
use dsm_core::{Access, Epoch, NodeId, Page};

/// What an instruction does with one page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Use {
    Read,
    /// Stores a value that nothing has stored before.
    Write,
    /// Stores such a value to one word only.
    Store(u16),
    /// Stores a value to word 0 that no page table has.
    Spoil,
    /// Needs the right to write and stores what is there, like a processor's walk of page tables.
    Walk,
}

impl Use {
    pub fn access(self) -> Access {
        if self == Self::Read { Access::Read } else { Access::Write }
    }
}

/// One step of a thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// An instruction: needs all these pages at the same time.
    Access(Vec<(Page, Use)>),
    /// Holds pages, uses them without faulting, and lets go.
    Hold(Vec<Page>, Access),
    /// Asks for copies, and does not wait.
    Prefetch(Vec<Page>),
    /// Gives so many lost pages new content, each the same; none if one of them is not lost.
    Restore(Page, u32),
}

pub fn read(page: u64) -> Op {
    Op::Access(vec![(Page(page), Use::Read)])
}

pub fn write(page: u64) -> Op {
    Op::Access(vec![(Page(page), Use::Write)])
}

pub fn walk(page: u64) -> Op {
    Op::Access(vec![(Page(page), Use::Walk)])
}

pub fn store(page: u64, word: u16) -> Op {
    Op::Access(vec![(Page(page), Use::Store(word))])
}

pub fn spoil(page: u64) -> Op {
    Op::Access(vec![(Page(page), Use::Spoil)])
}

pub fn access(uses: &[(u64, Use)]) -> Op {
    Op::Access(uses.iter().map(|&(page, how)| (Page(page), how)).collect())
}

pub fn writes(pages: &[u64]) -> Op {
    Op::Access(pages.iter().map(|&page| (Page(page), Use::Write)).collect())
}

pub fn hold(pages: &[u64], access: Access) -> Op {
    Op::Hold(pages.iter().map(|&page| Page(page)).collect(), access)
}

pub fn prefetch(pages: &[u64]) -> Op {
    Op::Prefetch(pages.iter().map(|&page| Page(page)).collect())
}

pub fn restore(page: u64) -> Op {
    Op::Restore(Page(page), 1)
}

/// A thread: where it runs, and what.
#[derive(Clone, Debug)]
pub struct Script {
    pub node: usize,
    /// In which process of the node: 0, or 1 for the one that joined.
    pub life: u8,
    pub ops: Vec<Op>,
}

pub fn on(node: usize, ops: &[Op]) -> Script {
    Script { node, life: 0, ops: ops.to_vec() }
}

/// As [`on`], when the node has joined.
pub fn later_on(node: usize, ops: &[Op]) -> Script {
    Script { node, life: 1, ops: ops.to_vec() }
}

/// What becomes of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is lost.
    Lose(usize),
    /// It joins as a new process: for the first time, or when all others know that it was lost.
    Join(usize),
}

impl Change {
    pub fn node(self) -> usize {
        match self {
            Self::Lose(node) | Self::Join(node) => node,
        }
    }
}

/// A world before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub pages: u64,
    pub lease_pages: u64,
    /// Pages that are page tables.
    pub tables: Vec<u64>,
    /// Share of each node in the region; also says how many nodes there are.
    pub shares: Vec<u64>,
    pub features: Features,
    pub scripts: Vec<Script>,
    /// What becomes of nodes, in this order, each at any moment.
    pub changes: Vec<Change>,
    /// Messages of one node to another arrive in order.
    pub fifo: bool,
    /// How many frames are given back, at any moment.
    pub evictions: u32,
    /// How often a node asks another for room, at any moment, to hand pages over.
    pub hand_overs: u32,
    /// Frames of a node from which on it gives frames back and hands pages over (simulator only).
    pub share: usize,
    /// Frames of a node from which on a page has to wait for one.
    pub capacity: usize,
    /// A thread's next instruction comes only after its episode has ended.
    pub calm: bool,
    pub mutation: Option<Mutation>,
}

/// Every feature off.
pub const PLAIN: Features = Features {
    lease: false,
    fault_around: false,
    convoys: false,
    migratory: false,
    unchanged: false,
    check: true,
    walks_write: false,
    walk_shared: None,
    recover: false,
    zeros: false,
};

impl Config {
    pub fn new(name: &str, shares: &[u64], pages: u64, scripts: Vec<Script>) -> Self {
        Self {
            name: name.to_owned(),
            pages,
            lease_pages: 1,
            tables: Vec::new(),
            shares: shares.to_vec(),
            features: PLAIN,
            scripts,
            changes: Vec::new(),
            fifo: false,
            calm: false,
            evictions: 0,
            hand_overs: 0,
            share: usize::MAX,
            capacity: usize::MAX,
            mutation: None,
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Features)) -> Self {
        change(&mut self.features);
        self
    }

    pub fn lease(mut self, pages: u64) -> Self {
        self.features.lease = true;
        self.lease_pages = pages;
        self
    }

    /// These pages are page tables, and shared when somebody asks for them. Links keep order.
    pub fn walk_sharing(mut self, tables: &[u64]) -> Self {
        self.tables = tables.to_vec();
        self.features.walk_shared = Some(0);
        self.fifo = true;
        self
    }

    pub fn losing(mut self, node: usize) -> Self {
        self.changes.push(Change::Lose(node));
        self
    }

    /// A node joins: one that was lost before, or was not there at first.
    pub fn joining(mut self, node: usize) -> Self {
        self.features.recover = true;
        self.changes.push(Change::Join(node));
        self
    }

    /// Whether the node is not there at first.
    pub fn is_late(&self, node: usize) -> bool {
        let first = self.changes.iter().find(|change| change.node() == node);
        first == Some(&Change::Join(node))
    }

    /// The epoch that the change of this number begins; that before the first has number 0.
    pub fn epoch(&self, number: usize) -> Epoch {
        let nodes = (0..self.nodes()).filter(|&node| !self.is_late(node));
        let mut epoch = Epoch::first(number as u16, nodes.filter_map(NodeId::new).collect());
        for (at, change) in self.changes.iter().enumerate().take(number) {
            let Some(node) = NodeId::new(change.node()) else { continue };
            epoch.joined.remove(&node);
            if matches!(change, Change::Join(_)) {
                epoch.members.insert(node);
                epoch.joined.insert(node, at as u16 + 1);
            } else {
                epoch.members.remove(node);
            }
        }
        epoch
    }

    /// These nodes are lost, and the others go on.
    pub fn recovering(mut self, lost: &[usize]) -> Self {
        self.features.recover = true;
        self.changes = lost.iter().map(|&node| Change::Lose(node)).collect();
        self
    }

    /// First touches are announced.
    pub fn announcing(mut self) -> Self {
        self.features.zeros = true;
        self
    }

    pub fn fifo(mut self) -> Self {
        self.fifo = true;
        self
    }

    pub fn evicting(mut self, frames: u32) -> Self {
        self.evictions = frames;
        self
    }

    pub fn handing_over(mut self, times: u32) -> Self {
        self.hand_overs = times;
        self
    }

    pub fn calm(mut self) -> Self {
        self.calm = true;
        self
    }

    pub fn nodes(&self) -> usize {
        self.shares.len()
    }

    /// The shares of those that are there at first.
    fn first_shares(&self) -> Vec<u64> {
        let none = (0..self.nodes()).all(|node| self.is_late(node) || self.shares[node] == 0);
        let share = |node| if self.is_late(node) { 0 } else { self.shares[node].max(none.into()) };
        (0..self.nodes()).map(share).collect()
    }

    pub fn settings(&self, node: usize) -> Settings {
        Settings {
            me: NodeId::new(node).expect("a node of the cluster"),
            nodes: self.nodes(),
            pages: self.pages,
            lease_pages: self.lease_pages,
            homes: Homes::spread(self.pages, self.lease_pages, &self.first_shares()),
            features: self.features,
            mutation: self.mutation,
        }
    }
}
