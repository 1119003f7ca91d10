//! Fuzz targets of this crate (`fuzz/src/lib.rs` says how they are run).

use std::time::Duration;

use bytes::Bytes;
use gfs_fuzz::{Dice, Target};
use gfs_proto::frame::{Frame, Head, Kind as FrameKind};
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, Epoch, RequestId, Serial, ServerId, Term};
use gfs_proto::link::Peer;
use gfs_proto::pb;
use gfs_proto::size::{CHUNK_BYTES_MIN, ChunkBytes};
use gfs_proto::time::Moment;
use prost::Message;

use crate::replica::{
    Answer, Decision, Fence, Generation, Grant, Held, Order, Position, Recorded, Replica, Request, Standing,
    Step, Store, Turn, Wish,
};
use crate::store::Content;
use crate::store::fuzz as store;
use crate::{data, grant};

/// Bytes of the disks that a damaged one is made of, and of what recovery makes of it.
const DISK_BYTES_HELD: usize = 48 << 20;

/// What a replay of the log reads ahead, and its segments.
const READ_AHEAD_BYTES_HELD: usize = 3 << 20;

/// All targets of this crate.
pub const TARGETS: &[Target] = &[
    Target::new("log_record", store::log_record),
    Target::new("segment", store::segment).holding(READ_AHEAD_BYTES_HELD),
    Target::new("disk", store::disk).holding(DISK_BYTES_HELD),
    Target::new("requests", requests),
    Target::new("replica", replica),
];

/// The server that is meant.
const US: ServerId = ServerId::from_raw(1);
const CHUNK: ChunkHandle = ChunkHandle::from_raw(7);

/// What comes by gRPC and in the metadata of frames: refused, or in our own words without loss.
pub fn requests(data: &[u8]) {
    let mut dice = Dice::new(data);
    let kinds = [
        FrameKind::Push,
        FrameKind::Write,
        FrameKind::Append,
        FrameKind::Apply,
        FrameKind::Fetch,
        FrameKind::Read,
    ];
    let mut head = Head::new(kinds[dice.index(kinds.len())], 1);
    (head.offset, head.length, head.deadline_ms) =
        (dice.small_number(), dice.small_number(), dice.small_number());
    let bytes = Bytes::copy_from_slice(dice.rest());
    data::fuzz_parse(&Frame { head, meta: bytes.clone(), crcs: Vec::new() });
    if let Ok(request) = pb::StoreVersionRequest::decode(bytes.clone())
        && let Ok(grant) = grant::grant(&request)
    {
        let members: Vec<u64> = request.members.iter().map(|member| member.server).collect();
        assert!(grant.members.iter().map(|member| member.server.raw()).eq(members));
        assert_eq!((grant.version.raw(), grant.primary.raw()), (request.version, request.primary));
        if let Ok(how) = Replica::store(US, CHUNK, None, &grant) {
            assert!(how != Store::Known && grant.primary().is_some());
        }
    }
    let contents = [
        pb::AdoptRequest::decode(bytes.clone()).ok().and_then(|request| request.content),
        pb::CollectReply::decode(bytes).ok().and_then(|reply| reply.content),
    ];
    for message in contents.into_iter().flatten() {
        let content = Content::from(message);
        assert_eq!(Content::from(pb::Content::from(&content)), content);
    }
}

/// Orders of leaders, primaries and clients that say anything: one replica stays in one piece.
pub fn replica(data: &[u8]) {
    let mut dice = Dice::new(data);
    let mut bench = Bench {
        replica: Replica::restored(US, CHUNK, held(&mut dice), dice.coin(), Standing::default()),
        fence: Fence::new(Epoch::from_raw(1)),
        now: 0,
    };
    while !dice.is_empty() {
        bench.now += dice.below(256);
        match dice.below(4) {
            0 => bench.leader(&mut dice),
            1 => bench.client(&mut dice),
            2 => bench.member(&mut dice),
            _ => bench.reader(&mut dice),
        }
        bench.check();
    }
}

struct Bench {
    replica: Replica,
    fence: Fence,
    now: u64,
}

/// Mostly a version near the one held.
fn version(dice: &mut Dice<'_>, near: ChunkVersion) -> ChunkVersion {
    match dice.below(8) {
        0 => ChunkVersion::from_raw(dice.number()),
        1 => ChunkVersion::from_raw(near.raw().wrapping_add(1)),
        2 => ChunkVersion::from_raw(near.raw().wrapping_sub(1)),
        _ => near,
    }
}
fn server(dice: &mut Dice<'_>) -> ServerId {
    ServerId::from_raw(dice.below(4))
}
fn held(dice: &mut Dice<'_>) -> Held {
    let version = ChunkVersion::from_raw(1 + dice.below(4));
    let end = Position {
        serial: Serial::from_raw(dice.below(8)),
        length: dice.small_number() % (CHUNK_BYTES_MIN + 1),
        sealed: dice.coin(),
    };
    Held { version, adopted: version, end, partial: dice.below(8) == 0, corrupt: dice.below(8) == 0 }
}

impl Bench {
    fn moment(&self) -> Moment {
        Moment::from_start(Duration::from_millis(self.now))
    }

