//! A small world for memberships that etcd decides on: processes that come and go on a few hosts,
//! links that can be cut, and an etcd. It checks safety after every step.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod process;
mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dsm_core::types::{NodeId, NodeSet};
use giantvm_node::control::MemberMessage;
use giantvm_node::membership::etcd::{Listed, Next, Record, Standing, View};
use giantvm_node::membership::{Action, EndReason, Event, Machine, Said, State};

use process::{Asking, Granted, Keeping, Wish, says};
pub(crate) use process::{Process, Stage};
use server::Etcd;

/// The interval between heartbeats, and the world's step of time.
pub(crate) const HEARTBEAT_MS: u64 = 100;
const STEP_MS: u64 = 25;
pub(crate) const LEASE_MS: u64 = 2_000;
/// Machines on which a process can run; each has one name.
pub(crate) const HOSTS: usize = 7;

pub(crate) fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

fn lease_of(pid: usize) -> u64 {
    7 + pid as u64
}

fn process_of(lease: u64) -> usize {
    (lease - 7) as usize
}

fn incarnation_of(pid: usize) -> u64 {
    100 + pid as u64
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

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now_ms: u64,
    /// How much earlier leases end than they should.
    pub(crate) hurry_ms: u64,
    /// All that ever were; those of the first run have the numbers of their hosts.
    pub(crate) processes: Vec<Process>,
    links: BTreeMap<(usize, usize), VecDeque<Body>>,
    pub(crate) cut: [[bool; HOSTS]; HOSTS],
    pub(crate) cut_off_etcd: [bool; HOSTS],
    pub(crate) etcd: Etcd,
    /// How many nodes a cluster starts with.
    nodes: usize,
    /// Processes that others went on without.
    excluded: BTreeSet<usize>,
}

impl World {
    /// Nodes that are listed and connected, and do not run yet.
    pub(crate) fn new(nodes: usize) -> Self {
        let now_ms = 1_000;
        let listed = |pid: usize| Listed {
            name: process::name(pid),
            listen: format!("unix:/n{pid}"),
            memory_bytes: 1 << 30,
            incarnation: incarnation_of(pid),
            lease: lease_of(pid),
            joined: 0,
            standing: Standing::Member,
        };
        let record = Record { epoch: 0, nodes: (0..nodes).map(listed).collect(), closed: None };
        let mut world = Self {
            now_ms,
            hurry_ms: 0,
            processes: Vec::new(),
            links: BTreeMap::new(),
            cut: [[false; HOSTS]; HOSTS],
            cut_off_etcd: [false; HOSTS],
            etcd: Etcd::new(record),
            nodes,
            excluded: BTreeSet::new(),
        };
        for host in 0..nodes {
            let pid = world.start(host);
            world.etcd.announce(pid, &process::name(host), says(pid, host, nodes));
            let View { record, revision, .. } = world.etcd.view();
            world.processes[pid].list(pid, revision, record.unwrap(), now_ms);
        }
        for called in 0..nodes {
            (called + 1..nodes).for_each(|caller| world.connect(caller, called));
        }
        world
    }

    /// Starts a process on `host`; etcd gives it a lease.
    pub(crate) fn start(&mut self, host: usize) -> usize {
        let pid = self.processes.len();
        self.processes.push(Process::new(pid, host, self.nodes, self.now_ms));
        self.etcd.grant(self.now_ms);
        pid
    }

    /// Starts a process wherever none is there.
    pub(crate) fn start_missing(&mut self, hosts: usize) {
        for host in 0..hosts {
            let is_there = |it: &Process| it.host == host && it.alive && !it.resigns;
            if !self.processes.iter().any(is_there) {
                self.start(host);
            }
        }
    }

    pub(crate) fn runs(&self, pid: usize) -> bool {
        self.processes[pid].runs()
    }

    /// Lets `ms` pass.
    pub(crate) fn pass(&mut self, ms: u64, random: &mut Random) {
        for _ in 0..ms / STEP_MS {
            self.pass_step(random);
        }
    }

