//! Runs litmus programs over node processes, in batches of independent iterations.
//!
//! Every iteration of a batch has pages of its own. First the nodes bring all pages of the batch
//! into random states: one node, the *owner*, writes the start value, then some others read it. Then
//! the threads run the iterations one after the other, each after a signal in ordinary memory for
//! which all threads wait. Then one node, the *observer*, reads what the places hold in the end.
//!
//! Values of a batch count from a base that no other batch has: a stale value is no outcome at all.

use std::sync::atomic::Ordering::SeqCst;

use crate::access::{self, Observed, Step, Word};
use crate::board::Board;
use crate::nodes::{self, Cluster, Config, Node};
use crate::program::{Outcome, Place, Program, THREADS_MAX, VALUES_MAX, VARIABLES_MAX};
use crate::random::Random;
use crate::report::{Report, Tally};

/// Iterations of a batch.
const BATCH: usize = 64;
/// Places of a program at most.
const PLACES_MAX: usize = 8;

// Where things are on the board.
const GO_ON: usize = 0;
/// Times that a reader did not see the start value.
const UNPREPARED: usize = 1;
const SIGNALS: usize = 64;
const SLOTS: usize = SIGNALS + BATCH;
const SLOT: usize = VALUES_MAX + 3;
const LAST: usize = SLOTS + BATCH * THREADS_MAX * SLOT;
const FAULTS: usize = LAST + BATCH * PLACES_MAX;

/// What to run.
pub(crate) struct Experiment {
    pub(crate) test: &'static str,
    pub(crate) config: Config,
    pub(crate) programs: Vec<&'static Program>,
    /// Iterations that count, for each program.
    pub(crate) iterations: u64,
    /// The pages of an iteration lie together, and iterations use them in order, so that the nodes
    /// fetch ahead; else they lie anywhere.
    pub(crate) in_order: bool,
    pub(crate) seed: u64,
}

/// The random choices of one batch, the same in every process.
struct Plan {
    base: u64,
    /// The node of each thread.
    nodes: Vec<usize>,
    iterations: Vec<Iteration>,
}

struct Iteration {
    pages: Vec<PagePlan>,
    observer: usize,
}

struct PagePlan {
    page: u64,
    owner: usize,
    /// Whether each node reads it.
    readers: Vec<bool>,
}

impl Experiment {
    /// Runs it; `None`, with the reason printed, where there is no userfaultfd.
    pub(crate) fn run(&self) -> Option<Report> {
        let mut report = Report::new(self.config.clone());
        let node = |node: &Node| self.run_node(node);
        let parent = |cluster: &mut Cluster| {
            let result = self.run_parent(cluster, &mut report);
            if result.is_ok() {
                cluster.finish();
                report.engine_faults = (0..self.config.nodes)
                    .map(|n| cluster.board.word(FAULTS + n).load(SeqCst))
                    .sum();
            }
            report.broken = result.err();
        };
        nodes::run(self.test, &self.config, node, parent)?;
        Some(report)
    }

    fn run_node(&self, node: &Node) {
        access::check_counting(node.word(node.index as u64, 0));
        node.board.barrier();
        let mut batch = 0;
        for program in &self.programs {
            loop {
                batch += 1;
                let plan = self.plan(program, batch);
                prepare(node, program, &plan, &mut self.random(batch, 1 + node.index));
                iterate(node, program, &plan, &mut self.random(batch, 100 + node.index));
                node.board.barrier();
                observe(node, program, &plan);
                node.board.barrier();
                node.board.barrier();
                if node.board.word(GO_ON).load(SeqCst) == 0 {
                    break;
                }
            }
        }
        node.board.word(FAULTS + node.index).store(node.faults(), SeqCst);
    }

    fn run_parent(&self, cluster: &mut Cluster, report: &mut Report) -> Result<(), String> {
        // The nodes are ready, and have checked how they count.
        cluster.barrier()?;
        cluster.barrier()?;
        let mut batch = 0;
        for program in &self.programs {
            report.tallies.push(Tally::new(program));
            for round in 0.. {
                batch += 1;
                // Written, read, run, observed.
                for _ in 0..4 {
                    cluster.barrier()?;
                }
                let tally = report.tallies.last_mut().ok_or("no tally")?;
                let base = self.plan(program, batch).base;
                (0..BATCH).for_each(|iteration| {
                    collect(&cluster.board, program, iteration, base, tally);
                });
                tally.unprepared += cluster.board.word(UNPREPARED).swap(0, SeqCst);
                let enough = tally.counted >= self.iterations || tally.forbidden > 0;
                let hopeless = round * BATCH as u64 > 20 * self.iterations;
                for iteration in 0..BATCH {
                    cluster.board.word(SIGNALS + iteration).store(0, SeqCst);
                }
                cluster.board.word(GO_ON).store(u64::from(!enough && !hopeless), SeqCst);
                cluster.barrier()?;
                if enough || hopeless {
                    break;
                }
            }
        }
        Ok(())
    }

    fn random(&self, batch: u64, part: usize) -> Random {
        Random::new(self.seed).split(batch).split(part as u64)
    }

