//! Judges what the chunkservers traced (`gfs::lease`): one primary at a time, and one order of mutations everywhere.
//!
//! Per chunk: a version has one primary. No member applies a mutation of an older version after it has stored a newer
//! one, and each applies the serials of a version without gaps. What is acknowledged was applied by every member of its
//! version before. And reigns don't overlap: what an older version acknowledged had reached a member before a newer
//! version's primary began. The times are the kernel's monotonic clock, one for all processes of this machine.

use std::collections::BTreeMap;

use crate::verdict::Verdict;

/// What our lines have before their words.
const TARGET: &str = " gfs::lease: ";
/// Findings of each kind that are told; one broken promise shows in many lines.
const TOLD_MAX: usize = 5;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    what: What,
    handle: u64,
    version: u64,
    at_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// With how many members.
    Stored(usize),
    Primary,
    Applied(u64),
    Acknowledged(u64),
}

/// Reads a line of a log; `None` if it is none of ours, or torn by a kill.
fn parse(line: &str) -> Option<Line> {
    let (_, rest) = line.split_once(TARGET)?;
    let mut words = rest.split_whitespace();
    let kind = words.next()?;
    let fields: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
    let number = |name: &str| fields.get(name)?.parse::<u64>().ok();
    let what = match kind {
        "stored" => What::Stored(fields.get("members")?.trim_matches('"').split(',').count()),
        "primary" => What::Primary,
        "applied" => What::Applied(number("serial")?),
        "acknowledged" => What::Acknowledged(number("serial")?),
        _ => return None,
    };
    Some(Line { what, handle: number("handle")?, version: number("version")?, at_ns: number("at_ns")? })
}

/// What is known of a version of a chunk.
#[derive(Default)]
struct Version {
    members: usize,
    /// Who was its primary, and since when: a server that starts again is another one.
    primaries: BTreeMap<Life, u64>,
    /// By serial: when each server applied it first.
    applied: BTreeMap<u64, BTreeMap<usize, u64>>,
    /// When each serial was acknowledged.
    acknowledged: BTreeMap<u64, u64>,
}

/// A server, and how often it had been started.
type Life = (usize, usize);
type Chunks = BTreeMap<u64, BTreeMap<u64, Version>>;

/// Findings by kind, so that one kind does not hide the others.
struct Findings<'a> {
    verdict: &'a mut Verdict,
    told: BTreeMap<&'static str, usize>,
}

impl Findings<'_> {
    fn add(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        let told = self.told.entry(kind).or_default();
        *told += 1;
        if *told <= TOLD_MAX {
            self.verdict.finding(format!("{kind}: {}", what()));
        }
    }
}

/// Judges the logs of all chunkservers, by name; `wrote` if clients were told of writes, which some of them has traced then.
pub(crate) fn check<'a>(
    logs: impl IntoIterator<Item = (&'a str, &'a str)>,
    wrote: bool,
    verdict: &mut Verdict,
) {
    let mut chunks = Chunks::new();
    let mut findings = Findings { verdict, told: BTreeMap::new() };
    let mut names = Vec::new();
    for (name, text) in logs {
        read_log(names.len(), name, text, &mut chunks, &mut findings);
        names.push(name);
    }
    let (mut reigns, mut acknowledged, mut unknown) = (0, 0, 0);
    for (handle, versions) in &chunks {
        for (number, version) in versions {
            reigns += version.primaries.len();
            acknowledged += version.acknowledged.len();
            if version.primaries.len() > 1 {
                let who: Vec<&str> =
                    version.primaries.keys().filter_map(|(log, _)| names.get(*log).copied()).collect();
                findings.add("two primaries", || format!("version {number} of chunk {handle} has {who:?}"));
            }
            unknown += usize::from(version.members == 0 && !version.acknowledged.is_empty());
            check_members(*handle, *number, version, &mut findings);
        }
        check_reigns(*handle, versions, &mut findings);
    }
    let count = chunks.len();
    let note = format!("leases: {reigns} reigns over {count} chunks, {acknowledged} mutations acknowledged");
    findings.verdict.note(note);
    if wrote && acknowledged == 0 {
        findings.verdict.doubt("leases: clients were told of writes, and no chunkserver has traced one");
    }
    // A kill takes the line of one server at most: who stored it on others said so there.
    if unknown > 0 {
        findings.verdict.doubt(format!("leases: of {unknown} versions nobody said who is a member"));
    }
}

/// What is known of a chunk on one server.
#[derive(Default)]
struct Here {
    /// The newest version stored.
    newest: u64,
    /// The last serial applied at it.
    last: Option<u64>,
    /// Whether the server has started again since it stored it.
    restarted: bool,
}

