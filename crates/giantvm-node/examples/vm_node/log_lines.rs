//! What happens at this node, as lines on stderr: `[n0 123.456789] ...`, by the clock that all
//! processes of a host share.

use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};

static NODE: OnceLock<usize> = OnceLock::new();

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            line(&format!("{}: {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Names the node, and has the libraries' messages come as lines.
pub(crate) fn install(node: usize) {
    let _ = NODE.set(node);
    let _ = log::set_logger(&Lines);
    log::set_max_level(log::LevelFilter::Info);
}

/// One line, with the time.
pub(crate) fn line(text: &str) {
    let now = clock_gettime(ClockId::Monotonic);
    let node = NODE.get().copied().unwrap_or(0);
    eprintln!("[n{node} {}.{:06}] {text}", now.tv_sec, now.tv_nsec / 1000);
}
