//! What a program may do: the abstract machine of x86-TSO, run through all its interleavings.
//!
//! Sewell et al., CACM 53(7), section 3: each thread has a queue of its stores, from which it reads
//! its own latest, and whose oldest may reach memory at any time; locked instructions and fences
//! wait until their thread's queue is empty.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use crate::program::{Op, Outcome, Place, Program};

/// A memory model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Model {
    /// Stores reach memory at once.
    SequentialConsistency,
    X86Tso,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    done: Vec<usize>,
    queues: Vec<VecDeque<(Place, u64)>>,
    memory: BTreeMap<Place, u64>,
    read: Vec<Vec<u64>>,
}

/// All outcomes that `model` allows.
pub(crate) fn outcomes(program: &Program, model: Model) -> BTreeSet<Outcome> {
    let threads = program.threads.len();
    let mut frontier = vec![State {
        done: vec![0; threads],
        queues: vec![VecDeque::new(); threads],
        memory: program.places().into_iter().map(|place| (place, 0)).collect(),
        read: vec![Vec::new(); threads],
    }];
    let mut seen = HashSet::new();
    let mut outcomes = BTreeSet::new();
    while let Some(state) = frontier.pop() {
        if !seen.insert(state.clone()) {
            continue;
        }
        let mut ended = true;
        for thread in 0..threads {
            if let Some(&op) = program.threads[thread].get(state.done[thread]) {
                ended = false;
                frontier.extend(state.step(thread, op, model));
            }
            if !state.queues[thread].is_empty() {
                ended = false;
                frontier.push(state.drain(thread));
            }
        }
        if ended {
            outcomes
                .insert(Outcome { read: state.read, last: state.memory.into_values().collect() });
        }
    }
    outcomes
}

impl State {
    /// The next instruction of `thread`; `None` while it has to wait.
    fn step(&self, thread: usize, op: Op, model: Model) -> Option<Self> {
        let mut next = self.clone();
        next.done[thread] += 1;
        let latest = |place: Place| {
            let own = self.queues[thread].iter().rev().find(|(stored, _)| *stored == place);
            own.map_or(self.memory[&place], |&(_, value)| value)
        };
        let locked = !matches!(op, Op::Load(_) | Op::Store(..));
        if locked && !self.queues[thread].is_empty() {
            return None;
        }
        if let Some(place) = op.place()
            && op.reads()
        {
            next.read[thread].push(latest(place));
        }
        match op {
            Op::Store(place, value) if model == Model::X86Tso => {
                next.queues[thread].push_back((place, value));
            }
            Op::Store(place, value) | Op::Exchange(place, value) => {
                next.memory.insert(place, value);
            }
            Op::Add(place, value) => {
                next.memory.insert(place, latest(place) + value);
            }
            Op::Load(_) | Op::Fence => {}
        }
        Some(next)
    }

    /// The oldest store of `thread` reaches memory.
    fn drain(&self, thread: usize) -> Self {
        let mut next = self.clone();
        if let Some((place, value)) = next.queues[thread].pop_front() {
            next.memory.insert(place, value);
        }
        next
    }
}

#[test]
fn the_model_judges_as_the_literature_does() {
    use crate::program::{Judgement, PROGRAMS};
    for program in PROGRAMS {
        let [sequential, tso] =
            [Model::SequentialConsistency, Model::X86Tso].map(|model| outcomes(program, model));
        assert!(sequential.is_subset(&tso), "{}", program.name);
        assert!(!sequential.iter().any(program.suspect), "{}", program.name);
        let allowed = tso.iter().any(program.suspect);
        assert_eq!(allowed, program.judgement == Judgement::Relaxed, "{}", program.name);
    }
}
