//! The fixed layouts. Reserved bytes are zero, and anything else in them is an error.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Derives what a layout needs, and states its size where a reader can check it.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $bytes:literal { $($field:ident : $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

layout! {
    /// Opens every frame.
    RawHeader, 16 {
        magic: U16,
        kind: u8,
        flags: u8,
        region: U32,
        body_len: U32,
        payload_pages: U16,
        epoch: U16,
    }
}

layout! {
    /// A request; its companions follow.
    RawRequest, 56 {
        page: U64,
        have: U64,
        owner_since: U64,
        age_clock: U64,
        via: U64,
        seq: U32,
        age_node: u8,
        requester: u8,
        flags: u8,
        companions: u8,
        copies: u8,
        reserved: [u8; 7],
    }
}

/// [`RawRequest::flags`]: to write, not only to read.
pub(super) const REQUEST_WRITE: u8 = 1 << 0;
/// [`RawRequest::flags`]: the whole lease block.
pub(super) const REQUEST_LEASE: u8 = 1 << 1;

layout! {
    /// A page wanted as well.
    RawCompanion, 16 {
        page: U64,
        have: U64,
    }
}

layout! {
    /// A grant; its pages and then its waiters (requests) follow.
    RawGrant, 16 {
        lease_page: U64,
        seq: U32,
        pages: u8,
        waiters: u8,
        flags: u8,
        copies: u8,
    }
}

/// [`RawGrant::flags`]: the lease block around `lease_page` goes to the receiver.
pub(super) const GRANT_LEASE: u8 = 1 << 0;

layout! {
    /// One page of a grant.
    RawPageGrant, 48 {
        page: U64,
        version: U64,
        same_since: U64,
        copyset: U64,
        check: U64,
        flags: u8,
        migratory: u8,
        reserved: [u8; 6],
    }
}

/// [`RawPageGrant::flags`]: ownership, not only a copy.
pub(super) const PAGE_OWNERSHIP: u8 = 1 << 0;
/// [`RawPageGrant::flags`]: the bytes are in the payload.
pub(super) const PAGE_DATA: u8 = 1 << 1;
/// [`RawPageGrant::flags`]: `check` is meant.
pub(super) const PAGE_CHECK: u8 = 1 << 2;

layout! {
    /// Asks a holder to drop its copy.
    RawInvalidate, 32 {
        page: U64,
        version: U64,
        age_clock: U64,
        age_node: u8,
        reserved: [u8; 7],
    }
}

layout! {
    /// Acknowledges an invalidation.
    RawAck, 16 {
        page: U64,
        version: U64,
    }
}

layout! {
    /// Tells who owns a page.
    RawHint, 24 {
        page: U64,
        owner_since: U64,
        owner: u8,
        reserved: [u8; 7],
    }
}

layout! {
    /// Asks for room.
    RawRoomWanted, 16 {
        age_clock: U64,
        age_node: u8,
        frames: u8,
        flags: u8,
        reserved: [u8; 5],
    }
}

/// [`RawRoomWanted::flags`]: copies in use are to make room, too.
pub(super) const ROOM_PRESSING: u8 = 1 << 0;

layout! {
    /// Room that is given, or given back.
    RawRoom, 8 {
        frames: U32,
        reserved: [u8; 4],
    }
}

layout! {
    /// Pages handed over; the pages follow.
    RawHandOver, 8 {
        pages: u8,
        reserved: [u8; 7],
    }
}

layout! {
    /// Where a walk-shared page stands in a guest's page tables.
    RawTable, 16 {
        link_page: U64,
        link_index: U16,
        level: u8,
        flags: u8,
        reserved: [u8; 4],
    }
}

/// [`RawTable::flags`]: an entry names it, not a CR3.
pub(super) const TABLE_LINKED: u8 = 1 << 0;

