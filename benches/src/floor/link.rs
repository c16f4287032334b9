//! A connected stream socket that carries [`Frame`]s, page bodies straight from and into an alias.

use std::io::{Error, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::{mem, ptr};

use super::frame::{FRAME, Frame};
use super::memory::Span;
use super::{Transport, Wake};
use crate::error::BenchError;
use crate::placement::Spin;

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// Both ends of a new connection, set up alike for floors and for giantvm.
///
/// # Errors
/// When the kernel refuses a socket.
pub fn connected_pair(transport: Transport) -> Result<(OwnedFd, OwnedFd), BenchError> {
    match transport {
        Transport::Unix => UnixStream::pair().map(|(a, b)| (a.into(), b.into())),
        Transport::Tcp => tcp_pair().map(|(a, b)| (a.into(), b.into())),
    }
    .map_err(BenchError::os("connecting two sockets"))
}

/// What a look at a link shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Frame(Frame),
    Nothing,
    /// The other end is closed.
    End,
}

impl Link {
    /// Both ends of a new connection.
    pub(super) fn pair(transport: Transport) -> Result<(Self, OwnedFd), BenchError> {
        connected_pair(transport).map(|(a, b)| (Self(a), b))
    }

    /// The end that this process was given.
    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends a frame; `body` must have the length the frame calls for.
    pub(super) fn send(&self, frame: Frame, body: Option<Span<'_>>) -> Result<(), BenchError> {
        assert_eq!(body.map_or(0, Span::len), frame.body(), "the body does not fit {frame:?}");
        let mut header = frame.encode();
        let mut sent = 0;
        while sent < FRAME + frame.body() {
            sent += self.transfer(&mut header, body, sent, |fd, message| {
                // SAFETY: the message's parts are live: `header` and the span borrow their memory.
                unsafe { libc::sendmsg(fd, message, libc::MSG_NOSIGNAL) }
            })?;
        }
        Ok(())
    }

    /// Waits for a frame. A body goes to `body`, which must have just the length it calls for.
    pub(super) fn receive(
        &self,
        body: Option<Span<'_>>,
        wake: Wake,
        spin: Spin,
    ) -> Result<Received, BenchError> {
        loop {
            let flags = if wake == Wake::Busy { libc::MSG_DONTWAIT } else { 0 };
            match self.receive_with(body, flags)? {
                Received::Nothing => spin.pause(),
                received => return Ok(received),
            }
        }
    }

    /// Looks whether a frame has come, and if so waits for all of it.
    pub(super) fn try_receive(&self, body: Option<Span<'_>>) -> Result<Received, BenchError> {
        self.receive_with(body, libc::MSG_DONTWAIT)
    }

    /// Waits, asleep, for the frame that must come next.
    pub(super) fn expect(&self, frame: Frame) -> Result<(), BenchError> {
        match self.receive(None, Wake::Blocking, Spin::Hot)? {
            Received::Frame(got) if got == frame => Ok(()),
            other => Err(unexpected(other, frame)),
        }
    }

