//! What nodes say to each other about pages. Byte layout: `wire`.

use super::recover::Recover;
use super::walk::Walk;
use crate::types::{Access, Age, NodeId, NodeSet, Page, Version};

/// Most companions of one request: with the page itself, one message carries 16 pages, where
/// throughput stops growing (FACTS.md: "16 pages is the knee").
pub const COMPANIONS_MAX: usize = 15;

/// A message of the page protocol. Any may be delivered late or out of order. A node may repeat
/// requests and invalidations; the network may repeat nothing, since a second grant of ownership
/// would make a second owner.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    /// Asks for a page; follows hints to its owner.
    Request(Request),
    /// The owner's answer, straight to the requester.
    Grant(Grant),
    /// A new owner asks a holder of a copy to drop it.
    Invalidate(Invalidate),
    /// The copy is gone, and none of an older version will be installed.
    InvalidateAck(InvalidateAck),
    /// Tells a node that forwarded a request who owns the page now.
    Hint(Hint),
    /// A node that owns more than its share asks whether another has room.
    RoomWanted(RoomWanted),
    /// The answer.
    Room(Room),
    /// Room that was given is not needed.
    RoomUnused(RoomUnused),
    /// Pages go to a node that has given room for them.
    HandOver(HandOver),
    /// What survivors say to each other when nodes are lost.
    Recover(Recover),
    /// What is said about walk-shared pages.
    Walk(Walk),
}

impl Message {
    /// Whether the message must never wait behind a [`Message::Request`].
    pub fn is_urgent(&self) -> bool {
        match self {
            Self::Grant(_) | Self::Invalidate(_) | Self::InvalidateAck(_) => true,
            Self::Room(_) | Self::RoomUnused(_) | Self::Recover(_) | Self::Walk(_) => true,
            // Nobody has asked for the pages of a hand-over, so nobody waits for it.
            Self::Request(_) | Self::Hint(_) | Self::RoomWanted(_) | Self::HandOver(_) => false,
        }
    }

    /// Whether its receiver may see stores of the sender that are later than those to walk-shared
    /// pages: then these go first, see [`super::Protocol::flush`].
    pub fn waits_for_flush(&self) -> bool {
        match self {
            Self::Grant(grant) => !grant.pages.is_empty(),
            Self::InvalidateAck(_) | Self::HandOver(_) | Self::Walk(Walk::Offer(_)) => true,
            Self::Request(_) | Self::Hint(_) | Self::Invalidate(_) | Self::Walk(_) => false,
            Self::RoomWanted(_) | Self::Room(_) | Self::RoomUnused(_) | Self::Recover(_) => false,
        }
    }
}

/// Asks for `page`, and for its companions as far as the answering owner can give them at once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// The page that is needed.
    pub page: Page,
    /// The right that is needed.
    pub access: Access,
    /// The node that asks, to which the owner answers.
    pub requester: NodeId,
    /// Number of this request at the requester; the answer repeats it.
    pub seq: u32,
    /// The version of the bytes in the requester's frame.
    pub have: Version,
    /// Seniority of the oldest episode that waits for the page.
    pub age: Age,
    /// The version at which the receiver is believed to have become owner. A receiver that has not
    /// seen that version yet has a grant of it under way.
    pub owner_since: Version,
    /// The nodes that passed the request on.
    pub via: NodeSet,
    /// The requester has seen nothing of the lease block around `page`, and takes all of it.
    pub lease: bool,
    /// Pages wanted as well, ascending; at most [`COMPANIONS_MAX`].
    pub companions: Vec<Companion>,
    /// How many copies of the request this one stands for: one, and those that it met in a queue.
    /// The answer repeats it, so that the requester knows when none is under way any more.
    pub copies: u8,
}

/// A page that would be welcome with a requested one: the next of a scan, or of a convoy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Companion {
    /// The page.
    pub page: Page,
    /// The version of the bytes in the requester's frame.
    pub have: Version,
}

/// The owner's answer to the request `seq` of the receiver.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Grant {
    /// [`Request::seq`].
    pub seq: u32,
    /// The requested page first, then those companions that the owner could give. Companions that
    /// are missing here are refused: the requester asks for them when it needs them. Empty when a
    /// later request of the same node for the page replaced this one.
    pub pages: Vec<PageGrant>,
    /// The whole lease block around the requested page goes to the requester, untouched; then
    /// `pages` is empty.
    pub lease: Option<Page>,
    /// Requests for the first page that were waiting at the old owner; they wait at the new one.
    pub waiters: Vec<Request>,
    /// [`Request::copies`].
    pub copies: u8,
}

/// One page of a [`Grant`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PageGrant {
    /// The page.
    pub page: Page,
    /// The version of its bytes.
    pub version: Version,
    /// What the receiver gets.
    pub right: Right,
    /// The bytes come with the message; otherwise the receiver's frame has them.
    pub data: bool,
    /// Fingerprint of the bytes where checking is on, for a grant without data.
    pub check: Option<u64>,
}

/// What a [`PageGrant`] gives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Right {
    /// A read-only copy; the sender stays owner and has the receiver in its copyset.
    Copy,
    /// The page itself.
    Ownership {
        /// The oldest version with the same bytes: a frame since then needs no data.
        same_since: Version,
        /// Holders of copies, which the new owner invalidates before it writes.
        copyset: NodeSet,
        /// How sure the owners are that each reader of this page goes on to write it, 0 to 3.
        migratory: u8,
    },
}

/// A new owner asks a holder of a copy to drop it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Invalidate {
    /// The page.
    pub page: Page,
    /// The version that the sender is about to write: copies below it must go.
    pub version: Version,
    /// Seniority of the oldest episode that waits for the acknowledgement.
    pub age: Age,
}

/// Answers an [`Invalidate`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InvalidateAck {
    /// The page.
    pub page: Page,
    /// [`Invalidate::version`].
    pub version: Version,
}

/// Tells a node that passed on a request for `page` who owns it now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Hint {
    /// The page.
    pub page: Page,
    /// Its owner, or the node that a grant of ownership is under way to.
    pub owner: NodeId,
    /// The version at which `owner` became, or becomes, the owner.
    pub owner_since: Version,
}

/// Asks for frames to be kept free for pages of the sender.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RoomWanted {
    /// How many would be of use; at least one.
    pub frames: u8,
    /// The sender has more than its share: copies in use are to make room, too.
    pub pressing: bool,
    /// The age for whose sake it is.
    pub age: Age,
}

/// Frames that are kept free for pages of the receiver from now on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Room {
    /// How many; 0: the sender has none.
    pub frames: u8,
}

/// Gives back room that was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RoomUnused {
    /// How many frames.
    pub frames: u32,
}

/// Pages with their ownership, for which the receiver has given room.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HandOver {
    /// At most [`super::HAND_OVER_MAX`], each with ownership and data.
    pub pages: Vec<PageGrant>,
}
