//! `NativeNode`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use dsm_core::engine::WaitMode;
use giantvm_node::node::{
    EtcdConfig, Loss, Lost, LostCallback, Node, NodeConfig, NodeError, NodeSpec, Patience, Region,
};
use giantvm_node::sync::{EVERY_NODE, Outcome, SyncError, SyncOp};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

use crate::errors::{ClosedError, ConfigError, to_python};
use crate::exit;
use crate::fork::Owned;
use crate::log_lines;

/// A region that Python has a handle on, until it is closed.
pub(crate) type Slot = Mutex<Option<Region>>;

/// What a node and its regions share.
pub(crate) struct State {
    node: Mutex<Option<Arc<Node>>>,
    slots: Mutex<Vec<Weak<Slot>>>,
    /// Buffers of all regions in use.
    pub(crate) exports: AtomicUsize,
}

/// Locks what nothing panics over.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(crate) fn node(&self) -> PyResult<Arc<Node>> {
        lock(&self.node).clone().ok_or_else(|| ClosedError::new_err("this node is closed"))
    }

    /// Has the region go with the node.
    pub(crate) fn register(&self, slot: &Arc<Slot>) {
        let mut slots = lock(&self.slots);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(slot));
    }
}

/// Runs `call` without Python's lock, for at most `timeout_ms`, or until a signal's handler raises.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    timeout_ms: Option<u64>,
    call: impl FnOnce(&Patience<'_>) -> Result<T, NodeError> + Send,
) -> PyResult<T> {
    wait_or(py, timeout_ms, to_python, call)
}

/// The same, for calls with errors of their own.
pub(crate) fn wait_or<T: Send, E: Send>(
    py: Python<'_>,
    timeout_ms: Option<u64>,
    convert: fn(E) -> PyErr,
    call: impl FnOnce(&Patience<'_>) -> Result<T, E> + Send,
) -> PyResult<T> {
    let raised = Mutex::new(None);
    let result = py.detach(|| {
        let interrupted = || {
            exit::stay_if_ending();
            Python::attach(|py| match py.check_signals() {
                Ok(()) => false,
                Err(error) => {
                    *lock(&raised) = Some(error);
                    true
                }
            })
        };
        let result = call(&Patience::new(timeout_ms.map(Duration::from_millis), &interrupted));
        exit::stay_if_ending();
        result
    });
    match lock(&raised).take() {
        Some(error) => Err(error),
        None => result.map_err(convert),
    }
}

/// One node of a cluster: the process that makes it.
#[pyclass(frozen, module = "giantvm._native")]
pub(crate) struct NativeNode {
    pub(crate) state: Owned<Arc<State>>,
}

fn wait_mode(name: &str) -> PyResult<WaitMode> {
    match name {
        "blocking" => Ok(WaitMode::Blocking),
        "adaptive" => Ok(WaitMode::Adaptive),
        "busy" => Ok(WaitMode::Busy),
        other => Err(ConfigError::new_err(format!(
            "wait {other:?}: use \"adaptive\", \"blocking\" or \"busy\""
        ))),
    }
}

fn callback(on_lost: Py<PyAny>) -> Arc<LostCallback> {
    let call = move |py: Python<'_>, loss: &Loss| {
        let Lost { node, index, reason } = &loss.lost;
        let ranges: Vec<(&str, Vec<(u64, u64)>)> = loss
            .ranges
            .iter()
            .map(|(name, lost)| (name.as_str(), lost.iter().map(|it| (it.start, it.end)).collect()))
            .collect();
        if let Err(error) = on_lost.call1(py, (node, index, reason, loss.ended, ranges)) {
            error.write_unraisable(py, Some(on_lost.bind(py)));
        }
    };
    Arc::new(move |loss: &Loss| exit::call_python(|| Python::attach(|py| call(py, loss))))
}

