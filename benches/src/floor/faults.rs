//! The faulting side of a floor: an application thread that touches pages, and a thread that
//! answers its faults.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use super::link::{Link, Received, unexpected};
use super::memory::{Memory, Span};
use super::{Seat, Wake};
use crate::error::BenchError;
use crate::placement::CpuSet;

/// How the application touches a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    Load,
    Store,
}

/// Touches `pages` one after the other on `app_cpus`, and lets `answer` resolve each fault in another
/// thread, seated at `seat`. Returns what each touch took, in microseconds.
pub(super) fn time_touches(
    memory: &Memory,
    seat: &Seat,
    app_cpus: &CpuSet,
    links: &[&Link],
    (touch, pages): (Touch, &[usize]),
    answer: impl Fn(&Waiter<'_>, usize) -> Result<(), BenchError> + Sync,
) -> Result<Vec<f64>, BenchError> {
    let done = Flag::new()?;
    let waiter = Waiter::new(memory, seat, links, &done)?;
    let both_ready = Barrier::new(2);
    let handle = || {
        let placed = seat.cpus.enter();
        both_ready.wait();
        let handled = placed.and_then(|()| {
            while let Some(page) = waiter.next_fault()? {
                answer(&waiter, page)?;
            }
            Ok(())
        });
        if handled.is_err() {
            // The application thread waits for an answer that will not come.
            memory.uffd().release();
        }
        handled
    };
    let run = || {
        let placed = app_cpus.enter();
        both_ready.wait();
        let times = pages.iter().map(|page| time_touch(memory, touch, *page)).collect();
        done.raise().and(placed).map(|()| times)
    };
    thread::scope(|scope| {
        let handler = scope.spawn(handle);
        let times = join(scope.spawn(run));
        join(handler).and(times)
    })
}

/// The result of a thread that returns errors; its panic goes on here.
pub(super) fn join<T>(
    thread: thread::ScopedJoinHandle<'_, Result<T, BenchError>>,
) -> Result<T, BenchError> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn time_touch(memory: &Memory, touch: Touch, page: usize) -> f64 {
    let word = memory.view_word(page);
    let start = Instant::now();
    match touch {
        Touch::Load => {
            std::hint::black_box(word.load(Ordering::Acquire));
        }
        Touch::Store => word.store(page as u64, Ordering::Release),
    }
    start.elapsed().as_secs_f64() * 1e6
}

/// Waits for faults and answers, in the way of its seat.
#[derive(Debug)]
pub(super) struct Waiter<'a> {
    memory: &'a Memory,
    seat: &'a Seat,
    links: &'a [&'a Link],
    done: &'a Flag,
    epoll: Epoll,
}

/// What a [`Waiter`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Fault(usize),
    Message(Received),
    Done,
}

impl<'a> Waiter<'a> {
    pub(super) fn new(
        memory: &'a Memory,
        seat: &'a Seat,
        links: &'a [&'a Link],
        done: &'a Flag,
    ) -> Result<Self, BenchError> {
        let epoll = Epoll::new()?;
        epoll.add(memory.uffd().as_fd())?;
        epoll.add(done.0.as_fd())?;
        for link in links {
            epoll.add(link.as_fd())?;
        }
        Ok(Self { memory, seat, links, done, epoll })
    }

    /// The page of the next fault; none when the application is done.
    pub(super) fn next_fault(&self) -> Result<Option<usize>, BenchError> {
        loop {
            self.pause()?;
            if let Some(address) = self.memory.uffd().next_fault()? {
                return self.memory.page_at(address).map(Some);
            }
            if self.done.is_raised() {
                return Ok(None);
            }
        }
    }

    /// The next message on link `index`.
    pub(super) fn next_message(
        &self,
        index: usize,
        body: Option<Span<'_>>,
    ) -> Result<Received, BenchError> {
        let link = self.links.get(index).copied();
        let link = link.ok_or_else(|| BenchError::Peer(format!("{index} does not exist")))?;
        loop {
            self.pause()?;
            match link.try_receive(body)? {
                Received::Nothing => {}
                Received::End => return Err(unexpected(Received::End, "an answer")),
                received => return Ok(received),
            }
        }
    }

    /// The next fault or message of the first link; [`Event::Done`] once, when the application is done.
    pub(super) fn next_event(&self, body: Option<Span<'_>>) -> Result<Event, BenchError> {
        loop {
            self.pause()?;
            if let Some(address) = self.memory.uffd().next_fault()? {
                return self.memory.page_at(address).map(Event::Fault);
            }
            let received = self.links.first().map(|link| link.try_receive(body)).transpose()?;
            if let Some(received) = received.filter(|it| *it != Received::Nothing) {
                return Ok(Event::Message(received));
            }
            if self.done.is_raised() && self.done.lower()? {
                return Ok(Event::Done);
            }
        }
    }

    /// Sleeps until something has come, or lets a moment pass.
    fn pause(&self) -> Result<(), BenchError> {
        match self.seat.wake {
            Wake::Blocking => self.epoll.wait(),
            Wake::Busy => {
                self.seat.spin.pause();
                Ok(())
            }
        }
    }
}

/// Tells one thread, asleep or spinning, that another is done.
#[derive(Debug)]
pub(super) struct Flag(File, AtomicBool);

impl Flag {
    pub(super) fn new() -> Result<Self, BenchError> {
        // SAFETY: takes integers, returns a new descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(BenchError::last_os("eventfd"));
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) }), AtomicBool::new(false)))
    }

    pub(super) fn raise(&self) -> Result<(), BenchError> {
        self.1.store(true, Ordering::Release);
        let one = 1u64.to_ne_bytes();
        (&self.0).write_all(&one).map_err(BenchError::os("writing an eventfd"))
    }

    /// Whether it was ever raised.
    pub(super) fn is_raised(&self) -> bool {
        self.1.load(Ordering::Acquire)
    }

    /// Lets sleepers sleep again; false when nothing was there to lower.
    fn lower(&self) -> Result<bool, BenchError> {
        match (&self.0).read(&mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(source) => Err(BenchError::Os { doing: "reading an eventfd", source }),
        }
    }
}

#[derive(Debug)]
struct Epoll(OwnedFd);

impl Epoll {
    fn new() -> Result<Self, BenchError> {
        // SAFETY: takes an integer, returns a new descriptor or -1.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(BenchError::last_os("epoll_create1"));
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn add(&self, fd: BorrowedFd<'_>) -> Result<(), BenchError> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        let (epoll, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: both descriptors are open, and the kernel copies `event`.
        if unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) } != 0 {
            return Err(BenchError::last_os("epoll_ctl"));
        }
        Ok(())
    }

    fn wait(&self) -> Result<(), BenchError> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for the one event that is asked for.
        let found = unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, -1) };
        if found < 0 {
            let source = std::io::Error::last_os_error();
            if source.kind() != ErrorKind::Interrupted {
                return Err(BenchError::Os { doing: "epoll_wait", source });
            }
        }
        Ok(())
    }
}
