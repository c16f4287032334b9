//! The thread that hears the other nodes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dsm_core::report::chain;
use dsm_core::transport::{ReceiveHalf, Received, Reject};
use dsm_core::types::NodeId;
use dsm_core::wire::Kind;
use rustix::event::epoll;

use super::core::{Core, Event};
use super::message::VmMessage;
use super::post::{Post, VM_KIND};
use crate::node::outrank;

/// What the stop descriptor's events carry.
const STOP: u64 = 2 << 32;

/// Hears the peers until told to stop.
pub(super) struct Exchange {
    core: Arc<Core>,
    peers: Vec<Option<ReceiveHalf>>,
    epoll: OwnedFd,
    /// Called with a peer whose connection failed.
    failed: LinkFailed,
}

/// See [`Exchange::new`].
type LinkFailed = Box<dyn Fn(NodeId, String) + Send + Sync>;

impl Exchange {
    /// `epoll` also reports what [`Post`] waits for; `stop` becomes readable at the end.
    pub(super) fn new(
        core: Arc<Core>,
        peers: Vec<Option<ReceiveHalf>>,
        epoll: OwnedFd,
        stop: &OwnedFd,
        failed: LinkFailed,
    ) -> std::io::Result<Self> {
        for (index, peer) in peers.iter().enumerate() {
            if let Some(peer) = peer {
                let data = epoll::EventData::new_u64(index as u64);
                epoll::add(&epoll, peer.fd(), data, epoll::EventFlags::IN)?;
            }
        }
        epoll::add(&epoll, stop.as_fd(), epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        Ok(Self { core, peers, epoll, failed })
    }

    /// Returns the connections, which stay open as long as the nodes are joined: closed ones mean a
    /// lost peer.
    pub(super) fn run(mut self) -> Vec<Option<ReceiveHalf>> {
        // Interrupts and answers must not wait for a vCPU that has the processor.
        outrank();
        let mut events = Vec::with_capacity(64);
        loop {
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    self.core.tell(Event::Failed(format!("epoll_wait failed: {error}")));
                    return self.peers;
                }
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    STOP => return self.peers,
                    data if data >= Post::WRITABLE => {
                        self.core.hub.post.writable((data - Post::WRITABLE) as usize);
                    }
                    index => self.read(index as usize),
                }
            }
        }
    }

    fn read(&mut self, index: usize) {
        let (Some(slot), Some(from)) = (self.peers.get_mut(index), NodeId::new(index)) else {
            return;
        };
        let Some(peer) = slot else { return };
        let core = &self.core;
        let result = peer.receive(&mut |header, body, _| {
            match header.kind() {
                Kind::Control(kind) if kind.code() == VM_KIND => {}
                other => return Err(Reject(format!("{other:?} on the virtual machine's channel"))),
            }
            let message = VmMessage::decode(body).map_err(|error| Reject(error.to_string()))?;
            core.hear(from, message);
            Ok(())
        });
        let reason = match result {
            Ok(Received::Closed) => "closed by the peer".into(),
            Ok(_) => return,
            Err(error) => chain(&error),
        };
        let _ = epoll::delete(&self.epoll, peer.fd());
        *slot = None;
        // Membership finds out what it means; the machine ends when it does.
        (self.failed)(from, reason);
    }
}
