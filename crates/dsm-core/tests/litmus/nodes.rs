//! Node processes: the test binary, started once more for each node.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dsm_core::engine::{Engine, EngineConfig, RegionSpec, WaitMode};
use dsm_core::pages::{MemoryError, RegionMemory};
use dsm_core::protocol::Features;
use dsm_core::transport::{Connection, Options, Stream};
use dsm_core::types::{NodeId, PAGE_SIZE, RegionId};
use dsm_core::uffd::Mode;
use socket2::{Domain, Socket, Type};

use crate::access::Word;
use crate::board::{self, Board};

/// Tells a process which node it is, and its descriptors: `node board peer:worker:socket...`.
const VARIABLE: &str = "DSM_LITMUS_NODE";
const REGION: RegionId = RegionId(1);
/// After so long without a step, the processes have hung, and the test fails.
const HUNG: Duration = Duration::from_secs(120);

/// A cluster of processes.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) nodes: usize,
    pub(crate) workers: usize,
    pub(crate) wait: WaitMode,
    pub(crate) pages: u64,
    #[cfg(feature = "mutations")]
    pub(crate) mutation: Option<dsm_core::protocol::Mutation>,
}

impl Config {
    pub(crate) fn new(nodes: usize, workers: usize, wait: WaitMode) -> Self {
        Self {
            nodes,
            workers,
            wait,
            pages: 2048,
            #[cfg(feature = "mutations")]
            mutation: None,
        }
    }
}

/// This process as a node.
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) board: Board,
    memory: Arc<RegionMemory>,
    engine: Engine,
    closing: Arc<AtomicBool>,
}

/// The other side: the test that started the nodes.
pub(crate) struct Cluster {
    pub(crate) board: Board,
    children: Vec<Child>,
}

/// Runs `node` in a process for each node, and `parent` here. Barriers are for all of them.
/// Returns `None`, with the reason printed, where there is no userfaultfd.
pub(crate) fn run<R>(
    test: &str,
    config: &Config,
    node: impl FnOnce(&Node),
    parent: impl FnOnce(&mut Cluster) -> R,
) -> Option<R> {
    if let Ok(role) = std::env::var(VARIABLE) {
        let me = Node::start(config, &role);
        node(&me);
        me.finish();
    }
    if let Err(error) = RegionMemory::open("probe", PAGE_SIZE as u64, 1, Mode::FullOrUserMode) {
        match &error {
            MemoryError::Userfaultfd { source, .. } if source.is_refusal() => {
                println!("SKIPPED: {source}");
                return None;
            }
            _ => panic!("{error}"),
        }
    }
    Some(parent(&mut Cluster::start(test, config)))
}

impl Cluster {
    fn start(test: &str, config: &Config) -> Self {
        let (board, memory) = Board::create(config.nodes as u32 + 1);
        let mut ends: Vec<Vec<(usize, usize, OwnedFd)>> =
            (0..config.nodes).map(|_| Vec::new()).collect();
        for (first, second) in pairs(config.nodes) {
            for worker in 0..config.workers {
                let (a, b) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
                ends[first].push((second, worker, a.into()));
                ends[second].push((first, worker, b.into()));
            }
        }
        let children = ends.into_iter().enumerate();
        let children = children.map(|(node, ends)| spawn(test, node, &memory, ends)).collect();
        Self { board, children }
    }

    /// Waits for all nodes.
    ///
    /// # Errors
    ///
    /// A node has ended, or nothing has happened for too long.
    pub(crate) fn barrier(&mut self) -> Result<(), String> {
        let Self { board, children } = self;
        let since = Instant::now();
        board.barrier_watched(|| {
            for (index, child) in children.iter_mut().enumerate() {
                if let Some(status) = child.try_wait().unwrap() {
                    return Err(format!("node {index} has ended: {status}"));
                }
            }
            if since.elapsed() > HUNG {
                return Err(format!("the nodes have hung, process ids {:?}", ids(children)));
            }
            Ok(())
        })
    }

