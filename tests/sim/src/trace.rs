//! What a run leaves behind: the trace, its hash, and the panics that nobody else would notice.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use anyhow::Result;
use parking_lot::Mutex;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::prelude::*;

/// Most panics and errors that are kept.
const LINES_MAX: usize = 100;

static PANICS: LazyLock<Mutex<Vec<String>>> = LazyLock::new(Mutex::default);

/// The trace of this process, which is of one run. Clones are the same trace.
#[derive(Clone)]
pub(crate) struct Trace(Arc<Mutex<Written>>);

struct Written {
    file: BufWriter<File>,
    hasher: DefaultHasher,
    errors: Vec<String>,
}

impl Trace {
    /// Collects what all hosts say into this file, and every panic.
    pub(crate) fn start(path: &Path, filter: &str) -> Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let written = Written { file, hasher: DefaultHasher::new(), errors: Vec::new() };
        let trace = Self(Arc::new(Mutex::new(written)));
        let writer = trace.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_timer(SimTime)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        // No `EnvFilter`: it makes hash maps for spans, and so what is traced would change what happens.
        // What leases tell `jepsen/` carries the machine's time, which is none of the simulation's.
        let filter = filter.parse::<Targets>()?.with_target("gfs::lease", LevelFilter::OFF);
        tracing_subscriber::registry().with(lines.with_filter(filter)).init();
        std::panic::set_hook(Box::new(|info| {
            let mut panics = PANICS.lock();
            if panics.len() < LINES_MAX {
                panics.push(info.to_string());
            }
        }));
        Ok(trace)
    }

    /// Adds a line that no host said.
    pub(crate) fn note(&self, line: &str) {
        let mut written = self.0.lock();
        written.hasher.write(line.as_bytes());
        if let Err(error) = writeln!(written.file, "{line}") {
            written.errors.push(error.to_string());
        }
    }

    /// A hash of everything so far.
    pub(crate) fn hash(&self) -> String {
        let mut written = self.0.lock();
        if let Err(error) = written.file.flush() {
            written.errors.push(error.to_string());
        }
        format!("{:016x}", written.hasher.finish())
    }

    /// Lines that were logged as errors.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.0.lock().errors.clone()
    }
}

/// The panics so far.
pub(crate) fn panics() -> Vec<String> {
    PANICS.lock().clone()
}

impl Write for Trace {
    /// One event, whole.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = self.0.lock();
        written.hasher.write(bytes);
        written.file.write_all(bytes)?;
        let line = String::from_utf8_lossy(bytes);
        if line.split_whitespace().nth(1) == Some("ERROR") && written.errors.len() < LINES_MAX {
            written.errors.push(line.trim_end().to_owned());
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().file.flush()
    }
}

/// Stamps lines with simulated time.
struct SimTime;

impl FormatTime for SimTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        write!(writer, "{}.{:06}", now.as_secs(), now.subsec_micros())
    }
}
