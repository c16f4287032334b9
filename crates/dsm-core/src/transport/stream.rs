//! A transport over any byte stream: Unix sockets and TCP.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use super::outbox::Outbox;
use super::{
    Class, Connection, Counters, Flush, Options, PageBytes, Received, Sink, Socket, Transport,
    TransportError,
};
use crate::types::PAGE_SIZE;
use crate::wire::{FRAME_MAX, FrameHeader, HEADER_LEN, PAYLOAD_PAGES_MAX, WireError};

/// Bytes of the receive buffer. The kernel backs only what has been received into.
const INBOX_LEN: usize = 256 << 10;
/// With less room than this at its end, the buffer moves an unfinished frame to its start.
const INBOX_ROOM_MIN: usize = INBOX_LEN / 2;
const _: () = assert!(INBOX_LEN - FRAME_MAX >= INBOX_ROOM_MIN);

/// Slices of one send at most: what goes ahead, the head, the pages.
const SLICES_MAX: usize = 3 + 1 + PAYLOAD_PAGES_MAX;

/// Frames over a socket.
pub struct Stream<S = Connection> {
    socket: S,
    peer: String,
    options: Options,
    outbox: Outbox,
    /// The kernel took less than it was offered; pointless to try before it says otherwise.
    blocked: bool,
    /// A message was lost for want of room; nothing may follow it.
    overrun: bool,
    inbox: Inbox,
    counters: Counters,
}

impl<S: Socket> Stream<S> {
    /// Frames over `socket`, whose handshake is done, to a peer of this name.
    pub fn new(socket: S, peer: impl Into<String>, options: Options) -> Self {
        Self {
            socket,
            peer: peer.into(),
            options,
            outbox: Outbox::default(),
            blocked: false,
            overrun: false,
            inbox: Inbox::new(),
            counters: Counters::default(),
        }
    }

    fn io_error(&self, action: &'static str, source: io::Error) -> TransportError {
        TransportError::Io { peer: self.peer.clone(), action, source }
    }

    /// Sends what goes ahead of a message, then the message itself straight from where it lies;
    /// what the kernel does not take of it waits.
    fn send_now(
        &mut self,
        class: Class,
        head: &[u8],
        pages: &[PageBytes<'_>],
    ) -> Result<(), TransportError> {
        let ahead = self.outbox.ahead_of(class);
        let ahead_len = ahead.len();
        let all = ahead.io_slices().chain(parts(head, pages).map(IoSlice::new));
        let taken = offer(&mut self.socket, &mut self.counters, all)
            .map_err(|error| self.io_error("send", error))?;
        self.outbox.advance(taken.min(ahead_len));
        let sent = taken.saturating_sub(ahead_len);
        if sent < parts(head, pages).map(<[u8]>::len).sum() {
            self.blocked = true;
            self.outbox.push(class, parts(head, pages), sent);
        }
        Ok(())
    }
}

impl Stream {
    /// The same connection in two hands: one sends, the other receives. What was queued or received
    /// before stays with the half that it is for; each half does only what its name says.
    ///
    /// # Errors
    /// The descriptor can't be duplicated.
    pub fn split(mut self) -> io::Result<(SendHalf, ReceiveHalf)> {
        let receives = Stream {
            socket: self.socket.duplicate()?,
            peer: self.peer.clone(),
            options: self.options,
            outbox: Outbox::default(),
            blocked: false,
            overrun: false,
            inbox: std::mem::replace(&mut self.inbox, Inbox::empty()),
            counters: Counters::default(),
        };
        Ok((SendHalf(self), ReceiveHalf(receives)))
    }
}

/// The half of a [`Stream`] that sends.
pub struct SendHalf(Stream);

impl SendHalf {
    /// Writable when a blocked [`SendHalf::flush`] can go on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// As [`Transport::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&mut self, class: Class, head: &[u8]) -> Result<(), TransportError> {
        self.0.send(class, head, &[])
    }

    /// As [`Transport::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&mut self) -> Result<Flush, TransportError> {
        self.0.flush()
    }
}

/// The half of a [`Stream`] that receives.
pub struct ReceiveHalf(Stream);

impl ReceiveHalf {
    /// Readable when [`ReceiveHalf::receive`] has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// As [`Transport::receive`].
    ///
    /// # Errors
    /// As there.
    pub fn receive(&mut self, sink: &mut Sink<'_>) -> Result<Received, TransportError> {
        self.0.receive(sink)
    }
}

/// The pieces of a message.
fn parts<'a>(head: &'a [u8], pages: &'a [PageBytes<'a>]) -> impl Iterator<Item = &'a [u8]> {
    std::iter::once(head).chain(pages.iter().map(|page| &page[..]))
}

