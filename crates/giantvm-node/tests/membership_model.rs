//! Explores what can happen to a small cluster, exhaustively for few faults and at random for many.
//! The properties are in `world`: they are checked after every step and at the end.

mod world;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use world::{Fault, TIMEOUT_UNITS, UNIT_MS, World};

/// Units after which whatever a fault sets off is over: the join timeout or a timeout with its
/// margin, twice, because what ends one node can be what the next one has to notice.
const SETTLE_UNITS: u64 = 2 * (TIMEOUT_UNITS + 4) + 2;

/// Depth-first over all choices; a state is entered once for each number of faults left.
struct Explorer {
    seen: HashSet<u64>,
    settled: u64,
    /// All orders of turns in each unit, or one order for a whole run.
    any_order: bool,
    /// Until when faults may happen.
    faults_until_ms: u64,
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl Explorer {
    fn new(any_order: bool, fault_units: u64) -> Self {
        let faults_until_ms = World::new(3).now_ms + fault_units * UNIT_MS;
        Self { seen: HashSet::new(), settled: 0, any_order, faults_until_ms }
    }

    fn explore(&mut self, world: World, order: usize, faults: u32) {
        let mut open = vec![(world, order, faults)];
        while let Some((mut world, order, mut faults)) = open.pop() {
            if world.now_ms >= self.faults_until_ms {
                faults = 0;
            }
            let mut hasher = DefaultHasher::new();
            (&world, order, faults).hash(&mut hasher);
            if !self.seen.insert(hasher.finish()) {
                continue;
            }
            if world.now_ms >= self.faults_until_ms + SETTLE_UNITS * UNIT_MS {
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
                    for upwards in [true, false] {
                        let mut next = world.clone();
                        next.turn(me, upwards);
                        open.push((next, order, faults));
                    }
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

#[test]
fn one_fault_at_any_moment_in_any_order_of_turns() {
    let mut explorer = Explorer::new(true, 5);
    explorer.explore(World::new(3), 0, 1);
    explorer.report("one fault, any order");
}

#[test]
fn two_faults_at_any_two_moments() {
    let mut explorer = Explorer::new(false, 4);
    for order in 0..ORDERS.len() {
        explorer.explore(World::new(3), order, 2);
    }
    explorer.report("two faults");
}
