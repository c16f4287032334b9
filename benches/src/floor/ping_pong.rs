//! Two nodes that count in turns: each polls one word of one page until it is its turn, adds one, and polls
//! again, as programs do that know nothing of pages.
//!
//! The least that a turn needs: the node that lost the page faults and asks at once, for it polls;
//! its request waits at the other node until that has taken its turn; then that node drops its mapping and
//! sends the page, with ownership, and the asking one installs it writable. One fault, one request, one reply
//! a turn. A node that gave the page away before its own turn would only have to ask for it again.
//!
//! The floor knows when the turn was taken: it looks at the word through the alias. A program that does not know what its
//! pages mean has to guess, and what it loses by that is part of what its ratio to this floor shows.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::faults::{Event, Flag, Waiter, join};
use super::frame::Frame;
use super::link::{Link, Received, unexpected};
use super::memory::Memory;
use super::peer::{Peer, Role};
use super::uffd::Right;
use super::{Seat, Variant};
use crate::error::BenchError;
use crate::placement::{Placement, Spin};
use crate::sample::Sampler;

/// A page that two processes pass to and fro.
#[derive(Debug)]
pub struct PingPong {
    seat: Seat,
    memory: Memory,
    peer: Peer,
    owns: bool,
}

impl PingPong {
    /// Starts the other player.
    ///
    /// # Errors
    /// When the kernel refuses userfaultfd, a socket or a process.
    pub fn new(variant: Variant, placement: &Placement) -> Result<Self, BenchError> {
        let their_seat = Seat::new(placement, variant.wake, 1, 2);
        let memory = Memory::new(1)?;
        memory.install_all(Right::Write)?;
        Ok(Self {
            seat: Seat::new(placement, variant.wake, 0, 2),
            memory,
            peer: Peer::start(Role::PingPong, variant.transport, &their_seat, 1)?,
            owns: true,
        })
    }
}

impl Sampler for PingPong {
    /// Microseconds a turn: half of what passes from one turn of this side to its next.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        // One more turn than intervals.
        let turns = count + 1;
        self.peer.command(Frame::Play(turns as u64))?;
        let link = self.peer.link();
        let mut player = Player {
            memory: &self.memory,
            link,
            seat: &self.seat,
            parity: 0,
            owns: self.owns,
            waits_for_park: false,
        };
        let stamps = player.play(turns)?;
        self.owns = player.owns;
        self.peer.command(Frame::Park)?;
        Ok(stamps.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e6 / 2.0).collect())
    }
}

/// The other player's main loop.
pub(super) fn serve(link: &Link, seat: &Seat, memory: &Memory) -> Result<(), BenchError> {
    let mut player = Player { memory, link, seat, parity: 1, owns: false, waits_for_park: true };
    loop {
        let turns = match link.receive(None, super::Wake::Blocking, Spin::Hot)? {
            Received::Frame(Frame::Play(turns)) => turns,
            Received::End => return Ok(()),
            other => return Err(unexpected(other, "a game")),
        };
        link.send(Frame::Ack, None)?;
        player.play(turns as usize)?;
        link.send(Frame::Ack, None)?;
    }
}

struct Player<'a> {
    memory: &'a Memory,
    link: &'a Link,
    seat: &'a Seat,
    /// It is this side's turn when the word is even (0) or odd (1).
    parity: u64,
    owns: bool,
    /// Whether the other side says when the game is over; else it is when this side has taken its last
    /// turn and given the page away.
    waits_for_park: bool,
}

impl Player<'_> {
    /// Takes `turns` turns; returns when each was taken.
    fn play(&mut self, turns: usize) -> Result<Vec<Instant>, BenchError> {
        let (done, failed, both_ready) = (Flag::new()?, AtomicBool::new(false), Barrier::new(2));
        let (word, spin, parity) = (self.memory.view_word(0), self.seat.spin, self.parity);
        let (memory, cpus) = (self.memory, &self.seat.cpus);
        let count = || {
            let placed = cpus.enter();
            both_ready.wait();
            let stamps = take_turns(word, parity, turns, spin, &failed);
            done.raise().and(placed).map(|()| stamps)
        };
        let pass = || {
            let placed = cpus.enter();
            both_ready.wait();
            let passed = placed.and_then(|()| self.pass_page(&done));
            if passed.is_err() {
                // The counting thread waits for a page or a turn that will not come.
                failed.store(true, Ordering::Release);
                memory.uffd().release();
            }
            passed
        };
        thread::scope(|scope| {
            let passing = scope.spawn(pass);
            let stamps = join(scope.spawn(count));
            join(passing).and(stamps)
        })
    }

    /// Asks for the page and gives it away, until the game is over.
    fn pass_page(&mut self, done: &Flag) -> Result<(), BenchError> {
        let links = [self.link];
        let waiter = Waiter::new(self.memory, self.seat, &links, done)?;
        let page = self.memory.alias_span(0, 1);
        loop {
            match waiter.next_event(Some(page))? {
                Event::Fault(_) => self.link.send(Frame::Take(0), None)?,
                Event::Message(Received::Frame(Frame::Take(0))) => self.give()?,
                Event::Message(Received::Frame(Frame::Page(0))) => {
                    self.owns = true;
                    self.memory.install(0, Right::Write)?;
                }
                Event::Message(Received::Frame(Frame::Park)) if self.waits_for_park => {
                    return Ok(());
                }
                Event::Message(other) => return Err(unexpected(other, "a move")),
                Event::Done => {}
            }
            if !self.waits_for_park && done.is_raised() && !self.owns {
                return Ok(());
            }
        }
    }

    /// Gives the page away, as soon as this side has taken its turn.
    fn give(&mut self) -> Result<(), BenchError> {
        while self.memory.alias_word(0).load(Ordering::Acquire) % 2 == self.parity {
            self.seat.spin.pause();
        }
        self.memory.drop_page(0)?;
        self.owns = false;
        self.link.send(Frame::Page(0), Some(self.memory.alias_span(0, 1)))
    }
}

/// The application: all it knows is a word of memory.
fn take_turns(
    word: &AtomicU64,
    parity: u64,
    turns: usize,
    spin: Spin,
    failed: &AtomicBool,
) -> Vec<Instant> {
    let mut stamps = Vec::with_capacity(turns);
    while stamps.len() < turns && !failed.load(Ordering::Relaxed) {
        let value = word.load(Ordering::Acquire);
        if value % 2 == parity {
            word.store(value + 1, Ordering::Release);
            stamps.push(Instant::now());
        } else {
            spin.pause();
        }
    }
    stamps
}
