//! The list of what can be restored: what is in it, in pages, and what is not.

use gfs_proto::id::{EntryId, LogIndex};
use gfs_proto::time::UnixMs;

use super::script::{TRASH_MS, World, path};
use crate::state::read::{PAGE_ROWS_MAX, restorable};
use crate::state::{Command, Proposal, apply};

/// All pages, each with at most `limit` entries: ids by path, and the number of pages.
fn all(world: &World, now: u64, below: &str, limit: usize) -> (Vec<String>, usize) {
    let (mut found, mut pages, mut after) = (Vec::new(), 0, None);
    loop {
        let page = restorable(&world.memory, UnixMs::from_raw(now), &path(below), after, limit).unwrap();
        pages += 1;
        assert!(page.items.len() <= limit.max(1));
        for (trashed, entry) in &page.items {
            assert_eq!(
                (entry.id, trashed.collect_at.raw() - trashed.deleted_at.raw()),
                (trashed.entry, TRASH_MS)
            );
            found.push(format!("{} {}", trashed.path, trashed.entry));
        }
        after = page.next;
        if after.is_none() {
            return (found, pages);
        }
    }
}

#[test]
fn the_list_has_what_was_deleted_at_a_path_or_below_in_pages_of_any_size() {
    let mut world = World::with_servers();
    for (now, line) in [
        (10, "mkdir /a"),
        (10, "mkdir /ab"),
        (10, "create /a/x"),
        (10, "create /ab/x"),
        (11, "rm /a/x"),
        (12, "create /a/x"),
        (13, "rm /a/x"),
        (14, "rm /ab/x"),
        (15, "create /a/y"),
        (16, "rm -r /a"),
    ] {
        world.now = now;
        world.line(line);
    }
    let everything = ["/a/x e4", "/a/x e6", "/ab/x e5", "/a e2"];
    assert_eq!(all(&world, 20, "/", 100), (everything.map(str::to_owned).to_vec(), 1));
    for limit in 1..4 {
        let (found, pages) = all(&world, 20, "/", limit);
        assert_eq!(
            (found, pages),
            (everything.map(str::to_owned).to_vec(), 4_usize.div_ceil(limit)),
            "{limit}"
        );
    }
    assert_eq!(all(&world, 20, "/a", 2).0, ["/a/x e4", "/a/x e6", "/a e2"], "/ab is another name");
    assert_eq!(all(&world, 20, "/a/x", 1).0, ["/a/x e4", "/a/x e6"]);
    assert!(all(&world, 20, "/a/y", 1).0.is_empty(), "it went with the directory");
    // What is past its date, by the caller's clock or the state's, can't be restored and is not there.
    assert_eq!(all(&world, 12 + TRASH_MS, "/", 9).0, ["/a/x e6", "/ab/x e5", "/a e2"]);
    world.now = 14 + TRASH_MS;
    world.line("mkdir /later");
    assert_eq!(all(&world, 0, "/", 9).0, ["/a e2"]);
}

#[test]
fn what_is_under_collection_or_being_built_is_not_in_the_list() {
    let mut world = World::with_servers();
    for line in ["open 1", "mkdir /a", "create /a/x", "create /a/y", "create /z", "mkdir /s", "create /s/x"] {
        world.line(line);
    }
    for line in ["rm -r /a", "rm /z", "expedite e2", "collect 2"] {
        world.line(line);
    }
    assert_eq!(world.line("begin /s /t 6:1"), "done");
    // The first tree was taken apart, the copy is hidden: the trash has pieces without a path.
    assert!(world.line("trash").matches(" until ").count() > 2, "{}", world.line("trash"));
    assert_eq!(all(&world, 0, "/", 9).0, ["/z e5"]);
}

#[test]
fn a_page_ends_after_so_many_rows_also_if_none_is_wanted() {
    let mut world = World::with_servers();
    let commands = (0..=PAGE_ROWS_MAX).flat_map(|number| {
        let at = path(&format!("/f{number}"));
        [Command::Create { path: at.clone(), replication: 0 }, Command::Delete { path: at, recursive: false }]
    });
    // Without a look at the whole state after each.
    for (index, command) in (10..).zip(commands) {
        let proposal = Proposal::internal(UnixMs::from_raw(1), command);
        world.memory.write(apply(&world.memory, LogIndex::from_raw(index), &proposal).writes);
    }
    let last = format!("/f{PAGE_ROWS_MAX}");
    let page = restorable(&world.memory, UnixMs::from_raw(0), &path(&last), None, 5).unwrap();
    assert!(page.items.is_empty() && page.next.is_some());
    let id = EntryId::from_raw(PAGE_ROWS_MAX as u64 + 2);
    assert_eq!(all(&world, 0, &last, 5), (vec![format!("{last} {id}")], 2));
}
