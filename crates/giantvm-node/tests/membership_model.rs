//! Explores what can happen to a small cluster, exhaustively for few faults and at random for many.
//! The properties are in `world`: they are checked after every step and at the end.

mod world;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use giantvm_node::membership::State;
use world::{Fault, TIMEOUT_UNITS, UNIT_MS, World};

/// Depth-first over all choices; a state is entered once for each number of faults left.
struct Explorer {
    seen: HashSet<u64>,
    settled: u64,
    /// Until when turns come in any order in each unit; after it they come in one order.
    any_order_until_ms: u64,
    /// Until when the first fault happens, if any does: in a steady state one interval is like
    /// the next.
    first_fault_until_ms: u64,
    /// Until when faults may happen.
    faults_until_ms: u64,
    /// When whatever the faults set off is over.
    settled_ms: u64,
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl Explorer {
    fn new(any_order_units: u64, start: &World, first_units: u64, fault_units: u64) -> Self {
        let first_fault_until_ms = start.now_ms + first_units * UNIT_MS;
        let faults_until_ms = start.now_ms + fault_units * UNIT_MS;
        let any_order_until_ms = start.now_ms + any_order_units * UNIT_MS;
        let settled_ms = faults_until_ms + SETTLE_UNITS * UNIT_MS;
        Self {
            seen: HashSet::new(),
            settled: 0,
            any_order_until_ms,
            first_fault_until_ms,
            faults_until_ms,
            settled_ms,
        }
    }

    /// With time for a node that comes back to be taken in.
    fn with_joins(any_order_units: u64, start: &World, first_units: u64, fault_units: u64) -> Self {
        let mut explorer = Self::new(any_order_units, start, first_units, fault_units);
        explorer.settled_ms += JOIN_UNITS * UNIT_MS;
        explorer
    }

    fn explore(&mut self, world: World, order: usize, faults_max: u32) {
        let faults = faults_max;
        let mut open = vec![(world, order, faults)];
        while let Some((mut world, order, mut faults)) = open.pop() {
            let none_yet = faults == faults_max && world.now_ms >= self.first_fault_until_ms;
            if none_yet || world.now_ms >= self.faults_until_ms {
                faults = 0;
            }
            let mut hasher = DefaultHasher::new();
            (&world, order, faults).hash(&mut hasher);
            if !self.seen.insert(hasher.finish()) {
                continue;
            }
            if world.now_ms >= self.settled_ms {
                world.check_settled();
                self.settled += 1;
                continue;
            }
            if faults > 0 {
                for fault in world.faults() {
                    let mut next = world.clone();
                    next.inject(fault);
                    open.push((next, order, faults - 1));
                }
            }
            let done = world.turned.count_ones() as usize;
            if done == world.nodes() {
                world.next_unit();
                open.push((world, order, faults));
            } else if world.now_ms < self.any_order_until_ms {
                for me in (0..world.nodes()).filter(|me| world.turned & (1 << me) == 0) {
                    let mut next = world.clone();
                    next.turn(me, true);
                    open.push((next, order, faults));
                }
            } else {
                let next = ORDERS[order].into_iter().filter(|me| *me < world.nodes()).nth(done);
                next.into_iter().for_each(|me| world.turn(me, order % 2 == 0));
                open.push((world, order, faults));
            }
        }
    }

    fn report(&self, what: &str) {
        println!("{what}: {} states, {} ends", self.seen.len(), self.settled);
        assert!(self.settled > 0);
    }
}

/// Units after which everything that a fault sets off is over: a timeout until a member reports
/// another one, another timeout with its margin until that one has certainly stopped, and what it
/// takes to tell everyone.
const SETTLE_UNITS: u64 = 2 * TIMEOUT_UNITS + 9;

/// Units that it takes on top to take nodes in, one after the other.
const JOIN_UNITS: u64 = 10;

/// Units around a fault in which turns come in any order; before and after it every fixed order is
/// tried. All orders up to the end are too many for every run: see [`full`].
const ANY_ORDER_UNITS: u64 = 3;

/// Whether to explore more: `GIANTVM_EXPLORE=full`, some minutes of processor time.
fn full() -> bool {
    std::env::var("GIANTVM_EXPLORE").is_ok_and(|what| what == "full")
}

/// A cluster that has been running for a few units.
fn running(nodes: usize) -> World {
    after(World::new(nodes), 5)
}

/// All of `world` after some units without a fault: they run.
fn after(mut world: World, units: u64) -> World {
    run(&mut world, units);
    assert!((0..world.nodes()).all(|me| *world.machine(me).state() == State::Running));
    world
}

fn run(world: &mut World, units: u64) {
    for _ in 0..units {
        (0..world.nodes()).for_each(|me| world.turn(me, true));
        world.next_unit();
    }
}

/// A cluster from which a node is gone, just when it is started again.
fn coming_back(lost: usize) -> World {
    let mut world = after(World::open(3, &[]), 5);
    world.inject(Fault::Kill(lost));
    run(&mut world, SETTLE_UNITS);
    assert_eq!((world.machine(0).epoch(), world.machine(0).members().len()), (2, 2));
    world.inject(Fault::Restart(lost));
    world
}

#[test]
fn one_fault_while_joining_in_any_order_of_turns() {
    let start = World::new(3);
    let mut explorer = Explorer::new(ANY_ORDER_UNITS, &start, 2, 2);
    for order in 0..ORDERS.len() {
        explorer.explore(start.clone(), order, 1);
    }
    explorer.report("one fault while joining, any order");
}

#[test]
fn one_fault_while_running_in_any_order_of_turns() {
    let start = running(3);
    // With any order to the very end the fixed ones are among them.
    let (units, orders) = if full() { (u64::from(u32::MAX), 1) } else { (ANY_ORDER_UNITS, 6) };
    let mut explorer = Explorer::new(units, &start, 1, 1);
    for order in 0..orders {
        explorer.explore(start.clone(), order, 1);
    }
    explorer.report("one fault while running, any order");
}

/// The second fault may be the end of the first one: resuming, healing, restarting.
#[test]
fn two_faults_at_any_two_moments() {
    let starts = [(World::new(3), 3, 3), (running(3), 1, TIMEOUT_UNITS + 5)];
    for (start, first, last) in starts {
        let mut explorer = Explorer::new(0, &start, first, last);
        // The deciding node first, or last; in full every order.
        for order in (0..ORDERS.len()).filter(|order| full() || [0, 5].contains(order)) {
            explorer.explore(start.clone(), order, 2);
        }
        explorer.report("two faults");
    }
}

#[test]
fn a_node_that_comes_back_is_taken_in() {
    for lost in [1, 2] {
        let world = after(coming_back(lost), JOIN_UNITS);
        assert_eq!((world.machine(0).epoch(), world.machine(0).members().len()), (3, 3));
    }
}

/// Also for two nodes at once.
#[test]
fn late_nodes_are_taken_in() {
    for late in [&[1][..], &[2], &[1, 2]] {
        let world = after(World::open(3, late), JOIN_UNITS);
        assert_eq!(world.machine(0).epoch(), 1 + late.len() as u64);
    }
}

/// Worlds in which a node is about to be taken in; in full, all of them.
fn joining() -> Vec<World> {
    let mut starts = vec![coming_back(1), World::open(3, &[1, 2])];
    if full() {
        starts.extend([coming_back(2), World::open(3, &[2])]);
    }
    starts
}

#[test]
fn one_fault_while_a_node_is_taken_in_in_any_order_of_turns() {
    for start in joining() {
        let mut explorer = Explorer::with_joins(ANY_ORDER_UNITS, &start, 3, 3);
        for order in (0..ORDERS.len()).filter(|order| full() || [0, 5].contains(order)) {
            explorer.explore(start.clone(), order, 1);
        }
        explorer.report("one fault while a node is taken in, any order");
    }
}

#[test]
fn two_faults_while_nodes_are_taken_in() {
    let (first, last) = if full() { (5, 8) } else { (4, 4) };
    for (start, order) in joining().into_iter().zip([0, 5].into_iter().cycle()) {
        let mut explorer = Explorer::with_joins(0, &start, first, last);
        for order in (0..ORDERS.len()).filter(|it| full() || *it == order) {
            explorer.explore(start.clone(), order, 2);
        }
        explorer.report("two faults while nodes are taken in");
    }
}

/// A node is lost in some way, and comes back at any moment: before it is removed, or after it.
#[test]
fn a_node_comes_back_at_any_moment() {
    let start = after(World::open(3, &[]), 5);
    let mut explorer = Explorer::with_joins(0, &start, 1, 2 * TIMEOUT_UNITS + 3);
    for order in (0..ORDERS.len()).filter(|order| full() || *order == 0) {
        explorer.explore(start.clone(), order, 2);
    }
    explorer.report("a node comes back");
}

/// Two nodes have nobody to tell one about the other: only the clocks are left.
#[test]
fn three_faults_of_two_nodes_at_any_moments() {
    let start = running(2);
    let mut explorer = Explorer::new(0, &start, 1, TIMEOUT_UNITS + 3);
    for order in [0, 5] {
        explorer.explore(start.clone(), order, 3);
    }
    explorer.report("three faults of two nodes");
}

/// What the checks are worth: a node that is late for longer than the margin allows is noticed.
#[test]
#[should_panic(expected = "runs though the others went on")]
fn a_node_that_runs_on_after_its_removal_is_noticed() {
    let mut world = running(3);
    world.inject(Fault::Cut(0, 1));
    for _ in 0..2 * SETTLE_UNITS {
        world.turn(0, true);
        world.turn(2, true);
        world.next_unit();
    }
}

/// Five nodes, four faults, messages read one by one in any order between nodes.
#[test]
fn many_faults_at_random() {
    const RUNS: u64 = 2_000;
    let mut ended_early = 0;
    for seed in 0..RUNS {
        // A failure prints the world and, as the last of these, the seed that replays it.
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut world = World::new(5);
        let mut faults = 4;
        for unit in 0..4 * SETTLE_UNITS {
            if unit == 20 {
                faults = 0;
            }
            random_unit(&mut world, &mut random, &mut faults);
        }
        world.check_settled();
        let ended = |me| matches!(world.machine(me).state(), State::Ended { .. });
        ended_early += u64::from((0..5).all(ended));
    }
    assert!(ended_early > 0 && ended_early < RUNS, "faults must be neither too many nor too few");
}

/// Nodes come and go all the time; when all works again, all run together.
#[test]
fn many_restarts_at_random() {
    const RUNS: u64 = 400;
    let mut joins = 0;
    for seed in 0..RUNS {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut world = World::open(5, [&[][..], &[3], &[1, 2, 3, 4]][random.below(3)]);
        let mut faults = 10;
        for _ in 0..60 {
            random_unit(&mut world, &mut random, &mut faults);
            // Who has ended is started again after a while.
            let ended: Vec<_> = (0..5).filter(|&me| world.has_ended(me)).collect();
            if !ended.is_empty() && random.below(8) == 0 {
                world.inject(Fault::Restart(ended[random.below(ended.len())]));
            }
        }
        // Who was cut off learns only then that it is out.
        for _ in 0..3 {
            world.mend();
            (0..SETTLE_UNITS + 2 * JOIN_UNITS)
                .for_each(|_| random_unit(&mut world, &mut random, &mut 0));
        }
        world.check_settled();
        let members = world.machine(0).members();
        assert_eq!(members.len(), 5, "not all are taken in: {world:#?}");
        joins += world.machine(0).current().joined.len() as u64;
    }
    assert!(joins > RUNS, "{joins}");
}

/// One unit: every node ticks once and reads what there is, in any interleaving.
fn random_unit(world: &mut World, random: &mut Random, faults: &mut u32) {
    let mut to_tick: Vec<usize> = (0..world.nodes()).collect();
    loop {
        if *faults > 0 && random.below(150) == 0 {
            let possible = world.faults();
            world.inject(possible[random.below(possible.len())]);
            *faults -= 1;
        }
        let readable: Vec<_> = (0..25)
            .map(|link| (link / 5, link % 5))
            .filter(|&(from, to)| world.readable(from, to))
            .collect();
        let choices = to_tick.len() + readable.len();
        if choices == 0 {
            break;
        }
        match random.below(choices) {
            choice if choice < to_tick.len() => {
                let me = to_tick.swap_remove(choice);
                if world.runs(me) {
                    world.tick(me);
                }
            }
            choice => {
                let (from, to) = readable[choice - to_tick.len()];
                world.read(from, to);
            }
        }
    }
    world.wake_late();
    world.next_unit();
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}
