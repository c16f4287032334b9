//! What several transport tests need: frames, a scripted socket, connected streams.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use dsm_core::transport::{Connection, Options, Received, Socket, Stream, Transport};
use dsm_core::wire::{ControlKind, FrameHeader, Kind, encode_control};
use dsm_core::{PAGE_SIZE, RegionId};

/// Header and body of a control message that carries its number as region.
pub(crate) fn control(number: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_control(ControlKind::new(0x40).unwrap(), RegionId(number), body, &mut bytes).unwrap();
    bytes
}

/// The header of a grant of `pages` pages that carries its number as region, and no body: a
/// transport does not look into bodies.
pub(crate) fn grant(number: u32, pages: usize) -> Vec<u8> {
    FrameHeader::new(Kind::Grant, RegionId(number), 0, pages).unwrap().to_bytes().to_vec()
}

/// A page whose bytes depend on `seed` and on their place.
pub(crate) fn page(seed: u8) -> Box<[u8; PAGE_SIZE]> {
    let mut bytes = Box::new([0; PAGE_SIZE]);
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = seed.wrapping_mul(31).wrapping_add((at % 251) as u8);
    }
    bytes
}

/// A received frame.
pub(crate) type Frame = (FrameHeader, Vec<u8>, Vec<u8>);

/// Receives once, and keeps the frames.
pub(crate) fn receive(
    transport: &mut dyn Transport,
    frames: &mut Vec<Frame>,
) -> Result<Received, dsm_core::transport::TransportError> {
    transport.receive(&mut |header, body, payload| {
        frames.push((header, body.to_vec(), payload.to_vec()));
        Ok(())
    })
}

/// The numbers of frames.
pub(crate) fn numbers(frames: &[Frame]) -> Vec<u32> {
    frames.iter().map(|(header, ..)| header.region().0).collect()
}

/// What a scripted socket does and has done.
#[derive(Default)]
pub(crate) struct Script {
    /// Bytes that it will still take.
    pub(crate) budget: usize,
    /// What it took.
    pub(crate) output: Vec<u8>,
    /// What it will deliver, one piece a read; empty: would block.
    pub(crate) input: VecDeque<Vec<u8>>,
    /// Whether the stream ends after the input.
    pub(crate) ends: bool,
}

/// A socket that follows a script.
pub(crate) struct Scripted(pub(crate) Arc<Mutex<Script>>, File);

impl Scripted {
    /// A stream over a script.
    pub(crate) fn stream(script: Script) -> (Stream<Scripted>, Arc<Mutex<Script>>) {
        let script = Arc::new(Mutex::new(script));
        let socket = Scripted(Arc::clone(&script), File::open("/dev/null").unwrap());
        (Stream::new(socket, "node 9", Options::default()), script)
    }
}

impl AsFd for Scripted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }
}

impl Socket for Scripted {
    fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut script = self.0.lock().unwrap();
        let mut taken = 0;
        for slice in slices {
            let count = slice.len().min(script.budget);
            script.budget -= count;
            script.output.extend_from_slice(&slice[..count]);
            taken += count;
        }
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut script = self.0.lock().unwrap();
        let Some(mut piece) = script.input.pop_front() else {
            return if script.ends { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        };
        let count = piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&piece[..count]);
        if count < piece.len() {
            piece.drain(..count);
            script.input.push_front(piece);
        }
        Ok(count)
    }
}

/// Two streams connected by a Unix socket pair; the first one's peer is called "reader".
pub(crate) fn unix_streams(options: Options) -> (Stream, Stream) {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    let a = Stream::new(Connection::new(a).unwrap(), "reader", options);
    (a, Stream::new(Connection::new(b).unwrap(), "writer", options))
}

/// Two streams connected over TCP; the first one's peer is called "reader".
pub(crate) fn tcp_streams(options: Options) -> (Stream, Stream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let a = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    let a = Stream::new(Connection::new(a).unwrap(), "reader", options);
    (a, Stream::new(Connection::new(b).unwrap(), "writer", options))
}

/// Waits until `fd` is ready for `events`; the timeout only keeps a broken test from hanging.
pub(crate) fn wait_ready(fd: BorrowedFd<'_>, events: i16) {
    assert!(is_ready(fd, events, 30_000), "nothing came in 30 seconds");
}

/// Whether `fd` becomes ready for `events` within the time.
pub(crate) fn is_ready(fd: BorrowedFd<'_>, events: i16, timeout_ms: i32) -> bool {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid entry, for the time of the call.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) > 0 }
}
