//! The report: rows, the verdict on each, `bench.json` and the table.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::sample::Samples;

/// What a value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Microseconds; less is better.
    #[serde(rename = "us")]
    Microseconds,
    /// Megabytes (10^6) a second; more is better.
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    /// Seconds; less is better.
    #[serde(rename = "s")]
    Seconds,
    /// Bytes; less is better.
    #[serde(rename = "bytes")]
    Bytes,
    /// Messages; less is better.
    #[serde(rename = "messages")]
    Messages,
    /// Times as fast; more is better.
    #[serde(rename = "x")]
    Times,
}

impl Unit {
    /// Whether a higher value is the better one.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::MegabytesPerSecond | Self::Times)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "us",
            Self::MegabytesPerSecond => "MB/s",
            Self::Seconds => "s",
            Self::Bytes => "bytes",
            Self::Messages => "messages",
            Self::Times => "x",
        }
    }
}

/// One line of the report. `(name, variant)` is its identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The benchmark.
    pub name: String,
    /// Which case of it, such as `tcp/busy`; empty when there is only one.
    pub variant: String,
    /// What `value`, `p99`, `floor` and `floor_p99` count.
    pub unit: Unit,
    /// Median.
    pub value: f64,
    /// What 99 of 100 samples keep: the 99th percentile of a cost, the 1st of a rate.
    pub p99: Option<f64>,
    /// Median of the floor, measured in the same run.
    pub floor: Option<f64>,
    /// The floor's `p99`.
    pub floor_p99: Option<f64>,
    /// `value / floor`.
    pub ratio: Option<f64>,
    /// The bound on `ratio`, or on `value` where there is no floor: upper for a cost, lower for a rate.
    pub goal: Option<f64>,
    /// Whether the goal is kept; none without a goal.
    pub met: Option<bool>,
}

impl Row {
    /// A row of one number that was counted, not sampled.
    pub fn of_value(name: &str, variant: impl fmt::Display, unit: Unit, value: f64) -> Self {
        Self {
            name: name.to_owned(),
            variant: variant.to_string(),
            unit,
            value,
            p99: None,
            floor: None,
            floor_p99: None,
            ratio: None,
            goal: None,
            met: None,
        }
    }

    /// A row of samples; none when there are none.
    pub fn of_samples(
        name: &str,
        variant: impl fmt::Display,
        unit: Unit,
        samples: &Samples,
    ) -> Option<Self> {
        let mut row = Self::of_value(name, variant, unit, samples.median()?);
        row.p99 = tail(samples, unit);
        Some(row)
    }

    /// Puts the floor's samples beside it.
    #[must_use]
    pub fn with_floor(mut self, floor: &Samples) -> Self {
        self.floor = floor.median();
        self.floor_p99 = tail(floor, self.unit);
        self.ratio = self.floor.filter(|floor| *floor > 0.0).map(|floor| self.value / floor);
        self.judged()
    }

    /// Sets the bound on the ratio, or on the value of a row without a floor.
    #[must_use]
    pub fn with_goal(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self.judged()
    }

    fn judged(mut self) -> Self {
        let judged = if self.floor.is_some() { self.ratio } else { Some(self.value) };
        self.met = self.goal.map(|goal| {
            judged
                .is_some_and(|it| if self.unit.more_is_better() { it >= goal } else { it <= goal })
        });
        self
    }
}

fn tail(samples: &Samples, unit: Unit) -> Option<f64> {
    samples.percentile(if unit.more_is_better() { 1.0 } else { 99.0 })
}

/// The rows of one or more runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a row; an older one of the same name and variant is replaced in its place.
    pub fn add(&mut self, row: Row) {
        let same = |old: &&mut Row| old.name == row.name && old.variant == row.variant;
        match self.rows.iter_mut().find(same) {
            Some(old) => *old = row,
            None => self.rows.push(row),
        }
    }

    /// The rows, oldest first.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Adds all rows of a later run.
    pub fn merge(&mut self, later: Report) {
        for row in later.rows {
            self.add(row);
        }
    }

    /// Reads the report at `path`; an empty one when there is no such file.
    ///
    /// # Errors
    /// When the file can't be read or holds something else.
    pub fn load(path: &Path) -> Result<Self, BenchError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(BenchError::File { doing: "read", path: path.to_owned(), source });
            }
        };
        let rows = serde_json::from_slice(&text)
            .map_err(|source| BenchError::NotAReport { path: path.to_owned(), source })?;
        Ok(Self { rows })
    }

    /// Writes the report to `path`, and creates the folder it lies in.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save(&self, path: &Path) -> Result<(), BenchError> {
        let failed = |source| BenchError::File { doing: "write", path: path.to_owned(), source };
        let mut text = serde_json::to_string_pretty(&self.rows)
            .map_err(|source| BenchError::NotAReport { path: path.to_owned(), source })?;
        text.push('\n');
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // A reader, or a run that is cut short, must never see half a report.
        let whole = path.with_extension("json.new");
        fs::write(&whole, text).map_err(failed)?;
        fs::rename(&whole, path).map_err(failed)
    }
}

