//! Claims about the state as a whole, each a script.

mod build;
mod building;
mod decision;
mod golden;
mod model;
mod random;
mod restorable;
mod robust;
mod script;
mod snapshot;

use expect_test::{Expect, expect};

pub(in crate::state) use script::{World, config};

fn run(mut world: World, script: &str, expected: &Expect) {
    let mut told = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let outcome = world.line(line);
        told += format!("{line:<32} -> {outcome}").trim_end_matches([' ', '>', '-']).trim_end();
        told.push('\n');
    }
    expected.assert_eq(&told);
}

/// Runs a script on a cluster with chunkservers s1 to s4; the first line is at log index 6.
fn check(script: &str, expected: Expect) {
    run(World::with_servers(), script, &expected);
}

#[test]
fn nothing_happens_before_there_is_a_cluster_and_there_is_one_only() {
    run(
        World::empty(),
        "mkdir /a
         open 1
         renew k1 #1:1
         stat /
         bootstrap
         bootstrap
         bootstrap 7
         stat /
         counters",
        &expect![[r#"
            mkdir /a                         -> rejected: there is no cluster yet
            open 1                           -> rejected: there is no cluster yet
            renew k1 #1:1                    -> rejected: there is no cluster yet
            stat /                           -> rejected: there is no cluster yet
            bootstrap                        -> done
            bootstrap                        -> done
            bootstrap 7                      -> rejected: this is cluster aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa already
            stat /                           -> directory e1
            counters                         -> 0 files, 1 directories, 0 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_name_needs_a_directory_above_and_is_given_once() {
    check(
        "create /d/f
         mkdir /d
         mkdir /d
         create /d/f
         create /d/f
         mkdir /d/f
         create /d/f/g
         mkdir /d/f/g
         stat /d/f/g
         create /d/two 2
         create /d/many 17
         mkdir /
         create /
         ls /
         ls /d
         ls /d/f
         counters",
        expect![[r#"
            create /d/f                      -> rejected: /d: not found
            mkdir /d                         -> directory e2
            mkdir /d                         -> rejected: /d: exists already
            create /d/f                      -> file e3 *3 0 chunks
            create /d/f                      -> rejected: /d/f: exists already
            mkdir /d/f                       -> rejected: /d/f: exists already
            create /d/f/g                    -> rejected: /d/f: not a directory
            mkdir /d/f/g                     -> rejected: /d/f: not a directory
            stat /d/f/g                      -> rejected: /d/f: not a directory
            create /d/two 2                  -> file e4 *2 0 chunks
            create /d/many 17                -> rejected: the number of replicas is too large: 17, the limit is 16
            mkdir /                          -> rejected: /: exists already
            create /                         -> rejected: /: exists already
            ls /                             -> d=e2
            ls /d                            -> f=e3 two=e4
            ls /d/f                          -> rejected: /d/f: not a directory
            counters                         -> 2 files, 2 directories, 0 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn mkdir_with_parents_makes_what_is_missing_and_takes_what_is_there() {
    check(
        "mkdir -p /a/b/c
         mkdir -p /a/b/c
         mkdir -p /
         create /a/f
         mkdir -p /a/f
         mkdir -p /a/f/g
         ls /a
         counters",
        expect![[r#"
            mkdir -p /a/b/c                  -> directory e4
            mkdir -p /a/b/c                  -> directory e4
            mkdir -p /                       -> directory e1
            create /a/f                      -> file e5 *3 0 chunks
            mkdir -p /a/f                    -> rejected: /a/f: exists already
            mkdir -p /a/f/g                  -> rejected: /a/f: not a directory
            ls /a                            -> b=e3 f=e5
            counters                         -> 1 files, 4 directories, 0 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_list_comes_in_pages_by_name() {
    check(
        "mkdir /d
         mkdir /e
         create /d/b
         create /d/a
         create /d/c
         create /e/x
         ls /d Z 1
         ls /d a 1
         ls /d b 1
         ls /d c 1
         ls /",
        expect![[r#"
            mkdir /d                         -> directory e2
            mkdir /e                         -> directory e3
            create /d/b                      -> file e4 *3 0 chunks
            create /d/a                      -> file e5 *3 0 chunks
            create /d/c                      -> file e6 *3 0 chunks
            create /e/x                      -> file e7 *3 0 chunks
            ls /d Z 1                        -> a=e5 ..
            ls /d a 1                        -> b=e4 ..
            ls /d b 1                        -> c=e6
            ls /d c 1
            ls /                             -> d=e2 e=e3
        "#]],
    );
}

#[test]
fn a_rename_moves_a_whole_tree_and_nothing_else() {
    check(
        "mkdir -p /a/b
         create /a/b/f
         mkdir /z
         mv /a /z/y
         stat /a
         stat /z/y/b/f
         path e4
         mv /z/y /z/y
         mv /none /x
         mv /z/y/b/f /no/f
         mv / /x
         mv /z /
         counters",
        expect![[r#"
            mkdir -p /a/b                    -> directory e3
            create /a/b/f                    -> file e4 *3 0 chunks
            mkdir /z                         -> directory e5
            mv /a /z/y                       -> done
            stat /a                          -> rejected: /a: not found
            stat /z/y/b/f                    -> file e4 *3 0 chunks
            path e4                          -> /z/y/b/f
            mv /z/y /z/y                     -> done
            mv /none /x                      -> rejected: /none: not found
            mv /z/y/b/f /no/f                -> rejected: /no: not found
            mv / /x                          -> rejected: bad path "/": the root directory can't be used here
            mv /z /                          -> rejected: bad path "/": the root directory can't be used here
            counters                         -> 1 files, 4 directories, 0 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_directory_never_moves_into_itself() {
    check(
        "mkdir -p /a/b/c
         mv /a /a/x
         mv /a /a/b/c
         mv -f /a /a/b/c/d
         mv /a/b/c /a/c
         mv -f /a/c /a
         ls /a",
        expect![[r#"
            mkdir -p /a/b/c                  -> directory e4
            mv /a /a/x                       -> rejected: can't move /a to /a/x: the target lies inside the source
            mv /a /a/b/c                     -> rejected: can't move /a to /a/b/c: the target lies inside the source
            mv -f /a /a/b/c/d                -> rejected: can't move /a to /a/b/c/d: the target lies inside the source
            mv /a/b/c /a/c                   -> done
            mv -f /a/c /a                    -> rejected: /a: directory not empty (use -r to remove a tree)
            ls /a                            -> b=e3 c=e4
        "#]],
    );
}

#[test]
fn a_rename_replaces_a_file_by_a_file_and_an_empty_directory_by_a_directory_if_asked() {
    check(
        "create /f
         create /g
         add e3 0 s1 s1
         mv /f /g
         mv -f /f /g
         stat /g
         stat /f
         trash
         mkdir /d
         mkdir /e
         mkdir /e/sub
         mv -f /g /d
         mv -f /d /g
         mv -f /d /e
         mv -f /e /d
         ls /d
         trash
         counters",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            create /g                        -> file e3 *3 0 chunks
            add e3 0 s1 s1                   -> added c1 at #0
            mv /f /g                         -> rejected: /g: exists already
            mv -f /f /g                      -> e3 in the trash until 1000
            stat /g                          -> file e2 *3 0 chunks
            stat /f                          -> rejected: /f: not found
            trash                            -> e3 /g until 1000;
            mkdir /d                         -> directory e4
            mkdir /e                         -> directory e5
            mkdir /e/sub                     -> directory e6
            mv -f /g /d                      -> rejected: /d: is a directory
            mv -f /d /g                      -> rejected: /g: not a directory
            mv -f /d /e                      -> rejected: /e: directory not empty (use -r to remove a tree)
            mv -f /e /d                      -> e4 in the trash until 1000
            ls /d                            -> sub=e6
            trash                            -> e3 /g until 1000; e4 /d until 1000;
            counters                         -> 2 files, 4 directories, 1 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_deleted_file_can_be_restored_until_its_date() {
    check(
        "now 10
         create /f
         add e2 0 s1,s2 s1
         rm /f
         stat /f
         path e2
         trash
         create /f
         undelete e2 /f
         undelete e2 /old
         undelete e2 /again
         stat /old
         rm /old
         rm /f
         trash
         now 1010
         undelete e2 /old
         collect 100
         trash
         chunk c1
         counters",
        expect![[r#"
            now 10
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2 s1                -> added c1 at #0
            rm /f                            -> e2 in the trash until 1010
            stat /f                          -> rejected: /f: not found
            path e2                          -> in the trash
            trash                            -> e2 /f until 1010;
            create /f                        -> file e3 *3 0 chunks
            undelete e2 /f                   -> rejected: /f: exists already
            undelete e2 /old                 -> file e2 *3 1 chunks
            undelete e2 /again               -> rejected: e2: not in the trash
            stat /old                        -> file e2 *3 1 chunks
            rm /old                          -> e2 in the trash until 1010
            rm /f                            -> e3 in the trash until 1010
            trash                            -> e2 /old until 1010; e3 /f until 1010;
            now 1010
            undelete e2 /old                 -> rejected: e2: not in the trash
            collect 100                      -> collected in 3 steps
            trash
            chunk c1                         -> rejected: c1: no such chunk here
            counters                         -> 0 files, 1 directories, 0 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn two_deletions_of_one_name_never_clash() {
    check(
        "create /f
         rm /f
         create /f
         rm /f
         mkdir /f
         rm /f
         trash
         undelete e3 /f
         stat /f",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            rm /f                            -> e2 in the trash until 1000
            create /f                        -> file e3 *3 0 chunks
            rm /f                            -> e3 in the trash until 1000
            mkdir /f                         -> directory e4
            rm /f                            -> e4 in the trash until 1000
            trash                            -> e2 /f until 1000; e3 /f until 1000; e4 /f until 1000;
            undelete e3 /f                   -> file e3 *3 0 chunks
            stat /f                          -> file e3 *3 0 chunks
        "#]],
    );
}

#[test]
fn deleting_again_expedites() {
    check(
        "now 10
         create /f
         create /g
         rm /f
         rm /g
         expedite e3
         expedite e9
         trash
         undelete e3 /g
         collect 100
         trash
         expedite e1
         undelete e2 /",
        expect![[r#"
            now 10
            create /f                        -> file e2 *3 0 chunks
            create /g                        -> file e3 *3 0 chunks
            rm /f                            -> e2 in the trash until 1010
            rm /g                            -> e3 in the trash until 1010
            expedite e3                      -> e3 in the trash until 10
            expedite e9                      -> rejected: e9: not in the trash
            trash                            -> e3 /g until 10; e2 /f until 1010;
            undelete e3 /g                   -> rejected: e3: not in the trash
            collect 100                      -> collected in 1 steps
            trash                            -> e2 /f until 1010;
            expedite e1                      -> rejected: e1: not in the trash
            undelete e2 /                    -> rejected: /: exists already
        "#]],
    );
}

#[test]
fn a_tree_is_deleted_in_one_step_and_collected_piece_by_piece() {
    check(
        "mkdir -p /t/a/b
         create /t/f
         create /t/a/g
         add e5 0 s1 s1
         add e5 1 s1 s1
         add e6 0 s2 s2
         rm /t
         rm -r /t
         add e6 1 s1 s1
         path e6
         trash
         ls /
         collect 100
         now 1000
         collect 1
         trash
         counters
         undelete e6 /g
         collect 1
         collect 1
         collect 2
         collect 100
         trash
         counters
         collect 5",
        expect![[r#"
            mkdir -p /t/a/b                  -> directory e4
            create /t/f                      -> file e5 *3 0 chunks
            create /t/a/g                    -> file e6 *3 0 chunks
            add e5 0 s1 s1                   -> added c1 at #0
            add e5 1 s1 s1                   -> added c2 at #1
            add e6 0 s2 s2                   -> added c3 at #0
            rm /t                            -> rejected: /t: directory not empty (use -r to remove a tree)
            rm -r /t                         -> e2 in the trash until 1000
            add e6 1 s1 s1                   -> rejected: e6: not found
            path e6                          -> in the trash
            trash                            -> e2 /t until 1000;
            ls /
            collect 100                      -> collected in 0 steps
            now 1000
            collect 1                        -> collected in 1 steps, more is due
            trash                            -> e2 /t until 1000; e3  until 1000;
            counters                         -> 2 files, 4 directories, 3 chunks, 0 sessions
            undelete e6 /g                   -> rejected: e6: not in the trash
            collect 1                        -> collected in 1 steps, more is due
            collect 1                        -> collected in 1 steps, more is due
            collect 2                        -> collected in 2 steps, more is due
            collect 100                      -> collected in 7 steps
            trash
            counters                         -> 0 files, 1 directories, 0 chunks, 0 sessions
            collect 5                        -> collected in 0 steps
        "#]],
    );
}

#[test]
fn the_root_stays_where_it_is() {
    check(
        "rm /
         rm -r /
         mv / /a
         mkdir /a
         mv -f /a /",
        expect![[r#"
            rm /                             -> rejected: bad path "/": the root directory can't be used here
            rm -r /                          -> rejected: bad path "/": the root directory can't be used here
            mv / /a                          -> rejected: bad path "/": the root directory can't be used here
            mkdir /a                         -> directory e2
            mv -f /a /                       -> rejected: bad path "/": the root directory can't be used here
        "#]],
    );
}

#[test]
fn one_of_two_appenders_adds_the_chunk_and_the_other_gets_it() {
    check(
        "create /f
         add e2 0 s1,s2,s3 s1
         add e2 0 s2,s3,s4 s2
         chunk c1
         add e2 2 s1 s1
         add e2 1 s2 s2
         pending
         add e1 0 s1 s1
         add e9 0 s1 s1
         counters",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2,s3 s1             -> added c1 at #0
            add e2 0 s2,s3,s4 s2             -> found c1 at #0
            chunk c1                         -> c1 v1 confirmed v0 on [], pending fresh grant to [s1, s2, s3] base [s1, s2, s3] primary s1
            add e2 2 s1 s1                   -> rejected: the file has 1 chunks, not 2
            add e2 1 s2 s2                   -> added c2 at #1
            pending                          -> [c1, c2]
            add e1 0 s1 s1                   -> rejected: e1: not a file
            add e9 0 s1 s1                   -> rejected: e9: not found
            counters                         -> 1 files, 1 directories, 2 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_chunk_is_placed_on_registered_servers_each_once() {
    check(
        "create /f
         add e2 0 - s1
         add e2 0 s1,s1 s1
         add e2 0 s1,s9 s1
         add e2 0 s1,s2 s3
         add e2 0 s1,s2,s3,s4,s1,s2,s3,s4,s1,s2,s3,s4,s1,s2,s3,s4,s1 s1
         counters",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 - s1                    -> rejected: bad grant: Members
            add e2 0 s1,s1 s1                -> rejected: bad grant: Members
            add e2 0 s1,s9 s1                -> rejected: bad grant: Members
            add e2 0 s1,s2 s3                -> rejected: bad grant: Primary
            add e2 0 s1,s2,s3,s4,s1,s2,s3,s4,s1,s2,s3,s4,s1,s2,s3,s4,s1 s1 -> rejected: bad grant: Members
            counters                         -> 1 files, 1 directories, 0 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_grant_takes_two_commits_and_each_version_is_used_once() {
    check(
        "create /f
         add e2 0 s1,s2,s3 s1
         confirm c1 v1 @60
         chunk c1
         grant c1 v1 s1,s2,s4 s1,s2 s2
         chunk c1
         grant c1 v1 s1 s1 s1
         grant c1 v2 s1,s3 s1,s3 s3
         confirm c1 v2 @90
         confirm c1 v3 @90
         confirm c1 v3 @95
         chunk c1
         confirm c1 v1 @99
         pending
         grant c9 v1 s1 s1 s1
         confirm c9 v1 @1",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2,s3 s1             -> added c1 at #0
            confirm c1 v1 @60                -> confirmed v1
            chunk c1                         -> c1 v1 confirmed v1 on [s1, s2, s3], leased to s1 until 60
            grant c1 v1 s1,s2,s4 s1,s2 s2    -> prepared v2
            chunk c1                         -> c1 v2 confirmed v1 on [s1, s2, s3], pending grant to [s1, s2, s4] base [s1, s2] primary s2
            grant c1 v1 s1 s1 s1             -> rejected: c1 is at v2, not v1
            grant c1 v2 s1,s3 s1,s3 s3       -> prepared v3
            confirm c1 v2 @90                -> rejected: c1 is at v3, not v2
            confirm c1 v3 @90                -> confirmed v3
            confirm c1 v3 @95                -> confirmed v3
            chunk c1                         -> c1 v3 confirmed v3 on [s1, s3], leased to s3 until 90
            confirm c1 v1 @99                -> rejected: c1 is at v3, not v1
            pending                          -> []
            grant c9 v1 s1 s1 s1             -> rejected: c9: no such chunk here
            confirm c9 v1 @1                 -> rejected: c9: no such chunk here
        "#]],
    );
}

/// Guards current_by_version and single_commit: s4 joined a grant that was never confirmed, so it has a high
/// version and nothing else.
#[test]
fn only_a_confirmed_member_can_be_the_base_of_a_grant() {
    check(
        "create /f
         add e2 0 s1,s2 s1
         confirm c1 v1 @60
         grant c1 v1 s1,s4 s1 s1
         grant c1 v2 s4 s4 s4
         grant c1 v2 s2,s4 s2,s4 s2
         grant c1 v2 s2,s4 s2 s4
         grant c1 v2 s2,s4 s1 s1
         grant c1 v2 s2,s4 s2,s2 s2
         grant c1 v2 s2,s4 - s2
         fresh c1 v2 s3,s4 - s3
         grant c1 v2 s2,s4 s2 s2
         chunk c1",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2 s1                -> added c1 at #0
            confirm c1 v1 @60                -> confirmed v1
            grant c1 v1 s1,s4 s1 s1          -> prepared v2
            grant c1 v2 s4 s4 s4             -> rejected: bad grant: BaseConfirmed
            grant c1 v2 s2,s4 s2,s4 s2       -> rejected: bad grant: BaseConfirmed
            grant c1 v2 s2,s4 s2 s4          -> rejected: bad grant: Primary
            grant c1 v2 s2,s4 s1 s1          -> rejected: bad grant: Base
            grant c1 v2 s2,s4 s2,s2 s2       -> rejected: bad grant: Base
            grant c1 v2 s2,s4 - s2           -> rejected: bad grant: Base
            fresh c1 v2 s3,s4 - s3           -> rejected: bad grant: Fresh
            grant c1 v2 s2,s4 s2 s2          -> prepared v3
            chunk c1                         -> c1 v3 confirmed v1 on [s1, s2], pending grant to [s2, s4] base [s2] primary s2
        "#]],
    );
}

/// Guard confirm_not_cas: the grant that was overtaken can't be confirmed.
#[test]
fn a_confirm_of_an_overtaken_grant_is_refused() {
    check(
        "create /f
         add e2 0 s1,s2 s1
         confirm c1 v1 @60
         grant c1 v1 s1 s1 s1
         grant c1 v2 s2 s2 s2
         confirm c1 v2 @60
         chunk c1
         confirm c1 v3 @60
         chunk c1",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2 s1                -> added c1 at #0
            confirm c1 v1 @60                -> confirmed v1
            grant c1 v1 s1 s1 s1             -> prepared v2
            grant c1 v2 s2 s2 s2             -> prepared v3
            confirm c1 v2 @60                -> rejected: c1 is at v3, not v2
            chunk c1                         -> c1 v3 confirmed v1 on [s1, s2], pending grant to [s2] base [s2] primary s2
            confirm c1 v3 @60                -> confirmed v3
            chunk c1                         -> c1 v3 confirmed v3 on [s2], leased to s2 until 60
        "#]],
    );
}

#[test]
fn a_chunk_that_was_never_confirmed_starts_from_nothing_again() {
    check(
        "create /f
         add e2 0 s1,s2 s1
         grant c1 v1 s1,s2 s1 s1
         fresh c1 v1 s3,s4 - s3
         confirm c1 v1 @60
         confirm c1 v2 @60
         chunk c1
         fresh c1 v2 s3 - s3",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2 s1                -> added c1 at #0
            grant c1 v1 s1,s2 s1 s1          -> rejected: bad grant: Fresh
            fresh c1 v1 s3,s4 - s3           -> prepared v2
            confirm c1 v1 @60                -> rejected: c1 is at v2, not v1
            confirm c1 v2 @60                -> confirmed v2
            chunk c1                         -> c1 v2 confirmed v2 on [s3, s4], leased to s3 until 60
            fresh c1 v2 s3 - s3              -> rejected: bad grant: Fresh
        "#]],
    );
}

#[test]
fn a_grant_without_a_writer_ends_the_lease() {
    check(
        "create /f
         add e2 0 s1,s2 s1
         confirm c1 v1 @60
         revoke c1 v1 s1,s2 s1,s2 s1
         extend c1v1 @120
         extend c1v2 @120
         confirm c1 v2 @120
         chunk c1
         extend c1v2 @120",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2 s1                -> added c1 at #0
            confirm c1 v1 @60                -> confirmed v1
            revoke c1 v1 s1,s2 s1,s2 s1      -> prepared v2
            extend c1v1 @120                 -> extended []
            extend c1v2 @120                 -> extended []
            confirm c1 v2 @120               -> confirmed v2
            chunk c1                         -> c1 v2 confirmed v2 on [s1, s2]
            extend c1v2 @120                 -> extended []
        "#]],
    );
}

#[test]
fn running_leases_are_extended_and_others_passed_over() {
    check(
        "create /f
         add e2 0 s1 s1
         add e2 1 s2 s2
         confirm c1 v1 @60
         extend c1v1,c2v1,c9v1 @100
         chunk c1
         extend c1v1 @90
         extend c1v2 @190
         chunk c1",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1 s1                   -> added c1 at #0
            add e2 1 s2 s2                   -> added c2 at #1
            confirm c1 v1 @60                -> confirmed v1
            extend c1v1,c2v1,c9v1 @100       -> extended [(c1, v1)]
            chunk c1                         -> c1 v1 confirmed v1 on [s1], leased to s1 until 100
            extend c1v1 @90                  -> extended [(c1, v1)]
            extend c1v2 @190                 -> extended []
            chunk c1                         -> c1 v1 confirmed v1 on [s1], leased to s1 until 100
        "#]],
    );
}

#[test]
fn a_repeated_request_gets_its_first_answer_whatever_happened_since() {
    check(
        "open 1
         create /f #6:1
         rm /f #6:2
         create /f #6:1
         stat /f
         rm /f #6:2
         mkdir /g #6:3
         mkdir /g #6:4
         rm /g #6:5
         mkdir /g #6:4
         stat /g
         mv /x /y #6:1",
        expect![[r#"
            open 1                           -> session k6 until 400
            create /f #6:1                   -> file e2 *3 0 chunks
            rm /f #6:2                       -> e2 in the trash until 1000
            create /f #6:1                   -> file e2 *3 0 chunks (decided at 7)
            stat /f                          -> rejected: /f: not found
            rm /f #6:2                       -> e2 in the trash until 1000 (decided at 8)
            mkdir /g #6:3                    -> directory e3
            mkdir /g #6:4                    -> rejected: /g: exists already
            rm /g #6:5                       -> e3 in the trash until 1000
            mkdir /g #6:4                    -> rejected: /g: exists already (decided at 12)
            stat /g                          -> rejected: /g: not found
            mv /x /y #6:1                    -> rejected: k6:1 was another request
        "#]],
    );
}

#[test]
fn acknowledged_requests_are_forgotten_and_the_window_is_bounded() {
    check(
        "open 1
         create /a #6:1/1
         create /b #6:2/1
         create /c #6:3/3
         create /a #6:1/1
         create /c #6:3/3
         create /d #6:1026/3
         create /e #6:1027/3
         create /e #6:1027/9999
         create /e #6:1027/3
         create /d #6:1026/3
         create /g #6:0
         renew k6 1028
         create /e #6:1027/3
         create /f #6:1028
         ls /",
        expect![[r#"
            open 1                           -> session k6 until 400
            create /a #6:1/1                 -> file e2 *3 0 chunks
            create /b #6:2/1                 -> file e3 *3 0 chunks
            create /c #6:3/3                 -> file e4 *3 0 chunks
            create /a #6:1/1                 -> rejected: k6:1 was acknowledged by the client
            create /c #6:3/3                 -> file e4 *3 0 chunks (decided at 9)
            create /d #6:1026/3              -> file e5 *3 0 chunks
            create /e #6:1027/3              -> rejected: k6:1027 is too far past 3, the first unacknowledged request
            create /e #6:1027/9999           -> file e6 *3 0 chunks
            create /e #6:1027/3              -> file e6 *3 0 chunks (decided at 14)
            create /d #6:1026/3              -> rejected: k6:1026 was acknowledged by the client
            create /g #6:0                   -> rejected: k6:0 was acknowledged by the client
            renew k6 1028                    -> renewed until 400
            create /e #6:1027/3              -> rejected: k6:1027 was acknowledged by the client
            create /f #6:1028                -> file e7 *3 0 chunks
            ls /                             -> a=e2 b=e3 c=e4 d=e5 e=e6 f=e7
        "#]],
    );
}

#[test]
fn a_session_lives_while_it_is_used_and_dies_by_the_log_alone() {
    check(
        "now 100
         open 1
         open 1
         open 2
         now 300
         renew k6
         now 501
         create /f #8:1
         now 901
         expire 1
         counters
         create /f #6:1
         renew k6
         create /g #8:1
         create /g #8:2
         expire 10
         open 1
         counters",
        expect![[r#"
            now 100
            open 1                           -> session k6 until 500
            open 1                           -> session k6 until 500
            open 2                           -> session k8 until 500
            now 300
            renew k6                         -> renewed until 700
            now 501
            create /f #8:1                   -> file e2 *3 0 chunks
            now 901
            expire 1                         -> 1 sessions expired, more are due
            counters                         -> 1 files, 1 directories, 0 chunks, 1 sessions
            create /f #6:1                   -> rejected: session k6 has expired: open a new one
            renew k6                         -> rejected: session k6 has expired: open a new one
            create /g #8:1                   -> file e2 *3 0 chunks (decided at 10)
            create /g #8:2                   -> file e3 *3 0 chunks
            expire 10                        -> 0 sessions expired
            open 1                           -> session k17 until 1301
            counters                         -> 2 files, 1 directories, 0 chunks, 2 sessions
        "#]],
    );
}

#[test]
fn the_clock_of_the_state_never_goes_back() {
    check(
        "now 500
         create /f
         now 100
         rm /f
         trash",
        expect![[r#"
            now 500
            create /f                        -> file e2 *3 0 chunks
            now 100
            rm /f                            -> e2 in the trash until 1500
            trash                            -> e2 /f until 1500;
        "#]],
    );
}

#[test]
fn an_identity_keeps_its_id_wherever_its_server_moves() {
    check(
        "server 2 elsewhere
         server 9
         master 1 m1:1
         master 2 m2:1
         master 1 m1:2",
        expect![[r#"
            server 2 elsewhere               -> chunkserver s2
            server 9                         -> chunkserver s5
            master 1 m1:1                    -> master m8
            master 2 m2:1                    -> master m9
            master 1 m1:2                    -> master m8
        "#]],
    );
}
