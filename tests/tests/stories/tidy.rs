//! The house rules that no lint knows (STYLE.md).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gfs_proto::fault::{MUTANTS, POINTS};

/// Longest file, in lines.
const LINES_MAX: usize = 500;
/// Longest file of tests: they are read one by one.
const TEST_LINES_MAX: usize = 1000;
/// Folders that are pure, and the words that must not be in them.
const PURE: [(&str, &[&str]); 3] = [
    (
        "master/src/state",
        &["tokio", "tonic", "rocksdb", "std::fs", "std::net", "HashMap", "Instant::now", "rand::"],
    ),
    (
        "master/src/plan",
        &["tokio", "tonic", "rocksdb", "std::fs", "std::net", "HashMap", "Instant::now", "rand::"],
    ),
    (
        "chunkserver/src/replica",
        &["tokio", "tonic", "std::fs", "std::net", "HashMap", "Instant::now", "rand::"],
    ),
];
/// What a lower floor must not name.
const FLOORS: [(&str, &[&str]); 4] = [
    ("proto", &["gfs_master", "gfs_chunkserver", "gfs_client"]),
    ("client", &["gfs_master", "gfs_chunkserver"]),
    ("master", &["gfs_chunkserver", "gfs_client"]),
    ("chunkserver", &["gfs_master", "gfs_client"]),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every source file below a folder, with its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![workspace().join(folder)];
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() && !path.ends_with("target") {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(workspace()).unwrap().display().to_string();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

fn all_sources() -> Vec<(String, String)> {
    let crates = ["proto", "client", "chunkserver", "master", "cli", "tests", "bench", "jepsen", "fuzz"];
    crates.into_iter().flat_map(sources).collect()
}

/// Complaints about every file for which `complain` has one.
fn complaints(files: &[(String, String)], complain: impl Fn(&str, &str) -> Option<String>) -> Vec<String> {
    files
        .iter()
        .filter_map(|(name, text)| complain(name, text).map(|what| format!("{name}: {what}")))
        .collect()
}

/// Whether a file holds nothing but tests.
fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("/tests/")
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_file_says_what_it_is_for_and_is_short_enough_to_read_at_once() {
    let files = all_sources();
    assert!(files.len() > 50, "the sources are not where this test looks");
    let wrong = complaints(&files, |name, text| {
        let lines = text.lines().count();
        let limit = if is_test(name) { TEST_LINES_MAX } else { LINES_MAX };
        if !text.starts_with("//!") {
            return Some("its first line is no //! that says what it is for".to_owned());
        }
        (lines > limit).then(|| format!("{lines} lines, the limit is {limit}"))
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_folders_name_nothing_of_the_outside_world() {
    for (folder, banned) in PURE {
        let files: Vec<_> = sources(folder).into_iter().filter(|(name, _)| !is_test(name)).collect();
        let wrong = complaints(&files, |_, text| {
            let code = code(text);
            banned.iter().find(|word| code.contains(**word)).map(|word| format!("names {word}"))
        });
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn no_floor_names_one_that_stands_on_it_or_beside_it() {
    for (folder, banned) in FLOORS {
        let wrong = complaints(&sources(folder), |_, text| {
            banned.iter().find(|word| code(text).contains(**word)).map(|word| format!("names {word}"))
        });
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn nobody_but_the_seams_reads_a_clock_opens_a_socket_or_draws_randomness() {
    let doors = [
        "SystemTime::now",
        "std::time::Instant::now",
        "TcpStream::connect",
        "TcpListener::bind",
        "rand::rng",
    ];
    let allowed = ["proto/src/time.rs", "proto/src/net.rs", "proto/src/random.rs"];
    let files: Vec<_> = ["proto/src", "client/src", "chunkserver/src", "master/src"]
        .into_iter()
        .flat_map(sources)
        .filter(|(name, _)| !allowed.contains(&name.as_str()) && !is_test(name))
        .collect();
    let wrong = complaints(&files, |_, text| {
        doors.iter().find(|door| code(text).contains(**door)).map(|door| format!("names {door}"))
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for document in ["README.md", "ARCHITECTURE.md", "STYLE.md", "docs/glossary.md", "docs/formats.md"] {
        let text = std::fs::read_to_string(workspace().join(document)).unwrap();
        let folder = workspace().join(document).parent().unwrap().to_owned();
        // Paths in backticks that look like files of this project, and targets of links.
        for word in text.split(['`', '(', ')']).filter(|word| word.ends_with(".rs") || word.ends_with(".md"))
        {
            let plain = !word.contains([' ', '{', '*', ':']);
            if plain && !workspace().join(word).exists() && !folder.join(word).exists() {
                wrong.push(format!("{document}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn decisions_that_are_named_are_there() {
    let there: Vec<String> = std::fs::read_dir(workspace().join("docs/decisions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let wrong = complaints(&all_sources(), |_, text| {
        let named = text.split("decisions/").skip(1).chain(text.split("(decision ").skip(1));
        let numbers = named.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
        let mut numbers = numbers.filter(|number| number.len() == 4);
        numbers
            .find(|number| !there.iter().any(|file| file.starts_with(number)))
            .map(|number| format!("names {number}"))
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The code of what can run with faults, without the list of them.
fn faulty_sources() -> Vec<(String, String)> {
    let files =
        ["proto/src", "client/src", "chunkserver/src", "master/src", "cli/src"].into_iter().flat_map(sources);
    files.filter(|(name, _)| !name.starts_with("proto/src/fault") && !is_test(name)).collect()
}

/// Every word in quotes behind `start`.
fn quoted<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.split(start).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn fail_points_are_listed_and_each_stands_at_one_place() {
    assert!(POINTS.len() >= 40, "{} fail points", POINTS.len());
    let files = faulty_sources();
    let mut called: BTreeMap<&str, bool> = BTreeMap::new();
    for (_, text) in &files {
        called.extend(quoted(text, "fault::at(\"").into_iter().map(|name| (name, false)));
        called.extend(quoted(text, "fault::reach(\"").into_iter().map(|name| (name, false)));
        called.extend(quoted(text, "fault::try_at(\"").into_iter().map(|name| (name, true)));
        called.extend(quoted(text, "fault::try_reach(\"").into_iter().map(|name| (name, true)));
        // The points of `master/src/raft/fail.rs` have names by a table.
        called.extend(quoted(text, "=> \"raft::").into_iter().filter_map(|rest| {
            POINTS
                .iter()
                .find(|point| point.name.strip_prefix("raft::") == Some(rest))
                .map(|point| (point.name, true))
        }));
    }
    let listed: BTreeMap<&str, bool> = POINTS.iter().map(|point| (point.name, point.fails)).collect();
    assert_eq!(listed.len(), POINTS.len(), "a name is listed twice");
    assert_eq!(called, listed, "the list in proto/src/fault/list.rs is not that of the code");
    for point in POINTS {
        let name = format!("\"{}\"", point.name);
        let places = files.iter().map(|(_, text)| text.matches(&name).count()).sum::<usize>();
        assert_eq!(places, 1, "{name} is used {places} times");
    }
}

#[test]
fn mutants_are_listed_and_named_where_they_stand() {
    let texts: String = ["proto/src", "client/src", "chunkserver/src", "master/src"]
        .into_iter()
        .flat_map(sources)
        .filter(|(name, _)| !name.starts_with("proto/src/fault"))
        .map(|(_, text)| text)
        .collect();
    let called: BTreeSet<&str> = quoted(&texts, "fault::mutant(\"").into_iter().collect();
    assert_eq!(
        called,
        MUTANTS.iter().copied().collect(),
        "the list in proto/src/fault/list.rs is not that of the code"
    );
    for name in MUTANTS {
        assert!(texts.contains(&format!("// Mutant {name}: ")), "nothing says what mutant {name} does");
    }
}
