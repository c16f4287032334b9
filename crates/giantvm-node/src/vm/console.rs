//! What the guest writes to its serial port, kept until somebody reads it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::api::ConsoleSink;
use crate::node::{NodeError, Patience, lock};

/// Most bytes that are kept for a reader: of more, the oldest go.
const KEPT_MAX: usize = 1 << 20;

/// The output of a serial port that nobody has read yet.
#[derive(Default)]
pub struct ConsoleOutput {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    dropped: u64,
    closed: bool,
}

impl ConsoleOutput {
    /// Nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Where the guest is to write.
    pub fn sink(self: &Arc<Self>) -> ConsoleSink {
        let output = Arc::clone(self);
        Arc::new(move |bytes| output.put(bytes))
    }

    /// No more will come.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Waits for output, and takes all there is; nothing once it is closed.
    ///
    /// # Errors
    /// What ended the waiting.
    pub fn read(&self, patience: &Patience<'_>) -> Result<Vec<u8>, NodeError> {
        patience.poll("the console", |until| self.read_until(until))
    }

    /// `None` if none came.
    fn read_until(&self, deadline: Instant) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        while state.bytes.is_empty() && !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(std::mem::take(&mut state.bytes).into())
    }

    /// Bytes that were not read in time.
    pub fn dropped(&self) -> u64 {
        lock(&self.state).dropped
    }

    fn put(&self, bytes: &[u8]) {
        {
            let mut state = lock(&self.state);
            state.bytes.extend(bytes);
            let excess = state.bytes.len().saturating_sub(KEPT_MAX);
            state.bytes.drain(..excess);
            state.dropped += excess as u64;
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_waits_for_its_reader_and_ends() {
        let console = ConsoleOutput::new();
        let sink = console.sink();
        sink(b"one ");
        sink(b"two");
        let now = Instant::now();
        assert_eq!(console.read_until(now).as_deref(), Some(&b"one two"[..]));
        assert_eq!(console.read_until(now), None);
        sink(b"last");
        console.close();
        assert_eq!(console.read_until(now).as_deref(), Some(&b"last"[..]));
        assert_eq!(console.read_until(now).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn of_too_much_output_the_newest_is_kept_and_the_rest_counted() {
        let console = ConsoleOutput::new();
        let sink = console.sink();
        sink(&[1; KEPT_MAX]);
        sink(b"new");
        let kept = console.read_until(Instant::now()).unwrap();
        assert_eq!((kept.len(), console.dropped()), (KEPT_MAX, 3));
        assert!(kept.ends_with(b"\x01new"));
    }
}
