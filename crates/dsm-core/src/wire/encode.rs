//! Messages to bytes.

use zerocopy::IntoBytes;

use super::header::{ControlKind, FrameHeader, HEADER_LEN, Kind};
use super::layout::{
    GRANT_LEASE, PAGE_CHECK, PAGE_DATA, PAGE_OWNERSHIP, REQUEST_LEASE, REQUEST_WRITE,
    ROOM_PRESSING, RawAck, RawCompanion, RawGrant, RawHandOver, RawHint, RawInvalidate,
    RawPageGrant, RawRequest, RawRoom, RawRoomWanted,
};
use super::{PAYLOAD_PAGES_MAX, WAITERS_MAX, WireError, recover, walk};

use crate::protocol::{COMPANIONS_MAX, Grant, HAND_OVER_MAX, Message, PageGrant, Request, Right};
use crate::types::{Access, NodeSet, RegionId, Version};

/// Appends header and body of `message` to `out`. The pages of a grant that say so follow as the
/// payload of the frame, in order. Waiters go without their companions and without
/// their wish for a lease, which are void once a request has waited.
///
/// # Panics
/// When the message has more companions, pages or waiters than a message may have: the protocol
/// never makes such a message, and no peer can bring it to.
pub fn encode(message: &Message, region: RegionId, out: &mut Vec<u8>) {
    encode_in(0, message, region, out);
}

/// As [`encode`], for a message that is sent in this epoch of the region.
///
/// # Panics
/// As [`encode`].
pub fn encode_in(epoch: u16, message: &Message, region: RegionId, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    let mut payload_pages = 0;
    let kind = match message {
        Message::Request(request) => {
            put_request(request, out);
            Kind::Request
        }
        Message::Grant(grant) => {
            payload_pages = grant.pages.iter().filter(|page| page.data).count();
            put_grant(grant, out);
            Kind::Grant
        }
        Message::Invalidate(invalidate) => {
            let raw = RawInvalidate {
                page: invalidate.page.0.into(),
                version: invalidate.version.get().into(),
                age_clock: invalidate.age.clock.into(),
                age_node: invalidate.age.node.index() as u8,
                reserved: [0; 7],
            };
            out.extend_from_slice(raw.as_bytes());
            Kind::Invalidate
        }
        Message::InvalidateAck(ack) => {
            let raw = RawAck { page: ack.page.0.into(), version: ack.version.get().into() };
            out.extend_from_slice(raw.as_bytes());
            Kind::InvalidateAck
        }
        Message::Hint(hint) => {
            let raw = RawHint {
                page: hint.page.0.into(),
                owner_since: hint.owner_since.get().into(),
                owner: hint.owner.index() as u8,
                reserved: [0; 7],
            };
            out.extend_from_slice(raw.as_bytes());
            Kind::Hint
        }
        Message::RoomWanted(wanted) => {
            let flags = if wanted.pressing { ROOM_PRESSING } else { 0 };
            let raw = RawRoomWanted {
                age_clock: wanted.age.clock.into(),
                age_node: wanted.age.node.index() as u8,
                frames: wanted.frames,
                flags,
                reserved: [0; 5],
            };
            out.extend_from_slice(raw.as_bytes());
            Kind::RoomWanted
        }
        Message::Room(room) => {
            put_room(room.frames.into(), out);
            Kind::Room
        }
        Message::RoomUnused(unused) => {
            put_room(unused.frames, out);
            Kind::RoomUnused
        }
        Message::HandOver(hand_over) => {
            payload_pages = hand_over.pages.len();
            assert!(payload_pages <= HAND_OVER_MAX, "too many pages are handed over");
            let raw = RawHandOver { pages: payload_pages as u8, reserved: [0; 7] };
            out.extend_from_slice(raw.as_bytes());
            hand_over.pages.iter().for_each(|page| put_page_grant(page, out));
            Kind::HandOver
        }
        Message::Recover(message) => recover::put(message, out),
        Message::Walk(message) => {
            payload_pages = walk::payload_pages(message);
            walk::put(message, out)
        }
    };
    let body_len = out.len() - start - HEADER_LEN;
    let header = FrameHeader::new(kind, region, body_len, payload_pages)
        .and_then(|header| header.in_epoch(epoch))
        .expect("the largest page message is within the limits of a frame");
    out[start..start + HEADER_LEN].copy_from_slice(&header.to_bytes());
}