#[pymethods]
impl NativeNode {
    #[new]
    #[pyo3(signature = (name, index, names, addresses, cluster_name, memory_bytes, late, heartbeat_ms,
        timeout_ms, workers, wait, insecure, connect_timeout_ms, on_lost, etcd, etcd_nodes))]
    #[expect(clippy::too_many_arguments, reason = "the configuration, one by one")]
    fn new(
        py: Python<'_>,
        name: &str,
        index: usize,
        names: Vec<String>,
        addresses: Vec<String>,
        cluster_name: String,
        memory_bytes: Vec<u64>,
        late: Vec<bool>,
        heartbeat_ms: u64,
        timeout_ms: u64,
        workers: usize,
        wait: &str,
        insecure: bool,
        connect_timeout_ms: u64,
        on_lost: Option<Py<PyAny>>,
        etcd: Vec<String>,
        etcd_nodes: Option<usize>,
    ) -> PyResult<Self> {
        if [addresses.len(), memory_bytes.len(), late.len()] != [names.len(); 3] {
            return Err(ConfigError::new_err("lists of nodes with different lengths"));
        }
        if names.get(index).is_none_or(|found| found != name) {
            return Err(ConfigError::new_err(format!("node {name:?} is not number {index}")));
        }
        log_lines::name_node(name);
        let on_lost = on_lost.map(callback);
        let nodes = names.into_iter().zip(addresses).zip(memory_bytes).zip(late);
        let spec = |(((name, address), memory_bytes), late)| NodeSpec {
            name,
            address,
            memory_bytes,
            late,
        };
        let config = NodeConfig {
            cluster: cluster_name,
            me: index,
            nodes: nodes.map(spec).collect(),
            heartbeat: Duration::from_millis(heartbeat_ms),
            timeout: Duration::from_millis(timeout_ms),
            workers,
            wait: wait_mode(wait)?,
            insecure,
            join_timeout: None,
            etcd: (!etcd.is_empty()).then_some(EtcdConfig { endpoints: etcd, nodes: etcd_nodes }),
        };
        let node = self::wait(py, Some(connect_timeout_ms), |patience| {
            Node::start(config, on_lost, patience)
        })?;
        let state = State {
            node: Mutex::new(Some(Arc::new(node))),
            slots: Mutex::default(),
            exports: AtomicUsize::new(0),
        };
        Ok(Self { state: Owned::new(Arc::new(state)) })
    }

    /// The nodes of the cluster: name, address, share of memory of each, and whether it may be late.
    fn nodes(&self) -> PyResult<Vec<(String, String, u64, bool)>> {
        let node = self.node()?;
        let fields =
            |it: &NodeSpec| (it.name.clone(), it.address.clone(), it.memory_bytes, it.late);
        Ok(node.nodes().iter().map(fields).collect())
    }

    fn epoch(&self) -> PyResult<u64> {
        Ok(self.node()?.epoch())
    }

    fn status_json(&self, py: Python<'_>) -> PyResult<String> {
        let node = self.node()?;
        Ok(py.detach(|| node.status_json()))
    }

    #[pyo3(signature = (name, timeout_ms))]
    fn lock(
        &self,
        py: Python<'_>,
        name: &str,
        timeout_ms: Option<u64>,
    ) -> PyResult<(u64, Option<String>)> {
        self.take(py, name, SyncOp::MutexLock, timeout_ms)
    }

    fn unlock(&self, py: Python<'_>, name: &str, ticket: u64) -> PyResult<()> {
        self.sync(py, name, SyncOp::MutexUnlock { holder: ticket }, None).map(drop)
    }

    #[pyo3(signature = (name, write, timeout_ms))]
    fn rw_lock(
        &self,
        py: Python<'_>,
        name: &str,
        write: bool,
        timeout_ms: Option<u64>,
    ) -> PyResult<(u64, Option<String>)> {
        let op = if write { SyncOp::WriteLock } else { SyncOp::ReadLock };
        self.take(py, name, op, timeout_ms)
    }

    fn rw_unlock(&self, py: Python<'_>, name: &str, ticket: u64) -> PyResult<()> {
        let node = self.node()?;
        // Which way a ticket holds is known at the home only; the wrong one changes nothing.
        wait(py, None, |patience| {
            match node.sync(name, SyncOp::ReadUnlock { holder: ticket }, patience) {
                Err(NodeError::Sync { error: SyncError::NotHolder, .. }) => {
                    node.sync(name, SyncOp::WriteUnlock { holder: ticket }, patience)
                }
                result => result,
            }
        })
        .map(drop)
    }

    #[pyo3(signature = (name, parties, timeout_ms))]
    fn barrier_wait(
        &self,
        py: Python<'_>,
        name: &str,
        parties: Option<u32>,
        timeout_ms: Option<u64>,
    ) -> PyResult<()> {
        let parties = parties.map_or(EVERY_NODE, |parties| parties.min(EVERY_NODE - 1));
        self.sync(py, name, SyncOp::BarrierWait { parties }, timeout_ms).map(drop)
    }

    fn counter_add(&self, py: Python<'_>, name: &str, delta: i64) -> PyResult<i64> {
        self.value(py, name, SyncOp::CounterAdd { delta })
    }

    fn counter_get(&self, py: Python<'_>, name: &str) -> PyResult<i64> {
        self.value(py, name, SyncOp::CounterGet)
    }

    fn counter_set(&self, py: Python<'_>, name: &str, value: i64) -> PyResult<()> {
        self.value(py, name, SyncOp::CounterSet { value }).map(drop)
    }

    fn counter_compare_exchange(
        &self,
        py: Python<'_>,
        name: &str,
        expected: i64,
        new: i64,
    ) -> PyResult<(bool, i64)> {
        match self.sync(py, name, SyncOp::CompareExchange { expected, new }, None)?.1 {
            Outcome::Exchanged { done, before } => Ok((done, before)),
            other => Err(unexpected(other)),
        }
    }

    #[pyo3(signature = (wait, timeout_ms))]
    fn close(&self, py: Python<'_>, wait: bool, timeout_ms: Option<u64>) -> PyResult<()> {
        let state = self.state.get()?;
        let exports = state.exports.load(Ordering::SeqCst);
        if exports > 0 {
            return Err(PyBufferError::new_err(format!(
                "{exports} buffers of this node's regions are in use: delete the arrays and \
                 memoryviews first"
            )));
        }
        let Some(node) = lock(&state.node).take() else { return Ok(()) };
        let result = self::wait(py, timeout_ms, |patience| node.close(!wait, patience));
        let regions: Vec<Region> = lock(&state.slots)
            .drain(..)
            .filter_map(|slot| lock(&*slot.upgrade()?).take())
            .collect();
        py.detach(|| {
            drop(regions);
            drop(node);
        });
        result
    }
}

