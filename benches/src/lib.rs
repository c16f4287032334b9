//! Benchmarks of giantvm, each beside its floor.
//!
//! A floor is a minimal program with the same threads and the same way of waking up that does
//! nothing but the work no implementation can avoid. It is measured in the same run, in batches
//! interleaved with those of giantvm, so that noise of the machine falls on both.
//!
//! To add a benchmark: implement [`Sampler`](sample::Sampler) for what is measured, write a
//! `fn run(&mut Report, &Options)` that interleaves it with a floor, and name that function in
//! [`suite::BENCHMARKS`].

mod channel;
pub mod error;
pub mod floor;
pub mod guest;
pub mod options;
pub mod ours;
pub mod placement;
pub mod report;
pub mod sample;
pub mod suite;
