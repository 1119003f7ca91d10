//! Reads, validation, exclusion.

use expect_test::expect;

use super::{check, member, primary};
use crate::replica::Generation;

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
            read v1 0 0 -> REFUSED c7: this replica is damaged
            apply v1 n1 0 10 -> REFUSED c7: this replica is damaged
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
