//! Nodes, network and threads: which events are possible, what they do, and what must hold.

use std::sync::Arc;

use dsm_core::protocol::{Message, Mutation, PageState, Protocol, RoomWanted, Run, Violation};
use dsm_core::{Access, Age, NodeId, Page, ThreadId, Version};

use super::causality::{Causality, WORDS, with_word};
use super::coverage::Coverage;
use super::fingerprint::fingerprint;
use super::memory::{Mapping, Memory, Turn, UNFIT};
use super::script::{Config, Op, Use};

/// Added to a thread's number for the holds it takes.
pub const HOLDS: u32 = 1000;

/// A machine with its memory.
#[derive(Clone)]
pub struct Node {
    pub protocol: Protocol,
    pub memory: Memory,
    pub alive: bool,
    /// How many processes of it have joined.
    pub life: u8,
    /// Of the protocol and the memory; kept, since most events change one node.
    fingerprint: u128,
    /// Messages that wait until reports of this node are in force, up to a number.
    pub held: Vec<(u64, Arc<Envelope>)>,
    /// To tell repeated messages: the highest request number, and the last invalidation by page.
    last_seq: u32,
    invalidated: Vec<Version>,
}

impl Node {
    /// At its start.
    pub fn new(config: &Config, index: usize) -> Self {
        let mut node = Self {
            protocol: Protocol::new(config.settings(index)).after(&config.epoch(0)),
            memory: Memory::new(config.pages, &config.tables, config.capacity),
            alive: true,
            life: 0,
            fingerprint: 0,
            held: Vec::new(),
            last_seq: 0,
            invalidated: vec![Version::ZERO; config.pages as usize],
        };
        node.memory.recovers = config.features.recover;
        node.fingerprint = fingerprint(&(&node.protocol, &node.memory));
        node
    }

    fn ends(&self) -> bool {
        self.alive && !self.protocol.has_ended()
    }
}

/// A message under way.
#[derive(Debug)]
pub struct Envelope {
    pub from: NodeId,
    pub to: NodeId,
    /// That of the sender.
    pub epoch: u16,
    pub message: Message,
    pub payload: Vec<u64>,
    fingerprint: u128,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stance {
    /// Can try its next step.
    Free,
    /// Faulted, and waits.
    Blocked(Page, Access),
    /// Waits for a hold.
    Gathering,
    /// Has a hold.
    Holding,
    /// Waits for pages to be restored.
    Restoring,
    /// Ended by a lost page.
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Thread {
    pub next: u8,
    pub stance: Stance,
    /// It has run, and the machine has not been told.
    pub ran: bool,
    /// It has faulted since its last episode ended.
    pub open: bool,
    /// Its instruction has retired: the episode may be ended.
    pub quiet: bool,
}

/// Something that may happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The message at this place arrives.
    Deliver(usize),
    /// The message of the lost node at this place does not arrive.
    Drop(usize),
    /// The thread tries its next step.
    Attempt(usize),
    /// The machine learns that the thread has run.
    Ran(usize),
    /// The machine learns that the thread is quiet.
    Quiet(usize),
    /// The thread lets go of its hold.
    Release(usize),
    /// The next change happens: a node vanishes, or may open the region.
    Change,
    /// The node, which has joined, opens the region, and has been told of so many changes.
    Arrive(usize, u8),
    /// The node learns of the loss, and its region ends.
    End(usize),
    /// The node learns of so many changes, and goes on.
    Learn(usize, u8),
    /// The node gives a frame back, for the sake of something of this age.
    Evict(usize, Page, Age),
    /// The first node asks the second for room.
    AskRoom(usize, usize),
    /// The node answers who asked it first, with so many frames.
    GiveRoom(usize, u8),
    /// The node hands the page over to one that has given it room.
    HandOver(usize, Page),
    /// The node gives back the room that it was given.
    ReturnRoom(usize),
    /// Pages of the node that found no frame try again.
    Feed(usize),
    /// The node looks for stores to walk-shared pages.
    Tick(usize),
}

#[derive(Clone)]
pub struct World {
    pub nodes: Vec<Arc<Node>>,
    pub threads: Vec<Thread>,
    pub network: Vec<Arc<Envelope>>,
    /// What the last write that retired stored.
    pub latest: Vec<u64>,
    /// Where pages may be walk-shared.
    pub causality: Option<Causality>,
    pub lost: bool,
    /// How many changes have happened.
    pub changes: u8,
    /// Where survivors go on: pages that must be recovered, and that must not be, if either holds.
    pub recoverable: Vec<Option<bool>>,
    pub evictions: u32,
    pub room_asked: u32,
    /// Pages touched by the last event.
    pub touched: Vec<Page>,
    pub coverage: Coverage,
}

impl World {
    pub fn new(config: &Config) -> Self {
        let nodes = (0..config.nodes())
            .map(|index| {
                Arc::new(Node { alive: !config.is_late(index), ..Node::new(config, index) })
            })
            .collect();
        let thread =
            Thread { next: 0, stance: Stance::Free, ran: false, open: false, quiet: false };
        Self {
            nodes,
            threads: vec![thread; config.scripts.len()],
            network: Vec::new(),
            latest: vec![0; config.pages as usize],
            causality: (config.features.walk_shared)
                .map(|_| Causality::new(config.nodes(), config.pages)),
            lost: false,
            changes: 0,
            recoverable: vec![Some(true); config.pages as usize],
            evictions: 0,
            room_asked: 0,
            touched: Vec::new(),
            coverage: Coverage::default(),
        }
    }

