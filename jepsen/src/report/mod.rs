//! A run on one page: `report.html` needs nothing but itself and a browser.

mod chart;

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::outcome::Outcome;
use crate::timeline::{self, Timeline};
use crate::verdict::Verdict;

/// Operations drawn by process at most: the first ones; the page says how many are left off, and `history.jsonl` has all of them.
const DRAWN_MAX: usize = 6000;
/// Lines of the list of marks.
const MARKS_MAX: usize = 500;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:24px;max-width:1200px;color:#1c2430}\
h1{font-size:22px}h2{font-size:16px;margin-top:28px}.good{color:#17733a}.bad{color:#b3201f}.unknown{color:#9a6700}\
svg{background:#fafbfc;border:1px solid #dde3ea;display:block;max-width:100%}svg text{font:11px system-ui,sans-serif;fill:#4a5563}\
.band{fill:#f2b8b5;opacity:.45}.ok{fill:#3a8f5c}.fail{fill:#9aa5b1}.info{fill:#d9822b}\
.scroll{overflow:auto;max-height:520px;border:1px solid #dde3ea}.scroll svg{border:0;max-width:none}\
pre,code{font:12px ui-monospace,monospace}pre{background:#f5f7f9;padding:8px;overflow:auto}\
table{border-collapse:collapse}td,th{padding:2px 12px 2px 0;text-align:left}details{margin:8px 0}";

/// Writes `report.html` beside the history of a run, from what lies in its directory.
///
/// # Errors
/// There is no history, or no room.
pub fn report(directory: &Path) -> Result<std::path::PathBuf> {
    let history = directory.join("history.jsonl");
    let text = std::fs::read_to_string(&history).with_context(|| history.display().to_string())?;
    let plan = std::fs::read_to_string(directory.join("plan.json")).unwrap_or_default();
    let verdict = std::fs::read_to_string(directory.join("verdict.json"));
    let verdict: Option<Verdict> = verdict.ok().and_then(|text| serde_json::from_str(&text).ok());
    let page = page(&timeline::read(&text)?, &plan, verdict.as_ref())?;
    let file = directory.join("report.html");
    std::fs::write(&file, page)?;
    Ok(file)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn page(timeline: &Timeline, plan: &str, verdict: Option<&Verdict>) -> Result<String> {
    let plan: Value = serde_json::from_str(plan).unwrap_or_default();
    let name = plan.get("workload").and_then(Value::as_str).unwrap_or("history");
    let mut html = String::new();
    write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>gfs-jepsen: {0}</title>\
         <style>{STYLE}</style></head><body><h1>gfs-jepsen: {0}</h1>",
        escape(name)
    )?;
    if let Some(verdict) = verdict {
        write_verdict(&mut html, verdict)?;
    }
    let plan_text = serde_json::to_string_pretty(&plan)?;
    write!(html, "<details><summary>plan</summary><pre>{}</pre></details>", escape(&plan_text))?;
    html.push_str(
        "<p>Red bands: a fault was at work. Green: acknowledged, grey: refused, orange: unknown.</p>",
    );
    html.push_str("<h2>Acknowledged per second</h2>");
    html.push_str(&chart::throughput(timeline)?);
    html.push_str("<h2>Latency (ms, logarithmic)</h2>");
    html.push_str(&chart::latency(timeline)?);
    html.push_str("<h2>Operations by process</h2>");
    html.push_str(&chart::processes(timeline, DRAWN_MAX)?);
    html.push_str("<h2>What the faults did</h2><details><summary>");
    write!(html, "{} lines</summary><pre>", timeline.marks.len())?;
    for (at, what) in timeline.marks.iter().take(MARKS_MAX) {
        writeln!(html, "{:>10.3} s  {}", chart::seconds(*at), escape(what))?;
    }
    html.push_str("</pre></details></body></html>\n");
    Ok(html)
}

fn write_verdict(html: &mut String, verdict: &Verdict) -> Result<()> {
    let class = format!("{:?}", verdict.validity).to_lowercase();
    write!(html, "<p class=\"{class}\"><b>{}</b></p>", escape(&verdict.to_string()))?;
    for (title, list) in
        [("Findings", &verdict.findings), ("Doubts", &verdict.doubts), ("Notes", &verdict.notes)]
    {
        if list.is_empty() {
            continue;
        }
        write!(html, "<h2>{title}</h2><ul>")?;
        for line in list {
            write!(html, "<li><code>{}</code></li>", escape(line))?;
        }
        html.push_str("</ul>");
    }
    Ok(())
}

/// The class of an outcome in the drawings.
fn class<T>(outcome: &Outcome<T>) -> &'static str {
    match outcome {
        Outcome::Ok { .. } => "ok",
        Outcome::Fail { .. } => "fail",
        Outcome::Info { .. } => "info",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_all_charts_and_each_operation_and_needs_nothing_else() {
        let text = r#"{"event":"call","process":1,"at_ns":1000000,"call":{"append":{"path":"<a&b>"}}}
{"event":"nemesis","at_ns":2000000,"what":"begin kill"}
{"event":"call","process":2,"at_ns":3000000,"call":"read"}
{"event":"return","process":1,"at_ns":500000000,"outcome":{"type":"ok","value":{"at":1}}}
{"event":"return","process":2,"at_ns":600000000,"outcome":{"type":"info","reason":"deadline"}}
{"event":"nemesis","at_ns":1500000000,"what":"end kill"}
{"event":"nemesis","at_ns":3000000000,"what":"heal"}"#;
        let mut verdict = Verdict::new();
        verdict.finding("lost: <record>");
        let page = page(&timeline::read(text).unwrap(), r#"{"workload":"append"}"#, Some(&verdict)).unwrap();
        assert_eq!(page.matches("<svg").count(), 3);
        assert_eq!(page.matches("</svg>").count(), 3);
        // In each chart.
        assert_eq!(page.matches("class=\"band\"").count(), 3);
        assert!(page.contains("lost: &lt;record&gt;") && !page.contains("<record>"));
        assert!(page.contains("class=\"ok\"") && page.contains("class=\"info\""));
        assert!(!page.contains("http") && !page.contains("<script"), "the page must be self-contained");
        // Every tag that opens closes: an XML reader would take the drawings.
        for tag in ["svg", "g", "title", "rect", "details", "pre", "ul", "li", "p", "h2"] {
            let opened =
                page.matches(&format!("<{tag} ")).count() + page.matches(&format!("<{tag}>")).count();
            let closed = page.matches(&format!("</{tag}>")).count();
            let alone = if tag == "rect" { page.matches("/>").count() } else { 0 };
            assert!(opened <= closed + alone, "{tag}: {opened} opened, {closed} closed");
        }
    }
}
