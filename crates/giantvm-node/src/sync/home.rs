//! One node as the home of objects: which requests it may serve, and when.

use std::collections::VecDeque;

use dsm_core::types::{NODES_MAX, NodeId, NodeSet};

use super::home_of;
use super::lock::Owner;
use super::message::{Hold, SyncError, SyncName, SyncOp, SyncReport, SyncRequest};
use super::objects::{Addressed, Objects, reply};
use crate::limits::SYNC_TICKETS_PER_NODE_MAX;

/// Most requests of one node that wait for this home to learn of a loss, or to rebuild: one for each
/// of its tickets, and one that ends it.
const WAITING_MAX: usize = 2 * SYNC_TICKETS_PER_NODE_MAX;

/// The synchronisation objects whose home is this node.
///
/// Feed it the messages of each node in the order in which that node sent them, this node's own
/// included, and deliver the replies to each node in the order in which they come out.
#[derive(Debug)]
pub struct SyncHome {
    me: NodeId,
    /// How many nodes the cluster's list has.
    nodes: usize,
    objects: Objects,
    lost: NodeSet,
    /// What `lost` was before each loss, from the beginning on.
    before: Vec<NodeSet>,
    /// What `lost` was when all objects that had moved here were rebuilt.
    rebuilt: NodeSet,
    reports: Vec<Reports>,
    /// Requests that can't be served yet.
    waiting: VecDeque<(NodeId, SyncRequest)>,
    waiting_of: [usize; NODES_MAX],
}

/// What one node reported to hold.
#[derive(Clone, Default, Debug)]
struct Reports {
    /// The last epoch of which all is here.
    complete: u16,
    /// What is not installed, each with its epoch.
    holds: Vec<(u16, Hold)>,
}

impl SyncHome {
    /// The home `me`, without objects, in a cluster whose list has `nodes` nodes.
    pub fn new(me: NodeId, nodes: usize) -> Self {
        Self {
            me,
            nodes,
            objects: Objects::new(),
            lost: NodeSet::EMPTY,
            before: Vec::new(),
            rebuilt: NodeSet::EMPTY,
            reports: vec![Reports::default(); nodes],
            waiting: VecDeque::new(),
            waiting_of: [0; NODES_MAX],
        }
    }

    /// How many objects are in use.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// How many tickets hold or wait.
    pub fn tickets(&self) -> usize {
        self.objects.tickets()
    }

    /// How many requests wait for this home to learn of a loss, or to rebuild what moved here.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Answers a request of `from`: with replies to it, and to others that it sets free.
    pub fn request(&mut self, from: NodeId, request: SyncRequest) -> Vec<Addressed> {
        let mut out = Vec::new();
        if !self.lost.contains(from) {
            self.take(from, request, &mut out);
        }
        out
    }

    /// Takes in which moved locks `from` holds.
    pub fn report(&mut self, from: NodeId, report: SyncReport) -> Vec<Addressed> {
        let mut out = Vec::new();
        if self.lost.contains(from) {
            return out;
        }
        let Some(reports) = self.reports.get_mut(from.index()) else { return out };
        if report.epoch <= reports.complete || usize::from(report.epoch) >= self.nodes {
            log::error!(
                "node {from} reports locks twice, or after more losses than nodes: refused"
            );
            return out;
        }
        if reports.holds.len() + report.holds.len() > SYNC_TICKETS_PER_NODE_MAX {
            log::error!("node {from} reports more than {SYNC_TICKETS_PER_NODE_MAX} locks: refused");
        } else {
            reports.holds.extend(report.holds.into_iter().map(|hold| (report.epoch, hold)));
        }
        if report.last {
            reports.complete = report.epoch;
            if self.rebuild() {
                self.serve_waiting(&mut out);
            }
        }
        out
    }

    /// `lost` are all nodes that were ever lost: they have stopped. What they held is abandoned, who
    /// waits at a barrier is told, and what moves here is rebuilt.
    pub fn lost(&mut self, lost: NodeSet) -> Vec<Addressed> {
        let mut out = Vec::new();
        if lost.len() <= self.lost.len() {
            return out;
        }
        self.before.push(std::mem::replace(&mut self.lost, lost));
        self.forget(&mut out);
        self.rebuild();
        self.serve_waiting(&mut out);
        out
    }

    /// How many losses this home was told of.
    fn epoch(&self) -> u16 {
        self.lost.len() as u16
    }

    /// The nodes of the last loss.
    fn newly_lost(&self) -> NodeSet {
        self.lost.minus(self.before.last().copied().unwrap_or(NodeSet::EMPTY))
    }

