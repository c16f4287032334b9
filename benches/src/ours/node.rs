//! One node: an engine, and an application thread that does as it is told.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use dsm_core::engine::{Engine, EngineConfig, EngineEvent, RegionSpec, WaitMode};
use dsm_core::pages::RegionMemory;
use dsm_core::protocol::Features;
use dsm_core::transport::{Connection, Options, Stream};
use dsm_core::types::{Epoch, NodeId, NodeSet, PAGE_SIZE, RegionId};
use dsm_core::uffd::Mode;

use super::control::{Answer, Command, Order};
use crate::channel::Channel;
use crate::error::BenchError;
use crate::floor::page_order;
use crate::placement::{CpuSet, Spin};

/// The hidden subcommand of the executable that makes it a node.
pub const SUBCOMMAND: &str = "__node";

/// Longer than any region takes to settle.
const SETTLES: Duration = Duration::from_secs(60);

/// The word on a node's command line for a way to wait.
pub(super) fn wait_name(wait: WaitMode) -> &'static str {
    match wait {
        WaitMode::Blocking => "blocking",
        WaitMode::Adaptive => "adaptive",
        WaitMode::Busy => "busy",
    }
}

/// The node's own main: `args` are those behind [`SUBCOMMAND`], orders come over standard input.
///
/// # Errors
/// When the kernel refuses something, or the process that measures breaks the rules.
pub fn main(args: &[String]) -> Result<(), BenchError> {
    let usage = || BenchError::Usage(format!("{SUBCOMMAND} is internal"));
    let [index, nodes, wait, cpus, frames, links @ ..] = args else { return Err(usage()) };
    let number = |text: &String| text.parse::<usize>().map_err(|_| usage());
    let cpus = CpuSet::parse(cpus).ok_or_else(usage)?;
    cpus.enter()?;
    let modes = [WaitMode::Blocking, WaitMode::Adaptive, WaitMode::Busy];
    let wait = modes.into_iter().find(|mode| wait_name(*mode) == wait).ok_or_else(usage)?;
    let me = NodeId::new(number(index)?).ok_or_else(usage)?;
    let frames = number(frames)? as u64;
    let config = EngineConfig { wait, frames, ..EngineConfig::new(me, number(nodes)?) };
    let (settled, when_settled) = mpsc::channel();
    let engine = Engine::start(config, move |event| match event {
        // Nobody may wait for it.
        EngineEvent::Recovered { .. } => _ = settled.send(Instant::now()),
        // The process that measures ends them in turn.
        EngineEvent::LinkFailed { .. } => {}
        event => eprintln!("giantvm-bench: node: {event:?}"),
    })
    .map_err(|error| failed(&error))?;
    for link in links {
        let (peer, fd) = link.split_once(':').ok_or_else(usage)?;
        let peer = NodeId::new(number(&peer.to_owned())?).ok_or_else(usage)?;
        let fd = number(&fd.to_owned())?;
        // SAFETY: the process that measures left this descriptor to us, and to nobody else here.
        let socket = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
        let socket = Connection::new(socket).map_err(BenchError::os("taking a link"))?;
        let stream = Stream::new(socket, format!("node {peer}"), Options::default());
        engine.attach(0, peer, Box::new(stream)).map_err(|error| failed(&error))?;
    }
    let input = io::stdin().as_fd().try_clone_to_owned();
    let mut channel = Channel::new(input.map_err(BenchError::os("taking the orders"))?);
    let spin = if thread::available_parallelism().map_or(1, usize::from) < 2 {
        Spin::Yielding
    } else {
        Spin::Hot
    };
    let mut node = Node { engine, when_settled, region: None, opened: 0, spin };
    while let Some(command) = channel.receive::<Command>()? {
        channel.send(&node.obey(&command))?;
    }
    Ok(())
}

fn failed(error: &dyn Error) -> BenchError {
    BenchError::Peer(chain(error))
}

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

struct Node {
    engine: Engine,
    /// When a region has settled after a loss.
    when_settled: Receiver<Instant>,
    region: Option<(RegionId, Arc<RegionMemory>)>,
    opened: u32,
    spin: Spin,
}