    fn pass_step(&mut self, random: &mut Random) {
        self.now_ms += STEP_MS;
        self.etcd.expire(self.now_ms, self.hurry_ms);
        let mut order: Vec<usize> = (0..self.processes.len()).collect();
        while !order.is_empty() {
            let pid = order.swap_remove(random.below(order.len()));
            self.keep(pid, random);
            self.ask(pid, random);
            self.turn(pid, random);
            self.call(pid, random);
        }
    }

    /// A node reads and looks at its clock: when it likes, but not later than two heartbeats after
    /// it did last.
    fn turn(&mut self, pid: usize, random: &mut Random) {
        let process = &self.processes[pid];
        if !process.is_awake() || process.listed().is_none() {
            return;
        }
        let due = self.now_ms + STEP_MS >= process.stepped_ms + 2 * HEARTBEAT_MS;
        if !due && random.below(4) != 0 {
            return;
        }
        self.step(pid, Event::Tick);
        for (from, other) in self.processes[pid].open.clone() {
            while self.processes[pid].open.get(&from) == Some(&other) && !self.is_cut(other, pid) {
                let next = self.links.get_mut(&(other, pid)).and_then(VecDeque::pop_front);
                let event = match next {
                    None => break,
                    Some(Body::Message(message)) => Event::Message { from, message },
                    Some(Body::End) => {
                        self.processes[pid].open.remove(&from);
                        let why = "end of stream".into();
                        Event::Disconnected { node: from, incarnation: incarnation_of(other), why }
                    }
                };
                self.step(pid, event);
            }
        }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[self.processes[from].host][self.processes[to].host]
    }

    /// A node calls those with lower numbers: all while it joins, and later who joins.
    fn call(&mut self, caller: usize, random: &mut Random) {
        let process = &self.processes[caller];
        let (Some(machine), Some(me)) = (process.listed(), process.me) else { return };
        if !process.is_awake() || process.resigns {
            return;
        }
        let joins = *machine.verdict().state == State::Joining;
        let joining = machine.record().joining();
        let wanted = process.places.iter().filter(|(node, called)| {
            let is_new = joins || joining.contains(**node);
            **node < me && is_new && process.open.get(node) != Some(called)
        });
        for called in wanted.map(|(_, called)| *called).collect::<Vec<_>>() {
            let other = &self.processes[called];
            let answers = other.is_awake() && !other.resigns && other.listed().is_some();
            let knows_end = other.open.get(&me) != Some(&caller);
            let cut = self.is_cut(caller, called) || self.is_cut(called, caller);
            if answers && knows_end && !cut && random.below(3) == 0 {
                self.connect(caller, called);
            }
        }
    }

    fn connect(&mut self, caller: usize, called: usize) {
        self.links.remove(&(caller, called));
        self.links.remove(&(called, caller));
        self.connected(called, caller);
        self.connected(caller, called);
    }

    fn connected(&mut self, pid: usize, other: usize) {
        let Some(number) = self.processes[other].me else { return };
        if let Some(old) = self.processes[pid].open.insert(number, other) {
            let why = "it was started again".into();
            let incarnation = incarnation_of(old);
            self.step(pid, Event::Disconnected { node: number, incarnation, why });
        }
        self.step(pid, Event::Connected { node: number, incarnation: incarnation_of(other) });
    }

    /// Whether a thread of a process goes on, or what it sent or waits for is on its way still: then
    /// nothing arrives, and some requests time out.
    fn goes_on(&self, pid: usize, random: &mut Random) -> bool {
        let runs = self.processes[pid].is_awake() && random.below(3) != 0;
        runs && (self.reaches_etcd(pid) || random.below(20) == 0)
    }

    fn reaches_etcd(&self, pid: usize) -> bool {
        self.etcd.up && !self.cut_off_etcd[self.processes[pid].host]
    }

