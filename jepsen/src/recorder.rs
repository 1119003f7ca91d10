//! Writes the history down as it happens.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use gfs_proto::time::{Clock, Moment, SystemClock};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::history::Event;
use crate::outcome::Outcome;

/// The history of a running test, or a part of it: the lines of a part say so.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    part: Option<&'static str>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    started: Moment,
    /// Held for one line: the order of the lines is that of their times.
    file: Mutex<Lines>,
    next_process: AtomicU64,
    /// Pause of a process after each operation.
    think: Duration,
}

struct Lines {
    file: BufWriter<File>,
    /// Time of the last line: the hosts of a simulation take turns, each through the same moment.
    last_ns: u64,
}

/// One logical process: it has at most one operation open, and a new number after an unknown outcome.
pub(crate) struct Process<'a> {
    recorder: &'a Recorder,
    number: u64,
    performed: u64,
}

impl Recorder {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Self::create_with(path, Arc::new(SystemClock::new()), Duration::ZERO)
    }

    /// The same by a given clock, with a pause of each process after each operation.
    pub(crate) fn create_with(path: &Path, clock: Arc<dyn Clock>, think: Duration) -> Result<Self> {
        let shared = Shared {
            started: clock.moment(),
            clock,
            file: Mutex::new(Lines { file: BufWriter::new(File::create_new(path)?), last_ns: 0 }),
            next_process: AtomicU64::new(0),
            think,
        };
        Ok(Self { shared: Arc::new(shared), part: None })
    }

    /// Writes a part of the same history.
    pub(crate) fn part(&self, part: &'static str) -> Self {
        Self { shared: self.shared.clone(), part: Some(part) }
    }

    pub(crate) fn process(&self) -> Process<'_> {
        Process { recorder: self, number: self.next_number(), performed: 0 }
    }

    pub(crate) fn nemesis(&self, what: &str) -> Result<()> {
        self.write(|at_ns| Event::<(), ()>::Nemesis { at_ns, what: what.into() })
    }

    pub(crate) fn finish(&self) -> Result<()> {
        let mut lines = self.shared.file.lock();
        lines.file.flush()?;
        Ok(lines.file.get_ref().sync_all()?)
    }

    fn next_number(&self) -> u64 {
        self.shared.next_process.fetch_add(1, Ordering::Relaxed)
    }

    fn write<C: Serialize, R: Serialize>(&self, event: impl FnOnce(u64) -> Event<C, R>) -> Result<()> {
        let mut lines = self.shared.file.lock();
        let elapsed = self.shared.clock.moment().since(self.shared.started);
        let at_ns = u64::try_from(elapsed.as_nanos())?.max(lines.last_ns);
        lines.last_ns = at_ns;
        serde_json::to_writer(&mut lines.file, &Tagged { part: self.part, event: event(at_ns) })?;
        lines.file.write_all(b"\n")?;
        // A runner that dies leaves what has happened.
        Ok(lines.file.flush()?)
    }
}

/// A line with the name of its part, which comes first.
#[derive(Serialize)]
struct Tagged<E> {
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<&'static str>,
    #[serde(flatten)]
    event: E,
}

/// The part that a line of a history belongs to; none if it belongs to all.
pub(crate) fn part_of(line: &str) -> Option<&str> {
    line.strip_prefix("{\"part\":\"")?.split('"').next()
}

impl Process<'_> {
    /// How many operations it has performed.
    pub(crate) fn performed(&self) -> u64 {
        self.performed
    }

    /// Performs one operation between its two lines of the history.
    pub(crate) async fn perform<C: Serialize, R: Serialize + Clone>(
        &mut self,
        call: C,
        operation: impl Future<Output = Outcome<R>>,
    ) -> Result<Outcome<R>> {
        let process = self.number;
        self.performed += 1;
        self.recorder.write(|at_ns| Event::<C, R>::Call { process, at_ns, call })?;
        let outcome = operation.await;
        let returned = outcome.clone();
        self.recorder.write(|at_ns| Event::<C, R>::Return { process, at_ns, outcome: returned })?;
        if matches!(outcome, Outcome::Info { .. }) {
            // The old operation stays open to the end.
            self.number = self.recorder.next_number();
        }
        let think = self.recorder.shared.think;
        if !think.is_zero() {
            tokio::time::sleep(think).await;
        }
        Ok(outcome)
    }
}

/// Reads a history back, without a last line that its writer did not finish.
pub(crate) fn read<C: DeserializeOwned, R: DeserializeOwned>(text: &str) -> Result<Vec<Event<C, R>>> {
    let mut lines: Vec<&str> = text.lines().collect();
    if is_torn(text) {
        lines.pop();
    }
    Ok(lines.into_iter().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// Whether the last line ends in the middle: its writer was killed.
pub(crate) fn is_torn(text: &str) -> bool {
    let last = text.lines().next_back().filter(|_| !text.ends_with('\n'));
    last.is_some_and(|line| serde_json::from_str::<IgnoredAny>(line).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_left_out_and_any_other_is_no_history() {
        let line = r#"{"event":"nemesis","at_ns":1,"what":"heal"}"#;
        let count = |text: &str| read::<(), ()>(text).map(|events| events.len()).ok();
        for (text, torn, lines) in [
            (format!("{line}\n{line}\n"), false, Some(2)),
            (format!("{line}\n{line}"), false, Some(2)),
            (format!("{line}\n{}", &line[..20]), true, Some(1)),
            (line[..1].to_owned(), true, Some(0)),
            (String::new(), false, Some(0)),
            (format!("{}\n", &line[..20]), false, None),
            (format!("{}\n{line}\n", &line[..20]), false, None),
        ] {
            assert_eq!((is_torn(&text), count(&text)), (torn, lines), "{text:?}");
        }
    }
}