/// Offers `slices` to the kernel; says how many bytes it took.
fn offer<'a>(
    socket: &mut impl Socket,
    counters: &mut Counters,
    slices: impl Iterator<Item = IoSlice<'a>>,
) -> io::Result<usize> {
    let mut array = [IoSlice::new(&[]); SLICES_MAX];
    let mut count = 0;
    for (slot, slice) in array.iter_mut().zip(slices) {
        *slot = slice;
        count += 1;
    }
    counters.writes += 1;
    match socket.send(&array[..count]) {
        Ok(taken) => {
            counters.bytes_sent += taken as u64;
            Ok(taken)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}

impl<S: Socket> Transport for Stream<S> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(
        &mut self,
        class: Class,
        head: &[u8],
        pages: &[PageBytes<'_>],
    ) -> Result<(), TransportError> {
        assert!(pages.len() <= PAYLOAD_PAGES_MAX, "a message with too many pages");
        let queued = self.outbox.len() + head.len() + pages.len() * PAGE_SIZE;
        let max = self.options.queue_bytes_max;
        if self.overrun || queued > max {
            self.overrun = true;
            return Err(TransportError::DoesNotRead { peer: self.peer.clone(), queued, max });
        }
        self.counters.messages_sent += 1;
        if pages.is_empty() || self.blocked {
            self.outbox.push(class, parts(head, pages), 0);
            return Ok(());
        }
        self.send_now(class, head, pages)
    }

    fn flush(&mut self) -> Result<Flush, TransportError> {
        let waiting = self.outbox.ahead_of(Class::Ordinary);
        let waiting_len = waiting.len();
        if waiting_len == 0 {
            self.blocked = false;
            return Ok(Flush::Done);
        }
        let taken = offer(&mut self.socket, &mut self.counters, waiting.io_slices())
            .map_err(|error| self.io_error("send", error))?;
        self.outbox.advance(taken);
        self.blocked = taken < waiting_len;
        Ok(if self.blocked { Flush::Blocked } else { Flush::Done })
    }

    fn receive(&mut self, sink: &mut Sink<'_>) -> Result<Received, TransportError> {
        let room = self.inbox.room();
        let room_len = room.len();
        self.counters.reads += 1;
        let count = match self.socket.receive(room) {
            Ok(0) if self.inbox.len() > 0 => {
                let received = self.inbox.len();
                return Err(TransportError::Truncated { peer: self.peer.clone(), received });
            }
            Ok(0) => return Ok(Received::Closed),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Received::WouldBlock);
            }
            Err(error) => return Err(self.io_error("receive", error)),
        };
        self.counters.bytes_received += count as u64;
        self.inbox.filled(count);
        loop {
            match self.inbox.front() {
                Ok(Some((header, body, payload))) => {
                    self.counters.messages_received += 1;
                    sink(header, body, payload).map_err(|source| TransportError::Rejected {
                        peer: self.peer.clone(),
                        source,
                    })?;
                    self.inbox.advance(header.frame_len());
                }
                Ok(None) => break,
                Err(source) => {
                    return Err(TransportError::Nonsense { peer: self.peer.clone(), source });
                }
            }
        }
        // A read that fills the room may have left something; a shorter one has not.
        Ok(if count == room_len { Received::More } else { Received::WouldBlock })
    }

    fn queued_bytes(&self) -> usize {
        self.outbox.len()
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

/// Received bytes that no frame has used yet.
struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    fn new() -> Self {
        Self { bytes: vec![0; INBOX_LEN].into_boxed_slice(), start: 0, end: 0 }
    }

    /// For a half that does not receive.
    fn empty() -> Self {
        Self { bytes: Box::default(), start: 0, end: 0 }
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    /// Where to receive into; never empty, because less than one frame is kept between reads.
    fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < INBOX_ROOM_MIN {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// The first frame, when it is complete. Its header is checked before its length is believed.
    fn front(&self) -> Result<Option<Frame<'_>>, WireError> {
        let bytes = &self.bytes[self.start..self.end];
        let Some(header) = FrameHeader::parse_prefix(bytes)? else { return Ok(None) };
        Ok(split_frame(header, bytes))
    }

    fn advance(&mut self, count: usize) {
        self.start += count;
    }
}

/// Header, body, payload.
pub(super) type Frame<'a> = (FrameHeader, &'a [u8], &'a [u8]);

/// Body and payload of the frame that `bytes` start with; `None` where some are missing.
pub(super) fn split_frame(header: FrameHeader, bytes: &[u8]) -> Option<Frame<'_>> {
    let (_, rest) = bytes.split_at_checked(HEADER_LEN)?;
    let (body, rest) = rest.split_at_checked(header.body_len())?;
    let (payload, _) = rest.split_at_checked(header.payload_len())?;
    Some((header, body, payload))
}
