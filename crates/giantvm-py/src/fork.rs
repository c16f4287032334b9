//! What must not be touched in a child made by `fork`: its threads and memory do not exist there.

use std::mem::ManuallyDrop;
use std::process;

use pyo3::PyResult;

use crate::errors::ForkError;

/// A value of the process that made it. A forked child neither uses nor drops it.
pub(crate) struct Owned<T> {
    process: u32,
    value: ManuallyDrop<T>,
}

impl<T> Owned<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { process: process::id(), value: ManuallyDrop::new(value) }
    }

    /// The value, or the error of a forked child.
    pub(crate) fn get(&self) -> PyResult<&T> {
        if self.is_here() {
            Ok(&self.value)
        } else {
            Err(ForkError::new_err(
                "this node belongs to the process that made it, and a child made by fork has \
                 neither its threads nor its memory: make a node in the child, or start it with \
                 the \"spawn\" method",
            ))
        }
    }

    fn is_here(&self) -> bool {
        process::id() == self.process
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.is_here() {
            // SAFETY: dropped once, here, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}
