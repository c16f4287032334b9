//! A transport inside one process, for tests: shared queues and an eventfd.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::stream::split_frame;
use super::{
    Class, Counters, Flush, Options, PageBytes, Received, Sink, Transport, TransportError,
};
use crate::types::PAGE_SIZE;
use crate::wire::FrameHeader;

/// One end of an in-process connection.
pub struct InProcess {
    peer: String,
    options: Options,
    inbound: Arc<Direction>,
    outbound: Arc<Direction>,
    /// Messages that wait for a flush, in the order of sending.
    pending: Vec<(Class, Vec<u8>)>,
    pending_bytes: usize,
    overrun: bool,
    counters: Counters,
}

/// Two connected ends; the names are what each end calls its *peer*.
///
/// # Errors
/// No eventfd is to be had.
pub fn pair(
    first_peer: impl Into<String>,
    second_peer: impl Into<String>,
    options: Options,
) -> io::Result<(InProcess, InProcess)> {
    let forth = Arc::new(Direction::new()?);
    let back = Arc::new(Direction::new()?);
    let end = |peer, inbound: &Arc<_>, outbound: &Arc<_>| InProcess {
        peer,
        options,
        inbound: Arc::clone(inbound),
        outbound: Arc::clone(outbound),
        pending: Vec::new(),
        pending_bytes: 0,
        overrun: false,
        counters: Counters::default(),
    };
    Ok((end(first_peer.into(), &back, &forth), end(second_peer.into(), &forth, &back)))
}

/// Messages on their way one way.
struct Direction {
    waiting: Mutex<Waiting>,
    /// Readable while something waits, or the sender is gone.
    event: File,
}

#[derive(Default)]
struct Waiting {
    urgent: VecDeque<Vec<u8>>,
    ordinary: VecDeque<Vec<u8>>,
    bytes: usize,
    sender_gone: bool,
    receiver_gone: bool,
}

impl Direction {
    fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned this descriptor, and nobody else has it.
        let event = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self { waiting: Mutex::default(), event })
    }

    /// A panicking test thread leaves the queues whole, so its poison is ignored.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) -> io::Result<()> {
        (&self.event).write_all(&1u64.to_ne_bytes())
    }

    fn clear(&self) {
        // It fails when nothing was signalled, and then nothing is to be cleared.
        let _ = (&self.event).read(&mut [0; 8]);
    }
}

impl InProcess {
    fn io_error(&self, action: &'static str, source: io::Error) -> TransportError {
        TransportError::Io { peer: self.peer.clone(), action, source }
    }
}

impl Transport for InProcess {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inbound.event.as_fd()
    }

    fn send(
        &mut self,
        class: Class,
        head: &[u8],
        pages: &[PageBytes<'_>],
    ) -> Result<(), TransportError> {
        let len = head.len() + pages.len() * PAGE_SIZE;
        let queued = self.queued_bytes() + len;
        let max = self.options.queue_bytes_max;
        if self.overrun || queued > max {
            self.overrun = true;
            return Err(TransportError::DoesNotRead { peer: self.peer.clone(), queued, max });
        }
        let mut frame = Vec::with_capacity(len);
        frame.extend_from_slice(head);
        pages.iter().for_each(|page| frame.extend_from_slice(&page[..]));
        self.pending.push((class, frame));
        self.pending_bytes += len;
        self.counters.messages_sent += 1;
        if pages.is_empty() { Ok(()) } else { self.flush().map(|_| ()) }
    }

    fn flush(&mut self) -> Result<Flush, TransportError> {
        if self.pending.is_empty() {
            return Ok(Flush::Done);
        }
        let mut waiting = self.outbound.lock();
        if waiting.receiver_gone {
            drop(waiting);
            return Err(self.io_error("send", io::ErrorKind::BrokenPipe.into()));
        }
        for (class, frame) in self.pending.drain(..) {
            waiting.bytes += frame.len();
            match class {
                Class::Urgent => waiting.urgent.push_back(frame),
                Class::Ordinary => waiting.ordinary.push_back(frame),
            }
        }
        drop(waiting);
        self.counters.bytes_sent += self.pending_bytes as u64;
        self.pending_bytes = 0;
        self.counters.writes += 1;
        self.outbound.signal().map_err(|error| self.io_error("send", error))?;
        Ok(Flush::Done)
    }

    fn receive(&mut self, sink: &mut Sink<'_>) -> Result<Received, TransportError> {
        // Cleared before the queues are read: a message that comes in between signals again.
        self.inbound.clear();
        self.counters.reads += 1;
        let (frames, closed) = {
            let mut waiting = self.inbound.lock();
            let urgent = std::mem::take(&mut waiting.urgent);
            let ordinary = std::mem::take(&mut waiting.ordinary);
            waiting.bytes = 0;
            (urgent.into_iter().chain(ordinary), waiting.sender_gone)
        };
        let mut any = false;
        for frame in frames {
            any = true;
            self.counters.bytes_received += frame.len() as u64;
            let nonsense = |source| TransportError::Nonsense { peer: self.peer.clone(), source };
            let header = FrameHeader::parse_prefix(&frame).map_err(nonsense)?;
            let whole = header.filter(|header| header.frame_len() == frame.len());
            let Some((header, body, payload)) =
                whole.and_then(|header| split_frame(header, &frame))
            else {
                let received = frame.len();
                return Err(TransportError::Truncated { peer: self.peer.clone(), received });
            };
            self.counters.messages_received += 1;
            sink(header, body, payload)
                .map_err(|source| TransportError::Rejected { peer: self.peer.clone(), source })?;
        }
        match (any, closed) {
            (true, true) => Ok(Received::More),
            (false, true) => Ok(Received::Closed),
            (_, false) => Ok(Received::WouldBlock),
        }
    }

    fn queued_bytes(&self) -> usize {
        self.pending_bytes + self.outbound.lock().bytes
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.inbound.lock().receiver_gone = true;
        self.outbound.lock().sender_gone = true;
        // Nobody is left to be told when this fails.
        let _ = self.outbound.signal();
    }
}
