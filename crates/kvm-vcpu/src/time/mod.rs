//! One clock for all nodes: the guest's time-stamp counter.
//!
//! Node 0's guest TSC is the reference. Each other node exchanges messages with node 0
//! ([`Exchange`]); an [`Estimator`] turns them into hard bounds of the reference at any moment of the
//! node's own counter; a [`Discipline`] keeps the node's guest TSC inside what no message can
//! contradict, by the rate where the processor can scale its counter, and otherwise stops the machine
//! in time.
//!
//! How KVM makes the guest's counter of the host's is in [`Mapping`] and [`Scaler`]. Only [`tsc`]
//! touches the processor.

mod discipline;
mod estimator;
mod guest_clock;
mod mapping;
pub mod tsc;

#[cfg(test)]
mod simulation;

pub use discipline::{Action, Discipline, DisciplineConfig, StartError, StopReason};
pub use estimator::{ClockError, Estimate, Estimator, EstimatorConfig, Exchange};
pub use guest_clock::GuestClock;
pub use mapping::{Mapping, Ratio, Scaler, nominal_khz};
