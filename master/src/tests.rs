//! Whole masters in one process.

use std::time::Duration;

use gfs_proto::net::{Net, TcpNet};
use gfs_proto::size::ChunkBytes;
use gfs_proto::{Environment, Result};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::raft::{BootstrapConfig, Node, NodeConfig, Origin};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Master {
    node: Node,
    address: String,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<()>>,
    _directory: TempDir,
}

async fn start(origin: Origin) -> Master {
    let listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let (config, stop) = (NodeConfig::new(directory.path(), address.clone()), CancellationToken::new());
    let (tell, told) = tokio::sync::oneshot::channel();
    let stopped = stop.clone();
    let running = tokio::spawn(async move {
        let started = |node: &Node| drop(tell.send(node.clone()));
        crate::run_node((config, &origin), Environment::real(), listener, stopped, started).await
    });
    let node = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    Master { node, address, stop, running, _directory: directory }
}

fn leads(master: &Master) -> bool {
    master.node.leadership().borrow().leading
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_told_to_stop_serves_until_another_one_leads() {
    let first = start(Origin::Bootstrap(BootstrapConfig {
        chunk_bytes: ChunkBytes::DEFAULT,
        replication: 3,
        trash: Duration::from_secs(3600),
        session: crate::SESSION_DEFAULT,
    }))
    .await;
    let joining = || Origin::Join { masters: vec![first.address.clone()], shadow: false };
    let (second, third) = (start(joining()).await, start(joining()).await);
    let mut masters = vec![first, second, third];
    let waiting = async {
        let votes = |master: &Master| master.node.membership().iter().filter(|member| member.voter).count();
        while !masters.iter().all(|master| votes(master) == 3) || !masters.iter().any(leads) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    let ends = masters.remove(masters.iter().position(leads).unwrap());
    // Somebody has connected and says nothing, which is waited for a while.
    let _silent = TcpStream::connect(&ends.address).await.unwrap();
    ends.stop.cancel();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !masters.iter().any(leads) {
        if TcpStream::connect(&ends.address).await.is_err() {
            // Who leads has told the others a moment before it says so here.
            let known = tokio::time::Instant::now() + Duration::from_secs(1);
            while !masters.iter().any(leads) {
                let soon = tokio::time::Instant::now() < known;
                assert!(soon, "nobody leads, and it does not serve any more");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "nobody leads");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ends.running.await.unwrap().unwrap();
    for master in masters {
        master.stop.cancel();
        master.running.await.unwrap().unwrap();
    }
}
