//! Small record appends, each on three disks before it is acknowledged: to one file, and to many.

use anyhow::Result;
use bytes::Bytes;

use crate::measure::closed_loop;
use crate::table::Table;
use crate::{Bench, limit};

const RECORD_BYTES: usize = 4096;
/// Files that the appenders share.
const FILES_MAX: usize = 16;

/// Appends by so many appenders at once.
pub(crate) async fn run(bench: &Bench, appenders: usize, table: &mut Table) -> Result<()> {
    for files in [1, appenders.min(FILES_MAX)] {
        to_files(bench, appenders, files, table).await?;
        if appenders == 1 {
            break;
        }
    }
    Ok(())
}

async fn to_files(bench: &Bench, appenders: usize, count: usize, table: &mut Table) -> Result<()> {
    let bare = limit::synced_log(&bench.directory, RECORD_BYTES, appenders, bench.duration / 2)?;
    let client = bench.client().await?;
    client.mkdir_all("/bench/append").await?;
    let mut files = Vec::new();
    for number in 0..count {
        let file = client.create(&format!("/bench/append/{number}"), 3).await?;
        // The first record makes the chunk and its lease.
        file.append(Bytes::from_static(b"first")).await?;
        files.push(file);
    }
    let record = Bytes::from(limit::noise(RECORD_BYTES));
    let work = closed_loop(appenders, bench.duration, |appender, _| {
        let (file, record) = (files[appender % files.len()].clone(), record.clone());
        async move {
            file.append(record).await?;
            Ok(())
        }
    });
    let round = bench.operations(bare, work).await?;
    let shape = if count == 1 { "one file".to_owned() } else { format!("{count} files") };
    let name = format!("append 4 KiB synced to {shape}, {appenders} at once");
    table.add(name, "ops/s", "3 logs at once, one fdatasync for all waiting", round);
    client.delete_tree("/bench/append").await?;
    Ok(())
}
