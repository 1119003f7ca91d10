//! When a reign begins.

use gfs_proto::Environment;
use gfs_proto::id::Term;
use gfs_proto::size::ChunkBytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::leader::Leader;
use crate::raft::{BootstrapConfig, Leadership, Node, NodeConfig, Origin};

#[tokio::test(flavor = "multi_thread")]
async fn each_term_has_a_reign_of_its_own_that_starts_when_the_term_is_known() {
    // Guard no_term_start: fences are counted from there, and another leader may have answered until then.
    let dir = tempfile::tempdir().unwrap();
    let bootstrap = BootstrapConfig {
        chunk_bytes: ChunkBytes::DEFAULT,
        replication: 3,
        trash: Duration::from_secs(1),
        session: crate::SESSION_DEFAULT,
    };
    let (config, environment) = (NodeConfig::new(dir.path(), "127.0.0.1:1"), Environment::real());
    let node = Node::start(config, &Origin::Bootstrap(bootstrap), &environment).await.unwrap();
    let leader = Leader::new(node.clone(), &environment);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let mut ended = CancellationToken::new();
    for term in [7, 8] {
        // The second follows the first without a pause: that it was deposed in between it never saw.
        let begun = environment.clock.moment();
        let leads = Leadership { leader: None, term: Term::from_raw(term), leading: true };
        leader.change_reign(&leads, &stop, &tasks);
        let reign = leader.reign().unwrap();
        assert!(reign.started >= begun, "term {term}: {:?} is before {begun:?}", reign.started);
        assert_eq!(reign.term.raw(), term);
        assert!(term == 7 || ended.is_cancelled(), "what the first began goes on");
        // Told once more, it goes on.
        leader.change_reign(&leads, &stop, &tasks);
        assert_eq!(leader.reign().unwrap().started, reign.started);
        ended = reign.over;
    }
    leader.change_reign(&Leadership::default(), &stop, &tasks);
    assert!(leader.reign().is_err() && ended.is_cancelled());
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    node.shutdown().await;
}
