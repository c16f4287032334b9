//! What nodes say about regions.

use dsm_core::types::RegionId;

use super::codec::{DecodeError, Reader, Writer};
use super::message::{kind, read_reason, write_reason};
use crate::limits::NAME_BYTES_MAX;

/// How a region began: what each node needs to open it, and to keep the directory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RegionOrigin {
    /// Its number.
    pub region: RegionId,
    /// Its name: 1 to 200 bytes.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// It does not count against what the nodes give.
    pub overcommit: bool,
    /// It goes on when a node is lost.
    pub recover: bool,
    /// The epoch in which it began.
    pub since: u16,
    /// The nodes' shares of it then: of its first pages, none for who was no member.
    pub shares: Vec<u64>,
}

/// What nodes say about regions.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RegionMessage {
    /// To the node that keeps the directory: asks for a region.
    Create {
        /// The number of the request at the sender; answers repeat it.
        ticket: u64,
        /// The region's name: 1 to 200 bytes.
        name: String,
        /// Its length.
        bytes: u64,
        /// Opens it even if the nodes together can't hold it.
        overcommit: bool,
        /// It goes on when a node is lost.
        recover: bool,
    },
    /// From that node: orders a region, which all members open.
    Open {
        /// The sender's epoch: all must open it in the same.
        epoch: u16,
        /// The region; answers have its number as ticket. It began in an earlier epoch where it was there
        /// before the receiver.
        origin: RegionOrigin,
    },
    /// The region exists at the sender.
    Created {
        /// [`RegionMessage::Create::ticket`].
        ticket: u64,
        /// The region.
        region: RegionId,
    },
    /// The region can't be opened.
    Refused {
        /// [`RegionMessage::Create::ticket`].
        ticket: u64,
        /// Why, for people.
        reason: String,
    },
    /// To the node that keeps the directory: asks where the named block of a region is; the first to ask places it.
    Allocate {
        /// The number of the request at the sender.
        ticket: u64,
        /// The region.
        region: RegionId,
        /// The block's name: 1 to 200 bytes.
        name: String,
        /// Its length.
        bytes: u64,
        /// A power of two that divides its offset.
        align: u64,
    },
    /// The named block's place.
    Allocated {
        /// [`RegionMessage::Allocate::ticket`].
        ticket: u64,
        /// Its offset in the region.
        offset: u64,
    },
    /// The region ends at the receiver.
    Close {
        /// The region.
        region: RegionId,
    },
    /// From a node that keeps the directory from now on, as the one before is gone: asks what the receiver
    /// was told of regions. The answers are what follows here.
    Tell {
        /// The sender's epoch; answers repeat it.
        epoch: u16,
    },
    /// A region is open at the sender.
    Has {
        /// [`RegionMessage::Tell::epoch`].
        epoch: u16,
        /// The region.
        origin: RegionOrigin,
    },
    /// A named block of a region of which the sender has told.
    HasBlock {
        /// [`RegionMessage::Tell::epoch`].
        epoch: u16,
        /// The region.
        region: RegionId,
        /// The block's name: 1 to 200 bytes.
        name: String,
        /// Its offset in the region.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// What its offset was to be divided by.
        align: u64,
    },
    /// The sender has told all.
    HasAll {
        /// [`RegionMessage::Tell::epoch`].
        epoch: u16,
        /// The highest number of a region that the sender has heard of.
        last: u32,
    },
}

