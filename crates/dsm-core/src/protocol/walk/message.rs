//! What nodes say to each other about walk-shared pages. Byte layout: `wire`.

use super::super::message::Request;
use crate::types::{Page, Version};

/// Most words of one [`Report`] or [`Freeze`]: more go in several, of which all but the last say so.
pub const CHANGES_MAX: usize = 256;

/// Most pages that are walk-shared at a time.
pub const WALK_PAGES_MAX: usize = 512;

/// Where a page stands in a guest's page tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Table {
    /// 1 for a table of pages, up to 4 or 5 for that which a CR3 names.
    pub level: u8,
    /// The entry that names it; none for that which a CR3 names.
    pub link: Option<Link>,
}

/// An entry of a page table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Link {
    /// The table.
    pub page: Page,
    /// Which of its 512 entries.
    pub index: u16,
}

/// A word of a walk-shared page that somebody stored to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Change {
    /// The page.
    pub page: Page,
    /// Which of its 512 words of 8 bytes.
    pub index: u16,
    /// What it was.
    pub old: u64,
    /// What it is.
    pub new: u64,
}

/// A message about walk-shared pages. `Home` is the node that puts them in order, see the module.
/// Those between the home and another node arrive in the order of sending.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Walk {
    /// An owner gives a page to the home, to be walk-shared.
    Offer(Offer),
    /// The home has the receiver share a page.
    Join(Join),
    /// A node tells the home what was stored there.
    Report(Report),
    /// The home tells that a report is in force everywhere.
    Reported {
        /// [`Report::number`].
        number: u64,
    },
    /// The home has a holder take pages from its processors.
    Freeze(Freeze),
    /// A holder has done so.
    Frozen {
        /// [`Freeze::order`].
        order: u64,
    },
    /// All holders have: the change applies.
    Thaw {
        /// [`Freeze::order`].
        order: u64,
    },
    /// What a page should be at a node that has nothing under way.
    Audit {
        /// The page.
        page: Page,
        /// The fingerprint of its twin.
        fingerprint: u64,
    },
}

/// A page with its ownership and bytes. The sender alone had it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Offer {
    /// The page.
    pub page: Page,
    /// The version of its bytes.
    pub version: Version,
    /// The oldest version with the same bytes.
    pub same_since: Version,
    /// Where it stands.
    pub table: Table,
    /// Requests for the page that waited for the old owner; they wait for the new one.
    pub waiters: Vec<Request>,
}

/// Answers a request for a walk-shared page; the bytes come with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Join {
    /// [`Request::seq`].
    pub seq: u32,
    /// [`Request::copies`].
    pub copies: u8,
    /// The page.
    pub page: Page,
    /// The version at which the home became its owner.
    pub version: Version,
    /// Where it stands.
    pub table: Table,
}

/// Words that a node found changed, all that it found at a time.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Report {
    /// Numbers the reports of the sender, from 1.
    pub number: u64,
    /// Ascending; at most [`CHANGES_MAX`].
    pub changes: Vec<Change>,
    /// Pages that are no longer fit to be walk-shared, ascending; in the last part only.
    pub leave: Vec<Page>,
    /// No further part follows.
    pub last: bool,
}

/// Pages whose words change, or that are no longer walk-shared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Freeze {
    /// Numbers what the home puts in order, from 1.
    pub order: u64,
    /// Words of pages that the receiver shares, ascending; at most [`CHANGES_MAX`].
    pub changes: Vec<Change>,
    /// Pages that it shares no longer, ascending; in the last part only.
    pub leave: Vec<Page>,
    /// No further part follows.
    pub last: bool,
}
