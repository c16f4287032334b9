//! The side that asks: the open requests of one node, and the locks that it holds.

use std::collections::{BTreeMap, BTreeSet};

use dsm_core::types::{NodeId, NodeSet};

use super::home_of;
use super::message::{
    EVERY_NODE, Held, Hold, Kind, Outcome, SyncError, SyncName, SyncOp, SyncReply, SyncReport,
    SyncRequest,
};
use super::wire::HOLDS_PER_PART;
use crate::limits::SYNC_TICKETS_PER_NODE_MAX;

type Result = std::result::Result<Outcome, SyncError>;

/// What comes out of a [`SyncClient`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientOutput<R> {
    /// A message to a home, which may be this node.
    Send {
        /// That home.
        to: NodeId,
        /// The message.
        message: ToHome,
    },
    /// The end of a request.
    Answer {
        /// Whom to tell.
        reply_to: R,
        /// What came of it.
        result: Result,
    },
}

/// A message to a home.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToHome {
    /// For [`SyncHome::request`](super::SyncHome::request).
    Request(SyncRequest),
    /// For [`SyncHome::report`](super::SyncHome::report).
    Report(SyncReport),
}

/// What one node asks of homes; `R` is whom to tell what came of a request.
///
/// Deliver its messages to each home in the order in which they come out.
#[derive(Debug)]
pub struct SyncClient<R> {
    /// How many nodes the cluster's list has.
    nodes: usize,
    lost: NodeSet,
    /// By ticket. Their homes are not lost.
    open: BTreeMap<u64, Open<R>>,
    /// By the ticket that locked.
    held: BTreeMap<u64, Hold>,
}

#[derive(Debug)]
struct Open<R> {
    name: SyncName,
    op: SyncOp,
    /// None if nobody waits any more.
    reply_to: Option<R>,
    /// The answer, kept until this node has been told of the loss that it is about.
    broken: Option<SyncError>,
}

