//! A small world for memberships that etcd decides on: nodes, links that can be cut, and an etcd
//! with leases that can be out of reach, restarted or gone. It checks safety after every step.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::VecDeque;

use dsm_core::types::{Epoch, NodeId, NodeSet};
use giantvm_node::control::MemberMessage;
use giantvm_node::membership::etcd::{
    Announcement, EtcdMembership, Lease, Listed, Present, Proposal, Record, Settings, Standing,
    View,
};
use giantvm_node::membership::{Action, Config, EndReason, Event, Machine, Said, State};

/// The interval between heartbeats, and the world's step of time.
pub(crate) const HEARTBEAT_MS: u64 = 100;
const STEP_MS: u64 = 25;
pub(crate) const LEASE_MS: u64 = 2_000;

pub(crate) fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

#[derive(Clone, Debug)]
enum Body {
    Message(MemberMessage),
    End,
}

/// What the thread that keeps a node's lease is about; each state lasts as long as chance has it.
#[derive(Clone, Copy, Debug)]
enum Keeping {
    Pause,
    /// On the way to etcd.
    Renewal {
        sent_ms: u64,
    },
    /// On the way back.
    Renewed {
        granted: Granted,
        held: bool,
    },
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Granted {
    sent_ms: u64,
    term: u64,
}

/// What a node's thread that asks is about.
#[derive(Clone, Debug)]
enum Asking {
    Pause,
    /// On the way to etcd, with the renewal that was the latest when it set out.
    Look {
        granted: Option<Granted>,
    },
    /// On the way back.
    Looked {
        granted: Option<Granted>,
        term: u64,
        view: View,
    },
    Transaction(Proposal),
    Failed,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) machine: EtcdMembership,
    pub(crate) alive: bool,
    pub(crate) stopped: bool,
    /// Whether it was stopped and has made no step since.
    unaware: bool,
    stepped_ms: u64,
    keeping: Keeping,
    granted: Option<Granted>,
    asking: Asking,
    proposal: Option<Proposal>,
    /// It has stopped and gives its lease back.
    resigns: bool,
    open: Vec<bool>,
    pub(crate) lost: Vec<(NodeId, String)>,
}

#[derive(Debug)]
struct Etcd {
    up: bool,
    term: u64,
    revision: u64,
    record: Record,
    /// When each node's lease ends; `None` once it has.
    leases: Vec<Option<u64>>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now_ms: u64,
    /// How much earlier leases end than they should.
    pub(crate) hurry_ms: u64,
    pub(crate) processes: Vec<Process>,
    links: Vec<Vec<VecDeque<Body>>>,
    pub(crate) cut: Vec<Vec<bool>>,
    pub(crate) cut_off_etcd: Vec<bool>,
    etcd: Etcd,
    excluded: NodeSet,
}

impl World {
    /// Nodes that are listed and connected, and do not run yet.
    pub(crate) fn new(nodes: usize) -> Self {
        let now_ms = 1_000;
        let listed = |index: usize| Listed {
            name: format!("n{index}"),
            listen: format!("unix:/n{index}"),
            memory_bytes: 1 << 30,
            incarnation: 100 + index as u64,
            lease: 7 + index as u64,
            standing: Standing::Member,
        };
        let record = Record { started: false, nodes: (0..nodes).map(listed).collect() };
        let process = |me: usize| {
            let names = record.nodes.iter().map(|it| it.name.clone()).collect();
            let mut config = Config::new(names, node(me), 100 + me as u64);
            config.heartbeat_ms = HEARTBEAT_MS;
            config.timeout_ms = LEASE_MS;
            config.join_timeout_ms = Some(10_000);
            let endpoints = "etcd".into();
            let lease = Lease { lease_ms: LEASE_MS, confirmed_ms: now_ms, endpoints };
            Process {
                machine: EtcdMembership::new(config, lease, 1, record.clone(), now_ms).unwrap(),
                alive: true,
                stopped: false,
                unaware: false,
                stepped_ms: now_ms,
                keeping: Keeping::Pause,
                granted: None,
                asking: Asking::Pause,
                proposal: None,
                resigns: false,
                open: vec![true; nodes],
                lost: Vec::new(),
            }
        };
        let leases = vec![Some(now_ms + LEASE_MS); nodes];
        let mut world = Self {
            now_ms,
            hurry_ms: 0,
            processes: (0..nodes).map(process).collect(),
            links: vec![vec![VecDeque::new(); nodes]; nodes],
            cut: vec![vec![false; nodes]; nodes],
            cut_off_etcd: vec![false; nodes],
            etcd: Etcd { up: true, term: 2, revision: 1, record, leases },
            excluded: NodeSet::EMPTY,
        };
        for me in 0..nodes {
            for peer in (0..nodes).filter(|peer| *peer != me) {
                let incarnation = 100 + peer as u64;
                world.step(me, Event::Connected { node: node(peer), incarnation });
            }
        }
        world
    }