/// What one server wrote: in the order in which it happened there.
fn read_log(log: usize, name: &str, text: &str, chunks: &mut Chunks, findings: &mut Findings<'_>) {
    let mut here: BTreeMap<u64, Here> = BTreeMap::new();
    let (mut starts, mut read, mut ours) = (0, 0, 0);
    for line in text.lines() {
        if line.contains("chunkserver started") {
            // What was applied and not yet durable is gone: which serial comes next is not known.
            for chunk in here.values_mut() {
                (chunk.last, chunk.restarted) = (None, true);
            }
            starts += 1;
        }
        ours += usize::from(line.contains(TARGET));
        let Some(line) = parse(line) else { continue };
        read += 1;
        let Line { what, handle, version, at_ns } = line;
        let Here { newest, last, restarted } = here.entry(handle).or_default();
        // The line that says that it was stored went with the kill.
        if starts > 1 && version > *newest && !matches!(what, What::Stored(_)) {
            (*newest, *last, *restarted) = (version, None, true);
        }
        let known = chunks.entry(handle).or_default().entry(version).or_default();
        match what {
            What::Stored(members) => {
                if version < *newest {
                    findings.add("back", || {
                        format!("{name} stored version {version} of chunk {handle} after {newest}")
                    });
                }
                if version > *newest {
                    (*newest, *last, *restarted) = (version, None, false);
                }
                known.members = known.members.max(members);
            }
            What::Primary => {
                if version < *newest {
                    findings.add("back", || {
                        format!("{name} became primary of chunk {handle} at {version} after {newest}")
                    });
                }
                known.primaries.entry((log, starts)).or_insert(at_ns);
            }
            What::Applied(serial) => {
                if version < *newest {
                    findings.add("back", || {
                        format!("{name} applied {serial} of version {version} to chunk {handle} after it had stored {newest}")
                    });
                    continue;
                }
                if serial != last.unwrap_or(0) + 1 && !(*restarted && last.is_none()) {
                    findings.add("gap", || {
                        format!(
                            "{name} applied {serial} of version {version} to chunk {handle} after {last:?}"
                        )
                    });
                }
                *last = Some(serial);
                known.applied.entry(serial).or_default().entry(log).or_insert(at_ns);
            }
            What::Acknowledged(serial) => {
                known.acknowledged.entry(serial).or_insert(at_ns);
            }
        }
    }
    if ours > 0 && read == 0 {
        findings.verdict.doubt(format!("leases: none of {name}'s {ours} lines can be read"));
    }
}

/// What was acknowledged had been applied by every member.
fn check_members(handle: u64, number: u64, version: &Version, findings: &mut Findings<'_>) {
    for (serial, at) in &version.acknowledged {
        let applied = version.applied.get(serial).into_iter().flat_map(BTreeMap::values);
        let before = applied.filter(|applied| *applied <= at).count();
        if before < version.members {
            let members = version.members;
            findings.add("too few", || {
                format!("{serial} of version {number} of chunk {handle} was acknowledged with {before} of {members} members")
            });
        }
    }
}

