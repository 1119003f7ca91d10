//! Finds and follows the leader of the master group, through any master.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::error::{Error, Result, Retry};
use crate::fault;
use crate::net::{self, Net};
use crate::pb::master_client::MasterClient;
use crate::retry::Backoff;
use crate::size::MESSAGE_BYTES_MAX;
use crate::time::Moment;
use crate::{Environment, pb};

/// How long one master may take to answer one call before another one is asked.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one of several masters may take to answer a lookup that any of them can.
const TURN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long after a master fell silent it is not asked, nor believed to lead, if there are others: they elect the
/// next one meanwhile, and until they have they name the lost one.
const SILENT_PAUSE: Duration = Duration::from_secs(1);
/// Most masters that are remembered.
const MASTERS_MAX: usize = 64;

/// A client of the Master service at one master.
pub type Master = MasterClient<Channel>;

/// The master group as one address: every call goes to the leader, wherever it is.
#[derive(Clone)]
pub struct MasterChannel {
    environment: Environment,
    shared: Arc<Mutex<Shared>>,
}

/// Behind a lock because every call may learn something; never held across an await.
struct Shared {
    /// Every known master by address, the given ones first in `order`.
    masters: BTreeMap<String, Master>,
    order: Vec<String>,
    leader: Option<String>,
    /// Who fell silent last, and when.
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
        let mut shared = Shared {
            masters: BTreeMap::new(),
            order: Vec::new(),
            leader: None,
            silent: None,
            next: 0,
            turn: 0,
        };
        for address in masters {
            shared.add(&environment.net, address)?;
        }
        Ok(Self { environment: environment.clone(), shared: Arc::new(Mutex::new(shared)) })
    }

    /// The known masters.
    pub fn addresses(&self) -> Vec<String> {
        self.shared.lock().order.clone()
    }

    /// Where the leader was last seen.
    pub fn leader(&self) -> Option<String> {
        self.shared.lock().leader.clone()
    }

    /// Remembers masters that a server told of; bad addresses are left out.
    pub fn learn(&self, masters: &[String]) {
        let mut shared = self.shared.lock();
        for address in masters {
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
            let outcome = tokio::time::timeout(budget, asked)
                .await
                .unwrap_or_else(|_| Err(Error::unavailable(format!("{address} did not answer"))));
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
                Retry::Never | Retry::Refresh | Retry::OtherReplica | Retry::PushAgain | Retry::NextChunk => {
                    return Err(error);
                }
            }
            let hinted = self.turn_from(&address, &error);
            if hinted && hurried < self.shared.lock().order.len() {
                hurried += 1;
            } else {
                backoff.pause(&error).await?;
                hurried = 0;
            }
        }
    }

    /// Asks the masters and shadows in turn, each at most once, for something that need not be the newest, and
    /// the leader if none of them can answer. `call` must change nothing.
    ///
    /// # Errors
    /// As [`MasterChannel::call`].
    pub async fn ask_any<T, F>(&self, patience: Duration, mut call: impl FnMut(Master) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let started = self.environment.clock.moment();
        for _ in 0..self.addresses().len() {
            let (address, master) = self.shared.lock().pick_next();
            match tokio::time::timeout(patience.min(TURN_TIMEOUT), call(master)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) if error.retry() == Retry::Never => return Err(error),
                Ok(Err(error)) => tracing::debug!(%address, %error, "asking another master"),
                Err(_) => tracing::debug!(%address, "no answer, asking another master"),
            }
        }
        self.call(patience.saturating_sub(self.environment.clock.moment().since(started)), call).await
    }

    /// Chooses whom to ask next after `address` failed; true if there is a hint to follow at once.
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other failure turns to the next master")]
    fn turn_from(&self, address: &str, error: &Error) -> bool {
        let mut shared = self.shared.lock();
        let now = self.environment.clock.moment();
        if matches!(error, Error::Unavailable { .. }) {
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
            | Error::Busy { .. } => false,
            _ => {
                shared.leader = None;
                // After the one that failed, wherever it stands: it must not have its turn again at once.
                let failed = shared.order.iter().position(|known| known == address);
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
                    self.shared.lock().leader = Some(reply.leader.clone());
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
        let master = self.shared.lock().masters.get(address).cloned();
        let mut master = master.ok_or_else(|| Error::NotFound { what: format!("master {address}") })?;
        let reply = tokio::time::timeout(REQUEST_TIMEOUT, master.leader(pb::LeaderRequest {}))
            .await
            .map_err(|_| Error::unavailable(format!("{address} did not answer")))??
            .into_inner();
        self.learn(&reply.members.iter().map(|member| member.address.clone()).collect::<Vec<_>>());
        Ok(reply)
    }
}

impl Shared {
    fn add(&mut self, net: &Arc<dyn Net>, address: &str) -> Result<()> {
        if self.masters.contains_key(address) {
            return Ok(());
        }
        if self.order.len() >= MASTERS_MAX {
            return Err(Error::TooLarge {
                what: "list of masters".into(),
                size: self.order.len() as u64 + 1,
                limit: MASTERS_MAX as u64,
            });
        }
        if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            return Err(Error::bad_argument(format!("{address:?} is no host:port")));
        }
        let channel = net::channel(net.clone(), address, REQUEST_TIMEOUT)?;
        let master = MasterClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        self.masters.insert(address.to_owned(), master);
        self.order.push(address.to_owned());
        Ok(())
    }

    fn avoids(&self, address: &str, now: Moment) -> bool {
        let mut silent = self.silent.iter();
        silent.any(|(silent, since)| silent == address && now.since(*since) < SILENT_PAUSE)
    }

    /// Another one each time, so that the lookups of many clients are spread over all.
    fn pick_next(&mut self) -> (String, Master) {
        self.turn = self.turn.wrapping_add(1);
        let address = &self.order[self.turn % self.order.len()];
        (address.clone(), self.masters[address].clone())
    }

    /// The leader if it is known, else the next in turn.
    fn pick(&self, now: Moment) -> (String, Master) {
        let in_turn = || {
            let (before, after) = self.order.split_at(self.next % self.order.len());
            let mut turns = after.iter().chain(before);
            turns.find(|address| !self.avoids(address, now)).unwrap_or(&self.order[0])
        };
        let address = self.leader.as_ref().unwrap_or_else(in_turn);
        (address.clone(), self.masters[address].clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(masters: u16) -> (MasterChannel, Vec<String>) {
        let masters: Vec<String> = (1..=masters).map(|port| format!("127.0.0.1:{port}")).collect();
        (MasterChannel::new(&Environment::real(), &masters).unwrap(), masters)
    }

    impl MasterChannel {
        fn picked(&self) -> String {
            self.shared.lock().pick(self.environment.clock.moment()).0
        }
    }

    #[tokio::test]
    async fn whichever_master_falls_silent_the_next_one_to_be_asked_is_another() {
        for leader in 0..3 {
            let (channel, masters) = channel(3);
            channel.shared.lock().leader = Some(masters[leader].clone());
            let mut asked = vec![masters[leader].clone()];
            for _ in 0..2 {
                channel.turn_from(asked.last().unwrap(), &Error::unavailable("no answer"));
                asked.push(channel.picked());
            }
            asked.sort();
            assert_eq!(asked, masters, "beginning with {leader}");
        }
    }

    #[tokio::test]
    async fn a_leader_that_has_fallen_silent_is_not_asked_again_because_others_still_name_it() {
        let (channel, masters) = channel(3);
        let lost = &masters[0];
        channel.turn_from(lost, &Error::unavailable("no answer"));
        for _ in 0..4 {
            let asked = channel.picked();
            assert_ne!(&asked, lost);
            assert!(!channel.turn_from(&asked, &Error::NotLeader { leader: Some(lost.clone()) }));
        }
        // Until they know better.
        let asked = channel.picked();
        let new = masters.iter().find(|master| **master != asked && *master != lost).unwrap();
        assert!(channel.turn_from(&asked, &Error::NotLeader { leader: Some(new.clone()) }));
        assert_eq!(&channel.picked(), new);
    }

    #[tokio::test]
    async fn a_leader_that_says_wait_is_the_one_to_ask_again() {
        let (channel, masters) = channel(3);
        channel.shared.lock().leader = Some(masters[1].clone());
        channel.turn_from(&masters[1], &Error::Busy { what: "the tree".into() });
        assert_eq!(channel.picked(), masters[1]);
    }

    #[tokio::test]
    async fn an_only_master_is_asked_again() {
        let (channel, masters) = channel(1);
        channel.turn_from(&masters[0], &Error::unavailable("no answer"));
        assert_eq!(channel.picked(), masters[0]);
    }
}
