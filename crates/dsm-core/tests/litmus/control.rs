//! Negative control: with a mistake in the protocol the litmus tests fail.

use dsm_core::engine::WaitMode;
use dsm_core::protocol::Mutation;

use crate::experiment::Experiment;
use crate::nodes::Config;
use crate::program::with_threads;

/// Runs all programs for a while. One of them must show a forbidden outcome, or the lack of a start
/// value; a cluster that merely breaks does not count.
fn caught(test: &'static str, mutation: Mutation) {
    let mut config = Config::new(4, 2, WaitMode::Adaptive);
    config.mutation = Some(mutation);
    for seed in 0..4 {
        let experiment = Experiment {
            test,
            config: config.clone(),
            programs: with_threads(2..=4),
            iterations: 256,
            in_order: false,
            seed,
        };
        let Some(report) = experiment.run() else { return };
        println!("{mutation:?}\n{report}{}", report.broken.as_deref().unwrap_or_default());
        if report.tallies.iter().any(|tally| tally.forbidden > 0) {
            return;
        }
    }
    panic!("{mutation:?} has not shown in any outcome");
}

#[test]
fn a_write_before_the_last_acknowledgement_is_caught() {
    let test = "control::a_write_before_the_last_acknowledgement_is_caught";
    caught(test, Mutation::WriteBeforeLastAck);
}

#[test]
fn a_copy_that_stays_readable_is_caught() {
    caught("control::a_copy_that_stays_readable_is_caught", Mutation::IgnoreInvalidation);
}

#[test]
fn an_owner_that_keeps_its_copy_is_caught() {
    caught("control::an_owner_that_keeps_its_copy_is_caught", Mutation::KeepOwnerCopyOnGive);
}

#[test]
fn an_owner_that_stays_writable_is_caught() {
    caught("control::an_owner_that_stays_writable_is_caught", Mutation::SkipDowngradeOnRead);
}

#[test]
fn a_forgotten_copy_is_caught() {
    caught("control::a_forgotten_copy_is_caught", Mutation::KeepStaleCopyset);
}