impl<R> SyncClient<R> {
    /// Nothing is asked yet, in a cluster whose list has `nodes` nodes.
    pub fn new(nodes: usize) -> Self {
        Self { nodes, lost: NodeSet::EMPTY, open: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// How many requests are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// How many locks are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// How many losses this node was told of.
    fn epoch(&self) -> u16 {
        self.lost.len() as u16
    }

    /// How many parties meet where every node that is not lost is one.
    pub fn parties_of_all_survivors(&self) -> u32 {
        (self.nodes - self.lost.len().min(self.nodes)) as u32
    }

    /// Asks the home of `name`. No other request that is open or holding has this ticket.
    pub fn request(
        &mut self,
        ticket: u64,
        name: SyncName,
        mut op: SyncOp,
        reply_to: R,
    ) -> Vec<ClientOutput<R>> {
        if op == (SyncOp::BarrierWait { parties: EVERY_NODE }) {
            op = SyncOp::BarrierWait { parties: self.parties_of_all_survivors() };
        }
        let takes = op.takes().is_some() || op.kind() == Some(Kind::Barrier);
        let error = if self.open.contains_key(&ticket) {
            Some(SyncError::DuplicateTicket)
        } else if takes && self.open.len() + self.held.len() >= SYNC_TICKETS_PER_NODE_MAX {
            Some(SyncError::TooManyTickets { limit: SYNC_TICKETS_PER_NODE_MAX as u32 })
        } else {
            None
        };
        if let Some(error) = error {
            return vec![ClientOutput::Answer { reply_to, result: Err(error) }];
        }
        self.send(ticket, Open { name, op, reply_to: Some(reply_to), broken: None })
            .into_iter()
            .collect()
    }

    /// Takes in a reply of the home `from`.
    pub fn reply(&mut self, from: NodeId, reply: &SyncReply) -> Vec<ClientOutput<R>> {
        let SyncReply { ticket, result } = *reply;
        let known = self.epoch();
        let Some(open) = self.open.get_mut(&ticket) else { return Vec::new() };
        if home_of(&open.name, self.nodes, self.lost) != Some(from) {
            // It was the home, and is lost: another has been asked.
            return Vec::new();
        }
        if let Err(error @ SyncError::BarrierBroken { epoch, .. }) = result
            && epoch > known
        {
            open.broken = Some(error);
            return Vec::new();
        }
        let Some(open) = self.open.remove(&ticket) else { return Vec::new() };
        if let (Ok(Outcome::Cancelled), SyncOp::Cancel { waiter }) = (result, open.op) {
            self.open.remove(&waiter); // no reply to it will come
        }
        match (result, open.op.takes(), open.op.releases()) {
            (Ok(outcome @ (Outcome::Granted | Outcome::Abandoned { .. })), Some(held), _) => {
                let abandoned = match outcome {
                    Outcome::Abandoned { node } => Some(node),
                    _ => None,
                };
                self.held.insert(ticket, Hold { ticket, name: open.name, held, abandoned });
                if open.reply_to.is_none() {
                    return self.give_up(ticket);
                }
            }
            (Ok(Outcome::Unlocked), _, Some((holder, _))) => _ = self.held.remove(&holder),
            _ => {}
        }
        answer(open.reply_to, result).into_iter().collect()
    }

    /// Nobody waits for this ticket any more: if it has a lock or gets one, that is given back.
    pub fn give_up(&mut self, ticket: u64) -> Vec<ClientOutput<R>> {
        if let Some(open) = self.open.get_mut(&ticket) {
            open.reply_to = None;
            return Vec::new();
        }
        let Some(hold) = self.held.get(&ticket) else { return Vec::new() };
        let (name, op) = (hold.name.clone(), SyncOp::GiveBack { holder: ticket });
        self.send(ticket, Open { name, op, reply_to: None, broken: None }).into_iter().collect()
    }

    /// `lost` are all nodes that were ever lost: they have stopped.
    pub fn lost(&mut self, lost: NodeSet) -> Vec<ClientOutput<R>> {
        if lost.len() <= self.lost.len() {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.lost, lost);
        let epoch = self.epoch();
        let nodes = self.nodes;
        let lost_home =
            |name: &SyncName| home_of(name, nodes, before).filter(|home| lost.contains(*home));
        let mut out = Vec::new();
        let moved: BTreeMap<u64, Open<R>> =
            self.open.extract_if(.., |_, open| lost_home(&open.name).is_some()).collect();
        let again = self.end_moved(moved, &lost_home, &mut out);
        self.report(&lost_home, &mut out);
        for (ticket, open) in again {
            out.extend(self.send(ticket, open));
        }
        let told = |open: &Open<R>| matches!(open.broken, Some(SyncError::BarrierBroken { epoch: of, .. }) if of <= epoch);
        for (_, open) in self.open.extract_if(.., |_, open| told(open)) {
            out.extend(open.broken.and_then(|error| answer(open.reply_to, Err(error))));
        }
        out
    }

    /// Forgets what is open, without answers.
    pub fn drop_open(&mut self) {
        self.open.clear();
    }

    /// Ends what was asked of homes that are lost, but for what is to be sent again, which it returns.
    fn end_moved(
        &mut self,
        moved: BTreeMap<u64, Open<R>>,
        lost_home: &dyn Fn(&SyncName) -> Option<NodeId>,
        out: &mut Vec<ClientOutput<R>>,
    ) -> BTreeMap<u64, Open<R>> {
        let cancelled: BTreeSet<u64> = moved
            .values()
            .filter_map(|open| match open.op {
                SyncOp::Cancel { waiter } => Some(waiter),
                _ => None,
            })
            .collect();
        let (mut again, mut cancels, mut taken_off) = (BTreeMap::new(), vec![], BTreeSet::new());
        for (ticket, open) in moved {
            let Some(node) = lost_home(&open.name) else { continue };
            let result = match (open.op, open.op.releases()) {
                (SyncOp::Cancel { waiter }, _) => {
                    cancels.push((waiter, open.reply_to));
                    continue;
                }
                (_, Some((holder, held))) => self.unlock_here(holder, held, &open.name),
                (op, _) if op.takes().is_some() || op.kind() == Some(Kind::Barrier) => {
                    if cancelled.contains(&ticket) || open.reply_to.is_none() {
                        taken_off.insert(ticket);
                        continue;
                    }
                    if op.takes().is_some() {
                        again.insert(ticket, open);
                        continue;
                    }
                    Err(SyncError::BarrierBroken { node, epoch: self.epoch() })
                }
                _ => Err(SyncError::ValueLost { node }),
            };
            out.extend(answer(open.reply_to, result));
        }
        // After the answers of those that were not cancelled.
        for (waiter, reply_to) in cancels {
            let gone = taken_off.contains(&waiter);
            let outcome = if gone { Outcome::Cancelled } else { Outcome::NotWaiting };
            out.extend(answer(reply_to, Ok(outcome)));
        }
        again
    }

    /// Unlocks what the lost home kept: it is not reported as held.
    fn unlock_here(&mut self, holder: u64, held: Option<Held>, name: &SyncName) -> Result {
        match self.held.get(&holder) {
            Some(hold) if hold.name == *name && held.is_none_or(|held| held == hold.held) => {
                self.held.remove(&holder);
                Ok(Outcome::Unlocked)
            }
            _ => Err(SyncError::NotHolder),
        }
    }

    /// Tells each survivor which locks are held here and have moved there, in parts.
    fn report(
        &self,
        lost_home: &dyn Fn(&SyncName) -> Option<NodeId>,
        out: &mut Vec<ClientOutput<R>>,
    ) {
        let mut holds: BTreeMap<NodeId, Vec<Hold>> = BTreeMap::new();
        for hold in self.held.values().filter(|hold| lost_home(&hold.name).is_some()) {
            if let Some(home) = home_of(&hold.name, self.nodes, self.lost) {
                holds.entry(home).or_default().push(hold.clone());
            }
        }
        for to in NodeSet::first(self.nodes).minus(self.lost).iter() {
            let mut rest = holds.remove(&to).unwrap_or_default();
            loop {
                let holds: Vec<Hold> = rest.drain(..rest.len().min(HOLDS_PER_PART)).collect();
                let report = SyncReport { epoch: self.epoch(), last: rest.is_empty(), holds };
                let last = report.last;
                out.push(ClientOutput::Send { to, message: ToHome::Report(report) });
                if last {
                    break;
                }
            }
        }
    }

    /// Sends a request to its home.
    fn send(&mut self, ticket: u64, open: Open<R>) -> Option<ClientOutput<R>> {
        let home = home_of(&open.name, self.nodes, self.lost)?;
        let (name, op) = (open.name.clone(), open.op);
        let request = SyncRequest { ticket, epoch: self.epoch(), name, op };
        self.open.insert(ticket, open);
        Some(ClientOutput::Send { to: home, message: ToHome::Request(request) })
    }
}

fn answer<R>(reply_to: Option<R>, result: Result) -> Option<ClientOutput<R>> {
    reply_to.map(|reply_to| ClientOutput::Answer { reply_to, result })
}
