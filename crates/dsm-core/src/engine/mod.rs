//! Worker threads that carry faults, messages and pages around.
//!
//! A worker owns one stripe of every region and one connection to each peer; workers share nothing
//! but the ages of threads, and take no lock on the fault path. Faults come in by userfaultfd, messages by the transports;
//! the [`protocol`](crate::protocol) decides; pages and transports act. Commands of other threads
//! come in over a channel.
//!
//! Nothing here calls Python, waits for a thread of the application, or touches a view.

mod ages;
mod budget;
mod command;
mod event;
mod evict;
mod handle;
mod observe;
mod pace;
mod priority;
mod read_ahead;
mod recover;
mod residency;
mod restore;
mod shard;
mod source;
mod stats;
mod wait;
mod walks;
mod watch;
mod worker;
mod world;

pub use event::EngineEvent;
#[cfg(feature = "mutations")]
pub use handle::seed;
pub use handle::{Engine, EngineConfig, EngineError, HoldError, RegionSpec};
pub use observe::{Observed, Observer};
pub use pace::{Nudge, Pace};
pub use priority::outrank;
pub use restore::RestoreError;
pub use stats::{FaultKind, Latency, RegionStats};
pub use wait::WaitMode;
pub use walks::{Flushed, Frames, PageTables};
