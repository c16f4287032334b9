//! Errors of the node as Python's exceptions.

use dsm_core::engine::{HoldError, RestoreError};
use giantvm_node::node::NodeError;
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyValueError};
use pyo3::{PyErr, import_exception};

import_exception!(giantvm.errors, BarrierBroken);
import_exception!(giantvm.errors, ClosedError);
import_exception!(giantvm.errors, ClusterError);
import_exception!(giantvm.errors, ConfigError);
import_exception!(giantvm.errors, CounterLost);
import_exception!(giantvm.errors, ForkError);
import_exception!(giantvm.errors, NodeLost);
import_exception!(giantvm.errors, PagesLost);
import_exception!(giantvm.errors, TimeoutError);

/// The exception for `error`.
pub(crate) fn to_python(error: NodeError) -> PyErr {
    let text = error.to_string();
    match error {
        NodeError::Config { .. } | NodeError::NotLoopback { .. } => ConfigError::new_err(text),
        NodeError::Start { .. } | NodeError::Join { .. } | NodeError::Unreachable { .. } => {
            ClusterError::new_err(text)
        }
        NodeError::Lost(_) => NodeLost::new_err(text),
        NodeError::Closed => ClosedError::new_err(text),
        NodeError::TimedOut { .. } | NodeError::Hold(HoldError::TimedOut) => {
            TimeoutError::new_err(text)
        }
        NodeError::Interrupted => PyKeyboardInterrupt::new_err(()),
        NodeError::BarrierBroken { .. } => BarrierBroken::new_err(text),
        NodeError::ValueLost { .. } => CounterLost::new_err(text),
        NodeError::Sync { .. } | NodeError::Name { .. } => PyValueError::new_err(text),
        // The directory refuses what contradicts an earlier request, or what does not fit.
        NodeError::Region { reason } if reason.contains("exists with") => {
            PyValueError::new_err(text)
        }
        NodeError::Region { .. } => ClusterError::new_err(text),
        NodeError::NoRoom { .. } => PyMemoryError::new_err(text),
        NodeError::Hold(HoldError::Lost) => PagesLost::new_err(text),
        NodeError::Restore(RestoreError::Full { .. }) => PyMemoryError::new_err(text),
        NodeError::Restore(_) => PyValueError::new_err(text),
        NodeError::Hold(_) => PyValueError::new_err(text),
    }
}
