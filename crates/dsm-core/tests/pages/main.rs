//! The memory of a region on the real userfaultfd of the machine that runs the tests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lost;
mod open;
mod rights;
mod support;
