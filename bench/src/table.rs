//! The result: one row for each workload and number of workers.

use anyhow::Result;
use serde::Serialize;

use crate::measure::{Rate, median};

/// All rows, in the order in which they were measured first.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// Rounds of one measurement.
struct Row {
    workload: String,
    unit: &'static str,
    limit_name: &'static str,
    rounds: Vec<Round>,
}

struct Round {
    ours: f64,
    limit: f64,
    times_ms: Option<(f64, f64)>,
}

/// A row as it is printed.
#[derive(Serialize)]
struct Shown<'a> {
    workload: &'a str,
    unit: &'a str,
    gfs: f64,
    limit: f64,
    ratio: f64,
    limit_name: &'a str,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    rounds: usize,
}

impl Table {
    /// Adds a round of throughput in GB/s.
    pub(crate) fn throughput(&mut self, workload: String, ours: f64, limit: (&'static str, f64)) {
        let round = Round { ours, limit: limit.1, times_ms: None };
        self.row(workload, "GB/s", limit.0).rounds.push(round);
    }
    /// Adds a round of operations.
    pub(crate) fn operations(&mut self, workload: String, ours: Rate, limit: (&'static str, f64)) {
        let times_ms = Some((ours.p50_ms, ours.p99_ms));
        let round = Round { ours: ours.per_second, limit: limit.1, times_ms };
        self.row(workload, "ops/s", limit.0).rounds.push(round);
    }

    fn row(&mut self, workload: String, unit: &'static str, limit_name: &'static str) -> &mut Row {
        let at = self.rows.iter().position(|row| row.workload == workload).unwrap_or_else(|| {
            self.rows.push(Row { workload, unit, limit_name, rounds: Vec::new() });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    fn shown(&self) -> Vec<Shown<'_>> {
        let of =
            |row: &Row, value: fn(&Round) -> f64| median(&row.rounds.iter().map(value).collect::<Vec<_>>());
        let time = |row: &Row, value: fn(&(f64, f64)) -> f64| {
            let times: Vec<f64> =
                row.rounds.iter().filter_map(|round| round.times_ms.as_ref().map(value)).collect();
            (!times.is_empty()).then(|| median(&times))
        };
        let rows = self.rows.iter().map(|row| Shown {
            workload: &row.workload,
            unit: row.unit,
            gfs: of(row, |round| round.ours),
            limit: of(row, |round| round.limit),
            ratio: of(row, |round| round.ours / round.limit),
            limit_name: row.limit_name,
            p50_ms: time(row, |times| times.0),
            p99_ms: time(row, |times| times.1),
            rounds: row.rounds.len(),
        });
        rows.collect()
    }

    pub(crate) fn json(&self, machine: &str) -> Result<String> {
        let value = serde_json::json!({ "machine": machine, "rows": self.shown() });
        Ok(serde_json::to_string_pretty(&value)?)
    }

    /// A table in Markdown.
    pub(crate) fn text(&self, machine: &str) -> String {
        let mut cells: Vec<[String; 6]> =
            vec![["workload", "gfs", "bare limit", "ratio", "p50 / p99 ms", "the limit is"].map(Into::into)];
        for row in self.shown() {
            let times = row.p50_ms.zip(row.p99_ms).map(|(p50, p99)| format!("{p50:.2} / {p99:.1}"));
            cells.push([
                row.workload.into(),
                format!("{} {}", number(row.gfs), row.unit),
                format!("{} {}", number(row.limit), row.unit),
                format!("{:.2}", row.ratio),
                times.unwrap_or_default(),
                row.limit_name.into(),
            ]);
        }
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        let line = |row: &[String; 6]| {
            let padded: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            format!("| {} |\n", padded.join(" | "))
        };
        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
        let rounds = self.rows.iter().map(|row| row.rounds.len()).max().unwrap_or(0);
        let mut text = format!("{machine}; medians of {rounds} rounds\n\n{}", line(&cells[0]));
        text.push_str(&format!("|{}|\n", rules.join("|")));
        cells[1..].iter().for_each(|row| text.push_str(&line(row)));
        text
    }
}

/// Three digits.
fn number(value: f64) -> String {
    match value {
        _ if value < 10.0 => format!("{value:.2}"),
        _ if value < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_medians_and_the_ratio() {
        let mut table = Table::default();
        for (ours, limit) in [(1.0, 2.0), (3.0, 4.0), (2.0, 8.0)] {
            table.throughput("stream".into(), ours, ("nothing", limit));
        }
        let text = table.text("a machine");
        assert!(text.contains("| stream   | 2.00 GB/s | 4.00 GB/s  | 0.50  |"), "{text}");
        assert!(table.json("a machine").unwrap().contains("\"rounds\": 3"));
    }
}
