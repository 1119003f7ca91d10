//! Finds and follows the leader of the master group, through any master.

mod master;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Result, Retry};
use crate::fault;
use crate::id::ClusterId;
use crate::net::{self, Net};
use crate::retry::Backoff;
use crate::time::Moment;
use crate::{Environment, pb};

pub use master::{CLUSTER_KEY, Master, Meant, REV_KEY, refused_at};

/// How long one master may take to answer one call before another one is asked.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one of several masters may take to answer a lookup that any of them can.
const TURN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long after a master fell silent it is not asked, nor believed to lead, if there are others: they elect the
/// next one meanwhile, and until they have they name the lost one.
const SILENT_PAUSE: Duration = Duration::from_secs(1);
/// Most masters that are remembered.
const MASTERS_MAX: usize = 64;
/// Longest address of a master that is remembered.
const ADDRESS_BYTES_MAX: usize = 300;

/// The master group as one address: every call goes to the leader, wherever it is.
#[derive(Clone)]
pub struct MasterChannel {
    environment: Environment,
    meant: Meant,
    shared: Arc<Mutex<Shared>>,
}

/// Behind a lock because every call may learn something; never held across an await.
struct Shared {
    meant: Meant,
    /// Every known master with its address, the given ones first; there is at least one of those.
    masters: Vec<(String, Master)>,
    /// So many were given; the others were learnt, and may be forgotten.
    given: usize,
    /// The last membership that a master told.
    members: BTreeSet<String>,
    leader: Option<String>,
    /// Who fell silent last, or turned out to belong to another cluster, and when.
    silent: Option<(String, Moment)>,
    next: usize,
    /// Counts what [`MasterChannel::ask_any`] asked.
    turn: usize,
}

impl std::fmt::Debug for MasterChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MasterChannel({:?})", self.addresses())
    }
}

impl MasterChannel {
    /// A channel that starts from these masters; no connection is made yet.
    ///
    /// # Errors
    /// [`Error::BadArgument`] if the list is empty or an address is no `host:port`.
    pub fn new(environment: &Environment, masters: &[String]) -> Result<Self> {
        if masters.is_empty() {
            return Err(Error::bad_argument("no master is given (--masters HOST:PORT,.. or GFS_MASTERS)"));
        }
        let meant = Meant::default();
        let mut shared = Shared {
            meant: meant.clone(),
            masters: Vec::new(),
            given: 0,
            members: BTreeSet::new(),
            leader: None,
            silent: None,
            next: 0,
            turn: 0,
        };
        for address in masters {
            shared.add(&environment.net, address)?;
            shared.given = shared.masters.len();
        }
        Ok(Self { environment: environment.clone(), meant, shared: Arc::new(Mutex::new(shared)) })
    }

    /// Takes note of the cluster that is meant: from now on the masters of another one, at an address that was this one's
    /// once perhaps, refuse what they are asked, and are not believed.
    ///
    /// # Errors
    /// [`Error::WrongCluster`] if it is another one than before.
    pub fn settle(&self, cluster: ClusterId) -> Result<()> {
        self.meant.settle(cluster)
    }

    /// The known masters: the leader first if it is known, then those of the last membership that was told.
    pub fn addresses(&self) -> Vec<String> {
        self.shared.lock().addresses()
    }

    /// Where the leader was last seen.
    pub fn leader(&self) -> Option<String> {
        self.shared.lock().leader.clone()
    }

    /// Remembers the masters of a membership that a server told; bad addresses are left out.
    pub fn learn(&self, members: &[String]) {
        let mut shared = self.shared.lock();
        let members: BTreeSet<&String> =
            members.iter().filter(|address| is_address(address)).take(MASTERS_MAX).collect();
        // First, so that of these none has to go for another.
        shared.members = members.iter().copied().cloned().collect();
        for address in members {
            if let Err(error) = shared.add(&self.environment.net, address) {
                tracing::debug!(%address, %error, "ignoring a master");
            }
        }
    }