/// An older version's primary was not at work any more when a newer one's began. A member that is in both had applied
/// what the older one acknowledges before it stored the newer version; so had the first of them all.
fn check_reigns(handle: u64, versions: &BTreeMap<u64, Version>, findings: &mut Findings<'_>) {
    // From the newest to the oldest: the first moment at which any newer primary was at work.
    let mut newer: Option<(u64, u64)> = None;
    for (number, version) in versions.iter().rev() {
        if let Some((began, later)) = newer {
            let first_of =
                |serial: &u64| version.applied.get(serial).and_then(|applied| applied.values().min());
            let last = version.acknowledged.keys().filter_map(first_of).max();
            if let Some(last) = last.filter(|last| **last > began) {
                findings.add("two primaries", || {
                    format!("chunk {handle}: version {number} was still written at {last}, version {later} had begun at {began}")
                });
            }
        }
        if let Some(began) = version.primaries.values().min()
            && newer.is_none_or(|(other, _)| *began < other)
        {
            newer = Some((*began, *number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs of `kind version [serial] at` or `started`, one for each server; all are members of every version.
    fn judge(logs: &[&str]) -> Verdict {
        let line = |line: &str| {
            if line == "started" {
                return "2026-11-22T10:00:00Z INFO gfs_chunkserver: chunkserver started".to_owned();
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let (version, at) = (words[1], words[words.len() - 1]);
            let more = match words[0] {
                "stored" => format!(
                    "members=\"{}\" ",
                    (1..=logs.len()).map(|id| id.to_string()).collect::<Vec<_>>().join(",")
                ),
                "primary" => String::new(),
                _ => format!("serial={} ", words[2]),
            };
            format!(
                "2026-11-22T10:00:00Z TRACE gfs::lease: {} handle=7 version={version} {more}at_ns={at}",
                words[0]
            )
        };
        let texts: Vec<String> = logs
            .iter()
            .map(|log| {
                log.split(", ").map(line).collect::<Vec<_>>().join("\n")
                    + "\n2026 TRACE gfs::lease: applied handle=7 ver"
            })
            .collect();
        let mut verdict = Verdict::new();
        check(texts.iter().map(|text| ("s", text.as_str())), false, &mut verdict);
        verdict
    }
    fn first(verdict: &Verdict) -> &str {
        verdict.findings.first().map_or("", |finding| finding.split(':').next().unwrap())
    }

    #[test]
    fn primaries_one_after_the_other_are_good() {
        let verdict = judge(&[
            "stored 1 1, primary 1 2, applied 1 1 3, acknowledged 1 1 6, applied 1 2 7, stored 2 20, applied 2 1 24",
            "stored 1 1, applied 1 1 5, stored 2 20, primary 2 22, applied 2 1 23, acknowledged 2 1 25",
        ]);
        assert!(verdict.is_good(), "{verdict:?}");
        // A late acknowledgement of what all had before is no second primary at work.
        let verdict = judge(&[
            "stored 1 1, primary 1 2, applied 1 1 3, acknowledged 1 1 60",
            "stored 1 1, applied 1 1 5, stored 2 20, primary 2 22",
        ]);
        assert!(verdict.is_good(), "{verdict:?}");
        // A start in the middle: what comes next is not known, also if the line about the version went with the kill.
        let verdict = judge(&[
            "started, stored 1 1, primary 1 2, applied 1 1 3, applied 1 2 4, started, stored 2 20, applied 2 1 24",
            "started, stored 1 1, applied 1 1 5, started, applied 1 5 6, started, applied 2 3 25, applied 2 4 26",
        ]);
        assert!(verdict.is_good(), "{verdict:?}");
    }

    #[test]
    fn lines_that_can_not_be_read_prove_nothing() {
        let mut verdict = Verdict::new();
        check([("s", "2026 TRACE gfs::lease: took part chunk=7 at_ns=1")], false, &mut verdict);
        assert_eq!((verdict.is_good(), verdict.findings.len()), (false, 0), "{verdict:?}");
        // Nor do lines that are not there, if somebody wrote.
        for (wrote, good) in [(false, true), (true, false)] {
            let mut verdict = Verdict::new();
            check([("s", "2026 INFO gfs_chunkserver: chunkserver started")], wrote, &mut verdict);
            assert_eq!(verdict.is_good(), good, "{verdict:?}");
        }
        // Without its members nobody knows whether an acknowledgement came too early.
        let verdict = judge(&["primary 1 2, applied 1 1 3, acknowledged 1 1 4"]);
        assert_eq!((verdict.is_good(), verdict.findings.len()), (false, 0), "{verdict:?}");
    }

    #[test]
    fn each_broken_promise_is_found() {
        for (kind, logs) in [
            ("two primaries", &["stored 1 1, primary 1 2", "stored 1 1, primary 1 3"][..]),
            (
                "two primaries",
                &[
                    "stored 1 1, primary 1 2, applied 1 1 30, acknowledged 1 1 32",
                    "stored 1 1, applied 1 1 31, stored 2 40, primary 2 20",
                ],
            ),
            ("back", &["stored 2 1, applied 1 1 2"]),
            ("back", &["stored 2 1, stored 1 2"]),
            ("back", &["stored 2 1, primary 1 2"]),
            ("gap", &["stored 1 1, applied 1 1 2, applied 1 3 3"]),
            ("gap", &["stored 1 1, applied 1 2 2"]),
            ("gap", &["stored 1 1, applied 1 1 2, applied 1 1 3"]),
            // The first start is none in the middle.
            ("gap", &["started, stored 1 1, applied 1 2 2"]),
            ("gap", &["started, started, stored 1 1, applied 1 2 2"]),
            ("two primaries", &["started, stored 1 1, primary 1 2, started, primary 1 9"]),
            // Twice by one member is not once by each.
            (
                "too few",
                &[
                    "started, stored 1 1, primary 1 2, applied 1 1 3, acknowledged 1 1 9",
                    "started, stored 1 1, applied 1 1 4, started, applied 1 1 5",
                    "started, stored 1 1",
                ],
            ),
            ("too few", &["stored 1 1, primary 1 2, applied 1 1 3, acknowledged 1 1 4", "stored 1 1"]),
            (
                "too few",
                &["stored 1 1, primary 1 2, applied 1 1 3, acknowledged 1 1 4", "stored 1 1, applied 1 1 5"],
            ),
        ] {
            assert_eq!(first(&judge(logs)), kind, "{logs:?}");
        }
    }
}
