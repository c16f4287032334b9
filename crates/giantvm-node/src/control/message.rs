//! What nodes say to each other on a control connection.
//!
//! A body is one byte for the kind, then the fields in the order in which they are declared here.

use std::collections::BTreeMap;

use dsm_core::types::{NodeId, NodeSet};

use super::codec::{DecodeError, Reader, Writer, clip};
use super::region::RegionMessage;
use crate::limits::REASON_BYTES_MAX;
use crate::sync::{SyncReply, SyncReport, SyncRequest};

/// The body of one control frame.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ControlMessage {
    /// For [`Membership`](crate::membership::Membership).
    Member(MemberMessage),
    /// About regions.
    Region(RegionMessage),
    /// To the home of a synchronisation object.
    SyncRequest(SyncRequest),
    /// From that home.
    SyncReply(SyncReply),
    /// To the new home of objects whose home was lost.
    SyncReport(SyncReport),
}

/// What the membership of two nodes exchanges.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum MemberMessage {
    /// The sender is alive.
    Heartbeat(Heartbeat),
    /// From the deciding node: who belongs to the cluster.
    MemberUpdate {
        /// The epoch that is in force with this message.
        epoch: u64,
        /// The members in that epoch.
        members: NodeSet,
        /// What happened.
        change: Change,
    },
    /// To the deciding node: the sender can't talk to `node`.
    Suspect {
        /// The node.
        node: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// To the deciding node: the sender stopped using the cluster and wants to go.
    Leave,
    /// From the deciding node: the sender of [`MemberMessage::Leave`] is no member from `epoch` on.
    LeaveAck {
        /// The first epoch without it.
        epoch: u64,
    },
    /// The sender has ended and does nothing more in this cluster.
    Gone {
        /// Why, for people.
        reason: String,
    },
    /// The receiver is out: refused, or declared lost. The sender closes the connection.
    Fatal {
        /// Why, for people.
        reason: String,
    },
    /// The sender can't have a connection with the receiver yet, and closes it. It may be made
    /// again.
    NotYet {
        /// Why, for people.
        reason: String,
    },
}

/// The sender is alive, and so was the receiver not long ago.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Heartbeat {
    /// The sender's epoch; 0 while it is no member.
    pub epoch: u64,
    /// The sender's incarnation: a number that differs between two runs of one node.
    pub incarnation: u64,
    /// When it was sent, in milliseconds of the sender's clock.
    pub sent_ms: u64,
    /// The largest `sent_ms` that the sender received from the receiver: the receiver's own clock
    /// comes back to it, so that it knows at which time it was certainly still heard.
    pub echo_ms: Option<u64>,
    /// The nodes with a connection to the sender, itself included.
    pub connected: NodeSet,
}

/// What a [`MemberMessage::MemberUpdate`] announces.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// The receiver is a member from this epoch on: the cluster starts, or has taken it in.
    Started {
        /// The incarnation of each node of the list; 0 where it is no member.
        incarnations: Vec<u64>,
        /// For members that were not there from the first epoch on: in which one they joined.
        joined: BTreeMap<NodeId, u16>,
    },
    /// `node` is a member from this new epoch on.
    Joined {
        /// The node.
        node: NodeId,
        /// Its incarnation.
        incarnation: u64,
    },
    /// `node` is lost: whatever depends on it ends. It stays a member, and the epoch stays, until
    /// it has certainly stopped.
    Lost {
        /// The node.
        node: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// The lost `node` has certainly stopped, and is no member in this new epoch.
    Removed {
        /// The node.
        node: NodeId,
    },
    /// `node` left of its own will, and is no member in this new epoch.
    Left {
        /// The node.
        node: NodeId,
    },
}

/// `text` cut to what a reason may be long.
pub fn clip_reason(text: &str) -> String {
    clip(text, REASON_BYTES_MAX).to_owned()
}

pub(super) mod kind {
    pub(super) const HEARTBEAT: u8 = 1;
    pub(super) const MEMBER_UPDATE: u8 = 2;
    pub(super) const SUSPECT: u8 = 3;
    pub(super) const LEAVE: u8 = 4;
    pub(super) const LEAVE_ACK: u8 = 5;
    pub(super) const GONE: u8 = 6;
    pub(super) const FATAL: u8 = 7;
    pub(super) const NOT_YET: u8 = 8;
    pub(in crate::control) const REGION_CREATE: u8 = 16;
    pub(in crate::control) const REGION_CREATED: u8 = 17;
    pub(in crate::control) const REGION_REFUSED: u8 = 18;
    pub(in crate::control) const REGION_CLOSE: u8 = 19;
    pub(in crate::control) const REGION_ALLOCATE: u8 = 20;
    pub(in crate::control) const REGION_ALLOCATED: u8 = 21;
    pub(in crate::control) const REGION_OPEN: u8 = 22;
    pub(in crate::control) const REGION_TELL: u8 = 23;
    pub(in crate::control) const REGION_HAS: u8 = 24;
    pub(in crate::control) const REGION_HAS_BLOCK: u8 = 25;
    pub(in crate::control) const REGION_HAS_ALL: u8 = 26;
    pub(super) const SYNC_REQUEST: u8 = 32;
    pub(super) const SYNC_REPLY: u8 = 33;
    pub(super) const SYNC_REPORT: u8 = 34;
}

