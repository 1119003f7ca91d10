//! Creates and lookups at the masters.

use anyhow::Result;

use crate::measure::closed_loop;
use crate::table::Table;
use crate::{Bench, limit};

/// Sessions, each with a connection of its own, that the callers share.
pub(crate) const CLIENTS_MAX: usize = 16;
/// About what one create takes in a log.
const COMMAND_BYTES: usize = 200;

/// Creates files and looks them up, by so many callers at once. `shown`: whether to do the one and the other.
pub(crate) async fn run(bench: &Bench, callers: usize, table: &mut Table, shown: (bool, bool)) -> Result<()> {
    if !shown.0 && !shown.1 {
        return Ok(());
    }
    let clients = bench.clients(callers.min(CLIENTS_MAX)).await?;
    let directory = format!("/bench/metadata-{}", rand::random::<u64>());
    for caller in 0..callers {
        clients[0].mkdir_all(&format!("{directory}/{caller}")).await?;
    }
    let echo = limit::echo(&bench.masters, callers, bench.duration / 2).await?.per_second;
    if shown.0 {
        let synced = limit::synced_log(&bench.directory, COMMAND_BYTES, callers, bench.duration / 2)?;
        let work = closed_loop(callers, bench.duration, |caller, count| {
            let client = clients[caller % clients.len()].clone();
            let path = format!("{directory}/{caller}/{count}");
            async move {
                client.create(&path, 3).await?;
                Ok(())
            }
        });
        let round = bench.operations(echo.min(synced), work).await?;
        let name = format!("create, {callers} at once");
        table.add(name, "ops/s", "the lower of gRPC echo and 3 synced logs", round);
    }
    if shown.1 {
        let work = closed_loop(callers, bench.duration, |caller, _| {
            let client = clients[caller % clients.len()].clone();
            let path = format!("{directory}/{caller}");
            async move {
                client.stat(&path).await?;
                Ok(())
            }
        });
        let round = bench.operations(echo, work).await?;
        table.add(format!("lookup, {callers} at once"), "ops/s", "gRPC echo", round);
    }
    clients[0].delete_tree(&directory).await?;
    Ok(())
}
