//! What the control thread does for locks, barriers, counters and regions.

use std::sync::Arc;

use dsm_core::engine::RegionSpec;
use dsm_core::pages::RegionMemory;
use dsm_core::pages::sigbus::Registration;
use dsm_core::protocol::Features;
use dsm_core::report::chain;
use dsm_core::types::{Epoch, NODES_MAX, NodeId, PAGE_SIZE, RegionId};
use dsm_core::uffd::Mode;

use super::losses::FRAIL;
use super::{Asked, Driver, NodeError, OpenRegion, RegionReply, Reply, SyncAnswer, lock};
use crate::control::{ControlMessage, RegionMessage, RegionOrigin};
use crate::membership::Event;
use crate::node::regions::{Addressed, Directory, Wanted};
use crate::sync::{ClientOutput, SyncName, SyncOp, SyncReply, ToHome};

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

    /// A thread of this node asks the directory.
    pub(super) fn ask(&mut self, ticket: u64, question: RegionMessage, reply: Reply<RegionReply>) {
        if let Some(lost) = lock(&self.setup.shared.lost).clone() {
            let _ = reply.try_send(Err(NodeError::Lost(lost)));
            return;
        }
        self.asked.insert(ticket, Asked { question: question.clone(), reply });
        self.ask_directory(question);
    }

    /// Another node keeps the directory now: what was asked and not answered is asked again.
    pub(super) fn ask_again(&mut self) {
        let questions: Vec<_> = self.asked.values().map(|it| it.question.clone()).collect();
        questions.into_iter().for_each(|question| self.ask_directory(question));
    }

    /// To the node that keeps the directory.
    pub(super) fn ask_directory(&mut self, message: RegionMessage) {
        match self.losses.now().eldest() {
            Some(keeper) if keeper != self.setup.me => {
                self.links.send(keeper, &ControlMessage::Region(message));
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
        if self.is_early(from, &message) {
            return self.losses.keep(from, message);
        }
        let from_keeper = self.losses.now().eldest() == Some(from);
        match message {
            RegionMessage::Create { ticket, name, bytes, overcommit, recover } => {
                if !recover {
                    self.setup.membership.close(FRAIL);
                }
                let wanted = Wanted { name: &name, bytes, overcommit, recover };
                self.at_directory(|directory| directory.create(from, ticket, wanted));
            }
            RegionMessage::Allocate { ticket, region, name, bytes, align } => {
                self.at_directory(|directory| {
                    vec![directory.allocate(from, ticket, region, &name, bytes, align)]
                });
            }
            RegionMessage::Has { .. } | RegionMessage::HasBlock { .. } => {
                self.at_directory(|directory| directory.told(from, message));
            }
            RegionMessage::HasAll { .. } => {
                self.at_directory(|directory| directory.told(from, message));
                self.take_up_early();
            }
            RegionMessage::Open { .. } if from_keeper => self.open_in_order(message),
            RegionMessage::Created { ticket, region } if from_keeper => {
                self.finish_region(ticket, Ok(u64::from(region.0)));
            }
            RegionMessage::Refused { ticket, reason } if from_keeper => {
                self.finish_region(ticket, Err(NodeError::Region { reason }));
            }
            RegionMessage::Allocated { ticket, offset } if from_keeper => {
                self.finish_region(ticket, Ok(offset));
            }
            RegionMessage::Close { region } if from_keeper => self.close_here(region),
            RegionMessage::Tell { epoch } if from_keeper => {
                let told = self.catalogue.tell(epoch);
                told.into_iter().for_each(|it| self.ask_directory(it));
            }
            // What remains are nodes' reports to the directory.
            RegionMessage::Created { region, .. } => self.opened_at(from, region),
            RegionMessage::Refused { ticket, reason } => self.failed_at(from, ticket, &reason),
            other => log::warn!("node {} sent {other:?}, which it may not", self.name(from)),
        }
    }

    /// Whether `message` is for later: its sender knows of an epoch that this node does not know of, or it is
    /// a question for the directory, and members have yet to tell what was in it.
    fn is_early(&self, from: NodeId, message: &RegionMessage) -> bool {
        match (message, &self.directory) {
            (RegionMessage::Create { .. } | RegionMessage::Allocate { .. }, directory) => {
                let ready = |it: &Directory| it.has_member(from) && !it.is_gathering();
                !directory.as_ref().is_some_and(ready)
            }
            (RegionMessage::Open { epoch, .. } | RegionMessage::Tell { epoch }, _) => {
                !self.started || *epoch > self.losses.now().number
            }
            (_, Some(directory)) => !directory.has_member(from),
            (_, None) => !self.started,
        }
    }

    /// Handles again what was kept.
    pub(super) fn take_up_early(&mut self) {
        for (from, message) in self.losses.take_early() {
            self.handle_region(from, message);
        }
    }

    /// Does something at the directory, if this node keeps it, and sends what follows.
    fn at_directory(&mut self, act: impl FnOnce(&mut Directory) -> Vec<Addressed>) {
        if let Some(directory) = &mut self.directory {
            let out = act(directory);
            self.send_regions(out);
        }
    }

    /// A further epoch has begun, in which the directory may be another node's to keep.
    pub(super) fn directory_changed(&mut self, before: &Epoch) {
        let now = self.losses.now().clone();
        let moved = now.eldest() != before.eldest();
        if self.directory.is_none() && now.eldest() == Some(self.setup.me) {
            log::info!("this node keeps the directory of regions from epoch {} on", now.number);
            let nodes = lock(&self.setup.shared.nodes).clone();
            let (directory, asks) = Directory::take_over(nodes, self.setup.config.workers, now);
            self.directory = Some(directory);
            self.send_regions(asks);
        } else {
            self.at_directory(|directory| directory.changed(&now));
        }
        self.take_up_early();
        if moved {
            self.ask_again();
        }
    }

    /// Opens a region as the directory orders. An order of an earlier epoch is void: another will come from
    /// the directory when it knows of the new one, too.
    fn open_in_order(&mut self, order: RegionMessage) {
        let RegionMessage::Open { epoch, origin } = order else { return };
        if epoch < self.losses.now().number {
            return;
        }
        let region = origin.region;
        let ticket = u64::from(region.0);
        if lock(&self.setup.shared.regions).values().any(|open| open.region == region) {
            // This node has joined, and was asked twice.
            return self.ask_opened(RegionMessage::Created { ticket, region });
        }
        let joined = origin.since < epoch;
        let answer = match self.open_here(&origin, joined) {
            Ok(()) => {
                self.catalogue.opened(origin);
                RegionMessage::Created { ticket, region }
            }
            Err(reason) if joined => return self.cannot_join(&origin.name, &reason),
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
        self.at_directory(|directory| directory.opened(node, region));
    }

    pub(super) fn failed_at(&mut self, node: NodeId, ticket: u64, reason: &str) {
        self.at_directory(|directory| directory.failed(node, ticket, reason));
    }

    pub(super) fn finish_region(&mut self, ticket: u64, result: RegionReply) {
        if let Some(Asked { question, reply }) = self.asked.remove(&ticket) {
            if let Ok(offset) = &result {
                self.catalogue.allocated(&question, *offset);
            }
            let _ = reply.try_send(result);
        }
    }

    /// Opens a region here. `joined`: it was there before this node.
    fn open_here(&self, origin: &RegionOrigin, joined: bool) -> Result<(), String> {
        let RegionOrigin { region, ref name, bytes, recover, since, ref shares, .. } = *origin;
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
            shares: shares.clone(),
            since: joined.then_some(since),
            features: Features { recover, zeros: recover, ..Features::default() },
        };
        self.setup.engine.open(&spec).map_err(|error| chain(&error))?;
        lock(&self.setup.shared.registrations).push(registration);
        lock(&self.setup.shared.regions).insert(name.clone(), OpenRegion { region, memory });
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
        self.catalogue.closed(region);
        if let Err(error) = self.setup.engine.close(region) {
            log::warn!("can't close region {}: {error}", region.0);
        }
    }
}
