//! The command line.

use std::path::PathBuf;

use lexopt::prelude::*;

use crate::error::BenchError;
use crate::placement::Placement;
use crate::sample::Batches;

/// What `--help` prints.
pub const HELP: &str = "\
Measures giantvm beside the floor of this machine; adds the rows to a JSON report.

    --bench NAME      only this benchmark (may be repeated; default: all)
    --quick           fewer samples: a look, not a result
    --list            show the names and stop
    --output PATH     the report (default: target/bench.json)
    --unpinned        let the scheduler place the nodes, instead of giving each its own CPUs
    --help            this text
";

/// How to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Names of the benchmarks to run; empty for all.
    pub only: Vec<String>,
    /// Take fewer samples.
    pub quick: bool,
    /// Where the report goes.
    pub output: PathBuf,
    /// Where nodes run.
    pub placement: Placement,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run benchmarks.
    Run(Options),
    /// Print the names.
    List,
    /// Print [`HELP`].
    Help,
}

impl Options {
    /// Batches of something that takes microseconds.
    pub fn batches(&self) -> Batches {
        if self.quick {
            Batches { rounds: 4, per_round: 100, warm_up: 50 }
        } else {
            Batches { rounds: 20, per_round: 250, warm_up: 500 }
        }
    }

    /// Batches of something in a guest, which on some hosts takes a hundred times as long.
    pub fn guest_batches(&self) -> Batches {
        if self.quick {
            Batches { rounds: 2, per_round: 40, warm_up: 40 }
        } else {
            Batches { rounds: 20, per_round: 100, warm_up: 100 }
        }
    }

    /// Batches of something that moves a whole region.
    pub fn bulk_batches(&self) -> Batches {
        if self.quick {
            Batches { rounds: 3, per_round: 1, warm_up: 1 }
        } else {
            Batches { rounds: 15, per_round: 1, warm_up: 1 }
        }
    }

    /// Pages of regions that are to be recovered, and how many of each size.
    pub fn recoveries(&self) -> (&'static [usize], usize) {
        if self.quick { (&[10_000], 1) } else { (&[10_000, 100_000, 1_000_000], 3) }
    }

    /// Whether the benchmark `name` is to run.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// Reads the arguments, the program's own name left out.
///
/// # Errors
/// For an option that does not exist, or one without its value.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, BenchError> {
    let usage = |error: lexopt::Error| BenchError::Usage(error.to_string());
    let mut parser = lexopt::Parser::from_args(args);
    let (mut only, mut quick, mut pinned) = (Vec::new(), false, true);
    let mut output = PathBuf::from("target/bench.json");
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Long("bench") => only.push(parser.value().and_then(|v| v.string()).map_err(usage)?),
            Long("quick") => quick = true,
            Long("output") => output = parser.value().map_err(usage)?.into(),
            Long("unpinned") => pinned = false,
            Long("list") => return Ok(Command::List),
            Long("help") | Short('h') => return Ok(Command::Help),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Run(Options { only, quick, output, placement: Placement::detect(pinned)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, BenchError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn all_benchmarks_run_unless_some_are_named() {
        let Ok(Command::Run(all)) = parsed("") else { panic!("no options are fine") };
        assert!(all.wants("stream") && !all.quick);
        assert_eq!(all.output, PathBuf::from("target/bench.json"));
        let Ok(Command::Run(some)) = parsed("--bench stream --bench=socket_rtt --quick") else {
            panic!("names may be repeated")
        };
        assert!(some.wants("stream") && some.wants("socket_rtt") && !some.wants("raw_fault"));
        assert!(some.batches().per_round < all.batches().per_round);
    }

    #[test]
    fn questions_are_answered_without_a_run() {
        assert_eq!(parsed("--list").unwrap(), Command::List);
        assert_eq!(parsed("--quick --help").unwrap(), Command::Help);
    }

    #[test]
    fn nonsense_is_named() {
        let error = parsed("--fast").unwrap_err().to_string();
        assert!(error.contains("--fast") && error.contains("--help"), "{error}");
        assert!(parsed("--bench").is_err());
        assert!(parsed("stream").is_err());
    }
}
