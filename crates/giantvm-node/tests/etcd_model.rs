//! What can happen to a small cluster that etcd decides on. The properties are in `etcd_world`: they
//! are checked after every step and at the end. A failure prints the seed that replays it.

mod etcd_world;

use etcd_world::{LEASE_MS, Random, World};
use giantvm_node::membership::{EndReason, Machine, State};

/// Long enough for whatever a fault sets off: a silence until it is noticed, hesitation, and a lease.
const SETTLE_MS: u64 = 4 * LEASE_MS;

fn running(nodes: usize, random: &mut Random) -> World {
    let mut world = World::new(nodes);
    world.pass(LEASE_MS, random);
    assert!((0..nodes).all(|me| world.runs(me)), "{world:#?}");
    world
}

fn end_of(world: &World, me: usize) -> &EndReason {
    match world.processes[me].machine.verdict().state {
        State::Ended { reason } => reason,
        other => panic!("{me} is {other:?}"),
    }
}

/// Runs `test` with many seeds.
fn with_seeds(count: u64, test: impl Fn(&mut Random)) {
    for seed in 0..count {
        println!("seed {seed}");
        test(&mut Random(seed));
    }
}

#[test]
fn many_faults_at_random() {
    with_seeds(600, |random| {
        let nodes = 2 + random.below(4);
        let mut world = World::new(nodes);
        if random.below(4) != 0 {
            world.pass(LEASE_MS, random);
        }
        for _ in 0..1 + random.below(4) {
            inject(&mut world, random);
            let ms = random.below(2 * LEASE_MS as usize) as u64;
            world.pass(ms, random);
        }
        world.start_etcd();
        world.pass(8 * LEASE_MS, random);
        world.check_settled();
    });
}

fn inject(world: &mut World, random: &mut Random) {
    let (me, peer) = (random.below(world.nodes()), random.below(world.nodes()));
    match random.below(10) {
        0 => world.kill(me),
        1 => world.stop(me),
        2 => world.processes[me].stopped = false,
        3 => world.cut_off_etcd[me] = true,
        4 => world.cut_off_etcd[me] = false,
        5 => world.cut_peers(me, true),
        6 => (world.cut[me][peer], world.cut[peer][me]) = (true, random.below(2) == 0),
        7 => world.stop_etcd(),
        8 => world.start_etcd(),
        _ if world.processes[me].alive && !world.processes[me].stopped => world.leave(me),
        _ => {}
    }
}

#[test]
fn the_survivors_of_any_one_node_go_on_together_and_know_why() {
    with_seeds(60, |random| {
        for victim in 0..3 {
            let mut world = running(3, random);
            match random.below(4) {
                0 => world.kill(victim),
                1 => world.stop(victim),
                2 => world.cut_peers(victim, true),
                _ => world.cut_off_etcd[victim] = true,
            }
            world.pass(SETTLE_MS, random);
            world.processes[victim].stopped = false;
            world.pass(LEASE_MS, random);
            world.check_settled();
            let survivors: Vec<_> = (0..3).filter(|me| *me != victim).collect();
            assert!(!world.runs(victim));
            for &me in &survivors {
                assert!(world.runs(me), "{me} went with {victim}: {world:#?}");
                assert_eq!(world.processes[me].machine.verdict().epoch, 2);
            }
            let [a, b] = [survivors[0], survivors[1]].map(|me| &world.processes[me].lost);
            assert_eq!((a, a.len()), (b, 1), "they agree on who and why");
        }
    });
}

#[test]
fn etcd_away_for_less_than_a_lease_costs_nothing() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        world.stop_etcd();
        world.pass(LEASE_MS / 4, random);
        world.start_etcd();
        world.pass(SETTLE_MS, random);
        world.check_settled();
        assert!((0..3).all(|me| world.runs(me) && world.processes[me].lost.is_empty()));
    });
}

#[test]
fn etcd_away_for_longer_ends_everyone_with_that_reason() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        world.stop_etcd();
        world.pass(SETTLE_MS, random);
        for me in 0..3 {
            // The first to end may break the connections of the others, which changes nothing.
            assert!(matches!(end_of(&world, me), EndReason::EtcdUnreachable { .. }), "{world:#?}");
        }
    });
}

#[test]
fn a_node_that_leaves_costs_nothing() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        let leaver = random.below(3);
        world.leave(leaver);
        world.pass(SETTLE_MS, random);
        world.check_settled();
        assert_eq!(end_of(&world, leaver), &EndReason::Left);
        assert!((0..3).all(|me| world.runs(me) == (me != leaver)));
        assert!(world.processes.iter().all(|process| process.lost.is_empty()));
    });
}

/// What the checks are worth: leases that end too early are noticed.
#[test]
#[should_panic(expected = "runs though the others went on")]
fn a_lease_that_ends_before_the_right_to_run_is_noticed() {
    with_seeds(200, |random| {
        let mut world = running(3, random);
        world.hurry_ms = 600;
        world.cut_off_etcd[random.below(3)] = true;
        world.pass(SETTLE_MS, random);
    });
}
