//! What opens every frame.

use super::layout::RawHeader;
use super::{BODY_MAX, PAYLOAD_PAGES_MAX, WireError};
use crate::types::{PAGE_SIZE, RegionId};

/// Bytes of a [`FrameHeader`].
pub const HEADER_LEN: usize = size_of::<RawHeader>();

/// Most bytes of a frame: header, body and payload.
pub const FRAME_MAX: usize = HEADER_LEN + BODY_MAX + PAYLOAD_PAGES_MAX * PAGE_SIZE;

/// Opens every frame, so that a reader out of step notices at once.
const FRAME_MAGIC: u16 = 0xd5a7;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// [`crate::protocol::Request`]
    Request,
    /// [`crate::protocol::Grant`]
    Grant,
    /// [`crate::protocol::Invalidate`]
    Invalidate,
    /// [`crate::protocol::InvalidateAck`]
    InvalidateAck,
    /// [`crate::protocol::Hint`]
    Hint,
    /// [`crate::protocol::RoomWanted`]
    RoomWanted,
    /// [`crate::protocol::Room`]
    Room,
    /// [`crate::protocol::RoomUnused`]
    RoomUnused,
    /// [`crate::protocol::HandOver`]
    HandOver,
    /// [`crate::protocol::Recover::Entered`]
    RecoverEntered,
    /// [`crate::protocol::Holdings`]
    RecoverHoldings,
    /// [`crate::protocol::Verdict`]
    RecoverVerdict,
    /// [`crate::protocol::Recover::Settled`]
    RecoverSettled,
    /// [`crate::protocol::Recover::Touch`]
    RecoverTouch,
    /// [`crate::protocol::Recover::Noted`]
    RecoverNoted,
    /// [`crate::protocol::Recover::Restore`]
    RecoverRestore,
    /// [`crate::protocol::Recover::Unlost`]
    RecoverUnlost,
    /// [`crate::protocol::Recover::Cleared`]
    RecoverCleared,
    /// [`crate::protocol::Recover::NotLost`]
    RecoverNotLost,
    /// [`crate::protocol::Offer`]
    WalkOffer,
    /// [`crate::protocol::Join`]
    WalkJoin,
    /// [`crate::protocol::Report`]
    WalkReport,
    /// [`crate::protocol::Walk::Reported`]
    WalkReported,
    /// [`crate::protocol::Freeze`]
    WalkFreeze,
    /// [`crate::protocol::Walk::Frozen`]
    WalkFrozen,
    /// [`crate::protocol::Walk::Thaw`]
    WalkThaw,
    /// [`crate::protocol::Walk::Audit`]
    WalkAudit,
    /// A message of the layers above, whose body is theirs.
    Control(ControlKind),
}

impl Kind {
    /// The number of this kind on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Kind::Request => 0x01,
            Kind::Grant => 0x02,
            Kind::Invalidate => 0x03,
            Kind::InvalidateAck => 0x04,
            Kind::Hint => 0x05,
            Kind::RoomWanted => 0x06,
            Kind::Room => 0x07,
            Kind::RoomUnused => 0x08,
            Kind::HandOver => 0x09,
            Kind::WalkOffer => 0x0a,
            Kind::WalkJoin => 0x0b,
            Kind::WalkReport => 0x0c,
            Kind::WalkReported => 0x0d,
            Kind::WalkFreeze => 0x0e,
            Kind::WalkFrozen => 0x0f,
            Kind::WalkThaw => 0x10,
            Kind::WalkAudit => 0x11,
            Kind::RecoverEntered => 0x12,
            Kind::RecoverHoldings => 0x13,
            Kind::RecoverVerdict => 0x14,
            Kind::RecoverSettled => 0x15,
            Kind::RecoverTouch => 0x16,
            Kind::RecoverNoted => 0x17,
            Kind::RecoverRestore => 0x18,
            Kind::RecoverUnlost => 0x19,
            Kind::RecoverCleared => 0x1a,
            Kind::RecoverNotLost => 0x1b,
            Kind::Control(kind) => kind.0,
        }
    }

    /// Inverse of [`Kind::code`].
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x01 => Kind::Request,
            0x02 => Kind::Grant,
            0x03 => Kind::Invalidate,
            0x04 => Kind::InvalidateAck,
            0x05 => Kind::Hint,
            0x06 => Kind::RoomWanted,
            0x07 => Kind::Room,
            0x08 => Kind::RoomUnused,
            0x09 => Kind::HandOver,
            0x0a => Kind::WalkOffer,
            0x0b => Kind::WalkJoin,
            0x0c => Kind::WalkReport,
            0x0d => Kind::WalkReported,
            0x0e => Kind::WalkFreeze,
            0x0f => Kind::WalkFrozen,
            0x10 => Kind::WalkThaw,
            0x11 => Kind::WalkAudit,
            0x12 => Kind::RecoverEntered,
            0x13 => Kind::RecoverHoldings,
            0x14 => Kind::RecoverVerdict,
            0x15 => Kind::RecoverSettled,
            0x16 => Kind::RecoverTouch,
            0x17 => Kind::RecoverNoted,
            0x18 => Kind::RecoverRestore,
            0x19 => Kind::RecoverUnlost,
            0x1a => Kind::RecoverCleared,
            0x1b => Kind::RecoverNotLost,
            _ => match ControlKind::new(code) {
                Some(kind) => Kind::Control(kind),
                None => return None,
            },
        })
    }
}

