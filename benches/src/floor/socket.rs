//! What a round trip and a stream cost without any page fault.

use std::thread;
use std::time::Instant;

use super::faults::join;
use super::frame::{BULK_PAGES, Frame};
use super::link::{Received, unexpected};
use super::memory::{Memory, PAGE};
use super::peer::{Peer, Role};
use super::uffd::Right;
use super::{Seat, Transport, Variant, Wake};
use crate::error::BenchError;
use crate::placement::Placement;
use crate::sample::Sampler;

/// 64 bytes one way, 64 bytes and a page back.
#[derive(Debug)]
pub struct RoundTrip {
    seat: Seat,
    memory: Memory,
    peer: Peer,
}

impl RoundTrip {
    /// Starts the peer.
    ///
    /// # Errors
    /// When the kernel refuses a socket or a process.
    pub fn new(variant: Variant, placement: &Placement) -> Result<Self, BenchError> {
        let their_seat = Seat::new(placement, variant.wake, 1, 2);
        Ok(Self {
            seat: Seat::new(placement, variant.wake, 0, 2),
            memory: Memory::new(1)?,
            peer: Peer::start(Role::Serve, variant.transport, &their_seat, 1)?,
        })
    }

    fn once(&self) -> Result<f64, BenchError> {
        let (link, page) = (self.peer.link(), self.memory.alias_span(0, 1));
        let start = Instant::now();
        link.send(Frame::Read(0), None)?;
        let received = link.receive(Some(page), self.seat.wake, self.seat.spin)?;
        let took = start.elapsed().as_secs_f64() * 1e6;
        match received {
            Received::Frame(Frame::Page(0)) => Ok(took),
            other => Err(unexpected(other, Frame::Page(0))),
        }
    }
}

impl Sampler for RoundTrip {
    /// Microseconds a round trip.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        self.peer.command(Frame::Begin(Right::Read))?;
        let times = thread::scope(|scope| {
            join(scope.spawn(|| {
                self.seat.cpus.enter()?;
                (0..count).map(|_| self.once()).collect()
            }))
        })?;
        self.peer.command(Frame::Park)?;
        Ok(times)
    }
}

/// Pages one after the other in messages of 64 KiB, as fast as the socket takes them, asleep when
/// it does not.
#[derive(Debug)]
pub struct Stream {
    seat: Seat,
    memory: Memory,
    peer: Peer,
}

impl Stream {
    /// Starts the peer. A sample moves `bytes`, a multiple of 64 KiB.
    ///
    /// # Errors
    /// When the kernel refuses a socket, a process or the memory.
    pub fn new(
        transport: Transport,
        placement: &Placement,
        bytes: usize,
    ) -> Result<Self, BenchError> {
        let pages = bytes.next_multiple_of(BULK_PAGES * PAGE) / PAGE;
        let their_seat = Seat::new(placement, Wake::Blocking, 1, 2);
        Ok(Self {
            seat: Seat::new(placement, Wake::Blocking, 0, 2),
            memory: Memory::new(pages)?,
            peer: Peer::start(Role::Serve, transport, &their_seat, pages)?,
        })
    }

    fn once(&self) -> Result<f64, BenchError> {
        let messages = self.memory.pages() / BULK_PAGES;
        let link = self.peer.link();
        let start = Instant::now();
        link.send(Frame::Stream(messages as u64), None)?;
        for message in 0..messages {
            let span = self.memory.alias_span(message * BULK_PAGES, BULK_PAGES);
            match link.receive(Some(span), self.seat.wake, self.seat.spin)? {
                Received::Frame(Frame::Bulk) => {}
                other => return Err(unexpected(other, Frame::Bulk)),
            }
        }
        Ok((self.memory.pages() * PAGE) as f64 / 1e6 / start.elapsed().as_secs_f64())
    }
}

impl Sampler for Stream {
    /// Megabytes a second, over the whole region.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        thread::scope(|scope| {
            join(scope.spawn(|| {
                self.seat.cpus.enter()?;
                (0..count).map(|_| self.once()).collect()
            }))
        })
    }
}
