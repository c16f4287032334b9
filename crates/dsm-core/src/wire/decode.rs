//! Bytes to messages; the bytes may be anything.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::{FrameHeader, Kind, at_most, zero};
use super::layout::{
    GRANT_LEASE, PAGE_CHECK, PAGE_DATA, PAGE_OWNERSHIP, REQUEST_LEASE, REQUEST_WRITE,
    ROOM_PRESSING, RawAck, RawCompanion, RawGrant, RawHandOver, RawHint, RawInvalidate,
    RawPageGrant, RawRequest, RawRoom, RawRoomWanted,
};
use super::{PAYLOAD_PAGES_MAX, WAITERS_MAX, WireError, recover, walk};

use crate::protocol::{
    COMPANIONS_MAX, Companion, Grant, HAND_OVER_MAX, HandOver, Hint, Invalidate, InvalidateAck,
    Message, PageGrant, Request, Right, Room, RoomUnused, RoomWanted,
};
use crate::types::{Access, Age, NodeId, NodeSet, Page, Version};

/// What numbers from a peer may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Nodes of the cluster, 1 to 64.
    pub nodes: usize,
    /// Pages of the region.
    pub pages: u64,
}

/// Reads the page message in the body of a frame with this header.
///
/// # Errors
/// Everything that [`super::encode`] would not write for this cluster and region.
pub fn decode(header: &FrameHeader, body: &[u8], limits: &Limits) -> Result<Message, WireError> {
    exact_length("frame", body, header.body_len())?;
    let message = match header.kind() {
        Kind::Request => Message::Request(request_with_companions(body, limits)?),
        Kind::Grant => Message::Grant(grant(body, limits)?),
        Kind::Invalidate => Message::Invalidate(invalidate(body, limits)?),
        Kind::InvalidateAck => Message::InvalidateAck(acknowledgement(body, limits)?),
        Kind::Hint => Message::Hint(hint(body, limits)?),
        Kind::RoomWanted => Message::RoomWanted(room_wanted(body, limits)?),
        Kind::Room => Message::Room(room(body)?),
        Kind::RoomUnused => Message::RoomUnused(room_unused(body)?),
        Kind::HandOver => Message::HandOver(hand_over(body, limits)?),
        kind @ (Kind::WalkOffer
        | Kind::WalkJoin
        | Kind::WalkReport
        | Kind::WalkReported
        | Kind::WalkFreeze
        | Kind::WalkFrozen
        | Kind::WalkThaw
        | Kind::WalkAudit) => Message::Walk(walk::walk(kind, body, limits)?),
        kind @ (Kind::RecoverEntered
        | Kind::RecoverHoldings
        | Kind::RecoverVerdict
        | Kind::RecoverSettled
        | Kind::RecoverTouch
        | Kind::RecoverNoted
        | Kind::RecoverRestore
        | Kind::RecoverUnlost
        | Kind::RecoverCleared
        | Kind::RecoverNotLost) => Message::Recover(recover::recover(kind, body, limits)?),
        Kind::Control(kind) => return Err(WireError::NotAPageMessage { kind: kind.code() }),
    };
    let announced = match &message {
        Message::Grant(grant) => grant.pages.iter().filter(|page| page.data).count(),
        Message::HandOver(hand_over) => hand_over.pages.len(),
        Message::Walk(message) => walk::payload_pages(message),
        _ => 0,
    };
    if header.payload_pages() != announced {
        return Err(WireError::Payload { found: header.payload_pages(), expected: announced });
    }
    Ok(message)
}

fn request_with_companions(body: &[u8], limits: &Limits) -> Result<Request, WireError> {
    const MESSAGE: &str = "request";
    let (raw, rest) = take::<RawRequest>(MESSAGE, body)?;
    let count = at_most("companions", raw.companions.into(), COMPANIONS_MAX as u64)? as usize;
    exact_length(MESSAGE, rest, count * size_of::<RawCompanion>())?;
    let mut request = request(raw, limits)?;
    request.companions.reserve_exact(count);
    for raw in items::<RawCompanion>(MESSAGE, rest)? {
        let companion = Companion {
            page: page("companion.page", raw.page.get(), limits)?,
            have: version("companion.have", raw.have.get())?,
        };
        if companion.page == request.page {
            return Err(contradiction(MESSAGE, "a page is its own companion"));
        }
        if request.companions.last().is_some_and(|last| last.page >= companion.page) {
            return Err(contradiction(MESSAGE, "companions do not ascend"));
        }
        request.companions.push(companion);
    }
    Ok(request)
}

