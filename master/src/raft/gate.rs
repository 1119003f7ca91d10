//! One question for many who ask at the same time: what came before a round starts shares its answer.

use std::sync::Arc;

use futures::future::BoxFuture;
use gfs_proto::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::Leadership;

/// Most callers that wait for one round.
const WAITING_MAX: usize = 65_536;

/// Lets one round run at a time; a caller gets the answer of a round that began after it came.
#[derive(Clone)]
pub(crate) struct Gate<T> {
    state: Arc<Mutex<State<T>>>,
}

/// Behind a lock for a few instructions only.
struct State<T> {
    waiting: Vec<oneshot::Sender<Result<T>>>,
    running: bool,
}

impl<T: Clone + Send + 'static> Gate<T> {
    /// Nobody waits.
    pub(crate) fn new() -> Self {
        Self { state: Arc::new(Mutex::new(State { waiting: Vec::new(), running: false })) }
    }

    /// The answer of the next round. The round that is given here may be made again for those who come later, so nothing
    /// that changes may be decided before it begins.
    pub(crate) async fn pass<F>(&self, round: impl Fn() -> F + Send + 'static) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.waiting.len() >= WAITING_MAX {
                return Err(Error::Busy { what: "the queue of reads".into() });
            }
            state.waiting.push(sender);
            if !state.running {
                state.running = true;
                // On its own, so that a caller who leaves takes nobody along.
                tokio::spawn(run(self.state.clone(), round));
            }
        }
        answer.await.unwrap_or_else(|_| Err(Error::unavailable("the round was given up")))
    }
}

/// A round that asks whoever leads when it begins. A leader that its caller knew may have vanished by the next one.
pub(crate) fn at_leader<T: 'static, F>(
    leadership: watch::Receiver<Leadership>,
    ask: impl Fn(String) -> F + Send + 'static,
) -> impl Fn() -> BoxFuture<'static, Result<T>> + Send + 'static
where
    F: Future<Output = Result<T>> + Send + 'static,
{
    move || -> BoxFuture<'static, Result<T>> {
        let leader = leadership.borrow().leader.clone();
        let asking = leader.map(|(_, address)| ask(address));
        Box::pin(async move {
            match asking {
                Some(asking) => asking.await,
                None => Err(Error::NotLeader { leader: None }),
            }
        })
    }
}

async fn run<T: Clone, F: Future<Output = Result<T>>>(state: Arc<Mutex<State<T>>>, round: impl Fn() -> F) {
    loop {
        let waiting = {
            let mut state = state.lock();
            if state.waiting.is_empty() {
                state.running = false;
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        let answer = round().await;
        for caller in waiting {
            if caller.send(answer.clone()).is_err() {
                tracing::trace!("a reader has left");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use gfs_proto::id::MasterId;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn callers_share_a_round_that_began_after_they_came() {
        let gate = Gate::new();
        let rounds = Arc::new(AtomicU64::new(0));
        let pass = |gate: Gate<u64>| {
            let rounds = rounds.clone();
            tokio::spawn(async move {
                gate.pass(move || {
                    let number = rounds.fetch_add(1, Ordering::Relaxed) + 1;
                    async move {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        Ok(number)
                    }
                })
                .await
            })
        };
        let first = pass(gate.clone());
        tokio::time::sleep(Duration::from_millis(5)).await;
        let others: Vec<_> = (0..100).map(|_| pass(gate.clone())).collect();
        assert_eq!(first.await.unwrap(), Ok(1));
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(2));
        }
        assert_eq!(pass(gate).await.unwrap(), Ok(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_asks_whoever_leads_when_it_begins_whoever_led_when_the_first_caller_came() {
        let leads = |address: &str| Leadership {
            leader: Some((MasterId::from_raw(1), address.to_owned())),
            ..Leadership::default()
        };
        let (gate, leadership) = (Gate::<String>::new(), watch::Sender::new(leads("lost")));
        let pass = || {
            let (gate, leadership) = (gate.clone(), leadership.subscribe());
            let ask = |address: String| async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                if address == "lost" { Err(Error::unavailable("no answer")) } else { Ok(address) }
            };
            tokio::spawn(async move { gate.pass(at_leader(leadership, ask)).await })
        };
        let first = pass();
        tokio::time::sleep(Duration::from_secs(1)).await;
        leadership.send_replace(leads("new"));
        let second = pass();
        assert_eq!(first.await.unwrap(), Err(Error::unavailable("no answer")));
        assert_eq!(second.await.unwrap(), Ok("new".to_owned()));
        leadership.send_replace(Leadership::default());
        assert_eq!(pass().await.unwrap(), Err(Error::NotLeader { leader: None }));
    }
}
