//! Plays one random history of a larger world: messages take time, threads take time, nodes differ.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use dsm_core::Age;
use dsm_core::protocol::PageState;

use super::coverage::Coverage;
use super::script::{Change, Config, Op};
use super::world::{Action, Envelope, Stance, World};

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    /// Some different numbers below `limit`.
    pub fn some(&mut self, count: usize, limit: u64) -> Vec<u64> {
        let mut chosen = Vec::new();
        while chosen.len() < count.min(limit as usize) {
            let number = self.below(limit);
            if !chosen.contains(&number) {
                chosen.push(number);
            }
        }
        chosen
    }
}

/// How long things take, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A message takes 1 to this.
    pub latency_max: u64,
    /// One node in this many is ten times slower.
    pub slow_one_in: u64,
    /// A thread runs 1 to this between two steps.
    pub run_max: u64,
    /// After this the engine takes a thread to be quiet.
    pub quiet_after: u64,
    /// When the lost node is lost.
    pub loss_at: u64,
    /// After one event in this many a node gives a frame back.
    pub evict_one_in: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    Arrive(u64),
    Step(usize),
    Ran(usize, u8),
    Quiet(usize, u8),
    Change,
    End(usize),
    Learn(usize),
    /// The node opens the region.
    Open(usize),
    /// The node looks after its memory.
    Relieve(usize),
    /// The node looks for stores to walk-shared pages.
    Tick(usize),
}

struct Simulation<'a> {
    config: &'a Config,
    pace: Pace,
    random: Random,
    world: World,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    flying: HashMap<u64, Arc<Envelope>>,
    /// By link, when its last message arrives: the next comes after it where links keep order.
    links: HashMap<(usize, usize), u64>,
    slow: Vec<bool>,
    scheduled: Vec<bool>,
    /// Nodes that will look after their memory.
    relieving: Vec<bool>,
    /// Nodes that will look for stores to walk-shared pages.
    ticking: Vec<bool>,
}

/// Plays `config` to its end; `events_max` bounds it.
pub fn simulate(
    config: &Config,
    pace: Pace,
    seed: u64,
    events_max: usize,
) -> Result<Coverage, String> {
    let mut random = Random(seed);
    let slow = (0..config.nodes()).map(|_| random.one_in(pace.slow_one_in)).collect();
    let mut simulation = Simulation {
        config,
        pace,
        random,
        world: World::new(config),
        now: 0,
        order: 0,
        events: BinaryHeap::new(),
        flying: HashMap::new(),
        links: HashMap::new(),
        slow,
        scheduled: vec![false; config.scripts.len()],
        relieving: vec![false; config.nodes()],
        ticking: vec![false; config.nodes()],
    };
    simulation.run(events_max)?;
    Ok(simulation.world.coverage)
}