    fn plan(&self, program: &Program, batch: u64) -> Plan {
        let random = &mut self.random(batch, 0);
        let mut nodes: Vec<usize> = (0..self.config.nodes).collect();
        random.shuffle(&mut nodes);
        let (pages, variables) = (self.config.pages, program.variables());
        let mut placed: Vec<u64> = if self.in_order {
            // Around the middle, where one worker's pages end and the next one's begin.
            let first = pages / 2 - (BATCH * variables / 2) as u64;
            (first..pages).collect()
        } else {
            (0..pages).collect()
        };
        if !self.in_order {
            random.shuffle(&mut placed);
        }
        let iterations = placed.chunks(variables).take(BATCH).map(|pages| Iteration {
            pages: pages.iter().map(|&page| page_plan(page, &nodes, random)).collect(),
            observer: nodes[random.below(nodes.len())],
        });
        Plan { base: batch << 8, iterations: iterations.collect(), nodes }
    }
}

fn page_plan(page: u64, nodes: &[usize], random: &mut Random) -> PagePlan {
    // A third of the pages stays with its owner alone.
    let alone = random.one_in(3);
    let readers = nodes.iter().map(|_| !alone && random.one_in(2)).collect();
    PagePlan { page, owner: nodes[random.below(nodes.len())], readers }
}

fn word<'n>(node: &'n Node, iteration: &Iteration, place: Place) -> Word<'n> {
    node.word(iteration.pages[place.variable].page, place.word * 8)
}

/// Brings the pages of the batch into their states.
fn prepare(node: &Node, program: &Program, plan: &Plan, random: &mut Random) {
    let mut all: Vec<(&Iteration, Place)> = plan
        .iterations
        .iter()
        .flat_map(|iteration| program.places().into_iter().map(move |place| (iteration, place)))
        .collect();
    random.shuffle(&mut all);
    for &(iteration, place) in &all {
        if iteration.pages[place.variable].owner == node.index {
            word(node, iteration, place).store(plan.base);
        }
    }
    node.board.barrier();
    for &(iteration, place) in &all {
        if iteration.pages[place.variable].readers[node.index]
            && word(node, iteration, place).load() != plan.base
        {
            node.board.word(UNPREPARED).fetch_add(1, SeqCst);
        }
    }
    node.board.barrier();
}

/// Runs this node's thread, if it has one in this batch.
fn iterate(node: &Node, program: &Program, plan: &Plan, random: &mut Random) {
    let threads = program.threads.len();
    let Some(thread) = plan.nodes[..threads].iter().position(|&n| n == node.index) else { return };
    let mut steps = Vec::new();
    for (index, iteration) in plan.iterations.iter().enumerate() {
        steps.clear();
        for (at, &op) in program.threads[thread].iter().enumerate() {
            let word = op.place().map(|place| word(node, iteration, place));
            steps.push(Step { op, word, delay: delay(at, random) });
        }
        let signal = node.board.word(SIGNALS + index);
        signal.fetch_add(1, SeqCst);
        let mut turns = 0;
        while signal.load(SeqCst) < threads as u64 {
            turns += 1;
            if turns % 64 == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        publish(&node.board, index, thread, &access::execute(&steps, plan.base));
    }
}

/// Turns of a delay: before the first access long enough that any thread can be first; between
/// accesses mostly short or none, so that they are in flight together, and now and then long enough
/// for other nodes to take the pages.
fn delay(at: usize, random: &mut Random) -> u32 {
    let longest = match random.below(8) {
        0..4 if at == 0 => 1 << random.below(11),
        0 => 1 << random.below(15),
        1 | 2 => 1 << random.below(8),
        _ => 1,
    };
    random.below(longest) as u32
}

fn publish(board: &Board, iteration: usize, thread: usize, seen: &Observed) {
    let slot = SLOTS + (iteration * THREADS_MAX + thread) * SLOT;
    let values = seen.read.iter().chain([&seen.faults, &seen.began_ns, &seen.ended_ns]);
    values.enumerate().for_each(|(at, &value)| board.word(slot + at).store(value, SeqCst));
}

fn observe(node: &Node, program: &Program, plan: &Plan) {
    for (index, iteration) in plan.iterations.iter().enumerate() {
        if iteration.observer != node.index {
            continue;
        }
        for (at, place) in program.places().into_iter().enumerate() {
            let value = word(node, iteration, place).load();
            node.board.word(LAST + index * PLACES_MAX + at).store(value, SeqCst);
        }
    }
}

/// Adds an iteration to the tally.
fn collect(board: &Board, program: &Program, iteration: usize, base: u64, tally: &mut Tally) {
    let get = |at: usize| board.word(at).load(SeqCst);
    let mut read = Vec::new();
    let (mut faults, mut began, mut ended) = (0, 0, u64::MAX);
    for (thread, ops) in program.threads.iter().enumerate() {
        let slot = SLOTS + (iteration * THREADS_MAX + thread) * SLOT;
        let reads = ops.iter().filter(|op| op.reads()).count();
        read.push((slot..slot + reads).map(|at| get(at).wrapping_sub(base)).collect());
        faults += get(slot + VALUES_MAX);
        began = began.max(get(slot + VALUES_MAX + 1));
        ended = ended.min(get(slot + VALUES_MAX + 2));
    }
    let places = program.places().len();
    let last = LAST + iteration * PLACES_MAX;
    let last = (last..last + places).map(|at| get(at).wrapping_sub(base)).collect();
    tally.add(Outcome { read, last }, faults, began < ended);
}

const _: () = assert!(FAULTS + 64 <= crate::board::WORDS && BATCH * VARIABLES_MAX <= 1024);