impl fmt::Display for Report {
    /// The table, columns aligned.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head =
            ["name", "variant", "value", "p99", "floor", "floor p99", "unit", "ratio", "goal", ""];
        let lines: Vec<[String; 10]> =
            [head.map(str::to_owned)].into_iter().chain(self.rows.iter().map(cells)).collect();
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
        };
        let widths: [usize; 10] = std::array::from_fn(width);
        for line in &lines {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
                let is_number = matches!(column, 2..=5 | 7 | 8);
                text += &if is_number {
                    format!("{cell:>width$}  ")
                } else {
                    format!("{cell:<width$}  ")
                };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

fn cells(row: &Row) -> [String; 10] {
    let number = |value: Option<f64>| value.map(short).unwrap_or_default();
    let goal = row.goal.map(|goal| {
        format!("{} {}", if row.unit.more_is_better() { ">=" } else { "<=" }, short(goal))
    });
    let met = row.met.map(|met| if met { "met" } else { "MISSED" });
    [
        row.name.clone(),
        row.variant.clone(),
        short(row.value),
        number(row.p99),
        number(row.floor),
        number(row.floor_p99),
        row.unit.name().to_owned(),
        row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        goal.unwrap_or_default(),
        met.unwrap_or_default().to_owned(),
    ]
}

/// Three digits or all those before the point.
fn short(value: f64) -> String {
    let decimals = match value.abs() {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hundred() -> Samples {
        Samples::new((1..=100).map(f64::from))
    }

    #[test]
    fn a_cost_is_judged_by_its_upper_tail_and_bound() {
        let floor = Samples::new([40.0]);
        let row =
            Row::of_samples("read_fault", "tcp/busy", Unit::Microseconds, &hundred()).unwrap();
        let row = row.with_floor(&floor);
        assert_eq!((row.value, row.p99), (50.5, Some(99.0)));
        assert_eq!((row.floor, row.ratio), (Some(40.0), Some(50.5 / 40.0)));
        assert_eq!(row.met, None, "without a goal there is no verdict");
        assert_eq!(row.clone().with_goal(1.3).met, Some(true));
        assert_eq!(row.with_goal(1.2).met, Some(false));
    }

    #[test]
    fn a_rate_is_judged_by_its_lower_tail_and_bound() {
        let row = Row::of_samples("scan", "tcp", Unit::MegabytesPerSecond, &hundred()).unwrap();
        assert_eq!(row.p99, Some(1.0));
        let row = row.with_floor(&Samples::new([101.0]));
        assert_eq!(row.clone().with_goal(0.5).met, Some(true));
        assert_eq!(row.with_goal(0.6).met, Some(false));
    }

    #[test]
    fn a_goal_without_a_floor_bounds_the_value() {
        let row = Row::of_value("metadata", "", Unit::Bytes, 16.0);
        assert_eq!(row.clone().with_goal(16.0).met, Some(true));
        assert_eq!(row.with_goal(15.0).met, Some(false));
    }

    #[test]
    fn a_floor_without_samples_never_meets_a_goal_by_accident() {
        let row = Row::of_value("x", "", Unit::Microseconds, 1.0).with_goal(2.0);
        assert_eq!(row.with_floor(&Samples::new([0.0])).met, Some(false));
    }

    #[test]
    fn the_order_of_floor_and_goal_does_not_matter() {
        let row = || Row::of_value("x", "", Unit::Microseconds, 30.0);
        let floor = Samples::new([10.0]);
        assert_eq!(
            row().with_goal(5.0).with_floor(&floor),
            row().with_floor(&floor).with_goal(5.0)
        );
    }

    #[test]
    fn no_samples_no_row() {
        assert_eq!(Row::of_samples("x", "", Unit::Microseconds, &Samples::default()), None);
    }

    #[test]
    fn later_runs_replace_rows_by_name_and_variant() {
        let row = |name, variant, value| Row::of_value(name, variant, Unit::Microseconds, value);
        let mut report = Report::default();
        report.add(row("a", "tcp", 1.0));
        report.add(row("a", "unix", 2.0));
        let mut later = Report::default();
        later.add(row("b", "tcp", 4.0));
        later.add(row("a", "tcp", 3.0));
        report.merge(later);
        assert_eq!(
            report.rows(),
            [row("a", "tcp", 3.0), row("a", "unix", 2.0), row("b", "tcp", 4.0)]
        );
    }

    #[test]
    fn the_file_names_its_fields_and_survives_a_round_trip() {
        let folder = std::env::temp_dir().join(format!("giantvm-report-{}", std::process::id()));
        let path = folder.join("deep/bench.json");
        assert_eq!(Report::load(&path).unwrap(), Report::default());
        let mut report = Report::default();
        let row = Row::of_samples("scan", "tcp", Unit::MegabytesPerSecond, &hundred()).unwrap();
        report.add(row.with_floor(&hundred()).with_goal(0.6));
        report.save(&path).unwrap();
        assert_eq!(Report::load(&path).unwrap(), report);

        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!([{
            "name": "scan", "variant": "tcp", "unit": "MB/s", "value": 50.5, "p99": 1.0,
            "floor": 50.5, "floor_p99": 1.0, "ratio": 1.0, "goal": 0.6, "met": true,
        }]);
        assert_eq!(json, expected);

        fs::write(&path, "not json").unwrap();
        assert!(matches!(Report::load(&path), Err(BenchError::NotAReport { .. })));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_table_is_aligned_and_shows_misses() {
        let mut report = Report::default();
        let floor = Samples::new([10.0]);
        let row = |name, value| Row::of_value(name, "tcp", Unit::Microseconds, value);
        report.add(row("short", 12.34).with_floor(&floor).with_goal(1.3));
        report.add(row("a_longer_name", 1234.5).with_floor(&floor).with_goal(1.3));
        let expected = "\
name           variant  value  p99  floor  floor p99  unit   ratio    goal
short          tcp       12.3          10         10  us      1.23  <= 1.3  met
a_longer_name  tcp       1234          10         10  us    123.45  <= 1.3  MISSED
";
        assert_eq!(report.to_string(), expected);
    }
}
