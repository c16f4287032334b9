//! What a node tells of itself.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dsm_core::engine::{Engine, FaultKind, RegionStats};
use dsm_core::pages::RegionMemory;
use dsm_core::report::chain;
use dsm_core::transport::{
    Address, Class, Flush, Options, Received, Reject, Stream, Transport, dial,
};
use dsm_core::types::{NodeId, NodeSet, PAGE_SIZE, RegionId};
use dsm_core::uffd::{Mode, Privilege, Userfaultfd};
use dsm_core::wire::{
    self, BODY_MAX, Channel, ClusterId, ControlKind, Hello, Identity, Incarnation, Kind,
};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use super::api::NodeError;
use super::config::NodeConfig;
use super::driver::{Shared, lock};
use super::links::STATUS_KIND;

/// Longest status, in bytes.
const STATUS_BYTES_MAX: usize = 4 << 20;
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What the control thread publishes for others to read.
pub(super) struct Status {
    pub(super) since: Instant,
    pub(super) epoch: u64,
    pub(super) running: bool,
    pub(super) ended: bool,
    pub(super) live: NodeSet,
    /// Who is a member, or was.
    pub(super) met: NodeSet,
    /// Who left of its own will.
    pub(super) left: NodeSet,
    pub(super) missing: NodeSet,
    /// Why nodes could not be reached at the last attempt.
    pub(super) dial_errors: BTreeMap<NodeId, String>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            epoch: 0,
            running: false,
            ended: false,
            live: NodeSet::EMPTY,
            met: NodeSet::EMPTY,
            left: NodeSet::EMPTY,
            missing: NodeSet::EMPTY,
            dial_errors: BTreeMap::new(),
        }
    }
}

/// The status of a node as a JSON object; python/giantvm/status.py describes its fields.
pub(super) fn render(config: &NodeConfig, me: NodeId, engine: &Engine, shared: &Shared) -> Value {
    let regions: Vec<_> = lock(&shared.regions)
        .iter()
        .map(|(name, open)| (name.clone(), open.region, Arc::clone(&open.memory)))
        .collect();
    // The workers are asked with no lock held.
    let regions: Vec<Value> = regions
        .iter()
        .map(|(name, region, memory)| render_region(name, *region, memory, engine))
        .collect();
    let vm = lock(&shared.vm_status).clone().map(|vm| vm());
    let status = lock(&shared.status);
    let listed = lock(&shared.nodes).clone();
    let nodes = listed.iter().enumerate().filter_map(|(index, node)| {
        let id = NodeId::new(index)?;
        let state = match () {
            () if id == me => "up",
            () if !status.running && !status.ended => {
                if status.missing.contains(id) {
                    "absent"
                } else {
                    "up"
                }
            }
            () if !status.met.contains(id) => "absent",
            () if status.left.contains(id) => "left",
            () if !status.live.contains(id) => "lost",
            () => "up",
        };
        Some(json!({ "name": node.name, "state": state }))
    });
    json!({
        "cluster": config.cluster,
        "node": config.nodes.get(me.index()).map_or("", |node| &node.name),
        "index": me.index(),
        "epoch": status.epoch,
        "state": if status.ended { "ended" } else { "up" },
        "userfaultfd": userfaultfd(shared),
        "uptime_ms": status.since.elapsed().as_millis() as u64,
        "nodes": nodes.collect::<Vec<_>>(),
        "regions": regions,
        "vm": vm,
    })
}

fn userfaultfd(shared: &Shared) -> &'static str {
    let opened = lock(&shared.regions).values().next().map(|open| open.memory.privilege());
    // Without a region: what one would get.
    let probe = || Userfaultfd::open(Mode::FullOrUserMode).ok().map(|uffd| uffd.privilege());
    match opened.or_else(probe) {
        Some(Privilege::UserModeOnly) => "user-mode-only",
        Some(Privilege::Full) => "full",
        None => "refused",
    }
}

fn render_region(name: &str, region: RegionId, memory: &RegionMemory, engine: &Engine) -> Value {
    let stats = engine.stats(region).unwrap_or_default();
    let mut value = render_stats(&stats);
    if let Value::Object(fields) = &mut value {
        fields.insert("name".into(), name.into());
        fields.insert("size".into(), (memory.pages() * PAGE_SIZE as u64).into());
        let resident = memory.resident().unwrap_or(0) / PAGE_SIZE as u64;
        fields.insert("pages_resident".into(), resident.into());
    }
    value
}

