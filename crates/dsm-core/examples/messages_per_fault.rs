//! How many messages a fault takes, against the number of nodes, for some ways to share memory.
//!
//! Prints a table, or with `--json` one object a line. Nothing is measured: messages are counted in
//! a simulation of the protocol, from a fixed seed.

#[path = "../tests/support/mod.rs"]
mod support;

use dsm_core::Page;
use dsm_core::protocol::Features;
use support::script::{Config, Op, Script, Use};
use support::simulate::{Pace, Random, simulate};

const NODES: [usize; 6] = [2, 4, 8, 16, 32, 64];
const OPS: usize = 60;

/// A step of a thread: its turn, and how many nodes there are.
type Pattern = fn(&mut Random, usize, usize) -> Vec<Op>;

/// Ways to share, each with a step of one thread.
const PATTERNS: [(&str, Pattern); 4] = [
    ("migratory", migratory),
    ("round robin", round_robin),
    ("read mostly", read_mostly),
    ("all contend", all_contend),
];

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    if !json {
        println!("messages a fault, by nodes");
        let heads: Vec<String> = NODES.iter().map(|nodes| format!("{nodes:>7}")).collect();
        println!("{:<12}{}", "", heads.concat());
    }
    for (name, pattern) in PATTERNS {
        let counts: Vec<f64> = NODES.iter().map(|&nodes| messages(pattern, nodes)).collect();
        if json {
            for (nodes, value) in NODES.iter().zip(&counts) {
                println!(
                    r#"{{"name":"messages_per_fault","variant":"{name}, {nodes} nodes","unit":"messages","value":{value:.3}}}"#
                );
            }
        } else {
            let cells: Vec<String> = counts.iter().map(|count| format!("{count:>7.2}")).collect();
            println!("{name:<12}{}", cells.concat());
        }
    }
}

fn messages(pattern: Pattern, nodes: usize) -> f64 {
    let mut random = Random(1);
    let scripts = (0..nodes)
        .map(|node| Script {
            life: 0,
            node,
            ops: (0..OPS).flat_map(|at| pattern(&mut random, node + at, nodes)).collect(),
        })
        .collect();
    let mut config = Config::new("messages", &vec![1; nodes], pages(nodes), scripts).fifo();
    config.features = Features { check: false, ..Features::default() };
    let pace = Pace {
        latency_max: 20,
        slow_one_in: 1 << 60,
        run_max: 200,
        quiet_after: 10,
        loss_at: 1,
        evict_one_in: u64::MAX,
    };
    match simulate(&config, pace, 1, 50_000_000) {
        Ok(coverage) => coverage.messages as f64 / coverage.faults.max(1) as f64,
        Err(what) => panic!("{what}"),
    }
}

fn pages(nodes: usize) -> u64 {
    4 * nodes as u64
}

fn one(page: u64, how: Use) -> Op {
    Op::Access(vec![(Page(page), how)])
}

/// Any page, read and then written.
fn migratory(random: &mut Random, _: usize, nodes: usize) -> Vec<Op> {
    let page = random.below(pages(nodes));
    vec![one(page, Use::Read), one(page, Use::Write)]
}

/// Each page goes from each node to the next.
fn round_robin(_: &mut Random, turn: usize, nodes: usize) -> Vec<Op> {
    vec![one(4 * (turn % nodes) as u64, Use::Write)]
}

/// One access in twenty writes.
fn read_mostly(random: &mut Random, _: usize, nodes: usize) -> Vec<Op> {
    let how = if random.one_in(20) { Use::Write } else { Use::Read };
    vec![one(random.below(pages(nodes)), how)]
}

/// All write the same page.
fn all_contend(_: &mut Random, _: usize, _: usize) -> Vec<Op> {
    vec![one(0, Use::Write)]
}
