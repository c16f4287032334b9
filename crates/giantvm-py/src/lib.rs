//! The native module `giantvm._native`: a thin layer over `giantvm-node`, without logic of its own.
//!
//! Every call that waits releases Python's lock, and looks for signals while it waits. Nothing on a
//! fault path ever takes that lock.

mod errors;
mod exit;
mod fork;
mod log_lines;
mod node;
mod region;
mod vm;

use std::time::Duration;

use pyo3::prelude::*;

/// Version of the native module; equal to the package's.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Asks the node that listens on `address` for its status, without joining its cluster.
#[pyfunction]
fn query_status(
    py: Python<'_>,
    address: &str,
    cluster_name: &str,
    timeout_ms: u64,
) -> PyResult<String> {
    let timeout = Duration::from_millis(timeout_ms);
    py.detach(|| giantvm_node::node::query_status(address, cluster_name, timeout))
        .map_err(errors::to_python)
}

/// Asks etcd for the nodes of a cluster: name, address and share of memory of each.
#[pyfunction]
fn query_nodes(
    py: Python<'_>,
    etcd: Vec<String>,
    cluster_name: &str,
    timeout_ms: u64,
) -> PyResult<Vec<(String, String, u64)>> {
    let timeout = Duration::from_millis(timeout_ms);
    let nodes = py
        .detach(|| giantvm_node::node::query_nodes(&etcd, cluster_name, timeout))
        .map_err(errors::to_python)?;
    Ok(nodes.into_iter().map(|it| (it.name, it.address, it.memory_bytes)).collect())
}

/// The native half of the package `giantvm`; private.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    log_lines::install();
    exit::install(module)?;
    let all = [
        "NativeNode",
        "NativeRegion",
        "NativeRequest",
        "NativeVm",
        "query_nodes",
        "query_status",
        "version",
    ];
    module.add("__all__", all)?;
    module.add_class::<node::NativeNode>()?;
    module.add_class::<region::NativeRegion>()?;
    module.add_class::<vm::NativeRequest>()?;
    module.add_class::<vm::NativeVm>()?;
    module.add_function(wrap_pyfunction!(query_nodes, module)?)?;
    module.add_function(wrap_pyfunction!(query_status, module)?)?;
    module.add_function(wrap_pyfunction!(version, module)?)
}
