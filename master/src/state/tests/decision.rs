//! An operator's decision in the state: a grant to one member alone, and a row that lives as long as it (docs/decisions/0020).

use expect_test::expect;

use super::check;

#[test]
fn a_decision_prepares_a_grant_to_one_member_and_ends_with_it() {
    check(
        "create /f
         add e2 0 s1,s2,s3 s1
         accept c1 v1 s1
         confirm c1 v1 100
         accept c1 v0 s2
         accept c1 v1 s4
         accept c1 v1 s2
         accepted c1
         chunk c1
         accept c1 v1 s3
         accept c1 v2 s3
         accepted c1
         grant c1 v3 s1,s3 s1,s3 s1
         accepted c1
         accept c1 v4 s3
         confirm c1 v5 200
         accepted c1
         chunk c1
         accept c1 v5 s3
         rm /f
         expedite e2
         collect 9
         accepted c1",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2,s3 s1             -> added c1 at #0
            accept c1 v1 s1                  -> rejected: bad grant: Fresh
            confirm c1 v1 100                -> confirmed v1
            accept c1 v0 s2                  -> rejected: c1 is at v1, not v0
            accept c1 v1 s4                  -> rejected: bad grant: BaseConfirmed
            accept c1 v1 s2                  -> prepared v2
            accepted c1                      -> s2 at v2
            chunk c1                         -> c1 v2 confirmed v1 on [s1, s2, s3], pending revocation to [s2] base [s2] primary s2
            accept c1 v1 s3                  -> rejected: c1 is at v2, not v1
            accept c1 v2 s3                  -> prepared v3
            accepted c1                      -> s3 at v3
            grant c1 v3 s1,s3 s1,s3 s1       -> prepared v4
            accepted c1                      -> none
            accept c1 v4 s3                  -> prepared v5
            confirm c1 v5 200                -> confirmed v5
            accepted c1                      -> none
            chunk c1                         -> c1 v5 confirmed v5 on [s3]
            accept c1 v5 s3                  -> prepared v6
            rm /f                            -> e2 in the trash until 1000
            expedite e2                      -> e2 in the trash until 0
            collect 9                        -> collected in 2 steps
            accepted c1                      -> none
        "#]],
    );
}

#[test]
fn a_shared_chunk_can_be_decided_about_like_any_other() {
    check(
        "create /f
         add e2 0 s1,s2,s3 s1
         confirm c1 v1 100
         revoke c1 v1 s1,s2,s3 s1,s2,s3 s1
         confirm c1 v2 0
         snapshot /f /g
         accept c1 v2 s3
         confirm c1 v3 0
         chunk c1",
        expect![[r#"
            create /f                        -> file e2 *3 0 chunks
            add e2 0 s1,s2,s3 s1             -> added c1 at #0
            confirm c1 v1 100                -> confirmed v1
            revoke c1 v1 s1,s2,s3 s1,s2,s3 s1 -> prepared v2
            confirm c1 v2 0                  -> confirmed v2
            snapshot /f /g                   -> file e3 *3 1 chunks
            accept c1 v2 s3                  -> prepared v3
            confirm c1 v3 0                  -> confirmed v3
            chunk c1                         -> c1 v3 confirmed v3 on [s3]
        "#]],
    );
}
