//! What can happen to a small cluster that etcd decides on. The properties are in `etcd_world`: they
//! are checked after every step and at the end. A failure prints the seed that replays it.

mod etcd_world;

use std::collections::BTreeMap;

use dsm_core::types::NodeId;
use etcd_world::{HEARTBEAT_MS, HOSTS, LEASE_MS, Random, Stage, World};
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
    match world.processes[me].machine().verdict().state {
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
        for _ in 0..1 + random.below(6) {
            inject(&mut world, random);
            let ms = random.below(2 * LEASE_MS as usize) as u64;
            world.pass(ms, random);
        }
        world.start_etcd();
        if random.below(2) == 0 {
            world.pass(8 * LEASE_MS, random);
            world.check_settled();
        }
        world.heal();
        world.pass(8 * LEASE_MS, random);
        world.check_settled();
        // Whatever happened, whoever comes now gets in if there is somebody to take it in.
        let hosts = 1 + random.below(HOSTS);
        world.start_missing(hosts);
        world.pass(8 * LEASE_MS, random);
        world.check_settled();
        if world.is_open() {
            world.check_all_in(hosts);
        }
    });
}

fn inject(world: &mut World, random: &mut Random) {
    let [pid, other] = [(); 2].map(|()| random.below(world.processes.len()));
    let [me, peer] = [pid, other].map(|pid| world.processes[pid].host);
    match random.below(16) {
        0 => world.kill(pid),
        1 => world.stop(pid),
        2 => world.processes[pid].stopped = false,
        3 => world.cut_off_etcd[me] = true,
        4 => world.cut_off_etcd[me] = false,
        5 => world.cut_peers(me, true),
        6 => (world.cut[me][peer], world.cut[peer][me]) = (true, random.below(2) == 0),
        7 => world.stop_etcd(),
        8 => world.start_etcd(),
        9 => world.cut_peers(me, false),
        10 if random.below(4) == 0 => world.close(pid),
        11 => world.leave(pid),
        // Where there is one already, too.
        _ => _ = world.start(random.below(HOSTS)),
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
                assert_eq!(world.processes[me].machine().verdict().epoch, 2);
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

#[test]
fn who_was_lost_or_left_comes_back_and_new_ones_come() {
    with_seeds(100, |random| {
        let mut world = running(3, random);
        let victim = random.below(3);
        if random.below(2) == 0 {
            world.kill(victim)
        } else {
            world.leave(victim)
        }
        world.pass(random.below(2 * LEASE_MS as usize) as u64, random);
        let back = world.start(victim);
        world.pass(SETTLE_MS, random);
        world.check_settled();
        assert!(world.runs(back), "{world:#?}");
        let verdict = world.processes[back].machine().verdict();
        assert_eq!((verdict.epoch, verdict.members.len()), (3, 3));
        let place = NodeId::new(victim).unwrap();
        assert_eq!(world.processes[back].epoch.joined, BTreeMap::from([(place, 3)]));
        assert_ne!(world.processes[back].epoch.eldest(), Some(place));
        let new = [world.start(3), world.start(4)];
        world.pass(SETTLE_MS, random);
        world.check_settled();
        assert!(new.iter().all(|new| world.runs(*new)), "{world:#?}");
        assert_eq!(world.processes[back].epoch.number, 5);
        assert_eq!(world.processes[back].epoch.members.len(), 5);
    });
}

#[test]
fn a_process_whose_place_was_given_again_finds_out_when_it_goes_on() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        let victim = random.below(3);
        world.stop(victim);
        world.pass(2 * LEASE_MS, random);
        // Its own name may come back, or another take its place.
        let other = world.start(if random.below(2) == 0 { victim } else { 5 });
        world.pass(SETTLE_MS, random);
        assert!(world.runs(other), "{world:#?}");
        world.processes[victim].stopped = false;
        world.pass(LEASE_MS, random);
        world.check_settled();
        assert!(!world.runs(victim) && world.runs(other), "{world:#?}");
        assert!(matches!(end_of(&world, victim), EndReason::Stopped { .. }));
        assert_eq!(world.processes[other].epoch.members.len(), 3);
    });
}

