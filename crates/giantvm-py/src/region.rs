//! `NativeRegion`.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsm_core::types::{Access, ThreadId};
use giantvm_node::node::Region;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::errors::{ClosedError, to_python};
use crate::fork::Owned;
use crate::node::{NativeNode, Slot, State, lock, wait};

/// Pages that the advice `sequential` fetches at once: two windows of fault-around.
const AHEAD_BYTES: u64 = 32 * 4096;

/// What belongs to the process that opened the region.
struct Handle {
    node: Arc<State>,
    slot: Arc<Slot>,
    exports: AtomicUsize,
    holds: Mutex<HashMap<u64, ThreadId>>,
}

/// A region's memory at this node: a writable buffer.
#[pyclass(frozen, subclass, module = "giantvm._native")]
pub(crate) struct NativeRegion {
    name: String,
    bytes: u64,
    handle: Owned<Handle>,
}

impl NativeRegion {
    fn region(&self) -> PyResult<Region> {
        let closed = || ClosedError::new_err(format!("region {:?} is closed", self.name));
        lock(&self.handle.get()?.slot).clone().ok_or_else(closed)
    }
}

#[pymethods]
impl NativeRegion {
    #[new]
    #[pyo3(signature = (node, name, size, overcommit, timeout_ms))]
    fn new(
        py: Python<'_>,
        node: &NativeNode,
        name: &str,
        size: Option<u64>,
        overcommit: bool,
        timeout_ms: Option<u64>,
    ) -> PyResult<Self> {
        let state = Arc::clone(node.state.get()?);
        let native = state.node()?;
        let bytes = match size {
            Some(size) => {
                let too_large = || PyValueError::new_err(format!("{size} bytes is too much"));
                Some(size.checked_next_multiple_of(4096).ok_or_else(too_large)?)
            }
            None => None,
        };
        let region =
            wait(py, timeout_ms, |patience| native.region(name, bytes, overcommit, patience))?;
        let bytes = region.bytes();
        let slot = Arc::new(Mutex::new(Some(region)));
        state.register(&slot);
        let handle =
            Handle { node: state, slot, exports: AtomicUsize::new(0), holds: Mutex::default() };
        Ok(Self { name: name.into(), bytes, handle: Owned::new(handle) })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn size(&self) -> u64 {
        self.bytes
    }

    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(lock(&self.handle.get()?.slot).is_none())
    }

    fn __len__(&self) -> usize {
        self.bytes as usize
    }

    /// Gives out the region's memory.
    ///
    /// # Safety
    ///
    /// Called by Python, with a `view` to fill.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let handle = this.handle.get()?;
        let memory = this.region()?.memory().view();
        let length = isize::try_from(memory.len())
            .map_err(|_| PyBufferError::new_err("the region is too large for a buffer"))?;
        // SAFETY: `view` comes from Python; the memory stays mapped while `handle.slot` has the
        // region, which `close` does not take while `exports` is not zero, and Python keeps the
        // object alive as long as the buffer.
        let result = unsafe {
            let start = memory.start as *mut c_void;
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, length, 0, flags)
        };
        if result != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        handle.exports.fetch_add(1, Ordering::SeqCst);
        handle.node.exports.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Takes note that a buffer is not used any more.
    ///
    /// # Safety
    ///
    /// Called by Python, once for each buffer.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        if let Ok(handle) = self.handle.get() {
            handle.exports.fetch_sub(1, Ordering::SeqCst);
            handle.node.exports.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn allocate(&self, py: Python<'_>, name: &str, size: u64, align: u64) -> PyResult<u64> {
        let region = self.region()?;
        if size == 0 || !align.is_power_of_two() {
            return Err(PyValueError::new_err(format!(
                "a block of {size} bytes aligned to {align}: give 1 byte or more, and a power of two"
            )));
        }
        wait(py, None, |patience| region.allocate(name, size, align, patience))
    }

    fn _stats_json(&self, py: Python<'_>) -> PyResult<String> {
        let region = self.region()?;
        py.detach(|| region.stats_json()).map_err(to_python)
    }

    /// Ranges of bytes, each as first and end.
    fn _lost(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        let region = self.region()?;
        let lost = py.detach(|| region.lost()).map_err(to_python)?;
        Ok(lost.into_iter().map(|range| (range.start, range.end)).collect())
    }

    fn _restore(&self, py: Python<'_>, start: u64, data: &[u8]) -> PyResult<()> {
        let region = self.region()?;
        py.detach(|| region.restore(start, data)).map_err(to_python)
    }

    fn _prefetch(&self, start: u64, stop: u64) -> PyResult<()> {
        self.region()?.prefetch(start..stop);
        Ok(())
    }

    fn _advise(&self, advice: &str, start: u64, stop: u64) -> PyResult<()> {
        let region = self.region()?;
        region.set_fault_around(advice != "random");
        if advice == "sequential" {
            region.prefetch(start..stop.min(start.saturating_add(AHEAD_BYTES)));
        }
        Ok(())
    }

    fn _hold(
        &self,
        py: Python<'_>,
        start: u64,
        stop: u64,
        write: bool,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let region = self.region()?;
        let access = if write { Access::Write } else { Access::Read };
        let timeout = Duration::from_millis(timeout_ms);
        let hold = py.detach(|| region.hold(start..stop, access, timeout)).map_err(to_python)?;
        let ticket = u64::from(hold.0);
        lock(&self.handle.get()?.holds).insert(ticket, hold);
        Ok(ticket)
    }

    fn _release(&self, ticket: u64) -> PyResult<()> {
        let hold = lock(&self.handle.get()?.holds).remove(&ticket);
        let hold = hold.ok_or_else(|| PyValueError::new_err(format!("no hold {ticket}")))?;
        self.region()?.release(hold);
        Ok(())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.handle.get()?;
        let exports = handle.exports.load(Ordering::SeqCst);
        if exports > 0 {
            return Err(PyBufferError::new_err(format!(
                "{exports} buffers of region {:?} are in use: delete the arrays and memoryviews \
                 first",
                self.name
            )));
        }
        let region = lock(&handle.slot).take();
        let holds: Vec<ThreadId> = lock(&handle.holds).drain().map(|(_, hold)| hold).collect();
        py.detach(|| {
            if let Some(region) = region {
                holds.into_iter().for_each(|hold| region.release(hold));
            }
        });
        Ok(())
    }
}
