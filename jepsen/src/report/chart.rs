//! The drawings of a report, as SVG.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;

use super::{class, escape};
use crate::timeline::{AnyOperation, SECOND_NS, Timeline};

/// Width and height of a chart, and room for the numbers of its axes.
const WIDTH: f64 = 1100.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 22.0;
/// Height of a process's row in the timeline, and width of a second.
const ROW: f64 = 12.0;
const SECOND_WIDTH: f64 = 160.0;
/// Widest timeline.
const TIMELINE_MAX: f64 = 20_000.0;
/// Latencies are drawn between these, in ms.
const LATENCY_MS: (f64, f64) = (0.1, 100_000.0);
/// Dots of the latency chart at most.
const DOTS_MAX: usize = 8000;

#[expect(clippy::cast_precision_loss, reason = "a drawing is not that exact")]
pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND_NS as f64
}

#[expect(clippy::cast_precision_loss, reason = "a drawing is not that exact")]
fn number(count: usize) -> f64 {
    count as f64
}

/// From times to places.
struct Scale {
    width: f64,
    height: f64,
    until: f64,
}

impl Scale {
    fn new(timeline: &Timeline, width: f64, height: f64) -> Self {
        Self { width, height, until: seconds(timeline.end_ns).max(1.0) }
    }

    fn x(&self, ns: u64) -> f64 {
        LEFT + (self.width - LEFT) * (seconds(ns) / self.until).min(1.0)
    }

    fn begin(&self, timeline: &Timeline) -> Result<String> {
        let mut svg = String::new();
        let (width, height) = (self.width, self.height + BOTTOM);
        write!(
            svg,
            "<svg width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\">"
        )?;
        for band in &timeline.bands {
            let (from, until) = (self.x(band.from_ns), self.x(band.until_ns));
            write!(
                svg,
                "<rect class=\"band\" x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                (until - from).max(1.0),
                self.height,
                escape(&band.name)
            )?;
        }
        let step = (self.until / 12.0).ceil().max(1.0);
        let mut at = 0.0;
        while at <= self.until {
            let x = LEFT + (self.width - LEFT) * at / self.until;
            write!(svg, "<text x=\"{x:.0}\" y=\"{:.0}\">{at:.0} s</text>", height - 6.0)?;
            at += step;
        }
        Ok(svg)
    }
}

/// Bars of acknowledged operations per second.
pub(super) fn throughput(timeline: &Timeline) -> Result<String> {
    let scale = Scale::new(timeline, WIDTH, HEIGHT);
    let mut svg = scale.begin(timeline)?;
    let per_second = timeline.seconds();
    let highest = per_second.iter().map(|(acknowledged, _)| *acknowledged).max().unwrap_or(0).max(1);
    let first = timeline.operations.first().map_or(0, |operation| operation.called_at_ns);
    for (index, (acknowledged, _)) in (0_u64..).zip(&per_second) {
        let (from, until) = (scale.x(first + index * SECOND_NS), scale.x(first + (index + 1) * SECOND_NS));
        let height = (HEIGHT - 16.0) * seconds(*acknowledged) / seconds(highest);
        write!(
            svg,
            "<rect class=\"ok\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{acknowledged} per second</title></rect>",
            HEIGHT - height,
            (until - from - 1.0).max(0.5)
        )?;
    }
    write!(svg, "<text x=\"4\" y=\"12\">{highest}/s</text></svg>")?;
    Ok(svg)
}

/// A dot for each operation, by when it returned and how long it took.
pub(super) fn latency(timeline: &Timeline) -> Result<String> {
    let scale = Scale::new(timeline, WIDTH, HEIGHT);
    let mut svg = scale.begin(timeline)?;
    let (lowest, highest) = (LATENCY_MS.0.log10(), LATENCY_MS.1.log10());
    let y = |ms: f64| {
        HEIGHT * (1.0 - (ms.clamp(LATENCY_MS.0, LATENCY_MS.1).log10() - lowest) / (highest - lowest))
    };
    for ms in [1.0, 10.0, 100.0, 1000.0, 10_000.0] {
        let y = y(ms);
        write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dde3ea\"/><text x=\"4\" y=\"{:.1}\">{ms:.0}</text>",
            y + 4.0
        )?;
    }
    let every = timeline.operations.len().div_ceil(DOTS_MAX).max(1);
    for (index, operation) in timeline.operations.iter().enumerate() {
        let Some(returned) = operation.returned_at_ns else { continue };
        let ms = seconds(returned - operation.called_at_ns) * 1000.0;
        // Of many only some are drawn, but each that was slow.
        if index % every != 0 && ms < 1000.0 {
            continue;
        }
        write!(
            svg,
            "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.6\"/>",
            class(&operation.outcome),
            scale.x(returned),
            y(ms)
        )?;
    }
    svg.push_str("</svg>");
    Ok(svg)
}

/// A row for each process, a bar for each operation.
pub(super) fn processes(timeline: &Timeline, drawn_max: usize) -> Result<String> {
    let mut rows: BTreeMap<u64, Vec<&AnyOperation>> = BTreeMap::new();
    for operation in timeline.operations.iter().take(drawn_max) {
        rows.entry(operation.process).or_default().push(operation);
    }
    let until =
        timeline.operations.iter().take(drawn_max).next_back().map_or(0, |operation| operation.called_at_ns);
    let (left_off, height) = (timeline.operations.len().saturating_sub(drawn_max), ROW * number(rows.len()));
    let width = (seconds(until.max(timeline.healed_ns)) * SECOND_WIDTH).clamp(WIDTH, TIMELINE_MAX);
    let scale = Scale::new(timeline, width, height.max(ROW));
    let mut svg = String::new();
    if left_off > 0 {
        write!(svg, "<p>{left_off} later operations are not drawn.</p>")?;
    }
    svg.push_str("<div class=\"scroll\">");
    svg.push_str(&scale.begin(timeline)?);
    for (row, (process, operations)) in rows.iter().enumerate() {
        let y = ROW * number(row);
        write!(svg, "<text x=\"4\" y=\"{:.1}\">{process}</text>", y + ROW - 2.0)?;
        for operation in operations {
            let from = scale.x(operation.called_at_ns);
            let until = scale.x(operation.returned_at_ns.unwrap_or(timeline.end_ns));
            write!(
                svg,
                "<rect class=\"{}\" x=\"{from:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{:.1}\"><title>{}</title></rect>",
                class(&operation.outcome),
                y + 1.0,
                (until - from).max(0.6),
                ROW - 2.0,
                escape(&describe(operation))
            )?;
        }
    }
    svg.push_str("</svg></div>");
    Ok(svg)
}

/// An operation in a line, as a tip under the mouse.
fn describe(operation: &AnyOperation) -> String {
    const LONGEST: usize = 300;
    let outcome = serde_json::to_string(&operation.outcome).unwrap_or_default();
    let text = format!("{:.4} s: {} -> {outcome}", seconds(operation.called_at_ns), operation.call);
    text.chars().take(LONGEST).collect()
}