/// Statistics of a region as JSON; python/giantvm/stats.py describes the fields.
pub(super) fn render_stats(stats: &RegionStats) -> Value {
    let counters = &stats.counters;
    let bytes = |pages: u64, without: u64| (pages - without.min(pages)) * PAGE_SIZE as u64;
    let latency: serde_json::Map<String, Value> = FaultKind::ALL
        .iter()
        .zip(&stats.latency)
        .map(|(kind, latency)| {
            let percentiles = json!({
                "p50": latency.percentile_us(50.0),
                "p90": latency.percentile_us(90.0),
                "p99": latency.percentile_us(99.0),
            });
            (fault_name(*kind).to_owned(), percentiles)
        })
        .collect();
    let contended: Vec<Value> =
        stats.contended.iter().map(|(page, count)| json!([page.0, count])).collect();
    let all: serde_json::Map<String, Value> =
        counters.fields().into_iter().map(|(name, count)| (name.into(), count.into())).collect();
    json!({
        "faults": {
            "read": counters.read_faults,
            "write": counters.write_faults,
            "upgrade": counters.upgrade_faults,
            "first_touch": counters.local_faults,
        },
        "latency_us": latency,
        "pages_sent": counters.pages_sent - counters.sent_without_data.min(counters.pages_sent),
        "pages_received":
            counters.pages_received - counters.received_without_data.min(counters.pages_received),
        "bytes_sent": bytes(counters.pages_sent, counters.sent_without_data),
        "bytes_received": bytes(counters.pages_received, counters.received_without_data),
        "data_free_grants": counters.received_without_data,
        "invalidations": counters.invalidations_received,
        "pages_evicted": counters.evicted,
        "pages_held": stats.pages_held,
        "pages_walk_shared": stats.walk_shared,
        "holds": stats.holds,
        "holds_expired": stats.holds_expired,
        "metadata_bytes": stats.metadata_bytes,
        "contended": contended,
        "counters": all,
    })
}

fn fault_name(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Local => "first_touch",
        other => other.name(),
    }
}

/// Tells the status to who asked over `stream`, and closes it.
pub(super) fn tell(
    mut stream: Stream,
    config: &NodeConfig,
    me: NodeId,
    engine: &Engine,
    shared: &Shared,
) {
    let text = render(config, me, engine, shared).to_string();
    let Some(kind) = ControlKind::new(STATUS_KIND) else { return };
    for part in text.as_bytes().chunks(BODY_MAX) {
        let mut head = Vec::new();
        let encoded = wire::encode_control(kind, RegionId(0), part, &mut head).is_ok();
        if !encoded || stream.send(Class::Urgent, &head, &[]).is_err() {
            return;
        }
    }
    let deadline = Instant::now() + ANSWER;
    while let Ok(Flush::Blocked) = stream.flush() {
        if !wait_for(stream.fd(), PollFlags::OUT, deadline) {
            return;
        }
    }
}

fn wait_for(fd: impl AsFd, flags: PollFlags, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = rustix::event::Timespec::try_from(left).ok();
    let mut fds = [PollFd::new(&fd, flags)];
    !left.is_zero() && poll(&mut fds, timeout.as_ref()).is_ok()
}

/// Asks the node at `address` for its status, as JSON text, without joining its cluster.
///
/// # Errors
///
/// [`NodeError::Config`] for an address that is none, [`NodeError::Unreachable`] if nobody answers
/// there, or another cluster than `cluster`, [`NodeError::TimedOut`].
pub fn query_status(address: &str, cluster: &str, timeout: Duration) -> Result<String, NodeError> {
    let deadline = Instant::now() + timeout;
    let address: Address =
        address.parse().map_err(|error: dsm_core::transport::AddressError| NodeError::Config {
            what: error.to_string(),
        })?;
    let unreachable = |reason: String| NodeError::Unreachable { reason };
    let node = NodeId::new(0).ok_or(NodeError::Closed)?;
    let from = Identity {
        cluster: ClusterId([0; 16]),
        epoch: 0,
        node,
        nodes: 1,
        workers: 1,
        incarnation: Incarnation(1),
    };
    let hello = Hello { from, to: node, channel: Channel::Status };
    let (mut stream, _) = dial(&address, &hello, deadline, Options::default())
        .map_err(|error| unreachable(chain(&error)))?;
    let mut bytes = Vec::new();
    loop {
        let received = stream.receive(&mut |header, body, _| {
            let is_status =
                matches!(header.kind(), Kind::Control(kind) if kind.code() == STATUS_KIND);
            if !is_status || bytes.len() + body.len() > STATUS_BYTES_MAX {
                return Err(Reject("no status".into()));
            }
            bytes.extend_from_slice(body);
            Ok(())
        });
        match received.map_err(|error| unreachable(chain(&error)))? {
            Received::Closed => break,
            Received::More => {}
            Received::WouldBlock => {
                if !wait_for(stream.fd(), PollFlags::IN, deadline) {
                    return Err(NodeError::TimedOut { what: format!("the status of {address}") });
                }
            }
        }
    }
    let text = String::from_utf8(bytes).map_err(|error| unreachable(error.to_string()))?;
    let value: Value =
        serde_json::from_str(&text).map_err(|error| unreachable(error.to_string()))?;
    match value.get("cluster").and_then(Value::as_str) {
        Some(found) if found == cluster => Ok(text),
        found => Err(unreachable(format!(
            "{address} belongs to cluster {}, not {cluster:?}",
            found.map_or("?".into(), |name| format!("{name:?}"))
        ))),
    }
}
