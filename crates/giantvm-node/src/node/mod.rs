//! A running node: its threads, its connections, its regions and locks.
//!
//! One **control thread** owns every control connection and drives the machines of this crate:
//! membership, the synchronisation objects that live here, the directory of regions. The
//! engine's workers own the page connections. A dialling thread connects to the nodes earlier in the
//! list; later ones connect here. Threads of the application talk to the control thread through a
//! channel and wait for its answer; nothing here ever waits for them.

mod api;
mod config;
mod dialer;
mod driver;
mod etcd;
mod links;
mod lost;
mod patience;
mod region;
mod regions;
mod status;

pub use api::{Node, NodeError};
pub use config::{NodeConfig, NodeSpec};
pub(crate) use driver::lock;
pub use etcd::{EtcdConfig, query_nodes};
pub use lost::{Loss, Lost, LostCallback};
pub use patience::Patience;
pub(crate) use region::Flusher;
pub use region::Region;
pub use status::query_status;

/// Puts this thread before all of ordinary priority; where the process may not, it does without.
pub(crate) fn outrank() {
    if let Err(error) = dsm_core::engine::outrank() {
        let thread = std::thread::current();
        log::debug!("{}: no real-time priority: {error}", thread.name().unwrap_or("a thread"));
    }
}
