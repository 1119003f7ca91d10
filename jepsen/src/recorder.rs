//! Writes the history down as it happens.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::history::Event;
use crate::outcome::Outcome;

/// The history of a running test, or a part of it: the lines of a part say so.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    part: Option<&'static str>,
}

struct Shared {
    started: Instant,
    /// Held for one line: the order of the lines is that of their times.
    file: Mutex<BufWriter<File>>,
    next_process: AtomicU64,
}

/// One logical process: it has at most one operation open, and a new number after an unknown outcome.
pub(crate) struct Process<'a> {
    recorder: &'a Recorder,
    number: u64,
    performed: u64,
}

impl Recorder {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let shared = Shared {
            started: Instant::now(),
            file: Mutex::new(BufWriter::new(File::create_new(path)?)),
            next_process: AtomicU64::new(0),
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
        let mut file = self.shared.file.lock();
        file.flush()?;
        Ok(file.get_ref().sync_all()?)
    }

    fn next_number(&self) -> u64 {
        self.shared.next_process.fetch_add(1, Ordering::Relaxed)
    }

    fn write<C: Serialize, R: Serialize>(&self, event: impl FnOnce(u64) -> Event<C, R>) -> Result<()> {
        let mut file = self.shared.file.lock();
        let at_ns = u64::try_from(self.shared.started.elapsed().as_nanos())?;
        serde_json::to_writer(&mut *file, &Tagged { part: self.part, event: event(at_ns) })?;
        file.write_all(b"\n")?;
        // A runner that dies leaves what has happened.
        Ok(file.flush()?)
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
        Ok(outcome)
    }
}

/// Reads a history back.
pub(crate) fn read<C: DeserializeOwned, R: DeserializeOwned>(text: &str) -> Result<Vec<Event<C, R>>> {
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}
