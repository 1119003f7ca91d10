//! Several workloads at once on one cluster; each keeps to its own files, and is judged by its own checker.

use std::sync::Arc;

use anyhow::Result;
use futures::future::{BoxFuture, try_join_all};
use futures::{FutureExt, TryFutureExt};

use super::{Minimum, Scene, Workload, append, bank, cells, namespace, snapshot};
use crate::recorder::part_of;
use crate::verdict::Verdict;

/// Each of its clients is one of each of these.
const PARTS: [Workload; 5] =
    [append::WORKLOAD, namespace::WORKLOAD, cells::WORKLOAD, bank::WORKLOAD, snapshot::WORKLOAD];

pub(super) const WORKLOAD: Workload = Workload {
    name: "mixed",
    minimum: Minimum { all_per_second: 10, quiet_per_second: 10 },
    prepare: |scene| {
        async move {
            for part in &PARTS {
                (part.prepare)(scene.part(part.name)).await?;
            }
            Ok(())
        }
        .boxed_local()
    },
    client: |scene, number| -> BoxFuture<'static, Result<()>> { client(&scene, number) },
    finish: |scene| {
        async move {
            for part in &PARTS {
                (part.finish)(scene.part(part.name)).await?;
            }
            Ok(())
        }
        .boxed_local()
    },
    check,
    ..Workload::PLAIN
};

/// At every part, or of eight clients most would be alone with their file or tree, where nothing concurs.
fn client(scene: &Arc<Scene>, number: u64) -> BoxFuture<'static, Result<()>> {
    let clients: Vec<_> = PARTS.iter().map(|part| (part.client)(scene.part(part.name), number)).collect();
    try_join_all(clients).map_ok(drop).boxed()
}

/// Each part of the history by its own checker.
fn check(text: &str) -> Result<Verdict> {
    let mut all = Verdict::new();
    for part in &PARTS {
        let lines: Vec<&str> =
            text.lines().filter(|line| part_of(line).is_none_or(|name| name == part.name)).collect();
        all.absorb(part.name, (part.check)(&lines.join("\n"))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Validity;

    #[test]
    fn each_part_is_judged_by_its_own_checker() {
        let line =
            |part: &str, at: u64, rest: &str| format!(r#"{{"part":"{part}","event":"{rest},"at_ns":{at}}}"#);
        let mut text = [
            line("namespace", 1, r#"call","process":1,"call":{"create":{"path":"/x"}}"#),
            line("bank", 2, r#"call","process":2,"call":{"mkdir":{"path":"/x"}}"#),
            line("bank", 3, r#"return","process":2,"outcome":{"type":"ok","value":{"rev":3,"entries":[]}}"#),
            line(
                "namespace",
                4,
                r#"return","process":1,"outcome":{"type":"ok","value":{"rev":4,"entries":[]}}"#,
            ),
        ]
        .join("\n");
        let ok = check(&text).unwrap();
        // Of the others nothing was read back.
        assert_eq!((ok.ok, ok.findings.len(), ok.validity), (2, 0, Validity::Unknown));
        text.push_str(&format!(
            "\n{}\n{}",
            line("bank", 5, r#"call","process":2,"call":{"stat":{"path":"/y"}}"#),
            line("bank", 6, r#"return","process":2,"outcome":{"type":"ok","value":{"rev":4,"entries":[]}}"#)
        ));
        let bad = check(&text).unwrap();
        assert_eq!(bad.validity, Validity::Bad);
        assert!(bad.findings[0].starts_with("bank: "), "{bad:?}");
    }
}
