//! Random accesses of six threads in three processes, with invariants that hold at every moment.
//!
//! Each page has a word for each thread, which that thread alone counts up. It tells ordinary
//! memory before and after each step, so a reader knows the least and the greatest value that it
//! may see: together with "never back" this is linearisability of each word.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use dsm_core::engine::WaitMode;

use crate::access::Word;
use crate::nodes::{self, Cluster, Config, Node};
use crate::random::Random;

const NODES: usize = 3;
const THREADS_PER_NODE: usize = 2;
const THREADS: usize = NODES * THREADS_PER_NODE;
const PAGES: usize = 64;
/// How long the threads go on; only the amount of what is tested depends on it.
const TIME: Duration = Duration::from_secs(15);

// Words of a page.
const OWN: usize = 0;
const SUM: usize = 100;
const LOCK: usize = 200;
/// The payload of a page's seqlock: words here and on the page that follows it.
const PAYLOAD: [usize; 3] = [201, 300, 511];

// Where things are on the board.
const ANNOUNCED: usize = 0;
const COMPLETED: usize = ANNOUNCED + PAGES * THREADS;
const ADDED: usize = COMPLETED + PAGES * THREADS;
const DONE: usize = ADDED + PAGES;
/// Kinds of accesses, counted in [`DONE`].
const KINDS: [&str; 5] = ["writes", "reads", "additions", "seqlock writes", "seqlock reads"];
const ERRORS: usize = DONE + KINDS.len();
/// Faults that each node's engine has served.
const FAULTS: usize = ERRORS + 4;
const ERROR_KINDS: [&str; 4] = ["older than completed", "newer than announced", "back", "torn"];

#[test]
fn words_never_go_back_and_sums_add_up() {
    stress("words_never_go_back_and_sums_add_up", Config::new(NODES, 1, WaitMode::Adaptive));
}

#[test]
fn words_never_go_back_with_two_workers() {
    let mut config = Config::new(NODES, 2, WaitMode::Blocking);
    // The pages lie on both sides of the bound between the workers.
    config.pages = 1024;
    stress("words_never_go_back_with_two_workers", config);
}

fn stress(test: &str, config: Config) {
    let first = config.pages / 2 - PAGES as u64 / 2;
    nodes::run(
        &format!("stress::{test}"),
        &config,
        |node| run_node(node, first),
        |cluster| check(cluster, &config),
    );
}

fn run_node(node: &Node, first: u64) {
    let until = Instant::now() + TIME;
    std::thread::scope(|scope| {
        for local in 0..THREADS_PER_NODE {
            let thread = node.index * THREADS_PER_NODE + local;
            scope.spawn(move || Thread::new(node, first, thread).run(until));
        }
    });
    node.board.word(FAULTS + node.index).store(node.faults(), SeqCst);
    node.board.barrier();
    // All sums, from a node that need not have them yet.
    if node.index == 0 {
        for page in 0..PAGES {
            let sum = node.word(first + page as u64, SUM * 8).load();
            if sum != node.board.word(ADDED + page).load(SeqCst) {
                eprintln!("page {page}: the sum is {sum}");
                std::process::exit(4);
            }
        }
    }
}

fn check(cluster: &mut Cluster, config: &Config) {
    cluster.barrier().unwrap();
    cluster.barrier().unwrap();
    cluster.finish();
    let of = |base: usize, kinds: &[&str]| -> Vec<(String, u64)> {
        let value = |at: usize| cluster.board.word(base + at).load(SeqCst);
        kinds.iter().enumerate().map(|(at, kind)| ((*kind).to_owned(), value(at))).collect()
    };
    let faults: u64 = (0..NODES).map(|node| cluster.board.word(FAULTS + node).load(SeqCst)).sum();
    println!("{config:?}: {faults} faults, {:?}", of(DONE, &KINDS));
    let errors = of(ERRORS, &ERROR_KINDS);
    assert!(errors.iter().all(|(_, count)| *count == 0), "{errors:?}");
    assert!(of(DONE, &KINDS).iter().all(|(_, count)| *count > 0));
}

struct Thread<'n> {
    node: &'n Node,
    first: u64,
    thread: usize,
    random: Random,
    /// What this thread saw last of each word.
    seen: Vec<u64>,
}

impl<'n> Thread<'n> {
    fn new(node: &'n Node, first: u64, thread: usize) -> Self {
        let random = Random::new(42).split(thread as u64);
        Self { node, first, thread, random, seen: vec![0; PAGES * THREADS] }
    }

