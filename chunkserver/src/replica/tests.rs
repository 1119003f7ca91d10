//! Tests of the pure replica: scripts in, outcomes out. Each guard of protocol.md that stands in this module fails one of
//! them when it is removed.
#![allow(clippy::cast_possible_truncation, reason = "the numbers of the scripts are small")]

mod decision;
mod order;
mod reading;

use std::collections::BTreeSet;
use std::time::Duration;

use expect_test::Expect;
use gfs_proto::id::{ClientId, Epoch, Term};
use gfs_proto::size::ChunkBytes;

use super::*;

/// The request that its client has given up.
const GIVEN_UP: u64 = 77;
const CHUNK: ChunkHandle = ChunkHandle::from_raw(7);

fn server(raw: u64) -> ServerId {
    ServerId::from_raw(raw)
}
fn version(raw: u64) -> ChunkVersion {
    ChunkVersion::from_raw(raw)
}
fn serial(raw: u64) -> Serial {
    Serial::from_raw(raw)
}
fn at(ms: u64) -> Moment {
    Moment::from_start(Duration::from_millis(ms))
}

/// One server with one replica, or none, and a fence; moved by lines of a script.
struct Bench {
    us: ServerId,
    replica: Option<Replica>,
    fence: Fence,
    now: u64,
    /// What the store would have: the ids of what was applied.
    recorded: std::collections::BTreeMap<RequestId, u32>,
    clean_restart: bool,
}

impl Bench {
    fn new(us: u64) -> Self {
        Self {
            us: server(us),
            replica: None,
            fence: Fence::new(Epoch::from_raw(1)),
            now: 1000,
            recorded: std::collections::BTreeMap::new(),
            clean_restart: false,
        }
    }

