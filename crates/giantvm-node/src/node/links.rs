//! The control thread's connections.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dsm_core::transport::{Class, Flush, Stream, Transport};
use dsm_core::types::{NodeId, RegionId};
use dsm_core::wire::{self, ControlKind};
use rustix::event::epoll;

use crate::control::ControlMessage;

/// What an epoll event is about; packed in its 64 bits of data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Commands,
    Listener,
    Link(NodeId),
    Incoming(u32),
}

impl Source {
    pub(super) fn data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Commands => 0,
            Self::Listener => 1 << 32,
            Self::Link(peer) => 2 << 32 | peer.index() as u64,
            Self::Incoming(number) => 3 << 32 | u64::from(number),
        })
    }

    pub(super) fn of(data: epoll::EventData) -> Self {
        let (kind, number) = (data.u64() >> 32, data.u64() as u32);
        match (kind, NodeId::new(number as usize)) {
            (1, _) => Self::Listener,
            (2, Some(peer)) => Self::Link(peer),
            (3, _) => Self::Incoming(number),
            _ => Self::Commands,
        }
    }
}

/// One peer: its control connection, and which page connections stand.
pub(super) struct Link {
    pub(super) incarnation: u64,
    pub(super) control: Option<Stream>,
    pub(super) workers: BTreeSet<u8>,
    /// The connection of the virtual machine, until one takes it; and whether it has come.
    pub(super) vm: Option<Stream>,
    pub(super) has_vm: bool,
    /// Whether membership has been told of it.
    pub(super) announced: bool,
    blocked: bool,
}

impl Link {
    pub(super) fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            control: None,
            workers: BTreeSet::new(),
            vm: None,
            has_vm: false,
            announced: false,
            blocked: false,
        }
    }

    /// Whether all channels stand.
    pub(super) fn is_complete(&self, workers: usize) -> bool {
        self.control.is_some() && self.has_vm && self.workers.len() == workers
    }
}

/// All peers, and the epoll that waits for them.
pub(super) struct Links {
    pub(super) epoll: OwnedFd,
    pub(super) by_peer: BTreeMap<NodeId, Link>,
    failed: Vec<(NodeId, String)>,
    head: Vec<u8>,
}

/// The one kind of control frame; what it says is in its body.
fn control_kind() -> Option<ControlKind> {
    ControlKind::new(CONTROL_KIND)
}

/// See docs/wire.md: control messages of the node layer.
pub(super) const CONTROL_KIND: u8 = 0x40;
/// A node's status, as text.
pub(super) const STATUS_KIND: u8 = 0x41;

impl Links {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            by_peer: BTreeMap::new(),
            failed: Vec::new(),
            head: Vec::new(),
        })
    }

    pub(super) fn watch(
        &self,
        fd: BorrowedFd<'_>,
        source: Source,
        writable: bool,
    ) -> std::io::Result<()> {
        let interest = if writable { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        Ok(epoll::add(&self.epoll, fd, source.data(), interest)?)
    }

    pub(super) fn unwatch(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Queues a message; a failure shows in [`Links::take_failed`].
    pub(super) fn send(&mut self, to: NodeId, message: &ControlMessage) {
        let Some(stream) = self.by_peer.get_mut(&to).and_then(|link| link.control.as_mut()) else {
            return;
        };
        self.head.clear();
        let encoded = control_kind()
            .ok_or("no such kind of frame".to_string())
            .and_then(|kind| {
                wire::encode_control(kind, RegionId(0), &message.encode(), &mut self.head)
                    .map_err(|error| error.to_string())
            })
            .and_then(|()| {
                stream.send(Class::Urgent, &self.head, &[]).map_err(|error| error.to_string())
            });
        if let Err(reason) = encoded {
            self.failed.push((to, reason));
        }
    }

    /// Hands everything queued to the kernel.
    pub(super) fn flush(&mut self) {
        for (&peer, link) in &mut self.by_peer {
            let Some(stream) = &mut link.control else { continue };
            match stream.flush() {
                Ok(state) => {
                    let blocked = state == Flush::Blocked;
                    if blocked != link.blocked {
                        link.blocked = blocked;
                        let mut interest = epoll::EventFlags::IN;
                        interest.set(epoll::EventFlags::OUT, blocked);
                        let data = Source::Link(peer).data();
                        let _ = epoll::modify(&self.epoll, stream.fd().as_fd(), data, interest);
                    }
                }
                Err(error) => self.failed.push((peer, dsm_core::report::chain(&error))),
            }
        }
    }

    /// Peers whose control connection failed since the last call.
    pub(super) fn take_failed(&mut self) -> Vec<(NodeId, String)> {
        std::mem::take(&mut self.failed)
    }

    /// Forgets a peer; returns its incarnation if membership knew of it.
    pub(super) fn remove(&mut self, peer: NodeId) -> Option<u64> {
        let link = self.by_peer.remove(&peer)?;
        if let Some(stream) = &link.control {
            self.unwatch(stream.fd());
        }
        link.announced.then_some(link.incarnation)
    }
}
