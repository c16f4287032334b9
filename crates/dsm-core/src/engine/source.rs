//! What wakes a worker, and how it tells these apart.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::types::{NodeId, RegionId};

/// Wakes a worker for its commands, asleep or looking.
pub(super) struct Wake(OwnedFd, AtomicBool);

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(fd, AtomicBool::new(false)))
    }

    pub(super) fn signal(&self) {
        self.1.store(true, Ordering::Release);
        // A full counter means that a wake-up is pending anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Readable when signalled.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn pending(&self) -> bool {
        self.1.load(Ordering::Acquire)
    }

    /// Before the commands are taken: one that comes later signals again.
    pub(super) fn clear(&self) {
        self.1.store(false, Ordering::Release);
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

/// What an epoll event is about; packed in its 64 bits of data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Commands,
    Link(NodeId),
    Faults(RegionId),
}

impl Source {
    pub(super) fn data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Commands => 0,
            Self::Link(peer) => 1 << 32 | peer.index() as u64,
            Self::Faults(region) => 2 << 32 | u64::from(region.0),
        })
    }

    pub(super) fn of(data: epoll::EventData) -> Self {
        let (kind, number) = (data.u64() >> 32, data.u64() as u32);
        match (kind, NodeId::new(number as usize)) {
            (1, Some(peer)) => Self::Link(peer),
            (2, _) => Self::Faults(RegionId(number)),
            _ => Self::Commands,
        }
    }
}
