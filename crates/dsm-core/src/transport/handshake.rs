//! The handshake over a socket, from both ends.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::{Connection, Options, Socket, Stream, poll};
use crate::wire::{ANSWER_LEN, Answer, HELLO_LEN, Hello, Identity, MAGIC, Refusal, RefusalCode};

/// Why a connection did not come about; each variant names the peer.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The name of the host means nothing here.
    #[error("cannot find `{peer}`: check the name in the configuration and in DNS")]
    Resolve {
        /// The address.
        peer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answers at the address.
    #[error("cannot connect to {peer}: check that the node runs and listens there")]
    Connect {
        /// The address.
        peer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The peer does not fit this node, which refused it.
    #[error("refused {peer}: {}", .refusal.reason)]
    Mismatch {
        /// The peer.
        peer: String,
        /// What does not fit, with both values.
        refusal: Refusal,
    },
    /// This node does not fit the peer, which refused it.
    #[error("{peer} refused this node: {}", .refusal.reason)]
    Refused {
        /// The peer.
        peer: String,
        /// What does not fit, in the peer's words.
        refusal: Refusal,
    },
    /// The peer did not speak in time.
    #[error("{peer} did not complete the handshake in time: {received} of {expected} bytes came")]
    TimedOut {
        /// The peer.
        peer: String,
        /// Bytes that came.
        received: usize,
        /// Bytes of a handshake.
        expected: usize,
    },
    /// The peer closed the connection instead of speaking.
    #[error(
        "{peer} closed the connection during the handshake, after {received} of {expected} bytes"
    )]
    Closed {
        /// The peer.
        peer: String,
        /// Bytes that came.
        received: usize,
        /// Bytes of a handshake.
        expected: usize,
    },
    /// A system call failed.
    #[error("the handshake with {peer} failed")]
    Io {
        /// The peer.
        peer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What an [`Incoming`] waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest {
    /// Until its descriptor is readable.
    Readable,
    /// Until its descriptor is writable.
    Writable,
}

/// How far an [`Incoming`] came.
pub enum Progress<S = Connection> {
    /// Drive it again when [`Incoming::interest`] is met, or its deadline has passed.
    Pending(Incoming<S>),
    /// The connection stands; the peer said this about itself.
    Done(Stream<S>, Hello),
}

/// A connection whose handshake is under way, at the side that was called. It never blocks.
pub struct Incoming<S = Connection> {
    socket: S,
    peer: String,
    deadline: Instant,
    step: Step,
}

enum Step {
    Hello(Partial<HELLO_LEN>),
    Answer { bytes: Box<[u8; ANSWER_LEN]>, sent: usize, verdict: Result<Hello, Refusal> },
}

impl<S: Socket> Incoming<S> {
    /// Takes over a socket that a peer of this name has just connected to.
    pub fn new(socket: S, peer: impl Into<String>, deadline: Instant) -> Self {
        Self { socket, peer: peer.into(), deadline, step: Step::Hello(Partial::new()) }
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to watch it for.
    pub fn interest(&self) -> Interest {
        match self.step {
            Step::Hello(_) => Interest::Readable,
            Step::Answer { .. } => Interest::Writable,
        }
    }

    /// When the peer is out of time; drive it then, too.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Names the peer in messages to people.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Goes on as far as it can without waiting. A peer that passes every check is shown to
    /// `admit`, which may still refuse it with a reason of its own.
    ///
    /// # Errors
    /// The peer does not fit (it has been told why), is out of time, or has gone.
    pub fn drive(
        mut self,
        local: &Identity,
        options: Options,
        admit: &mut dyn FnMut(&Hello) -> Result<(), String>,
    ) -> Result<Progress<S>, SetupError> {
        loop {
            match &mut self.step {
                Step::Hello(hello) => {
                    let complete =
                        hello.receive(&mut self.socket).map_err(|error| error.named(&self.peer))?;
                    let verdict = match complete {
                        Some(bytes) => judge(&bytes, local, admit),
                        None if !MAGIC.starts_with(hello.start(MAGIC.len())) => Err(not_giantvm()),
                        None => return self.wait(),
                    };
                    let bytes = Box::new(answer(&verdict, local).to_bytes());
                    self.step = Step::Answer { bytes, sent: 0, verdict };
                }
                Step::Answer { bytes, sent, verdict } => {
                    while let Some(rest) = bytes.get(*sent..).filter(|rest| !rest.is_empty()) {
                        match self.socket.send(&[IoSlice::new(rest)]) {
                            Ok(count) => *sent += count,
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                                return self.wait();
                            }
                            Err(source) => {
                                return Err(SetupError::Io { peer: self.peer, source });
                            }
                        }
                    }
                    return match verdict.clone() {
                        Ok(hello) => {
                            let peer = peer_name(&hello, &self.peer);
                            Ok(Progress::Done(Stream::new(self.socket, peer, options), hello))
                        }
                        Err(refusal) => Err(SetupError::Mismatch { peer: self.peer, refusal }),
                    };
                }
            }
        }
    }

    /// Drives it to its end, waiting as long as its deadline allows.
    ///
    /// # Errors
    /// As [`Incoming::drive`].
    pub fn complete(
        mut self,
        local: &Identity,
        options: Options,
        admit: &mut dyn FnMut(&Hello) -> Result<(), String>,
    ) -> Result<(Stream<S>, Hello), SetupError> {
        loop {
            self = match self.drive(local, options, admit)? {
                Progress::Done(stream, hello) => return Ok((stream, hello)),
                Progress::Pending(incoming) => incoming,
            };
            let events = match self.interest() {
                Interest::Readable => libc::POLLIN,
                Interest::Writable => libc::POLLOUT,
            };
            // Whether it became ready or ran out of time, `drive` tells.
            poll::wait(self.fd(), events, self.deadline)
                .map_err(|source| SetupError::Io { peer: self.peer.clone(), source })?;
        }
    }

    fn wait(self) -> Result<Progress<S>, SetupError> {
        if Instant::now() < self.deadline {
            return Ok(Progress::Pending(self));
        }
        let received = match &self.step {
            Step::Hello(hello) => hello.len,
            Step::Answer { .. } => HELLO_LEN,
        };
        Err(SetupError::TimedOut { peer: self.peer, received, expected: HELLO_LEN })
    }
}

/// What the called node makes of a hello.
fn judge(
    bytes: &[u8; HELLO_LEN],
    local: &Identity,
    admit: &mut dyn FnMut(&Hello) -> Result<(), String>,
) -> Result<Hello, Refusal> {
    let hello = Hello::parse(bytes)?;
    hello.check(local)?;
    admit(&hello).map_err(|reason| Refusal::new(RefusalCode::NotAdmitted, reason))?;
    Ok(hello)
}

fn answer(verdict: &Result<Hello, Refusal>, local: &Identity) -> Answer {
    match verdict {
        Ok(hello) => {
            Answer::Welcome(Hello { from: *local, to: hello.from.node, channel: hello.channel })
        }
        Err(refusal) => Answer::Refusal(refusal.clone()),
    }
}

fn not_giantvm() -> Refusal {
    let reason = "this is a giantvm node, and what was sent is no giantvm handshake";
    Refusal::new(RefusalCode::Malformed, reason)
}

fn peer_name(hello: &Hello, address: &str) -> String {
    format!("node {} ({}, {address})", hello.from.node, hello.channel)
}

/// The handshake at the side that calls; waits until the deadline at most.
pub(super) fn call<S: Socket>(
    mut socket: S,
    address: &str,
    hello: &Hello,
    deadline: Instant,
    options: Options,
) -> Result<(Stream<S>, Hello), SetupError> {
    let io = |source| SetupError::Io { peer: address.to_owned(), source };
    let bytes = hello.to_bytes();
    let mut sent = 0;
    let mut answer = Partial::<ANSWER_LEN>::new();
    let answer = loop {
        if let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match socket.send(&[IoSlice::new(rest)]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(io(error)),
            }
        } else if let Some(bytes) =
            answer.receive(&mut socket).map_err(|error| error.named(address))?
        {
            break bytes;
        }
        let events = if sent < bytes.len() { libc::POLLOUT } else { libc::POLLIN };
        if !poll::wait(socket.as_fd(), events, deadline).map_err(io)? {
            return Err(SetupError::TimedOut {
                peer: address.to_owned(),
                received: answer.len,
                expected: ANSWER_LEN,
            });
        }
    };
    let mismatch = |refusal| SetupError::Mismatch { peer: address.to_owned(), refusal };
    match Answer::parse(&answer).map_err(mismatch)? {
        Answer::Welcome(welcome) => {
            welcome.check_answer(hello).map_err(mismatch)?;
            let peer = peer_name(&welcome, address);
            Ok((Stream::new(socket, peer, options), welcome))
        }
        Answer::Refusal(refusal) => Err(SetupError::Refused { peer: address.to_owned(), refusal }),
    }
}

