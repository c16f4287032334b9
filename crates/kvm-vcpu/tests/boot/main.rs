//! Loaders: what they put into guest memory, and what they refuse.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod hostile;
mod images;
mod linux;
mod multiboot;
mod pvh;
mod refusals;
mod registers;