/// The kind of a control message, `0x40` to `0x7f`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ControlKind(u8);

impl ControlKind {
    /// A control kind by its number on the wire; `None` outside `0x40..=0x7f`.
    pub const fn new(code: u8) -> Option<Self> {
        if matches!(code, 0x40..=0x7f) { Some(Self(code)) } else { None }
    }

    /// Its number on the wire.
    pub const fn code(self) -> u8 {
        self.0
    }
}

/// What opens a frame, checked: its lengths are within [`BODY_MAX`] and [`PAYLOAD_PAGES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    kind: Kind,
    region: RegionId,
    body_len: u32,
    payload_pages: u16,
    epoch: u16,
}

impl FrameHeader {
    /// The header of a frame with these lengths, in bytes and pages.
    ///
    /// # Errors
    /// A length beyond its limit, or a payload with a kind that has none.
    pub fn new(
        kind: Kind,
        region: RegionId,
        body_len: usize,
        payload_pages: usize,
    ) -> Result<Self, WireError> {
        let pages_max = match kind {
            Kind::Grant | Kind::HandOver => PAYLOAD_PAGES_MAX,
            Kind::WalkOffer | Kind::WalkJoin => 1,
            _ => 0,
        };
        Ok(Self {
            kind,
            region,
            body_len: at_most("body_len", body_len as u64, BODY_MAX as u64)? as u32,
            payload_pages: at_most("payload_pages", payload_pages as u64, pages_max as u64)? as u16,
            epoch: 0,
        })
    }

    /// The header of a page message that was sent in this epoch of its region.
    ///
    /// # Errors
    /// An epoch other than 0 in a control message, which belongs to none.
    pub fn in_epoch(self, epoch: u16) -> Result<Self, WireError> {
        if matches!(self.kind, Kind::Control(_)) {
            zero("epoch", epoch.into())?;
        }
        Ok(Self { epoch, ..self })
    }

    /// Reads a header.
    ///
    /// # Errors
    /// Everything that this version would not write.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic.get() != FRAME_MAGIC {
            return Err(WireError::Magic { found: raw.magic.get(), expected: FRAME_MAGIC });
        }
        let kind = Kind::from_code(raw.kind).ok_or(WireError::Kind { kind: raw.kind })?;
        zero("flags", raw.flags.into())?;
        let header = Self::new(
            kind,
            RegionId(raw.region.get()),
            raw.body_len.get() as usize,
            raw.payload_pages.get().into(),
        )?;
        header.in_epoch(raw.epoch.get())
    }

    /// Reads the header at the start of `bytes`; `None` where there are too few.
    ///
    /// # Errors
    /// As [`FrameHeader::parse`].
    pub fn parse_prefix(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        bytes.first_chunk().map(Self::parse).transpose()
    }

    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let raw = RawHeader {
            magic: FRAME_MAGIC.into(),
            kind: self.kind.code(),
            flags: 0,
            region: self.region.0.into(),
            body_len: self.body_len.into(),
            payload_pages: self.payload_pages.into(),
            epoch: self.epoch.into(),
        };
        zerocopy::transmute!(raw)
    }

    /// What the frame carries.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The region that it is about; a control message may use the number otherwise.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The epoch of the region in which it was sent, see [`crate::protocol::Protocol::epoch`].
    pub fn epoch(&self) -> u16 {
        self.epoch
    }

    /// Bytes of the body.
    pub fn body_len(&self) -> usize {
        self.body_len as usize
    }

    /// Pages of the payload.
    pub fn payload_pages(&self) -> usize {
        self.payload_pages.into()
    }

    /// Bytes of the payload.
    pub fn payload_len(&self) -> usize {
        self.payload_pages() * PAGE_SIZE
    }

    /// Bytes of the whole frame; at most [`FRAME_MAX`].
    pub fn frame_len(&self) -> usize {
        HEADER_LEN + self.body_len() + self.payload_len()
    }
}

/// `found`, unless it is beyond `max`.
pub(super) fn at_most(field: &'static str, found: u64, max: u64) -> Result<u64, WireError> {
    if found > max { Err(WireError::Beyond { field, found, max }) } else { Ok(found) }
}

/// Refuses bits that must be zero.
pub(super) fn zero(field: &'static str, found: u64) -> Result<(), WireError> {
    if found == 0 { Ok(()) } else { Err(WireError::Reserved { field, found }) }
}
