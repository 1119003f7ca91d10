//! What a node does all the time beside answering: it follows openraft, and cares for the group.

use std::sync::Arc;

use gfs_proto::id::{MasterId, Term};
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Leadership;
use super::members::{CARE_PERIOD, Looks, Members};
use super::types::{Metrics, Raft};

/// Who leads, by these metrics.
fn leadership(metrics: &Metrics) -> Leadership {
    let leader = metrics.current_leader.and_then(|id| {
        let node = metrics.membership_config.get_node(&id)?;
        Some((MasterId::from_raw(id), node.address.clone()))
    });
    let leading = metrics.state.is_leader() && metrics.current_leader == Some(metrics.id);
    Leadership { leader, term: Term::from_raw(metrics.current_term), leading }
}

/// Follows openraft's metrics.
pub(super) async fn follow(raft: Raft, sender: watch::Sender<Leadership>, stop: CancellationToken) {
    let mut metrics = raft.metrics();
    loop {
        // Cloned at once: holding the reference stops openraft.
        let now = leadership(&metrics.borrow_watched().clone());
        sender.send_if_modified(|old| {
            let changed = *old != now;
            if changed {
                tracing::info!(leader = ?now.leader, term = %now.term, leading = now.leading, "leadership");
                *old = now;
            }
            changed
        });
        let alive = tokio::select! {
            () = stop.cancelled() => false,
            changed = metrics.changed() => changed.is_ok(),
        };
        if !alive {
            sender.send_modify(|last| *last = Leadership { leader: None, leading: false, term: last.term });
            return;
        }
    }
}

/// The leader's care for the group, until `stop`.
pub(super) async fn care(members: Arc<Members>, stop: CancellationToken) {
    let mut looks = Looks::default();
    let mut interval = tokio::time::interval(CARE_PERIOD);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => {}
        }
        if let Err(error) = members.care(&mut looks).await {
            tracing::debug!(%error, "the group has to wait for the next look");
        }
    }
}