    fn keep(&mut self, pid: usize, random: &mut Random) {
        if !self.goes_on(pid, random) {
            return;
        }
        let reachable = self.reaches_etcd(pid);
        if self.processes[pid].resigns && reachable {
            self.etcd.revoke(pid);
            self.processes[pid].alive = false;
            return;
        }
        let next = match self.processes[pid].keeping {
            Keeping::Failed => {
                self.said(pid, Said::NotRenewed { why: "timed out".into() });
                Keeping::Pause
            }
            _ if !reachable => Keeping::Failed,
            Keeping::Pause => Keeping::Renewal { sent_ms: self.now_ms },
            Keeping::Renewal { sent_ms } => {
                let held = self.etcd.renew(pid, self.now_ms);
                Keeping::Renewed { granted: Granted { sent_ms, term: self.etcd.term }, held }
            }
            Keeping::Renewed { held: false, .. } => {
                self.said(pid, Said::LeaseEnded);
                Keeping::Pause
            }
            Keeping::Renewed { granted, .. } => {
                self.processes[pid].granted = Some(granted);
                Keeping::Pause
            }
        };
        self.processes[pid].keeping = next;
    }

    fn ask(&mut self, pid: usize, random: &mut Random) {
        if !self.goes_on(pid, random) {
            return;
        }
        let reachable = self.reaches_etcd(pid);
        let process = &mut self.processes[pid];
        let granted = process.granted;
        let next = match std::mem::replace(&mut process.asking, Asking::Pause) {
            Asking::Failed => {
                self.said(pid, Said::Failed { why: "timed out".into() });
                Asking::Pause
            }
            _ if !reachable => Asking::Failed,
            Asking::Pause => match process.wish.take() {
                Some(wish) => Asking::Transaction(wish),
                None => Asking::Look { granted },
            },
            Asking::Transaction(wish) => {
                self.write(pid, wish);
                Asking::Look { granted }
            }
            Asking::Look { granted } => {
                Asking::Looked { granted, term: self.etcd.term, view: self.etcd.view() }
            }
            Asking::Looked { granted, term, view } => {
                if let Some(granted) = granted.filter(|it| it.term == term) {
                    self.said(pid, Said::Renewed { sent_ms: granted.sent_ms });
                }
                self.said(pid, Said::Has(view));
                Asking::Pause
            }
        };
        self.processes[pid].asking = next;
    }

    fn write(&mut self, pid: usize, wish: Wish) {
        match wish {
            Wish::Announce => {
                let host = self.processes[pid].host;
                self.etcd.announce(pid, &process::name(host), says(pid, host, self.nodes));
            }
            Wish::Propose(proposal) => {
                let old = self.etcd.record.clone();
                if self.etcd.transact(&proposal) {
                    self.check_who_takes_in(pid, &old);
                    // Whoever has no place any more has certainly stopped.
                    let now = &self.etcd.record;
                    let has_place = |lease| now.nodes.iter().any(|it| it.lease == lease);
                    let out = old.nodes.iter().map(|it| it.lease).filter(|it| !has_place(*it));
                    self.excluded.extend(out.map(process_of));
                    self.check_safety();
                }
            }
        }
    }

    /// etcd's answer reaches the process, which may have no machine yet, or none any more.
    fn said(&mut self, pid: usize, said: Said) {
        let now_ms = self.now_ms;
        let process = &mut self.processes[pid];
        if process.listed().is_some() {
            return self.step(pid, Event::Etcd(said));
        }
        let Stage::Forming(forming) = &mut process.stage else { return };
        match said {
            Said::Renewed { sent_ms } => process.confirmed_ms = process.confirmed_ms.max(sent_ms),
            Said::LeaseEnded => process.alive = false, // the next one is as good as this one
            Said::NotRenewed { .. } | Said::Failed { .. } => {}
            Said::Has(view) => match forming.look(now_ms, &view) {
                Next::Wait(_) => {}
                Next::Announce => process.wish = Some(Wish::Announce),
                Next::Form(proposal) => process.wish = Some(Wish::Propose(proposal)),
                Next::Formed => process.list(pid, view.revision, view.record.unwrap(), now_ms),
                Next::Refused(reason) => {
                    process.stage = Stage::Refused(reason);
                    process.resigns = true;
                }
            },
        }
    }

