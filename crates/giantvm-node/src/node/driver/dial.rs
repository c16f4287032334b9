//! Whom the control thread calls, and when: nodes earlier in the list, while they are not connected. Where
//! etcd decides, it knows which of them are there.
//!
//! A node calls again when a connection has ended: the other node may come back as a new process. One
//! thread at a time calls a node, so that its connections are all with one process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dsm_core::transport::{Address, AddressError};
use dsm_core::types::{NodeId, NodeSet};

use super::{Driver, NodeError, lock};
use crate::node::dialer::Dialer;

/// Pause between calls of a node that the start waits for.
const PAUSE: Duration = Duration::from_millis(20);
/// The same, once the cluster runs; and before a node is called again.
const LONG_PAUSE: Duration = Duration::from_millis(500);

/// The calls of one node.
#[derive(Default)]
pub(super) struct Dials {
    /// Nodes that a thread calls.
    under_way: NodeSet,
    /// When nodes were called last.
    begun: BTreeMap<NodeId, Instant>,
}

impl Dials {
    /// Nobody calls `peer` any more.
    pub(super) fn ended(&mut self, peer: NodeId) {
        self.under_way.remove(peer);
    }

    fn may_begin(&self, peer: NodeId) -> bool {
        let lately = self.begun.get(&peer).is_some_and(|begun| begun.elapsed() < LONG_PAUSE);
        !self.under_way.contains(peer) && !lately
    }
}

impl Driver {
    /// Calls who is to be called, and is not.
    pub(super) fn dial(&mut self) {
        // With a virtual machine, nobody comes back.
        if self.leaving || self.losses.is_frail() || lock(&self.setup.shared.lost).is_some() {
            return;
        }
        let earlier = NodeSet::first(self.setup.me.index());
        let wanted = match self.setup.etcd {
            Some(_) => earlier.intersection(self.setup.membership.verdict().missing),
            None => earlier,
        };
        for peer in wanted.iter() {
            let link = self.links.by_peer.get(&peer);
            if link.is_some_and(|link| link.announced) || !self.dials.may_begin(peer) {
                continue;
            }
            if link.is_some() {
                // What has come of an earlier call is with a process that is gone.
                self.disconnected(peer, "not all connections came about".into());
            }
            self.begin_dial(peer);
        }
    }

    /// Where `peer` listens, if this node may call that.
    fn address(&self, peer: NodeId) -> Result<Address, String> {
        let nodes = lock(&self.setup.shared.nodes);
        let spec = nodes.get(peer.index()).ok_or("it is not in the list")?;
        let address: Address =
            spec.address.parse().map_err(|error: AddressError| error.to_string())?;
        if !self.setup.config.insecure && !address.is_loopback() {
            let (node, address) = (spec.name.clone(), address.to_string());
            return Err(NodeError::NotLoopback { node, address }.to_string());
        }
        Ok(address)
    }

    fn begin_dial(&mut self, peer: NodeId) {
        self.dials.begun.insert(peer, Instant::now());
        let address = match self.address(peer) {
            Ok(address) => address,
            Err(reason) => {
                lock(&self.setup.shared.status).dial_errors.insert(peer, reason);
                return;
            }
        };
        let dialer = Dialer {
            config: Arc::clone(&self.setup.config),
            local: self.setup.config.identity(self.setup.me, self.setup.incarnation, 0),
            peer,
            address,
            pause: if self.started { LONG_PAUSE } else { PAUSE },
            inbox: self.setup.inbox.clone(),
            stop: Arc::clone(&self.setup.shared.stop_dialing),
        };
        match dialer.start() {
            Ok(()) => self.dials.under_way.insert(peer),
            Err(error) => log::error!("can't start a thread to call {}: {error}", self.name(peer)),
        }
    }
}
