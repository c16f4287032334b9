//! A process of the small world: what its driver would know, and what its threads are about.

use std::collections::BTreeMap;

use dsm_core::types::{Epoch, NodeId, NodeSet};
use giantvm_node::membership::etcd::{
    Announcement, EtcdMembership, Forming, Lease, Proposal, Record, Settings, View,
};
use giantvm_node::membership::{Config, Machine, State};

use super::{HEARTBEAT_MS, LEASE_MS, incarnation_of, lease_of, node};

/// What the thread that keeps a node's lease is about; each state lasts as long as chance has it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keeping {
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
pub(super) struct Granted {
    pub(super) sent_ms: u64,
    pub(super) term: u64,
}

/// What is to be written.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    Announce,
    Propose(Proposal),
}

/// What a node's thread that asks is about.
#[derive(Clone, Debug)]
pub(super) enum Asking {
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
    Transaction(Wish),
    Failed,
}

/// How far a process is.
#[derive(Debug)]
pub(crate) enum Stage {
    Forming(Forming),
    Listed(Box<EtcdMembership>),
    /// It was told why it can't be part of the cluster.
    Refused(String),
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) host: usize,
    pub(crate) stage: Stage,
    pub(crate) alive: bool,
    pub(crate) stopped: bool,
    /// Whether it was stopped and has made no step since.
    pub(super) unaware: bool,
    pub(super) stepped_ms: u64,
    /// When the latest request was sent that renewed its lease.
    pub(super) confirmed_ms: u64,
    pub(super) keeping: Keeping,
    pub(super) granted: Option<Granted>,
    pub(super) asking: Asking,
    pub(super) wish: Option<Wish>,
    /// It has stopped and gives its lease back.
    pub(super) resigns: bool,
    /// Its number, once it has one.
    pub(super) me: Option<NodeId>,
    /// The other end of the connection to each node, if there is one.
    pub(super) open: BTreeMap<NodeId, usize>,
    /// Which process has which place, as far as it was told.
    pub(super) places: BTreeMap<NodeId, usize>,
    /// The epoch that it was told of last, and the processes in it.
    pub(crate) epoch: Epoch,
    pub(super) members: BTreeMap<NodeId, usize>,
    pub(crate) lost: Vec<(usize, String)>,
    pub(super) left: Vec<usize>,
}

impl Process {
    pub(super) fn new(pid: usize, host: usize, nodes: usize, now_ms: u64) -> Self {
        let says = says(pid, host, nodes);
        Self {
            host,
            stage: Stage::Forming(Forming::new(&name(host), says, lease_of(pid), LEASE_MS)),
            alive: true,
            stopped: false,
            unaware: false,
            stepped_ms: now_ms,
            confirmed_ms: now_ms,
            keeping: Keeping::Pause,
            granted: None,
            asking: Asking::Pause,
            wish: None,
            resigns: false,
            me: None,
            open: BTreeMap::new(),
            places: BTreeMap::new(),
            epoch: Epoch::default(),
            members: BTreeMap::new(),
            lost: Vec::new(),
            left: Vec::new(),
        }
    }

    /// It is in the list.
    pub(super) fn list(&mut self, pid: usize, revision: u64, record: Record, now_ms: u64) {
        let me = record.nodes.iter().position(|it| it.lease == lease_of(pid)).unwrap();
        let names = record.nodes.iter().map(|it| it.name.clone()).collect();
        let mut config = Config::new(names, node(me), incarnation_of(pid));
        config.heartbeat_ms = HEARTBEAT_MS;
        config.timeout_ms = LEASE_MS;
        config.join_timeout_ms = Some(5 * LEASE_MS);
        let confirmed_ms = self.confirmed_ms;
        let lease = Lease { lease_ms: LEASE_MS, confirmed_ms, endpoints: "etcd".into() };
        self.me = Some(node(me));
        self.places =
            record.numbered().map(|(node, it)| (node, super::process_of(it.lease))).collect();
        let machine = EtcdMembership::new(config, lease, revision, record, now_ms).unwrap();
        self.stepped_ms = now_ms;
        self.stage = Stage::Listed(Box::new(machine));
    }

    pub(super) fn listed(&self) -> Option<&EtcdMembership> {
        match &self.stage {
            Stage::Listed(machine) => Some(machine),
            Stage::Forming(_) | Stage::Refused(_) => None,
        }
    }

    pub(crate) fn machine(&self) -> &EtcdMembership {
        self.listed().unwrap()
    }

    pub(super) fn machine_mut(&mut self) -> &mut EtcdMembership {
        match &mut self.stage {
            Stage::Listed(machine) => machine,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn is_awake(&self) -> bool {
        self.alive && !self.stopped
    }

    pub(crate) fn runs(&self) -> bool {
        self.alive && self.state() == Some(&State::Running)
    }

    pub(crate) fn state(&self) -> Option<&State> {
        self.listed().map(|machine| machine.verdict().state)
    }

    /// It was told that it is a member.
    pub(super) fn begin(&mut self, epoch: Epoch) {
        let me = self.me.unwrap();
        assert!(self.members.is_empty() && epoch.members.contains(me), "{epoch:?}");
        assert_eq!(epoch.number > 1, epoch.newcomers().contains(me), "{epoch:?} at {me}");
        self.members = epoch.members.iter().map(|node| (node, self.places[&node])).collect();
        self.epoch = epoch;
    }

    /// It was told of another epoch. Returns the processes that it goes on without; who has not met
    /// them all in time, or was not told what became of them, would be wrong about who is there.
    pub(super) fn follow(&mut self, epoch: Epoch) -> Vec<usize> {
        assert!(epoch.number > self.epoch.number, "{epoch:?} after {:?}", self.epoch);
        let new = epoch.joined_after(self.epoch.number);
        let is_out = |node: &NodeId| !epoch.members.contains(*node) || new.contains(*node);
        let out: BTreeMap<_, _> =
            self.members.iter().filter(|(node, _)| is_out(node)).map(|(a, b)| (*a, *b)).collect();
        for (node, pid) in &out {
            let told = self.left.contains(pid) || self.lost.iter().any(|(lost, _)| lost == pid);
            assert!(told, "nobody said what became of {pid}");
            assert!(self.places[node] != *pid || !new.contains(*node), "{pid} joined twice");
            self.members.remove(node);
        }
        for node in new.iter() {
            self.members.insert(node, self.places[&node]);
        }
        let members: NodeSet = self.members.keys().copied().collect();
        assert_eq!(members, epoch.members, "{epoch:?} after {:?}", self.epoch);
        self.epoch = epoch;
        out.into_values().collect()
    }
}

pub(super) fn name(host: usize) -> String {
    format!("n{host}")
}

/// What the process `pid` on `host` says of itself, for a cluster that starts with `nodes`.
pub(super) fn says(pid: usize, host: usize, nodes: usize) -> Announcement {
    Announcement {
        listen: format!("unix:/n{host}"),
        memory_bytes: 1 << 30,
        incarnation: incarnation_of(pid),
        settings: Settings {
            nodes: Some(nodes as u64),
            heartbeat_ms: HEARTBEAT_MS,
            timeout_ms: LEASE_MS,
            workers: 1,
        },
    }
}
