//! Locks, barriers and counters when nodes are lost, and when nodes join.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod history;
mod joins;
mod model;
mod steps;
mod world;

use world::{Seen, World};

/// Thousands of random histories of three to five nodes with up to three losses and joins. Another
/// start:
/// `GIANTVM_SEED`.
#[test]
fn random_histories_keep_what_is_promised() {
    let first = std::env::var("GIANTVM_SEED").map_or(0, |seed| seed.parse().unwrap());
    let mut seen = Seen::default();
    for seed in first..first + 6_000 {
        let mut world = World::new(seed, &mut seen);
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.play()));
        assert!(played.is_ok(), "in the history of seed {seed}");
    }
    for (what, least) in [
        ("abandoned", 1000),
        ("barrier broken", 1000),
        ("barrier passed", 1000),
        ("cancelled", 1000),
        ("given up", 1000),
        ("held lock reported", 1000),
        ("loss while requests wait", 100),
        ("several changes told at once", 1000),
        ("join", 1000),
        ("returned before its loss was told", 100),
        ("request of a newcomer kept", 1000),
        ("message of an earlier process", 100),
        ("first told after a loss", 30),
        ("taken off a barrier after a loss", 5),
        ("barrier passed after a join", 100),
        ("no home", 100),
        ("value lost", 1000),
    ] {
        let times = seen.0.get(what).copied().unwrap_or(0);
        assert!(times >= least, "{what} only {times} times: {seen:?}");
    }
}