#[test]
fn who_left_keeps_its_place_until_it_has_stopped() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        let leaver = random.below(3);
        world.leave(leaver);
        while !world.has_left(leaver) {
            world.pass(HEARTBEAT_MS / 4, random);
        }
        // What it used is still there: its key, until its lease ends.
        world.stop(leaver);
        let new = world.start(5);
        world.pass(SETTLE_MS, random);
        assert!(world.runs(new), "{world:#?}");
        world.processes[leaver].stopped = false;
        world.pass(LEASE_MS, random);
        world.check_settled();
    });
}

#[test]
fn nobody_gets_in_beside_a_virtual_machine() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        world.close(random.below(3));
        // A newcomer that is on its way already may still be ahead of a virtual machine.
        world.pass(LEASE_MS, random);
        let new = world.start(4);
        world.pass(2 * SETTLE_MS, random);
        world.check_settled();
        let Stage::Refused(reason) = &world.processes[new].stage else { panic!("{world:#?}") };
        assert!(reason.contains("a virtual machine runs"), "{reason}");
        assert!((0..3).all(|me| world.runs(me)));
    });
}

#[test]
fn one_after_the_other_goes_and_newcomers_still_come() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        // None of the first three is there at the end: each newcomer finds others to take it in.
        for victim in 0..3 {
            // It is on its way while the eldest goes, or comes before or after that.
            let waits = random.below(2) == 0;
            let early = waits.then(|| world.start(3 + victim));
            world.pass(random.below(LEASE_MS as usize) as u64, random);
            match random.below(3) {
                0 => world.kill(victim),
                1 => world.stop(victim),
                _ => world.leave(victim),
            }
            let new = early.unwrap_or_else(|| world.start(3 + victim));
            world.pass(2 * SETTLE_MS, random);
            world.processes[victim].stopped = false;
            world.pass(LEASE_MS, random);
            world.check_settled();
            assert!(world.runs(new) && !world.runs(victim), "{world:#?}");
        }
        // The first comes back, to whoever is there.
        let back = world.start(0);
        world.pass(SETTLE_MS, random);
        world.check_settled();
        assert!(world.runs(back), "{world:#?}");
        assert_eq!(world.processes[back].epoch.joined.len(), 4);
    });
}

#[test]
fn where_no_member_is_left_a_newcomer_ends_and_the_next_cluster_begins() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        let new = world.start(5);
        // It may be on its way, or be listed, or just have come in.
        world.pass(random.below(LEASE_MS as usize) as u64, random);
        let was_in = world.runs(new);
        for victim in 0..3 {
            if random.below(2) == 0 { world.kill(victim) } else { world.leave(victim) }
        }
        world.pass(2 * SETTLE_MS, random);
        world.check_settled();
        let started: Vec<_> = (0..3).map(|host| world.start(host)).collect();
        world.pass(2 * SETTLE_MS, random);
        world.check_settled();
        assert!(started.iter().all(|pid| world.runs(*pid)), "{world:#?}");
        if let Some(State::Ended { reason }) = world.processes[new].state() {
            assert!(!was_in && matches!(reason, EndReason::NotTakenIn { .. }), "{world:#?}");
        } else {
            assert!(world.runs(new), "{world:#?}");
        }
    });
}

#[test]
fn a_newcomer_that_cannot_reach_a_member_says_whom_and_costs_nothing() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        let silent = random.below(3);
        (world.cut[silent][4], world.cut[4][silent]) = (true, random.below(2) == 0);
        let new = world.start(4);
        world.pass(2 * SETTLE_MS, random);
        world.check_settled();
        match end_of(&world, new) {
            EndReason::JoinTimeout { missing, .. } => assert_eq!(missing, &format!("n{silent}")),
            other => panic!("{other:?}"),
        }
        assert!((0..3).all(|me| world.runs(me) && world.processes[me].lost.is_empty()));
        world.heal();
        let again = world.start(4);
        world.pass(SETTLE_MS, random);
        world.check_settled();
        assert!(world.runs(again), "{world:#?}");
    });
}

#[test]
fn a_second_process_of_one_name_is_refused_while_the_first_is_there() {
    with_seeds(60, |random| {
        let mut world = running(3, random);
        let twin = world.start(random.below(3)); // of the eldest, too
        world.pass(SETTLE_MS, random);
        world.check_settled();
        assert!(matches!(&world.processes[twin].stage, Stage::Refused(_)), "{world:#?}");
        assert!((0..3).all(|me| world.runs(me) && world.processes[me].epoch.number == 1));
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