    fn run(mut self, until: Instant) {
        while Instant::now() < until {
            for _ in 0..64 {
                let page = self.random.below(PAGES);
                let kind = self.random.below(KINDS.len());
                match kind {
                    0 => self.write(page),
                    1 => self.read(page),
                    2 => self.add(page),
                    // The second page of the payload is the next one.
                    3 => self.write_locked(page & !1),
                    _ => self.read_locked(page & !1),
                }
                self.board(DONE + kind).fetch_add(1, SeqCst);
            }
        }
    }

    fn board(&self, index: usize) -> &'static AtomicU64 {
        self.node.board.word(index)
    }

    fn word(&self, page: usize, word: usize) -> Word<'n> {
        self.node.word(self.first + page as u64, word * 8)
    }

    fn error(&self, kind: usize) {
        self.board(ERRORS + kind).fetch_add(1, SeqCst);
    }

    fn write(&mut self, page: usize) {
        let at = page * THREADS + self.thread;
        let value = self.board(COMPLETED + at).load(SeqCst) + 1;
        self.board(ANNOUNCED + at).store(value, SeqCst);
        self.word(page, OWN + self.thread).store(value);
        self.board(COMPLETED + at).store(value, SeqCst);
    }

    fn read(&mut self, page: usize) {
        let thread = self.random.below(THREADS);
        let at = page * THREADS + thread;
        let least = self.board(COMPLETED + at).load(SeqCst);
        let value = self.word(page, OWN + thread).load();
        let most = self.board(ANNOUNCED + at).load(SeqCst);
        if value < least {
            self.error(0);
        }
        if value > most {
            self.error(1);
        }
        if value < self.seen[at] {
            self.error(2);
        }
        self.seen[at] = value;
    }

    fn add(&mut self, page: usize) {
        let amount = 1 + self.random.below(5) as u64;
        self.word(page, SUM).add(amount);
        self.board(ADDED + page).fetch_add(amount, SeqCst);
    }

    /// The payload of the seqlock of pages `page` and the next.
    fn payload(&self, page: usize) -> impl Iterator<Item = Word<'n>> {
        let pages = [page, page + 1];
        let words = pages.map(|page| PAYLOAD.map(|word| self.word(page, word)));
        words.into_iter().flatten()
    }

    /// Takes the lock if it is free: waiting for it is not what is tested.
    fn write_locked(&mut self, page: usize) {
        let lock = self.word(page, LOCK);
        let count = lock.load();
        if count % 2 == 1 || lock.compare_exchange(count, count + 1) != count {
            return;
        }
        self.payload(page).for_each(|word| word.store(count + 2));
        lock.store(count + 2);
    }

    fn read_locked(&mut self, page: usize) {
        let lock = self.word(page, LOCK);
        let before = lock.load();
        let payload: Vec<u64> = self.payload(page).map(Word::load).collect();
        let after = lock.load();
        if before == after && before.is_multiple_of(2) && payload.iter().any(|&word| word != before)
        {
            self.error(3);
        }
    }
}

/// One instruction that locks eight bytes on two pages needs both at once.
#[test]
fn locked_additions_across_two_pages_add_up() {
    let features = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if features.split_whitespace().any(|word| word.ends_with("_lock_detect")) {
        println!("SKIPPED: the kernel slows down or ends what locks across two cache lines");
        return;
    }
    const ROUNDS: u64 = 300;
    const ACROSS: usize = dsm_core::PAGE_SIZE - 4;
    let config = Config::new(NODES, 1, WaitMode::Adaptive);
    let node = |node: &Node| {
        let word = node.word(0, ACROSS);
        for _ in 0..ROUNDS {
            // Carries into the second page.
            word.add(0xffff_ffff);
        }
        node.board.barrier();
        node.board.word(node.index).store(word.load(), SeqCst);
        node.board.barrier();
    };
    let parent = |cluster: &mut Cluster| {
        (0..3).for_each(|_| cluster.barrier().unwrap());
        cluster.finish();
        for index in 0..NODES {
            let sum = cluster.board.word(index).load(SeqCst);
            assert_eq!(sum, NODES as u64 * ROUNDS * 0xffff_ffff, "node {index}");
        }
    };
    nodes::run("stress::locked_additions_across_two_pages_add_up", &config, node, parent);
}
