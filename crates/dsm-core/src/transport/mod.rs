//! Carries frames between two nodes, in order within a class, over Unix sockets, TCP, or memory.
//!
//! A connection belongs to one thread and never blocks it. Messages without pages only join a
//! buffer, so that many of them leave in one system call; a message with pages leaves at once,
//! straight from the pages. Urgent messages overtake ordinary ones that the peer has not taken yet.

mod address;
mod dial;
mod handshake;
mod in_process;
mod listen;
mod outbox;
mod poll;
mod socket;
mod stream;

pub use address::{Address, AddressError};
pub use dial::dial;
pub use handshake::{Incoming, Interest, Progress, SetupError};
pub use in_process::{InProcess, pair};
pub use listen::{BindError, Listener};
pub use socket::{Connection, Socket};
pub use stream::{ReceiveHalf, SendHalf, Stream};

use std::io;
use std::os::fd::BorrowedFd;

use crate::protocol::Message;
use crate::types::PAGE_SIZE;
use crate::wire::{FrameHeader, WireError};

/// The bytes of a page to send. They are read during the call only.
pub type PageBytes<'a> = &'a [u8; PAGE_SIZE];

/// Which of a connection's messages go first; order holds within a class only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Answers, acknowledgements, invalidations: what a waiting node waits for.
    Urgent,
    /// The rest.
    Ordinary,
}

impl Class {
    /// The class of a page message.
    pub fn of(message: &Message) -> Self {
        if message.is_urgent() { Class::Urgent } else { Class::Ordinary }
    }
}

/// How far [`Transport::flush`] came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Flush {
    /// Everything is on its way.
    Done,
    /// The peer does not take more for now: flush again when [`Transport::fd`] is writable.
    Blocked,
}

/// How [`Transport::receive`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Received {
    /// What was there has been handed over. [`Transport::fd`] must be watched level-triggered:
    /// what came meanwhile, the end of the connection included, shows there.
    WouldBlock,
    /// More is probably there already.
    More,
    /// The peer has closed the connection in an orderly way.
    Closed,
}

/// A receiver's verdict that a message must not be; it ends the connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Reject(
    /// What is wrong with the message.
    pub String,
);

impl From<WireError> for Reject {
    fn from(error: WireError) -> Self {
        Self(error.to_string())
    }
}

/// Takes a frame: header, body, payload. The slices are only lent.
pub type Sink<'a> = dyn FnMut(FrameHeader, &[u8], &[u8]) -> Result<(), Reject> + 'a;

/// Limits of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Most bytes that wait for a peer; beyond, the peer counts as one that does not read.
    pub queue_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { queue_bytes_max: 64 << 20 }
    }
}

/// What a connection has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages handed to [`Transport::send`].
    pub messages_sent: u64,
    /// Bytes that the kernel, or in memory the peer, has taken.
    pub bytes_sent: u64,
    /// System calls to send.
    pub writes: u64,
    /// Messages handed to the sink.
    pub messages_received: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// System calls to receive.
    pub reads: u64,
}

/// Why a connection is of no further use; each variant names the peer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A system call failed.
    #[error("{peer}: cannot {action}")]
    Io {
        /// The peer.
        peer: String,
        /// `send` or `receive`.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The peer's bytes are no frames.
    #[error("{peer}: disconnected because it sent bytes that are no message")]
    Nonsense {
        /// The peer.
        peer: String,
        /// What is wrong with them.
        #[source]
        source: WireError,
    },
    /// The peer's frame was refused by the receiver.
    #[error("{peer}: disconnected because of a message that must not be")]
    Rejected {
        /// The peer.
        peer: String,
        /// What is wrong with it.
        #[source]
        source: Reject,
    },
    /// The connection ended within a frame.
    #[error(
        "{peer}: the connection ended in the middle of a message, after {received} bytes of it"
    )]
    Truncated {
        /// The peer.
        peer: String,
        /// Bytes of the unfinished frame.
        received: usize,
    },
    /// More waits for the peer than may.
    #[error(
        "{peer}: disconnected because it does not read: {queued} bytes wait for it, and at most \
         {max} may; look at what that node is busy with"
    )]
    DoesNotRead {
        /// The peer.
        peer: String,
        /// Bytes that wait, with the message that did not fit.
        queued: usize,
        /// [`Options::queue_bytes_max`].
        max: usize,
    },
}

/// One connection to one peer. After an error the connection is of no further use: drop it.
pub trait Transport: Send {
    /// Readable when [`Transport::receive`] has something to do; writable when a blocked
    /// [`Transport::flush`] can go on. Watch it level-triggered.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Sends one frame: `head` is its header and body as `wire` encodes them, `pages` its payload.
    /// Without pages it waits for [`Transport::flush`] or for a message with pages.
    ///
    /// # Errors
    /// A failed system call, or a peer that does not read.
    fn send(
        &mut self,
        class: Class,
        head: &[u8],
        pages: &[PageBytes<'_>],
    ) -> Result<(), TransportError>;

    /// Gives the kernel what waits, as far as it takes it.
    ///
    /// # Errors
    /// A failed system call; the peer may be gone.
    fn flush(&mut self) -> Result<Flush, TransportError>;

    /// Reads once and hands every complete frame to `sink`, in order.
    ///
    /// # Errors
    /// A failed system call, bytes that are no frames, a connection that ends within a frame, or
    /// the sink's own refusal.
    fn receive(&mut self, sink: &mut Sink<'_>) -> Result<Received, TransportError>;

    /// Bytes that the peer has not taken yet, as far as this side knows.
    fn queued_bytes(&self) -> usize;

    /// Names the peer in messages to people.
    fn peer(&self) -> &str;

    /// What this connection has done so far.
    fn counters(&self) -> Counters;
}
