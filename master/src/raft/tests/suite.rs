//! openraft's own suite on our stores.

use std::sync::Arc;

use gfs_proto::work::Workers;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::raft::log::LogStore;
use crate::raft::machine::{Feeds, Machine};
use crate::raft::store::StateStore;
use crate::raft::types::TypeConfig;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        // In memory where there is one: a hundred databases come and go, and a sync proves nothing here.
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let log = LogStore::open(&dir.path().join("log"), "suite", &Workers::Threads).unwrap();
        let state = StateStore::open(&dir.path().join("state"), 1 << 20, &Workers::Threads).unwrap();
        Ok((dir, log, Machine::new(Arc::new(state), Feeds::new(None), Workers::Threads)))
    }
}

// Paused, because the suite sleeps.
#[tokio::test(start_paused = true)]
async fn the_stores_keep_every_promise_that_openraft_tests() {
    Suite::test_all(Builder).await.unwrap();
}