/// The fixed part of a request.
fn request(raw: &RawRequest, limits: &Limits) -> Result<Request, WireError> {
    zero("request.flags", (raw.flags & !(REQUEST_WRITE | REQUEST_LEASE)).into())?;
    raw.reserved.iter().try_for_each(|&byte| zero("request", byte.into()))?;
    Ok(Request {
        page: page("request.page", raw.page.get(), limits)?,
        access: if raw.flags & REQUEST_WRITE != 0 { Access::Write } else { Access::Read },
        requester: node("request.requester", raw.requester, limits)?,
        seq: raw.seq.get(),
        have: version("request.have", raw.have.get())?,
        age: age("request.age_node", raw.age_clock.get(), raw.age_node, limits)?,
        owner_since: version("request.owner_since", raw.owner_since.get())?,
        via: nodes("request.via", raw.via.get(), limits)?,
        lease: raw.flags & REQUEST_LEASE != 0,
        companions: Vec::new(),
        copies: copies("request", raw.copies)?,
    })
}

fn grant(body: &[u8], limits: &Limits) -> Result<Grant, WireError> {
    const MESSAGE: &str = "grant";
    let (raw, rest) = take::<RawGrant>(MESSAGE, body)?;
    zero("grant.flags", (raw.flags & !GRANT_LEASE).into())?;
    let copies = copies(MESSAGE, raw.copies)?;
    let pages = at_most("grant.pages", raw.pages.into(), PAYLOAD_PAGES_MAX as u64)? as usize;
    let waiters = at_most("grant.waiters", raw.waiters.into(), WAITERS_MAX as u64)? as usize;
    let pages_len = pages * size_of::<RawPageGrant>();
    exact_length(MESSAGE, rest, pages_len + waiters * size_of::<RawRequest>())?;
    let (pages, waiters) = rest.split_at_checked(pages_len).unwrap_or((rest, &[]));

    let lease = if raw.flags & GRANT_LEASE != 0 {
        Some(page("grant.lease_page", raw.lease_page.get(), limits)?)
    } else {
        zero("grant.lease_page", raw.lease_page.get())?;
        None
    };
    if lease.is_some() && !pages.is_empty() {
        return Err(contradiction(MESSAGE, "it gives both a lease block and pages"));
    }
    let pages = granted_pages(pages, limits)?;
    let waiters = waiters_of(MESSAGE, pages.first().map(|grant| grant.page), waiters, limits)?;
    Ok(Grant { seq: raw.seq.get(), pages, lease, waiters, copies })
}

/// Every request that is under way is at least one.
pub(super) fn copies(message: &'static str, found: u8) -> Result<u8, WireError> {
    match found {
        0 => Err(contradiction(message, "it stands for no copy of the request")),
        copies => Ok(copies),
    }
}

fn granted_pages(bytes: &[u8], limits: &Limits) -> Result<Vec<PageGrant>, WireError> {
    let raws = items::<RawPageGrant>("grant", bytes)?;
    let mut pages: Vec<PageGrant> = Vec::with_capacity(raws.len());
    for raw in raws {
        let grant = page_grant(raw, limits)?;
        if pages.iter().any(|earlier| earlier.page == grant.page) {
            return Err(contradiction("grant", "it gives a page twice"));
        }
        pages.push(grant);
    }
    Ok(pages)
}

