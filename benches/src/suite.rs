//! The list of benchmarks, and those that show the floors by themselves.

use crate::error::BenchError;
use crate::floor::{
    Cores, FaultKind, PingPong, RawFault, RawKind, RemoteFault, RoundTrip, Stream, Transport,
    Variant,
};
use crate::guest;
use crate::options::Options;
use crate::ours::{self, EvictingScan, Freshness, Scan, Way};
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
        run: ping_pong_floor,
    },
    Benchmark {
        name: "read_fault",
        about: "a read of a page that another node has written",
        run: |report, options| fault(report, options, "read_fault", FaultKind::Read),
    },
    Benchmark {
        name: "write_fault",
        about: "a write to a page that a second node owns and a third reads",
        run: |report, options| fault(report, options, "write_fault", FaultKind::Write),
    },
    Benchmark {
        name: "upgrade_fault",
        about: "a write to a page that is here to read, and on another node too",
        run: |report, options| fault(report, options, "upgrade_fault", FaultKind::Upgrade),
    },
    Benchmark {
        name: "ping_pong",
        about: "a turn of two nodes that count in one page",
        run: ping_pong,
    },
    Benchmark {
        name: "scan_first",
        about: "64 MiB that another node has just written, never read here before",
        run: |report, options| scan(report, options, "scan_first", Freshness::First),
    },
    Benchmark {
        name: "scan_repeat",
        about: "64 MiB that another node has written again since it was read here",
        run: |report, options| scan(report, options, "scan_repeat", Freshness::Repeat),
    },
    Benchmark {
        name: "scan_evicting",
        about: "48 MiB of another node, read by one that gives 16, again and again",
        run: scan_evicting,
    },
    Benchmark {
        name: "resident_over_share",
        about: "memory beyond the share, while three nodes write a region of three shares",
        run: resident_over_share,
    },
    Benchmark {
        name: "recovery",
        about: "what two nodes take to go on without the one that wrote all pages of a region",
        run: recovery,
    },
    Benchmark { name: "open_1tib", about: "opening a region of 1 TiB", run: open_1tib },
    Benchmark {
        name: "metadata_bytes_per_page",
        about: "metadata of a page that both of two nodes have touched, on each",
        run: metadata,
    },
    Benchmark {
        name: "ipi_local",
        about: "an interrupt from one vCPU to another of the same node",
        run: guest::ipi_local,
    },
    Benchmark {
        name: "ipi_remote",
        about: "an interrupt from a vCPU to one of another node",
        run: guest::ipi_remote,
    },
    Benchmark {
        name: "guest_read_fault",
        about: "a guest's read of a page that a vCPU of another node has written",
        run: guest::read_fault,
    },
    Benchmark {
        name: "guest_write_fault",
        about: "a guest's write to such a page",
        run: guest::write_fault,
    },
    Benchmark {
        name: "pio_local",
        about: "a guest's read of a port whose device is on its node",
        run: guest::pio_local,
    },
    Benchmark {
        name: "pio_remote",
        about: "a guest's read of a port whose device is on another node",
        run: guest::pio_remote,
    },
    Benchmark {
        name: "mmio_remote",
        about: "the same at an address of memory",
        run: guest::mmio_remote,
    },
    Benchmark {
        name: "compute_scaling",
        about: "a guest's matrix product on two nodes, as against one; the floor is one node with two CPUs",
        run: guest::compute_scaling,
    },
    // `barrier` belongs here: it needs the node layer, whose locks and barriers are messages.
];

/// Most that a fault may cost, as a multiple of its floor.
const FAULT_RATIO_MAX: f64 = 1.3;
/// Most that a turn of ping-pong may cost, as a multiple of its floor.
const TURN_RATIO_MAX: f64 = 1.5;
/// Least speed of a scan, as a part of that of the raw stream.
const SCAN_RATIO_MIN: f64 = 0.6;
/// Most seconds that opening 1 TiB may take.
const OPEN_SECONDS_MAX: f64 = 1.0;
/// Most bytes of metadata a page.
const METADATA_BYTES_MAX: f64 = 16.0;
/// Most bytes that a node may have beyond its share: its reserve.
const RESIDENT_BEYOND_MAX: f64 = (2 << 20) as f64;
/// Bytes of a scan by a node that gives a third of them.
const EVICTING_SCAN_BYTES: usize = 48 << 20;
/// Bytes of a scan.
const SCAN_BYTES: usize = 64 << 20;

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

