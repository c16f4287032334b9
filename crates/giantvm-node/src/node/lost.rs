//! What a program is told of losses; and the end of a cluster, in a defined way, on every survivor.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsm_core::engine::Engine;
use dsm_core::pages::sigbus::Registration;

use super::driver::lock;
use crate::limits::CALLBACK_MS;

/// A node that was lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// Name of the node; this node's own if it is the one that is out.
    pub node: String,
    /// Its position in the cluster's list.
    pub index: usize,
    /// What happened to it.
    pub reason: String,
}

/// What a program is told of a loss.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Who is lost, and why.
    pub lost: Lost,
    /// Whether this node can't go on: its regions and locks end.
    pub ended: bool,
    /// Of each region, the ranges of bytes of which nothing is left, also after earlier losses, lowest
    /// first. Empty where all has ended.
    pub ranges: BTreeMap<String, Vec<Range<u64>>>,
}

/// Called on a thread of its own. Where the node goes on: after each loss, once regions have settled.
/// Where it does not: once, before the first access to lost memory ends the process.
pub type LostCallback = dyn Fn(&Loss) + Send + Sync;

/// How long the program's callback may take before waiting accesses end all the same.
const GRACE: Duration = Duration::from_millis(CALLBACK_MS);

/// Tells the program of losses that its node outlives, one after the other.
pub(super) struct Teller {
    callback: Option<Arc<LostCallback>>,
    losses: Option<Sender<Loss>>,
}

impl Teller {
    pub(super) fn new(callback: Option<Arc<LostCallback>>) -> Self {
        Self { callback, losses: None }
    }

    /// Has the program be told, soon.
    pub(super) fn tell(&mut self, loss: Loss) {
        let Some(callback) = &self.callback else { return };
        let sender = self.losses.get_or_insert_with(|| start_telling(Arc::clone(callback)));
        if sender.send(loss).is_err() {
            log::error!("can't tell the program of a loss: no thread for its callback");
        }
    }
}

/// The thread ends with the sender.
fn start_telling(callback: Arc<LostCallback>) -> Sender<Loss> {
    let (sender, losses) = mpsc::channel::<Loss>();
    let tell = move || losses.iter().for_each(|loss| callback(&loss));
    // Where there is no thread, sending fails.
    let _ = std::thread::Builder::new().name("gvm-on-loss".into()).spawn(tell);
    sender
}

/// The ranges of memory that a signal handler speaks for.
pub(super) type Registrations = Arc<Mutex<Vec<Registration>>>;

/// From now on, who touches lost memory of any region learns that it went with `node`, and why.
pub(super) fn mark_lost(registrations: &Registrations, node: &str, reason: &str) {
    lock(registrations).iter().for_each(|registration| registration.mark_lost(node, reason));
}

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
                callback(&Loss { lost: told, ended: true, ranges: BTreeMap::new() });
                let _ = done.send(());
            });
            if spawned.is_ok() {
                let _ = returned.recv_timeout(GRACE);
            }
        }
        mark_lost(&registrations, &lost.node, &lost.reason);
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
