//! The benchmarks of virtual machines.

use std::fmt;

use super::{Guest, image};
use crate::error::BenchError;
use crate::floor::Transport;
use crate::floor::guest::{self as raw, Role};
use crate::options::Options;
use crate::ours::guest as ours;
use crate::placement::CpuSet;
use crate::report::{Report, Row, Unit};
use crate::sample::{Batches, Sampler, Samples, interleave};

/// Most that a guest's fault may cost, as a multiple of its floor.
const FAULT_RATIO_MAX: f64 = 1.3;
/// Most that an interrupt between nodes may cost, as a multiple of its floor.
const INTERRUPT_RATIO_MAX: f64 = 1.5;
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Unix];

/// How vCPUs wait for interrupts.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// In a loop.
    Running,
    /// By HLT.
    Halted,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Halted => "halted",
        })
    }
}

/// What all guests of a run have in common.
struct Bench<'a> {
    options: &'a Options,
    image: std::path::PathBuf,
}

impl<'a> Bench<'a> {
    /// None, and a word why, where there are no virtual machines.
    fn new(name: &str, options: &'a Options) -> Option<Self> {
        match image() {
            Ok(image) => Some(Self { options, image }),
            Err(reason) => {
                eprintln!("{name}: SKIPPED: {reason}");
                None
            }
        }
    }

    /// The CPUs of two nodes.
    fn nodes(&self) -> Vec<CpuSet> {
        (0..2).map(|node| self.options.placement.node(node, 2)).collect()
    }

    /// A floor's machine with a vCPU on each of `cpus`, and its peer, if any, on the second node's.
    fn raw(
        &self,
        role: Role,
        cmdline: String,
        cpus: Vec<CpuSet>,
        transport: Transport,
    ) -> Result<Guest, BenchError> {
        let peer_cpus = self.options.placement.node(1, 2);
        let image = self.image.clone();
        raw::start(raw::Spec { role, image, cmdline, cpus, transport, peer_cpus })
    }

    /// giantvm's machine of one vCPU on each of two nodes, with its device on the second.
    fn ours(&self, cmdline: String, transport: Transport) -> Result<Guest, BenchError> {
        ours::start(&ours::Spec {
            image: self.image.clone(),
            cmdline,
            vcpus: vec![(0, None), (1, None)],
            nodes: self.nodes(),
            device_home: 1,
            transport,
        })
    }

    /// giantvm's machine of one node.
    fn ours_alone(&self, cmdline: String, cpus: &[CpuSet]) -> Result<Guest, BenchError> {
        ours::start(&ours::Spec {
            image: self.image.clone(),
            cmdline,
            vcpus: cpus.iter().map(|cpus| (0, cpus.first())).collect(),
            nodes: vec![CpuSet::union(cpus)],
            device_home: 0,
            transport: Transport::Unix,
        })
    }

    fn compare(
        &self,
        (name, variant): (&str, String),
        goal: Option<f64>,
        mut floor: impl Sampler,
        mut ours: impl Sampler,
    ) -> Result<Option<Row>, BenchError> {
        let [floor, ours] = interleave([&mut floor, &mut ours], self.options.guest_batches())?;
        Ok(Row::of_samples(name, variant, Unit::Microseconds, &ours).map(|row| {
            let row = row.with_floor(&floor);
            goal.map_or(row.clone(), |goal| row.with_goal(goal))
        }))
    }
}

/// A round trip is two of what is measured.
struct Halved(Guest);

impl Sampler for Halved {
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        Ok(self.0.sample(count)?.into_iter().map(|time| time / 2.0).collect())
    }
}

/// An interrupt between vCPUs of one machine.
pub(crate) fn ipi_local(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let Some(bench) = Bench::new("ipi_local", options) else { return Ok(()) };
    let placement = &options.placement;
    if placement.count() < 2 {
        eprintln!("ipi_local: SKIPPED: this process may use only one CPU");
        return Ok(());
    }
    let cpus = vec![placement.single(0), placement.single(1)];
    for wait in [Wait::Running, Wait::Halted] {
        let cmdline = format!("test=bench kind=ipi wait={wait}");
        let floor = bench.raw(Role::Local, cmdline.clone(), cpus.clone(), Transport::Unix)?;
        let ours = bench.ours_alone(cmdline, &cpus)?;
        let name = ("ipi_local", wait.to_string());
        let row = bench.compare(name, Some(INTERRUPT_RATIO_MAX), Halved(floor), Halved(ours))?;
        row.into_iter().for_each(|row| report.add(row));
    }
    Ok(())
}

