//! Messages of the native threads, as lines on stderr.
//!
//! Not through Python's `logging`: a thread that serves faults or membership must never wait for
//! Python's lock, since the thread that holds it may be the one that waits for a page. Nor does it
//! wait for a reader of stderr: what a full pipe doesn't take at once is left out.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The variable that says what is shown.
const VARIABLE: &str = "GIANTVM_LOG";
/// Without it.
const LEVEL_DEFAULT: LevelFilter = LevelFilter::Warn;

/// Longest line in bytes: what a pipe that polls writable takes whole.
const LINE_BYTES_MAX: usize = 4096;

/// Lines below `error` that may come at once; whoever can connect can cause some.
const BURST: u32 = 50;
/// How long it takes until one more may come.
const REFILL: Duration = Duration::from_millis(500);

/// The only logger.
static LINES: Lines = Lines {
    names: Mutex::new(Vec::new()),
    allowance: Mutex::new(Allowance { left: BURST, since: None }),
    omitted: AtomicU64::new(0),
};

struct Lines {
    /// The nodes that this process has made, mostly one.
    names: Mutex<Vec<String>>,
    allowance: Mutex<Allowance>,
    omitted: AtomicU64,
}

/// How many more lines may come now.
struct Allowance {
    left: u32,
    /// When it was last counted.
    since: Option<Instant>,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let refills = now.saturating_duration_since(since).as_millis() / REFILL.as_millis();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        if refills > 0 {
            self.left = self.left.saturating_add(refills).min(BURST);
            self.since = Some(now);
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}

/// Installs the logger; the first call counts.
pub(crate) fn install() {
    if log::set_logger(&LINES).is_err() {
        return;
    }
    let wanted = std::env::var_os(VARIABLE);
    let wanted = wanted.as_ref().map_or(Cow::Borrowed(""), |text| text.to_string_lossy());
    match (wanted.as_ref(), wanted.parse()) {
        ("", _) => log::set_max_level(LEVEL_DEFAULT),
        (_, Ok(level)) => log::set_max_level(level),
        (_, Err(_)) => {
            log::set_max_level(LEVEL_DEFAULT);
            log::warn!(
                "{VARIABLE} is {wanted:?}: use off, error, warn, info or debug; going on with warn"
            );
        }
    }
}

/// Names the node in the lines from now on.
pub(crate) fn name_node(name: &str) {
    let mut names = LINES.names.lock().unwrap_or_else(PoisonError::into_inner);
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() > Level::Error {
            let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
            if !allowance.take(Instant::now()) {
                self.omitted.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        let name = self.names.lock().unwrap_or_else(PoisonError::into_inner).join(",");
        let who = if name.is_empty() { "giantvm".into() } else { format!("giantvm[{name}]") };
        let mut line = format!("{who}: {}", record.args());
        let omitted = self.omitted.swap(0, Ordering::Relaxed);
        if omitted > 0 {
            line.push_str(&format!(" ({omitted} messages before this one were left out)"));
        }
        write(line);
    }

    fn flush(&self) {}
}

/// Writes one line, if stderr takes it at once.
fn write(line: String) {
    let mut line = line.replace(char::is_control, "?");
    let mut end = line.len().min(LINE_BYTES_MAX - 1);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push('\n');
    let stderr = std::io::stderr();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if matches!(poll(&mut fds, Some(&now)), Ok(1..)) {
        // Nobody is left to tell of a failure.
        let _ = rustix::io::write(&stderr, line.as_bytes());
    }
}