impl Simulation<'_> {
    fn run(&mut self, events_max: usize) -> Result<(), String> {
        for _ in &self.config.changes {
            let at = self.random.below(self.pace.loss_at);
            self.at(at, Event::Change);
        }
        self.schedule_threads();
        let mut events = 0;
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            events += 1;
            if events > events_max {
                let frames: Vec<usize> =
                    (0..self.config.nodes()).map(|node| self.frames(node)).collect();
                let (threads, nodes) = (&self.world.threads, self.world.describe());
                return Err(format!(
                    "livelock: not over after {events_max} events\n  threads: {threads:?}\n  \
                     frames: {frames:?}\n{nodes}"
                ));
            }
            self.happen(event)?;
            self.send();
            self.evict()?;
            self.schedule_threads();
            self.schedule_relief();
            self.schedule_ticks();
            for page in std::mem::take(&mut self.world.touched) {
                self.world.check_page_rights(page)?;
            }
            self.world.check_holds(self.config)?;
        }
        for page in (0..self.config.pages).map(dsm_core::Page) {
            self.world.check_page(self.config, page)?;
            self.world.check_hints(self.config, page)?;
        }
        self.world.check_end(self.config)
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + delay, self.order, event)));
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrive(number) => {
                let Some(envelope) = self.flying.remove(&number) else { return Ok(()) };
                let lost = !self.world.nodes[envelope.from.index()].alive;
                if lost && self.random.one_in(2) {
                    return Ok(());
                }
                self.world.touched.clear();
                self.world.deliver(self.config, &envelope)
            }
            Event::Step(thread) => self.step(thread),
            Event::Ran(thread, next) => {
                let state = self.world.threads[thread];
                if state.ran && state.next == next {
                    self.world.apply(self.config, Action::Ran(thread))?;
                }
                Ok(())
            }
            Event::Quiet(thread, next) => {
                let state = self.world.threads[thread];
                if state.quiet && state.next == next {
                    self.world.apply(self.config, Action::Quiet(thread))?;
                }
                Ok(())
            }
            Event::Change => self.change(),
            Event::End(node) => self.world.apply(self.config, Action::End(node)),
            Event::Learn(node) if self.world.can_learn(self.config, node) => {
                let told = self.world.nodes[node].protocol.epoch() as u8;
                let to = told + 1 + self.random.below((self.world.changes - told).into()) as u8;
                self.world.apply(self.config, Action::Learn(node, to))?;
                self.note_recoverable();
                Ok(())
            }
            Event::Learn(_) => Ok(()),
            Event::Open(node) => {
                let numbers = self.world.can_arrive(self.config, node);
                if numbers.is_empty() {
                    return Ok(());
                }
                let number = numbers.start + self.random.below(numbers.len() as u64) as u8;
                self.world.apply(self.config, Action::Arrive(node, number))?;
                self.note_recoverable();
                for _ in number..self.world.changes {
                    let delay = 1 + self.random.below(self.pace.latency_max * 20);
                    self.at(delay, Event::Learn(node));
                }
                Ok(())
            }
            Event::Tick(node) => {
                self.ticking[node] = false;
                self.world.apply(self.config, Action::Tick(node))
            }
            Event::Relieve(node) => {
                self.relieving[node] = false;
                self.relieve(node)
            }
        }
    }

    /// The next change happens, if it can already.
    fn change(&mut self) -> Result<(), String> {
        let next = usize::from(self.world.changes);
        // Some happen earlier than was planned.
        let Some(&change) = self.config.changes.get(next) else { return Ok(()) };
        let soon = 1 + self.random.below(self.pace.latency_max * 20);
        if !self.world.can_change(self.config) {
            self.at(soon, Event::Change);
            return Ok(());
        }
        self.world.change(self.config);
        if let Change::Join(node) = change {
            // Its links are new.
            self.flying.retain(|_, envelope| envelope.from.index() != node);
            self.at(soon, Event::Open(node));
        }
        let recovers = self.config.features.recover;
        for other in (0..self.config.nodes()).filter(|&other| other != change.node()) {
            let delay = 1 + self.random.below(self.pace.latency_max * 20);
            let event = if recovers { Event::Learn } else { Event::End };
            self.at(delay, event(other));
        }
        Ok(())
    }

    fn note_recoverable(&mut self) {
        let (network, flying) = (self.world.network.clone(), self.flying.values());
        self.world.note_recoverable(self.config, network.iter().chain(flying));
    }

    /// A frame goes now and then, as if memory were short.
    fn evict(&mut self) -> Result<(), String> {
        let evictions = u64::from(self.config.evictions);
        if u64::from(self.world.evictions) >= evictions
            || !self.random.one_in(self.pace.evict_one_in)
        {
            return Ok(());
        }
        let node = self.random.below(self.config.nodes() as u64) as usize;
        let page = dsm_core::Page(self.random.below(self.config.pages));
        let age = self.world.nodes[node].protocol.youngest();
        if self.world.can_evict(node, page, age) {
            self.apply_quietly(Action::Evict(node, page, age))?;
            self.send();
        }
        Ok(())
    }

    /// Frames that a node has, and those that it keeps free for others.
    fn frames(&self, node: usize) -> usize {
        let node = &self.world.nodes[node];
        node.memory.count() + node.protocol.room_given() as usize
    }

    /// Nodes that are short of memory, or asked for room, will do something about it, after a while.
    fn schedule_relief(&mut self) {
        for node in 0..self.config.nodes() {
            let protocol = &self.world.nodes[node].protocol;
            let busy = protocol.room_asked().is_some()
                || protocol.is_starved()
                || protocol.room_taken().is_some()
                || self.frames(node) > self.config.share && !protocol.is_asking_room();
            let serves = self.world.nodes[node].alive && !protocol.has_ended();
            if busy && serves && !self.relieving[node] {
                self.relieving[node] = true;
                let factor = if self.slow[node] { 10 } else { 1 };
                let delay = (1 + self.random.below(self.pace.latency_max)) * factor;
                self.at(delay, Event::Relieve(node));
            }
        }
    }

    /// What was stored to walk-shared pages gets about after a while, if nothing else needs it.
    fn schedule_ticks(&mut self) {
        for node in 0..self.config.nodes() {
            let stored = self.world.nodes[node].memory.has_changes();
            if stored && !self.ticking[node] {
                self.ticking[node] = true;
                let delay = 1 + self.random.below(self.pace.latency_max * 5);
                self.at(delay, Event::Tick(node));
            }
        }
    }

    /// What the engine does with the memory of a node, with other choices.
    fn relieve(&mut self, node: usize) -> Result<(), String> {
        let config = self.config;
        let share = config.share;
        if self.world.nodes[node].protocol.has_ended() {
            return Ok(());
        }
        self.world.touched.clear();
        if let Some((_, wanted)) = self.world.nodes[node].protocol.room_asked() {
            self.give_back(node, share.saturating_sub(1), wanted.age)?;
            let frames = u8::from(self.frames(node) < share);
            self.apply_quietly(Action::GiveRoom(node, frames))?;
            return Ok(());
        }
        let age = self.world.nodes[node].protocol.shortage_age();
        self.give_back(node, share, age)?;
        let protocol = &self.world.nodes[node].protocol;
        let moves: Vec<dsm_core::Page> = (0..config.pages)
            .map(dsm_core::Page)
            .filter(|&page| self.world.can_hand_over(node, page))
            .collect();
        let excess = self.frames(node) > share;
        if protocol.room_taken().is_some() {
            let action = match moves.len() as u64 {
                0 => Action::ReturnRoom(node),
                _ if !excess => Action::ReturnRoom(node),
                many => Action::HandOver(node, moves[self.random.below(many) as usize]),
            };
            return self.apply_quietly(action);
        }
        if excess && !moves.is_empty() && !protocol.is_asking_room() {
            let other = self.random.below(config.nodes() as u64 - 1) as usize;
            let other = other + usize::from(other >= node);
            self.apply_quietly(Action::AskRoom(node, other))?;
        }
        if self.world.nodes[node].protocol.is_starved()
            && self.world.nodes[node].memory.count() < config.capacity
        {
            self.apply_quietly(Action::Feed(node))?;
        }
        Ok(())
    }

    /// Frames go until there are no more than `frames`, as far as nothing needs them.
    fn give_back(&mut self, node: usize, frames: usize, age: Age) -> Result<(), String> {
        let first = self.random.below(self.config.pages);
        for at in 0..self.config.pages {
            let page = dsm_core::Page((first + at) % self.config.pages);
            if self.frames(node) > frames && self.world.can_evict(node, page, age) {
                self.apply_quietly(Action::Evict(node, page, age))?;
            }
        }
        Ok(())
    }

    /// Applies an action among others of one event: all pages that they touch are checked.
    fn apply_quietly(&mut self, action: Action) -> Result<(), String> {
        let touched = std::mem::take(&mut self.world.touched);
        self.world.apply(self.config, action)?;
        self.world.touched.extend(touched);
        Ok(())
    }

    fn step(&mut self, thread: usize) -> Result<(), String> {
        self.scheduled[thread] = false;
        let state = self.world.threads[thread];
        match state.stance {
            Stance::Free if !self.world.may_attempt(self.config, thread) => return Ok(()),
            Stance::Free if self.had_better_wait(thread) => return Ok(()),
            Stance::Free => self.world.apply(self.config, Action::Attempt(thread))?,
            Stance::Holding => self.world.apply(self.config, Action::Release(thread))?,
            _ => return Ok(()),
        }
        let next = self.world.threads[thread].next;
        if next != state.next {
            let soon = 1 + self.random.below(self.pace.run_max);
            self.at(soon, Event::Ran(thread, next));
            self.at(self.pace.quiet_after, Event::Quiet(thread, next));
        }
        let more = usize::from(self.world.changes) < self.config.changes.len();
        if self.world.threads[thread].stance == Stance::Restoring && more && self.random.one_in(2) {
            // The next loss comes between.
            let soon = self.random.below(self.pace.latency_max * 3);
            self.at(soon, Event::Change);
        }
        Ok(())
    }

    /// Whether a thread is to restore a page that may yet be lost.
    fn had_better_wait(&mut self, thread: usize) -> bool {
        let (script, next) = (&self.config.scripts[thread], self.world.threads[thread].next);
        let Op::Restore(page, _) = script.ops[usize::from(next)] else { return false };
        let more = usize::from(self.world.changes) < self.config.changes.len()
            || self.world.can_learn(self.config, script.node);
        let lost = self.world.nodes[script.node].protocol.state(page) == PageState::Lost;
        more && !lost && !self.random.one_in(4)
    }

    /// Threads that can go on will, after a while.
    fn schedule_threads(&mut self) {
        for thread in 0..self.world.threads.len() {
            let state = self.world.threads[thread];
            let script = &self.config.scripts[thread];
            let more = usize::from(state.next) < script.ops.len();
            let calm = !(self.config.calm && state.quiet);
            let ready = match state.stance {
                Stance::Free => more && calm && self.world.may_attempt(self.config, thread),
                Stance::Holding => true,
                _ => false,
            };
            if ready && !self.scheduled[thread] {
                self.scheduled[thread] = true;
                let factor = if self.slow[script.node] { 10 } else { 1 };
                let mut delay = (1 + self.random.below(self.pace.run_max)) * factor;
                if matches!(script.ops[usize::from(state.next)], Op::Restore(..)) {
                    // Pages are lost late.
                    delay += self.random.below(self.pace.loss_at);
                }
                self.at(delay, Event::Step(thread));
            }
        }
    }

    /// What was sent is under way.
    fn send(&mut self) {
        for envelope in std::mem::take(&mut self.world.network) {
            let link = (envelope.from.index(), envelope.to.index());
            let factor = if self.slow[link.0] || self.slow[link.1] { 10 } else { 1 };
            let mut delay = (1 + self.random.below(self.pace.latency_max)) * factor;
            if self.config.fifo {
                let last = self.links.entry(link).or_default();
                delay = delay.max((*last + 1).saturating_sub(self.now));
                *last = self.now + delay;
            }
            let number = self.order;
            self.flying.insert(number, envelope);
            self.at(delay, Event::Arrive(number));
        }
    }
}
