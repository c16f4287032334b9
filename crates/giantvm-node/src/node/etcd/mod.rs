//! What a node has to do with etcd: a thread that keeps its lease, one that asks, the way into a
//! cluster, and the list of nodes for who wants to know.
//!
//! Both threads poll: once a heartbeat one renews the lease, the other reads the cluster's keys; two
//! small requests, neither of which etcd has to write to disk. A watch would save the second one,
//! but the read is also what makes a renewal count, and its load is bounded whatever happens.

mod asker;
mod client;
mod lease;

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::asker::Asker;
use self::client::Client;
use self::lease::Keeper;
use super::api::NodeError;
use super::config::{NodeConfig, NodeSpec};
use super::driver::{Inbox, ToDriver, now_ms};
use super::patience::Patience;
use crate::membership::Said;
use crate::membership::etcd::{
    Announcement, Forming, Lease, Next, Proposal, Record, Settings, View,
};

/// Where etcd is, and what a node must know that a list would tell it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdConfig {
    /// Its addresses, such as `http://127.0.0.1:2379`: one of each member, in the order to try.
    pub endpoints: Vec<String>,
    /// How many nodes the cluster has; `None` leaves it to the other nodes to say.
    pub nodes: Option<usize>,
}

/// Shortest time for one answer.
const PATIENCE_MIN: Duration = Duration::from_millis(100);

impl EtcdConfig {
    /// Every endpoint can be tried twice before a lease of `timeout` ends.
    fn patience(&self, timeout: Duration) -> Duration {
        (timeout / (2 * self.endpoints.len() as u32 + 2)).max(PATIENCE_MIN)
    }
}

/// What the thread that asks is asked for. When nobody can ask any more, the lease is given back.
pub(super) enum Order {
    Announce(String, Announcement),
    Propose(Box<Proposal>),
    Outrank,
}

/// What a node has found through etcd.
pub(super) struct Found {
    pub(super) config: NodeConfig,
    pub(super) lease: Lease,
    pub(super) revision: u64,
    pub(super) record: Record,
    pub(super) orders: Sender<Order>,
    pub(super) thread: JoinHandle<()>,
}

/// Waits until this node, `config`'s only one, is in the cluster's list.
pub(super) fn find(
    config: &NodeConfig,
    etcd: &EtcdConfig,
    incarnation: u64,
    inbox: &Inbox,
    messages: &Receiver<ToDriver>,
    patience: &Patience<'_>,
) -> Result<Found, NodeError> {
    loop {
        let found = find_with_lease(config, etcd, incarnation, inbox, messages, patience)?;
        if let Some(found) = found {
            return Ok(found);
        }
    }
}

