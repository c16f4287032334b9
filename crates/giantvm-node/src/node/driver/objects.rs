//! What the control thread does for locks, barriers, counters and regions.

use std::cmp::Ordering;
use std::sync::Arc;

use dsm_core::engine::RegionSpec;
use dsm_core::pages::RegionMemory;
use dsm_core::pages::sigbus::Registration;
use dsm_core::protocol::Features;
use dsm_core::report::chain;
use dsm_core::types::{Epoch, NODES_MAX, NodeId, PAGE_SIZE, RegionId};
use dsm_core::uffd::Mode;

use super::losses::FRAIL;
use super::{Driver, NodeError, OpenRegion, RegionReply, SyncAnswer, lock};
use crate::control::{ControlMessage, RegionMessage};
use crate::membership::Event;
use crate::node::regions::{Addressed, Wanted};
use crate::sync::{ClientOutput, SyncName, SyncOp, SyncReply, ToHome};

/// A region to open at this node.
struct Opening<'a> {
    region: RegionId,
    name: &'a str,
    bytes: u64,
    recover: bool,
    /// When it began, if this node has joined since.
    since: Option<u16>,
    shares: Vec<u64>,
}

impl Driver {
    // Synchronisation objects.

    pub(super) fn sync(&mut self, ticket: u64, name: SyncName, op: SyncOp, reply: SyncAnswer) {
        let lost = lock(&self.setup.shared.lost).is_some();
        if lost || self.left_at_end {
            // Dropping `reply` tells the waiter to look why.
            return;
        }
        let output = self.sync.request(ticket, name, op, reply);
        self.sync_output(output);
    }

    /// Has locks, barriers and counters go on in an epoch: who is no member any more has certainly
    /// stopped. Each member is told in its own time, and may be told of several epochs at once.
    pub(super) fn sync_changed(&mut self, epoch: &Epoch) {
        let replies = self.home.changed(epoch);
        self.answer(replies);
        let output = self.sync.changed(epoch);
        self.sync_output(output);
    }

    pub(super) fn sync_output(&mut self, output: Vec<ClientOutput<SyncAnswer>>) {
        for output in output {
            match output {
                ClientOutput::Send { to, message } if to == self.setup.me => {
                    self.at_home(to, message);
                }
                ClientOutput::Send { to, message } => {
                    let message = match message {
                        ToHome::Request(request) => ControlMessage::SyncRequest(request),
                        ToHome::Report(report) => ControlMessage::SyncReport(report),
                    };
                    self.links.send(to, &message);
                }
                ClientOutput::Answer { reply_to, result } => _ = reply_to.try_send(result),
            }
        }
    }

    /// To the objects whose home is this node.
    pub(super) fn at_home(&mut self, from: NodeId, message: ToHome) {
        let replies = match message {
            ToHome::Request(request) => self.home.request(from, request),
            ToHome::Report(report) => self.home.report(from, report),
        };
        self.answer(replies);
    }

    pub(super) fn answer(&mut self, replies: Vec<(NodeId, SyncReply)>) {
        for (to, reply) in replies {
            if to == self.setup.me {
                self.deliver(to, &reply);
            } else {
                self.links.send(to, &ControlMessage::SyncReply(reply));
            }
        }
    }

    pub(super) fn deliver(&mut self, from: NodeId, reply: &SyncReply) {
        let output = self.sync.reply(from, reply);
        self.sync_output(output);
    }

    // Regions.

    pub(super) fn ask_directory(&mut self, message: RegionMessage) {
        match NodeId::new(0) {
            Some(deciding) if deciding != self.setup.me => {
                self.links.send(deciding, &ControlMessage::Region(message));
            }
            _ => self.handle_region(self.setup.me, message),
        }
    }

    pub(super) fn send_regions(&mut self, messages: Vec<Addressed>) {
        for (to, message) in messages {
            if to == self.setup.me {
                self.handle_region(to, message);
            } else {
                self.links.send(to, &ControlMessage::Region(message));
            }
        }
    }

    pub(super) fn handle_region(&mut self, from: NodeId, message: RegionMessage) {
        if self.directory.as_ref().is_some_and(|directory| !directory.has_member(from)) {
            // It has joined, and this node has not heard of that yet.
            return self.losses.keep_question(from, message);
        }
        let from_deciding = from.index() == 0;
        match message {
            RegionMessage::Open { .. } if from_deciding => self.open_in_order(message),
            RegionMessage::Create { ticket, name, bytes, overcommit, recover } => {
                if !recover {
                    self.setup.membership.close(FRAIL);
                }
                if let Some(directory) = &mut self.directory {
                    let wanted = Wanted { name: &name, bytes, overcommit, recover };
                    let out = directory.create(from, ticket, wanted);
                    self.send_regions(out);
                }
            }
            RegionMessage::Created { ticket, region } if from_deciding => {
                self.finish_region(ticket, Ok(u64::from(region.0)));
            }
            RegionMessage::Refused { ticket, reason } if from_deciding => {
                self.finish_region(ticket, Err(NodeError::Region { reason }));
            }
            RegionMessage::Allocated { ticket, offset } if from_deciding => {
                self.finish_region(ticket, Ok(offset));
            }
            RegionMessage::Close { region } if from_deciding => self.close_here(region),
            RegionMessage::Allocate { ticket, region, name, bytes, align } => {
                if let Some(directory) = &mut self.directory {
                    let out = directory.allocate(from, ticket, region, &name, bytes, align);
                    self.send_regions(vec![out]);
                }
            }
            // What remains are nodes' reports to the directory.
            RegionMessage::Created { region, .. } => self.opened_at(from, region),
            RegionMessage::Refused { ticket, reason } => self.failed_at(from, ticket, &reason),
            other => log::warn!("node {} sent {other:?}, which it may not", self.name(from)),
        }
    }

