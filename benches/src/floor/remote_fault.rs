//! The least that a fault costs when the page is on another node.
//!
//! | kind | the faulting node A, the owner B, a reader C |
//! |---|---|
//! | read | A faults, asks B, gets 4 KiB into its alias, installs read-only |
//! | write | A faults, asks B; B drops its mapping and sends 4 KiB; A has C drop its copy, then installs writable |
//! | upgrade | A holds a read-only copy and writes; it has B drop its copy, then clears the protection |

use super::faults::{Touch, Waiter, time_touches};
use super::frame::Frame;
use super::link::{Received, unexpected};
use super::memory::Memory;
use super::peer::{Peer, Role};
use super::uffd::Right;
use super::{Seat, Variant, page_order};
use crate::error::BenchError;
use crate::placement::Placement;
use crate::sample::Sampler;

/// Pages of a remote floor's region; a batch goes over them in [`page_order`].
pub const PAGES: usize = 1024;

/// Which fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A read of a page that is not here.
    Read,
    /// A write to a page that is not here, and that a third node reads.
    Write,
    /// A write to a page that is here to read, and that another node reads.
    Upgrade,
}

impl FaultKind {
    /// How many nodes take part.
    pub fn nodes(self) -> usize {
        if self == Self::Write { 3 } else { 2 }
    }
}

/// Faults of one kind on pages of other processes.
#[derive(Debug)]
pub struct RemoteFault {
    kind: FaultKind,
    seat: Seat,
    memory: Memory,
    order: Vec<usize>,
    peers: Vec<Peer>,
}

impl RemoteFault {
    /// Starts the peers.
    ///
    /// # Errors
    /// When the kernel refuses userfaultfd, a socket or a process.
    pub fn new(
        kind: FaultKind,
        variant: Variant,
        placement: &Placement,
    ) -> Result<Self, BenchError> {
        let seat = |node| Seat::new(placement, variant.wake, node, kind.nodes());
        let peers = (1..kind.nodes())
            .map(|node| Peer::start(Role::Serve, variant.transport, &seat(node), PAGES))
            .collect::<Result<_, _>>()?;
        let memory = Memory::new(PAGES)?;
        Ok(Self { kind, seat: seat(0), memory, order: page_order(PAGES), peers })
    }

    fn prepare(&self) -> Result<(), BenchError> {
        let rights = match self.kind {
            FaultKind::Read | FaultKind::Upgrade => [Right::Read].as_slice(),
            FaultKind::Write => &[Right::Write, Right::Read],
        };
        for (peer, right) in self.peers.iter().zip(rights) {
            peer.command(Frame::Begin(*right))?;
        }
        match self.kind {
            FaultKind::Read | FaultKind::Write => self.memory.drop_all(),
            FaultKind::Upgrade => self.memory.install_all(Right::Read),
        }
    }

    fn answer(&self, waiter: &Waiter<'_>, page: usize) -> Result<(), BenchError> {
        match self.kind {
            FaultKind::Read => {
                self.fetch(waiter, page, Frame::Read(page as u64))?;
                self.memory.install(page, Right::Read)
            }
            FaultKind::Write => {
                self.fetch(waiter, page, Frame::Take(page as u64))?;
                self.invalidate(waiter, page, 1)?;
                self.memory.install(page, Right::Write)
            }
            FaultKind::Upgrade => {
                self.invalidate(waiter, page, 0)?;
                self.memory.unprotect(page)
            }
        }
    }

    fn fetch(&self, waiter: &Waiter<'_>, page: usize, request: Frame) -> Result<(), BenchError> {
        self.peers[0].link().send(request, None)?;
        match waiter.next_message(0, Some(self.memory.alias_span(page, 1)))? {
            Received::Frame(Frame::Page(got)) if got == page as u64 => Ok(()),
            other => Err(unexpected(other, Frame::Page(page as u64))),
        }
    }

    fn invalidate(
        &self,
        waiter: &Waiter<'_>,
        page: usize,
        reader: usize,
    ) -> Result<(), BenchError> {
        self.peers[reader].link().send(Frame::Invalidate(page as u64), None)?;
        match waiter.next_message(reader, None)? {
            Received::Frame(Frame::Ack) => Ok(()),
            other => Err(unexpected(other, Frame::Ack)),
        }
    }
}

impl Sampler for RemoteFault {
    /// Microseconds a fault, as the application sees it.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        let touch = if self.kind == FaultKind::Read { Touch::Load } else { Touch::Store };
        let links: Vec<_> = self.peers.iter().map(Peer::link).collect();
        let mut times = Vec::with_capacity(count);
        while times.len() < count {
            self.prepare()?;
            let pages = &self.order[..PAGES.min(count - times.len())];
            times.extend(time_touches(
                &self.memory,
                &self.seat,
                &self.seat.cpus,
                &links,
                (touch, pages),
                |waiter, page| self.answer(waiter, page),
            )?);
        }
        for peer in &self.peers {
            peer.command(Frame::Park)?;
        }
        Ok(times)
    }
}
