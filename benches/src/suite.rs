//! The list of benchmarks, and those that show the floors by themselves.

use crate::error::BenchError;
use crate::floor::{
    Cores, FaultKind, PingPong, RawFault, RawKind, RemoteFault, RoundTrip, Stream, Transport,
    Variant,
};
use crate::options::Options;
use crate::report::{Report, Row, Unit};
use crate::sample::{Batches, Sampler, Samples, interleave};

/// One benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark {
    /// What `--bench` takes.
    pub name: &'static str,
    /// What is measured, in a line.
    pub about: &'static str,
    /// Measures all variants, and adds a row for each.
    pub run: fn(&mut Report, &Options) -> Result<(), BenchError>,
}

/// All benchmarks, in the order they run.
pub const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        name: "socket_rtt",
        about: "64 bytes there, a header and 4 KiB back, between two processes",
        run: socket_rtt,
    },
    Benchmark {
        name: "stream",
        about: "64 MiB of pages in messages of 64 KiB: the floor of a scan",
        run: stream,
    },
    Benchmark {
        name: "raw_fault",
        about: "a userfaultfd fault answered by a thread of the same process",
        run: raw_fault,
    },
    Benchmark {
        name: "read_fault_floor",
        about: "fault, request, 4 KiB reply, install",
        run: |report, options| remote_fault(report, options, "read_fault_floor", FaultKind::Read),
    },
    Benchmark {
        name: "write_fault_floor",
        about: "the same for a write, with one reader to invalidate",
        run: |report, options| remote_fault(report, options, "write_fault_floor", FaultKind::Write),
    },
    Benchmark {
        name: "upgrade_fault_floor",
        about: "a write to a page held to read, with one reader to invalidate",
        run: |report, options| {
            remote_fault(report, options, "upgrade_fault_floor", FaultKind::Upgrade)
        },
    },
    Benchmark {
        name: "ping_pong_floor",
        about: "a turn of two processes that count in one page",
        run: ping_pong,
    },
];

/// Names asked for that no benchmark has.
pub fn unknown(options: &Options) -> Vec<&str> {
    let known = |name: &str| BENCHMARKS.iter().any(|benchmark| benchmark.name == name);
    options.only.iter().map(String::as_str).filter(|name| !known(name)).collect()
}

fn socket_rtt(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    each_variant(report, "socket_rtt", options.batches(), |variant| {
        RoundTrip::new(variant, &options.placement)
    })
}

fn remote_fault(
    report: &mut Report,
    options: &Options,
    name: &str,
    kind: FaultKind,
) -> Result<(), BenchError> {
    each_variant(report, name, options.batches(), |variant| {
        RemoteFault::new(kind, variant, &options.placement)
    })
}

fn ping_pong(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    each_variant(report, "ping_pong_floor", options.batches(), |variant| {
        PingPong::new(variant, &options.placement)
    })
}

fn each_variant<S: Sampler>(
    report: &mut Report,
    name: &str,
    batches: Batches,
    start: impl Fn(Variant) -> Result<S, BenchError>,
) -> Result<(), BenchError> {
    let [a, b, c, d] = Variant::ALL.map(start);
    let samples = interleave([&mut a?, &mut b?, &mut c?, &mut d?], batches)?;
    for (variant, samples) in Variant::ALL.iter().zip(&samples) {
        add(report, Row::of_samples(name, variant, Unit::Microseconds, samples));
    }
    Ok(())
}

fn stream(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    const BYTES: usize = 64 << 20;
    let mut tcp = Stream::new(Transport::Tcp, &options.placement, BYTES)?;
    let mut unix = Stream::new(Transport::Unix, &options.placement, BYTES)?;
    let [tcp, unix] = interleave([&mut tcp, &mut unix], options.bulk_batches())?;
    let mut row = |transport: Transport, samples: &Samples| {
        add(report, Row::of_samples("stream", transport, Unit::MegabytesPerSecond, samples));
    };
    row(Transport::Tcp, &tcp);
    row(Transport::Unix, &unix);
    Ok(())
}

fn raw_fault(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    for kind in [RawKind::Missing, RawKind::Minor, RawKind::WriteProtect] {
        let start = |cores| RawFault::new(kind, cores, &options.placement);
        let mut row = |cores: Cores, samples: &Samples| {
            let variant = format!("{kind}/{cores}");
            add(report, Row::of_samples("raw_fault", variant, Unit::Microseconds, samples));
        };
        if options.placement.count() < 2 {
            eprintln!("raw_fault {kind}: skipped on two cores, this process may use only one");
            let [one] = interleave([&mut start(Cores::One)?], options.batches())?;
            row(Cores::One, &one);
            continue;
        }
        let all = [Cores::TwoBlocking, Cores::TwoBusy, Cores::One];
        let [a, b, c] = all.map(start);
        let samples = interleave([&mut a?, &mut b?, &mut c?], options.batches())?;
        all.iter().zip(&samples).for_each(|(cores, samples)| row(*cores, samples));
    }
    Ok(())
}

fn add(report: &mut Report, row: Option<Row>) {
    if let Some(row) = row {
        report.add(row);
    }
}
