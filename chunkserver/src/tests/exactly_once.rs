//! Random work of clients that repeat, give up, and whose old frames arrive late, across new grants, joiners and restarts:
//! each mutation happens once, and what is kept about them stays little.
#![allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkVersion, ClientId, RequestId};
use gfs_proto::link::{Mutation, Source};
use gfs_proto::random::{Random, SeededRandom};
use gfs_proto::{Error, Result, pb};

use super::{CHUNK, Cluster, DEADLINE, PATIENCE};

const SEEDS: u64 = 3;
const STEPS: u64 = 120;
const CLIENTS: u64 = 3;
const SERVERS: u64 = 3;
/// Each client's register, written at a fixed place; appends come behind them.
const REGISTER_BYTES: usize = 16;

/// One frame as a client sent it.
#[derive(Clone)]
struct Sent {
    request: RequestId,
    first_unacked: u64,
    append: bool,
}

/// What one client knows.
#[derive(Default)]
struct Client {
    last: u64,
    outstanding: BTreeMap<u64, Sent>,
    history: Vec<Sent>,
    acked: BTreeMap<u64, u32>,
    /// The newest write of its register that was acknowledged.
    register: u64,
}

struct Run {
    seed: u64,
    random: SeededRandom,
    cluster: Cluster,
    version: u64,
    members: Vec<u64>,
    clients: Vec<Client>,
}

fn record(request: RequestId) -> Vec<u8> {
    format!("<{:04}:{:09}>", request.client.raw(), request.sequence).into_bytes()
}

impl Run {
    async fn new(seed: u64) -> Self {
        let cluster = Cluster::start(usize::try_from(SERVERS).unwrap()).await;
        cluster.grant(1, &[1, 2], &[]).await.unwrap();
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        let mut run =
            Self { seed, random: SeededRandom::new(seed), cluster, version: 1, members: vec![1, 2], clients };
        // The registers are there before anything is appended.
        for client in 0..CLIENTS {
            let sent = run.next(client, false);
            run.send(client, &sent).await.unwrap();
        }
        run
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.bits64() % limit
    }

    fn client(&mut self, client: u64) -> &mut Client {
        &mut self.clients[usize::try_from(client).unwrap()]
    }

    /// A new mutation of a client.
    fn next(&mut self, client: u64, append: bool) -> Sent {
        let state = self.client(client);
        state.last += 1;
        let sequence = state.last;
        let first_unacked = state.outstanding.keys().next().copied().unwrap_or(sequence);
        let request = RequestId { client: ClientId::from_raw(client + 1), sequence };
        let sent = Sent { request, first_unacked, append };
        state.outstanding.insert(sequence, sent.clone());
        state.history.push(sent.clone());
        sent
    }

    async fn send(&mut self, client: u64, sent: &Sent) -> Result<()> {
        let mutation = Mutation {
            handle: CHUNK,
            version: ChunkVersion::from_raw(self.version),
            request: sent.request,
            first_unacked: sent.first_unacked,
            durability: pb::Durability::Synced,
        };
        let primary = self.cluster.peer(self.members[0]);
        let offset = u32::try_from(client as usize * REGISTER_BYTES).unwrap();
        let offset = if sent.append { 0 } else { offset };
        let source = Source::Inline(Payload::new(offset, Bytes::from(record(sent.request))));
        let links = &self.cluster.links;
        let reply = if sent.append {
            links.append(primary, &mutation, &source, PATIENCE).await?
        } else {
            links.write(primary, &mutation, offset, &source, PATIENCE).await?
        };
        let (seed, sequence, append) = (self.seed, sent.request.sequence, sent.append);
        let state = self.client(client);
        let known = *state.acked.entry(sequence).or_insert(reply.offset);
        assert_eq!(known, reply.offset, "seed {seed}: {} is at two places", sent.request);
        if !append && state.outstanding.remove(&sequence).is_some() {
            state.register = state.register.max(sequence);
        }
        state.outstanding.remove(&sequence);
        Ok(())
    }

    async fn step(&mut self) {
        let client = self.below(CLIENTS);
        match self.below(20) {
            0..=7 => {
                let sent = self.next(client, true);
                self.send(client, &sent).await.unwrap_or_default();
            }
            8..=10 if self.client(client).outstanding.is_empty() => {
                let sent = self.next(client, false);
                self.send(client, &sent).await.unwrap_or_default();
            }
            // An old frame arrives late, perhaps for the second time.
            11..=14 => {
                let at = self.random.bits64() as usize % self.client(client).history.len().max(1);
                let Some(sent) = self.client(client).history.get(at).cloned() else { return };
                self.send(client, &sent).await.unwrap_or_default();
            }
            15 | 16 => {
                let Some(sent) = self.client(client).outstanding.values().next().cloned() else { return };
                self.send(client, &sent).await.unwrap_or_default();
            }
            17 => {
                // Nobody waits for it any more; whether it happens is open.
                let Some(sequence) = self.client(client).outstanding.keys().next().copied() else { return };
                self.client(client).outstanding.remove(&sequence);
            }
            18 => self.lose_a_member(client).await,
            _ => self.regrant().await,
        }
    }

    /// A member dies in the middle of a mutation, restarts, and the next grant decides.
    async fn lose_a_member(&mut self, client: u64) {
        let at = usize::try_from(self.below(self.members.len() as u64)).unwrap();
        let lost = usize::try_from(self.members[at] - 1).unwrap();
        self.cluster.kill(lost).await;
        let sent = self.next(client, true);
        let (given, seed) = (self.send(client, &sent).await, self.seed);
        assert!(given.is_err(), "seed {seed}: acknowledged without a member");
        let heard = self.cluster.master.0.lock().epochs.len();
        self.cluster.restart(lost).await;
        let master = self.cluster.master.clone();
        super::until("it registers again", || master.0.lock().epochs.len() > heard).await;
        self.regrant().await;
    }

