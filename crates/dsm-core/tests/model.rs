//! Every history of small worlds: the protocol is right in all of them, and each seeded mistake of
//! it is noticed.
//!
//! Checked after every event: one writer or many readers; what is readable is the latest write;
//! the mapping is what the machine believes; one owner or one grant of ownership under way; hints
//! lead there; complete holds keep their pages. At the end: every thread is through and every
//! machine idle. Over the graph: the end can be reached from everywhere.
//!
//! Where survivors go on after a loss: a page is there afterwards, with its latest write, if and only if
//! a survivor had it or a valid copy of it, or it was under way between survivors.

mod support;

use std::time::Instant;

use dsm_core::Access;
use dsm_core::protocol::Mutation;
use support::coverage::Coverage;
use support::explore::explore;
use support::script::{Change, Config, Use, access, hold, on, prefetch, read, walk, write, writes};

/// More than any configuration has; without it a mutation could run for ever.
const STATES_MAX: usize = 30_000_000;

#[test]
fn every_history_of_small_worlds_is_right() {
    let mut configs = configs();
    configs.retain(|(config, _)| !config.features.recover);
    explore_all(configs);
}

#[test]
fn every_history_with_recovery_from_a_loss_is_right() {
    explore_all(support::recover::configs());
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn every_history_with_recovery_in_larger_worlds_is_right() {
    explore_all(support::recover::larger().into_iter().map(|config| (config, "")).collect());
}

/// Explores all, but for those that `GIANTVM_MODEL` leaves out.
fn explore_all(configs: Vec<(Config, &'static str)>) {
    let only = std::env::var("GIANTVM_MODEL").unwrap_or_default();
    let mut all = Coverage::default();
    let (mut states, mut transitions) = (0, 0);
    let mut unused = Vec::new();
    for (config, exercises) in configs {
        if !config.name.contains(&only) {
            continue;
        }
        let start = Instant::now();
        let report = explore(&config, STATES_MAX);
        println!(
            "{:<40} {:>8} states {:>9} transitions {:>5.1} s  at most: {}",
            config.name,
            report.states,
            report.transitions,
            start.elapsed().as_secs_f32(),
            report.coverage
        );
        if let Some(failure) = report.failure {
            panic!("{}: {}\n{}", config.name, failure.what, failure.history);
        }
        assert!(report.complete, "{} has more than {STATES_MAX} states", config.name);
        let seen = report.coverage.rows();
        for name in exercises.split_whitespace() {
            let count = seen.iter().find(|row| row.0 == name).map(|row| row.1);
            if count.is_none_or(|count| count == 0) {
                unused.push(format!("{} does not exercise {name}", config.name));
            }
        }
        all.max(&report.coverage);
        states += report.states;
        transitions += report.transitions;
    }
    println!("{:<40} {states:>8} states {transitions:>9} transitions  at most: {all}", "all");
    assert!(unused.is_empty(), "{unused:#?}");
}

#[test]
fn a_hold_completes_whatever_pages_it_names() {
    for pages in [&[0, 0, 1][..], &[], &[1, 9]] {
        let holder = on(1, &[prefetch(&[9, 0]), hold(pages, Access::Read)]);
        let config = Config::new("odd hold", &[1, 0], 2, vec![holder, on(0, &[write(0)])]);
        if let Some(failure) = explore(&config, STATES_MAX).failure {
            panic!("{pages:?}: {}\n{}", failure.what, failure.history);
        }
    }
}

#[test]
fn every_seeded_mistake_is_noticed() {
    notice_all(|kind| matches!(kind, Of::Pages | Of::Walks));
}

#[test]
fn every_seeded_mistake_in_recovery_is_noticed() {
    notice_all(|kind| kind == Of::Recovery);
}

#[test]
fn every_seeded_mistake_in_joining_is_noticed() {
    notice_all(|kind| kind == Of::Joining);
}

/// What a mistake is about, or a world. A mistake of one kind is none elsewhere, or shows here as well and
/// sooner.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Pages,
    Walks,
    Recovery,
    Joining,
}

impl Of {
    fn mutation(mutation: Mutation) -> Self {
        let name = format!("{mutation:?}");
        match () {
            () if name.starts_with("Walk") => Self::Walks,
            () if name.starts_with("RecoverJoining") => Self::Joining,
            () if name.starts_with("Recover") => Self::Recovery,
            () => Self::Pages,
        }
    }

    fn world(config: &Config) -> Self {
        let joins = config.changes.iter().any(|change| matches!(change, Change::Join(_)));
        match () {
            () if config.features.walk_shared.is_some() => Self::Walks,
            () if joins => Self::Joining,
            () if config.features.recover => Self::Recovery,
            () => Self::Pages,
        }
    }
}

/// Each mistake of these kinds makes some world fail.
fn notice_all(kinds: impl Fn(Of) -> bool) {
    let mut missed = Vec::new();
    let mut configs = configs();
    let world = std::env::var("GIANTVM_MODEL").unwrap_or_default();
    configs.retain(|(config, _)| config.name.contains(&world));
    configs.sort_by_key(|(config, _)| {
        let ops = config.scripts.iter().map(|script| script.ops.len()).sum::<usize>();
        // Those with few nodes are small.
        (config.nodes() > 3, ops)
    });
    let only = std::env::var("GIANTVM_MUTATION").unwrap_or_default();
    for mutation in Mutation::ALL {
        let kind = Of::mutation(mutation);
        if !kinds(kind) || !format!("{mutation:?}").contains(&only) {
            continue;
        }
        let fitting = configs.iter().filter(|(config, _)| Of::world(config) == kind);
        let caught = fitting.into_iter().find_map(|(config, _)| {
            let mutant = Config { mutation: Some(mutation), ..config.clone() };
            let report = explore(&mutant, 300_000);
            report.failure.map(|failure| (config.name.clone(), failure.what, report.states))
        });
        match caught {
            Some((name, what, states)) => {
                let property = what.lines().next().unwrap_or_default();
                println!("{mutation:?}: \"{name}\", state {states}: {property}");
            }
            None => {
                println!("{mutation:?}: MISSED");
                missed.push(mutation);
            }
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

/// The worlds, each with the events that it is there for (rows of [`Coverage`]).
fn configs() -> Vec<(Config, &'static str)> {
    let mut configs = one_page();
    configs.extend(several_pages());
    configs.extend(features());
    configs.extend(evictions());
    configs.extend(losses());
    configs.extend(support::recover::configs());
    configs.extend(support::walks::configs());
    configs
}

fn one_page() -> Vec<(Config, &'static str)> {
    vec![
        (
            Config::new(
                "2 nodes, 1 page, 3 operations",
                &[1, 0],
                1,
                vec![on(0, &[read(0), write(0), read(0)]), on(1, &[write(0), read(0), write(0)])],
            ),
            "void deferred hurry-inv no-data kept",
        ),
        (
            Config::new(
                "2 nodes, 1 page, 4 threads",
                &[1, 0],
                1,
                vec![
                    on(0, &[read(0), write(0)]),
                    on(0, &[write(0)]),
                    on(1, &[read(0), write(0)]),
                    on(1, &[write(0)]),
                ],
            ),
            "deferred hurry-req",
        ),
        (
            Config::new(
                "3 nodes, 1 page, 2 operations",
                &[1, 0, 0],
                1,
                vec![
                    on(0, &[read(0), write(0)]),
                    on(1, &[read(0), write(0)]),
                    on(2, &[write(0), read(0)]),
                ],
            ),
            "forwards handed-over hurry-inv",
        ),
        (
            Config::new(
                "3 nodes, 1 page, read then write",
                &[1, 0, 0],
                1,
                vec![on(0, &[write(0)]), on(1, &[read(0), write(0)]), on(2, &[read(0), write(0)])],
            ),
            "forwards handed-over deferred",
        ),
    ]
}

fn several_pages() -> Vec<(Config, &'static str)> {
    let read_write = |read, write| access(&[(read, Use::Read), (write, Use::Write)]);
    vec![
        (
            Config::new(
                "2 nodes, 2 pages",
                &[1, 1],
                2,
                vec![
                    on(0, &[write(1), read(0), read_write(1, 0)]),
                    on(1, &[write(0), read(1), read_write(0, 1)]),
                ],
            ),
            "kept no-data",
        ),
        (
            Config::new(
                "2 nodes, opposite orders",
                &[1, 1],
                2,
                vec![
                    on(0, &[writes(&[0, 1]), writes(&[1, 0])]),
                    on(1, &[writes(&[1, 0]), writes(&[0, 1])]),
                ],
            ),
            "kept",
        ),
        (
            Config::new(
                "3 nodes, opposite orders",
                &[1, 1, 0],
                2,
                vec![
                    on(0, &[writes(&[1, 0])]),
                    on(1, &[writes(&[0, 1])]),
                    on(2, &[writes(&[0, 1])]),
                ],
            ),
            "kept forwards handed-over",
        ),
        (
            Config::new(
                "2 nodes, 4 threads, opposite orders",
                &[1, 1],
                2,
                vec![
                    on(0, &[read_write(0, 1)]),
                    on(0, &[write(0)]),
                    on(1, &[read_write(1, 0)]),
                    on(1, &[write(1)]),
                ],
            ),
            "kept hurry-req",
        ),
        (
            Config::new(
                "3 nodes, an old request waits",
                &[1, 0, 1],
                2,
                vec![
                    on(0, &[read(0)]),
                    on(0, &[write(0)]),
                    on(1, &[read_write(0, 1)]),
                    on(2, &[writes(&[1, 0])]),
                ],
            )
            .fifo(),
            "kept deferred",
        ),
        (
            Config::new(
                "3 nodes, 3 pages in a circle",
                &[1, 1, 1],
                3,
                vec![
                    on(0, &[writes(&[0, 1])]),
                    on(1, &[writes(&[1, 2])]),
                    on(2, &[writes(&[2, 0])]),
                ],
            ),
            "kept",
        ),
    ]
}

fn features() -> Vec<(Config, &'static str)> {
    vec![
        (
            Config::new(
                "unchanged bytes",
                &[1, 0],
                1,
                vec![on(0, &[walk(0), write(0), walk(0)]), on(1, &[read(0), walk(0), write(0)])],
            )
            .with(|features| features.unchanged = true),
            "unchanged no-data",
        ),
        (
            Config::new(
                "migratory",
                &[1, 0],
                1,
                vec![
                    on(0, &[read(0), write(0), read(0)]),
                    on(1, &[read(0), write(0), read(0), write(0), read(0)]),
                ],
            )
            .with(|features| (features.unchanged, features.migratory) = (true, true)),
            "migratory unchanged",
        ),
        (
            Config::new(
                "lease, 2 threads",
                &[1, 0],
                2,
                vec![on(0, &[write(0)]), on(1, &[write(0), read(1)]), on(1, &[write(1)])],
            )
            .lease(2),
            "leases hurry-req",
        ),
        (
            Config::new(
                "lease, 3 nodes",
                &[1, 0, 0],
                2,
                vec![on(1, &[write(0), read(1)]), on(2, &[read(0), write(1)])],
            )
            .lease(2),
            "leases forwards void",
        ),
        (
            Config::new(
                "lease asked for by the young",
                &[1, 1],
                4,
                vec![on(0, &[writes(&[0, 3])]), on(0, &[write(2)]), on(1, &[writes(&[2, 0])])],
            )
            .lease(2),
            "leases hurry-req",
        ),
        (
            Config::new(
                "fault-around",
                &[1, 0],
                4,
                vec![on(1, &[read(0), read(1), read(2), read(3)]), on(0, &[write(2)])],
            )
            .with(|features| features.fault_around = true),
            "companions refused",
        ),
        (
            Config::new(
                "convoy",
                &[1, 0],
                2,
                vec![
                    on(1, &[writes(&[0, 1]), writes(&[0, 1]), writes(&[0, 1])]),
                    on(0, &[writes(&[0, 1]), writes(&[0, 1])]),
                ],
            )
            .with(|features| features.convoys = true)
            .calm(),
            "companions kept",
        ),
        (
            Config::new(
                "holds of 3 nodes",
                &[1, 0, 0],
                2,
                vec![
                    on(1, &[hold(&[0, 1], Access::Write)]),
                    on(2, &[hold(&[0, 1], Access::Write)]),
                    on(0, &[write(1)]),
                ],
            ),
            "holds companions refused",
        ),
        (
            Config::new(
                "a hold to read",
                &[1, 0],
                1,
                vec![
                    on(0, &[write(0), write(0)]),
                    on(1, &[hold(&[0], Access::Read)]),
                    on(1, &[write(0)]),
                ],
            ),
            "holds deferred",
        ),
        (
            Config::new(
                "a companion whose copies go",
                &[1, 0, 0],
                2,
                vec![on(0, &[write(1)]), on(1, &[hold(&[0, 1], Access::Write)]), on(2, &[read(1)])],
            ),
            "holds companions refused deferred",
        ),
        (
            Config::new(
                "holds and faults",
                &[1, 1],
                2,
                vec![
                    on(0, &[hold(&[0, 1], Access::Write)]),
                    on(1, &[hold(&[0, 1], Access::Read), read(0)]),
                ],
            )
            .fifo(),
            "holds kept",
        ),
        (
            Config::new(
                "prefetch",
                &[1, 0],
                2,
                vec![
                    on(1, &[prefetch(&[0, 1]), write(0)]),
                    on(1, &[access(&[(1, Use::Read), (0, Use::Write)])]),
                    on(0, &[write(1), read(0)]),
                ],
            ),
            "companions hurry-req void",
        ),
        (
            Config::new(
                "everything",
                &[1, 1],
                4,
                vec![
                    on(0, &[writes(&[0, 2]), access(&[(0, Use::Read), (2, Use::Walk)])]),
                    on(1, &[writes(&[2, 0]), access(&[(2, Use::Read), (1, Use::Walk)])]),
                ],
            )
            .with(|features| *features = dsm_core::protocol::Features::default())
            .lease(2),
            "leases kept",
        ),
    ]
}

fn evictions() -> Vec<(Config, &'static str)> {
    let unchanged = |features: &mut dsm_core::protocol::Features| features.unchanged = true;
    vec![
        (
            Config::new(
                "3 nodes, 1 page, frames go",
                &[1, 0, 0],
                1,
                vec![on(0, &[write(0)]), on(1, &[read(0), write(0)]), on(2, &[write(0), read(0)])],
            )
            .evicting(2),
            "evicted evicted-copies forwards handed-over void no-data",
        ),
        (
            Config::new(
                "frames go, a request is repeated",
                &[1, 1],
                2,
                vec![
                    on(0, &[walk(0), walk(0)]),
                    on(1, &[write(0), walk(0)]),
                    on(1, &[walk(1), walk(0)]),
                ],
            )
            .with(unchanged)
            .evicting(1),
            "evicted hurry-req no-data unchanged",
        ),
        (
            Config::new(
                "2 nodes, 2 pages, frames go",
                &[1, 0],
                2,
                vec![
                    on(0, &[writes(&[0, 1]), read(0)]),
                    on(1, &[prefetch(&[0, 1]), read(1), write(0)]),
                ],
            )
            .with(unchanged)
            .evicting(3),
            "evicted evicted-copies companions no-data",
        ),
        (
            Config::new(
                "held frames stay",
                &[1, 0],
                2,
                vec![on(0, &[write(0), write(1)]), on(1, &[hold(&[0, 1], Access::Read), read(0)])],
            )
            .evicting(3),
            "evicted evicted-copies holds",
        ),
        (
            Config::new(
                "2 nodes, a page moves",
                &[1, 0],
                1,
                vec![on(0, &[write(0), read(0)]), on(1, &[read(0), write(0)])],
            )
            .handing_over(2),
            "moved void no-data",
        ),
        (
            Config::new(
                "3 nodes, a page moves",
                &[1, 0, 0],
                1,
                vec![on(0, &[write(0)]), on(1, &[write(0)]), on(2, &[read(0)])],
            )
            .handing_over(1),
            "moved forwards",
        ),
        (
            Config::new(
                "a lease, a page moves",
                &[1, 0],
                2,
                vec![on(0, &[walk(0), write(1)]), on(1, &[read(0), write(1)])],
            )
            .with(unchanged)
            .lease(2)
            .evicting(1)
            .handing_over(1),
            "moved evicted leases",
        ),
        (
            Config::new(
                "held pages do not move",
                &[1, 0],
                2,
                vec![on(0, &[hold(&[0, 1], Access::Write)]), on(1, &[write(0)])],
            )
            .handing_over(1),
            "moved holds kept",
        ),
        (
            Config::new(
                "a lease, frames go",
                &[1, 0, 0],
                2,
                vec![on(1, &[walk(0), read(1)]), on(2, &[read(0), write(1)])],
            )
            .with(unchanged)
            .lease(2)
            .evicting(3),
            "evicted leases forwards",
        ),
    ]
}

fn losses() -> Vec<(Config, &'static str)> {
    vec![
        (
            Config::new(
                "2 nodes, the owner is lost",
                &[1, 0],
                1,
                vec![on(0, &[read(0), write(0)]), on(1, &[write(0), read(0), write(0)])],
            )
            .losing(0),
            "poisoned",
        ),
        (
            Config::new(
                "3 nodes, the owner is lost",
                &[1, 0, 0],
                1,
                vec![on(0, &[write(0)]), on(1, &[write(0)]), on(2, &[read(0), write(0)])],
            )
            .losing(0),
            "poisoned deferred",
        ),
        (
            Config::new(
                "3 nodes, a holder is lost",
                &[1, 0, 0],
                1,
                vec![on(0, &[write(0)]), on(1, &[read(0)]), on(2, &[read(0), write(0)])],
            )
            .losing(1),
            "poisoned deferred",
        ),
        (
            Config::new(
                "3 nodes, 2 pages, a loss",
                &[1, 1, 0],
                2,
                vec![
                    on(0, &[writes(&[1, 0])]),
                    on(1, &[writes(&[0, 1])]),
                    on(2, &[read(0), read(1)]),
                ],
            )
            .losing(0)
            .fifo(),
            "poisoned kept",
        ),
        (
            Config::new(
                "a hold and a loss",
                &[1, 0],
                2,
                vec![on(0, &[write(0)]), on(1, &[hold(&[0, 1], Access::Read), write(1)])],
            )
            .losing(0),
            "poisoned holds",
        ),
        (
            Config::new(
                "a lease and a loss",
                &[1, 0, 0],
                2,
                vec![on(1, &[write(0), read(1)]), on(2, &[read(0)])],
            )
            .lease(2)
            .losing(0),
            "poisoned leases",
        ),
    ]
}
