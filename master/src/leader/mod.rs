//! What only the leader does: grants leases, repairs, sweeps, collects. Begins and ends with its reign; the
//! replicated state carries everything that the next leader must know.

mod accept;
mod build;
mod contact;
mod duties;
mod fence;
pub(crate) mod grant;
mod lease;
mod orders;
mod seams;
mod snapshot;
mod unlink;

use std::sync::Arc;
use std::time::Duration;

use gfs_proto::task::every;
use gfs_proto::{Environment, Error, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::Reign;
use crate::raft::{Leadership, Node};
use duties::Duties;
use grant::Granter;

pub(crate) use duties::extend_below;
pub(crate) use lease::{Hint, Leased};
pub(crate) use seams::Soft;

/// How often the soft state is looked over.
const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// This master as a leader, whenever it is one; and the soft state, always.
pub(crate) struct Leader {
    node: Node,
    environment: Environment,
    soft: Arc<Soft>,
    granter: Arc<Granter>,
    duties: Duties,
    reign: watch::Sender<Option<Reign>>,
}

impl Leader {
    /// Does not lead yet, and knows nobody.
    pub(crate) fn new(node: Node, environment: &Environment) -> Arc<Self> {
        let clock = environment.clock.clone();
        let log = Arc::new(seams::RaftLog { node: node.clone() });
        let soft = Arc::new(Soft::new(log.clone(), clock.clone()));
        let orders = Arc::new(orders::GrpcOrders::new(environment.net.clone()));
        let granter = Granter::new(log.clone(), orders.clone(), soft.clone(), clock, node.cluster());
        let duties = Duties::new(log, orders, granter.clone());
        let reign = watch::Sender::new(None);
        Arc::new(Self { node, environment: environment.clone(), soft, granter, duties, reign })
    }

    /// The soft state.
    pub(crate) fn soft(&self) -> &Soft {
        &self.soft
    }
    /// The grant driver.
    pub(crate) fn granter(&self) -> &Arc<Granter> {
        &self.granter
    }
    /// Leases to extend and failures to look into, as heartbeats bring them.
    pub(crate) fn duties(&self) -> &Duties {
        &self.duties
    }
    /// The reign, if this master leads.
    ///
    /// # Errors
    /// [`Error::NotLeader`] with a hint if it does not.
    pub(crate) fn reign(&self) -> Result<Reign> {
        self.reign.borrow().clone().ok_or_else(|| self.not_leader())
    }

    /// The error that names the leader.
    pub(crate) fn not_leader(&self) -> Error {
        let leadership = self.node.leadership().borrow().clone();
        let elsewhere = leadership.leader.filter(|_| !leadership.leading);
        Error::NotLeader { leader: elsewhere.map(|(_, address)| address) }
    }

    /// Takes this for its reign, without the work of one.
    #[cfg(test)]
    pub(crate) fn pretend(&self, reign: Reign) {
        self.reign.send_replace(Some(reign));
    }

    /// Follows the leadership until `stop`, and keeps the soft state up to date all the time.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let soft = self.soft.clone();
        let watching = every("watch", WATCH_PERIOD, stop.clone(), move || {
            soft.with(|cluster, view, now| cluster.tick(view, now));
            std::future::ready(Ok::<_, Error>(()))
        });
        tokio::join!(watching, self.follow_leadership(&stop));
        self.granter.drained().await;
    }

    async fn follow_leadership(&self, stop: &CancellationToken) {
        let mut leadership = self.node.leadership();
        let tasks = TaskTracker::new();
        loop {
            let now = leadership.borrow_and_update().clone();
            if now.leading {
                // Only right after a start it has to be waited for: leases are dated by it.
                self.node.date().await;
            }
            self.change_reign(&now, stop, &tasks);
            tokio::select! {
                () = stop.cancelled() => break,
                changed = leadership.changed() => if changed.is_err() { break },
            }
        }
        self.change_reign(&Leadership::default(), stop, &tasks);
        tasks.close();
        tasks.wait().await;
    }

    /// Ends the reign if it is over, and begins one if this master has come to lead.
    fn change_reign(&self, now: &Leadership, stop: &CancellationToken, tasks: &TaskTracker) {
        let current = self.reign.borrow().clone();
        if let Some(reign) = &current {
            if now.leading && now.term == reign.term {
                return;
            }
            tracing::info!(term = %reign.term, "leadership ended");
            reign.over.cancel();
            self.reign.send_replace(None);
        }
        if now.leading {
            // Guard no_term_start: read after the term began, so never too early.
            let started = self.environment.clock.moment();
            let reign = Reign { term: now.term, started, over: stop.child_token() };
            tracing::info!(term = %reign.term, "leading");
            self.granter.copies.begin();
            tasks.spawn(self.duties.clone().run(self.node.clone(), reign.clone()));
            self.reign.send_replace(Some(reign));
        }
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