impl RegionMessage {
    pub(super) fn write(&self, to: &mut Writer) {
        match self {
            Self::Create { ticket, name, bytes, overcommit, recover } => {
                to.u8(kind::REGION_CREATE);
                to.u64(*ticket);
                to.text(name);
                to.u64(*bytes);
                to.bool(*overcommit);
                to.bool(*recover);
            }
            Self::Open { epoch, origin } => {
                to.u8(kind::REGION_OPEN);
                to.u16(*epoch);
                origin.write(to);
            }
            Self::Created { ticket, region } => {
                to.u8(kind::REGION_CREATED);
                to.u64(*ticket);
                to.u32(region.0);
            }
            Self::Refused { ticket, reason } => {
                to.u8(kind::REGION_REFUSED);
                to.u64(*ticket);
                write_reason(reason, to);
            }
            Self::Close { region } => {
                to.u8(kind::REGION_CLOSE);
                to.u32(region.0);
            }
            Self::Allocate { ticket, region, name, bytes, align } => {
                to.u8(kind::REGION_ALLOCATE);
                to.u64(*ticket);
                to.u32(region.0);
                to.text(name);
                to.u64(*bytes);
                to.u64(*align);
            }
            Self::Allocated { ticket, offset } => {
                to.u8(kind::REGION_ALLOCATED);
                to.u64(*ticket);
                to.u64(*offset);
            }
            Self::Tell { epoch } => {
                to.u8(kind::REGION_TELL);
                to.u16(*epoch);
            }
            Self::Has { epoch, origin } => {
                to.u8(kind::REGION_HAS);
                to.u16(*epoch);
                origin.write(to);
            }
            Self::HasBlock { epoch, region, name, offset, bytes, align } => {
                to.u8(kind::REGION_HAS_BLOCK);
                to.u16(*epoch);
                to.u32(region.0);
                to.text(name);
                to.u64(*offset);
                to.u64(*bytes);
                to.u64(*align);
            }
            Self::HasAll { epoch, last } => {
                to.u8(kind::REGION_HAS_ALL);
                to.u16(*epoch);
                to.u32(*last);
            }
        }
    }

    pub(super) fn read(kind: u8, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            kind::REGION_CREATE => Self::Create {
                ticket: from.u64("ticket")?,
                name: read_region_name(from)?,
                bytes: from.u64("bytes")?,
                overcommit: from.bool("overcommit")?,
                recover: from.bool("recover")?,
            },
            kind::REGION_OPEN => {
                Self::Open { epoch: from.u16("epoch")?, origin: RegionOrigin::read(from)? }
            }
            kind::REGION_CREATED => {
                Self::Created { ticket: from.u64("ticket")?, region: RegionId(from.u32("region")?) }
            }
            kind::REGION_REFUSED => {
                Self::Refused { ticket: from.u64("ticket")?, reason: read_reason(from)? }
            }
            kind::REGION_CLOSE => Self::Close { region: RegionId(from.u32("region")?) },
            kind::REGION_ALLOCATE => Self::Allocate {
                ticket: from.u64("ticket")?,
                region: RegionId(from.u32("region")?),
                name: read_region_name(from)?,
                bytes: from.u64("bytes")?,
                align: from.u64("align")?,
            },
            kind::REGION_ALLOCATED => {
                Self::Allocated { ticket: from.u64("ticket")?, offset: from.u64("offset")? }
            }
            kind::REGION_TELL => Self::Tell { epoch: from.u16("epoch")? },
            kind::REGION_HAS => {
                Self::Has { epoch: from.u16("epoch")?, origin: RegionOrigin::read(from)? }
            }
            kind::REGION_HAS_BLOCK => Self::HasBlock {
                epoch: from.u16("epoch")?,
                region: RegionId(from.u32("region")?),
                name: read_region_name(from)?,
                offset: from.u64("offset")?,
                bytes: from.u64("bytes")?,
                align: from.u64("align")?,
            },
            kind::REGION_HAS_ALL => {
                Self::HasAll { epoch: from.u16("epoch")?, last: from.u32("last")? }
            }
            other => return Err(DecodeError::Invalid { field: "kind", value: other.into() }),
        })
    }
}

impl RegionOrigin {
    fn write(&self, to: &mut Writer) {
        to.u32(self.region.0);
        to.text(&self.name);
        to.u64(self.bytes);
        to.bool(self.overcommit);
        to.bool(self.recover);
        to.u16(self.since);
        to.u64_per_node(&self.shares);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            region: RegionId(from.u32("region")?),
            name: read_region_name(from)?,
            bytes: from.u64("bytes")?,
            overcommit: from.bool("overcommit")?,
            recover: from.bool("recover")?,
            since: from.u16("since")?,
            shares: from.u64_per_node("shares")?,
        })
    }
}

fn read_region_name(from: &mut Reader<'_>) -> Result<String, DecodeError> {
    let name = from.text(NAME_BYTES_MAX, "name")?;
    if name.is_empty() {
        return Err(DecodeError::Length { field: "name", len: 0 });
    }
    Ok(name.to_owned())
}
