//! How the control thread's connections come about, are read, and end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dsm_core::report::chain;
use dsm_core::transport::{Interest, Options, Progress, Received, Reject, Stream, Transport};
use dsm_core::types::NodeId;
use dsm_core::wire::{Channel, Hello, Identity, Kind};

use super::{Driver, Link, Source};
use crate::control::ControlMessage;
use crate::membership::Event;
use crate::node::links::CONTROL_KIND;

/// Callers whose handshake is under way at a time; more wait in the kernel's queue.
const INCOMING_MAX: usize = 256;
/// How long a caller may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

impl Driver {
    fn identity(&self) -> Identity {
        let epoch = self.setup.membership.verdict().epoch;
        self.setup.config.identity(self.setup.me, self.setup.incarnation, epoch)
    }

    pub(super) fn accept(&mut self) {
        while self.incoming.len() < INCOMING_MAX {
            match self.setup.listener.accept(Instant::now() + HANDSHAKE) {
                Ok(Some(incoming)) => {
                    self.last_incoming = self.last_incoming.wrapping_add(1);
                    let number = self.last_incoming;
                    let source = Source::Incoming(number);
                    if self.links.watch(incoming.fd(), source, false).is_ok() {
                        self.incoming.insert(number, incoming);
                        self.shake_hands(number);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    log::warn!("can't accept a connection: {error}");
                    return;
                }
            }
        }
    }

    pub(super) fn shake_hands(&mut self, number: u32) {
        let Some(incoming) = self.incoming.remove(&number) else { return };
        self.links.unwatch(incoming.fd());
        let local = self.identity();
        let mut admit = |hello: &Hello| self.admit(hello);
        match incoming.drive(&local, Options::default(), &mut admit) {
            Ok(Progress::Pending(incoming)) => {
                let writable = incoming.interest() == Interest::Writable;
                let source = Source::Incoming(number);
                if self.links.watch(incoming.fd(), source, writable).is_ok() {
                    self.incoming.insert(number, incoming);
                }
            }
            Ok(Progress::Done(stream, hello)) => self.connected(hello, stream),
            Err(error) => log::warn!("{}", chain(&error)),
        }
    }

    fn admit(&self, hello: &Hello) -> Result<(), String> {
        if hello.channel == Channel::Status {
            return Ok(());
        }
        let node = hello.from.node;
        let other = |link: &&Link| link.announced && link.incarnation != hello.from.incarnation.0;
        if self.started && self.links.by_peer.get(&node).filter(other).is_some() {
            let name = self.name(node);
            return Err(format!(
                "another process runs as node {name} of this cluster; if it has ended, this one is \
                 taken in when the others know"
            ));
        }
        if node.index() < self.setup.me.index() {
            return Err("earlier nodes of the list are called, they don't call".into());
        }
        Ok(())
    }

    pub(super) fn expire_incoming(&mut self) {
        let now = Instant::now();
        let late: Vec<u32> = self
            .incoming
            .iter()
            .filter(|(_, incoming)| incoming.deadline() <= now)
            .map(|(&number, _)| number)
            .collect();
        for number in late {
            self.shake_hands(number);
        }
    }

    pub(super) fn connected(&mut self, hello: Hello, stream: Stream) {
        let (peer, incarnation) = (hello.from.node, hello.from.incarnation.0);
        if hello.channel == Channel::Status {
            return self.tell_status(stream);
        }
        let known = self.links.by_peer.get(&peer).map(|link| link.incarnation);
        if known.is_some_and(|known| known != incarnation) {
            self.disconnected(peer, "the node was started again".into());
        }
        let link = self.links.by_peer.entry(peer).or_insert_with(|| Link::new(incarnation));
        match hello.channel {
            Channel::Control => link.control = Some(stream),
            Channel::Worker(worker) => {
                link.workers.insert(worker);
                self.worker_streams.insert((peer, worker), stream);
            }
            Channel::Vm => {
                link.has_vm = true;
                link.vm = Some(stream);
            }
            Channel::Status => return,
        }
        if link.is_complete(self.setup.config.workers) && !link.announced {
            link.announced = true;
            self.announce(peer, incarnation);
        }
    }

    fn announce(&mut self, peer: NodeId, incarnation: u64) {
        for worker in 0..self.setup.config.workers {
            if let Some(stream) = self.worker_streams.remove(&(peer, worker as u8))
                && let Err(error) = self.setup.engine.attach(worker, peer, Box::new(stream))
            {
                log::error!("can't use the connection to {}: {error}", self.name(peer));
            }
        }
        let watched = self.links.by_peer.get(&peer).and_then(|link| link.control.as_ref());
        if let Some(stream) = watched
            && let Err(error) = self.links.watch(stream.fd(), Source::Link(peer), false)
        {
            return self.disconnected(peer, error.to_string());
        }
        self.step(Event::Connected { node: peer, incarnation });
    }

    /// The connections to `peer` are of no use any more. What it said last was read before: it may
    /// be why.
    pub(super) fn disconnected(&mut self, peer: NodeId, why: String) {
        if let Some(incarnation) = self.forget(peer) {
            self.step(Event::Disconnected { node: peer, incarnation, why });
        }
    }

    pub(super) fn forget(&mut self, peer: NodeId) -> Option<u64> {
        self.worker_streams.retain(|&(node, _), _| node != peer);
        self.setup.engine.detach(peer);
        self.losses.drop_early(peer);
        self.links.remove(peer)
    }

    pub(super) fn drop_failed(&mut self) {
        for (peer, reason) in self.links.take_failed() {
            self.read(peer);
            self.disconnected(peer, reason);
        }
    }

    pub(super) fn read(&mut self, peer: NodeId) {
        let Some(stream) = self.links.by_peer.get_mut(&peer).and_then(|l| l.control.as_mut())
        else {
            return;
        };
        let mut messages = Vec::new();
        let result = stream.receive(&mut |header, body, _| {
            let Kind::Control(kind) = header.kind() else {
                return Err(Reject("a page message on the control connection".into()));
            };
            if kind.code() != CONTROL_KIND {
                return Err(Reject(format!("unknown control frame {:#x}", kind.code())));
            }
            let message = ControlMessage::decode(body).map_err(|e| Reject(e.to_string()))?;
            messages.push(message);
            Ok(())
        });
        for message in messages {
            self.handle(peer, message);
        }
        match result {
            Ok(Received::Closed) => self.disconnected(peer, "it closed the connection".into()),
            Ok(_) => {}
            Err(error) => self.disconnected(peer, chain(&error)),
        }
    }

    fn tell_status(&self, stream: Stream) {
        let (config, me) = (Arc::clone(&self.setup.config), self.setup.me);
        let (engine, shared) = (Arc::clone(&self.setup.engine), Arc::clone(&self.setup.shared));
        let tell = move || crate::node::status::tell(stream, &config, me, &engine, &shared);
        // Statistics come from the workers, for which this thread does not wait.
        if let Err(error) = std::thread::Builder::new().name("gvm-status".into()).spawn(tell) {
            log::warn!("can't answer a status query: {error}");
        }
    }
}
