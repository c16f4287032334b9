//! The end of a cluster: in a defined way, on every survivor.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsm_core::engine::Engine;
use dsm_core::pages::sigbus::Registration;

/// A node is gone, and the cluster's regions with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// Name of the node; this node's own if it is the one that is out.
    pub node: String,
    /// Its position in the cluster's list.
    pub index: usize,
    /// What happened to it.
    pub reason: String,
}

/// Called once, on a thread of its own, before the first access to lost memory ends the process.
pub type LostCallback = dyn Fn(&Lost) + Send + Sync;

/// How long the program's callback may take before waiting accesses end all the same. The thread
/// that the callback needs may be the one that waits.
const GRACE: Duration = Duration::from_millis(200);

/// The ranges of memory that a signal handler speaks for.
pub(super) type Registrations = Arc<Mutex<Vec<Registration>>>;

/// Ends all regions: tells the program, marks the memory, ends waiting accesses. On its own thread,
/// since the program's callback may take its time. Drops `until_ended` when they have ended.
pub(super) fn end_regions(
    lost: Lost,
    engine: Arc<Engine>,
    registrations: Registrations,
    callback: Option<Arc<LostCallback>>,
    until_ended: impl Send + 'static,
) {
    let end = move || {
        if let Some(callback) = callback {
            let (done, returned) = mpsc::channel();
            let told = lost.clone();
            let spawned = std::thread::Builder::new().name("gvm-on-lost".into()).spawn(move || {
                callback(&told);
                let _ = done.send(());
            });
            if spawned.is_ok() {
                let _ = returned.recv_timeout(GRACE);
            }
        }
        let registrations = registrations.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for registration in registrations.iter() {
            registration.mark_lost(&lost.node, &lost.reason);
        }
        if let Err(error) = engine.end() {
            log::error!("can't end the regions: {error}");
        }
        drop(until_ended);
    };
    if let Err(error) = std::thread::Builder::new().name("gvm-end".into()).spawn(end) {
        log::error!("can't start the thread that ends the regions: {error}");
        std::process::abort();
    }
}