layout! {
    /// A page to be walk-shared; its waiters (requests) follow.
    RawOffer, 48 {
        page: U64,
        version: U64,
        same_since: U64,
        table: RawTable,
        waiters: u8,
        reserved: [u8; 7],
    }
}

layout! {
    /// Has the receiver share a page.
    RawJoin, 40 {
        page: U64,
        version: U64,
        table: RawTable,
        seq: U32,
        copies: u8,
        reserved: [u8; 3],
    }
}

layout! {
    /// What changes on walk-shared pages; changes and then pages that leave follow.
    RawChanges, 16 {
        number: U64,
        changes: U16,
        leave: U16,
        flags: u8,
        reserved: [u8; 3],
    }
}

/// [`RawChanges::flags`]: no further part follows.
pub(super) const WALK_LAST: u8 = 1 << 0;

layout! {
    /// A word that changes.
    RawChange, 32 {
        page: U64,
        old: U64,
        new: U64,
        index: U16,
        reserved: [u8; 6],
    }
}

layout! {
    /// A page.
    RawPage, 8 {
        page: U64,
    }
}

layout! {
    /// The number of what has been done, or may be done, about walk-shared pages.
    RawOrder, 8 {
        number: U64,
    }
}

layout! {
    /// What the twin of a page should be.
    RawAudit, 16 {
        page: U64,
        fingerprint: U64,
    }
}

layout! {
    /// The sender knows of an epoch.
    RawEntered, 16 {
        sent: U64,
        flags: u8,
        reserved: [u8; 7],
    }
}

/// [`RawEntered::flags`]: the sender has just opened the region.
pub(super) const ENTERED_ARRIVES: u8 = 1 << 0;

layout! {
    /// What a node has; runs of pages follow.
    RawHoldings, 24 {
        highest: U64,
        part: U32,
        runs: U16,
        flags: u8,
        reserved: [u8; 9],
    }
}

layout! {
    /// Pages in a row of which a node has the same.
    RawHeld, 16 {
        first: U64,
        pages: U32,
        holding: u8,
        reserved: [u8; 3],
    }
}

layout! {
    /// What a recoverer has decided; pages of the receiver and then lost pages follow.
    RawVerdict, 24 {
        version: U64,
        part: U32,
        yours: U16,
        lost: U16,
        flags: u8,
        reserved_a: u8,
        untouched: U16,
        reserved_b: [u8; 4],
    }
}

layout! {
    /// Pages in a row that the receiver owns from now on.
    RawYours, 24 {
        first: U64,
        pages: U32,
        reserved: [u8; 4],
        copyset: U64,
    }
}

layout! {
    /// Pages in a row.
    RawRun, 16 {
        first: U64,
        pages: U32,
        reserved: [u8; 4],
    }
}

layout! {
    /// Lost pages that get new content, and who will own them.
    RawUnlost, 24 {
        first: U64,
        pages: U32,
        owner: u8,
        reserved: [u8; 3],
        version: U64,
    }
}

layout! {
    /// Pages that were asked for, and the first of them that is not lost.
    RawNotLost, 24 {
        first: U64,
        pages: U32,
        reserved: [u8; 4],
        page: U64,
    }
}

/// [`RawHoldings::flags`], [`RawVerdict::flags`]: the part with the highest number.
pub(super) const PART_LAST: u8 = 1 << 0;

layout! {
    /// Who a node is and what it wants; the first bytes on every connection.
    RawHello, 128 {
        magic: [u8; 8],
        protocol: U16,
        node: u8,
        nodes: u8,
        workers: u8,
        channel: u8,
        to: u8,
        reserved_a: u8,
        cluster: [u8; 16],
        epoch: U64,
        incarnation: U64,
        page_size: U32,
        reserved_b: [u8; 76],
    }
}

layout! {
    /// The answer to a hello.
    RawAnswer, 256 {
        magic: [u8; 4],
        code: u8,
        reason_len: u8,
        reserved: U16,
        reason: [u8; 120],
        hello: RawHello,
    }
}