    pub(crate) fn nodes(&self) -> usize {
        self.processes.len()
    }

    pub(crate) fn runs(&self, me: usize) -> bool {
        self.processes[me].alive && *self.processes[me].machine.verdict().state == State::Running
    }

    /// Lets `ms` pass.
    pub(crate) fn pass(&mut self, ms: u64, random: &mut Random) {
        for _ in 0..ms / STEP_MS {
            self.pass_step(random);
        }
    }

    pub(crate) fn pass_step(&mut self, random: &mut Random) {
        self.now_ms += STEP_MS;
        self.expire();
        let mut order: Vec<usize> = (0..self.nodes()).collect();
        while !order.is_empty() {
            let me = order.swap_remove(random.below(order.len()));
            self.keep(me, random);
            self.ask(me, random);
            self.turn(me, random);
        }
    }

    fn expire(&mut self) {
        if self.etcd.up {
            for lease in &mut self.etcd.leases {
                *lease = lease.filter(|ends_ms| self.now_ms + self.hurry_ms < *ends_ms);
            }
        }
    }

    /// A node reads and looks at its clock: when it likes, but not later than two heartbeats after
    /// it did last.
    fn turn(&mut self, me: usize, random: &mut Random) {
        let process = &self.processes[me];
        if !process.alive || process.stopped {
            return;
        }
        let due = self.now_ms + STEP_MS >= process.stepped_ms + 2 * HEARTBEAT_MS;
        if !due && random.below(4) != 0 {
            return;
        }
        self.step(me, Event::Tick);
        for from in 0..self.nodes() {
            while !self.cut[from][me] && !self.links[from][me].is_empty() {
                let Some(body) = self.links[from][me].pop_front() else { break };
                if !std::mem::replace(&mut self.processes[me].open[from], false) {
                    continue;
                }
                self.processes[me].open[from] = matches!(body, Body::Message(_));
                let event = match body {
                    Body::Message(message) => Event::Message { from: node(from), message },
                    Body::End => Event::Disconnected {
                        node: node(from),
                        incarnation: 100 + from as u64,
                        why: "end of stream".into(),
                    },
                };
                self.step(me, event);
            }
        }
    }

    /// Whether a thread of `me` goes on, or what it sent or waits for is on its way still: then
    /// nothing arrives, and some requests time out.
    fn goes_on(&self, me: usize, random: &mut Random) -> bool {
        let process = &self.processes[me];
        let runs = process.alive && !process.stopped && random.below(3) != 0;
        runs && (self.reaches_etcd(me) || random.below(20) == 0)
    }

    fn reaches_etcd(&self, me: usize) -> bool {
        self.etcd.up && !self.cut_off_etcd[me]
    }

    fn keep(&mut self, me: usize, random: &mut Random) {
        if !self.goes_on(me, random) {
            return;
        }
        let reachable = self.reaches_etcd(me);
        if self.processes[me].resigns && reachable {
            self.etcd.leases[me] = None;
            return;
        }
        let next = match self.processes[me].keeping {
            Keeping::Failed => {
                self.step(me, Event::Etcd(Said::NotRenewed { why: "timed out".into() }));
                Keeping::Pause
            }
            _ if !reachable => Keeping::Failed,
            Keeping::Pause => Keeping::Renewal { sent_ms: self.now_ms },
            Keeping::Renewal { sent_ms } => {
                let held = self.etcd.leases[me].is_some();
                if held {
                    // Its clock may run faster by as much as is allowed for.
                    self.etcd.leases[me] = Some(self.now_ms + LEASE_MS - LEASE_MS / 1_000);
                }
                Keeping::Renewed { granted: Granted { sent_ms, term: self.etcd.term }, held }
            }
            Keeping::Renewed { held: false, .. } => {
                self.step(me, Event::Etcd(Said::LeaseEnded));
                Keeping::Pause
            }
            Keeping::Renewed { granted, .. } => {
                self.processes[me].granted = Some(granted);
                Keeping::Pause
            }
        };
        self.processes[me].keeping = next;
    }

