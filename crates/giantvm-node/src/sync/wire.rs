//! Bytes of requests, replies and reports: one byte for the kind, then the fields as declared.

use super::message::{
    Held, Hold, Kind, Outcome, SyncError, SyncName, SyncOp, SyncReply, SyncReport, SyncRequest,
};
use crate::control::codec::{DecodeError, Reader, Writer};
use crate::limits::{CONTROL_BODY_BYTES_MAX, NAME_BYTES_MAX};

mod op {
    pub(super) const MUTEX_LOCK: u8 = 1;
    pub(super) const MUTEX_TRY_LOCK: u8 = 2;
    pub(super) const MUTEX_UNLOCK: u8 = 3;
    pub(super) const READ_LOCK: u8 = 4;
    pub(super) const READ_TRY_LOCK: u8 = 5;
    pub(super) const READ_UNLOCK: u8 = 6;
    pub(super) const WRITE_LOCK: u8 = 7;
    pub(super) const WRITE_TRY_LOCK: u8 = 8;
    pub(super) const WRITE_UNLOCK: u8 = 9;
    pub(super) const BARRIER_WAIT: u8 = 10;
    pub(super) const COUNTER_ADD: u8 = 11;
    pub(super) const COUNTER_GET: u8 = 12;
    pub(super) const COUNTER_SET: u8 = 13;
    pub(super) const COMPARE_EXCHANGE: u8 = 14;
    pub(super) const CANCEL: u8 = 15;
    pub(super) const GIVE_BACK: u8 = 16;
}

mod result {
    pub(super) const GRANTED: u8 = 1;
    pub(super) const BUSY: u8 = 2;
    pub(super) const UNLOCKED: u8 = 3;
    pub(super) const PASSED: u8 = 4;
    pub(super) const VALUE: u8 = 5;
    pub(super) const EXCHANGED: u8 = 6;
    pub(super) const CANCELLED: u8 = 7;
    pub(super) const NOT_WAITING: u8 = 8;
    pub(super) const ABANDONED: u8 = 9;
    pub(super) const KIND_MISMATCH: u8 = 64;
    pub(super) const NOT_HOLDER: u8 = 65;
    pub(super) const PARTIES_MISMATCH: u8 = 66;
    pub(super) const PARTIES_OUT_OF_RANGE: u8 = 67;
    pub(super) const TOO_MANY_OBJECTS: u8 = 68;
    pub(super) const QUEUE_FULL: u8 = 69;
    pub(super) const TOO_MANY_TICKETS: u8 = 70;
    pub(super) const DUPLICATE_TICKET: u8 = 71;
    pub(super) const BARRIER_BROKEN: u8 = 72;
    pub(super) const VALUE_LOST: u8 = 73;
    pub(super) const NOT_HOME: u8 = 74;
    pub(super) const NO_HOME: u8 = 75;
}

impl SyncRequest {
    pub(crate) fn write(&self, to: &mut Writer) {
        to.u64(self.ticket);
        to.u16(self.epoch);
        to.text(self.name.as_str());
        self.op.write(to);
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            ticket: from.u64("ticket")?,
            epoch: from.u16("epoch")?,
            name: read_name(from)?,
            op: SyncOp::read(from)?,
        })
    }
}

/// Longest encoding of a [`Hold`]: ticket, name behind its length, way, node behind a flag.
const HOLD_BYTES_MAX: usize = 8 + 2 + NAME_BYTES_MAX + 1 + 2;

/// Most holds in one part of a report: what fits one control message, its kind, epoch, flag and
/// number of holds included.
pub(super) const HOLDS_PER_PART: usize = (CONTROL_BODY_BYTES_MAX - 5) / HOLD_BYTES_MAX;

impl SyncReport {
    pub(crate) fn write(&self, to: &mut Writer) {
        to.u16(self.epoch);
        to.bool(self.last);
        let holds = self.holds.get(..HOLDS_PER_PART).unwrap_or(&self.holds);
        to.u8(holds.len() as u8);
        holds.iter().for_each(|hold| hold.write(to));
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (epoch, last) = (from.u16("epoch")?, from.bool("last")?);
        let count = from.u8("holds")?;
        if usize::from(count) > HOLDS_PER_PART {
            return Err(DecodeError::Invalid { field: "holds", value: count.into() });
        }
        let holds = (0..count).map(|_| Hold::read(from)).collect::<Result<_, _>>()?;
        Ok(Self { epoch, last, holds })
    }
}

