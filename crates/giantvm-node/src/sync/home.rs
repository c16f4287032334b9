//! One node as the home of objects: which requests it may serve, and when.

use std::collections::VecDeque;

use dsm_core::types::{Epoch, NODES_MAX, NodeId, NodeSet};

use super::known::{FIRST_EPOCH, Known};
use super::lock::Owner;
use super::message::{Hold, SyncError, SyncName, SyncOp, SyncReply, SyncReport, SyncRequest};
use super::objects::{Addressed, Objects, reply};
use crate::limits::SYNC_TICKETS_PER_NODE_MAX;

/// Most requests of one node that wait for this home to learn of an epoch, or to rebuild: one for each
/// of its tickets, one that ends it, and one that takes it off a barrier after a loss.
const WAITING_MAX: usize = 3 * SYNC_TICKETS_PER_NODE_MAX;

/// The synchronisation objects whose home is this node.
///
/// Feed it the messages of each node in the order in which that node sent them, this node's own
/// included, and deliver the replies to each node in the order in which they come out.
#[derive(Debug)]
pub struct SyncHome {
    me: NodeId,
    known: Known,
    objects: Objects,
    /// Which nodes of the starting list were no homes before each change of that, from the beginning
    /// on.
    before: Vec<NodeSet>,
    /// The number of the last epoch with such a change.
    moved: u16,
    /// Which were none when all objects that had moved here were rebuilt.
    rebuilt: NodeSet,
    /// What ended all meetings last.
    broken: Broken,
    /// Of each node that may be.
    reports: Vec<Reports>,
    /// Requests that can't be served yet.
    waiting: VecDeque<(NodeId, SyncRequest)>,
    waiting_of: [usize; NODES_MAX],
}