    fn forget(&mut self, out: &mut Vec<Addressed>) {
        let (me, nodes) = (self.me, self.nodes);
        let (gone, broken) = (self.newly_lost(), self.broken());
        let is_moved = |name: &SyncName| home_of(name, nodes, NodeSet::EMPTY) != Some(me);
        self.objects.forget(gone, broken, is_moved, out);
        self.waiting.retain(|(from, _)| !gone.contains(*from));
        for node in gone.iter() {
            if let Some(count) = self.waiting_of.get_mut(node.index()) {
                *count = 0;
            }
            if let Some(reports) = self.reports.get_mut(node.index()) {
                reports.holds.clear();
            }
        }
    }

    /// What is said of a meeting that a loss ended.
    fn broken(&self) -> SyncError {
        let node = self.newly_lost().iter().next().unwrap_or(self.me);
        SyncError::BarrierBroken { node, epoch: self.epoch() }
    }

    /// The last home of `name` before this one, which was lost; none if it did not move.
    fn lost_home(&self, name: &SyncName) -> Option<NodeId> {
        if home_of(name, self.nodes, NodeSet::EMPTY) == Some(self.me) {
            return None;
        }
        let homes = self.before.iter().rev().map(|lost| home_of(name, self.nodes, *lost));
        homes.flatten().find(|home| *home != self.me)
    }

    /// Serves a request, or keeps it until that can be.
    fn take(&mut self, from: NodeId, request: SyncRequest, out: &mut Vec<Addressed>) {
        let owner = Owner { node: from, ticket: request.ticket };
        let home = |lost| home_of(&request.name, self.nodes, lost);
        if request.epoch > self.epoch() {
            return self.keep(from, request, out);
        }
        if home(self.lost) != Some(self.me) {
            log::error!("node {from} asks for `{}`, which is not kept here", request.name);
            return out.push(reply(owner, Err(SyncError::NotHome)));
        }
        let meets = matches!(request.op, SyncOp::BarrierWait { .. });
        if meets && request.epoch < self.epoch() {
            // It began to wait before it knew of a loss, and may count on a lost node.
            return out.push(reply(owner, Err(self.broken())));
        }
        if self.rebuilt != self.lost && home(self.rebuilt) != Some(self.me) {
            return self.keep(from, request, out);
        }
        let moved = self.lost_home(&request.name);
        self.objects.request(owner, &request.name, request.op, moved, out);
    }

    fn keep(&mut self, from: NodeId, request: SyncRequest, out: &mut Vec<Addressed>) {
        match self.waiting_of.get_mut(from.index()) {
            Some(count) if *count < WAITING_MAX => {
                *count += 1;
                self.waiting.push_back((from, request));
            }
            _ => {
                let owner = Owner { node: from, ticket: request.ticket };
                let limit = WAITING_MAX as u32;
                out.push(reply(owner, Err(SyncError::TooManyTickets { limit })));
            }
        }
    }

    fn serve_waiting(&mut self, out: &mut Vec<Addressed>) {
        self.waiting_of = [0; NODES_MAX];
        for (from, request) in std::mem::take(&mut self.waiting) {
            self.take(from, request, out);
        }
    }

    /// Installs the moved locks that nodes hold, once all have told; says whether that is now. If one
    /// has told of a later loss, its report goes with that.
    fn rebuild(&mut self) -> bool {
        let epoch = self.epoch();
        let is_complete = |(index, reports): (usize, &Reports)| {
            reports.complete == epoch || NodeId::new(index).is_none_or(|it| self.lost.contains(it))
        };
        if self.rebuilt == self.lost || !self.reports.iter().enumerate().all(is_complete) {
            return false;
        }
        for index in 0..self.nodes {
            let (Some(node), Some(reports)) = (NodeId::new(index), self.reports.get_mut(index))
            else {
                continue;
            };
            let (now, later): (Vec<_>, _) =
                reports.holds.drain(..).partition(|(of, _)| *of <= epoch);
            reports.holds = later;
            for (_, hold) in now {
                self.install(node, &hold);
            }
        }
        self.rebuilt = self.lost;
        true
    }

    fn install(&mut self, node: NodeId, hold: &Hold) {
        let home = |lost| home_of(&hold.name, self.nodes, lost);
        let moves = home(self.lost) == Some(self.me) && home(self.rebuilt) != Some(self.me);
        if !moves || !self.objects.install(node, hold) {
            log::error!("node {node} reports that it holds `{}`, which can't be", hold.name);
        }
    }
}