/// Takes a lease and waits; `None` if the lease has ended before the node is in a list.
fn find_with_lease(
    config: &NodeConfig,
    etcd: &EtcdConfig,
    incarnation: u64,
    inbox: &Inbox,
    messages: &Receiver<ToDriver>,
    patience: &Patience<'_>,
) -> Result<Option<Found>, NodeError> {
    let own = &config.nodes[config.me];
    let mut client = Client::new(&etcd.endpoints, &config.cluster, etcd.patience(config.timeout));
    let seconds = config.timeout.as_millis().div_ceil(1000) as u64;
    let endpoints = etcd.endpoints.join(", ");
    let mut what = format!("etcd at {endpoints}");
    let (sent_ms, number, seconds) = loop {
        let sent_ms = now_ms();
        match client.grant(seconds) {
            Ok((number, seconds)) => break (sent_ms, number, seconds),
            Err(why) => what = format!("etcd ({why}); check that it runs there"),
        }
        let next = Instant::now() + config.heartbeat;
        patience.poll(&what, |until| {
            std::thread::sleep(until.min(next).saturating_duration_since(Instant::now()));
            (Instant::now() >= next).then_some(())
        })?;
    };
    let lease_ms = seconds.saturating_mul(1000);
    let mut lease = Lease { lease_ms, confirmed_ms: sent_ms, endpoints };
    let says = Announcement {
        listen: own.address.clone(),
        memory_bytes: own.memory_bytes,
        incarnation,
        settings: Settings {
            nodes: etcd.nodes.map(|nodes| nodes as u64),
            heartbeat_ms: config.heartbeat.as_millis() as u64,
            timeout_ms: config.timeout.as_millis() as u64,
            workers: config.workers as u64,
        },
    };
    let mut forming = Forming::new(&own.name, says.clone(), number, lease_ms);
    let (orders, receiver) = mpsc::channel();
    let thread = Keeper::start(client.clone(), number, inbox.clone(), config.heartbeat)
        .and_then(|keeper| Asker::start(client, keeper, inbox.clone(), receiver, config.heartbeat))
        .map_err(|error| NodeError::Start { reason: error.to_string() })?;
    let view = loop {
        let said = patience.poll(&what, |until| {
            match messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(ToDriver::Etcd(said)) => Some(said),
                _ => None,
            }
        })?;
        match said {
            Said::Renewed { sent_ms } => lease.confirmed_ms = lease.confirmed_ms.max(sent_ms),
            Said::NotRenewed { why } | Said::Failed { why } => what = format!("etcd ({why})"),
            Said::LeaseEnded => {
                // Nobody counts on a node that is in no list: it may wait on under another lease.
                log::warn!("{}; taking another one", lease.ended(now_ms()));
                // What these threads still say must not be taken for the next ones' word.
                drop(orders);
                let _ = thread.join();
                while messages.try_recv().is_ok() {}
                return Ok(None);
            }
            Said::Has(view) => match forming.look(now_ms(), &view) {
                Next::Wait(whom) => what = whom,
                Next::Announce => {
                    _ = orders.send(Order::Announce(own.name.clone(), says.clone()));
                }
                Next::Form(proposal) => _ = orders.send(Order::Propose(Box::new(proposal))),
                Next::Refused(reason) => return Err(NodeError::Join { reason }),
                Next::Formed => break view,
            },
        }
    };
    let View { revision, record, .. } = view;
    let record = record.ok_or(NodeError::Closed)?;
    let config = config_of(config, &record);
    Ok(Some(Found { config, lease, revision, record, orders, thread }))
}

/// The cluster as `record` lists it.
fn config_of(config: &NodeConfig, record: &Record) -> NodeConfig {
    let own = &config.nodes[config.me].name;
    let nodes = record.nodes.iter().map(|it| NodeSpec {
        name: it.name.clone(),
        address: it.listen.clone(),
        memory_bytes: it.memory_bytes,
        late: false,
    });
    NodeConfig {
        me: record.nodes.iter().position(|it| it.name == *own).unwrap_or(usize::MAX),
        nodes: nodes.collect(),
        ..config.clone()
    }
}

/// Asks etcd for the nodes of `cluster`, without joining it.
///
/// # Errors
///
/// [`NodeError::Unreachable`] if etcd does not answer, or knows no node of that cluster.
pub fn query_nodes(
    etcd: &[String],
    cluster: &str,
    timeout: Duration,
) -> Result<Vec<NodeSpec>, NodeError> {
    let unreachable = |reason: String| NodeError::Unreachable { reason };
    let patience = timeout / etcd.len().max(1) as u32;
    let (view, _) = Client::new(etcd, cluster, patience)
        .look()
        .map_err(|why| unreachable(format!("etcd does not answer: {why}")))?;
    let runs = |record: &Record| record.nodes.iter().any(|it| view.has(it));
    let nodes: Vec<NodeSpec> = match view.record.as_ref().filter(|record| runs(record)) {
        Some(record) => record
            .nodes
            .iter()
            .map(|it| (it.name.clone(), it.listen.clone(), it.memory_bytes))
            .map(spec)
            .collect(),
        None => view
            .present
            .iter()
            .map(|it| (it.name.clone(), it.says.listen.clone(), it.says.memory_bytes))
            .map(spec)
            .collect(),
    };
    if nodes.is_empty() {
        let addresses = etcd.join(", ");
        return Err(unreachable(format!("etcd at {addresses} knows no node of \"{cluster}\"")));
    }
    Ok(nodes)
}

fn spec((name, address, memory_bytes): (String, String, u64)) -> NodeSpec {
    NodeSpec { name, address, memory_bytes, late: false }
}