/// Appends header and body of a control message to `out`.
///
/// # Errors
/// A body of more than [`super::BODY_MAX`] bytes; then `out` is as before.
pub fn encode_control(
    kind: ControlKind,
    region: RegionId,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let header = FrameHeader::new(Kind::Control(kind), region, body.len(), 0)?;
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(body);
    Ok(())
}

fn put_request(request: &Request, out: &mut Vec<u8>) {
    assert!(request.companions.len() <= COMPANIONS_MAX, "a request with too many companions");
    put_request_head(request, request.lease, request.companions.len(), out);
    for companion in &request.companions {
        let raw = RawCompanion { page: companion.page.0.into(), have: companion.have.get().into() };
        out.extend_from_slice(raw.as_bytes());
    }
}

/// The fixed part of a request.
pub(super) fn put_request_head(
    request: &Request,
    lease: bool,
    companions: usize,
    out: &mut Vec<u8>,
) {
    let mut flags = 0;
    if request.access == Access::Write {
        flags |= REQUEST_WRITE;
    }
    if lease {
        flags |= REQUEST_LEASE;
    }
    let raw = RawRequest {
        page: request.page.0.into(),
        have: request.have.get().into(),
        owner_since: request.owner_since.get().into(),
        age_clock: request.age.clock.into(),
        via: request.via.bits().into(),
        seq: request.seq.into(),
        age_node: request.age.node.index() as u8,
        requester: request.requester.index() as u8,
        flags,
        companions: companions as u8,
        copies: request.copies,
        reserved: [0; 7],
    };
    out.extend_from_slice(raw.as_bytes());
}

fn put_grant(grant: &Grant, out: &mut Vec<u8>) {
    assert!(grant.pages.len() <= PAYLOAD_PAGES_MAX, "a grant of too many pages");
    assert!(grant.waiters.len() <= WAITERS_MAX, "a grant with too many waiters");
    let raw = RawGrant {
        lease_page: grant.lease.map_or(0, |page| page.0).into(),
        seq: grant.seq.into(),
        pages: grant.pages.len() as u8,
        waiters: grant.waiters.len() as u8,
        flags: if grant.lease.is_some() { GRANT_LEASE } else { 0 },
        copies: grant.copies,
    };
    out.extend_from_slice(raw.as_bytes());
    grant.pages.iter().for_each(|page| put_page_grant(page, out));
    for waiter in &grant.waiters {
        // Only the page itself waits: a lease or companions were a matter of the moment.
        put_request_head(waiter, false, 0, out);
    }
}

fn put_room(frames: u32, out: &mut Vec<u8>) {
    let raw = RawRoom { frames: frames.into(), reserved: [0; 4] };
    out.extend_from_slice(raw.as_bytes());
}

fn put_page_grant(grant: &PageGrant, out: &mut Vec<u8>) {
    let mut flags = 0;
    if grant.data {
        flags |= PAGE_DATA;
    }
    if grant.check.is_some() {
        flags |= PAGE_CHECK;
    }
    let (same_since, copyset, migratory) = match grant.right {
        Right::Copy => (Version::ZERO, NodeSet::EMPTY, 0),
        Right::Ownership { same_since, copyset, migratory } => {
            flags |= PAGE_OWNERSHIP;
            (same_since, copyset, migratory)
        }
    };
    let raw = RawPageGrant {
        page: grant.page.0.into(),
        version: grant.version.get().into(),
        same_since: same_since.get().into(),
        copyset: copyset.bits().into(),
        check: grant.check.unwrap_or(0).into(),
        flags,
        migratory,
        reserved: [0; 6],
    };
    out.extend_from_slice(raw.as_bytes());
}