/// A loss.
#[derive(Debug)]
struct Broken {
    node: NodeId,
    /// The number of the epoch with which this home was told of it.
    epoch: u16,
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
    /// The home `me`, without objects, in a cluster whose starting list has `nodes` nodes (1 to 64);
    /// `epoch` is the first that this node knows. If it is not the cluster's first, all listed nodes
    /// that are not there may have been homes.
    pub fn new(me: NodeId, nodes: usize, epoch: &Epoch) -> Self {
        let known = Known::new(nodes, epoch);
        let barred = known.barred();
        let late = epoch.number > FIRST_EPOCH && !barred.is_empty();
        let rebuilt = if late { NodeSet::EMPTY } else { barred };
        Self {
            me,
            objects: Objects::new(epoch.members.len()),
            before: if late { vec![NodeSet::EMPTY] } else { Vec::new() },
            moved: epoch.number,
            rebuilt,
            broken: Broken {
                node: barred.iter().next().unwrap_or(me),
                epoch: if late { epoch.number } else { 0 },
            },
            reports: vec![Reports::default(); NODES_MAX],
            waiting: VecDeque::new(),
            waiting_of: [0; NODES_MAX],
            known,
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

    /// How many requests wait for this home to learn of an epoch, or to rebuild what moved here.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Answers a request of `from`: with replies to it, and to others that it sets free.
    pub fn request(&mut self, from: NodeId, request: SyncRequest) -> Vec<Addressed> {
        let mut out = Vec::new();
        self.take(from, request, &mut out);
        self.stamped(out)
    }

    /// Takes in which moved locks `from` holds.
    pub fn report(&mut self, from: NodeId, report: SyncReport) -> Vec<Addressed> {
        let mut out = Vec::new();
        let is_early = report.epoch > self.known.number();
        let concerns = is_early || self.known.is_of_member(from, report.epoch);
        let reports = self.reports.get_mut(from.index());
        let Some(reports) = reports.filter(|_| concerns) else { return out };
        if report.epoch <= reports.complete {
            log::error!("node {from} reports locks twice: refused");
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
        self.stamped(out)
    }

    /// From now on `epoch` says who is a member: whoever was and is not has stopped. What such a node
    /// held is abandoned, who waits at a barrier is told, and what moves here is rebuilt.
    pub fn changed(&mut self, epoch: &Epoch) -> Vec<Addressed> {
        let mut out = Vec::new();
        let Some(change) = self.known.change(epoch) else { return out };
        self.objects.members(epoch.members.len());
        if change.moves.barred_before != self.known.barred() {
            self.before.push(change.moves.barred_before);
            self.moved = epoch.number;
        }
        if let Some(node) = change.gone.iter().next() {
            self.broken = Broken { node, epoch: epoch.number };
            self.forget(change.gone, &mut out);
        }
        self.forget_reports();
        self.rebuild();
        self.serve_waiting(&mut out);
        self.stamped(out)
    }

    /// Replies of this epoch.
    fn stamped(&self, mut replies: Vec<Addressed>) -> Vec<Addressed> {
        for (_, reply) in &mut replies {
            reply.epoch = reply.epoch.max(self.known.number());
        }
        replies
    }

    /// The processes that were these nodes are gone.
    fn forget(&mut self, gone: NodeSet, out: &mut Vec<Addressed>) {
        let (me, known) = (self.me, &self.known);
        let at_first = self.before.first().copied().unwrap_or(known.barred());
        let is_moved = |name: &SyncName| known.home_without(name, at_first) != Some(me);
        self.objects.forget(gone, self.broken.error(), is_moved, out);
    }

    /// Forgets what processes reported that are gone, also such as this home was never told of. What
    /// one that joined since has reported already stays.
    fn forget_reports(&mut self) {
        let known = &self.known;
        for (index, reports) in self.reports.iter_mut().enumerate() {
            let Some(node) = NodeId::new(index) else { continue };
            let stays = |of| of > known.number() || known.is_of_member(node, of);
            reports.holds.retain(|(of, _)| stays(*of));
            if !stays(reports.complete) {
                reports.complete = 0;
            }
        }
    }

    /// The last home of `name` before this one, which was lost; none if it did not move.
    fn lost_home(&self, name: &SyncName) -> Option<NodeId> {
        let homes = || self.before.iter().map(|barred| self.known.home_without(name, *barred));
        if homes().next().flatten() == Some(self.me) {
            return None;
        }
        homes().rev().flatten().find(|home| *home != self.me)
    }

    /// Serves a request, or keeps it until that can be.
    fn take(&mut self, from: NodeId, request: SyncRequest, out: &mut Vec<Addressed>) {
        let (owner, known) = (Owner { node: from, ticket: request.ticket }, &self.known);
        if request.epoch > known.number() {
            return self.keep(from, request, out);
        }
        if !known.is_of_member(from, request.epoch) {
            return; // it is gone
        }
        if known.home(&request.name) != Some(self.me) {
            if request.epoch < known.number() {
                // It may be meant for the lost home that had this number, and ends when its node is
                // told of that.
                return;
            }
            log::error!("node {from} asks for `{}`, which is not kept here", request.name);
            return out.push(reply(owner, Err(SyncError::NotHome)));
        }
        let meets = matches!(request.op, SyncOp::BarrierWait { .. });
        if meets && request.epoch < self.broken.epoch {
            // It began to wait before it knew of a loss, and may count on a lost node.
            return out.push(reply(owner, Err(self.broken.error())));
        }
        if self.rebuilt != known.barred()
            && known.home_without(&request.name, self.rebuilt) != Some(self.me)
        {
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
                let (to, refusal) = reply(owner, Err(SyncError::TooManyTickets { limit }));
                out.push((to, SyncReply { epoch: request.epoch, ..refusal }));
            }
        }
    }

    fn serve_waiting(&mut self, out: &mut Vec<Addressed>) {
        self.waiting_of = [0; NODES_MAX];
        for (from, request) in std::mem::take(&mut self.waiting) {
            self.take(from, request, out);
        }
    }

    /// Installs the moved locks that nodes hold, once all have told since the last move; says whether
    /// that is now. If one has told of a later epoch, its report goes with that.
    fn rebuild(&mut self) -> bool {
        let (epoch, barred) = (self.known.number(), self.known.barred());
        let has_told = |node: NodeId| {
            let reports = self.reports.get(node.index());
            reports.is_some_and(|it| (self.moved..=epoch).contains(&it.complete))
        };
        if self.rebuilt == barred || !self.known.epoch().members.iter().all(has_told) {
            return false;
        }
        for node in self.known.epoch().members.iter() {
            let Some(reports) = self.reports.get_mut(node.index()) else { continue };
            for (_, hold) in std::mem::take(&mut reports.holds) {
                self.install(node, &hold);
            }
        }
        self.rebuilt = barred;
        true
    }

    fn install(&mut self, node: NodeId, hold: &Hold) {
        let known = &self.known;
        let moves = known.home(&hold.name) == Some(self.me)
            && known.home_without(&hold.name, self.rebuilt) != Some(self.me);
        if !moves || !self.objects.install(node, hold) {
            log::error!("node {node} reports that it holds `{}`, which can't be", hold.name);
        }
    }
}

impl Broken {
    fn error(&self) -> SyncError {
        SyncError::BarrierBroken { node: self.node, epoch: self.epoch }
    }
}