    /// Runs one line and says what came of it.
    fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number =
            |word: &str| word.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap();
        match self.step(words[0], &words[1..], &number) {
            Ok(text) => text,
            Err(error) => format!("REFUSED {error}"),
        }
    }

    fn step(&mut self, verb: &str, words: &[&str], number: &dyn Fn(&str) -> u64) -> Result<String, Error> {
        let of = |i: usize| number(words[i]);
        match verb {
            "wait" => {
                self.now += of(0);
                Ok(format!("@{}", self.now))
            }
            // answer @sent [term2] [epoch2] [reported5] [denied] [follower]
            "answer" => Ok(self.answer(words, number)),
            "lapse" => Ok(format!("{}", self.fence.lapse(at(self.now), Epoch::from_raw(0)))),
            "obey" => Ok(format!("{}", self.fence.obey(Term::from_raw(of(0))))),
            // store v2 s1,s2,s3 [base s1,s2] [fresh] [reader]
            "store" => self.store(words, number),
            _ => {
                let replica = self.replica.as_mut().unwrap();
                match verb {
                    "adopt" => {
                        let step = replica.adopt(version(of(0)))?;
                        if step == Step::Go(()) {
                            let end = Position { serial: serial(0), ..replica.held().end };
                            let grown = words.get(1).map_or(0, |more| number(more) as u32);
                            let end = Position { length: end.length + grown, ..end };
                            let version = replica.held().version;
                            let held = Held { version, adopted: version, end, ..Held::default() };
                            replica.adopted(held, grown == 0);
                        }
                        Ok(format!("{step:?}"))
                    }
                    "reconcile" => replica.reconcile(version(of(0))).map(|step| match step {
                        Step::Go(grant) => format!("collects from {}", grant.members.len()),
                        Step::Done => "done".into(),
                    }),
                    "reconciled" => replica.reconciled(version(of(0))).map(|()| "ok".into()),
                    "activate" => replica.activate(version(of(0))).map(|()| "ok".into()),
                    "exclude" => replica.exclude(version(of(0)), at(self.now)).map(|()| "ok".into()),
                    "corrupt" => {
                        replica.mark_corrupt();
                        Ok("ok".into())
                    }
                    "collect" => replica.collect(version(of(0))).map(|held| {
                        format!(
                            "adopted {}, {} mutations, {} bytes",
                            held.adopted, held.end.serial, held.end.length
                        )
                    }),
                    "restart" => {
                        let held = replica.held();
                        let standing = Standing::default();
                        self.replica =
                            Some(Replica::restored(self.us, CHUNK, held, self.clean_restart, standing));
                        Ok("ok".into())
                    }
                    _ => self.mutation(verb, words, number),
                }
            }
        }
    }

    fn answer(&mut self, words: &[&str], number: &dyn Fn(&str) -> u64) -> String {
        let find = |prefix: &str, default| {
            words.iter().find(|word| word.starts_with(prefix)).map_or(default, |word| number(word))
        };
        let denied = words.contains(&"denied").then_some(CHUNK);
        let answer = Answer {
            leader: !words.contains(&"follower"),
            term: Term::from_raw(find("term", 1)),
            epoch: Epoch::from_raw(find("epoch", 1)),
            sent: at(find("@", self.now)),
            reported: Generation(find("reported", 9)),
            denied: denied.into_iter().collect::<BTreeSet<_>>(),
        };
        if self.fence.answered(answer, at(self.now)) { "taken".into() } else { "void".into() }
    }

    fn store(&mut self, words: &[&str], number: &dyn Fn(&str) -> u64) -> Result<String, Error> {
        let ids = |word: &str| word.split(',').map(|id| server(number(id))).collect::<Vec<_>>();
        let members = ids(words[1]);
        let base = words.iter().position(|word| *word == "base").map(|i| ids(words[i + 1]));
        let grant = Grant {
            version: version(number(words[0])),
            members: members
                .iter()
                .map(|id| Peer { server: *id, address: format!("host:{}", id.raw()) })
                .collect(),
            base: base.unwrap_or_else(|| members.clone()),
            primary: members[0],
            writer: !words.contains(&"reader"),
            fresh: words.contains(&"fresh"),
            accepted: words.contains(&"accepted"),
            chunk_bytes: ChunkBytes::parse(4 * 65_536).unwrap(),
        };
        let here = self.replica.as_ref().map(|replica| replica.held().version);
        let how = Replica::store(self.us, CHUNK, here, &grant)?;
        if how == Store::Known {
            return Ok("known".into());
        }
        let before = self.replica.as_ref().map(Replica::held).unwrap_or_default();
        let held = match how {
            Store::Fresh => Held { version: grant.version, adopted: grant.version, ..Held::default() },
            Store::Joiner => Held { version: grant.version, partial: true, ..Held::default() },
            Store::Base | Store::Known => Held { version: grant.version, ..before },
        };
        let replica = self
            .replica
            .get_or_insert_with(|| Replica::restored(self.us, CHUNK, held, false, Standing::default()));
        replica.stored(grant, how, held, at(self.now));
        Ok(format!("{how:?}"))
    }

    fn mutation(
        &mut self,
        verb: &str,
        words: &[&str],
        number: &dyn Fn(&str) -> u64,
    ) -> Result<String, Error> {
        let of = |i: usize| number(words[i]);
        let replica = self.replica.as_mut().unwrap();
        let here = replica.held().version;
        match verb {
            // append/write/sync rID [offset] LENGTH
            "append" | "write" | "sync" => {
                let id = RequestId { client: ClientId::from_raw(1), sequence: of(0) };
                let (wish, length) = match verb {
                    "append" => (Wish::Append, of(1) as u32),
                    "write" => (Wish::Write(of(1) as u32), of(2) as u32),
                    _ => (Wish::Sync, 0),
                };
                let recorded = recorded(&self.recorded, id);
                let decision = replica.decide(here, Request { id, wish, length }, recorded)?;
                if let Decision::Ordered(order) | Decision::Seal(order) = &decision {
                    replica.ordered(order);
                    self.recorded.extend(order.request.map(|id| (id, order.offset)));
                }
                Ok(match decision {
                    Decision::Ordered(order) => format!("{} at {}", order.serial, order.offset),
                    Decision::Known(outcome) => {
                        let committed = replica.primary().unwrap().committed();
                        let done = outcome.serial <= committed;
                        format!("at {} {}", outcome.offset, if done { "acknowledged" } else { "not yet" })
                    }
                    Decision::Seal(order) => format!("seals with {}", order.serial),
                    Decision::Sealed(seal) => format!("next chunk once {seal} is committed"),
                })
            }
            "ack" => Ok(match replica.acknowledged(here, serial(of(1)), server(of(0))) {
                Some(committed) => format!("committed {committed}"),
                None => "-".into(),
            }),
            "fail" | "judge" => Ok(failing(replica, verb, words, number)),
            // apply v2 n1 OFFSET LENGTH [committed]
            "apply" => {
                let turn = replica.turn(version(of(0)), serial(of(1)))?;
                replica.learn(version(of(0)), serial(words.get(4).map_or(0, |word| number(word))));
                if turn == Turn::Now {
                    let (offset, length) = (of(2) as u32, of(3) as u32);
                    let order =
                        Order { serial: serial(of(1)), kind: Kind::Write, offset, length, request: None };
                    replica.applied(&order);
                }
                Ok(format!("{turn:?}"))
            }
            // read v1 OFFSET LENGTH [asked]
            "read" => {
                let asked = words.get(3).is_some();
                let (offset, length) = (of(1) as u32, of(2) as u32);
                let query = Query { version: version(of(0)), offset, length, asked };
                replica.read(query, &self.fence, at(self.now)).map(|readable| match readable {
                    Readable::Yes(position) => format!("up to {}", position.length),
                    Readable::Ask(primary) => format!("asks {}", primary.server),
                    Readable::Wait(serial) => format!("waits for {serial}"),
                })
            }
            "learn" => {
                replica.learn(version(of(0)), serial(of(1)));
                Ok("ok".into())
            }
            "committed" => {
                let position = replica.committed(version(of(0)), &self.fence, at(self.now));
                position.map(|position| format!("{} bytes", position.length))
            }
            "outcome" => {
                let id = RequestId { client: ClientId::from_raw(1), sequence: of(0) };
                let recorded = recorded(&self.recorded, id);
                let (outcome, seal) = replica.outcome(here, id, recorded)?;
                Ok(format!("{:?}, sealed {seal:?}", outcome.map(|outcome| outcome.offset)))
            }
            _ => panic!("no such line: {verb}"),
        }
    }
}

