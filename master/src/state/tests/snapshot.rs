//! Claims about snapshots and copy on write, each a script.

use expect_test::expect;

use super::check;

#[test]
fn a_snapshot_shares_all_chunks_and_is_refused_while_somebody_may_write() {
    // Guard snapshot_under_lease: a fresh grant, a lease, a revocation that is not confirmed, none.
    check(
        "create /f
         add e2 0 1,2,3 1
         snapshot /f /s
         confirm c1 v1 60000
         snapshot /f /s
         revoke c1 v1 1,2,3 1,2,3 1
         snapshot /f /s
         confirm c1 v2 0
         snapshot /f /s
         snapshot /f /s
         chunks e2
         chunks e3
         grant c1 v2 1,2,3 1,2,3 1
         extend c1v2 99999
         counters",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 1,2,3 1                 -> added c1 at #0
            snapshot /f /s                   -> rejected: c1 may still be written
            confirm c1 v1 60000              -> confirmed v1
            snapshot /f /s                   -> rejected: c1 may still be written
            revoke c1 v1 1,2,3 1,2,3 1       -> prepared v2
            snapshot /f /s                   -> rejected: c1 may still be written
            confirm c1 v2 0                  -> confirmed v2
            snapshot /f /s                   -> file e3 *3 1 chunks
            snapshot /f /s                   -> rejected: /s: exists already
            chunks e2                        -> c1 x2
            chunks e3                        -> c1 x2
            grant c1 v2 1,2,3 1,2,3 1        -> rejected: c1 is shared: it is copied before it is written
            extend c1v2 99999                -> extended []
            counters                         -> 2 files, 1 directories, 1 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_request_for_a_snapshot_is_answered_when_the_leases_are_gone() {
    check(
        "open 1
         create /f
         add e2 0 1,2 1
         snapshot /f /s #6:1
         confirm c1 v1 9
         revoke c1 v1 1,2 1,2 1
         confirm c1 v2 0
         snapshot /f /s #6:1
         snapshot /f /s #6:1",
        expect![[r#"
            open 1                           -> session k6 until 400
            create /f                        -> file e2 *3 0 chunks
            add e2 0 1,2 1                   -> added c1 at #0
            snapshot /f /s #6:1              -> rejected: c1 may still be written
            confirm c1 v1 9                  -> confirmed v1
            revoke c1 v1 1,2 1,2 1           -> prepared v2
            confirm c1 v2 0                  -> confirmed v2
            snapshot /f /s #6:1              -> file e3 *3 1 chunks
            snapshot /f /s #6:1              -> file e3 *3 1 chunks (decided at 13)
        "#]],
    );
}

#[test]
fn a_tree_is_duplicated_in_one_step_and_never_into_itself() {
    check(
        "mkdir -p /a/b/c
         create /a/f
         create /a/b/g
         add e6 0 1,2 1
         confirm c1 v1 9
         revoke c1 v1 1,2 1,2 1
         confirm c1 v2 0
         snapshot /a /a/b/x
         snapshot / /x
         snapshot /nobody /x
         snapshot /a /f/x
         snapshot /a /s
         ls /s
         ls /s/b
         chunks e6
         snapshot /a /a
         mkdir /two
         snapshot /s /two/s
         chunks e6
         counters",
        expect![[r#"
            mkdir -p /a/b/c                  -> directory e4
            create /a/f                      -> file e5 *3 0 chunks
            create /a/b/g                    -> file e6 *3 0 chunks
            add e6 0 1,2 1                   -> added c1 at #0
            confirm c1 v1 9                  -> confirmed v1
            revoke c1 v1 1,2 1,2 1           -> prepared v2
            confirm c1 v2 0                  -> confirmed v2
            snapshot /a /a/b/x               -> rejected: can't move /a to /a/b/x: the target lies inside the source
            snapshot / /x                    -> rejected: can't move / to /x: the target lies inside the source
            snapshot /nobody /x              -> rejected: /nobody: not found
            snapshot /a /f/x                 -> rejected: /f: not found
            snapshot /a /s                   -> directory e7
            ls /s                            -> b=e8 f=e9
            ls /s/b                          -> c=e10 g=e11
            chunks e6                        -> c1 x2
            snapshot /a /a                   -> rejected: /a: exists already
            mkdir /two                       -> directory e12
            snapshot /s /two/s               -> directory e13
            chunks e6                        -> c1 x3
            counters                         -> 6 files, 11 directories, 1 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_copy_takes_the_place_of_a_shared_chunk_and_is_written_only_when_the_old_version_is_over() {
    // Guards copy_without_bump, bump_before_map.
    check(
        "create /f
         add e2 0 1,2,3 1
         confirm c1 v1 9
         revoke c1 v1 1,2,3 1,2,3 1
         confirm c1 v2 0
         reserve
         copy e2 0 c1 v2 c2 1,2
         snapshot /f /s
         copy e2 0 c1 v1 c2 1,2
         copy e2 0 c1 v2 c3 1,2
         copy e2 0 c1 v2 c1 1,2
         copy e2 0 c1 v2 c2 1,4
         copy e2 1 c1 v2 c2 1,2
         copy e2 0 c1 v2 c2 1,2
         copy e2 0 c1 v2 c2 1,2
         chunk c2
         chunks e2
         chunks e3
         grant c2 v1 1,2 1,2 1
         snapshot /f /t
         revoke c1 v2 1,2,3 1,2,3 1
         grant c2 v1 1,2 1,2 1
         confirm c1 v3 0
         grant c1 v3 1,2,3 1,2,3 1
         grant c2 v1 1,2 1,2 1
         confirm c2 v2 9
         chunks e3
         grant c1 v3 1,2,3 1,2,3 1",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 1,2,3 1                 -> added c1 at #0
            confirm c1 v1 9                  -> confirmed v1
            revoke c1 v1 1,2,3 1,2,3 1       -> prepared v2
            confirm c1 v2 0                  -> confirmed v2
            reserve                          -> reserved c2
            copy e2 0 c1 v2 c2 1,2           -> rejected: bad grant: Copy
            snapshot /f /s                   -> file e3 *3 1 chunks
            copy e2 0 c1 v1 c2 1,2           -> rejected: c1 is at v2, not v1
            copy e2 0 c1 v2 c3 1,2           -> rejected: bad grant: Copy
            copy e2 0 c1 v2 c1 1,2           -> rejected: bad grant: Copy
            copy e2 0 c1 v2 c2 1,4           -> rejected: bad grant: BaseConfirmed
            copy e2 1 c1 v2 c2 1,2           -> rejected: the file has 1 chunks, not 1
            copy e2 0 c1 v2 c2 1,2           -> done
            copy e2 0 c1 v2 c2 1,2           -> rejected: c1: no such chunk here
            chunk c2                         -> c2 v1 confirmed v1 on [s1, s2]
            chunks e2                        -> c2 x1
            chunks e3                        -> c1 x2
            grant c2 v1 1,2 1,2 1            -> rejected: c2 may still be written
            snapshot /f /t                   -> rejected: c2 may still be written
            revoke c1 v2 1,2,3 1,2,3 1       -> prepared v3
            grant c2 v1 1,2 1,2 1            -> rejected: c2 may still be written
            confirm c1 v3 0                  -> confirmed v3
            grant c1 v3 1,2,3 1,2,3 1        -> rejected: c1 is shared: it is copied before it is written
            grant c2 v1 1,2 1,2 1            -> prepared v2
            confirm c2 v2 9                  -> confirmed v2
            chunks e3                        -> c1 x1
            grant c1 v3 1,2,3 1,2,3 1        -> prepared v4
        "#]],
    );
}

#[test]
fn what_nobody_has_any_more_goes_with_the_last_file_and_with_it_what_it_came_from() {
    check(
        "create /f
         add e2 0 1,2 1
         confirm c1 v1 9
         revoke c1 v1 1,2 1,2 1
         confirm c1 v2 0
         snapshot /f /s
         rm /f
         now 5000
         collect 10
         chunks e3
         snapshot /s /t
         reserve
         copy e4 0 c1 v2 c2 1
         rm /s
         now 9000
         collect 10
         chunk c1
         rm /t
         now 20000
         collect 10
         chunk c1
         chunk c2
         counters",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 1,2 1                   -> added c1 at #0
            confirm c1 v1 9                  -> confirmed v1
            revoke c1 v1 1,2 1,2 1           -> prepared v2
            confirm c1 v2 0                  -> confirmed v2
            snapshot /f /s                   -> file e3 *3 1 chunks
            rm /f                            -> e2 in the trash until 1000
            now 5000
            collect 10                       -> collected in 2 steps
            chunks e3                        -> c1 x1
            snapshot /s /t                   -> file e4 *3 1 chunks
            reserve                          -> reserved c2
            copy e4 0 c1 v2 c2 1             -> done
            rm /s                            -> e3 in the trash until 6000
            now 9000
            collect 10                       -> collected in 2 steps
            chunk c1                         -> c1 v2 confirmed v2 on [s1, s2]
            rm /t                            -> e4 in the trash until 10000
            now 20000
            collect 10                       -> collected in 2 steps
            chunk c1                         -> rejected: c1: no such chunk here
            chunk c2                         -> rejected: c2: no such chunk here
            counters                         -> 0 files, 1 directories, 0 chunks, 0 sessions
        "#]],
    );
}