/// An interrupt between vCPUs of two nodes.
pub(crate) fn ipi_remote(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let Some(bench) = Bench::new("ipi_remote", options) else { return Ok(()) };
    for transport in TRANSPORTS {
        for wait in [Wait::Running, Wait::Halted] {
            let cpus = vec![options.placement.node(0, 2)];
            let cmdline = format!("test=bench wait={wait}");
            let floor = bench.raw(Role::Interrupt, cmdline.clone(), cpus, transport)?;
            let ours = bench.ours(format!("{cmdline} kind=ipi"), transport)?;
            let name = ("ipi_remote", format!("{transport}/{wait}"));
            let goal = Some(INTERRUPT_RATIO_MAX);
            let row = bench.compare(name, goal, Halved(floor), Halved(ours))?;
            row.into_iter().for_each(|row| report.add(row));
        }
    }
    Ok(())
}

/// A guest's read of a page of another node.
pub(crate) fn read_fault(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    remote(
        report,
        options,
        "guest_read_fault",
        ("read", Role::Fault { write: false }),
        Some(FAULT_RATIO_MAX),
    )
}

/// A guest's write to one.
pub(crate) fn write_fault(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    remote(
        report,
        options,
        "guest_write_fault",
        ("write", Role::Fault { write: true }),
        Some(FAULT_RATIO_MAX),
    )
}

/// A guest's read of a port of another node.
pub(crate) fn pio_remote(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    remote(report, options, "pio_remote", ("pio", Role::Device), None)
}

/// A guest's read of a device's memory on another node.
pub(crate) fn mmio_remote(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    remote(report, options, "mmio_remote", ("mmio", Role::Device), None)
}

/// What a vCPU wants of another node, and waits for.
fn remote(
    report: &mut Report,
    options: &Options,
    name: &str,
    (kind, role): (&str, Role),
    goal: Option<f64>,
) -> Result<(), BenchError> {
    let Some(bench) = Bench::new(name, options) else { return Ok(()) };
    for transport in TRANSPORTS {
        let cmdline = format!("test=bench kind={kind}");
        let cpus = vec![options.placement.node(0, 2)];
        let floor = bench.raw(role, cmdline.clone(), cpus, transport)?;
        let ours = bench.ours(cmdline, transport)?;
        let row = bench.compare((name, transport.to_string()), goal, floor, ours)?;
        row.into_iter().for_each(|row| report.add(row));
    }
    Ok(())
}

/// A guest's read of a port of its own node.
pub(crate) fn pio_local(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let Some(bench) = Bench::new("pio_local", options) else { return Ok(()) };
    let cmdline = "test=bench kind=pio".to_owned();
    let cpus = vec![options.placement.single(0)];
    let floor = bench.raw(Role::Local, cmdline.clone(), cpus.clone(), Transport::Unix)?;
    let ours = bench.ours_alone(cmdline, &cpus)?;
    let row = bench.compare(("pio_local", String::new()), None, floor, ours)?;
    row.into_iter().for_each(|row| report.add(row));
    Ok(())
}

/// How much faster the same work is done with two vCPUs than with one.
struct SpeedUp {
    one: Guest,
    two: Guest,
}

impl Sampler for SpeedUp {
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        let (one, two) = (self.one.sample(count)?, self.two.sample(count)?);
        if self.one.sums() != self.two.sums() {
            return Err(BenchError::Peer("has computed something else with two vCPUs".into()));
        }
        Ok(one.iter().zip(&two).map(|(one, two)| one / two).collect())
    }
}

/// A computation on two nodes.
pub(crate) fn compute_scaling(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let Some(bench) = Bench::new("compute_scaling", options) else { return Ok(()) };
    let placement = &options.placement;
    if placement.count() < 2 {
        eprintln!("compute_scaling: SKIPPED: this process may use only one CPU");
        return Ok(());
    }
    let side = if options.quick { 128 } else { 512 };
    let cmdline = format!("test=bench kind=compute side={side}");
    let (one, two) = (vec![placement.single(0)], vec![placement.single(0), placement.single(1)]);
    for transport in TRANSPORTS {
        let raw = |cpus: &Vec<CpuSet>| {
            bench.raw(Role::Local, cmdline.clone(), cpus.clone(), Transport::Unix)
        };
        let mut floor = SpeedUp { one: raw(&one)?, two: raw(&two)? };
        let mut ours = SpeedUp {
            one: bench.ours_alone(cmdline.clone(), &one)?,
            two: bench.ours(cmdline.clone(), transport)?,
        };
        let batches = Batches { per_round: 1, ..options.bulk_batches() };
        let [floor, ours] = interleave([&mut floor, &mut ours], batches)?;
        for (what, scale) in [("speed-up", 1.0), ("efficiency", 0.5)] {
            let variant = format!("{transport}/{what}");
            let scaled = |it: &Samples| it.scaled(scale);
            let row = Row::of_samples("compute_scaling", variant, Unit::Times, &scaled(&ours));
            row.into_iter().for_each(|row| report.add(row.with_floor(&scaled(&floor))));
        }
    }
    Ok(())
}
