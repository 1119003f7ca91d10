//! Tests of the pure replica: scripts in, outcomes out. Each guard of protocol.md that stands in this module fails one of
//! them when it is removed.
#![allow(clippy::cast_possible_truncation, reason = "the numbers of the scripts are small")]

use std::collections::BTreeSet;
use std::time::Duration;

use expect_test::{Expect, expect};
use gfs_proto::id::{ClientId, Epoch, Term};

use super::*;

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
                    "activate" => replica.activate(version(of(0)), 0).map(|()| "ok".into()),
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
                let recorded = self.recorded.get(&id).copied();
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
            "fail" => Ok(format!("{}", replica.failed(here, server(of(0))))),
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
            "committed" => replica
                .committed(version(of(0)), &self.fence, at(self.now))
                .map(|position| format!("{} bytes", position.length)),
            "outcome" => {
                let id = RequestId { client: ClientId::from_raw(1), sequence: of(0) };
                let recorded = self.recorded.get(&id).copied();
                let (outcome, seal) = replica.outcome(here, id, recorded)?;
                Ok(format!("{:?}, sealed {seal:?}", outcome.map(|outcome| outcome.offset)))
            }
            _ => panic!("no such line: {verb}"),
        }
    }
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

#[test]
fn a_version_never_goes_back_and_a_joiner_drops_what_it_had() {
    let mut bench = Bench::new(2);
    check(
        &mut bench,
        "store v1 s1,s2 fresh
         store v1 s1,s2 fresh
         store v3 s1,s2
         store v2 s1,s2
         store v4 s1,s2 base s1
         collect v4
         store v5 s1,s3
         ",
        &expect![[r#"
            store v1 s1,s2 fresh -> Fresh
            store v1 s1,s2 fresh -> known
            store v3 s1,s2 -> Base
            store v2 s1,s2 -> REFUSED c7: v2 was asked for, here is v3
            store v4 s1,s2 base s1 -> Joiner
            collect v4 -> adopted v0, n0 mutations, 0 bytes
            store v5 s1,s3 -> REFUSED bad argument: c7: no member of the grant"#]],
    );
    // A base member must have something.
    assert!(Bench::new(2).run("store v2 s1,s2").starts_with("REFUSED c7: no such chunk"));
}

#[test]
fn a_grant_makes_a_primary_in_its_four_steps_and_no_other_way() {
    let mut bench = member();
    bench.us = server(2);
    check(
        &mut bench,
        "activate v1
         store v2 s2,s1
         activate v2
         reconcile v2
         reconciled v2
         adopt v2
         adopt v2
         activate v2
         reconciled v2
         reconcile v2
         activate v1
         activate v2
         activate v2
         store v3 s1,s2
         activate v3
         reconcile v3",
        &expect![[r#"
            activate v1 -> REFUSED c7: this server is not the primary at v1
            store v2 s2,s1 -> Base
            activate v2 -> REFUSED c7: this server is not the primary at v2
            reconcile v2 -> collects from 2
            reconciled v2 -> REFUSED c7: this server is not the primary at v2
            adopt v2 -> Go(())
            adopt v2 -> Done
            activate v2 -> REFUSED c7: this server is not the primary at v2
            reconciled v2 -> ok
            reconcile v2 -> done
            activate v1 -> REFUSED c7: v1 was asked for, here is v2
            activate v2 -> ok
            activate v2 -> ok
            store v3 s1,s2 -> Base
            activate v3 -> REFUSED c7: this server is not the primary at v3
            reconcile v3 -> REFUSED c7: this server is not the primary at v3"#]],
    );
}

#[test]
fn a_restarted_primary_is_no_primary_and_a_late_activation_makes_it_none() {
    let mut bench = primary();
    check(
        &mut bench,
        "append r1 10
         restart
         append r2 10
         activate v1
         reconcile v1
         reconciled v1
         store v1 s1,s2
         activate v1",
        &expect![[r#"
            append r1 10 -> n1 at 0
            restart -> ok
            append r2 10 -> REFUSED c7: this server is not the primary at v1
            activate v1 -> REFUSED c7: this server is not the primary at v1
            reconcile v1 -> REFUSED c7: this server is not the primary at v1
            reconciled v1 -> REFUSED c7: this server is not the primary at v1
            store v1 s1,s2 -> known
            activate v1 -> REFUSED c7: this server is not the primary at v1"#]],
    );
}

#[test]
fn a_mutation_is_acknowledged_when_all_members_have_it_in_order_also_a_retry() {
    check(
        &mut primary(),
        "append r1 10
         append r2 20
         ack s1 n1
         append r1 10
         ack s1 n2
         ack s2 n2
         append r2 20
         ack s2 n1
         append r1 10
         append r2 20
         outcome r2
         outcome r3",
        &expect![[r#"
            append r1 10 -> n1 at 0
            append r2 20 -> n2 at 10
            ack s1 n1 -> -
            append r1 10 -> at 0 not yet
            ack s1 n2 -> -
            ack s2 n2 -> -
            append r2 20 -> at 10 not yet
            ack s2 n1 -> committed n2
            append r1 10 -> at 0 acknowledged
            append r2 20 -> at 10 acknowledged
            outcome r2 -> Some(10), sealed None
            outcome r3 -> None, sealed None"#]],
    );
}

#[test]
fn after_a_member_failed_nothing_more_is_acknowledged() {
    check(
        &mut primary(),
        "append r1 10
         ack s1 n1
         ack s2 n1
         append r2 10
         fail s2
         fail s2
         ack s1 n2
         ack s2 n2
         append r2 10
         append r3 10
         append r1 10",
        &expect![[r#"
            append r1 10 -> n1 at 0
            ack s1 n1 -> -
            ack s2 n1 -> committed n1
            append r2 10 -> n2 at 10
            fail s2 -> true
            fail s2 -> false
            ack s1 n2 -> -
            ack s2 n2 -> -
            append r2 10 -> at 10 not yet
            append r3 10 -> REFUSED s2 failed as a replica of c7
            append r1 10 -> at 0 acknowledged"#]],
    );
}

#[test]
fn request_ids_come_with_the_content_to_the_next_primary() {
    let mut bench = member();
    bench.recorded.insert(RequestId { client: ClientId::from_raw(1), sequence: 1 }, 0);
    check(
        &mut bench,
        "apply v1 n1 0 10
         store v2 s2,s1
         adopt v2
         reconciled v2
         activate v2
         append r1 10
         append r2 10",
        &expect![[r#"
            apply v1 n1 0 10 -> Now
            store v2 s2,s1 -> Base
            adopt v2 -> Go(())
            reconciled v2 -> ok
            activate v2 -> ok
            append r1 10 -> at 0 acknowledged
            append r2 10 -> n1 at 10"#]],
    );
}

#[test]
fn a_record_that_does_not_fit_seals_and_the_client_goes_on_when_that_is_committed() {
    check(
        &mut primary(),
        "append r1 65537
         write r2 0 262140
         append r3 10
         append r3 10
         append r4 1
         write r5 100 10
         write r6 262140 10
         append r2 10
         outcome r3",
        &expect![[r#"
            append r1 65537 -> REFUSED record is too large: 65537, the limit is 65536
            write r2 0 262140 -> n1 at 0
            append r3 10 -> seals with n2
            append r3 10 -> next chunk once n2 is committed
            append r4 1 -> next chunk once n2 is committed
            write r5 100 10 -> n3 at 100
            write r6 262140 10 -> REFUSED bad argument: the write ends behind the end of the chunk
            append r2 10 -> at 0 not yet
            outcome r3 -> None, sealed Some(n2)"#]],
    );
}

#[test]
fn a_grant_without_a_writer_takes_no_mutations() {
    let mut bench = member();
    check(
        &mut bench,
        "store v2 s2,s1 reader
         adopt v2
         reconciled v2
         activate v2
         append r1 1
         committed v2",
        &expect![[r#"
            store v2 s2,s1 reader -> Base
            adopt v2 -> Go(())
            reconciled v2 -> ok
            activate v2 -> ok
            append r1 1 -> REFUSED c7: this server is not the primary at v2
            committed v2 -> 0 bytes"#]],
    );
}

#[test]
fn a_member_applies_its_own_version_only_in_order_without_gaps() {
    check(
        &mut member(),
        "apply v1 n2 10 10
         apply v1 n1 0 10
         apply v1 n1 0 10
         apply v1 n2 10 10
         apply v1 n9999 0 10
         apply v2 n3 0 10
         store v2 s1,s2
         apply v1 n3 20 10
         apply v2 n1 20 10
         adopt v2
         apply v1 n3 20 10
         apply v2 n1 20 10
         adopt v2
         collect v2",
        &expect![[r#"
            apply v1 n2 10 10 -> After(n1)
            apply v1 n1 0 10 -> Now
            apply v1 n1 0 10 -> Repeated
            apply v1 n2 10 10 -> Now
            apply v1 n9999 0 10 -> REFUSED the queue for c7 is full, try again later
            apply v2 n3 0 10 -> REFUSED c7: v2 was asked for, here is v1
            store v2 s1,s2 -> Base
            apply v1 n3 20 10 -> REFUSED c7: v1 was asked for, here is v2
            apply v2 n1 20 10 -> REFUSED c7: v2 was asked for, here is v2
            adopt v2 -> Go(())
            apply v1 n3 20 10 -> REFUSED c7: v1 was asked for, here is v2
            apply v2 n1 20 10 -> Now
            adopt v2 -> Done
            collect v2 -> adopted v2, n1 mutations, 30 bytes"#]],
    );
}

#[test]
fn a_member_shows_what_is_in_flight_only_when_the_primary_says_that_it_is_committed() {
    check(
        &mut member(),
        "read v1 0 10
         apply v1 n1 0 10
         read v1 0 10
         learn v1 n1
         read v1 0 10
         apply v1 n2 10 10
         read v1 0 10
         read v1 0 11
         read v1 0 11 asked
         apply v1 n3 5 2
         read v1 0 5
         read v1 0 10
         read v1 0 10 asked
         apply v1 n4 20 10 n3
         read v1 0 10
         read v1 0 20",
        &expect![[r#"
            read v1 0 10 -> up to 0
            apply v1 n1 0 10 -> Now
            read v1 0 10 -> asks s1
            learn v1 n1 -> ok
            read v1 0 10 -> up to 10
            apply v1 n2 10 10 -> Now
            read v1 0 10 -> up to 10
            read v1 0 11 -> asks s1
            read v1 0 11 asked -> up to 10
            apply v1 n3 5 2 -> Now
            read v1 0 5 -> up to 10
            read v1 0 10 -> asks s1
            read v1 0 10 asked -> waits for n3
            apply v1 n4 20 10 n3 -> Now
            read v1 0 10 -> up to 20
            read v1 0 20 -> up to 20"#]],
    );
}

#[test]
fn a_primary_shows_what_all_have_and_only_while_it_is_validated() {
    check(
        &mut primary(),
        "append r1 10
         read v1 0 10
         committed v1
         ack s1 n1
         ack s2 n1
         read v1 0 10
         write r2 5 1
         read v1 0 10
         read v1 0 5
         wait 2999
         read v1 0 5
         committed v1
         wait 1
         read v1 0 5
         committed v1",
        &expect![[r#"
            append r1 10 -> n1 at 0
            read v1 0 10 -> up to 0
            committed v1 -> 0 bytes
            ack s1 n1 -> -
            ack s2 n1 -> committed n1
            read v1 0 10 -> up to 10
            write r2 5 1 -> n2 at 5
            read v1 0 10 -> waits for n2
            read v1 0 5 -> up to 10
            wait 2999 -> @4000
            read v1 0 5 -> up to 10
            committed v1 -> 10 bytes
            wait 1 -> @4001
            read v1 0 5 -> REFUSED c7: this replica is not validated for reading
            committed v1 -> REFUSED c7: this replica is not validated for reading"#]],
    );
}

#[test]
fn agreed_content_is_not_shown_before_the_confirm_unless_it_was_known_to_be_committed() {
    let mut bench = member();
    check(
        &mut bench,
        "apply v1 n1 0 10 n0
         store v2 s1,s2
         read v1 0 10
         adopt v2
         read v1 0 10
         read v2 0 10
         learn v2 n0
         read v2 0 10
         store v3 s1,s2
         adopt v3
         read v2 0 10
         store v4 s2,s1
         adopt v4 5
         read v2 0 10
         reconciled v4
         read v2 0 10
         activate v4
         read v2 0 10",
        &expect![[r#"
            apply v1 n1 0 10 n0 -> Now
            store v2 s1,s2 -> Base
            read v1 0 10 -> asks s1
            adopt v2 -> Go(())
            read v1 0 10 -> asks s1
            read v2 0 10 -> asks s1
            learn v2 n0 -> ok
            read v2 0 10 -> up to 10
            store v3 s1,s2 -> Base
            adopt v3 -> Go(())
            read v2 0 10 -> up to 10
            store v4 s2,s1 -> Base
            adopt v4 5 -> Go(())
            read v2 0 10 -> REFUSED c7: this replica is not validated for reading
            reconciled v4 -> ok
            read v2 0 10 -> REFUSED c7: this replica is not validated for reading
            activate v4 -> ok
            read v2 0 10 -> up to 15"#]],
    );
}

#[test]
fn what_lies_beyond_the_commit_mark_after_a_restart_is_not_known_to_be_committed() {
    let mut bench = member();
    check(
        &mut bench,
        "apply v1 n1 0 10
         learn v1 n1
         apply v1 n2 10 10
         restart
         read v1 0 10
         learn v1 n1
         read v1 0 10
         learn v1 n2
         read v1 0 20",
        &expect![[r#"
            apply v1 n1 0 10 -> Now
            learn v1 n1 -> ok
            apply v1 n2 10 10 -> Now
            restart -> ok
            read v1 0 10 -> REFUSED c7: this replica is not validated for reading
            learn v1 n1 -> ok
            read v1 0 10 -> REFUSED c7: this replica is not validated for reading
            learn v1 n2 -> ok
            read v1 0 20 -> up to 20"#]],
    );
    bench.clean_restart = true;
    check(
        &mut bench,
        "restart
         read v1 0 20",
        &expect![[r#"
            restart -> ok
            read v1 0 20 -> up to 20"#]],
    );
}

#[test]
fn a_replica_serves_for_three_seconds_from_the_sending_of_an_answered_heartbeat() {
    check(
        &mut member(),
        "wait 1999
         read v1 0 0
         answer @2000 follower
         answer @1500
         wait 1499
         read v1 0 0
         wait 1
         read v1 0 0
         answer @2000
         lapse
         lapse
         answer @4000
         answer @4400 epoch2
         read v1 0 0
         answer @1400 epoch2
         obey t5
         answer @4450 epoch2 term4
         answer @4460 epoch2 term6
         obey t5",
        &expect![[r#"
            wait 1999 -> @3000
            read v1 0 0 -> up to 0
            answer @2000 follower -> void
            answer @1500 -> taken
            wait 1499 -> @4499
            read v1 0 0 -> up to 0
            wait 1 -> @4500
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            answer @2000 -> void
            lapse -> true
            lapse -> false
            answer @4000 -> void
            answer @4400 epoch2 -> taken
            read v1 0 0 -> up to 0
            answer @1400 epoch2 -> void
            obey t5 -> true
            answer @4450 epoch2 term4 -> void
            answer @4460 epoch2 term6 -> taken
            obey t5 -> false"#]],
    );
}

#[test]
fn an_answer_that_is_older_than_a_newer_one_or_denies_or_does_not_cover_validates_nothing() {
    let mut bench = member();
    check(
        &mut bench,
        "wait 500
         answer @1400 denied
         read v1 0 0
         answer @1300
         read v1 0 0
         answer @1450
         read v1 0 0",
        &expect![[r#"
            wait 500 -> @1501
            answer @1400 denied -> taken
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            answer @1300 -> void
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            answer @1450 -> taken
            read v1 0 0 -> up to 0"#]],
    );
    let mut bench = member();
    if let Some(replica) = &mut bench.replica {
        replica.standing.born = Generation(5);
    }
    check(
        &mut bench,
        "answer @1001 reported4
         wait 10
         answer @1010 reported4
         read v1 0 0
         wait 1
         answer @1011 reported5
         read v1 0 0",
        &expect![[r#"
            answer @1001 reported4 -> void
            wait 10 -> @1011
            answer @1010 reported4 -> taken
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            wait 1 -> @1012
            answer @1011 reported5 -> taken
            read v1 0 0 -> up to 0"#]],
    );
}

#[test]
fn an_excluded_replica_serves_nothing_until_a_later_grant_takes_it_in() {
    let mut bench = primary();
    check(
        &mut bench,
        "read v1 0 0
         wait 100
         exclude v2
         read v1 0 0
         append r1 1
         answer @1050
         read v1 0 0
         wait 100
         answer @1150
         read v1 0 0
         store v3 s1,s2
         read v1 0 0
         exclude v3",
        &expect![[r#"
            read v1 0 0 -> up to 0
            wait 100 -> @1101
            exclude v2 -> ok
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            append r1 1 -> REFUSED c7: this server is not the primary at v1
            answer @1050 -> taken
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            wait 100 -> @1201
            answer @1150 -> taken
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            store v3 s1,s2 -> Base
            read v1 0 0 -> up to 0
            exclude v3 -> REFUSED c7: v3 was asked for, here is v3"#]],
    );
}

#[test]
fn an_exclusion_voids_answers_that_were_on_their_way() {
    // Also if a later grant has taken the server in since: the answer was given before that.
    let mut bench = member();
    check(
        &mut bench,
        "wait 100
         exclude v2
         store v3 s1,s2
         answer @1050
         read v1 0 0
         wait 1
         answer @1102
         read v1 0 0",
        &expect![[r#"
            wait 100 -> @1101
            exclude v2 -> ok
            store v3 s1,s2 -> Base
            answer @1050 -> taken
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            wait 1 -> @1102
            answer @1102 -> taken
            read v1 0 0 -> up to 0"#]],
    );
}

#[test]
fn a_partial_or_corrupt_replica_serves_nothing_and_does_not_collect() {
    let mut bench = member();
    check(
        &mut bench,
        "read v1 0 0
         corrupt
         read v1 0 0
         apply v1 n1 0 10
         store v2 s2,s1 base s1
         wait 10
         answer @1011
         read v2 0 0
         reconcile v2
         adopt v2
         learn v2 n0
         read v2 0 0",
        &expect![[r#"
            read v1 0 0 -> up to 0
            corrupt -> ok
            read v1 0 0 -> REFUSED c7: this replica is not validated for reading
            apply v1 n1 0 10 -> REFUSED c7: this replica is not validated for reading
            store v2 s2,s1 base s1 -> Joiner
            wait 10 -> @1011
            answer @1011 -> taken
            read v2 0 0 -> REFUSED c7: this replica is not validated for reading
            reconcile v2 -> REFUSED c7: this server is not the primary at v2
            adopt v2 -> Go(())
            learn v2 n0 -> ok
            read v2 0 0 -> up to 0"#]],
    );
}

#[test]
fn readers_with_an_older_location_may_stay_unless_the_chunk_was_revoked_in_between() {
    check(
        &mut member(),
        "read v0 0 0
         read v2 0 0
         store v2 s1,s2
         read v1 0 0
         read v2 0 0
         store v3 s1,s2 reader
         read v2 0 0
         read v3 0 0",
        &expect![[r#"
            read v0 0 0 -> REFUSED c7: v0 was asked for, here is v1
            read v2 0 0 -> REFUSED c7: v2 was asked for, here is v1
            store v2 s1,s2 -> Base
            read v1 0 0 -> up to 0
            read v2 0 0 -> up to 0
            store v3 s1,s2 reader -> Base
            read v2 0 0 -> REFUSED c7: v2 was asked for, here is v3
            read v3 0 0 -> up to 0"#]],
    );
}

#[test]
fn all_adopt_the_longest_content_of_the_whole_base_members() {
    let grant = Grant {
        version: version(5),
        members: Vec::new(),
        base: vec![server(1), server(2), server(3)],
        primary: server(2),
        writer: true,
        fresh: false,
        chunk_bytes: ChunkBytes::DEFAULT,
    };
    let candidate = |raw, adopted, mutations, partial| {
        let end = Position { serial: serial(mutations), length: 10, sealed: false };
        let held = Held { version: version(5), adopted: version(adopted), end, partial, corrupt: false };
        Candidate { server: server(raw), held }
    };
    let chosen = |candidates: &[Candidate]| longest(&grant, candidates).map(ServerId::raw);
    // By mutations, not by bytes: overwrites count, too.
    assert_eq!(chosen(&[candidate(1, 4, 3, false), candidate(2, 4, 2, false)]), Some(1));
    assert_eq!(chosen(&[candidate(1, 3, 9, false), candidate(2, 4, 0, false)]), Some(2));
    assert_eq!(chosen(&[candidate(1, 4, 2, false), candidate(2, 4, 2, false)]), Some(2));
    // Partial ones and joiners do not count, however long.
    assert_eq!(chosen(&[candidate(1, 4, 9, true), candidate(2, 4, 2, false)]), Some(2));
    assert_eq!(chosen(&[candidate(9, 4, 9, false), candidate(2, 4, 2, false)]), Some(2));
    assert_eq!(chosen(&[candidate(1, 4, 9, true)]), None);
}
