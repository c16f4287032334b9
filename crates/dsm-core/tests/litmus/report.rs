//! Counts outcomes and prints the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use crate::model::{self, Model};
use crate::nodes::Config;
use crate::program::{Outcome, Program};

/// Outcomes shown of one program; the rest is summed up.
const SHOWN: usize = 6;

/// One program's results.
pub(crate) struct Tally {
    pub(crate) name: &'static str,
    /// Iterations with a page fault in the tested accesses.
    pub(crate) counted: u64,
    /// Iterations without.
    pub(crate) uncounted: u64,
    /// Counted iterations in which all threads were between their first access and their last.
    overlapping: u64,
    /// Page faults of the tested accesses.
    pub(crate) faults: u64,
    /// Outcomes that x86-TSO forbids, in iterations of both kinds.
    pub(crate) forbidden: u64,
    /// Start values that were not seen by a node that should have.
    pub(crate) unprepared: u64,
    /// Counted iterations by outcome.
    outcomes: BTreeMap<Outcome, u64>,
    sequential: BTreeSet<Outcome>,
    allowed: BTreeSet<Outcome>,
    suspect: fn(&Outcome) -> bool,
}

impl Tally {
    pub(crate) fn new(program: &Program) -> Self {
        Self {
            name: program.name,
            counted: 0,
            uncounted: 0,
            overlapping: 0,
            faults: 0,
            forbidden: 0,
            unprepared: 0,
            outcomes: BTreeMap::new(),
            sequential: model::outcomes(program, Model::SequentialConsistency),
            allowed: model::outcomes(program, Model::X86Tso),
            suspect: program.suspect,
        }
    }

    pub(crate) fn add(&mut self, outcome: Outcome, faults: u64, overlapping: bool) {
        let forbidden = !self.allowed.contains(&outcome);
        self.forbidden += u64::from(forbidden);
        if faults == 0 {
            self.uncounted += 1;
            if !forbidden {
                return;
            }
        } else {
            self.counted += 1;
            self.overlapping += u64::from(overlapping);
            self.faults += faults;
        }
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    fn kind(&self, outcome: &Outcome) -> &'static str {
        match outcome {
            _ if self.sequential.contains(outcome) => "allowed",
            _ if self.allowed.contains(outcome) => "allowed by x86-TSO only",
            _ => "FORBIDDEN",
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relaxed = |(outcome, count): (&Outcome, &u64)| {
            let only_tso = self.allowed.contains(outcome) && !self.sequential.contains(outcome);
            if only_tso { *count } else { 0 }
        };
        let relaxed: u64 = self.outcomes.iter().map(relaxed).sum();
        let all = self.counted - relaxed;
        writeln!(
            f,
            "{:<11} {:>7} {:>11} {:>8} {:>8} {:>9} {:>9} {:>8} %",
            self.name,
            self.counted,
            self.uncounted,
            self.faults,
            all.saturating_sub(self.forbidden),
            relaxed,
            self.forbidden,
            self.overlapping * 100 / self.counted.max(1),
        )?;
        let mut outcomes: Vec<_> = self.outcomes.iter().collect();
        outcomes.sort_by_key(|&(outcome, count)| {
            (self.allowed.contains(outcome), std::cmp::Reverse(*count))
        });
        for &(outcome, count) in outcomes.iter().take(SHOWN) {
            let mark = if (self.suspect)(outcome) { " <- what the test is about" } else { "" };
            writeln!(f, "    {count:>8}  {:<40} {}{mark}", shown(outcome), self.kind(outcome))?;
        }
        let rest = outcomes.len().saturating_sub(SHOWN);
        if rest > 0 {
            let count: u64 = outcomes[SHOWN..].iter().map(|(_, count)| *count).sum();
            writeln!(f, "    {count:>8}  in {rest} more outcomes")?;
        }
        Ok(())
    }
}

/// `read 1 | 0 0, last 1 1`: what each thread read, and what the places hold in the end.
fn shown(outcome: &Outcome) -> String {
    let values = |values: &[u64]| {
        let texts: Vec<String> = values.iter().map(|&value| (value as i64).to_string()).collect();
        texts.join(" ")
    };
    let mut text = String::from("read ");
    for (thread, read) in outcome.read.iter().enumerate() {
        let separator = if thread == 0 { "" } else { " | " };
        let read = if read.is_empty() { "-".into() } else { values(read) };
        let _ = write!(text, "{separator}{read}");
    }
    text + ", last " + &values(&outcome.last)
}

/// All programs under one configuration.
pub(crate) struct Report {
    config: Config,
    pub(crate) tallies: Vec<Tally>,
    /// Faults that the engines served, those of the preparation included.
    pub(crate) engine_faults: u64,
    /// Why the cluster did not come to its end.
    pub(crate) broken: Option<String>,
}

impl Report {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, tallies: Vec::new(), engine_faults: 0, broken: None }
    }

    /// Prints the table, and fails on what must not be.
    pub(crate) fn check(&self, iterations: u64) {
        println!("{self}");
        assert_eq!(self.broken, None);
        for tally in &self.tallies {
            assert_eq!(tally.forbidden, 0, "{}: outcomes that x86-TSO forbids", tally.name);
            assert_eq!(tally.unprepared, 0, "{}: start values not seen", tally.name);
            assert!(tally.counted >= iterations, "{}: too few faults", tally.name);
        }
        let tested: u64 = self.tallies.iter().map(|tally| tally.faults).sum();
        assert!(tested <= self.engine_faults, "{tested} faults, {}", self.engine_faults);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { nodes, workers, wait, .. } = self.config;
        writeln!(f, "{nodes} nodes, {workers} workers, waiting: {wait:?}")?;
        writeln!(
            f,
            "program     counted not counted   faults  allowed  TSO only forbidden  overlap"
        )?;
        self.tallies.iter().try_for_each(|tally| write!(f, "{tally}"))?;
        writeln!(f, "faults served, with those of the preparation: {}", self.engine_faults)
    }
}