/// A fixed number of bytes, some of which have come. It takes no byte of what follows them.
struct Partial<const LEN: usize> {
    bytes: [u8; LEN],
    len: usize,
}

/// What can happen while they come.
enum PartialError {
    Closed { received: usize, expected: usize },
    Io(io::Error),
}

impl PartialError {
    fn named(self, peer: &str) -> SetupError {
        let peer = peer.to_owned();
        match self {
            PartialError::Closed { received, expected } => {
                SetupError::Closed { peer, received, expected }
            }
            PartialError::Io(source) => SetupError::Io { peer, source },
        }
    }
}

impl<const LEN: usize> Partial<LEN> {
    fn new() -> Self {
        Self { bytes: [0; LEN], len: 0 }
    }

    /// The first bytes that have come, `count` at most.
    fn start(&self, count: usize) -> &[u8] {
        &self.bytes[..self.len.min(count)]
    }

    /// Receives what is there; all bytes once they have come.
    fn receive(&mut self, socket: &mut impl Socket) -> Result<Option<[u8; LEN]>, PartialError> {
        while self.len < LEN {
            match socket.receive(&mut self.bytes[self.len..]) {
                Ok(0) => {
                    return Err(PartialError::Closed { received: self.len, expected: LEN });
                }
                Ok(count) => self.len += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(PartialError::Io(error)),
            }
        }
        Ok(Some(self.bytes))
    }
}
