//! The request ids of a chunk: what became of them, and which of them their clients have given up (decisions 0004, 0012, 0018).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ClientId, RequestId};

use super::chunk::Chunk;
use super::content::Outcome;
use super::disk::{Disk, SMALL_RECORD_BYTES};
use super::error::Result;
use super::format::Record;
use super::log::Then;

/// Sessions in one record.
const FORGET_CLIENTS_MAX: usize = 1024;

/// What a chunk knows of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recall {
    /// Nothing: it has not been applied.
    New,
    /// It has been applied.
    Known(Outcome),
    /// Its client has said that it will not ask for it again: whether it was applied has been forgotten.
    GivenUp,
}

/// The outcomes of a chunk's requests: as much content as the bytes (guard *ids_not_content*).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Requests {
    outcomes: BTreeMap<RequestId, Outcome>,
    /// Ids of a client below this are forgotten. Not noted at its first mutation of this chunk, so that a client that comes
    /// once costs one entry.
    first_kept: BTreeMap<ClientId, u64>,
}

impl Requests {
    /// Entries that have to be kept.
    pub fn len(&self) -> usize {
        self.outcomes.len() + self.first_kept.len()
    }
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What is known of a request.
    pub fn recall(&self, request: RequestId) -> Recall {
        match self.outcomes.get(&request) {
            Some(outcome) => Recall::Known(*outcome),
            None if self.first_kept.get(&request.client).is_some_and(|first| request.sequence < *first) => {
                Recall::GivenUp
            }
            None => Recall::New,
        }
    }
    /// The outcomes, in the order of their ids.
    pub fn outcomes(&self) -> impl ExactSizeIterator<Item = (RequestId, Outcome)> {
        self.outcomes.iter().map(|(request, outcome)| (*request, *outcome))
    }
    /// The clients of which ids were given up, each with the first that is kept.
    pub fn first_kept(&self) -> impl ExactSizeIterator<Item = (ClientId, u64)> {
        self.first_kept.iter().map(|(client, first)| (*client, *first))
    }
    /// Puts together what the others took apart.
    pub fn new(
        outcomes: impl IntoIterator<Item = (RequestId, Outcome)>,
        first_kept: impl IntoIterator<Item = (ClientId, u64)>,
    ) -> Self {
        Self { outcomes: outcomes.into_iter().collect(), first_kept: first_kept.into_iter().collect() }
    }

    /// Adds the outcome of a request, with which its client gave up all its requests below `first_unacked`: the same on
    /// every member, since it is part of the mutation, and in a replay.
    pub fn record(&mut self, request: RequestId, first_unacked: u64, outcome: Outcome) {
        let RequestId { client, sequence } = request;
        let first = first_unacked.min(sequence);
        let of = |sequence| RequestId { client, sequence };
        let comes_again = self.outcomes.range(of(0)..=of(u64::MAX)).next().is_some();
        let gone: Vec<RequestId> =
            self.outcomes.range(of(0)..of(first)).map(|(request, _)| *request).collect();
        for request in &gone {
            self.outcomes.remove(request);
        }
        // Guard given_up_repeated: a late copy of one of them must not be taken for a new request.
        // Mutant given_up_repeated: what is forgotten is new.
        if comes_again && first > 0 && !fault::mutant("given_up_repeated") {
            let kept = self.first_kept.entry(client).or_default();
            *kept = first.max(*kept);
        }
        self.outcomes.insert(request, outcome);
    }

    /// Adds the clients after `after`; `all` keeps the lowest `limit`.
    pub(crate) fn clients(&self, after: ClientId, limit: usize, all: &mut BTreeSet<ClientId>) {
        let last = |client| RequestId { client, sequence: u64::MAX };
        let mut after = last(after);
        // From client to client, not from request to request: there are far fewer. Who gave something up has given
        // something else.
        while let Some((next, _)) = self.outcomes.range((Bound::Excluded(after), Bound::Unbounded)).next() {
            let client = next.client;
            if all.len() >= limit && all.last().is_some_and(|highest| client > *highest) {
                return;
            }
            all.insert(client);
            if all.len() > limit {
                all.pop_last();
            }
            after = last(client);
        }
    }

