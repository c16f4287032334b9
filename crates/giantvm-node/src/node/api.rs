//! A node, as programs use it.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dsm_core::engine::{Engine, EngineEvent, HoldError, RestoreError};
use dsm_core::report::chain;
use dsm_core::transport::{Listener, Stream};
use dsm_core::types::NodeId;

use super::config::{Checked, NodeConfig, NodeSpec};
use super::driver::{
    Driver, Inbox, OpenRegion, RegionReply, Setup, Shared, StopVm, ToDriver, VmStatus, lock, now_ms,
};
use super::lost::{Lost, LostCallback};
use super::patience::Patience;
use super::region::Region;
use super::{etcd, status};
use crate::limits::NAME_BYTES_MAX;
use crate::membership::etcd::EtcdMembership;
use crate::membership::{ConfigError, Machine, Membership};
use crate::sync::{EVERY_NODE, Outcome, SyncError, SyncName, SyncOp};

/// How long a cancelled wait may take to end; reached only if a home does not answer, and is not
/// found to be lost in that time.
const CANCEL: Duration = Duration::from_secs(5);
/// The barrier at which closing nodes meet; no name that a program can use.
const CLOSE_BARRIER: &str = "\0close";

/// Why a node did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The configuration can't work.
    #[error("{what}")]
    Config {
        /// What is wrong with it.
        what: String,
    },
    /// An address that other machines can reach, without leave.
    #[error(
        "node {node} listens on {address}, which other machines can reach, and nothing \
         authenticates them; use a loopback address or a Unix socket, or allow it with --insecure"
    )]
    NotLoopback {
        /// The node.
        node: String,
        /// Its address.
        address: String,
    },
    /// The node can't listen, or the kernel refuses threads or descriptors.
    #[error("can't start: {reason}")]
    Start {
        /// Why.
        reason: String,
    },
    /// The cluster did not come about.
    #[error("can't join the cluster: {reason}")]
    Join {
        /// Why.
        reason: String,
    },
    /// A node is lost, and this one can't go on without it.
    #[error("node {} is lost: {}", .0.node, .0.reason)]
    Lost(Lost),
    /// The node was closed.
    #[error("this node is closed")]
    Closed,
    /// The time is up.
    #[error("timed out waiting for {what}")]
    TimedOut {
        /// What for.
        what: String,
    },
    /// The caller was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// The home of a lock, barrier or counter refuses.
    #[error("{name}: {error}")]
    Sync {
        /// The object.
        name: String,
        /// Why.
        error: SyncError,
    },
    /// A node was lost while some waited at a barrier.
    #[error(
        "barrier {name}: node {node} is lost, and nobody waits there any more: wait again, with \
         those that are left"
    )]
    BarrierBroken {
        /// The barrier.
        name: String,
        /// The lost node.
        node: String,
    },
    /// A counter's value was lost with its home.
    #[error(
        "counter {name}: its value was lost with node {node}, and whether an operation under way \
         was done is not known: set it again"
    )]
    ValueLost {
        /// The counter.
        name: String,
        /// The lost node.
        node: String,
    },
    /// A name that can't be one.
    #[error("{what}")]
    Name {
        /// What is wrong with it.
        what: String,
    },
    /// A region can't be opened.
    #[error("{reason}")]
    Region {
        /// Why.
        reason: String,
    },
    /// A region has no room for a named block.
    #[error("{reason}")]
    NoRoom {
        /// Why.
        reason: String,
    },
    /// Pages can't be held.
    #[error("{0}")]
    Hold(HoldError),
    /// Lost pages can't get new content.
    #[error("{0}")]
    Restore(RestoreError),
    /// Nobody answers at an address.
    #[error("{reason}")]
    Unreachable {
        /// Why.
        reason: String,
    },
}

/// A running node. Dropping the last handle ends it, without waiting for others; regions keep it
/// alive.
pub struct Node {
    config: Arc<NodeConfig>,
    me: NodeId,
    pub(super) engine: Arc<Engine>,
    shared: Arc<Shared>,
    inbox: Inbox,
    tickets: AtomicU64,
    driver: Mutex<Option<JoinHandle<()>>>,
    /// The thread that talks to etcd, where it decides.
    etcd: Mutex<Option<JoinHandle<()>>>,
}

