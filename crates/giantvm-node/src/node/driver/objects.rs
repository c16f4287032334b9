//! What the control thread does for locks, barriers, counters and regions.

use std::sync::Arc;

use dsm_core::engine::RegionSpec;
use dsm_core::pages::RegionMemory;
use dsm_core::pages::sigbus::Registration;
use dsm_core::protocol::Features;
use dsm_core::report::chain;
use dsm_core::types::{NodeId, PAGE_SIZE, RegionId};
use dsm_core::uffd::Mode;

use super::{Driver, NodeError, OpenRegion, RegionReply, Reply, lock};
use crate::control::{ControlMessage, RegionMessage};
use crate::node::regions::Addressed;
use crate::sync::{Outcome, SyncError, SyncReply, SyncRequest, home_of};

impl Driver {
    // Synchronisation objects.

    pub(super) fn sync(&mut self, request: SyncRequest, reply: Reply<Result<Outcome, SyncError>>) {
        let lost = lock(&self.setup.shared.lost).is_some();
        if lost || self.closing && self.someone_left {
            // Dropping `reply` tells the waiter to look why.
            return;
        }
        let Some(home) = home_of(&request.name, self.setup.config.nodes.len()) else { return };
        if !self.setup.membership.verdict().members.contains(home) {
            let _ = reply.try_send(Err(SyncError::PeerLost { node: home }));
            return;
        }
        self.sync_replies.insert(request.ticket, (home, reply));
        if home == self.setup.me {
            let replies = self.home.request(home, &request);
            self.answer(replies);
        } else {
            self.links.send(home, &ControlMessage::SyncRequest(request));
        }
    }

    pub(super) fn answer(&mut self, replies: Vec<(NodeId, SyncReply)>) {
        for (to, reply) in replies {
            if to == self.setup.me {
                self.deliver(reply);
            } else {
                self.links.send(to, &ControlMessage::SyncReply(reply));
            }
        }
    }

    pub(super) fn deliver(&mut self, reply: SyncReply) {
        if matches!(reply.result, Err(SyncError::PeerLost { .. })) {
            // Why, and which, comes from the deciding node, or this node ends for want of it: both
            // end the wait with the reason.
            return;
        }
        if let Some((_, waiter)) = self.sync_replies.remove(&reply.ticket) {
            let _ = waiter.try_send(reply.result);
        }
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
        let from_deciding = from.index() == 0;
        match message {
            RegionMessage::Create { region: Some(region), name, bytes, .. } if from_deciding => {
                let ticket = u64::from(region.0);
                let answer = match self.open_here(region, &name, bytes) {
                    Ok(()) => RegionMessage::Created { ticket, region },
                    Err(reason) => RegionMessage::Refused { ticket, reason },
                };
                self.ask_opened(answer);
            }
            RegionMessage::Create { ticket, region: None, name, bytes, overcommit } => {
                if let Some(directory) = &mut self.directory {
                    let out = directory.create(from, ticket, &name, bytes, overcommit);
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

    pub(super) fn open_here(&self, region: RegionId, name: &str, bytes: u64) -> Result<(), String> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE as u64) {
            return Err(format!("{bytes} bytes is no size of a region"));
        }
        let workers = self.setup.config.workers;
        let memory = RegionMemory::open(name, bytes, workers, Mode::FullOrUserMode)
            .map_err(|error| chain(&error))?;
        let memory = Arc::new(memory);
        let registration = Registration::new(name, memory.view()).map_err(|error| chain(&error))?;
        let spec = RegionSpec {
            region,
            memory: Arc::clone(&memory),
            shares: self.setup.config.shares(),
            features: Features::default(),
        };
        self.setup.engine.open(&spec).map_err(|error| chain(&error))?;
        lock(&self.setup.shared.registrations).push(registration);
        lock(&self.setup.shared.regions).insert(name.into(), OpenRegion { region, memory });
        Ok(())
    }

    pub(super) fn close_here(&self, region: RegionId) {
        lock(&self.setup.shared.regions).retain(|_, open| open.region != region);
        if let Err(error) = self.setup.engine.close(region) {
            log::warn!("can't close region {}: {error}", region.0);
        }
    }
}
