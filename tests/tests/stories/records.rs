//! Records, and replicas looked at one by one.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gfs_tests::{Cluster, Role, Shape, eventually};

use crate::{json_lines, printed};

const PATIENCE: Duration = Duration::from_secs(30);
/// Which byte of a chunk is damaged.
const DAMAGED_AT: usize = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn lines_go_in_as_records_and_come_out_once_and_in_order() {
    let cluster = Cluster::start(Shape { chunk_bytes: 256 << 10, ..Shape::default() }).await.unwrap();
    let lines: String = (0..40).map(|number| format!("{number} {}\n", "x".repeat(20_000))).collect();
    let local = cluster.directory().join("lines");
    std::fs::write(&local, &lines).unwrap();
    let local = local.to_str().unwrap();
    let offsets = printed(&cluster.run_gfs(&["append", "--records", "/log", local]).unwrap());
    assert_eq!((offsets.lines().count(), offsets.lines().next()), (40, Some("0")));
    assert_eq!(printed(&cluster.run_gfs(&["cat", "--records", "/log"]).unwrap()), lines);
    let records = json_lines(&cluster.run_gfs(&["cat", "--records", "--json", "/log"]).unwrap());
    let told: Vec<u64> = offsets.lines().map(|offset| offset.parse().unwrap()).collect();
    let found: Vec<u64> = records.iter().map(|record| record["position"].as_u64().unwrap()).collect();
    assert_eq!(told, found);
    let from = records[38]["next"].to_string();
    let last = printed(&cluster.run_gfs(&["cat", "--records", "--from", &from, "/log"]).unwrap());
    assert!(last.starts_with("39 x") && last.lines().count() == 1, "{last}");
    printed(&cluster.run_gfs(&["append", "--records=whole", "/whole", "/proc/version"]).unwrap());
    let whole = printed(&cluster.run_gfs(&["cat", "--records", "/whole"]).unwrap());
    assert_eq!(whole.trim_end(), std::fs::read_to_string("/proc/version").unwrap().trim_end());
    let too_long = cluster.directory().join("long");
    std::fs::write(&too_long, "y".repeat(70_000)).unwrap();
    let output = cluster.run_gfs(&["append", "--records", "/log", too_long.to_str().unwrap()]).unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_compared_and_a_flipped_bit_is_found() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let local = cluster.directory().join("local");
    std::fs::write(&local, &bytes).unwrap();
    printed(&cluster.run_gfs(&["put", local.to_str().unwrap(), "/f"]).unwrap());
    let verify = ["chunks", "--verify", "--json", "/f"];
    let chunk = json_lines(&cluster.run_gfs(&verify).unwrap()).remove(0);
    assert_eq!((&chunk["verdict"], &chunk["replicas"][2]["length"]), (&"alike".into(), &400_000.into()));
    for replica in chunk["replicas"].as_array().unwrap() {
        let server = format!("s{}", replica["server"]);
        let output = cluster.run_gfs(&["cat", "--replica", &server, "/f"]).unwrap();
        assert!(output.status.success() && output.stdout == bytes, "{server}");
    }
    let stranger = cluster.run_gfs(&["cat", "--replica", "s99", "/f"]).unwrap();
    assert_eq!(stranger.status.code(), Some(3));
    let victim = cluster.data_of(&cluster.names(Role::Chunkserver)[0]);
    eventually("the damage is told", PATIENCE, async || {
        // Each time anew: the scrubber may have found it, and the replica may have been made again.
        damage(&victim, bytes.len() as u64, !bytes[DAMAGED_AT])?;
        let output = cluster.run_gfs(&verify)?;
        anyhow::ensure!(output.status.code() == Some(6), "{output:?}");
        Ok(())
    })
    .await
    .unwrap();
    let read = cluster.run_gfs(&["cat", "/f"]).unwrap();
    assert!(read.status.success() && read.stdout == bytes, "damage must never be read");
}

/// Writes a wrong byte into every chunk file of this length.
fn damage(directory: &Path, length: u64, byte: u8) -> std::io::Result<()> {
    for file in files_below(directory)? {
        if std::fs::metadata(&file).is_ok_and(|metadata| metadata.len() == length) {
            std::fs::OpenOptions::new().write(true).open(file)?.write_all_at(&[byte], DAMAGED_AT as u64)?;
        }
    }
    Ok(())
}

fn files_below(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => files.extend(files_below(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}
