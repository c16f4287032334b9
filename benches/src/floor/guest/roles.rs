//! What leaves a floor's machine, and the threads that take it there.

use std::sync::Arc;
use std::thread;

use kvm_ioctls::VmFd;

use super::bell::{Bell, outrank};
use super::machine::interrupt;
use crate::error::BenchError;
use crate::floor::Wake;
use crate::floor::faults::Waiter;
use crate::floor::frame::Frame;
use crate::floor::link::{Link, Received, unexpected};
use crate::floor::memory::Memory;
use crate::floor::peer::Peer;
use crate::floor::uffd::Right;
use crate::guest::Turns;
use crate::placement::Spin;

/// The rest of the world, as the vCPUs' threads see it.
pub(super) trait Outside: Send + Sync {
    /// Reads the register of a device.
    fn ask(&self) -> u32 {
        0
    }

    /// Sends an interrupt.
    fn interrupt(&self) {}
}

/// A machine by itself: its device is here.
pub(super) struct Alone;

impl Outside for Alone {}

/// A device of a peer process.
pub(super) struct Asks {
    peer: Peer,
    turns: Arc<Turns>,
    answered: Bell,
}

impl Asks {
    /// The thread that takes answers is on the CPUs of whoever calls this.
    pub(super) fn start(peer: Peer, turns: Arc<Turns>) -> Arc<Self> {
        let asks = Arc::new(Self { peer, turns, answered: Bell::default() });
        thread::spawn({
            let asks = Arc::clone(&asks);
            move || {
                outrank();
                while asks.peer.link().expect(Frame::Ack).is_ok() {
                    asks.answered.ring();
                }
                asks.turns.end("the peer has ended".into());
                asks.answered.ring();
            }
        });
        asks
    }
}

impl Outside for Asks {
    fn ask(&self) -> u32 {
        match self.peer.link().send(Frame::Ask, None) {
            Ok(()) => self.answered.wait(),
            Err(error) => self.turns.end(error.to_string()),
        }
        0
    }
}

/// A machine with one vCPU that sends interrupts to another one's.
pub(super) struct Hops {
    link: Link,
    turns: Arc<Turns>,
    sends: Bell,
    /// The other side's guest has begun a batch.
    plays: Bell,
}

impl Hops {
    pub(super) fn start(link: Link, turns: Arc<Turns>) -> Arc<Self> {
        let hops = Arc::new(Self { link, turns, sends: Bell::default(), plays: Bell::default() });
        thread::spawn({
            let hops = Arc::clone(&hops);
            move || {
                outrank();
                loop {
                    hops.sends.wait();
                    if let Err(error) = hops.link.send(Frame::Hop, None) {
                        return hops.turns.end(error.to_string());
                    }
                }
            }
        });
        hops
    }

    /// Has the other side's guest answer so many. It has started when this returns: one whose APIC is off
    /// would miss an interrupt.
    pub(super) fn play(&self, count: u32) -> Result<(), BenchError> {
        self.link.send(Frame::Play(count.into()), None)?;
        self.plays.wait();
        Ok(())
    }

    /// Takes what comes: interrupts, and batches for the guest.
    pub(super) fn hear(&self, vm: &VmFd) -> Result<(), BenchError> {
        outrank();
        loop {
            match self.link.receive(None, Wake::Blocking, Spin::Hot)? {
                Received::Frame(Frame::Hop) => interrupt(vm)?,
                Received::Frame(Frame::Ack) => self.plays.ring(),
                Received::Frame(Frame::Play(count)) => {
                    self.turns.begin(count as u32)?;
                    self.link.send(Frame::Ack, None)?;
                }
                Received::End => return Ok(()),
                other => return Err(unexpected(other, Frame::Hop)),
            }
        }
    }
}

impl Outside for Hops {
    fn interrupt(&self) {
        self.sends.ring();
    }
}

/// Pages of a peer.
pub(super) struct Faults {
    pub(super) memory: &'static Memory,
    pub(super) peer: Peer,
    pub(super) write: bool,
}

impl Faults {
    /// No page is here any more.
    pub(super) fn prepare(&self) -> Result<(), BenchError> {
        let right = if self.write { Right::Write } else { Right::Read };
        self.peer.command(Frame::Begin(right))?;
        self.memory.drop_all()
    }

    /// Answers one fault.
    pub(super) fn answer(&self, waiter: &Waiter<'_>, page: usize) -> Result<(), BenchError> {
        let number = page as u64;
        let (request, right) = match self.write {
            true => (Frame::Take(number), Right::Write),
            false => (Frame::Read(number), Right::Read),
        };
        self.peer.link().send(request, None)?;
        match waiter.next_message(0, Some(self.memory.alias_span(page, 1)))? {
            Received::Frame(Frame::Page(got)) if got == number => self.memory.install(page, right),
            other => Err(unexpected(other, Frame::Page(number))),
        }
    }
}
