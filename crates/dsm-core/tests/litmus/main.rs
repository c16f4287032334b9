//! The memory model on real pages: litmus tests over processes, and a stress with invariants.
//!
//! `docs/memory-model.md` says what each shows. Only iterations in which a tested access took a
//! page fault count; a forbidden outcome fails the test in any iteration.

#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod access;
mod board;
#[cfg(feature = "mutations")]
mod control;
mod experiment;
mod model;
mod nodes;
mod program;
mod random;
mod report;
mod stress;

use dsm_core::engine::WaitMode;
use experiment::Experiment;
use nodes::Config;
use program::{Program, with_threads};

/// Runs `programs`, each until so many iterations count.
fn litmus(
    test: &'static str,
    config: Config,
    programs: Vec<&'static Program>,
    in_order: bool,
    iterations: u64,
) {
    let seed = 0x6c69_746d_7573;
    let experiment = Experiment { test, config, programs, iterations, in_order, seed };
    if let Some(report) = experiment.run() {
        report.check(iterations);
    }
}

// Together these run each program 10,000 times and more.

#[test]
fn litmus_of_two_threads_on_two_nodes() {
    let config = Config::new(2, 1, WaitMode::Adaptive);
    litmus("litmus_of_two_threads_on_two_nodes", config, with_threads(2..=2), false, 10_000);
}

#[test]
fn litmus_of_many_threads_on_four_nodes() {
    let config = Config::new(4, 1, WaitMode::Blocking);
    litmus("litmus_of_many_threads_on_four_nodes", config, with_threads(3..=4), false, 10_000);
}

// With bystanders that own pages or hold copies, and two workers a node.

#[test]
fn litmus_on_three_nodes_with_two_workers() {
    let config = Config::new(3, 2, WaitMode::Adaptive);
    litmus("litmus_on_three_nodes_with_two_workers", config, with_threads(2..=3), true, 1_000);
}

#[test]
fn litmus_on_four_nodes_with_two_workers() {
    let config = Config::new(4, 2, WaitMode::Blocking);
    litmus("litmus_on_four_nodes_with_two_workers", config, with_threads(2..=4), false, 1_000);
}

#[test]
#[ignore = "long"]
fn litmus_at_length() {
    let config = Config::new(4, 2, WaitMode::Adaptive);
    litmus("litmus_at_length", config, with_threads(2..=4), false, 20_000);
}

#[test]
#[ignore = "long"]
fn litmus_at_length_in_order() {
    let config = Config::new(4, 1, WaitMode::Blocking);
    litmus("litmus_at_length_in_order", config, with_threads(2..=4), true, 20_000);
}