    /// A new version for two servers, of which at least one is current; the other may join.
    async fn regrant(&mut self) {
        let keep = self.members[usize::try_from(self.below(self.members.len() as u64)).unwrap()];
        let others: Vec<u64> = (1..=SERVERS).filter(|server| *server != keep).collect();
        let other = others[usize::try_from(self.below(others.len() as u64)).unwrap()];
        // A joiner has nothing, so it can't be the primary of the base; a current one may be.
        let base: Vec<u64> =
            [keep, other].into_iter().filter(|server| self.members.contains(server)).collect();
        let mut members = vec![keep, other];
        if base.len() == 2 && self.below(2) == 0 {
            members.reverse();
        }
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            self.version += 1;
            match self.cluster.grant(self.version, &members, &base).await {
                Ok(_) => break,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "seed {}: {error}", self.seed),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.members = members;
    }

    /// Everything that is outstanding is brought to its end.
    async fn settle(&mut self) {
        self.regrant().await;
        for client in 0..CLIENTS {
            let outstanding: Vec<Sent> = self.client(client).outstanding.values().cloned().collect();
            for sent in outstanding {
                self.send(client, &sent).await.unwrap();
            }
        }
    }

    async fn judge(&mut self) {
        let seed = self.seed;
        let bytes = self.cluster.read(self.members[0], self.version).await;
        for member in &self.members {
            assert_eq!(self.cluster.read(*member, self.version).await, bytes, "seed {seed}: s{member}");
        }
        let registers = REGISTER_BYTES * usize::try_from(CLIENTS).unwrap();
        let records: Vec<&[u8]> = bytes[registers..].chunks(REGISTER_BYTES).collect();
        let distinct: BTreeSet<&[u8]> = records.iter().copied().collect();
        assert_eq!(distinct.len(), records.len(), "seed {seed}: a record is there twice");
        for (number, state) in (1..).zip(&self.clients) {
            let client = ClientId::from_raw(number);
            for sent in state.history.iter().filter(|sent| sent.append) {
                if let Some(offset) = state.acked.get(&sent.request.sequence) {
                    let at = *offset as usize;
                    assert_eq!(&bytes[at..at + REGISTER_BYTES], record(sent.request), "seed {seed}");
                }
            }
            let at = (usize::try_from(number).unwrap() - 1) * REGISTER_BYTES;
            let register = &bytes[at..at + REGISTER_BYTES];
            let newest = record(RequestId { client, sequence: state.register });
            assert!(register >= &newest[..], "seed {seed}: an old write came back over a newer one");
        }
        // Nothing is outstanding: what is kept of each client is its last mutations, not all of them.
        let request = pb::CollectRequest {
            cluster: super::CLUSTER.to_string(),
            server: self.members[0],
            handle: CHUNK.raw(),
            version: self.version,
        };
        let control = self.cluster.control(self.members[0]).await.collect(request).await;
        let content = control.unwrap().into_inner().content.unwrap();
        assert_eq!(content.first_kept.len(), self.clients.len(), "seed {seed}");
        let all: usize = self.clients.iter().map(|state| state.history.len()).sum();
        assert!(content.requests.len() < all / 2, "seed {seed}: {} of {all} kept", content.requests.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_and_late_frames_change_nothing_across_grants_joiners_and_restarts() {
    for seed in 0..SEEDS {
        let mut run = Run::new(seed).await;
        for _ in 0..STEPS {
            run.step().await;
        }
        run.settle().await;
        run.judge().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_its_client_gave_up_is_refused_by_the_next_primary_too() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1], &[]).await.unwrap();
    let old = cluster.mutation(1);
    cluster.append(1, &old, b"old").await.unwrap();
    let new = cluster.mutation(1);
    let new = Mutation { first_unacked: new.request.sequence, ..new };
    cluster.append(1, &new, b"new").await.unwrap();
    let refused = |result: Result<pb::WriteReplyMeta>| {
        assert!(
            matches!(&result, Err(Error::BadArgument { what }) if what.contains("given up")),
            "{result:?}"
        );
    };
    refused(cluster.append(1, &old, b"old").await);
    // The one that joins has it from the content; the one that restarts from its log.
    cluster.grant(2, &[1, 2], &[1]).await.unwrap();
    cluster.grant(3, &[2, 1], &[2, 1]).await.unwrap();
    refused(cluster.append(2, &super::under(3, &old), b"old").await);
    let version = ChunkVersion::from_raw(3);
    let outcome = cluster.links.outcome(cluster.peer(2), CHUNK, version, old.request, PATIENCE).await;
    assert!(matches!(outcome, Err(Error::BadArgument { .. })), "that it never happened can't be said");
    let heard = cluster.master.0.lock().epochs.len();
    cluster.kill(1).await;
    cluster.restart(1).await;
    let master = cluster.master.clone();
    super::until("it registers again", || master.0.lock().epochs.len() > heard).await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut version = 4;
    while let Err(error) = cluster.grant(version, &[2, 1], &[2, 1]).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        version += 1;
    }
    refused(cluster.append(2, &super::under(version, &old), b"old").await);
    assert_eq!(cluster.append(2, &super::under(version, &new), b"new").await.unwrap().offset, 3);
    assert_eq!(&cluster.read(2, version).await[..], b"oldnew");
}