/// The requests that wait for `page`, which go with it.
pub(super) fn waiters_of(
    message: &'static str,
    page: Option<Page>,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Vec<Request>, WireError> {
    let raws = items::<RawRequest>(message, bytes)?;
    let mut waiters: Vec<Request> = Vec::with_capacity(raws.len());
    for raw in raws {
        // No nesting: whatever a waiter's companions were, only the page itself waits.
        at_most("waiter.companions", raw.companions.into(), 0)?;
        let waiter = request(raw, limits)?;
        if waiter.lease {
            return Err(contradiction(message, "a waiter asks for a lease"));
        }
        if page != Some(waiter.page) {
            return Err(contradiction(message, "a waiter waits for another page"));
        }
        waiters.push(waiter);
    }
    Ok(waiters)
}

fn page_grant(raw: &RawPageGrant, limits: &Limits) -> Result<PageGrant, WireError> {
    const KNOWN: u8 = PAGE_OWNERSHIP | PAGE_DATA | PAGE_CHECK;
    zero("page_grant.flags", (raw.flags & !KNOWN).into())?;
    raw.reserved.iter().try_for_each(|&byte| zero("page_grant", byte.into()))?;
    let version = version("page_grant.version", raw.version.get())?;
    let right = if raw.flags & PAGE_OWNERSHIP != 0 {
        let since = raw.same_since.get();
        at_most("page_grant.same_since", since, version.get())?;
        Right::Ownership {
            same_since: self::version("page_grant.same_since", since)?,
            copyset: nodes("page_grant.copyset", raw.copyset.get(), limits)?,
            migratory: at_most("page_grant.migratory", raw.migratory.into(), 3)? as u8,
        }
    } else {
        zero("page_grant.same_since", raw.same_since.get())?;
        zero("page_grant.copyset", raw.copyset.get())?;
        zero("page_grant.migratory", raw.migratory.into())?;
        Right::Copy
    };
    let check = if raw.flags & PAGE_CHECK != 0 {
        Some(raw.check.get())
    } else {
        zero("page_grant.check", raw.check.get())?;
        None
    };
    Ok(PageGrant {
        page: page("page_grant.page", raw.page.get(), limits)?,
        version,
        right,
        data: raw.flags & PAGE_DATA != 0,
        check,
    })
}

fn invalidate(body: &[u8], limits: &Limits) -> Result<Invalidate, WireError> {
    exact_length("invalidation", body, size_of::<RawInvalidate>())?;
    let (raw, _) = take::<RawInvalidate>("invalidation", body)?;
    raw.reserved.iter().try_for_each(|&byte| zero("invalidation", byte.into()))?;
    Ok(Invalidate {
        page: page("invalidation.page", raw.page.get(), limits)?,
        version: version("invalidation.version", raw.version.get())?,
        age: age("invalidation.age_node", raw.age_clock.get(), raw.age_node, limits)?,
    })
}

fn acknowledgement(body: &[u8], limits: &Limits) -> Result<InvalidateAck, WireError> {
    exact_length("acknowledgement", body, size_of::<RawAck>())?;
    let (raw, _) = take::<RawAck>("acknowledgement", body)?;
    Ok(InvalidateAck {
        page: page("acknowledgement.page", raw.page.get(), limits)?,
        version: version("acknowledgement.version", raw.version.get())?,
    })
}

fn hint(body: &[u8], limits: &Limits) -> Result<Hint, WireError> {
    exact_length("hint", body, size_of::<RawHint>())?;
    let (raw, _) = take::<RawHint>("hint", body)?;
    raw.reserved.iter().try_for_each(|&byte| zero("hint", byte.into()))?;
    Ok(Hint {
        page: page("hint.page", raw.page.get(), limits)?,
        owner: node("hint.owner", raw.owner, limits)?,
        owner_since: version("hint.owner_since", raw.owner_since.get())?,
    })
}

fn room_wanted(body: &[u8], limits: &Limits) -> Result<RoomWanted, WireError> {
    const MESSAGE: &str = "request for room";
    exact_length(MESSAGE, body, size_of::<RawRoomWanted>())?;
    let (raw, _) = take::<RawRoomWanted>(MESSAGE, body)?;
    zero("room_wanted.flags", (raw.flags & !ROOM_PRESSING).into())?;
    raw.reserved.iter().try_for_each(|&byte| zero(MESSAGE, byte.into()))?;
    if raw.frames == 0 {
        return Err(contradiction(MESSAGE, "it wants none"));
    }
    let age = age("room_wanted.age_node", raw.age_clock.get(), raw.age_node, limits)?;
    Ok(RoomWanted { frames: raw.frames, pressing: raw.flags & ROOM_PRESSING != 0, age })
}

fn room(body: &[u8]) -> Result<Room, WireError> {
    let frames = at_most("room.frames", raw_room("room", body)?.into(), u8::MAX.into())?;
    Ok(Room { frames: frames as u8 })
}

fn room_unused(body: &[u8]) -> Result<RoomUnused, WireError> {
    Ok(RoomUnused { frames: raw_room("unused room", body)? })
}

fn raw_room(message: &'static str, body: &[u8]) -> Result<u32, WireError> {
    exact_length(message, body, size_of::<RawRoom>())?;
    let (raw, _) = take::<RawRoom>(message, body)?;
    raw.reserved.iter().try_for_each(|&byte| zero(message, byte.into()))?;
    Ok(raw.frames.get())
}

fn hand_over(body: &[u8], limits: &Limits) -> Result<HandOver, WireError> {
    const MESSAGE: &str = "hand-over";
    let (raw, rest) = take::<RawHandOver>(MESSAGE, body)?;
    raw.reserved.iter().try_for_each(|&byte| zero(MESSAGE, byte.into()))?;
    let count = at_most("hand_over.pages", raw.pages.into(), HAND_OVER_MAX as u64)? as usize;
    exact_length(MESSAGE, rest, count * size_of::<RawPageGrant>())?;
    let pages = granted_pages(rest, limits)?;
    let whole = |page: &PageGrant| page.data && page.right != Right::Copy;
    if count == 0 || !pages.iter().all(whole) {
        return Err(contradiction(MESSAGE, "it has no page, or one without ownership or bytes"));
    }
    Ok(HandOver { pages })
}

pub(super) fn take<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
    message: &'static str,
    bytes: &'a [u8],
) -> Result<(&'a T, &'a [u8]), WireError> {
    T::ref_from_prefix(bytes).map_err(|_| WireError::Length {
        message,
        found: bytes.len(),
        expected: size_of::<T>(),
    })
}