impl Hold {
    fn write(&self, to: &mut Writer) {
        to.u64(self.ticket);
        to.text(self.name.as_str());
        to.u8(match self.held {
            Held::Mutex => 1,
            Held::Read => 2,
            Held::Write => 3,
        });
        to.bool(self.abandoned.is_some());
        if let Some(node) = self.abandoned {
            to.node(node);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (ticket, name) = (from.u64("ticket")?, read_name(from)?);
        let held = match from.u8("held")? {
            1 => Held::Mutex,
            2 => Held::Read,
            3 => Held::Write,
            other => return Err(DecodeError::Invalid { field: "held", value: other.into() }),
        };
        let abandoned = match from.bool("abandoned")? {
            true => Some(from.node("abandoned")?),
            false => None,
        };
        Ok(Self { ticket, name, held, abandoned })
    }
}

fn read_name(from: &mut Reader<'_>) -> Result<SyncName, DecodeError> {
    SyncName::new(from.text(NAME_BYTES_MAX, "name")?)
        .map_err(|error| DecodeError::Length { field: "name", len: error.len })
}

impl SyncOp {
    fn write(self, to: &mut Writer) {
        match self {
            Self::MutexLock => to.u8(op::MUTEX_LOCK),
            Self::MutexTryLock => to.u8(op::MUTEX_TRY_LOCK),
            Self::MutexUnlock { holder } => {
                to.u8(op::MUTEX_UNLOCK);
                to.u64(holder);
            }
            Self::ReadLock => to.u8(op::READ_LOCK),
            Self::ReadTryLock => to.u8(op::READ_TRY_LOCK),
            Self::ReadUnlock { holder } => {
                to.u8(op::READ_UNLOCK);
                to.u64(holder);
            }
            Self::WriteLock => to.u8(op::WRITE_LOCK),
            Self::WriteTryLock => to.u8(op::WRITE_TRY_LOCK),
            Self::WriteUnlock { holder } => {
                to.u8(op::WRITE_UNLOCK);
                to.u64(holder);
            }
            Self::BarrierWait { parties } => {
                to.u8(op::BARRIER_WAIT);
                to.u32(parties);
            }
            Self::CounterAdd { delta } => {
                to.u8(op::COUNTER_ADD);
                to.i64(delta);
            }
            Self::CounterGet => to.u8(op::COUNTER_GET),
            Self::CounterSet { value } => {
                to.u8(op::COUNTER_SET);
                to.i64(value);
            }
            Self::CompareExchange { expected, new } => {
                to.u8(op::COMPARE_EXCHANGE);
                to.i64(expected);
                to.i64(new);
            }
            Self::Cancel { waiter } => {
                to.u8(op::CANCEL);
                to.u64(waiter);
            }
            Self::GiveBack { holder } => {
                to.u8(op::GIVE_BACK);
                to.u64(holder);
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match from.u8("op")? {
            op::MUTEX_LOCK => Self::MutexLock,
            op::MUTEX_TRY_LOCK => Self::MutexTryLock,
            op::MUTEX_UNLOCK => Self::MutexUnlock { holder: from.u64("holder")? },
            op::READ_LOCK => Self::ReadLock,
            op::READ_TRY_LOCK => Self::ReadTryLock,
            op::READ_UNLOCK => Self::ReadUnlock { holder: from.u64("holder")? },
            op::WRITE_LOCK => Self::WriteLock,
            op::WRITE_TRY_LOCK => Self::WriteTryLock,
            op::WRITE_UNLOCK => Self::WriteUnlock { holder: from.u64("holder")? },
            op::BARRIER_WAIT => Self::BarrierWait { parties: from.u32("parties")? },
            op::COUNTER_ADD => Self::CounterAdd { delta: from.i64("delta")? },
            op::COUNTER_GET => Self::CounterGet,
            op::COUNTER_SET => Self::CounterSet { value: from.i64("value")? },
            op::COMPARE_EXCHANGE => {
                Self::CompareExchange { expected: from.i64("expected")?, new: from.i64("new")? }
            }
            op::CANCEL => Self::Cancel { waiter: from.u64("waiter")? },
            op::GIVE_BACK => Self::GiveBack { holder: from.u64("holder")? },
            other => return Err(DecodeError::Invalid { field: "op", value: other.into() }),
        })
    }
}

impl SyncReply {
    pub(crate) fn write(&self, to: &mut Writer) {
        to.u64(self.ticket);
        to.u16(self.epoch);
        match self.result {
            Ok(outcome) => outcome.write(to),
            Err(error) => error.write(to),
        }
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (ticket, epoch) = (from.u64("ticket")?, from.u16("epoch")?);
        let code = from.u8("result")?;
        let result = if code < result::KIND_MISMATCH {
            Ok(Outcome::read(code, from)?)
        } else {
            Err(SyncError::read(code, from)?)
        };
        Ok(Self { ticket, epoch, result })
    }
}

impl Outcome {
    fn write(self, to: &mut Writer) {
        match self {
            Self::Granted => to.u8(result::GRANTED),
            Self::Abandoned { node } => {
                to.u8(result::ABANDONED);
                to.node(node);
            }
            Self::Busy => to.u8(result::BUSY),
            Self::Unlocked => to.u8(result::UNLOCKED),
            Self::Passed { index } => {
                to.u8(result::PASSED);
                to.u32(index);
            }
            Self::Value(value) => {
                to.u8(result::VALUE);
                to.i64(value);
            }
            Self::Exchanged { done, before } => {
                to.u8(result::EXCHANGED);
                to.bool(done);
                to.i64(before);
            }
            Self::Cancelled => to.u8(result::CANCELLED),
            Self::NotWaiting => to.u8(result::NOT_WAITING),
        }
    }

