//! A small world for memberships: nodes, ordered links that can be cut, processes that can be
//! killed, stopped or late. It checks safety after every single step.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::VecDeque;

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
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    pub(crate) now_ms: u64,
    margin_ms: u64,
    processes: Vec<Process>,
    /// `links[from][to]`.
    links: Vec<Vec<VecDeque<(Connection, Body)>>>,
    blocked: Vec<Vec<bool>>,
    /// Whether somebody went on without this node.
    excluded: Vec<bool>,
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
        let mut world = Self {
            now_ms: 1_000,
            margin_ms: 2 * UNIT_MS + 1 + STOP_MS,
            processes: Vec::new(),
            links: vec![vec![VecDeque::new(); nodes]; nodes],
            blocked: vec![vec![false; nodes]; nodes],
            excluded: vec![false; nodes],
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
        config.join_timeout_ms = Some(6 * UNIT_MS);
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
            if !process.alive {
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
                self.excluded[me] = false;
                for peer in (0..self.nodes()).filter(|peer| *peer != me) {
                    if self.processes[peer].alive {
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
            self.processes[me].open[from] = Some(connection);
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
                let peer = node.index();
                let own = self.processes[me].incarnation;
                let connection = if me < peer { (own, incarnation) } else { (incarnation, own) };
                let fatal = Body::Message(MemberMessage::Fatal { reason });
                self.links[me][peer].push_back((connection, fatal));
                self.links[me][peer].push_back((connection, Body::End));
                if self.processes[me].open[peer] == Some(connection) {
                    self.processes[me].open[peer] = None;
                }
            }
            Action::PeerLost { node, .. } => {
                assert!(!self.processes[me].lost_seen.contains(node), "lost twice: {self:#?}");
                self.processes[me].lost_seen.insert(node);
            }
            Action::NewEpoch(Epoch { members, .. }) => {
                for (other, excluded) in self.excluded.iter_mut().enumerate() {
                    *excluded |= !members.contains(node(other));
                }
            }
            Action::Ended { .. } => (0..self.nodes()).for_each(|peer| self.close(me, peer)),
            Action::Propose(_) => panic!("nobody asks etcd here: {self:#?}"),
            Action::BecameRunning(_) | Action::PeerLeft { .. } | Action::Listed { .. } => {}
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
            assert!(!self.excluded[a], "{a} runs though the others went on: {self:#?}");
            for &b in &running {
                let (a, b) = (self.machine(a), self.machine(b));
                let agree = a.epoch() != b.epoch() || a.members() == b.members();
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
                State::Joining | State::Leaving { .. } => panic!("undecided {me}: {self:#?}"),
            }
        }
    }
}
