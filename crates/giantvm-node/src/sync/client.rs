//! The side that asks: the open requests of one node, and the locks that it holds.

use std::collections::{BTreeMap, BTreeSet};

use dsm_core::types::{Epoch, NodeId};

use super::known::{FIRST_EPOCH, Known, Moves};
use super::message::{
    Held, Hold, Kind, Outcome, SyncError, SyncName, SyncOp, SyncReply, SyncReport, SyncRequest,
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
    known: Known,
    /// By ticket. Their homes are not lost.
    open: BTreeMap<u64, Open<R>>,
    /// By the ticket that locked.
    held: BTreeMap<u64, Hold>,
}

#[derive(Debug)]
struct Open<R> {
    name: SyncName,
    op: SyncOp,
    /// The epoch in which it was sent last.
    epoch: u16,
    /// None if nobody waits any more.
    reply_to: Option<R>,
    /// The answer, kept until this node has been told of the loss that it is about.
    broken: Option<SyncError>,
    /// What ended the meeting that it waits for, if the home takes it off for that.
    void: Option<SyncError>,
}

impl<R> SyncClient<R> {
    /// Nothing is asked yet, in a cluster whose starting list has `nodes` nodes (1 to 64); `epoch` is
    /// the first that this node knows. Send what [`SyncClient::begin`] says.
    pub fn new(nodes: usize, epoch: &Epoch) -> Self {
        Self { known: Known::new(nodes, epoch), open: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// What homes must hear of a node that was not there from the first epoch on, or was told of a
    /// later one first: that it holds nothing.
    pub fn begin(&self) -> Vec<ClientOutput<R>> {
        let mut out = Vec::new();
        if self.known.number() > FIRST_EPOCH {
            self.report(None, &mut out);
        }
        out
    }

    /// How many requests are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// How many locks are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Asks the home of `name`. No other request that is open or holding has this ticket.
    pub fn request(
        &mut self,
        ticket: u64,
        name: SyncName,
        op: SyncOp,
        reply_to: R,
    ) -> Vec<ClientOutput<R>> {
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
        self.send(ticket, name, op, Some(reply_to)).into_iter().collect()
    }

    /// Takes in a reply of the home `from`.
    pub fn reply(&mut self, from: NodeId, reply: &SyncReply) -> Vec<ClientOutput<R>> {
        let SyncReply { ticket, epoch: sent, result } = *reply;
        let known = self.known.number();
        let Some(open) = self.open.get_mut(&ticket) else { return Vec::new() };
        if sent < open.epoch || self.known.home(&open.name) != Some(from) {
            // It is for an earlier process with this number; or of the last home, which is lost, and
            // another has been asked.
            return Vec::new();
        }
        if let Err(error @ SyncError::BarrierBroken { epoch, .. }) = result
            && epoch > known
        {
            open.broken = Some(error);
            return Vec::new();
        }
        let result = match (result, open.void) {
            (Ok(Outcome::Cancelled), Some(void)) => Err(void),
            (Ok(Outcome::NotWaiting), Some(_)) => return Vec::new(), // it has its answer
            _ => result,
        };
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
        self.send(ticket, name, op, None).into_iter().collect()
    }

    /// From now on `epoch` says who is a member: whoever was and is not has stopped.
    pub fn changed(&mut self, epoch: &Epoch) -> Vec<ClientOutput<R>> {
        let Some(change) = self.known.change(epoch) else { return Vec::new() };
        let (mut out, moves) = (Vec::new(), change.moves);
        let moved: BTreeMap<u64, Open<R>> =
            self.open.extract_if(.., |_, open| moves.lost_home(&open.name).is_some()).collect();
        let again = self.end_moved(moved, moves, &mut out);
        self.report(Some(moves), &mut out);
        for (ticket, open) in again {
            out.extend(self.send(ticket, open.name, open.op, open.reply_to));
        }
        let number = self.known.number();
        let told = |open: &Open<R>| matches!(open.broken, Some(SyncError::BarrierBroken { epoch: of, .. }) if of <= number);
        for (_, open) in self.open.extract_if(.., |_, open| told(open)) {
            out.extend(open.broken.and_then(|error| answer(open.reply_to, Err(error))));
        }
        if let Some(node) = change.gone.iter().next() {
            self.leave_meetings(node, &mut out);
        }
        out
    }

    /// Has homes take off who waits at a barrier now that `node` is gone. They end such meetings
    /// themselves, if they knew of that node: not if it came and went between two epochs that the home
    /// was told of.
    fn leave_meetings(&mut self, node: NodeId, out: &mut Vec<ClientOutput<R>>) {
        let (known, epoch) = (&self.known, self.known.number());
        for (ticket, open) in &mut self.open {
            if open.op.kind() != Some(Kind::Barrier) {
                continue;
            }
            let Some(to) = known.home(&open.name) else { continue };
            open.void = Some(SyncError::BarrierBroken { node, epoch });
            let (name, op) = (open.name.clone(), SyncOp::Cancel { waiter: *ticket });
            let request = SyncRequest { ticket: *ticket, epoch, name, op };
            out.push(ClientOutput::Send { to, message: ToHome::Request(request) });
        }
    }

    /// Forgets what is open, without answers.
    pub fn drop_open(&mut self) {
        self.open.clear();
    }

    /// Ends what was asked of homes that are lost, but for what is to be sent again, which it returns.
    fn end_moved(
        &mut self,
        moved: BTreeMap<u64, Open<R>>,
        moves: Moves,
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
            let Some(node) = moves.lost_home(&open.name) else { continue };
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
                    Err(SyncError::BarrierBroken { node, epoch: self.known.number() })
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

    /// Unlocks what no home keeps any more: it is not reported as held.
    fn unlock_here(&mut self, holder: u64, held: Option<Held>, name: &SyncName) -> Result {
        match self.held.get(&holder) {
            Some(hold) if hold.name == *name && held.is_none_or(|held| held == hold.held) => {
                self.held.remove(&holder);
                Ok(Outcome::Unlocked)
            }
            _ => Err(SyncError::NotHolder),
        }
    }

    /// Tells each home which locks are held here and have moved there, in parts.
    fn report(&self, moves: Option<Moves>, out: &mut Vec<ClientOutput<R>>) {
        let mut holds: BTreeMap<NodeId, Vec<Hold>> = BTreeMap::new();
        let is_moved = |name| moves.and_then(|moves| moves.lost_home(name)).is_some();
        for hold in self.held.values().filter(|hold| is_moved(&hold.name)) {
            if let Some(home) = self.known.home(&hold.name) {
                holds.entry(home).or_default().push(hold.clone());
            }
        }
        let epoch = self.known.number();
        for to in self.known.homes().iter() {
            let mut rest = holds.remove(&to).unwrap_or_default();
            loop {
                let holds: Vec<Hold> = rest.drain(..rest.len().min(HOLDS_PER_PART)).collect();
                let report = SyncReport { epoch, last: rest.is_empty(), holds };
                let last = report.last;
                out.push(ClientOutput::Send { to, message: ToHome::Report(report) });
                if last {
                    break;
                }
            }
        }
    }

    /// Sends a request to its home; ends it here if there is none.
    fn send(
        &mut self,
        ticket: u64,
        name: SyncName,
        op: SyncOp,
        reply_to: Option<R>,
    ) -> Option<ClientOutput<R>> {
        let Some(to) = self.known.home(&name) else {
            let result = match (op, op.releases()) {
                (SyncOp::Cancel { .. }, _) => Ok(Outcome::NotWaiting),
                (_, Some((holder, held))) => self.unlock_here(holder, held, &name),
                _ => Err(SyncError::NoHome),
            };
            return answer(reply_to, result);
        };
        let epoch = self.known.number();
        let request = SyncRequest { ticket, epoch, name: name.clone(), op };
        self.open.insert(ticket, Open { name, op, epoch, reply_to, broken: None, void: None });
        Some(ClientOutput::Send { to, message: ToHome::Request(request) })
    }
}

fn answer<R>(reply_to: Option<R>, result: Result) -> Option<ClientOutput<R>> {
    reply_to.map(|reply_to| ClientOutput::Answer { reply_to, result })
}