fn ping_pong_floor(report: &mut Report, options: &Options) -> Result<(), BenchError> {
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

fn fault(
    report: &mut Report,
    options: &Options,
    name: &str,
    kind: FaultKind,
) -> Result<(), BenchError> {
    beside_floor(
        report,
        name,
        options.batches(),
        FAULT_RATIO_MAX,
        |variant| RemoteFault::new(kind, variant, &options.placement),
        |variant| ours::RemoteFault::new(kind, variant, &options.placement),
    )
}

fn ping_pong(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    beside_floor(
        report,
        "ping_pong",
        options.batches(),
        TURN_RATIO_MAX,
        |variant| PingPong::new(variant, &options.placement),
        |variant| ours::PingPong::new(variant, &options.placement),
    )
}

fn beside_floor<F: Sampler, O: Sampler>(
    report: &mut Report,
    name: &str,
    batches: Batches,
    goal: f64,
    floor: impl Fn(Variant) -> Result<F, BenchError>,
    ours: impl Fn(Variant) -> Result<O, BenchError>,
) -> Result<(), BenchError> {
    for variant in Variant::ALL {
        let (mut floor, mut ours) = (floor(variant)?, ours(variant)?);
        let [floor, ours] = interleave([&mut floor, &mut ours], batches)?;
        let row = Row::of_samples(name, variant, Unit::Microseconds, &ours);
        add(report, row.map(|row| row.with_floor(&floor).with_goal(goal)));
    }
    Ok(())
}

fn scan(
    report: &mut Report,
    options: &Options,
    name: &str,
    freshness: Freshness,
) -> Result<(), BenchError> {
    for transport in [Transport::Tcp, Transport::Unix] {
        let mut floor = Stream::new(transport, &options.placement, SCAN_BYTES)?;
        let mut ours = Scan::new(freshness, transport, &options.placement, SCAN_BYTES as u64)?;
        let [floor, ours] = interleave([&mut floor, &mut ours], options.bulk_batches())?;
        let row = Row::of_samples(name, transport, Unit::MegabytesPerSecond, &ours);
        add(report, row.map(|row| row.with_floor(&floor).with_goal(SCAN_RATIO_MIN)));
    }
    Ok(())
}

fn scan_evicting(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    for (way, transport) in [Way::Sequential, Way::Random]
        .into_iter()
        .flat_map(|way| [Transport::Tcp, Transport::Unix].map(|transport| (way, transport)))
    {
        let bytes = EVICTING_SCAN_BYTES;
        let mut floor = Stream::new(transport, &options.placement, bytes)?;
        let mut ours = EvictingScan::new(way, transport, &options.placement, bytes as u64)?;
        let [floor, ours] = interleave([&mut floor, &mut ours], options.bulk_batches())?;
        let variant = format!("{way}/{transport}");
        let row = Row::of_samples("scan_evicting", variant, Unit::MegabytesPerSecond, &ours);
        add(report, row.map(|row| row.with_floor(&floor)));
    }
    Ok(())
}

fn resident_over_share(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let bytes = ours::resident_over_share(&options.placement, 16 << 20, 2)?;
    let row = Row::of_value("resident_over_share", "", Unit::Bytes, bytes);
    report.add(row.with_goal(RESIDENT_BEYOND_MAX));
    Ok(())
}

fn recovery(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let (sizes, runs) = options.recoveries();
    for &pages in sizes {
        let runs = (0..runs).map(|_| ours::recovery_us(&options.placement, pages));
        let times = Samples::new(runs.collect::<Result<Vec<_>, _>>()?);
        let variant = format!("{pages} pages");
        add(report, Row::of_samples("recovery", variant, Unit::Microseconds, &times));
    }
    Ok(())
}

fn open_1tib(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let seconds = ours::open_seconds(&options.placement, 1 << 40, 5)?;
    let row = Row::of_samples("open_1tib", "", Unit::Seconds, &Samples::new(seconds));
    add(report, row.map(|row| row.with_goal(OPEN_SECONDS_MAX)));
    Ok(())
}

fn metadata(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let bytes = ours::metadata_bytes_per_page(&options.placement, SCAN_BYTES / 4096)?;
    let row = Row::of_value("metadata_bytes_per_page", "", Unit::Bytes, bytes);
    report.add(row.with_goal(METADATA_BYTES_MAX));
    Ok(())
}

fn stream(report: &mut Report, options: &Options) -> Result<(), BenchError> {
    let mut tcp = Stream::new(Transport::Tcp, &options.placement, SCAN_BYTES)?;
    let mut unix = Stream::new(Transport::Unix, &options.placement, SCAN_BYTES)?;
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
