//! What a fault costs on one node: the application thread, a handler thread, no message.

use std::fmt;

use super::faults::{Touch, time_touches};
use super::memory::{Memory, PAGE};
use super::uffd::Right;
use super::{Seat, Wake, page_order};
use crate::error::BenchError;
use crate::placement::{CpuSet, Placement, Spin};
use crate::sample::Sampler;

const PAGES: usize = 512;

/// Which fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawKind {
    /// No frame: `UFFDIO_COPY`.
    Missing,
    /// A frame that is not mapped: `UFFDIO_CONTINUE`.
    Minor,
    /// A write to a page mapped read-only: `UFFDIO_WRITEPROTECT`.
    WriteProtect,
}

/// Where the handler thread runs, and how it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// On another CPU than the application, asleep.
    TwoBlocking,
    /// On another CPU than the application, spinning.
    TwoBusy,
    /// On the application's CPU, asleep.
    One,
}

impl fmt::Display for RawKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Minor => "minor",
            Self::WriteProtect => "wp",
        })
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TwoBlocking => "blocking",
            Self::TwoBusy => "busy",
            Self::One => "one-core",
        })
    }
}

/// Local faults of one kind.
#[derive(Debug)]
pub struct RawFault {
    kind: RawKind,
    seat: Seat,
    app_cpus: CpuSet,
    memory: Memory,
    order: Vec<usize>,
}

impl RawFault {
    /// Makes the memory.
    ///
    /// # Errors
    /// When the kernel refuses userfaultfd.
    pub fn new(kind: RawKind, cores: Cores, placement: &Placement) -> Result<Self, BenchError> {
        let wake = if cores == Cores::TwoBusy { Wake::Busy } else { Wake::Blocking };
        let cpus = placement.single(usize::from(cores != Cores::One));
        Ok(Self {
            kind,
            seat: Seat { wake, spin: Spin::Hot, cpus },
            app_cpus: placement.single(0),
            memory: Memory::new(PAGES)?,
            order: page_order(PAGES),
        })
    }

    fn prepare(&self) -> Result<(), BenchError> {
        match self.kind {
            RawKind::Missing => self.memory.free_frames(),
            RawKind::Minor => self.memory.drop_all(),
            RawKind::WriteProtect => {
                self.memory.install_all(Right::Write)?;
                self.memory.protect_all()
            }
        }
    }

    fn answer(&self, page: usize) -> Result<(), BenchError> {
        match self.kind {
            RawKind::Missing => self.memory.uffd().copy((page * PAGE) as u64, &[1; PAGE]),
            RawKind::Minor => self.memory.install(page, Right::Write),
            RawKind::WriteProtect => self.memory.unprotect(page),
        }
    }
}

impl Sampler for RawFault {
    /// Microseconds a fault.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        let touch = if self.kind == RawKind::WriteProtect { Touch::Store } else { Touch::Load };
        let mut times = Vec::with_capacity(count);
        while times.len() < count {
            self.prepare()?;
            let pages = &self.order[..PAGES.min(count - times.len())];
            times.extend(time_touches(
                &self.memory,
                &self.seat,
                &self.app_cpus,
                &[],
                (touch, pages),
                |_, page| self.answer(page),
            )?);
        }
        Ok(times)
    }
}
