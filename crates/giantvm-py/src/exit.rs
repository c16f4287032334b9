//! The end of the interpreter: no native thread may enter Python once it has begun, which would end
//! the process with a fatal error instead of the program's exit status.

use std::process;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use pyo3::prelude::*;

/// The process that loaded the module; a child made by `fork` has none of its threads.
static PROCESS: OnceLock<u32> = OnceLock::new();
static CALLS: Mutex<Calls> = Mutex::new(Calls { running: 0, ending: None });
static RETURNED: Condvar = Condvar::new();

struct Calls {
    /// Calls of native threads into Python.
    running: usize,
    /// The thread that ends the interpreter, once it does.
    ending: Option<ThreadId>,
}

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has Python say when it ends.
pub(crate) fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    PROCESS.get_or_init(process::id);
    let hook = wrap_pyfunction!(interpreter_ends, module)?;
    module.py().import("atexit")?.call_method1("register", (hook,))?;
    Ok(())
}

/// Runs `call`, which enters Python, on a native thread, unless the interpreter ends.
pub(crate) fn call_python(call: impl FnOnce()) {
    {
        let mut calls = calls();
        if calls.ending.is_some() {
            return;
        }
        calls.running += 1;
    }
    call();
    calls().running -= 1;
    RETURNED.notify_all();
}

/// Keeps a thread for good that would go back into an interpreter that ends.
pub(crate) fn stay_if_ending() {
    let ending = calls().ending;
    if ending.is_some_and(|ending| ending != thread::current().id()) {
        loop {
            thread::park();
        }
    }
}

/// Waits for the calls under way, and allows no more.
#[pyfunction]
fn interpreter_ends(py: Python<'_>) {
    if PROCESS.get() != Some(&process::id()) {
        return;
    }
    py.detach(|| {
        let mut calls = calls();
        calls.ending = Some(thread::current().id());
        while calls.running > 0 {
            calls = RETURNED.wait(calls).unwrap_or_else(PoisonError::into_inner);
        }
    });
}