/// fail sID [silent], judge: what comes of it, if that can be said now.
fn failing(replica: &mut Replica, verb: &str, words: &[&str], number: &dyn Fn(&str) -> u64) -> String {
    let here = replica.held().version;
    if verb == "fail" {
        let silent = words.get(1).is_some();
        replica.failed(here, Failed { server: server(number(words[0])), silent });
    }
    replica.judge(here).map_or("-".into(), |verdict| verdict.to_string())
}

/// What the store would say of a request.
fn recorded(all: &std::collections::BTreeMap<RequestId, u32>, id: RequestId) -> Recorded {
    Recorded { at: all.get(&id).copied(), given_up: id.sequence == GIVEN_UP, kept: all.len() }
}

/// Runs a script at one server and compares what came of each line.
fn check(bench: &mut Bench, script: &str, expected: &Expect) {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let outcomes: Vec<_> = lines.map(|line| format!("{line} -> {}", bench.run(line))).collect();
    expected.assert_eq(&outcomes.join("\n"));
}

/// Server 1, active primary at v1 of a fresh chunk with members 1 and 2, validated from 1000 on.
fn primary() -> Bench {
    let mut bench = Bench::new(1);
    for line in ["store v1 s1,s2 fresh", "activate v1", "wait 1", "answer @1001"] {
        bench.run(line);
    }
    bench
}

/// Server 2, a member of the same chunk.
fn member() -> Bench {
    let mut bench = Bench::new(2);
    for line in ["store v1 s1,s2 fresh", "wait 1", "answer @1001"] {
        bench.run(line);
    }
    bench
}