pub(super) fn items<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
    message: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [T], WireError> {
    <[T]>::ref_from_bytes(bytes).map_err(|_| WireError::Length {
        message,
        found: bytes.len(),
        expected: bytes.len().next_multiple_of(size_of::<T>()),
    })
}

pub(super) fn exact_length(
    message: &'static str,
    bytes: &[u8],
    expected: usize,
) -> Result<(), WireError> {
    if bytes.len() == expected {
        Ok(())
    } else {
        Err(WireError::Length { message, found: bytes.len(), expected })
    }
}

pub(super) fn page(field: &'static str, found: u64, limits: &Limits) -> Result<Page, WireError> {
    if found < limits.pages {
        Ok(Page(found))
    } else {
        Err(WireError::Beyond { field, found, max: limits.pages.saturating_sub(1) })
    }
}

pub(super) fn version(field: &'static str, found: u64) -> Result<Version, WireError> {
    Version::new(found).ok_or(WireError::Beyond { field, found, max: Version::MAX.get() })
}

pub(super) fn node(field: &'static str, found: u8, limits: &Limits) -> Result<NodeId, WireError> {
    let beyond = WireError::Beyond {
        field,
        found: found.into(),
        max: (limits.nodes as u64).saturating_sub(1),
    };
    NodeId::new(found.into()).filter(|node| node.index() < limits.nodes).ok_or(beyond)
}

pub(super) fn nodes(field: &'static str, bits: u64, limits: &Limits) -> Result<NodeSet, WireError> {
    let set = NodeSet::from_bits(bits);
    if set.within(limits.nodes) {
        Ok(set)
    } else {
        Err(WireError::Reserved { field, found: bits & (u64::MAX << limits.nodes) })
    }
}

fn age(field: &'static str, clock: u64, at: u8, limits: &Limits) -> Result<Age, WireError> {
    Ok(Age { clock, node: node(field, at, limits)? })
}

pub(super) fn contradiction(message: &'static str, what: &'static str) -> WireError {
    WireError::Contradiction { message, what }
}