    /// Equal for equal states; the order of messages under way counts only where it must.
    pub fn fingerprint(&self, config: &Config) -> u128 {
        let mut sum = 0u128;
        for (at, envelope) in self.network.iter().enumerate() {
            let place = if config.fifo { self.ahead(at) } else { 0 };
            sum = sum.wrapping_add(fingerprint(&(envelope.fingerprint, place)));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let process = (node.fingerprint, node.alive, node.life);
            sum = sum.wrapping_add(fingerprint(&(process, index)));
            for (at, (after, envelope)) in node.held.iter().enumerate() {
                sum = sum.wrapping_add(fingerprint(&(after, envelope.fingerprint, at)));
            }
        }
        let Self { threads, latest, causality, lost, evictions, room_asked, .. } = self;
        let changes = (lost, self.changes, &self.recoverable);
        fingerprint(&(sum, threads, latest, causality, changes, evictions, room_asked))
    }

    /// Messages that have not arrived.
    pub fn under_way(&self) -> impl Iterator<Item = &Arc<Envelope>> {
        let held = self.nodes.iter().flat_map(|node| node.held.iter().map(|(_, held)| held));
        self.network.iter().chain(held)
    }

    /// How many messages of the same link are ahead of that at `at`.
    fn ahead(&self, at: usize) -> usize {
        let this = &self.network[at];
        self.network[..at].iter().filter(|e| e.from == this.from && e.to == this.to).count()
    }