impl Node {
    /// Starts a node and waits until the whole cluster is connected.
    ///
    /// `on_lost` is called on a thread of its own when a node is lost: after regions have settled, where
    /// this node goes on; where it can't, before accesses to lost memory end the process, but for 200 ms
    /// at most.
    ///
    /// # Errors
    ///
    /// [`NodeError::Config`], [`NodeError::NotLoopback`], [`NodeError::Start`] if the address is
    /// taken or the kernel refuses, [`NodeError::Join`] if not all nodes came in time, or one
    /// refused this node.
    pub fn start(
        config: NodeConfig,
        on_lost: Option<Arc<LostCallback>>,
        patience: &Patience<'_>,
    ) -> Result<Self, NodeError> {
        let mut checked = config.check()?;
        let failed = |reason: String| NodeError::Start { reason };
        let listener = Listener::bind(&checked.addresses[checked.me.index()])
            .map_err(|error| failed(chain(&error)))?;
        let (sender, messages) = mpsc::channel();
        let inbox = Inbox::new(sender).map_err(|error| failed(error.to_string()))?;
        let incarnation = checked.membership.incarnation;
        let find = |etcd| etcd::find(&config, etcd, incarnation, &inbox, &messages, patience);
        let found = config.etcd.as_ref().map(find).transpose()?;
        let (config, by_etcd) = match found {
            Some(etcd::Found { config, lease, revision, record, orders, thread }) => {
                checked = config.check()?;
                checked.membership.incarnation = incarnation;
                (config, Some((lease, revision, record, orders, thread)))
            }
            None => (config, None),
        };
        let Checked { me, membership, .. } = checked;
        let config = Arc::new(config);
        let events = inbox.clone();
        let engine = Engine::start(config.engine(me), move |event| {
            events.send(ToDriver::Engine(event));
        })
        .map_err(|error| failed(chain(&error)))?;
        let engine = Arc::new(engine);
        let nodes = Mutex::new(config.nodes.clone());
        let shared = Arc::new(Shared { nodes, ..Shared::default() });
        let invalid = |error: ConfigError| NodeError::Config { what: error.to_string() };
        let (membership, orders, thread): (Box<dyn Machine>, _, _) = match by_etcd {
            Some((lease, revision, record, orders, thread)) => {
                let now_ms = now_ms();
                let machine = EtcdMembership::new(membership, lease, revision, record, now_ms);
                (Box::new(machine.map_err(invalid)?), Some(orders), Some(thread))
            }
            None => {
                let machine = Membership::new(membership, now_ms()).map_err(invalid)?;
                (Box::new(machine), None, None)
            }
        };
        lock(&shared.status).missing = membership.verdict().missing;
        let (started, when_started) = mpsc::sync_channel(1);
        let driver = Driver::new(Setup {
            config: Arc::clone(&config),
            me,
            incarnation,
            membership,
            etcd: orders,
            listener,
            engine: Arc::clone(&engine),
            shared: Arc::clone(&shared),
            messages,
            inbox: inbox.clone(),
            on_lost,
            started,
        })
        .map_err(|error| failed(error.to_string()))?;
        let driver = std::thread::Builder::new()
            .name("gvm-control".into())
            .spawn(move || driver.run())
            .map_err(|error| failed(error.to_string()))?;
        let node = Self {
            config,
            me,
            engine,
            shared,
            inbox,
            tickets: AtomicU64::new(1),
            driver: Mutex::new(Some(driver)),
            etcd: Mutex::new(thread),
        };
        node.wait_for_start(&when_started, patience)?;
        Ok(node)
    }

    fn wait_for_start(
        &self,
        started: &Receiver<Result<(), NodeError>>,
        patience: &Patience<'_>,
    ) -> Result<(), NodeError> {
        match patience.wait(started) {
            Ok(Some(result)) => result,
            Ok(None) => Err(NodeError::Closed),
            Err(impatience) => Err(impatience.error(&self.missing_nodes())),
        }
    }

    /// Which nodes are not there, and why as far as this node knows.
    fn missing_nodes(&self) -> String {
        let status = lock(&self.shared.status);
        let names: Vec<String> = status
            .missing
            .iter()
            .map(|node| {
                let name = self.name_of(node);
                match status.dial_errors.get(&node) {
                    Some(reason) => format!("{name} ({reason})"),
                    None => format!("{name} (it has not connected)"),
                }
            })
            .collect();
        if names.is_empty() {
            "the other nodes' connections to each other".into()
        } else {
            format!("the nodes {}", names.join(", "))
        }
    }

