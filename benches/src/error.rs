//! What can go wrong in a benchmark.

use std::io;
use std::path::PathBuf;

/// A benchmark could not be run or reported.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The kernel refused something a benchmark needs.
    #[error("{doing} failed; benchmarks need Linux 6.6 or newer with userfaultfd")]
    Os {
        /// What was attempted.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process at the other end of a link broke the benchmark's own rules.
    #[error("the benchmark's peer process {0}; look above for its own message")]
    Peer(String),
    /// The command line makes no sense.
    #[error("{0}; `--help` shows the options")]
    Usage(String),
    /// The report's file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The report's file holds something else than a report.
    #[error("{} is not a benchmark report; remove it and run again", path.display())]
    NotAReport {
        /// The file.
        path: PathBuf,
        /// Where it stops being one.
        #[source]
        source: serde_json::Error,
    },
}

impl BenchError {
    /// The error of the system call that has just failed in this thread.
    pub fn last_os(doing: &'static str) -> Self {
        Self::Os { doing, source: io::Error::last_os_error() }
    }

    /// Names what was being done when an I/O error came; for `map_err`.
    pub fn os(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { doing, source }
    }
}