    /// Calls the leader until it answers, for at most `patience`. `call` must be safe to repeat: a
    /// mutation carries its request id.
    ///
    /// # Errors
    /// The first error that no other attempt can change, or [`Error::DeadlineExceeded`].
    pub async fn call<T, F>(&self, patience: Duration, mut call: impl FnMut(Master) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let mut backoff = Backoff::new(&self.environment, patience);
        // Each master once without a pause, so that a dead or deposed leader costs no waiting.
        let mut hurried = 0;
        loop {
            let (address, master) = self.shared.lock().pick(self.environment.clock.moment());
            let budget = backoff.remaining().min(REQUEST_TIMEOUT);
            let asked = call(master);
            let asked = async {
                fault::try_reach("client::request_sent").await?;
                let value = asked.await?;
                fault::try_reach("client::reply_received").await.map(|()| value)
            };
            let answered = tokio::time::timeout(budget, asked).await;
            // Who was given less time than a request may take is not silent for that.
            let was_cut_short = answered.is_err() && budget < REQUEST_TIMEOUT;
            let outcome =
                answered.unwrap_or_else(|_| Err(Error::unavailable(format!("{address} did not answer"))));
            let error = match outcome {
                Ok(value) => {
                    self.shared.lock().leader = Some(address);
                    return Ok(value);
                }
                Err(error) => error,
            };
            tracing::debug!(%address, %error, "master call failed");
            match error.retry() {
                Retry::OtherMaster | Retry::Later => {}
                // It has nothing to say about ours.
                Retry::Never if matches!(error, Error::WrongCluster { .. }) => {}
                Retry::Never | Retry::Refresh | Retry::OtherReplica | Retry::PushAgain | Retry::NextChunk => {
                    return Err(error);
                }
            }
            let hinted = !was_cut_short && self.turn_from(&address, &error);
            if hinted && hurried < self.shared.lock().masters.len() {
                hurried += 1;
            } else {
                backoff.pause(&error).await?;
                hurried = 0;
            }
        }
    }

    /// Asks the masters and shadows in turn, each at most once, for something that need not be the newest, and
    /// the leader if none of them can answer: for that at least half of the patience is kept. `call` must change nothing.
    ///
    /// # Errors
    /// As [`MasterChannel::call`].
    pub async fn ask_any<T, F>(&self, patience: Duration, mut call: impl FnMut(Master) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let started = self.environment.clock.moment();
        let waited = || self.environment.clock.moment().since(started);
        let known = self.shared.lock().masters.len();
        for _ in 0..known {
            let left = (patience / 2).saturating_sub(waited());
            if left.is_zero() {
                break;
            }
            let (address, master) = self.shared.lock().pick_next();
            match tokio::time::timeout(left.min(TURN_TIMEOUT), call(master)).await {
                Ok(Ok(value)) => return Ok(value),
                // One that is broken, or belongs elsewhere, says nothing about what is asked.
                Ok(Err(error @ (Error::Internal { .. } | Error::WrongCluster { .. }))) => {
                    tracing::debug!(%address, %error, "asking another master");
                }
                Ok(Err(error)) if error.retry() == Retry::Never => return Err(error),
                Ok(Err(error)) => tracing::debug!(%address, %error, "asking another master"),
                Err(_) => tracing::debug!(%address, "no answer, asking another master"),
            }
        }
        self.call(patience.saturating_sub(waited()), call).await
    }

    /// Chooses whom to ask next after `address` failed; true if there is a hint to follow at once.
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other failure turns to the next master")]
    fn turn_from(&self, address: &str, error: &Error) -> bool {
        let mut shared = self.shared.lock();
        let now = self.environment.clock.moment();
        if matches!(error, Error::Unavailable { .. } | Error::WrongCluster { .. }) {
            shared.silent = Some((address.to_owned(), now));
        }
        match error {
            Error::NotLeader { leader: Some(hint) } if hint != address && !shared.avoids(hint, now) => {
                if shared.add(&self.environment.net, hint).is_ok() {
                    shared.leader = Some(hint.clone());
                    return true;
                }
                shared.leader = None;
                false
            }
            // The leader itself says wait: it is the right one to ask again.
            Error::NotEnoughServers { .. }
            | Error::NoReplica { .. }
            | Error::GrantPending { .. }
            | Error::MastersFull { .. }
            | Error::Busy { .. } => false,
            _ => {
                shared.leader = None;
                // After the one that failed, wherever it stands: it must not have its turn again at once.
                let failed = shared.find(address);
                shared.next = failed.unwrap_or(shared.next).wrapping_add(1);
                false
            }
        }
    }