    /// Opens a region as the directory orders. An order of an epoch that this node does not know of is
    /// kept until it does; one of an earlier epoch is void: another will come from the directory when it
    /// knows of the new one, too.
    pub(super) fn open_in_order(&mut self, order: RegionMessage) {
        let RegionMessage::Open { region, ref name, bytes, recover, epoch, since, ref shares } =
            order
        else {
            return;
        };
        match epoch.cmp(&self.losses.now().number) {
            Ordering::Less => return,
            Ordering::Equal if self.started => {}
            Ordering::Equal | Ordering::Greater => return self.losses.keep(order),
        }
        let ticket = u64::from(region.0);
        if lock(&self.setup.shared.regions).values().any(|open| open.region == region) {
            // This node has joined, and was asked twice.
            return self.ask_opened(RegionMessage::Created { ticket, region });
        }
        let since = (since < epoch).then_some(since);
        let how = Opening { region, name, bytes, recover, since, shares: shares.clone() };
        let answer = match self.open_here(how) {
            Ok(()) => RegionMessage::Created { ticket, region },
            Err(reason) if since.is_some() => return self.cannot_join(name, &reason),
            Err(reason) => RegionMessage::Refused { ticket, reason },
        };
        self.ask_opened(answer);
    }

    /// This node has joined, but can't open a region that the others have: it goes again.
    fn cannot_join(&mut self, name: &str, reason: &str) {
        let reason = format!("this node can't open region {name:?} of the cluster: {reason}");
        self.end_with(self.lost(self.setup.me, reason));
        self.step(Event::Abandon);
    }

    /// Reports the result of an order of the directory, which may be at this node.
    pub(super) fn ask_opened(&mut self, answer: RegionMessage) {
        if self.directory.is_none() {
            return self.ask_directory(answer);
        }
        match answer {
            RegionMessage::Created { region, .. } => self.opened_at(self.setup.me, region),
            RegionMessage::Refused { ticket, reason } => {
                self.failed_at(self.setup.me, ticket, &reason);
            }
            _ => {}
        }
    }

    pub(super) fn opened_at(&mut self, node: NodeId, region: RegionId) {
        if let Some(directory) = &mut self.directory {
            let out = directory.opened(node, region);
            self.send_regions(out);
        }
    }

    pub(super) fn failed_at(&mut self, node: NodeId, ticket: u64, reason: &str) {
        if let Some(directory) = &mut self.directory {
            let out = directory.failed(node, ticket, reason);
            self.send_regions(out);
        }
    }

    pub(super) fn finish_region(&mut self, ticket: u64, result: RegionReply) {
        if let Some(reply) = self.region_replies.remove(&ticket) {
            let _ = reply.try_send(result);
        }
    }

    fn open_here(&self, how: Opening<'_>) -> Result<(), String> {
        let Opening { region, name, bytes, recover, since, shares } = how;
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE as u64) {
            return Err(format!("{bytes} bytes is no size of a region"));
        }
        if shares.is_empty() || shares.len() > NODES_MAX {
            return Err(format!("{} shares are not those of a cluster", shares.len()));
        }
        let workers = self.setup.config.workers;
        let memory = RegionMemory::open(name, bytes, workers, Mode::FullOrUserMode)
            .map_err(|error| chain(&error))?;
        let memory = Arc::new(memory);
        let registration = Registration::new(name, memory.view()).map_err(|error| chain(&error))?;
        let spec = RegionSpec {
            region,
            memory: Arc::clone(&memory),
            shares,
            since,
            features: Features { recover, zeros: recover, ..Features::default() },
        };
        self.setup.engine.open(&spec).map_err(|error| chain(&error))?;
        lock(&self.setup.shared.registrations).push(registration);
        lock(&self.setup.shared.regions).insert(name.into(), OpenRegion { region, memory });
        Ok(())
    }

    pub(super) fn close_here(&mut self, region: RegionId) {
        let mut closed = None;
        lock(&self.setup.shared.regions).retain(|name, open| {
            let keep = open.region != region;
            if !keep {
                closed = Some(name.clone());
            }
            keep
        });
        lock(&self.setup.shared.registrations)
            .retain(|registration| Some(registration.name()) != closed.as_deref());
        self.forget_region(region);
        if let Err(error) = self.setup.engine.close(region) {
            log::warn!("can't close region {}: {error}", region.0);
        }
    }
}