    fn leader(&mut self, dice: &mut Dice<'_>) {
        let here = self.replica.held();
        let asked = version(dice, here.version);
        match dice.below(7) {
            0 => self.store(dice, asked),
            1 => drop(self.replica.reconcile(asked)),
            2 => {
                if let Ok(Step::Go(())) = self.replica.adopt(asked) {
                    let end = Position { serial: Serial::default(), ..held(dice).end };
                    self.replica.adopted(Held { adopted: asked, end, partial: false, ..here }, dice.coin());
                }
            }
            3 => drop(self.replica.reconciled(asked)),
            4 => drop(self.replica.activate(asked)),
            5 => drop(self.replica.exclude(asked, self.moment())),
            _ => {
                let answer = Answer {
                    leader: dice.below(4) > 0,
                    term: Term::from_raw(dice.number()),
                    epoch: Epoch::from_raw(dice.below(3)),
                    sent: Moment::from_start(Duration::from_millis(dice.number())),
                    reported: Generation(dice.number()),
                    denied: (0..dice.below(3)).map(|_| ChunkHandle::from_raw(dice.below(9))).collect(),
                };
                self.fence.answered(answer, self.moment());
            }
        }
    }

    fn store(&mut self, dice: &mut Dice<'_>, asked: ChunkVersion) {
        let before = self.replica.held();
        let member = |server| Peer { server, address: String::new() };
        let members = (0..dice.below(4)).map(|_| member(server(dice))).collect();
        let grant = Grant {
            version: asked,
            members,
            base: (0..dice.below(4)).map(|_| server(dice)).collect(),
            primary: server(dice),
            writer: dice.coin(),
            fresh: dice.coin(),
            accepted: dice.coin(),
            chunk_bytes: ChunkBytes::try_from(CHUNK_BYTES_MIN).unwrap_or(ChunkBytes::DEFAULT),
        };
        let Ok(how) = Replica::store(US, CHUNK, Some(before.version), &grant) else { return };
        assert!(asked >= before.version, "a version goes back");
        let empty = Held { version: asked, ..Held::default() };
        let held = match how {
            Store::Known => return,
            Store::Fresh => Held { adopted: asked, ..empty },
            Store::Base => Held { version: asked, ..before },
            Store::Joiner => Held { partial: true, ..empty },
        };
        self.replica.stored(grant, how, held, self.moment());
    }

    fn client(&mut self, dice: &mut Dice<'_>) {
        let asked = version(dice, self.replica.held().version);
        let wish = match dice.below(4) {
            0 => Wish::Write(dice.small_number()),
            1 => Wish::Sync,
            _ => Wish::Append,
        };
        let id = RequestId { client: ClientId::from_raw(dice.below(3)), sequence: dice.below(16) };
        let recorded = Recorded {
            at: (dice.below(8) == 0).then(|| dice.small_number()),
            given_up: dice.below(8) == 0,
            kept: dice.index(200_000),
        };
        let request = Request { id, wish, length: 1 + dice.small_number() % 100_000 };
        match self.replica.decide(asked, request, recorded) {
            Ok(Decision::Ordered(order) | Decision::Seal(order)) => {
                assert!(
                    u64::from(order.offset) + u64::from(order.length) <= u64::from(CHUNK_BYTES_MIN),
                    "an order behind the end of the chunk"
                );
                self.replica.ordered(&order);
            }
            Ok(Decision::Known(_) | Decision::Sealed(_)) | Err(_) => {}
        }
        let _answered = self.replica.outcome(asked, id, recorded);
    }

    fn member(&mut self, dice: &mut Dice<'_>) {
        let here = self.replica.held();
        let asked = version(dice, here.version);
        let serial = match dice.below(4) {
            0 => Serial::from_raw(dice.number()),
            _ => Serial::from_raw(here.end.serial.raw() + dice.below(3)),
        };
        match dice.below(4) {
            0 => drop(self.replica.acknowledged(asked, serial, server(dice))),
            1 => {
                let failed = crate::replica::Failed { server: server(dice), silent: dice.coin() };
                self.replica.failed(asked, failed);
                drop(self.replica.judge(asked));
            }
            2 => self.replica.learn(asked, serial),
            _ => {
                if let Ok(Turn::Now) = self.replica.turn(asked, serial) {
                    // What does not fit is refused by the store.
                    let offset = dice.small_number() % CHUNK_BYTES_MIN;
                    let length = dice.small_number() % (CHUNK_BYTES_MIN - offset);
                    let kind = crate::replica::Kind::Write;
                    self.replica.applied(&Order { serial, kind, offset, length, request: None });
                }
            }
        }
    }

    fn reader(&mut self, dice: &mut Dice<'_>) {
        let asked = version(dice, self.replica.held().version);
        let query = crate::replica::Query {
            version: asked,
            offset: dice.small_number(),
            length: dice.small_number(),
            asked: dice.coin(),
        };
        if self.replica.read(query, &self.fence, self.moment()).is_ok() {
            assert!(!self.replica.held().partial && !self.replica.held().corrupt);
        }
        let _told = self.replica.committed(asked, &self.fence, self.moment());
    }

    /// What is true after every step.
    fn check(&self) {
        let end = self.replica.held().end;
        if let Some(committed) = self.replica.progress().committed() {
            assert!(committed.serial <= end.serial && committed.length <= end.length);
        }
        if let Some(primary) = self.replica.primary() {
            assert!(primary.committed() <= end.serial, "more is committed than was ordered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_holds_for_its_corpus_and_random_inputs() {
        TARGETS.iter().for_each(gfs_fuzz::check);
    }
}
