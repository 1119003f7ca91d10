//! What a record brings along into the log: its data, who waits for it, and for what.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::store::error::{Error, Result};

/// When a record's callback is called.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Firmness {
    /// Written: survives the process. Causes no sync.
    Written,
    /// Synced: survives a power cut.
    Durable,
}

/// Called on the log's thread: must not block.
pub(crate) type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// Why a disk failed, set once; shared by all that use the disk.
pub(crate) type Failure = Arc<OnceLock<Error>>;

/// What a record brings along: the data that follows its head, and who waits for it.
pub(crate) struct Then {
    pub(crate) data: Bytes,
    pub(crate) firmness: Firmness,
    pub(crate) done: Option<Done>,
}

impl Then {
    /// Nobody waits.
    pub(crate) fn lazily() -> Self {
        Self { data: Bytes::new(), firmness: Firmness::Written, done: None }
    }
    /// Somebody waits for the record to be as firm as this.
    pub(crate) fn finish(firmness: Firmness, done: Done) -> Self {
        Self { data: Bytes::new(), firmness, done: Some(done) }
    }
}