    /// Waits for the nodes to end well, after their last barrier.
    pub(crate) fn finish(&mut self) {
        self.barrier().unwrap();
        for child in &mut self.children {
            assert!(child.wait().unwrap().success());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ids(children: &[Child]) -> Vec<u32> {
    children.iter().map(Child::id).collect()
}

fn pairs(nodes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..nodes).flat_map(|second| (0..second).map(move |first| (first, second)))
}

fn spawn(test: &str, node: usize, board: &OwnedFd, ends: Vec<(usize, usize, OwnedFd)>) -> Child {
    let board = board.try_clone().unwrap();
    let mut role = format!("{node} {}", board.as_raw_fd());
    for (peer, worker, end) in &ends {
        role += &format!(" {peer}:{worker}:{}", end.as_raw_fd());
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(VARIABLE, role)
        .stdout(Stdio::null());
    // SAFETY: between fork and exec only system calls are made. The parent's death ends the node.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            board::inherit(&board)?;
            ends.iter().try_for_each(|(.., end)| board::inherit(end))
        });
    }
    command.spawn().unwrap()
}

impl Node {
    fn start(config: &Config, role: &str) -> Self {
        let mut parts = role.split(' ');
        let index: usize = parts.next().unwrap().parse().unwrap();
        let board: RawFd = parts.next().unwrap().parse().unwrap();
        let board = Board::map(board, config.nodes as u32 + 1);
        let bytes = config.pages * PAGE_SIZE as u64;
        let memory = RegionMemory::open("litmus", bytes, config.workers, Mode::FullOrUserMode);
        let memory = Arc::new(memory.unwrap());
        let closing = Arc::new(AtomicBool::new(false));
        let leaving = Arc::clone(&closing);
        let settings = EngineConfig {
            workers: config.workers,
            wait: config.wait,
            ..EngineConfig::new(NodeId::new(index).unwrap(), config.nodes)
        };
        let engine = Engine::start(settings, move |event| {
            if !leaving.load(Ordering::SeqCst) {
                eprintln!("node {index}: {event:?}");
                std::process::exit(3);
            }
        })
        .unwrap();
        open(&engine, config, &memory);
        for part in parts {
            let mut numbers = part.split(':').map(|number| number.parse::<usize>().unwrap());
            let mut next = || numbers.next().unwrap();
            let (peer, worker, socket) = (next(), next(), next());
            // SAFETY: the parent made the descriptor for this process, which takes it once.
            let socket = unsafe { Socket::from_raw_fd(socket as RawFd) };
            let connection = Connection::new(socket).unwrap();
            let stream = Stream::new(connection, format!("node {peer}"), Options::default());
            engine.attach(worker, NodeId::new(peer).unwrap(), Box::new(stream)).unwrap();
        }
        let node = Self { index, board, memory, engine, closing };
        node.board.barrier();
        node
    }

    /// The eight bytes from `offset` of a page of the view.
    pub(crate) fn word(&self, page: u64, offset: usize) -> Word<'_> {
        // SAFETY: the view is mapped as long as the node's memory.
        unsafe { Word::new(&self.memory.view(), page as usize * PAGE_SIZE + offset) }
    }

    /// Faults that this node's engine has served.
    pub(crate) fn faults(&self) -> u64 {
        let stats = self.engine.stats(REGION).unwrap();
        stats.latency.iter().map(|latency| latency.count()).sum()
    }

    /// Ends this process, together with the others.
    fn finish(self) -> ! {
        self.closing.store(true, Ordering::SeqCst);
        self.board.barrier();
        std::process::exit(0);
    }
}

fn open(engine: &Engine, config: &Config, memory: &Arc<RegionMemory>) {
    let spec = RegionSpec {
        region: REGION,
        memory: Arc::clone(memory),
        shares: vec![1; config.nodes],
        since: None,
        features: Features::default(),
    };
    #[cfg(feature = "mutations")]
    if let Some(mutation) = config.mutation {
        // The checks would end the cluster before its threads see what is wrong.
        let features = Features { check: false, ..spec.features };
        return engine.open_mutated(&RegionSpec { features, ..spec }, mutation).unwrap();
    }
    engine.open(&spec).unwrap();
}
