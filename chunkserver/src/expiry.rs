//! Request ids end with their client's session, some time after it (decision 0012).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::ClientId;
use gfs_proto::time::Moment;
use gfs_proto::{Error, Result, fault, pb};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::server::Chunkserver;

/// The leader is asked so many times while an expired session's ids are kept, within these bounds.
const ROUNDS_PER_KEEP: u32 = 8;
const PERIOD_MIN: Duration = Duration::from_millis(100);
const PERIOD_MAX: Duration = Duration::from_secs(60);
/// How long one answer may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients in one round; the next round goes on after them.
const CLIENTS_MAX: usize = 4096;
/// Most expired sessions that are remembered, in order to refuse their late requests. One that falls out is asked for
/// again as long as ids of it are here, and those then stay for another while.
const EXPIRED_MAX: usize = 65_536;

/// Sessions that have ended, and when this server first heard of it.
#[derive(Debug, Default)]
pub(crate) struct Expired {
    heard_at: BTreeMap<ClientId, Moment>,
}

impl Expired {
    /// Refuses requests of a client whose session is known to have ended: whether they were carried out before can't be
    /// told for ever.
    pub(crate) fn check(&self, client: ClientId) -> Result<()> {
        if self.heard_at.contains_key(&client) { Err(Error::SessionExpired { client }) } else { Ok(()) }
    }

    fn hear(&mut self, client: ClientId, now: Moment) {
        self.heard_at.entry(client).or_insert(now);
        if self.heard_at.len() > EXPIRED_MAX {
            // Ids grow with time: this is the session that was opened first.
            self.heard_at.pop_first();
        }
    }

    fn is_known(&self, client: ClientId) -> bool {
        self.heard_at.contains_key(&client)
    }

    /// Whether the ids of this client have been kept long enough since.
    fn is_over(&self, client: ClientId, keep: Duration, now: Moment) -> bool {
        self.heard_at.get(&client).is_some_and(|at| now.since(*at) >= keep)
    }
}

/// Forgets the ids of sessions that have ended, until `stop`.
pub(crate) async fn forget_expired(server: Arc<Chunkserver>, stop: CancellationToken) {
    let mut period = PERIOD_MIN;
    let mut after = ClientId::default();
    while crate::tick(period, &stop).await {
        match round(&server, after).await {
            Ok(Round { next, keep }) => {
                after = next;
                period = (keep / ROUNDS_PER_KEEP).clamp(PERIOD_MIN, PERIOD_MAX);
            }
            Err(error) => {
                tracing::debug!(%error, "no news of expired sessions");
                period = (period * 2).min(PERIOD_MAX);
            }
        }
    }
}

/// What one round has come to.
struct Round {
    /// The next one goes on after this client.
    next: ClientId,
    /// How long ids have to be kept.
    keep: Duration,
}

async fn round(server: &Arc<Chunkserver>, after: ClientId) -> Result<Round> {
    fault::try_reach("expiry::before_round").await?;
    let leader = server.leader.lock().clone();
    let mut leader = leader.ok_or_else(|| Error::unavailable("no leader is known"))?;
    let store = server.store.clone();
    let clients = server.environment.workers.run(move || store.clients(after, CLIENTS_MAX)).await?;
    let next = clients.last().filter(|_| clients.len() >= CLIENTS_MAX).copied().unwrap_or_default();
    let (cluster, us) = server.identity()?;
    let unknown: Vec<u64> = {
        let expired = server.expired.lock();
        clients.iter().filter(|client| !expired.is_known(**client)).map(|client| client.raw()).collect()
    };
    let request =
        pb::ExpiredClientsRequest { cluster: cluster.to_string(), server: us.raw(), clients: unknown };
    let answer = timeout(ASK_TIMEOUT, leader.expired_clients(request)).await;
    let answer = answer.map_err(|_| Error::unavailable("no answer in time"))??.into_inner();
    let keep = Duration::from_millis(answer.keep_ms);
    let over = {
        let now = server.now();
        let mut expired = server.expired.lock();
        for client in answer.expired {
            let client = ClientId::from_raw(client);
            // Only what was asked for: an answer makes nobody's session expire that is not here.
            if clients.contains(&client) {
                expired.hear(client, now);
            }
        }
        clients.into_iter().filter(|client| expired.is_over(*client, keep, now)).collect()
    };
    forget(server, over).await?;
    Ok(Round { next, keep })
}

/// Forgets the ids of these clients here. The other members do so in their own time.
async fn forget(server: &Arc<Chunkserver>, clients: Vec<ClientId>) -> Result<()> {
    if clients.is_empty() {
        return Ok(());
    }
    let (store, count) = (server.store.clone(), clients.len());
    let forgotten = server.environment.workers.run(move || store.forget_requests(&clients)).await?;
    let chunks = forgotten.map_err(|error| server.wire(&error))?;
    tracing::info!(clients = count, chunks = chunks.len(), "requests of expired sessions forgotten");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn ids_are_kept_for_a_while_after_the_first_news_and_late_requests_are_refused_at_once() {
        let (client, other) = (ClientId::from_raw(7), ClientId::from_raw(8));
        let keep = Duration::from_secs(100);
        let mut expired = Expired::default();
        assert!(expired.check(client).is_ok() && !expired.is_over(client, keep, at(1000)));
        expired.hear(client, at(10));
        expired.hear(client, at(60));
        assert_eq!(expired.check(client), Err(Error::SessionExpired { client }));
        assert!(expired.check(other).is_ok());
        assert!(!expired.is_over(client, keep, at(109)), "the client may not know it yet");
        assert!(expired.is_over(client, keep, at(110)));
    }

    #[test]
    fn only_so_many_expired_sessions_are_remembered() {
        let mut expired = Expired::default();
        for client in 1..=EXPIRED_MAX as u64 + 5 {
            expired.hear(ClientId::from_raw(client), at(0));
        }
        assert_eq!(expired.heard_at.len(), EXPIRED_MAX);
        assert!(!expired.is_known(ClientId::from_raw(5)) && expired.is_known(ClientId::from_raw(6)));
    }
}