    /// This node's position in the list.
    pub fn index(&self) -> usize {
        self.me.index()
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// The membership epoch: it rises when a node joins, leaves or is removed.
    pub fn epoch(&self) -> u64 {
        lock(&self.shared.status).epoch
    }

    /// The lost node that this one can't go on without, if there is one.
    pub fn lost(&self) -> Option<Lost> {
        lock(&self.shared.lost).clone()
    }

    /// Status as a JSON object.
    pub fn status_json(&self) -> String {
        status::render(&self.config, self.me, &self.engine, &self.shared).to_string()
    }

    /// Opens the region `name`; the first of the cluster to give a size (`Some`, in bytes, a
    /// multiple of 4096) creates it, others wait for that.
    ///
    /// # Errors
    ///
    /// [`NodeError::Region`] if it exists with another size, or the nodes can't hold it and
    /// `overcommit` is false; and what ends waiting.
    pub fn region(
        self: &Arc<Self>,
        name: &str,
        bytes: Option<u64>,
        overcommit: bool,
        patience: &Patience<'_>,
    ) -> Result<Region, NodeError> {
        self.open_region(name, bytes, overcommit, true, patience)
    }

    /// As [`Node::region`], for a region that ends when a node is lost, and the cluster with it.
    pub(crate) fn frail_region(
        self: &Arc<Self>,
        name: &str,
        bytes: u64,
        overcommit: bool,
        patience: &Patience<'_>,
    ) -> Result<Region, NodeError> {
        self.open_region(name, Some(bytes), overcommit, false, patience)
    }

    fn open_region(
        self: &Arc<Self>,
        name: &str,
        bytes: Option<u64>,
        overcommit: bool,
        recover: bool,
        patience: &Patience<'_>,
    ) -> Result<Region, NodeError> {
        check_name(name)?;
        self.ask_regions(&format!("region \"{name}\""), patience, |ticket, reply| {
            let (name, bytes) = (name.to_owned(), bytes.unwrap_or(0));
            ToDriver::Open { ticket, name, bytes, overcommit, recover, reply }
        })?;
        let open = lock(&self.shared.regions).get(name).cloned();
        let OpenRegion { region, memory } = open.ok_or(NodeError::Closed)?;
        Ok(Region::new(Arc::clone(self), region, memory))
    }

    pub(super) fn ask_regions(
        &self,
        what: &str,
        patience: &Patience<'_>,
        message: impl FnOnce(u64, SyncSender<RegionReply>) -> ToDriver,
    ) -> RegionReply {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = mpsc::sync_channel(1);
        if !self.inbox.send(message(ticket, reply)) {
            return Err(self.gone());
        }
        match patience.wait(&answer) {
            Ok(Some(result)) => result,
            Ok(None) => Err(self.gone()),
            Err(impatience) => {
                self.inbox.send(ToDriver::Forget { ticket });
                Err(impatience.error(what))
            }
        }
    }

    /// Why the control thread does not answer.
    pub(super) fn gone(&self) -> NodeError {
        self.lost().map_or(NodeError::Closed, NodeError::Lost)
    }

    /// The connections for a virtual machine, by node; each only once.
    pub(crate) fn take_vm_streams(&self) -> Result<Vec<Option<Stream>>, NodeError> {
        let (reply, answer) = mpsc::sync_channel(1);
        if !self.inbox.send(ToDriver::TakeVm { reply }) {
            return Err(self.gone());
        }
        answer.recv().map_err(|_| self.gone())
    }

    /// A connection of the virtual machine failed: so has the peer, as far as anyone knows.
    pub(crate) fn vm_link_failed(&self) -> impl Fn(NodeId, String) + Send + Sync + Clone + use<> {
        let inbox = self.inbox.clone();
        move |peer, reason| {
            inbox.send(ToDriver::Engine(EngineEvent::LinkFailed { peer, reason }));
        }
    }

    /// Keeps something as long as the node lives.
    pub(crate) fn keep(&self, it: impl Any + Send) {
        lock(&self.shared.kept).push(Box::new(it));
    }

    /// Sets what stops the virtual machine when a node is lost; at once, if one is already.
    pub(crate) fn set_stop_vm(&self, stop: Option<Arc<StopVm>>) {
        *lock(&self.shared.stop_vm) = stop.clone();
        if let (Some(stop), Some(lost)) = (stop, self.lost()) {
            stop(&lost);
        }
    }

    /// Has the node's status tell of its virtual machine.
    pub(crate) fn set_vm_status(&self, status: Option<Arc<VmStatus>>) {
        *lock(&self.shared.vm_status) = status;
    }

    /// Asks the home of a synchronisation object. A lock is held under the ticket returned.
    ///
    /// # Errors
    ///
    /// [`NodeError::Sync`] if the home refuses; and what ends waiting, after which nothing is held.
    pub fn sync(
        &self,
        name: &str,
        op: SyncOp,
        patience: &Patience<'_>,
    ) -> Result<(u64, Outcome), NodeError> {
        check_name(name)?;
        self.sync_unchecked(name, op, patience)
    }

    fn sync_unchecked(
        &self,
        text: &str,
        op: SyncOp,
        patience: &Patience<'_>,
    ) -> Result<(u64, Outcome), NodeError> {
        let name =
            SyncName::new(text).map_err(|error| NodeError::Name { what: error.to_string() })?;
        let (ticket, answer) = self.send_sync(name.clone(), op)?;
        match patience.wait(&answer) {
            Ok(answer) => self.sync_result(text, ticket, answer),
            Err(impatience) => {
                let waiter = SyncOp::Cancel { waiter: ticket };
                let (_, cancelled) = self.send_sync(name, waiter)?;
                match cancelled.recv_timeout(CANCEL) {
                    // Its own answer came before: the wait has succeeded after all.
                    Ok(Ok(Outcome::NotWaiting)) => match answer.try_recv() {
                        Ok(result) => self.sync_result(text, ticket, Some(result)),
                        Err(_) => Err(impatience.error(&format!("\"{text}\""))),
                    },
                    Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
                    Err(RecvTimeoutError::Timeout) => {
                        // It may still get a lock, which nobody would release.
                        self.inbox.send(ToDriver::GiveUpSync { ticket });
                        Err(impatience.error(&format!("\"{text}\"")))
                    }
                    Ok(_) => Err(impatience.error(&format!("\"{text}\""))),
                }
            }
        }
    }

    fn send_sync(
        &self,
        name: SyncName,
        op: SyncOp,
    ) -> Result<(u64, Receiver<Result<Outcome, SyncError>>), NodeError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = mpsc::sync_channel(1);
        if self.inbox.send(ToDriver::Sync { ticket, name, op, reply }) {
            Ok((ticket, answer))
        } else {
            Err(self.gone())
        }
    }