    /// Everything that may happen next.
    pub fn actions(&self, config: &Config, actions: &mut Vec<Action>) {
        actions.clear();
        for (at, envelope) in self.network.iter().enumerate() {
            let twin =
                self.network[..at].iter().any(|other| other.fingerprint == envelope.fingerprint);
            if twin || config.fifo && self.ahead(at) > 0 {
                continue;
            }
            actions.push(Action::Deliver(at));
            if !self.nodes[envelope.from.index()].alive {
                actions.push(Action::Drop(at));
            }
        }
        for (index, (thread, script)) in self.threads.iter().zip(&config.scripts).enumerate() {
            let more = usize::from(thread.next) < script.ops.len();
            let calm = !(config.calm && thread.quiet);
            let free = thread.stance == Stance::Free && more;
            if free && calm && self.may_attempt(config, index) {
                actions.push(Action::Attempt(index));
            }
            if thread.ran {
                actions.push(Action::Ran(index));
            }
            if thread.quiet {
                actions.push(Action::Quiet(index));
            }
            if thread.stance == Stance::Holding {
                actions.push(Action::Release(index));
            }
        }
        if self.can_change(config) {
            actions.push(Action::Change);
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for number in self.can_arrive(config, index) {
                actions.push(Action::Arrive(index, number));
            }
            if self.can_learn(config, index) {
                let told = node.protocol.epoch() as u8;
                actions.extend((told + 1..=self.changes).map(|to| Action::Learn(index, to)));
            } else if self.lost && !config.features.recover && node.ends() {
                actions.push(Action::End(index));
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            if node.alive && !node.protocol.has_ended() && node.memory.has_changes() {
                actions.push(Action::Tick(index));
            }
        }
        self.room_actions(config, actions);
        if self.evictions < config.evictions {
            for index in 0..self.nodes.len() {
                let pages = (0..config.pages).map(Page).filter(|&page| {
                    self.can_evict(index, page, self.nodes[index].protocol.shortage_age())
                });
                let age = self.nodes[index].protocol.shortage_age();
                actions.extend(pages.map(|page| Action::Evict(index, page, age)));
            }
        }
    }

    /// What nodes that have too much, or have room, may do.
    fn room_actions(&self, config: &Config, actions: &mut Vec<Action>) {
        if config.hand_overs == 0 {
            return;
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let pages = (0..config.pages).map(Page);
            if node.protocol.room_asked().is_some() {
                actions.push(Action::GiveRoom(index, 1));
            }
            if node.protocol.room_taken().is_some() {
                actions.push(Action::ReturnRoom(index));
                let goes = pages.clone().filter(|&page| self.can_hand_over(index, page));
                actions.extend(goes.map(|page| Action::HandOver(index, page)));
            }
            let owns = pages.clone().any(|page| node.protocol.owns(page));
            let forced = config.mutation == Some(Mutation::HandOverWithoutRoom);
            if forced {
                let goes = pages.filter(|&page| self.can_hand_over(index, page));
                actions.extend(goes.map(|page| Action::HandOver(index, page)));
            }
            if owns && self.room_asked < config.hand_overs && !node.protocol.has_ended() {
                let others = (0..config.nodes()).filter(|&other| other != index);
                actions.extend(others.map(|other| Action::AskRoom(index, other)));
            }
        }
    }

    /// Whether the node owns `page`, with a frame, and nothing there needs it.
    pub fn can_hand_over(&self, node: usize, page: Page) -> bool {
        let Node { protocol, memory, alive, .. } = &*self.nodes[node];
        *alive
            && memory.present[page.0 as usize]
            && protocol.may_hand_over(page, protocol.shortage_age())
    }

    /// Whether the node has a frame for `page`, and nothing there needs it.
    pub fn can_evict(&self, node: usize, page: Page, age: Age) -> bool {
        let Node { protocol, memory, alive, .. } = &*self.nodes[node];
        *alive
            && memory.present[page.0 as usize]
            && protocol.may_evict(page, age)
            && protocol.is_dispensable(page)
    }

    /// Lets `action` happen, and checks what it did.
    pub fn apply(&mut self, config: &Config, action: Action) -> Result<(), String> {
        self.touched.clear();
        match action {
            Action::Deliver(at) => {
                let envelope = self.network.remove(at);
                self.deliver(config, &envelope)?;
            }
            Action::Drop(at) => {
                self.network.remove(at);
            }
            Action::Attempt(thread) => self.attempt(config, thread)?,
            Action::Ran(thread) => {
                self.threads[thread].ran = false;
                self.turn(config, config.scripts[thread].node, &[], |protocol, fx| {
                    protocol.thread_ran(ThreadId(thread as u32), fx);
                    Ok(())
                })?;
            }
            Action::Quiet(thread) => {
                self.threads[thread].ran = false;
                self.threads[thread].open = false;
                self.threads[thread].quiet = false;
                self.turn(config, config.scripts[thread].node, &[], |protocol, fx| {
                    protocol.thread_quiet(ThreadId(thread as u32), fx);
                    Ok(())
                })?;
            }
            Action::Release(thread) => self.release_hold(config, thread)?,
            Action::Change => self.change(config),
            Action::Arrive(node, number) => self.arrive(config, node, number)?,
            Action::Learn(node, number) => self.learn(config, node, number)?,
            Action::End(node) => {
                self.turn(config, node, &[], |protocol, fx| {
                    protocol.end(fx);
                    Ok(())
                })?;
                self.network.retain(|envelope| envelope.to.index() != node);
                Arc::make_mut(&mut self.nodes[node]).held.clear();
            }
            Action::Tick(node) => self.turn(config, node, &[], |protocol, fx| {
                protocol.walk_tick(fx);
                Ok(())
            })?,
            Action::Evict(node, page, age) => {
                self.evictions += 1;
                self.coverage.evicted_copies +=
                    u64::from(self.nodes[node].memory.allows(page, Access::Read));
                self.turn(config, node, &[], |protocol, fx| {
                    protocol.evict(page, age, fx);
                    Ok(())
                })?;
            }
            Action::AskRoom(node, other) => {
                self.room_asked += 1;
                let other = NodeId::new(other).ok_or("harness: no such node")?;
                self.turn(config, node, &[], |protocol, fx| {
                    let age = protocol.shortage_age();
                    let wanted = RoomWanted { frames: 1, pressing: false, age };
                    protocol.ask_room(other, wanted, fx);
                    Ok(())
                })?;
            }
            Action::GiveRoom(node, frames) => self.turn(config, node, &[], |protocol, fx| {
                if let Some((asker, _)) = protocol.room_asked() {
                    protocol.give_room(asker, frames, fx);
                }
                Ok(())
            })?,
            Action::HandOver(node, page) => self.turn(config, node, &[], |protocol, fx| {
                // Only a machine with a seeded mistake does so without room.
                let anybody = NodeId::new(usize::from(node == 0));
                let to = protocol.room_taken().map(|(to, _)| to).or(anybody);
                if let Some(to) = to {
                    protocol.hand_over(&[page], to, protocol.shortage_age(), fx);
                }
                Ok(())
            })?,
            Action::Feed(node) => self.turn(config, node, &[], |protocol, fx| {
                protocol.feed(fx);
                Ok(())
            })?,
            Action::ReturnRoom(node) => self.turn(config, node, &[], |protocol, fx| {
                if let Some((to, _)) = protocol.room_taken() {
                    protocol.return_room(to, fx);
                }
                Ok(())
            })?,
        }
        Ok(())
    }

    pub fn deliver(&mut self, config: &Config, envelope: &Envelope) -> Result<(), String> {
        let to = envelope.to.index();
        if !self.nodes[to].alive {
            return Ok(());
        }
        let sent = self.network.len();
        self.count_recovery(envelope);
        self.turn(config, to, &envelope.payload, |protocol, fx| {
            protocol.receive_in(envelope.from, envelope.epoch, envelope.message.clone(), fx)
        })?;
        if let Message::Invalidate(invalidate) = &envelope.message
            && !self.nodes[to].protocol.has_ended()
        {
            let acknowledged = self.network[sent.min(self.network.len())..].iter().any(
                |e| matches!(e.message, Message::InvalidateAck(ack) if ack.page == invalidate.page),
            );
            self.coverage.deferred += u64::from(!acknowledged);
        }
        Ok(())
    }

    fn attempt(&mut self, config: &Config, index: usize) -> Result<(), String> {
        let script = &config.scripts[index];
        let op = &script.ops[usize::from(self.threads[index].next)];
        match op {
            Op::Access(uses) => {
                let memory = &self.nodes[script.node].memory;
                let missing = uses.iter().find(|(page, how)| !memory.allows(*page, how.access()));
                match missing {
                    None => self.retire(index, script.node, uses)?,
                    Some((page, _)) if memory.mapping(*page) == Mapping::Poisoned => {
                        self.bury(config, index)?;
                    }
                    Some(&(page, how)) => self.fault(config, index, page, how.access())?,
                }
            }
            Op::Hold(pages, access) => {
                self.threads[index].stance = Stance::Gathering;
                self.turn(config, script.node, &[], |protocol, fx| {
                    protocol.hold(ThreadId(index as u32 + HOLDS), pages, *access, fx);
                    Ok(())
                })?;
            }
            Op::Prefetch(pages) => {
                self.threads[index].next += 1;
                self.turn(config, script.node, &[], |protocol, fx| {
                    protocol.prefetch(pages, fx);
                    Ok(())
                })?;
            }
            Op::Restore(first, pages) => {
                self.begin_restore(config, index, Run { first: *first, pages: *pages })?;
            }
        }
        Ok(())
    }

    fn fault(
        &mut self,
        config: &Config,
        index: usize,
        page: Page,
        access: Access,
    ) -> Result<(), String> {
        self.coverage.faults += 1;
        let thread = &mut self.threads[index];
        thread.stance = Stance::Blocked(page, access);
        (thread.ran, thread.open, thread.quiet) = (false, true, false);
        self.turn(config, config.scripts[index].node, &[], |protocol, fx| {
            protocol.fault(ThreadId(index as u32), page, access, fx);
            Ok(())
        })
    }

    /// All rights are there: the instruction happens.
    fn retire(&mut self, index: usize, node: usize, uses: &[(Page, Use)]) -> Result<(), String> {
        let thread = &mut self.threads[index];
        let value = (index as u64 + 1) << 16 | (u64::from(thread.next) + 1);
        thread.next += 1;
        thread.ran |= thread.open && !thread.quiet;
        thread.quiet = thread.open;
        self.coverage.retired += 1;
        for &(page, how) in uses {
            self.check_sight(node, page, how)?;
            match how {
                Use::Write => self.store(node, page, value),
                Use::Store(word) => self.store_word(node, page, word, value),
                Use::Spoil => self.store_word(node, page, 0, value | UNFIT),
                Use::Read | Use::Walk => {}
            }
        }
        Ok(())
    }

    /// What an instruction sees of a page that it uses.
    fn check_sight(&mut self, node: usize, page: Page, how: Use) -> Result<(), String> {
        let shared = self.nodes[node].protocol.state(page) == PageState::WalkShared;
        if !shared {
            self.check_latest(node, page)?;
        }
        let Node { memory, .. } = &*self.nodes[node];
        let value = memory.frame(page);
        let table = memory.tables[page.0 as usize];
        match &mut self.causality {
            Some(causality) if table => causality.sees(node, page, value),
            Some(causality) => {
                causality.ordinary(node, page, !matches!(how, Use::Read | Use::Walk));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn store_word(&mut self, node: usize, page: Page, index: u16, value: u64) {
        assert!(index < WORDS, "a page of the model has fewer words");
        if self.nodes[node].memory.tables[page.0 as usize]
            && let Some(causality) = &mut self.causality
        {
            causality.stores(node, page, index, value);
        }
        let latest = with_word(self.latest[page.0 as usize], index, value);
        let frame = with_word(self.nodes[node].memory.frame(page), index, value);
        self.store(node, page, frame);
        self.latest[page.0 as usize] = latest;
    }

    pub(super) fn check_latest(&self, node: usize, page: Page) -> Result<(), String> {
        let (found, latest) = (self.nodes[node].memory.frame(page), self.latest[page.0 as usize]);
        if found == latest {
            return Ok(());
        }
        Err(format!("latest write: node {node} sees {found:#x} in {page:?}, not {latest:#x}"))
    }

    fn store(&mut self, node: usize, page: Page, value: u64) {
        let node = Arc::make_mut(&mut self.nodes[node]);
        node.memory.frames[page.0 as usize] = value;
        node.fingerprint = fingerprint(&(&node.protocol, &node.memory));
        self.latest[page.0 as usize] = value;
        self.touched.push(page);
    }

    pub fn kill(&mut self, index: usize) {
        self.coverage.poisoned += 1;
        let thread = &mut self.threads[index];
        thread.stance = Stance::Dead;
        (thread.ran, thread.quiet) = (false, false);
    }

    fn release_hold(&mut self, config: &Config, index: usize) -> Result<(), String> {
        let node = config.scripts[index].node;
        let Op::Hold(pages, access) =
            &config.scripts[index].ops[usize::from(self.threads[index].next)]
        else {
            return Err("harness: released what is no hold".to_owned());
        };
        let pages = || pages.iter().copied().filter(|page| page.0 < config.pages);
        let value = (index as u64 + 1) << 16 | (u64::from(self.threads[index].next) + 1);
        let poisoned = |page| self.nodes[node].memory.mapping(page) == Mapping::Poisoned;
        if pages().any(poisoned) {
            return self.bury(config, index);
        }
        for page in pages() {
            self.check_latest(node, page)?;
            if *access == Access::Write {
                self.store(node, page, value);
            }
        }
        self.threads[index].next += 1;
        self.threads[index].stance = Stance::Free;
        self.coverage.retired += 1;
        self.turn(config, node, &[], |protocol, fx| {
            protocol.thread_quiet(ThreadId(index as u32 + HOLDS), fx);
            Ok(())
        })
    }

    pub(super) fn lose(&mut self, config: &Config, node: usize) {
        self.lost = true;
        // It may be lost before it has opened the region.
        let life = self.nodes[node].life + u8::from(!self.nodes[node].alive);
        Arc::make_mut(&mut self.nodes[node]).alive = false;
        Arc::make_mut(&mut self.nodes[node]).held.clear();
        self.network.retain(|envelope| envelope.to.index() != node);
        for (index, script) in config.scripts.iter().enumerate() {
            if script.node == node && script.life == life {
                let thread = &mut self.threads[index];
                thread.stance = Stance::Dead;
                (thread.ran, thread.quiet) = (false, false);
            }
        }
    }

    /// One event at one machine, with all that follows from it at once.
    pub fn turn(
        &mut self,
        config: &Config,
        index: usize,
        payload: &[u64],
        event: impl FnOnce(&mut Protocol, &mut Turn<'_>) -> Result<(), Violation>,
    ) -> Result<(), String> {
        let node = Arc::make_mut(&mut self.nodes[index]);
        let before = *node.protocol.counters();
        let mut turn = Turn::new(&mut node.memory, payload);
        event(&mut node.protocol, &mut turn)
            .map_err(|violation| format!("violation: {violation}"))?;
        let after = flush(&mut node.protocol, &mut turn);
        let Turn { sent, installed, poisoned, restored, touched, wrong, .. } = turn;
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        self.coverage.add_counters(&before, node.protocol.counters());
        let ready = node.protocol.take_ready();
        let failed = node.protocol.take_failed();
        let outcome = node.protocol.take_restored();
        for page in restored {
            self.latest[page.0 as usize] = node.memory.frame(page);
        }
        node.memory.staged = node.memory.staged.filter(|_| outcome.is_none());
        self.touched.extend(touched);
        self.wake(config, index, &installed, &ready, poisoned);
        for ((to, message, payload), after) in sent.into_iter().zip(after) {
            self.post(config, index, to, message, payload, after);
        }
        self.release(index);
        let node = Arc::make_mut(&mut self.nodes[index]);
        node.fingerprint = fingerprint(&(&node.protocol, &node.memory));
        outcome.map_or(Ok(()), |outcome| self.end_restore(config, index, outcome))?;
        failed.into_iter().try_for_each(|hold| self.bury(config, (hold.0 - HOLDS) as usize))
    }

    fn wake(
        &mut self,
        config: &Config,
        node: usize,
        installed: &[(Page, Access)],
        ready: &[ThreadId],
        poisoned: bool,
    ) {
        let ended = self.nodes[node].protocol.has_ended();
        for index in 0..self.threads.len() {
            if config.scripts[index].node != node {
                continue;
            }
            match self.threads[index].stance {
                Stance::Blocked(page, _)
                    if poisoned && self.nodes[node].memory.mapping(page) == Mapping::Poisoned =>
                {
                    self.kill(index);
                }
                Stance::Blocked(page, access)
                    if installed.iter().any(|&(p, right)| p == page && right >= access) =>
                {
                    self.threads[index].stance = Stance::Free;
                }
                Stance::Gathering if ready.contains(&ThreadId(index as u32 + HOLDS)) => {
                    self.coverage.holds += 1;
                    self.threads[index].stance = Stance::Holding;
                }
                Stance::Gathering if ended => self.kill(index),
                _ => {}
            }
        }
    }

    fn post(
        &mut self,
        config: &Config,
        index: usize,
        to: NodeId,
        message: Message,
        payload: Vec<u64>,
        after: Option<u64>,
    ) {
        let node = Arc::make_mut(&mut self.nodes[index]);
        match &message {
            Message::Request(request) if request.requester.index() == index => {
                if request.seq <= node.last_seq && request.via.is_empty() {
                    self.coverage.hurried_requests += 1;
                }
                node.last_seq = node.last_seq.max(request.seq);
            }
            Message::Invalidate(invalidate) => {
                let last = &mut node.invalidated[invalidate.page.0 as usize];
                let others = self.network.iter().any(|e| {
                    e.to != to
                        && e.from.index() == index
                        && matches!(e.message, Message::Invalidate(i) if i == *invalidate)
                });
                if *last == invalidate.version && !others {
                    self.coverage.hurried_invalidations += 1;
                }
                *last = invalidate.version;
            }
            Message::Grant(grant) => self.coverage.handed_over += grant.waiters.len() as u64,
            _ => {}
        }
        let gone = &self.nodes[to.index()];
        if !gone.alive || gone.protocol.has_ended() || to.index() >= config.nodes() {
            return;
        }
        let from = NodeId::new(index).expect("a node of the cluster");
        let epoch = self.nodes[index].protocol.epoch();
        if gone.protocol.ignores(from, epoch, &message) {
            return;
        }
        let fingerprint = fingerprint(&(from, to, epoch, &message, &payload));
        let envelope = Arc::new(Envelope { from, to, epoch, message, payload, fingerprint });
        match after {
            Some(number) => {
                self.coverage.walk_waited += 1;
                Arc::make_mut(&mut self.nodes[index]).held.push((number, envelope));
            }
            None => self.network.push(envelope),
        }
    }

    /// Lets go what has waited for reports that are in force now.
    fn release(&mut self, index: usize) {
        let node = Arc::make_mut(&mut self.nodes[index]);
        let in_force = node.protocol.in_force();
        let ready = node.held.iter().take_while(|(number, _)| *number <= in_force).count();
        self.network.extend(node.held.drain(..ready).map(|(_, envelope)| envelope));
    }
}

/// Looks for stores to walk-shared pages, as long as there are messages that need it. Says for each
/// message which report it has to wait for.
fn flush(protocol: &mut Protocol, turn: &mut Turn<'_>) -> Vec<Option<u64>> {
    let mut after = Vec::new();
    while after.len() < turn.sent.len() {
        let new = turn.sent[after.len()..].iter();
        let waits: Vec<bool> = new.map(|(_, message, _)| message.waits_for_flush()).collect();
        let number = if waits.contains(&true) { protocol.flush(turn) } else { None };
        after.extend(waits.into_iter().map(|waits| number.filter(|_| waits)));
    }
    after
}