    /// Forgets everything about these clients, whose sessions have expired; tells whether there was anything.
    pub(crate) fn forget(&mut self, clients: &[ClientId]) -> bool {
        let before = self.len();
        for client in clients {
            let of = |sequence| RequestId { client: *client, sequence };
            let gone: Vec<RequestId> =
                self.outcomes.range(of(0)..=of(u64::MAX)).map(|(request, _)| *request).collect();
            for request in &gone {
                self.outcomes.remove(request);
            }
            self.first_kept.remove(client);
        }
        before != self.len()
    }
}

/// Forgets the requests of these clients on one disk; notes the chunks that had any.
pub(super) fn forget(disk: &Disk, clients: &[ClientId], changed: &mut BTreeSet<ChunkHandle>) -> Result<()> {
    for some in clients.chunks(FORGET_CLIENTS_MAX) {
        let mut permit = disk.log.reserve(8 * some.len() + SMALL_RECORD_BYTES)?;
        let chunks: Vec<Arc<Chunk>> = disk.chunks.read().values().cloned().collect();
        // The memory first: a table that is written meanwhile has either forgotten or is older than the record.
        let mut any = false;
        for chunk in &chunks {
            let mut state = chunk.state.lock();
            // One that was removed meanwhile may have been made anew, and must not stand in its place.
            if !state.removed && state.meta.content.requests.forget(some) {
                disk.dirty.lock().insert(chunk.handle, chunk.clone());
                changed.insert(chunk.handle);
                any = true;
            }
        }
        if !any {
            continue;
        }
        let record = Record::Forget { clients: some.to_vec() }.encode();
        disk.log.append(&mut permit, record, Then::lazily());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(client: u64, sequence: u64) -> RequestId {
        RequestId { client: ClientId::from_raw(client), sequence }
    }
    fn at(offset: u32) -> Outcome {
        Outcome { offset, length: 1 }
    }

    #[test]
    fn what_a_client_gives_up_goes_and_is_never_new_again() {
        let mut requests = Requests::default();
        for sequence in 1..=3 {
            requests.record(id(1, sequence), 1, at(0));
        }
        requests.record(id(2, 1), 1, at(7));
        // Who comes once costs one entry.
        assert_eq!((requests.len(), requests.first_kept().len()), (5, 1));
        assert_eq!(requests.recall(id(1, 2)), Recall::Known(at(0)));
        requests.record(id(1, 5), 3, at(9));
        assert_eq!([1, 2].map(|sequence| requests.recall(id(1, sequence))), [Recall::GivenUp; 2]);
        assert_eq!(requests.recall(id(1, 3)), Recall::Known(at(0)));
        assert_eq!(requests.recall(id(1, 4)), Recall::New, "it may be on its way");
        assert_eq!(requests.recall(id(2, 1)), Recall::Known(at(7)), "another client's");
        // A promise that arrives late, or claims too much, takes nothing back and nothing more.
        requests.record(id(1, 4), 1, at(8));
        assert_eq!(requests.recall(id(1, 2)), Recall::GivenUp);
        requests.record(id(2, 2), 99, at(6));
        assert_eq!(
            (requests.recall(id(2, 2)), requests.recall(id(2, 3))),
            (Recall::Known(at(6)), Recall::New)
        );
    }

    #[test]
    fn a_client_that_has_each_answer_before_it_asks_again_costs_two_entries_however_long_it_lives() {
        let mut requests = Requests::default();
        for sequence in 1..100_000 {
            requests.record(id(1, sequence), sequence, at(0));
            assert!(requests.len() <= 2);
        }
        assert_eq!(requests.recall(id(1, 17)), Recall::GivenUp);
        assert!(requests.forget(&[ClientId::from_raw(1)]) && requests.is_empty());
    }
}