    fn step(&mut self, pid: usize, event: Event) {
        let (now_ms, process) = (self.now_ms, &mut self.processes[pid]);
        let epoch = process.machine().verdict().epoch;
        let actions = process.machine_mut().step(now_ms, event);
        process.unaware = false;
        process.stepped_ms = now_ms;
        for action in actions {
            self.act(pid, action);
        }
        let verdict = self.processes[pid].machine().verdict();
        assert!(verdict.epoch >= epoch, "the epoch fell at {pid}: {self:#?}");
        if let State::Ended { reason: EndReason::Overwritten { what } } = verdict.state {
            panic!("nobody else wrote the epoch key: {what} at {pid}: {self:#?}");
        }
        self.check_safety();
        self.check_agreement(pid);
    }

    fn act(&mut self, pid: usize, action: Action) {
        let process = &mut self.processes[pid];
        match action {
            Action::Send { to, message } => {
                if let Some(other) = process.open.get(&to) {
                    self.links.entry((pid, *other)).or_default().push_back(Body::Message(message));
                }
            }
            Action::Refuse { node, incarnation, reason } => {
                let is_it = |other: &usize| incarnation_of(*other) == incarnation;
                if process.open.get(&node).is_some_and(is_it)
                    && let Some(other) = process.open.remove(&node)
                {
                    let fatal = Body::Message(MemberMessage::Fatal { reason });
                    self.links.entry((pid, other)).or_default().extend([fatal, Body::End]);
                }
            }
            Action::Propose(proposal) => process.wish = Some(Wish::Propose(*proposal)),
            Action::PeerLost { node, reason } => {
                let lost = process.places[&node];
                let known = process.lost.iter().any(|(known, _)| *known == lost);
                assert!(!known, "lost twice: {self:#?}");
                self.processes[pid].lost.push((lost, reason));
            }
            Action::Postpone { .. } => panic!("nobody is put off here: {self:#?}"),
            Action::PeerLeft { node } => process.left.push(process.places[&node]),
            Action::Listed { node, incarnation, .. } => {
                let new = (incarnation - 100) as usize;
                assert!(process.open.get(&node).is_none_or(|it| *it == new), "{process:?}");
                process.places.insert(node, new);
            }
            Action::BecameRunning(epoch) => process.begin(epoch),
            Action::NewEpoch(epoch) => self.excluded.extend(process.follow(epoch)),
            Action::Ended { .. } => {
                process.resigns = true;
                self.hang_up(pid);
            }
        }
    }

    fn hang_up(&mut self, pid: usize) {
        for other in std::mem::take(&mut self.processes[pid].open).into_values() {
            self.links.entry((pid, other)).or_default().push_back(Body::End);
        }
    }

    pub(crate) fn kill(&mut self, pid: usize) {
        self.hang_up(pid);
        self.processes[pid].alive = false;
    }

    pub(crate) fn stop(&mut self, pid: usize) {
        self.processes[pid].stopped = true;
        self.processes[pid].unaware = true;
    }

    pub(crate) fn leave(&mut self, pid: usize) {
        if self.processes[pid].is_awake() && self.processes[pid].listed().is_some() {
            self.step(pid, Event::LeaveRequested);
        }
    }

    /// A virtual machine starts.
    pub(crate) fn close(&mut self, pid: usize) {
        if self.processes[pid].runs() && !self.processes[pid].stopped {
            self.processes[pid].machine_mut().close("a virtual machine runs");
            self.step(pid, Event::Tick);
        }
    }

    pub(crate) fn cut_peers(&mut self, host: usize, cut: bool) {
        for peer in 0..HOSTS {
            self.cut[host][peer] = cut;
            self.cut[peer][host] = cut;
        }
    }

