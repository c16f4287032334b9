//! Explores what can happen to a small cluster, exhaustively for few faults and at random for many.
//! The properties are in `world`: they are checked after every step and at the end.

mod world;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use giantvm_node::membership::State;
use world::{TIMEOUT_UNITS, UNIT_MS, World};

/// Depth-first over all choices; a state is entered once for each number of faults left.
struct Explorer {
    seen: HashSet<u64>,
    settled: u64,
    /// All orders of turns in each unit, or one order for a whole run.
    any_order: bool,
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
    fn new(any_order: bool, start: &World, first_units: u64, fault_units: u64) -> Self {
        let first_fault_until_ms = start.now_ms + first_units * UNIT_MS;
        let faults_until_ms = start.now_ms + fault_units * UNIT_MS;
        let settled_ms = faults_until_ms + SETTLE_UNITS * UNIT_MS;
        Self {
            seen: HashSet::new(),
            settled: 0,
            any_order,
            first_fault_until_ms,
            faults_until_ms,
            settled_ms,
        }
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
            if done == 3 {
                world.next_unit();
                open.push((world, order, faults));
            } else if self.any_order {
                for me in (0..3).filter(|me| world.turned & (1 << me) == 0) {
                    let mut next = world.clone();
                    next.turn(me, true);
                    open.push((next, order, faults));
                }
            } else {
                world.turn(ORDERS[order][done], order % 2 == 0);
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
const SETTLE_UNITS: u64 = 2 * TIMEOUT_UNITS + 6;

/// A cluster that has been running for a few units.
fn running() -> World {
    let mut world = World::new(3);
    for _ in 0..5 {
        (0..3).for_each(|me| world.turn(me, true));
        world.next_unit();
    }
    assert!((0..3).all(|me| *world.machine(me).state() == State::Running));
    world
}

#[test]
fn one_fault_while_joining_in_any_order_of_turns() {
    let start = World::new(3);
    let mut explorer = Explorer::new(true, &start, 2, 2);
    explorer.explore(start, 0, 1);
    explorer.report("one fault while joining, any order");
}

#[test]
fn one_fault_while_running_in_any_order_of_turns() {
    let start = running();
    let mut explorer = Explorer::new(true, &start, 1, 1);
    explorer.explore(start, 0, 1);
    explorer.report("one fault while running, any order");
}

/// The second fault may be the end of the first one: resuming, healing, restarting.
#[test]
fn two_faults_at_any_two_moments() {
    let starts = [(World::new(3), 3, 3), (running(), 1, TIMEOUT_UNITS + 5)];
    for (start, first, last) in starts {
        let mut explorer = Explorer::new(false, &start, first, last);
        for order in 0..ORDERS.len() {
            explorer.explore(start.clone(), order, 2);
        }
        explorer.report("two faults");
    }
}
