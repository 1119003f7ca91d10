//! Claims about snapshots of large trees, each a script.

use expect_test::expect;

/// A tree with two files of one settled chunk each, and a session.
const TREE: &str = "
    open 1
    mkdir /a
    mkdir /a/b
    create /a/f
    create /a/b/g
    add e4 0 1,2 1
    confirm c1 v1 9
    revoke c1 v1 1,2 1,2 1
    confirm c1 v2 0
    add e5 0 1,2 1
    confirm c2 v1 9
    revoke c2 v1 1,2 1,2 1
    confirm c2 v2 0";

fn after_tree(script: &str, expected: expect_test::Expect) {
    let mut world = super::World::with_servers();
    TREE.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| drop(world.line(line)));
    super::run(world, script, &expected);
}

#[test]
fn a_large_tree_is_copied_in_steps_and_shown_at_once_and_the_request_gets_its_answer() {
    after_tree(
        "begin /a /s 6:1
         begin /a /s 6:1
         build e6 1
         ls /
         build e6 1
         build e6 9
         snapshot /a /s #6:1
         snapshot /a /s #6:1
         begin /a /s 6:1
         ls /s
         ls /s/b
         chunks e4
         counters",
        expect![[r#"
            begin /a /s 6:1                  -> done
            begin /a /s 6:1                  -> done
            build e6 1                       -> built 1 rows
            ls /                             -> a=e2
            build e6 1                       -> built 2 rows
            build e6 9                       -> built
            snapshot /a /s #6:1              -> directory e6 (decided at 23)
            snapshot /a /s #6:1              -> directory e6 (decided at 23)
            begin /a /s 6:1                  -> rejected: k6:1 was acknowledged by the client
            ls /s                            -> b=e7 f=e9
            ls /s/b                          -> g=e8
            chunks e4                        -> c1 x2
            counters                         -> 4 files, 5 directories, 2 chunks, 1 sessions
        "#]],
    );
}

#[test]
fn what_stands_still_is_refused_for_now_and_all_else_goes_on() {
    after_tree(
        "mkdir /x
         create /x/f
         begin /a /s 6:1
         create /a/n
         mkdir -p /a/b/n/m
         mkdir -p /a/b
         rm /a/f
         rm -r /a/b
         mv /a/f /x/g
         mv /x/f /a/g
         mv -f /x/f /a/f
         add e4 1 1,2 1
         snapshot /x /a/x
         begin /x /y 6:2
         snapshot /x /y
         snapshot /a/b /z
         rm /x/f
         create /n #6:3
         mkdir /a/n #6:4
         build e6 9
         build e8 9
         build e8 9
         mkdir /a/n #6:4
         ls /",
        expect![[r#"
            mkdir /x                         -> directory e6
            create /x/f                      -> file e7 *3 0 chunks
            begin /a /s 6:1                  -> done
            create /a/n                      -> rejected: a snapshot of e2 is being made
            mkdir -p /a/b/n/m                -> rejected: a snapshot of e2 is being made
            mkdir -p /a/b                    -> directory e3
            rm /a/f                          -> rejected: a snapshot of e2 is being made
            rm -r /a/b                       -> rejected: a snapshot of e2 is being made
            mv /a/f /x/g                     -> rejected: a snapshot of e2 is being made
            mv /x/f /a/g                     -> rejected: a snapshot of e2 is being made
            mv -f /x/f /a/f                  -> rejected: a snapshot of e2 is being made
            add e4 1 1,2 1                   -> rejected: a snapshot of e2 is being made
            snapshot /x /a/x                 -> rejected: a snapshot of e2 is being made
            begin /x /y 6:2                  -> rejected: a snapshot of e2 is being made
            snapshot /x /y                   -> directory e9
            snapshot /a/b /z                 -> directory e11
            rm /x/f                          -> e7 in the trash until 1000
            create /n #6:3                   -> file e13 *3 0 chunks
            mkdir /a/n #6:4                  -> rejected: a snapshot of e2 is being made
            build e6 9                       -> rejected: e6: not found
            build e8 9                       -> built
            build e8 9                       -> rejected: e8: not found
            mkdir /a/n #6:4                  -> directory e17
            ls /                             -> a=e2 n=e13 s=e8 x=e6 y=e9 z=e11
        "#]],
    );
}

#[test]
fn the_walk_stops_at_what_may_still_be_written_and_goes_on_when_it_is_revoked() {
    // Guard snapshot_under_lease. Before the walk has come to it a chunk may be written, after it not.
    after_tree(
        "grant c2 v2 1,2 1,2 1
         confirm c2 v3 500
         begin /a /s 6:1
         build e6 9
         build e6 9
         revoke c2 v3 1,2 1,2 1
         build e6 9
         confirm c2 v4 0
         grant c1 v2 1,2 1,2 1
         build e6 9
         revoke c1 v3 1,2 1,2 1
         confirm c1 v4 0
         build e6 9
         grant c1 v4 1,2 1,2 1
         build e6 9
         grant c2 v4 1,2 1,2 1
         build e6 9
         stat /s/b/g",
        expect![[r#"
            grant c2 v2 1,2 1,2 1            -> prepared v3
            confirm c2 v3 500                -> confirmed v3
            begin /a /s 6:1                  -> done
            build e6 9                       -> built 1 rows, c2 may still be written
            build e6 9                       -> built 0 rows, c2 may still be written
            revoke c2 v3 1,2 1,2 1           -> prepared v4
            build e6 9                       -> built 0 rows, c2 may still be written
            confirm c2 v4 0                  -> confirmed v4
            grant c1 v2 1,2 1,2 1            -> prepared v3
            build e6 9                       -> built 3 rows, c1 may still be written
            revoke c1 v3 1,2 1,2 1           -> prepared v4
            confirm c1 v4 0                  -> confirmed v4
            build e6 9                       -> built
            grant c1 v4 1,2 1,2 1            -> rejected: c1 is shared: it is copied before it is written
            build e6 9                       -> rejected: e6: not found
            grant c2 v4 1,2 1,2 1            -> rejected: c2 is shared: it is copied before it is written
            build e6 9                       -> rejected: e6: not found
            stat /s/b/g                      -> file e8 *3 1 chunks
        "#]],
    );
}

#[test]
fn whoever_takes_the_source_or_the_target_away_ends_the_build_and_it_leaves_nothing_behind() {
    after_tree(
        "begin /a /s 6:1
         build e6 3
         mv /a /c
         build e6 9
         snapshot /a /s #6:1
         mv /c /a
         begin /a /s 6:2
         build e9 9
         rm -r /a
         build e9 9
         snapshot /a /s #6:2
         begin / /s 6:3
         undelete e2 /a
         begin /a /s 6:3
         mkdir /s
         build e10 99
         build e10 99
         build e10 99
         snapshot /a /s #6:3
         undelete e10 /t
         expedite e10
         chunks e4
         collect 100
         chunks e4
         counters",
        expect![[r#"
            begin /a /s 6:1                  -> done
            build e6 3                       -> built 3 rows
            mv /a /c                         -> done
            build e6 9                       -> built
            snapshot /a /s #6:1              -> rejected: /a: not found (decided at 22)
            mv /c /a                         -> done
            begin /a /s 6:2                  -> done
            build e9 9                       -> built
            rm -r /a                         -> e2 in the trash until 1000
            build e9 9                       -> rejected: e9: not found
            snapshot /a /s #6:2              -> directory e9 (decided at 26)
            begin / /s 6:3                   -> rejected: can't move / to /s: the target lies inside the source
            undelete e2 /a                   -> directory e2
            begin /a /s 6:3                  -> rejected: /s: exists already
            mkdir /s                         -> rejected: /s: exists already
            build e10 99                     -> rejected: e10: not found
            build e10 99                     -> rejected: e10: not found
            build e10 99                     -> rejected: e10: not found
            snapshot /a /s #6:3              -> rejected: /s: exists already
            undelete e10 /t                  -> rejected: e10: not in the trash
            expedite e10                     -> rejected: e10: not in the trash
            chunks e4                        -> c1 x2
            collect 100                      -> collected in 6 steps
            chunks e4                        -> c1 x2
            counters                         -> 4 files, 5 directories, 2 chunks, 1 sessions
        "#]],
    );
}

#[test]
fn nothing_is_begun_that_can_not_end_well_or_that_was_answered_before() {
    after_tree(
        "begin /a /a/b/x 6:1
         begin /nobody /x 6:1
         begin /a /f/x 6:1
         begin /a / 6:1
         begin / /x 6:1
         begin /a /a 6:1
         begin /a/f /s 7:1
         create /q #6:5
         begin /a /s 6:5
         create /r #6:9/9
         begin /a /s 6:8
         begin /a/f /s 6:10
         undelete e8 /u
         expedite e8
         abandon e8 c1
         snapshot /a/f /s #6:10
         build e8 1
         abandon e8 c1",
        expect![[r#"
            begin /a /a/b/x 6:1              -> rejected: can't move /a to /a/b/x: the target lies inside the source
            begin /nobody /x 6:1             -> rejected: /nobody: not found
            begin /a /f/x 6:1                -> rejected: /f: not found
            begin /a / 6:1                   -> rejected: /: exists already
            begin / /x 6:1                   -> rejected: can't move / to /x: the target lies inside the source
            begin /a /a 6:1                  -> rejected: /a: exists already
            begin /a/f /s 7:1                -> rejected: session k7 has expired: open a new one
            create /q #6:5                   -> file e6 *3 0 chunks
            begin /a /s 6:5                  -> rejected: k6:5 was acknowledged by the client
            create /r #6:9/9                 -> file e7 *3 0 chunks
            begin /a /s 6:8                  -> rejected: k6:8 was acknowledged by the client
            begin /a/f /s 6:10               -> done
            undelete e8 /u                   -> rejected: e8: not in the trash
            expedite e8                      -> rejected: e8: not in the trash
            abandon e8 c1                    -> built
            snapshot /a/f /s #6:10           -> rejected: c1 can't be revoked, so there is no snapshot (decided at 33)
            build e8 1                       -> rejected: e8: not found
            abandon e8 c1                    -> rejected: e8: not found
        "#]],
    );
}

#[test]
fn a_build_outlives_the_session_that_asked_for_it() {
    after_tree(
        "begin /a /s 6:1
         now 5000
         expire 9
         build e6 99
         build e6 99
         build e6 99
         ls /
         counters",
        expect![[r#"
            begin /a /s 6:1                  -> done
            now 5000
            expire 9                         -> 1 sessions expired
            build e6 99                      -> built
            build e6 99                      -> rejected: e6: not found
            build e6 99                      -> rejected: e6: not found
            ls /                             -> a=e2 s=e6
            counters                         -> 4 files, 5 directories, 2 chunks, 0 sessions
        "#]],
    );
}

#[test]
fn a_file_of_many_chunks_is_copied_some_at_a_time() {
    let mut world = super::World::with_servers();
    let mut lines = vec!["open 1".to_owned(), "create /f".to_owned()];
    for chunk in 1..=70 {
        lines.push(format!("add e2 {} 1 1", chunk - 1));
        lines.push(format!("confirm c{chunk} v1 9"));
        lines.push(format!("revoke c{chunk} v1 1 1 1"));
        lines.push(format!("confirm c{chunk} v2 0"));
    }
    lines.iter().for_each(|line| drop(world.line(line)));
    super::run(
        world,
        "begin /f /s 6:1
         build e3 40
         stat /s
         build e3 40
         build e3 1
         stat /s",
        &expect![[r#"
            begin /f /s 6:1                  -> done
            build e3 40                      -> built 40 rows
            stat /s                          -> rejected: /s: not found
            build e3 40                      -> built
            build e3 1                       -> rejected: e3: not found
            stat /s                          -> file e3 *3 70 chunks
        "#]],
    );
}
