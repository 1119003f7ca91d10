//! Grants and mutations.

use expect_test::expect;
use gfs_proto::id::{ClientId, RequestId, ServerId};
use gfs_proto::size::ChunkBytes;

use super::{Bench, check, member, primary, serial, server, version};
use crate::replica::{Candidate, Grant, Held, Position, longest};

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
            fail s2 -> s2 failed as a replica of c7
            fail s2 -> -
            ack s1 n2 -> -
            ack s2 n2 -> -
            append r2 10 -> at 10 not yet
            append r3 10 -> REFUSED s2 failed as a replica of c7
            append r1 10 -> at 0 acknowledged"#]],
    );
}

/// Server 1, active primary at v1 with members 2 and 3, and two mutations that none has acknowledged.
fn primary_of_three() -> Bench {
    let mut bench = Bench::new(1);
    for line in ["store v1 s1,s2,s3 fresh", "activate v1", "append r1 10", "append r2 10"] {
        bench.run(line);
    }
    bench
}

#[test]
fn whether_a_primary_is_cut_off_is_said_when_all_other_members_have_answered_or_not() {
    // None answers.
    check(
        &mut primary_of_three(),
        "fail s2 silent
         append r3 10
         activate v1
         fail s3 silent
         activate v1
         append r3 10",
        &expect![[r#"
            fail s2 silent -> -
            append r3 10 -> REFUSED the primary of c7, with members that failed, is busy: try again later
            activate v1 -> ok
            fail s3 silent -> c7: its primary reaches no other replica
            activate v1 -> REFUSED c7: its primary reaches no other replica
            append r3 10 -> REFUSED c7: its primary reaches no other replica"#]],
    );
    // The other one has the mutation that is open, or gets it later.
    check(
        &mut primary_of_three(),
        "ack s3 n1
         fail s2 silent
         activate v1
         ack s3 n2
         judge",
        &expect![[r#"
            ack s3 n1 -> -
            fail s2 silent -> -
            activate v1 -> ok
            ack s3 n2 -> -
            judge -> s2 failed as a replica of c7"#]],
    );
    check(
        &mut primary_of_three(),
        "fail s2 silent
         ack s3 n2
         judge
         ack s3 n1
         judge
         judge
         fail s3 silent
         activate v1",
        &expect![[r#"
            fail s2 silent -> -
            ack s3 n2 -> -
            judge -> -
            ack s3 n1 -> -
            judge -> s2 failed as a replica of c7
            judge -> -
            fail s3 silent -> -
            activate v1 -> REFUSED c7: its primary reaches no other replica"#]],
    );
    // An answer from before the cut proves nothing.
    check(
        &mut primary_of_three(),
        "ack s3 n1
         fail s2 silent
         fail s3 silent",
        &expect![[r#"
            ack s3 n1 -> -
            fail s2 silent -> -
            fail s3 silent -> c7: its primary reaches no other replica"#]],
    );
}

#[test]
fn who_says_itself_that_it_has_failed_is_the_one_that_failed() {
    // A member, or this server.
    check(
        &mut primary_of_three(),
        "fail s2 silent
         fail s3
         activate v1",
        &expect![[r#"
            fail s2 silent -> -
            fail s3 -> s2 failed as a replica of c7
            activate v1 -> REFUSED s2 failed as a replica of c7"#]],
    );
    check(
        &mut primary_of_three(),
        "fail s2 silent
         fail s1
         activate v1",
        &expect![[r#"
            fail s2 silent -> -
            fail s1 -> s1 failed as a replica of c7
            activate v1 -> REFUSED s1 failed as a replica of c7"#]],
    );
}

#[test]
fn a_primary_that_orders_nothing_any_more_says_why_when_it_is_asked_whether_it_is_active() {
    check(
        &mut primary(),
        "activate v1
         fail s1
         activate v1
         fail s2
         activate v1
         activate v2",
        &expect![[r#"
            activate v1 -> ok
            fail s1 -> s1 failed as a replica of c7
            activate v1 -> REFUSED s1 failed as a replica of c7
            fail s2 -> -
            activate v1 -> REFUSED s1 failed as a replica of c7
            activate v2 -> REFUSED c7: v2 was asked for, here is v1"#]],
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
fn a_late_copy_of_a_request_that_was_given_up_is_neither_done_again_nor_told_to_be_new() {
    check(
        &mut primary(),
        "append r77 10
         write r77 0 10
         outcome r77
         append r78 10",
        &expect![[r#"
            append r77 10 -> REFUSED bad argument: request k1:77 was given up by its client
            write r77 0 10 -> REFUSED bad argument: request k1:77 was given up by its client
            outcome r77 -> REFUSED bad argument: request k1:77 was given up by its client
            append r78 10 -> n1 at 0"#]],
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
            apply v1 n9999 0 10 -> REFUSED the queue for c7 is busy: try again later
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
fn all_adopt_the_longest_content_of_the_whole_base_members() {
    let grant = Grant {
        version: version(5),
        members: Vec::new(),
        base: vec![server(1), server(2), server(3)],
        primary: server(2),
        writer: true,
        fresh: false,
        accepted: false,
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

#[test]
fn an_append_may_end_with_the_chunk_and_not_one_byte_further() {
    check(
        &mut primary(),
        "write r1 0 262134
         append r2 10",
        &expect![[r#"
            write r1 0 262134 -> n1 at 0
            append r2 10 -> n2 at 262134"#]],
    );
    check(
        &mut primary(),
        "write r1 0 262134
         append r2 11
         append r3 1",
        &expect![[r#"
            write r1 0 262134 -> n1 at 0
            append r2 11 -> seals with n2
            append r3 1 -> next chunk once n2 is committed"#]],
    );
}
