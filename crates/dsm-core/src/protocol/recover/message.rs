//! What survivors say to each other when nodes are lost. Byte layout: `wire`.

use crate::types::{NodeId, NodeSet, Page, Version};

/// Most runs of pages in one [`Holdings`] or [`Verdict`].
pub const RUNS_MAX: usize = 512;

/// A message of the recovery from a loss, or for the sake of one. It belongs to the epoch of its sender.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Recover {
    /// The sender knows of the epoch, and asks for nothing and grants nothing until all have settled.
    Entered {
        /// How many messages that give ownership it has ever sent to the receiver.
        sent: u64,
        /// It has opened the region after others had, and has settled no epoch since: it knows nothing of
        /// it.
        arrives: bool,
    },
    /// What the sender has of the pages that the receiver rules on.
    Holdings(Holdings),
    /// What becomes of the pages that the sender rules on.
    Verdict(Verdict),
    /// The sender has all verdicts.
    Settled,
    /// The sender is about to touch a lease block of its own that nobody has touched, or to give it away.
    Touch {
        /// The first page of the block.
        page: Page,
    },
    /// The sender has noted a [`Recover::Touch`].
    Noted {
        /// The first page of the block.
        page: Page,
    },
    /// To who rules on these pages: the sender has new content for them, if all are lost.
    Restore {
        /// Pages of one lease block.
        run: Run,
    },
    /// From who rules on these pages: they are not lost any more.
    Unlost {
        /// Pages of one lease block.
        run: Run,
        /// Who has new content for them, and is about to own them.
        owner: NodeId,
        /// Their version from then on: above that of every frame at a survivor.
        version: Version,
    },
    /// To the coming owner: the sender does not take these pages for lost any more.
    Cleared {
        /// As in [`Recover::Unlost`].
        run: Run,
    },
    /// Refuses a [`Recover::Restore`]; nothing has changed.
    NotLost {
        /// As in [`Recover::Restore`].
        run: Run,
        /// The first of them that is not lost, or that another node restores.
        page: Page,
    },
}

/// A part of what a node has of the pages of one recoverer. A page that no run names belongs to its
/// first owner.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Holdings {
    /// Which part it is, from 0.
    pub part: u32,
    /// Whether it is the one with the highest number.
    pub last: bool,
    /// No frame at the sender has a version above this.
    pub highest: Version,
    /// At most [`RUNS_MAX`].
    pub runs: Vec<Held>,
}

/// Pages in a row of which a node has the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Held {
    /// The pages.
    pub run: Run,
    /// What it has.
    pub holding: Holding,
}

/// Pages in a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Run {
    /// The first.
    pub first: Page,
    /// How many; not 0.
    pub pages: u32,
}

impl Run {
    /// The page after the last.
    pub fn end(self) -> Page {
        Page(self.first.0.saturating_add(self.pages.into()))
    }
}

/// What a node has of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Holding {
    /// It is the owner, and not the first.
    Owned,
    /// It has a valid copy.
    Copy,
    /// It was the first owner, has given the page away, and has no valid copy.
    Given,
    /// It knows that nothing is left. Where first touches are announced, not all may know.
    Lost,
}

/// A part of what a recoverer has decided for the receiver.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Verdict {
    /// Which part it is, from 0.
    pub part: u32,
    /// Whether it is the one with the highest number.
    pub last: bool,
    /// The version of the pages in `yours`: above that of every frame at a survivor.
    pub version: Version,
    /// Pages whose owner was lost; the receiver has valid copies, and owns them from now on.
    pub yours: Vec<Yours>,
    /// Pages of which nothing is left.
    pub lost: Vec<Run>,
    /// For a receiver that has just arrived: whole lease blocks that nobody has said to touch.
    pub untouched: Vec<Run>,
}

/// Pages in a row that the receiver owns from now on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Yours {
    /// The pages.
    pub run: Run,
    /// Who else has a valid copy.
    pub copyset: NodeSet,
}
