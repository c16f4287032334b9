//! A small world for memberships: nodes, ordered links that can be cut, processes that can be
//! killed, stopped or late. It checks safety after every single step.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::{BTreeMap, VecDeque};

use giantvm_node::control::{ControlMessage, MemberMessage};
use giantvm_node::limits::STOP_MS;
use giantvm_node::membership::{Action, Config, EndReason, Event, Membership, State};

use dsm_core::types::{Epoch, NodeId, NodeSet};

/// One unit of the world's time: the interval between heartbeats.
pub(crate) const UNIT_MS: u64 = 100;
pub(crate) const TIMEOUT_UNITS: u64 = 6;

pub(crate) fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Body {
    Up,
    Message(MemberMessage),
    End,
}

/// The incarnations of the two ends: the lower node's first.
type Connection = (u64, u64);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Process {
    machine: Membership,
    incarnation: u64,
    alive: bool,
    stopped: bool,
    /// Whether it was stopped and has made no step since.
    unaware: bool,
    /// Whether it skips its turn of this unit, though it isn't stopped.
    late: bool,
    /// Open connections by peer.
    open: Vec<Option<Connection>>,
    lost_seen: NodeSet,
    /// The run of the cluster that it is a member of, by the deciding node's incarnation.
    run: u64,
    /// The epoch in which it joined.
    joined: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    pub(crate) now_ms: u64,
    margin_ms: u64,
    join_timeout_ms: Option<u64>,
    late: NodeSet,
    processes: Vec<Process>,
    /// `links[from][to]`.
    links: Vec<Vec<VecDeque<(Connection, Body)>>>,
    blocked: Vec<Vec<bool>>,
    /// The last epoch in which somebody went on without this node, by run of the cluster.
    excluded: Vec<BTreeMap<u64, u16>>,
    /// Which nodes had their turn in this unit.
    pub(crate) turned: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Fault {
    /// The process ends; what it sent arrives.
    Kill(usize),
    /// The process ends; what it sent and nobody read is gone.
    Reset(usize),
    Stop(usize),
    Resume(usize),
    /// The process sleeps through one turn.
    Late(usize),
    /// Nothing passes from one node to another; it is kept.
    Block(usize, usize),
    /// Nothing passes between two nodes; it is kept.
    Cut(usize, usize),
    Heal(usize, usize),
    Leave(usize),
    Restart(usize),
}

impl World {
    /// A world whose nodes have just begun to connect.
    pub(crate) fn new(nodes: usize) -> Self {
        Self::with(nodes, &[], Some(6))
    }

    /// The same, where nobody waits for `late` ones, and those that wait do so for ever.
    pub(crate) fn open(nodes: usize, late: &[usize]) -> Self {
        Self::with(nodes, late, None)
    }

    fn with(nodes: usize, late: &[usize], join_timeout_units: Option<u64>) -> Self {
        let mut world = Self {
            now_ms: 1_000,
            margin_ms: 2 * UNIT_MS + 1 + STOP_MS,
            join_timeout_ms: join_timeout_units.map(|units| units * UNIT_MS),
            late: late.iter().map(|&me| node(me)).collect(),
            processes: Vec::new(),
            links: vec![vec![VecDeque::new(); nodes]; nodes],
            blocked: vec![vec![false; nodes]; nodes],
            excluded: vec![BTreeMap::new(); nodes],
            turned: 0,
        };
        for me in 0..nodes {
            let process = world.process(me, 1, nodes);
            world.processes.push(process);
        }
        for a in 0..nodes {
            for b in 0..a {
                world.connect(a, b);
            }
        }
        world
    }

    fn process(&self, me: usize, incarnation: u64, nodes: usize) -> Process {
        let names = (0..nodes).map(|i| format!("n{i}")).collect();
        let mut config = Config::new(names, node(me), incarnation);
        config.heartbeat_ms = UNIT_MS;
        config.timeout_ms = TIMEOUT_UNITS * UNIT_MS;
        config.margin_ms = self.margin_ms;
        config.join_timeout_ms = self.join_timeout_ms;
        config.late = self.late;
        config.leave_wait_ms = 5 * UNIT_MS;
        Process {
            machine: Membership::new(config, self.now_ms).unwrap(),
            incarnation,
            alive: true,
            stopped: false,
            unaware: false,
            late: false,
            open: vec![None; nodes],
            lost_seen: NodeSet::EMPTY,
            run: 0,
            joined: 0,
        }
    }

    fn connection(&self, a: usize, b: usize) -> Connection {
        let (low, high) = (a.min(b), a.max(b));
        (self.processes[low].incarnation, self.processes[high].incarnation)
    }

    fn connect(&mut self, a: usize, b: usize) {
        let connection = self.connection(a, b);
        self.links[a][b].push_back((connection, Body::Up));
        self.links[b][a].push_back((connection, Body::Up));
    }

    pub(crate) fn nodes(&self) -> usize {
        self.processes.len()
    }

    pub(crate) fn machine(&self, me: usize) -> &Membership {
        &self.processes[me].machine
    }

    /// The faults that make sense now.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (me, process) in self.processes.iter().enumerate() {
            if !process.alive || self.has_ended(me) {
                faults.push(Fault::Restart(me));
                continue;
            }
            faults.extend([Fault::Kill(me), Fault::Reset(me)]);
            if process.stopped {
                faults.push(Fault::Resume(me));
                continue;
            }
            faults.push(Fault::Stop(me));
            if !process.late {
                faults.push(Fault::Late(me));
            }
            if matches!(process.machine.state(), State::Joining | State::Running) {
                faults.push(Fault::Leave(me));
            }
        }
        for a in 0..self.nodes() {
            for b in 0..a {
                match (self.blocked[a][b], self.blocked[b][a]) {
                    (false, false) => {
                        faults.extend([Fault::Cut(a, b), Fault::Block(a, b), Fault::Block(b, a)]);
                    }
                    (true, false) => faults.extend([Fault::Heal(a, b), Fault::Block(b, a)]),
                    (false, true) => faults.extend([Fault::Heal(a, b), Fault::Block(a, b)]),
                    (true, true) => faults.push(Fault::Heal(a, b)),
                }
            }
        }
        faults
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(me) | Fault::Reset(me) => {
                for peer in 0..self.nodes() {
                    if fault == Fault::Reset(me) {
                        self.links[me][peer].retain(|(_, body)| *body == Body::Up);
                    }
                    self.close(me, peer);
                    // What it has not taken in yet ends, too.
                    let unread = &self.links[peer][me];
                    if let Some(up) = unread.iter().find(|(_, body)| *body == Body::Up) {
                        let end = (up.0, Body::End);
                        self.links[me][peer].push_back(end);
                    }
                }
                self.processes[me].alive = false;
                self.processes[me].stopped = false;
            }
            Fault::Stop(me) => {
                self.processes[me].stopped = true;
                self.processes[me].unaware = true;
            }
            Fault::Resume(me) => self.processes[me].stopped = false,
            Fault::Late(me) => self.processes[me].late = true,
            Fault::Block(from, to) => self.blocked[from][to] = true,
            Fault::Cut(a, b) => {
                self.blocked[a][b] = true;
                self.blocked[b][a] = true;
            }
            Fault::Heal(a, b) => {
                self.blocked[a][b] = false;
                self.blocked[b][a] = false;
            }
            Fault::Leave(me) => self.step(me, Event::LeaveRequested),
            Fault::Restart(me) => {
                let incarnation = self.processes[me].incarnation + 1;
                self.processes[me] = self.process(me, incarnation, self.nodes());
                for peer in (0..self.nodes()).filter(|peer| *peer != me) {
                    if self.processes[peer].alive && !self.has_ended(peer) {
                        self.connect(me, peer);
                    }
                }
            }
        }
    }

    /// Whether `me` can read something that `from` sent.
    pub(crate) fn readable(&self, from: usize, me: usize) -> bool {
        !self.blocked[from][me] && !self.links[from][me].is_empty() && self.runs(me)
    }

    /// Whether `me` gets the processor in this unit.
    pub(crate) fn runs(&self, me: usize) -> bool {
        let process = &self.processes[me];
        process.alive && !process.stopped && !process.late
    }

    /// `me` reads the next thing that `from` sent.
    pub(crate) fn read(&mut self, from: usize, me: usize) {
        let Some((connection, body)) = self.links[from][me].pop_front() else { return };
        let incarnation = if from < me { connection.0 } else { connection.1 };
        let own = if from < me { connection.1 } else { connection.0 };
        if own != self.processes[me].incarnation {
            return; // for an earlier process of this node
        }
        if body == Body::Up {
            if let Some(old) = self.processes[me].open[from].replace(connection) {
                let incarnation = if from < me { old.0 } else { old.1 };
                let why = "it was started again".to_owned();
                self.step(me, Event::Disconnected { node: node(from), incarnation, why });
            }
            return self.step(me, Event::Connected { node: node(from), incarnation });
        }
        if self.processes[me].open[from] != Some(connection) {
            return; // closed here
        }
        match body {
            Body::Up => {}
            Body::Message(message) => {
                self.step(me, Event::Message { from: node(from), message });
            }
            Body::End => {
                self.processes[me].open[from] = None;
                let why = "end of stream".to_owned();
                self.step(me, Event::Disconnected { node: node(from), incarnation, why });
            }
        }
    }

    pub(crate) fn tick(&mut self, me: usize) {
        self.step(me, Event::Tick);
    }

    /// `me` reads all there is, from the lowest or the highest node on, and looks at its clock.
    pub(crate) fn turn(&mut self, me: usize, upwards: bool) {
        self.turned |= 1 << me;
        if self.runs(me) {
            for nth in 0..self.nodes() {
                let from = if upwards { nth } else { self.nodes() - 1 - nth };
                for _ in 0..self.links[from][me].len() {
                    if self.readable(from, me) {
                        self.read(from, me);
                    }
                }
            }
            self.tick(me);
        }
        self.processes[me].late = false;
    }

    /// Ends the lateness of whoever slept through this unit.
    pub(crate) fn wake_late(&mut self) {
        self.processes.iter_mut().for_each(|process| process.late = false);
    }

    pub(crate) fn next_unit(&mut self) {
        self.turned = 0;
        self.now_ms += UNIT_MS;
        self.dial();
    }

    /// Whoever joins is connected with everyone, again and again.
    fn dial(&mut self) {
        let joins = |world: &Self, me: usize| *world.machine(me).state() == State::Joining;
        for a in 0..self.nodes() {
            for b in 0..a {
                let wanted = joins(self, a) || joins(self, b);
                let there =
                    [a, b].iter().all(|&me| self.processes[me].alive && !self.has_ended(me));
                let quiet = [(a, b), (b, a)].iter().all(|&(from, to)| {
                    self.links[from][to].is_empty()
                        && !self.blocked[from][to]
                        && self.processes[from].open[to].is_none()
                });
                if wanted && there && quiet {
                    self.connect(a, b);
                }
            }
        }
    }

    /// All links work again, nobody is stopped, and who has ended is started again.
    pub(crate) fn mend(&mut self) {
        for a in 0..self.nodes() {
            for b in 0..a {
                self.inject(Fault::Heal(a, b));
            }
            if !self.processes[a].alive || self.has_ended(a) {
                self.inject(Fault::Restart(a));
            }
            self.inject(Fault::Resume(a));
        }
    }

    pub(crate) fn has_ended(&self, me: usize) -> bool {
        matches!(self.machine(me).state(), State::Ended { .. })
    }

    fn close(&mut self, me: usize, peer: usize) {
        if let Some(connection) = self.processes[me].open[peer].take() {
            self.links[me][peer].push_back((connection, Body::End));
        }
    }

    fn step(&mut self, me: usize, event: Event) {
        let before = self.processes[me].machine.clone();
        let actions = self.processes[me].machine.step(self.now_ms, event);
        for action in actions {
            self.act(me, action);
        }
        self.processes[me].unaware = false;
        let after = &self.processes[me].machine;
        assert!(after.epoch() >= before.epoch(), "epoch fell at {me}: {self:#?}");
        if let State::Ended { reason: EndReason::LostStep { .. } } = after.state() {
            panic!("an honest cluster lost step: {self:#?}");
        }
        self.check_no_quarrel(me, before.state());
        self.check_safety();
    }

    fn act(&mut self, me: usize, action: Action) {
        match action {
            Action::Send { to, message } => {
                // The bytes are part of what is explored.
                let sent = ControlMessage::Member(message);
                assert_eq!(ControlMessage::decode(&sent.encode()), Ok(sent.clone()));
                let ControlMessage::Member(message) = sent else { return };
                if let Some(connection) = self.processes[me].open[to.index()] {
                    let item = (connection, Body::Message(message));
                    self.links[me][to.index()].push_back(item);
                }
            }
            Action::Refuse { node, incarnation, reason } => {
                assert!(reason.contains("declared lost"), "nonsense, {reason}: {self:#?}");
                self.hang_up(me, node, incarnation, MemberMessage::Fatal { reason });
            }
            Action::Postpone { node, incarnation, reason } => {
                self.hang_up(me, node, incarnation, MemberMessage::NotYet { reason });
            }
            Action::PeerLost { node, .. } => {
                assert!(!self.processes[me].lost_seen.contains(node), "lost twice: {self:#?}");
                self.processes[me].lost_seen.insert(node);
            }
            Action::NewEpoch(epoch) => {
                assert!(!epoch.newcomers().contains(node(me)), "joined twice: {self:#?}");
                let process = &mut self.processes[me];
                process.lost_seen = process.lost_seen.minus(epoch.newcomers());
                self.go_on(me, &epoch);
            }
            Action::BecameRunning(epoch) => {
                let run = self.processes[me].open[0].map(|connection| connection.0);
                let process = &mut self.processes[me];
                process.run = run.unwrap_or(process.incarnation);
                process.joined = epoch.number;
                let late = epoch.number > 1;
                assert_eq!(epoch.newcomers().contains(node(me)), late, "{self:#?}");
                self.go_on(me, &epoch);
            }
            Action::Ended { .. } => (0..self.nodes()).for_each(|peer| self.close(me, peer)),
            Action::Propose(_) | Action::Listed { .. } => {
                panic!("nobody asks etcd here: {self:#?}");
            }
            Action::PeerLeft { .. } => {}
        }
    }

    fn hang_up(&mut self, me: usize, peer: NodeId, incarnation: u64, last: MemberMessage) {
        let peer = peer.index();
        let own = self.processes[me].incarnation;
        let connection = if me < peer { (own, incarnation) } else { (incarnation, own) };
        self.links[me][peer].push_back((connection, Body::Message(last)));
        self.links[me][peer].push_back((connection, Body::End));
        if self.processes[me].open[peer] == Some(connection) {
            self.processes[me].open[peer] = None;
        }
    }

    /// `me` goes on without those that are not members of `epoch`.
    fn go_on(&mut self, me: usize, epoch: &Epoch) {
        let run = self.processes[me].run;
        for (other, excluded) in self.excluded.iter_mut().enumerate() {
            if !epoch.members.contains(node(other)) {
                let last = excluded.entry(run).or_default();
                *last = epoch.number.max(*last);
            }
        }
    }

    /// A member ends for what another says only if the deciding node has declared it lost.
    fn check_no_quarrel(&self, me: usize, before: &State) {
        let refused =
            matches!(self.machine(me).state(), State::Ended { reason: EndReason::Refused { .. } });
        let was_member = matches!(before, State::Running | State::Leaving { .. });
        let run = |me: usize| self.processes[me].run;
        if refused && was_member && run(0) == run(me) && !self.has_ended(0) {
            assert!(!self.machine(0).live().contains(node(me)), "{me} was refused: {self:#?}");
        }
    }

    /// Members of one epoch agree on it; nobody runs after others went on without it. A stopped
    /// process doesn't run: it is checked after the first step that it makes.
    fn check_safety(&self) {
        let running: Vec<_> = (0..self.nodes())
            .filter(|&me| self.processes[me].alive && !self.processes[me].unaware)
            .filter(|&me| matches!(self.machine(me).state(), State::Running))
            .collect();
        for &a in &running {
            let process = &self.processes[a];
            let gone = self.excluded[a].get(&process.run).is_some_and(|it| *it >= process.joined);
            assert!(!gone, "{a} runs though the others went on: {self:#?}");
            for &b in running.iter().filter(|&&b| self.processes[b].run == process.run) {
                let (a, b) = (self.machine(a), self.machine(b));
                let agree = a.epoch() != b.epoch() || a.current() == b.current();
                assert!(agree, "two views of one epoch: {self:#?}");
            }
        }
    }

    /// Long after the last fault: everyone runs or has ended, and those who run are all the members.
    pub(crate) fn check_settled(&self) {
        let awake: Vec<_> = (0..self.nodes())
            .filter(|&me| self.processes[me].alive && !self.processes[me].stopped)
            .collect();
        let running: NodeSet = awake
            .iter()
            .filter(|&&me| *self.machine(me).state() == State::Running)
            .map(|&me| node(me))
            .collect();
        for &me in &awake {
            let machine = self.machine(me);
            match machine.state() {
                State::Running => {
                    assert_eq!(machine.members(), running, "at {me}: {self:#?}");
                    assert_eq!(machine.live(), running, "at {me}: {self:#?}");
                }
                State::Ended { .. } => {}
                State::Joining if self.may_wait(me, running) => {}
                State::Joining | State::Leaving { .. } => panic!("undecided {me}: {self:#?}"),
            }
        }
    }

    /// Whether a node that joins and waits for ever has what to wait for.
    fn may_wait(&self, me: usize, running: NodeSet) -> bool {
        let all = NodeSet::first(self.nodes());
        // Without a cluster that runs, for all that it starts with.
        let wanted = if running.is_empty() { all.minus(self.late) } else { running };
        let awake = |it: usize| {
            let process = &self.processes[it];
            process.alive && !process.stopped && !self.has_ended(it)
        };
        let waiting = wanted.union(NodeSet::only(node(me)));
        let cut = |a: NodeId| waiting.iter().any(|b| self.blocked[a.index()][b.index()] && a != b);
        self.join_timeout_ms.is_none()
            && (wanted.iter().any(|it| !awake(it.index())) || waiting.iter().any(cut))
    }
}
