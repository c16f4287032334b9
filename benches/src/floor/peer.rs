//! The other nodes of a floor: processes started from this very executable.

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use super::frame::{BULK_PAGES, Frame};
use super::link::{Link, Received};
use super::memory::Memory;
use super::{Seat, Transport, Wake, ping_pong};
use crate::error::BenchError;
use crate::placement::{CpuSet, Spin};

/// The hidden subcommand of the executable that makes it a peer: `main` hands the arguments
/// behind it to [`main`].
pub const SUBCOMMAND: &str = "__floor-peer";

/// What a peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Answers one message after the other, in one thread.
    Serve,
    /// Plays ping-pong, in two threads.
    PingPong,
}

/// A running peer. It ends with this.
#[derive(Debug)]
pub(super) struct Peer {
    link: Link,
    process: Child,
}

impl Peer {
    /// Starts a peer with a region of `pages` pages of its own.
    pub(super) fn start(
        role: Role,
        transport: Transport,
        seat: &Seat,
        pages: usize,
    ) -> Result<Self, BenchError> {
        let (link, theirs) = Link::pair(transport)?;
        let program = env::current_exe().map_err(BenchError::os("finding this executable"))?;
        let spin = if seat.spin == Spin::Hot { "hot" } else { "yielding" };
        let process = Command::new(program)
            .arg(SUBCOMMAND)
            .arg(if role == Role::Serve { "serve" } else { "ping-pong" })
            .args([
                seat.wake.to_string(),
                spin.to_owned(),
                seat.cpus.to_string(),
                pages.to_string(),
            ])
            // The link is the peer's standard input: no address to agree on, nothing left in the file
            // system, and its end of file ends the peer.
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(BenchError::os("starting a peer process"))?;
        Ok(Self { link, process })
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Sends a command and waits until it is done.
    pub(super) fn command(&self, frame: Frame) -> Result<(), BenchError> {
        self.link.send(frame, None)?;
        self.link.expect(Frame::Ack)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The peer's own main: `args` are those behind [`SUBCOMMAND`], the link is standard input.
///
/// # Errors
/// When the kernel refuses something, or the process that measures breaks the rules.
pub fn main(args: &[String]) -> Result<(), BenchError> {
    let (role, seat, pages) =
        parse(args).ok_or_else(|| BenchError::Usage(format!("{SUBCOMMAND} is internal")))?;
    seat.cpus.enter()?;
    let input = io::stdin().as_fd().try_clone_to_owned();
    let link = Link::from_fd(input.map_err(BenchError::os("taking the link"))?);
    let memory = Memory::new(pages)?;
    match role {
        Role::Serve => serve(&link, &seat, &memory),
        Role::PingPong => ping_pong::serve(&link, &seat, &memory),
    }
}

fn parse(args: &[String]) -> Option<(Role, Seat, usize)> {
    let [role, wake, spin, cpus, pages] = args else { return None };
    let role = match role.as_str() {
        "serve" => Role::Serve,
        "ping-pong" => Role::PingPong,
        _ => return None,
    };
    let wake = [Wake::Blocking, Wake::Busy].into_iter().find(|it| it.to_string() == *wake)?;
    let spin = if spin == "hot" { Spin::Hot } else { Spin::Yielding };
    Some((role, Seat { wake, spin, cpus: CpuSet::parse(cpus)? }, pages.parse().ok()?))
}

fn serve(link: &Link, seat: &Seat, memory: &Memory) -> Result<(), BenchError> {
    let mut wake = Wake::Blocking;
    loop {
        let frame = match link.receive(None, wake, seat.spin)? {
            Received::Frame(frame) => frame,
            Received::Nothing | Received::End => return Ok(()),
        };
        match frame {
            Frame::Read(page) => {
                let index = index(memory, page)?;
                link.send(Frame::Page(page), Some(memory.alias_span(index, 1)))?;
            }
            Frame::Take(page) => {
                let index = index(memory, page)?;
                memory.drop_page(index)?;
                link.send(Frame::Page(page), Some(memory.alias_span(index, 1)))?;
            }
            Frame::Invalidate(page) => {
                memory.drop_page(index(memory, page)?)?;
                link.send(Frame::Ack, None)?;
            }
            Frame::Begin(right) => {
                memory.install_all(right)?;
                wake = seat.wake;
                link.send(Frame::Ack, None)?;
            }
            Frame::Ask => link.send(Frame::Ack, None)?,
            Frame::Park => {
                wake = Wake::Blocking;
                link.send(Frame::Ack, None)?;
            }
            Frame::Stream(messages) => stream(link, memory, messages)?,
            Frame::Page(_) | Frame::Ack | Frame::Play(_) | Frame::Bulk | Frame::Hop => {
                return Err(BenchError::Peer(format!("got {frame:?}, which is no request")));
            }
        }
    }
}

fn stream(link: &Link, memory: &Memory, messages: u64) -> Result<(), BenchError> {
    let slots = (memory.pages() / BULK_PAGES).max(1);
    for message in 0..messages as usize {
        let span = memory.alias_span(message % slots * BULK_PAGES, BULK_PAGES);
        link.send(Frame::Bulk, Some(span))?;
    }
    Ok(())
}

fn index(memory: &Memory, page: u64) -> Result<usize, BenchError> {
    usize::try_from(page)
        .ok()
        .filter(|page| *page < memory.pages())
        .ok_or_else(|| BenchError::Peer(format!("was asked for page {page}, which it has not")))
}