    fn ask(&mut self, me: usize, random: &mut Random) {
        if !self.goes_on(me, random) {
            return;
        }
        let reachable = self.reaches_etcd(me);
        let process = &mut self.processes[me];
        let granted = process.granted;
        let next = match std::mem::replace(&mut process.asking, Asking::Pause) {
            Asking::Failed => {
                self.step(me, Event::Etcd(Said::Failed { why: "timed out".into() }));
                Asking::Pause
            }
            _ if !reachable => Asking::Failed,
            Asking::Pause => match process.proposal.take() {
                Some(proposal) => Asking::Transaction(proposal),
                None => Asking::Look { granted },
            },
            Asking::Transaction(proposal) => {
                self.transact(&proposal);
                Asking::Look { granted }
            }
            Asking::Look { granted } => {
                Asking::Looked { granted, term: self.etcd.term, view: self.view() }
            }
            Asking::Looked { granted, term, view } => {
                if let Some(granted) = granted.filter(|it| it.term == term) {
                    let sent_ms = granted.sent_ms;
                    self.step(me, Event::Etcd(Said::Renewed { sent_ms }));
                }
                self.step(me, Event::Etcd(Said::Has(view)));
                Asking::Pause
            }
        };
        self.processes[me].asking = next;
    }

    fn has(&self, name: &str, lease: u64) -> bool {
        let mut listed = self.etcd.record.numbered();
        listed.any(|(id, it)| {
            (it.name.as_str(), it.lease) == (name, lease) && self.etcd.leases[id.index()].is_some()
        })
    }

    fn transact(&mut self, proposal: &Proposal) {
        let holds = proposal.revision == self.etcd.revision
            && proposal.present.iter().all(|(name, lease)| self.has(name, *lease))
            && !proposal.absent.iter().any(|(name, lease)| self.has(name, *lease));
        if holds {
            // The bytes are part of what is tried.
            let record = Record::from_json(&proposal.record.to_json()).unwrap();
            assert_eq!(record, proposal.record);
            self.etcd.record = record;
            self.etcd.revision += 1;
        }
    }

    fn view(&self) -> View {
        let settings = Settings { nodes: None, heartbeat_ms: 100, timeout_ms: 1, workers: 1 };
        let present = |it: &Listed| Present {
            name: it.name.clone(),
            lease: it.lease,
            since: 1,
            says: Announcement {
                listen: it.listen.clone(),
                memory_bytes: it.memory_bytes,
                incarnation: it.incarnation,
                settings: settings.clone(),
            },
        };
        let record = &self.etcd.record;
        let there = record.nodes.iter().filter(|it| self.has(&it.name, it.lease));
        View {
            revision: self.etcd.revision,
            record: Some(record.clone()),
            present: there.map(present).collect(),
        }
    }

    fn step(&mut self, me: usize, event: Event) {
        let epoch = self.processes[me].machine.verdict().epoch;
        let actions = self.processes[me].machine.step(self.now_ms, event);
        self.processes[me].unaware = false;
        self.processes[me].stepped_ms = self.now_ms;
        for action in actions {
            self.act(me, action);
        }
        let verdict = self.processes[me].machine.verdict();
        assert!(verdict.epoch >= epoch, "the epoch fell at {me}: {self:#?}");
        if let State::Ended { reason: EndReason::Overwritten { .. } } = verdict.state {
            panic!("nobody else wrote the epoch key: {self:#?}");
        }
        self.check_safety();
    }