    fn sync_result(
        &self,
        name: &str,
        ticket: u64,
        answer: Option<Result<Outcome, SyncError>>,
    ) -> Result<(u64, Outcome), NodeError> {
        match answer {
            Some(Ok(outcome)) => Ok((ticket, outcome)),
            Some(Err(error)) => Err(self.sync_error(name.into(), error)),
            None => Err(self.gone()),
        }
    }

    /// `error`, with nodes by name.
    fn sync_error(&self, name: String, error: SyncError) -> NodeError {
        match error {
            SyncError::BarrierBroken { node, .. } => {
                NodeError::BarrierBroken { name, node: self.name_of(node) }
            }
            SyncError::ValueLost { node } => {
                NodeError::ValueLost { name, node: self.name_of(node) }
            }
            error => NodeError::Sync { name, error },
        }
    }

    /// The nodes of the list. Where etcd decides, others may come to have the places of nodes that are
    /// gone, and new places.
    pub fn nodes(&self) -> Vec<NodeSpec> {
        lock(&self.shared.nodes).clone()
    }

    /// The name of a node of the list.
    pub fn name_of(&self, node: NodeId) -> String {
        self.shared.name_of(node)
    }

    /// Waits until all nodes that are not lost close.
    fn meet_to_close(&self, patience: &Patience<'_>) -> Result<(), NodeError> {
        let op = SyncOp::BarrierWait { parties: EVERY_NODE };
        loop {
            match self.sync_unchecked(CLOSE_BARRIER, op, patience) {
                // A node was lost: the others meet again.
                Err(NodeError::BarrierBroken { .. }) => {}
                Err(error @ (NodeError::TimedOut { .. } | NodeError::Interrupted)) => {
                    return Err(error);
                }
                // Done, or nobody is left to wait for.
                _ => return Ok(()),
            }
        }
    }

    /// Leaves the cluster. Since this node owns pages, and is the home of locks and counters, that
    /// others may need, it serves them until all nodes close, unless `abandon`, or until `patience`
    /// ends; to others that use regions, this is then the loss of this node. Once a node is lost,
    /// nothing is waited for.
    ///
    /// # Errors
    ///
    /// What ended the waiting; the node has left all the same.
    pub fn close(&self, abandon: bool, patience: &Patience<'_>) -> Result<(), NodeError> {
        let Some(driver) = lock(&self.driver).take() else { return Ok(()) };
        let mut result = Ok(());
        if !abandon && self.lost().is_none() && lock(&self.shared.status).running {
            self.inbox.send(ToDriver::Closing);
            result = self.meet_to_close(patience);
        }
        self.inbox.send(ToDriver::Leave { abandon });
        self.shared.stop_dialing.store(true, Ordering::Relaxed);
        if driver.join().is_err() {
            log::error!("the control thread has panicked");
        }
        // After a loss the memory ends on a thread of its own, and the lease is given back then.
        if let Some(etcd) = lock(&self.etcd).take().filter(|_| self.lost().is_none())
            && etcd.join().is_err()
        {
            log::error!("the thread for etcd has panicked");
        }
        result
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.close(true, &Patience::FOREVER);
        // The signal handler must not speak for memory that is about to go.
        lock(&self.shared.registrations).clear();
        lock(&self.shared.kept).clear();
    }
}

pub(super) fn check_name(name: &str) -> Result<(), NodeError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let what = format!(
            "a name has 1 to {NAME_BYTES_MAX} bytes and no control characters, {name:?} does not"
        );
        return Err(NodeError::Name { what });
    }
    Ok(())
}