    fn receive_with(
        &self,
        body: Option<Span<'_>>,
        mut flags: libc::c_int,
    ) -> Result<Received, BenchError> {
        let mut header = [0; FRAME];
        let mut got = 0;
        loop {
            let received = self.transfer(&mut header, body, got, |fd, message| {
                // SAFETY: the message's parts are live and ours to fill: `header` is borrowed
                // exclusively, and a span's bytes are never borrowed as Rust memory.
                unsafe { libc::recvmsg(fd, message, flags) }
            });
            match received {
                Ok(0) if got == 0 => return Ok(Received::End),
                Ok(0) => return Err(BenchError::Peer("ended within a message".into())),
                Ok(bytes) => got += bytes,
                Err(BenchError::Os { source, .. }) if source.kind() == ErrorKind::WouldBlock => {
                    return Ok(Received::Nothing);
                }
                Err(error) => return Err(error),
            }
            flags = 0;
            if got < FRAME {
                continue;
            }
            let frame = Frame::decode(&header)?;
            if frame.body() != 0 && body.map(Span::len) != Some(frame.body()) {
                return Err(BenchError::Peer(format!("sent {frame:?} when nobody asked")));
            }
            match got.cmp(&(FRAME + frame.body())) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Ok(Received::Frame(frame)),
                std::cmp::Ordering::Greater => {
                    return Err(BenchError::Peer(format!("sent more behind {frame:?}")));
                }
            }
        }
    }

    /// One vectored call over what is left of header and body after `done` bytes.
    fn transfer(
        &self,
        header: &mut [u8; FRAME],
        body: Option<Span<'_>>,
        done: usize,
        call: impl Fn(libc::c_int, *mut libc::msghdr) -> isize,
    ) -> Result<usize, BenchError> {
        let left = header.get_mut(done..).unwrap_or_default();
        let none = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let mut parts = [
            libc::iovec { iov_base: left.as_mut_ptr().cast(), iov_len: left.len() },
            body.map_or(none, |body| body.rest(done.saturating_sub(FRAME))),
        ];
        // SAFETY: an all-zero msghdr is valid: no address, no parts, no control data.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        loop {
            let bytes = call(self.0.as_raw_fd(), &raw mut message);
            if bytes >= 0 {
                return Ok(bytes as usize);
            }
            let source = Error::last_os_error();
            match source.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                    return Err(BenchError::Peer("has ended".into()));
                }
                _ => {
                    return Err(BenchError::Os { doing: "using a socket between nodes", source });
                }
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The error for a message out of turn.
pub(super) fn unexpected(got: Received, wanted: impl std::fmt::Debug) -> BenchError {
    BenchError::Peer(match got {
        Received::Frame(frame) => format!("sent {frame:?} where {wanted:?} was due"),
        _ => format!("ended where {wanted:?} was due"),
    })
}

fn tcp_pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    if theirs.peer_addr()? != ours.local_addr()? {
        return Err(Error::other("a stranger connected first; run again"));
    }
    ours.set_nodelay(true)?;
    theirs.set_nodelay(true)?;
    use_reno(ours.as_fd())?;
    use_reno(theirs.as_fd())?;
    Ok((ours, theirs))
}

/// Chooses the one congestion control that every kernel has and every user may take.
///
/// The system's default may be BBR, whose pacing was seen to fall to a third at some moment of a stream over the
/// loopback and to stay there, so that the same program had two speeds. Reno and Cubic kept theirs.
fn use_reno(socket: BorrowedFd<'_>) -> std::io::Result<()> {
    let (fd, name) = (socket.as_raw_fd(), b"reno");
    let (option, len) = (libc::TCP_CONGESTION, name.len() as libc::socklen_t);
    // SAFETY: the name is live, and as long as is said; the kernel copies it.
    let set = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, name.as_ptr().cast(), len) };
    if set != 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::super::memory::Memory;
    use super::*;

    #[test]
    fn bodies_land_in_the_alias_they_were_asked_for() {
        let memory = Memory::new(2).unwrap();
        for transport in [Transport::Tcp, Transport::Unix] {
            let (a, b) = Link::pair(transport).unwrap();
            let b = Link::from_fd(b);
            assert_eq!(a.try_receive(None).unwrap(), Received::Nothing);
            memory.alias_word(0).store(77, Relaxed);
            memory.alias_word(1).store(0, Relaxed);
            b.send(Frame::Page(0), Some(memory.alias_span(0, 1))).unwrap();
            let received = a.receive(Some(memory.alias_span(1, 1)), Wake::Busy, Spin::Yielding);
            assert_eq!(received.unwrap(), Received::Frame(Frame::Page(0)));
            assert_eq!(memory.alias_word(1).load(Relaxed), 77);
            drop(b);
            assert_eq!(a.receive(None, Wake::Blocking, Spin::Hot).unwrap(), Received::End);
            let sent = (0..3).try_for_each(|_| a.send(Frame::Park, None));
            assert!(matches!(sent, Err(BenchError::Peer(_))), "the peer is to be named: {sent:?}");
        }
    }

    #[test]
    fn a_message_out_of_turn_is_an_error() {
        let memory = Memory::new(1).unwrap();
        let (a, b) = Link::pair(Transport::Unix).unwrap();
        let b = Link::from_fd(b);
        b.send(Frame::Park, None).unwrap();
        assert!(a.expect(Frame::Ack).is_err());
        b.send(Frame::Page(0), Some(memory.alias_span(0, 1))).unwrap();
        assert!(a.try_receive(None).is_err(), "a page that nobody asked for");
    }
}