    fn act(&mut self, me: usize, action: Action) {
        let links = &mut self.links[me];
        match action {
            Action::Send { to, message } => {
                if self.processes[me].open[to.index()] {
                    links[to.index()].push_back(Body::Message(message));
                }
            }
            Action::Refuse { node, reason, .. } => {
                links[node.index()].push_back(Body::Message(MemberMessage::Fatal { reason }));
                links[node.index()].push_back(Body::End);
                self.processes[me].open[node.index()] = false;
            }
            Action::Propose(proposal) => self.processes[me].proposal = Some(*proposal),
            Action::PeerLost { node, reason } => {
                let lost = &mut self.processes[me].lost;
                assert!(lost.iter().all(|(known, _)| *known != node), "lost twice: {self:#?}");
                lost.push((node, reason));
            }
            Action::NewEpoch(Epoch { members, .. }) => {
                let out = (0..self.nodes()).map(node).filter(|it| !members.contains(*it));
                self.excluded = self.excluded.iter().chain(out).collect();
            }
            Action::Ended { .. } => {
                self.processes[me].resigns = true;
                self.close(me);
            }
            Action::Postpone { .. } => panic!("nobody is put off here: {self:#?}"),
            Action::BecameRunning(_) | Action::PeerLeft { .. } => {}
        }
    }

    fn close(&mut self, me: usize) {
        for peer in 0..self.nodes() {
            if std::mem::replace(&mut self.processes[me].open[peer], false) {
                self.links[me][peer].push_back(Body::End);
            }
        }
    }

    pub(crate) fn kill(&mut self, me: usize) {
        self.close(me);
        self.processes[me].alive = false;
    }

    pub(crate) fn stop(&mut self, me: usize) {
        self.processes[me].stopped = true;
        self.processes[me].unaware = true;
    }

    pub(crate) fn leave(&mut self, me: usize) {
        self.step(me, Event::LeaveRequested);
    }

    pub(crate) fn cut_peers(&mut self, me: usize, cut: bool) {
        for peer in 0..self.nodes() {
            self.cut[me][peer] = cut;
            self.cut[peer][me] = cut;
        }
    }

    pub(crate) fn stop_etcd(&mut self) {
        self.etcd.up = false;
    }

    /// It comes back with what it had; leases start anew.
    pub(crate) fn start_etcd(&mut self) {
        self.etcd.up = true;
        self.etcd.term += 1;
        for lease in self.etcd.leases.iter_mut().flatten() {
            *lease = self.now_ms + LEASE_MS;
        }
    }

    /// Those who run in one epoch agree; nobody runs after others went on without it. A stopped
    /// process is checked after the first step that it makes.
    fn check_safety(&self) {
        let running: Vec<_> =
            (0..self.nodes()).filter(|&me| self.runs(me) && !self.processes[me].unaware).collect();
        for &a in &running {
            let excluded = self.excluded.contains(node(a));
            assert!(!excluded, "{a} runs though the others went on: {self:#?}");
            for &b in &running {
                let a = self.processes[a].machine.verdict();
                let b = self.processes[b].machine.verdict();
                assert!(a.epoch != b.epoch || a.members == b.members, "two views: {self:#?}");
            }
        }
    }

    /// Long after the last fault: everyone runs or has ended, and those who run are all the members
    /// and have been told the same.
    pub(crate) fn check_settled(&self) {
        let awake = (0..self.nodes()).filter(|&me| {
            let process = &self.processes[me];
            process.alive && !process.stopped
        });
        let running: Vec<usize> = awake.clone().filter(|&me| self.runs(me)).collect();
        let set: NodeSet = running.iter().map(|me| node(*me)).collect();
        for me in awake {
            let state = self.processes[me].machine.verdict().state;
            let decided = matches!(state, State::Running | State::Ended { .. });
            assert!(decided, "undecided {me}: {self:#?}");
        }
        for &me in &running {
            let machine = &self.processes[me].machine;
            assert_eq!((machine.verdict().members, machine.verdict().live), (set, set), "at {me}");
            assert_eq!(machine.record(), &self.etcd.record, "at {me}: {self:#?}");
            for (lost, reason) in &self.processes[me].lost {
                let known = Standing::Removed { reason: reason.clone() };
                assert_eq!(machine.record().standing(*lost), &known, "{self:#?}");
            }
        }
    }
}