    fn read(code: u8, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match code {
            result::GRANTED => Self::Granted,
            result::ABANDONED => Self::Abandoned { node: from.node("node")? },
            result::BUSY => Self::Busy,
            result::UNLOCKED => Self::Unlocked,
            result::PASSED => Self::Passed { index: from.u32("index")? },
            result::VALUE => Self::Value(from.i64("value")?),
            result::EXCHANGED => {
                Self::Exchanged { done: from.bool("done")?, before: from.i64("before")? }
            }
            result::CANCELLED => Self::Cancelled,
            result::NOT_WAITING => Self::NotWaiting,
            other => return Err(DecodeError::Invalid { field: "result", value: other.into() }),
        })
    }
}

impl SyncError {
    fn write(self, to: &mut Writer) {
        match self {
            Self::KindMismatch { found, wanted } => {
                to.u8(result::KIND_MISMATCH);
                to.u8(kind_code(found));
                to.u8(kind_code(wanted));
            }
            Self::NotHolder => to.u8(result::NOT_HOLDER),
            Self::PartiesMismatch { expected, got } => {
                to.u8(result::PARTIES_MISMATCH);
                to.u32(expected);
                to.u32(got);
            }
            Self::PartiesOutOfRange { got, max } => {
                to.u8(result::PARTIES_OUT_OF_RANGE);
                to.u32(got);
                to.u32(max);
            }
            Self::TooManyObjects { limit } => {
                to.u8(result::TOO_MANY_OBJECTS);
                to.u32(limit);
            }
            Self::QueueFull { limit } => {
                to.u8(result::QUEUE_FULL);
                to.u32(limit);
            }
            Self::TooManyTickets { limit } => {
                to.u8(result::TOO_MANY_TICKETS);
                to.u32(limit);
            }
            Self::DuplicateTicket => to.u8(result::DUPLICATE_TICKET),
            Self::BarrierBroken { node, epoch } => {
                to.u8(result::BARRIER_BROKEN);
                to.node(node);
                to.u16(epoch);
            }
            Self::ValueLost { node } => {
                to.u8(result::VALUE_LOST);
                to.node(node);
            }
            Self::NotHome => to.u8(result::NOT_HOME),
            Self::NoHome => to.u8(result::NO_HOME),
        }
    }

    fn read(code: u8, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match code {
            result::KIND_MISMATCH => {
                Self::KindMismatch { found: read_kind(from)?, wanted: read_kind(from)? }
            }
            result::NOT_HOLDER => Self::NotHolder,
            result::PARTIES_MISMATCH => {
                Self::PartiesMismatch { expected: from.u32("expected")?, got: from.u32("got")? }
            }
            result::PARTIES_OUT_OF_RANGE => {
                Self::PartiesOutOfRange { got: from.u32("got")?, max: from.u32("max")? }
            }
            result::TOO_MANY_OBJECTS => Self::TooManyObjects { limit: from.u32("limit")? },
            result::QUEUE_FULL => Self::QueueFull { limit: from.u32("limit")? },
            result::TOO_MANY_TICKETS => Self::TooManyTickets { limit: from.u32("limit")? },
            result::DUPLICATE_TICKET => Self::DuplicateTicket,
            result::BARRIER_BROKEN => {
                Self::BarrierBroken { node: from.node("node")?, epoch: from.u16("epoch")? }
            }
            result::VALUE_LOST => Self::ValueLost { node: from.node("node")? },
            result::NOT_HOME => Self::NotHome,
            result::NO_HOME => Self::NoHome,
            other => return Err(DecodeError::Invalid { field: "result", value: other.into() }),
        })
    }
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Mutex => 1,
        Kind::RwLock => 2,
        Kind::Barrier => 3,
        Kind::Counter => 4,
    }
}

fn read_kind(from: &mut Reader<'_>) -> Result<Kind, DecodeError> {
    match from.u8("object kind")? {
        1 => Ok(Kind::Mutex),
        2 => Ok(Kind::RwLock),
        3 => Ok(Kind::Barrier),
        4 => Ok(Kind::Counter),
        other => Err(DecodeError::Invalid { field: "object kind", value: other.into() }),
    }
}
