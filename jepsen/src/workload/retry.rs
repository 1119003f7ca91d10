//! Exactly once: the work of other workloads over connections that break all the time, so that clients lose answers
//! and repeat requests under their ids, over changes of primaries, chunks and masters.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Minimum, Workload, append, cells, namespace};
use crate::{check, flaky};

/// The directory of the names.
const ROOT: &str = "/retry-names";

/// Records: each is in the file once.
pub(super) const APPENDS: Workload = Workload {
    name: "retry",
    minimum: Minimum { all_per_second: 5, quiet_per_second: 10 },
    prepare: |scene| append::prepare(scene, "/retry").boxed_local(),
    client: |scene, number| -> BoxFuture<'static, anyhow::Result<()>> {
        append::client(scene, number, "/retry", flaky::environment()).boxed()
    },
    finish: |scene| append::finish(scene, "/retry").boxed_local(),
    check: check::append::check,
    ..Workload::PLAIN
};

/// Positioned writes: a repeat never undoes what came after it.
pub(super) const CELLS: Workload = Workload {
    name: "retry-cells",
    minimum: Minimum { all_per_second: 5, quiet_per_second: 10 },
    prepare: |scene| cells::prepare(scene, "/retry-cells").boxed_local(),
    client: |scene, number| -> BoxFuture<'static, anyhow::Result<()>> {
        cells::client(scene, number, "/retry-cells", flaky::environment()).boxed()
    },
    finish: |scene| cells::finish(scene, "/retry-cells").boxed_local(),
    check: check::cells::check,
    ..Workload::PLAIN
};

/// Names: a repeated create says what the first one said, not that the name is taken.
pub(super) const NAMES: Workload = Workload {
    name: "retry-names",
    minimum: Minimum { all_per_second: 3, quiet_per_second: 3 },
    prepare: |scene| async move { super::speaker::make_root(&scene, ROOT).await }.boxed_local(),
    client: |scene, number| -> BoxFuture<'static, anyhow::Result<()>> {
        namespace::client(scene, number, ROOT, flaky::environment()).boxed()
    },
    finish: |scene| namespace::finish(scene, ROOT).boxed_local(),
    check: check::namespace::check,
    writes_chunks: false,
    ..Workload::PLAIN
};
