//! The result: one row for each workload and number of workers.

use anyhow::Result;
use serde::Serialize;

use crate::measure::median;

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

/// One measurement of the cluster and its limit.
pub(crate) struct Round {
    pub(crate) ours: f64,
    pub(crate) limit: f64,
    /// Half and 99 of 100 operations took at most this.
    pub(crate) times_ms: Option<(f64, f64)>,
    /// Processor time of all processes for one unit: seconds a GB, microseconds an operation.
    pub(crate) cost: f64,
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
    cost: f64,
    rounds: usize,
}

impl Table {
    /// Adds a round; `unit` is GB/s or ops/s.
    pub(crate) fn add(&mut self, workload: String, unit: &'static str, limit: &'static str, round: Round) {
        self.row(workload, unit, limit).rounds.push(round);
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
            cost: of(row, |round| round.cost),
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
        let titles =
            ["workload", "gfs", "bare limit", "ratio", "p50 / p99 ms", "all processors", "the limit is"];
        let mut cells: Vec<[String; 7]> = vec![titles.map(Into::into)];
        for row in self.shown() {
            let times = row.p50_ms.zip(row.p99_ms).map(|(p50, p99)| format!("{p50:.2} / {p99:.1}"));
            cells.push([
                row.workload.into(),
                format!("{} {}", number(row.gfs), row.unit),
                format!("{} {}", number(row.limit), row.unit),
                format!("{:.2}", row.ratio),
                times.unwrap_or_default(),
                format!("{} {}", number(row.cost), if row.unit == "GB/s" { "s/GB" } else { "us/op" }),
                row.limit_name.into(),
            ]);
        }
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        let line = |row: &[String; 7]| {
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
            let round = Round { ours, limit, times_ms: None, cost: 1.0 };
            table.add("stream".into(), "GB/s", "nothing", round);
        }
        let text = table.text("a machine");
        assert!(text.contains("| stream   | 2.00 GB/s | 4.00 GB/s  | 0.50  |"), "{text}");
        assert!(table.json("a machine").unwrap().contains("\"rounds\": 3"));
    }
}