    /// Everything works from now on.
    pub(crate) fn heal(&mut self) {
        (self.cut, self.cut_off_etcd) = ([[false; HOSTS]; HOSTS], [false; HOSTS]);
        self.processes.iter_mut().for_each(|process| process.stopped = false);
        self.start_etcd();
    }

    pub(crate) fn stop_etcd(&mut self) {
        self.etcd.up = false;
    }

    /// It comes back with what it had; leases start anew.
    pub(crate) fn start_etcd(&mut self) {
        self.etcd.start(self.now_ms);
    }

    /// Nobody runs after others went on without it. A stopped process is checked after the first
    /// step that it makes.
    fn check_safety(&self) {
        for &pid in &self.excluded {
            let runs = self.runs(pid) && !self.processes[pid].unaware;
            assert!(!runs, "{pid} runs though the others went on: {self:#?}");
        }
    }

    /// Of a cluster that runs, the eldest member lists newcomers.
    fn check_who_takes_in(&self, pid: usize, old: &Record) {
        let is_listed = |it: &Listed| {
            it.standing == Standing::Joining && !old.nodes.iter().any(|was| was == it)
        };
        if old.epoch > 0 && self.etcd.record.nodes.iter().any(is_listed) {
            let me = self.processes[pid].me;
            assert!(me.is_some() && old.in_force().eldest() == me, "{pid} took in: {self:#?}");
        }
    }

    /// Those who run in one epoch agree about who is in it.
    fn check_agreement(&self, pid: usize) {
        let own = &self.processes[pid];
        let is_to_agree = |it: &&Process| own.runs() && it.runs() && !it.unaware;
        for other in self.processes.iter().filter(is_to_agree) {
            let same = own.epoch == other.epoch && own.members == other.members;
            assert!(own.epoch.number != other.epoch.number || same, "two views: {self:#?}");
        }
    }

    /// Long after the last fault: everyone runs or has ended or waits for a place, and those who run
    /// are all the members and have been told the same.
    pub(crate) fn check_settled(&self) {
        let awake = || self.processes.iter().filter(|process| process.is_awake());
        let running: Vec<&Process> = awake().filter(|process| process.runs()).collect();
        let set: NodeSet = running.iter().filter_map(|process| process.me).collect();
        for state in awake().filter_map(Process::state) {
            let decided = matches!(state, State::Running | State::Ended { .. });
            assert!(decided, "undecided {state:?}: {self:#?}");
        }
        for process in running {
            let machine = process.machine();
            assert_eq!(
                (machine.verdict().members, machine.verdict().live),
                (set, set),
                "{self:#?}"
            );
            assert_eq!(machine.record(), &self.etcd.record, "{self:#?}");
            assert_eq!(machine.record().in_force(), process.epoch, "{self:#?}");
            for (lost, reason) in &process.lost {
                let listed = self.etcd.record.nodes.iter().find(|it| it.lease == lease_of(*lost));
                let known = Standing::Removed { reason: reason.clone() };
                assert!(listed.is_none_or(|it| it.standing == known), "{self:#?}");
            }
        }
    }

    /// Whether etcd says that a process has left.
    pub(crate) fn has_left(&self, pid: usize) -> bool {
        let is_it = |it: &&Listed| it.lease == lease_of(pid);
        let listed = self.etcd.record.nodes.iter().find(is_it);
        listed.is_some_and(|it| it.standing == Standing::Left)
    }

    /// Whether there is somebody to take in whoever comes.
    pub(crate) fn is_open(&self) -> bool {
        self.etcd.record.closed.is_none() && self.processes.iter().any(Process::runs)
    }

    /// Every process that is there is a member.
    pub(crate) fn check_all_in(&self, hosts: usize) {
        for host in 0..hosts {
            let is_in = |it: &Process| it.host == host && it.runs();
            assert!(self.processes.iter().any(is_in), "{host} is not in: {self:#?}");
        }
    }
}
