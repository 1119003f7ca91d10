//! openraft's own suite on our stores.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use std::sync::Arc;
use tempfile::TempDir;

use crate::raft::log::LogStore;
use crate::raft::machine::{Feeds, Machine};
use crate::raft::store::StateStore;
use crate::raft::types::TypeConfig;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("log"), "suite").unwrap();
        let state = StateStore::open(&dir.path().join("state"), 1 << 20).unwrap();
        Ok((dir, log, Machine::new(Arc::new(state), Feeds::new(None))))
    }
}

#[test]
fn the_stores_keep_every_promise_that_openraft_tests() {
    TypeConfig::run(async { Suite::test_all(Builder).await.unwrap() });
}
