//! The consensus of masters as a whole: openraft's own suite, crashes at every write, groups over loopback.

mod clocks;
mod crash;
mod flip;
mod group;
mod large;
mod replace;
mod room;
mod suite;

use std::time::Duration;

use super::Node;
use group::PATIENCE;

/// Asks the leader how far the log is, as every master that does not lead does five times a second; who leads may have just
/// changed.
async fn ask(node: &Node) {
    let asking = async {
        while node.read_index().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("a leader answers in time");
}