impl NativeNode {
    fn node(&self) -> PyResult<Arc<Node>> {
        self.state.get()?.node()
    }

    fn sync(
        &self,
        py: Python<'_>,
        name: &str,
        op: SyncOp,
        timeout_ms: Option<u64>,
    ) -> PyResult<(u64, Outcome)> {
        let node = self.node()?;
        wait(py, timeout_ms, |patience| node.sync(name, op, patience))
    }

    /// Takes a lock: its ticket, and the node with which it went, if it was abandoned.
    fn take(
        &self,
        py: Python<'_>,
        name: &str,
        op: SyncOp,
        timeout_ms: Option<u64>,
    ) -> PyResult<(u64, Option<String>)> {
        let (ticket, outcome) = self.sync(py, name, op, timeout_ms)?;
        Ok(match outcome {
            Outcome::Abandoned { node } => (ticket, Some(self.node()?.name_of(node))),
            _ => (ticket, None),
        })
    }

    fn value(&self, py: Python<'_>, name: &str, op: SyncOp) -> PyResult<i64> {
        match self.sync(py, name, op, None)?.1 {
            Outcome::Value(value) => Ok(value),
            other => Err(unexpected(other)),
        }
    }
}

/// A home's answer to another question.
fn unexpected(outcome: Outcome) -> PyErr {
    PyValueError::new_err(format!("unexpected answer {outcome:?}; please report this"))
}
