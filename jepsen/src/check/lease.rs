//! Judges what the chunkservers traced (`gfs::lease`): one primary at a time, and one order of mutations everywhere.
//!
//! Per chunk: a version has one primary. No member applies a mutation of an older version after it has stored a newer
//! one, and each applies the serials of a version without gaps. What is acknowledged was applied by every member of its
//! version before. And reigns don't overlap: what an older version acknowledged had reached a member before a newer
//! version's primary began. The times are the kernel's monotonic clock, one for all processes of this machine.

use std::collections::BTreeMap;

use crate::verdict::Verdict;

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
    let (_, rest) = line.split_once(" gfs::lease: ")?;
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
    /// Who was its primary, and since when.
    primaries: BTreeMap<usize, u64>,
    /// By serial: when each server applied it.
    applied: BTreeMap<u64, Vec<u64>>,
    /// When each serial was acknowledged.
    acknowledged: BTreeMap<u64, u64>,
}

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

/// Judges the logs of all chunkservers, by name.
pub(crate) fn check<'a>(logs: impl IntoIterator<Item = (&'a str, &'a str)>, verdict: &mut Verdict) {
    let mut chunks = Chunks::new();
    let mut findings = Findings { verdict, told: BTreeMap::new() };
    let mut names = Vec::new();
    for (name, text) in logs {
        read_log(names.len(), name, text, &mut chunks, &mut findings);
        names.push(name);
    }
    let (mut reigns, mut acknowledged) = (0, 0);
    for (handle, versions) in &chunks {
        for (number, version) in versions {
            reigns += version.primaries.len();
            acknowledged += version.acknowledged.len();
            if version.primaries.len() > 1 {
                let who: Vec<&str> =
                    version.primaries.keys().filter_map(|log| names.get(*log).copied()).collect();
                findings.add("two primaries", || format!("version {number} of chunk {handle} has {who:?}"));
            }
            check_members(*handle, *number, version, &mut findings);
        }
        check_reigns(*handle, versions, &mut findings);
    }
    let count = chunks.len();
    let note = format!("leases: {reigns} reigns over {count} chunks, {acknowledged} mutations acknowledged");
    findings.verdict.note(note);
}

/// What one server wrote: in the order in which it happened there.
fn read_log(log: usize, name: &str, text: &str, chunks: &mut Chunks, findings: &mut Findings<'_>) {
    // By chunk: the newest version stored here, and the last serial applied at it.
    let mut here: BTreeMap<u64, (u64, Option<u64>)> = BTreeMap::new();
    let mut restarted = false;
    for line in text.lines() {
        if line.contains("chunkserver started") {
            // What was applied and not yet durable is gone: which serial comes next is not known.
            here.values_mut().for_each(|(_, last)| *last = None);
            restarted = true;
        }
        let Some(line) = parse(line) else { continue };
        let Line { what, handle, version, at_ns } = line;
        let (newest, last) = here.entry(handle).or_default();
        let known = chunks.entry(handle).or_default().entry(version).or_default();
        match what {
            What::Stored(members) => {
                if version < *newest {
                    findings.add("back", || {
                        format!("{name} stored version {version} of chunk {handle} after {newest}")
                    });
                }
                if version > *newest {
                    (*newest, *last) = (version, None);
                }
                known.members = known.members.max(members);
            }
            What::Primary => {
                if version < *newest {
                    findings.add("back", || {
                        format!("{name} became primary of chunk {handle} at {version} after {newest}")
                    });
                }
                known.primaries.entry(log).or_insert(at_ns);
            }
            What::Applied(serial) => {
                if version < *newest {
                    findings.add("back", || {
                        format!("{name} applied {serial} of version {version} to chunk {handle} after it had stored {newest}")
                    });
                    continue;
                }
                if serial != last.unwrap_or(0) + 1 && !(restarted && last.is_none()) {
                    findings.add("gap", || {
                        format!(
                            "{name} applied {serial} of version {version} to chunk {handle} after {last:?}"
                        )
                    });
                }
                *last = Some(serial);
                known.applied.entry(serial).or_default().push(at_ns);
            }
            What::Acknowledged(serial) => {
                known.acknowledged.entry(serial).or_insert(at_ns);
            }
        }
    }
}

/// What was acknowledged had been applied by every member.
fn check_members(handle: u64, number: u64, version: &Version, findings: &mut Findings<'_>) {
    for (serial, at) in &version.acknowledged {
        let applied = version.applied.get(serial).map_or(&[][..], Vec::as_slice);
        let before = applied.iter().filter(|applied| *applied <= at).count();
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
                |serial: &u64| version.applied.get(serial).and_then(|applied| applied.iter().min());
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

    /// Logs of `kind version [serial] at`, one for each server; three members a version.
    fn judge(logs: &[&str]) -> Verdict {
        let line = |line: &str| {
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
        check(texts.iter().map(|text| ("s", text.as_str())), &mut verdict);
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