impl Node {
    fn obey(&mut self, command: &Command) -> Answer {
        match *command {
            Command::Open { bytes } => self.open(bytes).map(|seconds| vec![seconds]),
            Command::Touch { store, order, count, each } => self.touch(store, order, count, each),
            Command::TakeTurns { parity, turns } => self.take_turns(parity, turns),
            Command::Rewrite { count, rounds } => self.rewrite(count, rounds),
            Command::Lose => self.lose().map(|us| vec![us]),
            Command::Metadata => {
                let (region, _) = self.region.as_ref().ok_or("no region")?;
                let stats = self.engine.stats(*region).map_err(|error| chain(&error))?;
                Ok(vec![stats.metadata_bytes as f64])
            }
        }
    }

    fn open(&mut self, bytes: u64) -> Result<f64, String> {
        if let Some((region, _)) = self.region.take() {
            self.engine.close(region).map_err(|error| chain(&error))?;
        }
        self.opened += 1;
        let start = Instant::now();
        let memory = RegionMemory::open("bench", bytes, 1, Mode::FullOrUserMode);
        let memory = Arc::new(memory.map_err(|error| chain(&error))?);
        let region = RegionId(self.opened);
        let nodes = self.engine.config().nodes;
        let spec = RegionSpec {
            region,
            memory: Arc::clone(&memory),
            shares: vec![1; nodes],
            // As regions of the product.
            since: None,
            features: Features { recover: true, zeros: true, ..Features::default() },
        };
        self.engine.open(&spec).map_err(|error| chain(&error))?;
        let took = start.elapsed().as_secs_f64();
        self.region = Some((region, memory));
        Ok(took)
    }

    fn lose(&self) -> Result<f64, String> {
        let last = NodeId::new(self.engine.config().nodes - 1).ok_or("no last node")?;
        let survivors = NodeSet::first(last.index());
        let start = Instant::now();
        self.engine.detach(last);
        self.engine.change(&Epoch::first(1, survivors)).map_err(|error| chain(&error))?;
        let settled = self.when_settled.recv_timeout(SETTLES).map_err(|error| chain(&error))?;
        Ok(settled.duration_since(start).as_secs_f64() * 1e6)
    }

    fn word(&self, page: usize) -> Result<&AtomicU64, String> {
        let (_, memory) = self.region.as_ref().ok_or("no region")?;
        let view = memory.view();
        let address = view.start + page * PAGE_SIZE;
        if !view.contains(&address) {
            return Err(format!("page {page} is not in the region"));
        }
        // SAFETY: an aligned word inside the view, which lives as long as `memory`, which `self`
        // keeps; all accesses of this program to it are atomic.
        Ok(unsafe { AtomicU64::from_ptr(address as *mut u64) })
    }

    fn touch(&self, store: bool, order: Order, count: usize, each: bool) -> Answer {
        let pages: Vec<usize> = match order {
            Order::Ascending => (0..count).collect(),
            Order::Shuffled(among) => page_order(among).into_iter().take(count).collect(),
        };
        let words = pages.iter().map(|page| self.word(*page)).collect::<Result<Vec<_>, _>>()?;
        let mut times = Vec::with_capacity(if each { words.len() } else { 1 });
        let all = Instant::now();
        for word in words {
            let start = each.then(Instant::now);
            if store {
                // Other bytes each time: a page that comes back as it went needs no transfer.
                word.fetch_add(1, Ordering::AcqRel);
            } else {
                std::hint::black_box(word.load(Ordering::Acquire));
            }
            times.extend(start.map(|start| start.elapsed().as_secs_f64() * 1e6));
        }
        if !each {
            times.push(all.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }

    fn rewrite(&self, count: usize, rounds: usize) -> Answer {
        let (_, memory) = self.region.as_ref().ok_or("no region")?;
        let order = page_order(count);
        // Nodes that all went the same way would follow each other.
        let start = self.engine.config().me.index() * count / self.engine.config().nodes;
        let mut most = 0;
        for (at, page) in order.iter().cycle().skip(start).take(count * rounds).enumerate() {
            self.word(*page)?.fetch_add(1, Ordering::AcqRel);
            if at % 16 == 0 {
                most = most.max(memory.resident().map_err(|error| error.to_string())?);
            }
        }
        Ok(vec![most as f64])
    }

    /// As the floor's application thread does.
    fn take_turns(&self, parity: u64, turns: usize) -> Answer {
        let word = self.word(0)?;
        let start = Instant::now();
        let mut stamps = Vec::with_capacity(turns);
        while stamps.len() < turns {
            let value = word.load(Ordering::Acquire);
            if value % 2 == parity {
                word.store(value + 1, Ordering::Release);
                stamps.push(start.elapsed().as_secs_f64() * 1e6);
            } else {
                self.spin.pause();
            }
        }
        Ok(stamps)
    }
}
