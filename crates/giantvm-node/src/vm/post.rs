//! Sending to the other nodes, from any thread, without waiting for another.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};

use dsm_core::report::chain;
use dsm_core::transport::{Class, Flush, SendHalf};
use dsm_core::types::{NodeId, RegionId};
use dsm_core::wire::{self, ControlKind};
use rustix::event::epoll;

use super::message::VmMessage;
use crate::node::{Flusher, lock};

/// Frames of a virtual machine; see docs/wire.md.
pub(super) const VM_KIND: u8 = 0x42;

/// One peer: frames that wait, and the connection. Whoever finds the connection free sends all that
/// waits; whoever does not leaves its frame to the one that has it, who looks again afterwards.
struct Peer {
    waiting: Mutex<Vec<u8>>,
    sender: Mutex<SendHalf>,
}

/// The connections to all peers of a virtual machine.
pub(super) struct Post {
    peers: Vec<Option<Peer>>,
    /// Watches for connections that take more again; its owner calls [`Post::writable`].
    epoll: OwnedFd,
    /// Called with a peer whose connection failed.
    failed: Box<dyn Fn(NodeId, String) + Send + Sync>,
    /// Knows what other nodes have not been told of this one's stores, if there may be such.
    stores: OnceLock<Flusher>,
    /// Messages that wait for that.
    behind: AtomicUsize,
}

impl Post {
    /// Takes the connections, by node. `epoll` will report, with the peer's index as its data plus
    /// [`Post::WRITABLE`], when a blocked connection takes more.
    pub(super) fn new(
        halves: Vec<Option<SendHalf>>,
        epoll: OwnedFd,
        failed: Box<dyn Fn(NodeId, String) + Send + Sync>,
    ) -> std::io::Result<Self> {
        for (index, half) in halves.iter().enumerate() {
            if let Some(half) = half {
                let data = epoll::EventData::new_u64(Self::WRITABLE + index as u64);
                epoll::add(&epoll, half.fd(), data, epoll::EventFlags::ONESHOT)?;
            }
        }
        let peer = |half| Peer { waiting: Mutex::default(), sender: Mutex::new(half) };
        let peers = halves.into_iter().map(|half| half.map(peer)).collect();
        let (stores, behind) = (OnceLock::new(), AtomicUsize::new(0));
        Ok(Self { peers, epoll, failed, stores, behind })
    }

    /// See [`Post::new`].
    pub(super) const WRITABLE: u64 = 1 << 32;

    /// From now on messages leave only when the other nodes see what was stored before.
    pub(super) fn wait_for_stores(&self, stores: Flusher) {
        let _ = self.stores.set(stores);
    }

    /// Sends to one node; to this one, or one without a connection, nothing.
    ///
    /// Messages of one thread arrive in the order of its calls, but for those that measure time, which
    /// wait for nothing.
    pub(super) fn send(self: &Arc<Self>, to: NodeId, message: &VmMessage) {
        if !self.peers.get(to.index()).is_some_and(Option::is_some) {
            return;
        }
        match self.stores.get() {
            Some(stores) if message.waits_for_stores() && self.must_wait(stores) => {
                self.behind.fetch_add(1, Ordering::SeqCst);
                let (post, message) = (Arc::clone(self), message.clone());
                stores.flush(Box::new(move || {
                    post.send_now(to, &message);
                    post.behind.fetch_sub(1, Ordering::SeqCst);
                }));
            }
            _ => self.send_now(to, message),
        }
    }

    /// Whether there are stores to wait for, or messages that do, which none may overtake.
    fn must_wait(&self, stores: &Flusher) -> bool {
        self.behind.load(Ordering::SeqCst) > 0 || stores.must_flush()
    }

    fn send_now(&self, to: NodeId, message: &VmMessage) {
        let Some(peer) = self.peers.get(to.index()).and_then(Option::as_ref) else { return };
        let mut frame = Vec::with_capacity(64);
        let encoded = ControlKind::new(VM_KIND)
            .map(|kind| wire::encode_control(kind, RegionId(0), &message.encode(), &mut frame));
        if !matches!(encoded, Some(Ok(()))) {
            return (self.failed)(to, "a message that is too long".into());
        }
        lock(&peer.waiting).extend_from_slice(&frame);
        self.push(to, peer);
    }

    /// Sends to all other nodes.
    pub(super) fn broadcast(self: &Arc<Self>, message: &VmMessage) {
        for (index, peer) in self.peers.iter().enumerate() {
            if let (Some(_), Some(node)) = (peer, NodeId::new(index)) {
                self.send(node, message);
            }
        }
    }

    /// Number of nodes with a connection.
    pub(super) fn peers(&self) -> usize {
        self.peers.iter().flatten().count()
    }

    /// A blocked connection takes more.
    pub(super) fn writable(&self, index: usize) {
        if let (Some(Some(peer)), Some(node)) = (self.peers.get(index), NodeId::new(index)) {
            self.push(node, peer);
        }
    }

    fn push(&self, to: NodeId, peer: &Peer) {
        loop {
            let mut sender = match peer.sender.try_lock() {
                Ok(sender) => sender,
                Err(TryLockError::WouldBlock) => return,
                Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            };
            let frames = std::mem::take(&mut *lock(&peer.waiting));
            let sent = match frames.is_empty() {
                true => sender.flush(),
                false => sender.send(Class::Ordinary, &frames).and_then(|()| sender.flush()),
            };
            match sent {
                Ok(Flush::Done) => {}
                Ok(Flush::Blocked) => {
                    let data = epoll::EventData::new_u64(Self::WRITABLE + to.index() as u64);
                    let flags = epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT;
                    let _ = epoll::modify(&self.epoll, sender.fd().as_fd(), data, flags);
                }
                Err(error) => {
                    drop(sender);
                    return (self.failed)(to, chain(&error));
                }
            }
            drop(sender);
            if lock(&peer.waiting).is_empty() {
                return;
            }
        }
    }
}