mod change {
    pub(super) const STARTED: u8 = 1;
    pub(super) const LOST: u8 = 2;
    pub(super) const REMOVED: u8 = 3;
    pub(super) const LEFT: u8 = 4;
    pub(super) const JOINED: u8 = 5;
}

impl ControlMessage {
    /// The bytes of this message. Reasons longer than their bound are cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        match self {
            Self::Member(message) => message.write(&mut to),
            Self::Region(message) => message.write(&mut to),
            Self::SyncRequest(request) => {
                to.u8(kind::SYNC_REQUEST);
                request.write(&mut to);
            }
            Self::SyncReply(reply) => {
                to.u8(kind::SYNC_REPLY);
                reply.write(&mut to);
            }
            Self::SyncReport(report) => {
                to.u8(kind::SYNC_REPORT);
                report.write(&mut to);
            }
        }
        to.into_bytes()
    }

    /// The message in `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] unless `bytes` are exactly one message with every field inside its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let message = match from.u8("kind")? {
            kind::SYNC_REQUEST => Self::SyncRequest(SyncRequest::read(&mut from)?),
            kind::SYNC_REPLY => Self::SyncReply(SyncReply::read(&mut from)?),
            kind::SYNC_REPORT => Self::SyncReport(SyncReport::read(&mut from)?),
            kind @ kind::REGION_CREATE..=kind::REGION_HAS_ALL => {
                Self::Region(RegionMessage::read(kind, &mut from)?)
            }
            kind => Self::Member(MemberMessage::read(kind, &mut from)?),
        };
        from.end()?;
        Ok(message)
    }
}

impl MemberMessage {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::Heartbeat(beat) => {
                to.u8(kind::HEARTBEAT);
                to.u64(beat.epoch);
                to.u64(beat.incarnation);
                to.u64(beat.sent_ms);
                to.option_u64(beat.echo_ms);
                to.u64(beat.connected.bits());
            }
            Self::MemberUpdate { epoch, members, change } => {
                to.u8(kind::MEMBER_UPDATE);
                to.u64(*epoch);
                to.u64(members.bits());
                change.write(to);
            }
            Self::Suspect { node, reason } => {
                to.u8(kind::SUSPECT);
                to.node(*node);
                write_reason(reason, to);
            }
            Self::Leave => to.u8(kind::LEAVE),
            Self::LeaveAck { epoch } => {
                to.u8(kind::LEAVE_ACK);
                to.u64(*epoch);
            }
            Self::Gone { reason } => {
                to.u8(kind::GONE);
                write_reason(reason, to);
            }
            Self::Fatal { reason } => {
                to.u8(kind::FATAL);
                write_reason(reason, to);
            }
            Self::NotYet { reason } => {
                to.u8(kind::NOT_YET);
                write_reason(reason, to);
            }
        }
    }

    fn read(kind: u8, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            kind::HEARTBEAT => Self::Heartbeat(Heartbeat {
                epoch: from.u64("epoch")?,
                incarnation: from.u64("incarnation")?,
                sent_ms: from.u64("sent_ms")?,
                echo_ms: from.option_u64("echo_ms")?,
                connected: NodeSet::from_bits(from.u64("connected")?),
            }),
            kind::MEMBER_UPDATE => Self::MemberUpdate {
                epoch: from.u64("epoch")?,
                members: NodeSet::from_bits(from.u64("members")?),
                change: Change::read(from)?,
            },
            kind::SUSPECT => Self::Suspect { node: from.node("node")?, reason: read_reason(from)? },
            kind::LEAVE => Self::Leave,
            kind::LEAVE_ACK => Self::LeaveAck { epoch: from.u64("epoch")? },
            kind::GONE => Self::Gone { reason: read_reason(from)? },
            kind::FATAL => Self::Fatal { reason: read_reason(from)? },
            kind::NOT_YET => Self::NotYet { reason: read_reason(from)? },
            other => return Err(DecodeError::Invalid { field: "kind", value: other.into() }),
        })
    }
}

impl Change {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::Started { incarnations, joined } => {
                to.u8(change::STARTED);
                to.u64_per_node(incarnations);
                to.u16_of_nodes(joined);
            }
            Self::Joined { node, incarnation } => {
                to.u8(change::JOINED);
                to.node(*node);
                to.u64(*incarnation);
            }
            Self::Lost { node, reason } => {
                to.u8(change::LOST);
                to.node(*node);
                write_reason(reason, to);
            }
            Self::Removed { node } => {
                to.u8(change::REMOVED);
                to.node(*node);
            }
            Self::Left { node } => {
                to.u8(change::LEFT);
                to.node(*node);
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match from.u8("change")? {
            change::STARTED => Self::Started {
                incarnations: from.u64_per_node("incarnations")?,
                joined: from.u16_of_nodes("joined")?,
            },
            change::JOINED => {
                Self::Joined { node: from.node("node")?, incarnation: from.u64("incarnation")? }
            }
            change::LOST => Self::Lost { node: from.node("node")?, reason: read_reason(from)? },
            change::REMOVED => Self::Removed { node: from.node("node")? },
            change::LEFT => Self::Left { node: from.node("node")? },
            other => return Err(DecodeError::Invalid { field: "change", value: other.into() }),
        })
    }
}

pub(super) fn write_reason(reason: &str, to: &mut Writer) {
    to.text(clip(reason, REASON_BYTES_MAX));
}

pub(super) fn read_reason(from: &mut Reader<'_>) -> Result<String, DecodeError> {
    from.text(REASON_BYTES_MAX, "reason").map(str::to_owned)
}