    /// Asks every known master who leads; the first answer that names one wins, and its members are learnt.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none knows.
    pub async fn discover(&self) -> Result<pb::LeaderReply> {
        let mut last = Error::unavailable("no master answered");
        for address in self.addresses() {
            match self.learn_from(&address).await {
                Ok(reply) if reply.leader.is_empty() => {
                    last = Error::unavailable(format!("{address} knows no leader"));
                }
                Ok(reply) => {
                    let mut shared = self.shared.lock();
                    match shared.add(&self.environment.net, &reply.leader) {
                        Ok(()) => shared.leader = Some(reply.leader.clone()),
                        Err(error) => tracing::debug!(leader = %reply.leader, %error, "not followed"),
                    }
                    return Ok(reply);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Asks the known masters in turn until one tells which there are: those that were told at first may be gone one day.
    ///
    /// # Errors
    /// What the last one said, if none does.
    pub async fn refresh(&self) -> Result<()> {
        let mut last = Error::unavailable("no master answered");
        for address in self.addresses() {
            match self.learn_from(&address).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// What one master knows of the others, which are learnt.
    async fn learn_from(&self, address: &str) -> Result<pb::LeaderReply> {
        let master = self.shared.lock().master(address);
        let mut master = master.ok_or_else(|| Error::NotFound { what: format!("master {address}") })?;
        let reply = tokio::time::timeout(REQUEST_TIMEOUT, master.leader(pb::LeaderRequest {}))
            .await
            .map_err(|_| Error::unavailable(format!("{address} did not answer")))??
            .into_inner();
        self.meant.check(&reply.cluster)?;
        self.learn(&reply.members.iter().map(|member| member.address.clone()).collect::<Vec<_>>());
        Ok(reply)
    }
}

impl Shared {
    fn add(&mut self, net: &Arc<dyn Net>, address: &str) -> Result<()> {
        if self.find(address).is_some() {
            return Ok(());
        }
        if !is_address(address) {
            return Err(Error::bad_argument(format!("{address:?} is no host:port")));
        }
        if self.masters.len() >= MASTERS_MAX {
            self.make_room()?;
        }
        let channel = net::channel(net.clone(), address, REQUEST_TIMEOUT)?;
        self.masters.push((address.to_owned(), Master::of(channel, self.meant.clone())));
        Ok(())
    }

    /// Forgets one: masters that move leave their addresses behind (decision 0024). Only if there is no other room, since the
    /// master that told the last membership may be behind the others.
    fn make_room(&mut self) -> Result<()> {
        let is_needed =
            |address: &String| self.members.contains(address) || self.leader.as_ref() == Some(address);
        let learnt = self.masters.iter().enumerate().skip(self.given);
        let mut free = learnt.filter(|(_, (address, _))| !is_needed(address)).map(|(at, _)| at);
        let Some(oldest) = free.next() else {
            return Err(Error::TooLarge {
                what: "list of masters".into(),
                size: self.masters.len() as u64 + 1,
                limit: MASTERS_MAX as u64,
            });
        };
        self.masters.remove(oldest);
        Ok(())
    }

    fn find(&self, address: &str) -> Option<usize> {
        self.masters.iter().position(|(known, _)| known == address)
    }

    fn master(&self, address: &str) -> Option<Master> {
        self.find(address).map(|at| self.masters[at].1.clone())
    }

    fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<String> = self.masters.iter().map(|(address, _)| address.clone()).collect();
        addresses
            .sort_by_key(|address| (self.leader.as_ref() != Some(address), !self.members.contains(address)));
        addresses
    }

    fn avoids(&self, address: &str, now: Moment) -> bool {
        let mut silent = self.silent.iter();
        silent.any(|(silent, since)| silent == address && now.since(*since) < SILENT_PAUSE)
    }

    /// Another one each time, so that the lookups of many clients are spread over all.
    fn pick_next(&mut self) -> (String, Master) {
        self.turn = self.turn.wrapping_add(1);
        self.masters[self.turn % self.masters.len()].clone()
    }

    /// The leader if it is known, else the next in turn.
    fn pick(&self, now: Moment) -> (String, Master) {
        let leader = self.leader.as_ref().and_then(|leader| self.find(leader));
        let in_turn = || {
            let (before, after) = self.masters.split_at(self.next % self.masters.len());
            let mut turns = after.iter().chain(before);
            turns.find(|(address, _)| !self.avoids(address, now)).unwrap_or(&self.masters[0])
        };
        leader.map_or_else(in_turn, |at| &self.masters[at]).clone()
    }
}

/// Whether this is a `host:port`.
fn is_address(text: &str) -> bool {
    let named = |(host, port): (&str, &str)| !host.is_empty() && port.parse::<u16>().is_ok();
    text.len() <= ADDRESS_BYTES_MAX && text.rsplit_once(':').is_some_and(named)
}
