//! Several engines in one process, each with its own memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dsm_core::engine::{Engine, EngineConfig, EngineEvent, RegionSpec, WaitMode};
use dsm_core::pages::RegionMemory;
use dsm_core::protocol::Features;
use dsm_core::transport::{self, Connection, Options, Stream, Transport};
use dsm_core::types::{NodeId, PAGE_SIZE, RegionId};
use dsm_core::uffd::Mode;
use socket2::{Domain, Socket, Type};

pub(crate) const REGION: RegionId = RegionId(1);

pub(crate) fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

/// One node of the cluster.
pub(crate) struct Member {
    pub(crate) engine: Engine,
    pub(crate) memory: Arc<RegionMemory>,
    pub(crate) events: Arc<Mutex<Vec<EngineEvent>>>,
}

pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
}

/// How the members are joined.
#[derive(Clone, Copy)]
pub(crate) enum Joined {
    InProcess,
    Sockets,
}

fn join(first: usize, second: usize, joined: Joined) -> (Box<dyn Transport>, Box<dyn Transport>) {
    let (first, second) = (format!("node {first}"), format!("node {second}"));
    match joined {
        Joined::InProcess => {
            let (a, b) = transport::pair(first, second, Options::default()).unwrap();
            (Box::new(a), Box::new(b))
        }
        Joined::Sockets => {
            let (a, b) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
            let stream = |socket, peer: String| {
                Box::new(Stream::new(Connection::new(socket).unwrap(), peer, Options::default()))
            };
            (stream(a, first), stream(b, second))
        }
    }
}

impl Cluster {
    pub(crate) fn start(nodes: usize, pages: u64, workers: usize, wait: WaitMode) -> Option<Self> {
        Self::start_joined(nodes, pages, workers, wait, Joined::Sockets)
    }

    /// `None`, with the reason printed, where there is no userfaultfd.
    pub(crate) fn start_joined(
        nodes: usize,
        pages: u64,
        workers: usize,
        wait: WaitMode,
        joined: Joined,
    ) -> Option<Self> {
        Self::start_limited(nodes, pages, workers, wait, joined, &|_| u64::MAX)
    }

    /// As above; `frames` says how many a node gives.
    pub(crate) fn start_limited(
        nodes: usize,
        pages: u64,
        workers: usize,
        wait: WaitMode,
        joined: Joined,
        frames: &dyn Fn(usize) -> u64,
    ) -> Option<Self> {
        let open = |engine: &Engine, spec: &RegionSpec| engine.open(spec).unwrap();
        Self::start_with(nodes, pages, workers, (wait, joined), frames, &open)
    }

    /// As above; `open` opens the region at each node.
    pub(crate) fn start_with(
        nodes: usize,
        pages: u64,
        workers: usize,
        (wait, joined): (WaitMode, Joined),
        frames: &dyn Fn(usize) -> u64,
        open: &dyn Fn(&Engine, &RegionSpec),
    ) -> Option<Self> {
        let mut members: Vec<Member> = Vec::new();
        for index in 0..nodes {
            let config = EngineConfig {
                workers,
                wait,
                frames: frames(index),
                ..EngineConfig::new(node(index), nodes)
            };
            let member = Member::start(config, pages, open, joined, &members)?;
            members.push(member);
        }
        Some(Self { members })
    }
}

impl Member {
    /// Starts a node, which others call when their turn comes, and `peers` at once. `None`, with the
    /// reason printed, where there is no userfaultfd.
    pub(crate) fn start(
        config: EngineConfig,
        pages: u64,
        open: &dyn Fn(&Engine, &RegionSpec),
        joined: Joined,
        peers: &[Self],
    ) -> Option<Self> {
        let (bytes, workers) = (pages * PAGE_SIZE as u64, config.workers);
        let memory = match RegionMemory::open("test", bytes, workers, Mode::FullOrUserMode) {
            Ok(memory) => Arc::new(memory),
            Err(error) => {
                println!("SKIPPED: {error}");
                return None;
            }
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        let engine = Engine::start(config, move |event| sink.lock().unwrap().push(event)).unwrap();
        for peer in peers {
            let (me, other) = (config.me, peer.engine.config().me);
            for worker in 0..workers {
                let (here, there) = join(other.index(), me.index(), joined);
                engine.attach(worker, other, here).unwrap();
                peer.engine.attach(worker, me, there).unwrap();
            }
        }
        let spec = RegionSpec {
            region: REGION,
            memory: Arc::clone(&memory),
            shares: vec![1; config.nodes],
            since: None,
            features: Features::default(),
        };
        open(&engine, &spec);
        Some(Self { engine, memory, events })
    }
}

impl Member {
    fn address(&self, page: u64, offset: usize) -> usize {
        let view = self.memory.view();
        let address = view.start + page as usize * PAGE_SIZE + offset;
        assert!(view.contains(&address));
        address
    }

    /// A byte of the view.
    pub(crate) fn byte(&self, page: u64, offset: usize) -> &AtomicU8 {
        // SAFETY: within the view, which lives as long as `memory`; atomics may be shared.
        unsafe { &*(self.address(page, offset) as *const AtomicU8) }
    }

    /// An aligned word of the view.
    pub(crate) fn word(&self, page: u64, index: usize) -> &AtomicU64 {
        // SAFETY: within the view, aligned, and as for `byte`.
        unsafe { &*(self.address(page, index * 8) as *const AtomicU64) }
    }

    pub(crate) fn read(&self, page: u64) -> u64 {
        self.word(page, 0).load(Ordering::SeqCst)
    }

    pub(crate) fn write(&self, page: u64, value: u64) {
        self.word(page, 0).store(value, Ordering::SeqCst);
    }
}
