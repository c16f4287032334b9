//! Explores every history of a world, breadth first, so that a counterexample is a shortest one.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hash::BuildHasherDefault;

use dsm_core::Page;

use super::coverage::Coverage;
use super::fingerprint::Identity;
use super::script::Config;
use super::world::{Action, World};

/// What an exploration found.
pub struct Report {
    pub states: usize,
    pub transitions: usize,
    pub coverage: Coverage,
    pub failure: Option<Failure>,
    /// Whether all states were seen.
    pub complete: bool,
}

/// A property that does not hold, and how to get there.
pub struct Failure {
    pub what: String,
    pub history: String,
}

struct Graph {
    ids: HashMap<u128, u32, BuildHasherDefault<Identity>>,
    /// By state: the state it was found from, and the number of the action.
    parents: Vec<(u32, u16)>,
    /// By state: where its successors begin.
    starts: Vec<u32>,
    successors: Vec<u32>,
    terminal: Vec<u32>,
}

/// Explores `config`, up to `states_max` states.
pub fn explore(config: &Config, states_max: usize) -> Report {
    let mut graph = Graph {
        ids: HashMap::default(),
        parents: vec![(0, 0)],
        starts: Vec::new(),
        successors: Vec::new(),
        terminal: Vec::new(),
    };
    let mut coverage = Coverage::default();
    let root = World::new(config);
    graph.ids.insert(root.fingerprint(config), 0);
    let mut frontier = VecDeque::from([root]);
    let mut actions = Vec::new();
    let mut complete = true;
    while let Some(world) = frontier.pop_front() {
        let id = graph.starts.len() as u32;
        graph.starts.push(graph.successors.len() as u32);
        world.actions(config, &mut actions);
        if actions.is_empty() {
            if let Err(what) = world.check_end(config) {
                return fail(config, &graph, id, None, what, coverage);
            }
            graph.terminal.push(id);
        }
        for (number, &action) in actions.iter().enumerate() {
            let mut next = world.clone();
            let result = next.apply(config, action).and_then(|()| check(config, &next));
            coverage.max(&next.coverage);
            if let Err(what) = result {
                return fail(config, &graph, id, Some(number as u16), what, coverage);
            }
            let fresh = graph.ids.len() as u32;
            let known = *graph.ids.entry(next.fingerprint(config)).or_insert(fresh);
            graph.successors.push(known);
            if known == fresh {
                graph.parents.push((id, number as u16));
                frontier.push_back(next);
            }
        }
        if graph.ids.len() > states_max {
            complete = false;
            break;
        }
    }
    if complete && let Some(trapped) = trapped(&graph) {
        let what = "livelock: no way from here to the end".to_owned();
        return fail(config, &graph, trapped, None, what, coverage);
    }
    let (states, transitions) = (graph.ids.len(), graph.successors.len());
    Report { states, transitions, coverage, failure: None, complete }
}

fn check(config: &Config, world: &World) -> Result<(), String> {
    for page in (0..config.pages).map(Page) {
        world.check_page(config, page)?;
        world.check_hints(config, page)?;
    }
    world.check_holds(config)
}

/// A state from which no terminal state can be reached: AG EF done does not hold.
fn trapped(graph: &Graph) -> Option<u32> {
    let states = graph.starts.len();
    let mut counts = vec![0u32; states + 1];
    for &to in &graph.successors {
        counts[to as usize + 1] += 1;
    }
    for at in 0..states {
        counts[at + 1] += counts[at];
    }
    let begins = counts.clone();
    let mut sources = vec![0u32; graph.successors.len()];
    for from in 0..states {
        let end = graph.starts.get(from + 1).map_or(graph.successors.len(), |&end| end as usize);
        for &to in &graph.successors[graph.starts[from] as usize..end] {
            sources[counts[to as usize] as usize] = from as u32;
            counts[to as usize] += 1;
        }
    }
    let mut reaches = vec![false; states];
    let mut stack = graph.terminal.clone();
    while let Some(state) = stack.pop() {
        if std::mem::replace(&mut reaches[state as usize], true) {
            continue;
        }
        let range = begins[state as usize] as usize..begins[state as usize + 1] as usize;
        stack.extend(sources[range].iter().filter(|&&from| !reaches[from as usize]));
    }
    reaches.iter().position(|&reaches| !reaches).map(|state| state as u32)
}

fn fail(
    config: &Config,
    graph: &Graph,
    state: u32,
    last: Option<u16>,
    what: String,
    coverage: Coverage,
) -> Report {
    let mut numbers: Vec<u16> = last.into_iter().collect();
    let mut at = state;
    while at != 0 {
        let (parent, number) = graph.parents[at as usize];
        numbers.push(number);
        at = parent;
    }
    numbers.reverse();
    Report {
        states: graph.ids.len(),
        transitions: graph.successors.len(),
        coverage,
        failure: Some(Failure { what, history: history(config, &numbers) }),
        complete: false,
    }
}

/// The actions and messages of a history, one a line.
fn history(config: &Config, numbers: &[u16]) -> String {
    let mut world = World::new(config);
    let mut actions = Vec::new();
    let mut text = String::new();
    for &number in numbers {
        world.actions(config, &mut actions);
        let action = actions[usize::from(number)];
        let _ = match action {
            Action::Deliver(at) | Action::Drop(at) => {
                let envelope = &world.network[at];
                writeln!(
                    text,
                    "  {action:?} {:?} -> {:?}: {:?} {:x?}",
                    envelope.from, envelope.to, envelope.message, envelope.payload
                )
            }
            Action::Attempt(thread) => {
                let script = &config.scripts[thread];
                let op = &script.ops[usize::from(world.threads[thread].next)];
                writeln!(text, "  {action:?} at node {}: {op:?}", script.node)
            }
            _ => writeln!(text, "  {action:?}"),
        };
        if let Err(what) = world.apply(config, action) {
            let _ = writeln!(text, "  => {what}");
        }
    }
    let _ = writeln!(text, "  under way: {:?}", world.network);
    let _ = writeln!(text, "  threads: {:?}", world.threads);
    text
}
