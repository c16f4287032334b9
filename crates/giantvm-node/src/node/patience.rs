//! How long calls wait.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::api::NodeError;

/// How often a waiting call looks whether its caller was interrupted.
const LOOK: Duration = Duration::from_millis(50);

/// How long a call waits, and what interrupts it.
pub struct Patience<'a> {
    /// When to give up.
    pub deadline: Option<Instant>,
    /// Asked every 50 ms whether to give up now.
    pub interrupted: &'a dyn Fn() -> bool,
}

impl Patience<'_> {
    /// Waits as long as it takes.
    pub const FOREVER: Patience<'static> = Patience { deadline: None, interrupted: &|| false };

    /// Waits for `timeout`, or as long as it takes.
    pub fn new(timeout: Option<Duration>, interrupted: &dyn Fn() -> bool) -> Patience<'_> {
        Patience { deadline: timeout.map(|timeout| Instant::now() + timeout), interrupted }
    }

    /// Calls `look`, which waits until the time it is given at most, until it finds something.
    pub(crate) fn poll<T>(
        &self,
        what: &str,
        mut look: impl FnMut(Instant) -> Option<T>,
    ) -> Result<T, NodeError> {
        loop {
            let now = Instant::now();
            let until = self.deadline.map_or(now + LOOK, |deadline| deadline.min(now + LOOK));
            if let Some(found) = look(until) {
                return Ok(found);
            }
            if (self.interrupted)() {
                return Err(Impatience::Interrupted.error(what));
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Impatience::TimedOut.error(what));
            }
        }
    }

    /// The answer, or why there is none; `None` if the other side is gone.
    pub(super) fn wait<T>(&self, answer: &Receiver<T>) -> Result<Option<T>, Impatience> {
        loop {
            let left = self.deadline.map(|it| it.saturating_duration_since(Instant::now()));
            match answer.recv_timeout(left.map_or(LOOK, |left| left.min(LOOK))) {
                Ok(value) => return Ok(Some(value)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if (self.interrupted)() {
                return Err(Impatience::Interrupted);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Impatience::TimedOut);
            }
        }
    }
}

/// Why a call waits no longer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Impatience {
    TimedOut,
    Interrupted,
}

impl Impatience {
    pub(super) fn error(self, what: &str) -> NodeError {
        match self {
            Self::TimedOut => NodeError::TimedOut { what: what.into() },
            Self::Interrupted => NodeError::Interrupted,
        }
    }
}
