//! Bare limits: what the same disk, loopback and gRPC do without a file system of ours in between.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gfs_proto::net::{TcpNet, channel};
use gfs_proto::pb;
use gfs_proto::pb::master_client::MasterClient;

use crate::measure::{Rate, closed_loop};

const PIECE_BYTES: usize = 1 << 20;
/// What each server's log has beside it on this disk: three replicas.
pub(crate) const COPIES: usize = 3;
/// Size of a preallocated file that is written round and round, as a log is.
const LOG_BYTES: usize = 64 << 20;

/// GB/s at which `bytes` are written to three files each, in parallel and through the page cache, and synced at the end.
pub(crate) fn three_files(directory: &Path, bytes: u64) -> Result<f64> {
    let data = noise(PIECE_BYTES);
    let started = Instant::now();
    in_parallel(COPIES, |copy| {
        let path = scratch(directory, copy);
        let mut file = File::create(&path)?;
        for _ in 0..bytes / PIECE_BYTES as u64 {
            file.write_all(&data)?;
        }
        file.sync_data()?;
        std::fs::remove_file(&path)?;
        Ok(())
    })?;
    Ok(gigabytes(bytes, started.elapsed()))
}

/// GB/s at which `bytes` go from cached files over loopback sockets by `sendfile`, and are received.
pub(crate) fn sendfile(directory: &Path, bytes: u64, streams: usize) -> Result<f64> {
    let each = bytes / streams as u64;
    let data = noise(PIECE_BYTES);
    for stream in 0..streams {
        let mut file = File::create(scratch(directory, stream))?;
        for _ in 0..each / PIECE_BYTES as u64 {
            file.write_all(&data)?;
        }
    }
    let started = Instant::now();
    in_parallel(streams, |stream| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::scope(|scope| {
            let receiver = scope.spawn(move || receive(TcpStream::connect(address)?));
            let (socket, _) = listener.accept()?;
            rustix::net::sockopt::set_tcp_congestion(&socket, "cubic").ok();
            let file = File::open(scratch(directory, stream))?;
            let mut at = 0;
            while at < each {
                rustix::fs::sendfile(&socket, &file, Some(&mut at), PIECE_BYTES)?;
            }
            drop(socket);
            let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver died"))??;
            anyhow::ensure!(received == each, "{received} bytes of {each} arrived");
            Ok(())
        })
    })?;
    let elapsed = started.elapsed();
    for stream in 0..streams {
        std::fs::remove_file(scratch(directory, stream))?;
    }
    Ok(gigabytes(each * streams as u64, elapsed))
}

fn receive(mut socket: TcpStream) -> Result<u64> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut received = 0;
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok(received),
            count => received += count as u64,
        }
    }
}

/// Records a second that three logs at once take on this disk, `batch` records of `record_bytes` to each write and fdatasync.
pub(crate) fn synced_log(
    directory: &Path,
    record_bytes: usize,
    batch: usize,
    duration: Duration,
) -> Result<f64> {
    let data = noise(record_bytes * batch);
    let files: Vec<File> =
        (0..COPIES).map(|copy| preallocated(&scratch(directory, copy))).collect::<Result<_>>()?;
    let started = Instant::now();
    let counts = in_parallel(COPIES, |copy| {
        let mut at = 0;
        let mut count = 0;
        while started.elapsed() < duration {
            files[copy].write_all_at(&data, at as u64)?;
            rustix::fs::fdatasync(&files[copy])?;
            at = if at + 2 * data.len() > LOG_BYTES { 0 } else { at + data.len() };
            count += batch;
        }
        Ok(count)
    })?;
    let elapsed = started.elapsed();
    for copy in 0..COPIES {
        std::fs::remove_file(scratch(directory, copy))?;
    }
    // Each record goes to all three.
    #[expect(clippy::cast_precision_loss, reason = "a count of records")]
    let slowest = counts.into_iter().min().unwrap_or(0) as f64;
    Ok(slowest / elapsed.as_secs_f64())
}

/// Round trips a second of the smallest question to a master: gRPC alone.
pub(crate) async fn echo(masters: &[String], callers: usize, duration: Duration) -> Result<Rate> {
    let master = masters.first().context("no master")?;
    let channels = callers.min(crate::metadata::CLIENTS_MAX);
    let clients = (0..channels)
        .map(|_| {
            Ok(MasterClient::new(channel(std::sync::Arc::new(TcpNet), master, Duration::from_secs(10))?))
        })
        .collect::<Result<Vec<_>>>()?;
    closed_loop(callers, duration, |caller, _| {
        let mut client = clients[caller % channels].clone();
        async move {
            client.leader(pb::LeaderRequest::default()).await?;
            Ok(())
        }
    })
    .await
}

fn preallocated(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    let zeros = vec![0; PIECE_BYTES];
    for at in (0..LOG_BYTES).step_by(PIECE_BYTES) {
        file.write_all_at(&zeros, at as u64)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn scratch(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("limit-{number}"))
}

/// Runs the same on several threads; their results in order.
fn in_parallel<T: Send>(threads: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread died"))?)
            .collect()
    })
}

/// Bytes that no layer can compress or skip.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    rand::fill(&mut data[..]);
    data
}

#[expect(clippy::cast_precision_loss, reason = "a rate to be shown with three digits")]
pub(crate) fn gigabytes(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e9 / elapsed.as_secs_f64()
}
