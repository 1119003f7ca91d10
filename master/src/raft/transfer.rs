//! Checkpoints on the wire: files in checked frames. Progress is watched on both sides, never the whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gfs_proto::net::blocking;
use gfs_proto::{Error, Result, fault, pb};
use pb::raft_client::RaftClient;
use pb::snapshot_frame::Part;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::room::room_of;
use super::store::{CheckpointFile, CheckpointHandle, FILES_MAX, check_file_name, sync_dir};
use super::types::SnapshotMeta;

/// Bytes of one data frame.
const FRAME_BYTES: usize = 1 << 20;
/// Frames that wait for the connection.
const FRAMES_MAX: usize = 4;
/// A transfer without a frame for this long has ended.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Room that a checkpoint leaves on the receiver's disk: without any, nothing there can be opened again.
const ROOM_BYTES_MIN: u64 = 64 << 20;
/// How long the receiver may take to install the whole.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

fn stalled() -> Error {
    Error::unavailable("the transfer of a checkpoint stands still")
}

fn frame(part: Part) -> pb::SnapshotFrame {
    pb::SnapshotFrame { part: Some(part) }
}

/// Sends a checkpoint and waits until it is installed.
///
/// # Errors
/// What the connection, the receiver or our disk says.
pub(crate) async fn send(
    mut client: RaftClient<Channel>,
    start: pb::RaftMessage,
    checkpoint: &CheckpointHandle,
) -> Result<pb::RaftMessage> {
    let (frames, queue) = mpsc::channel(FRAMES_MAX);
    let produce = async {
        let produced = produce(&frames, start, checkpoint).await;
        // Without `Done` the receiver throws the rest away.
        drop(frames);
        produced
    };
    let call = client.install_snapshot(ReceiverStream::new(queue));
    tokio::pin!(produce, call);
    tokio::select! {
        // An answer before the end is a refusal.
        answer = &mut call => return Ok(answer?.into_inner()),
        produced = &mut produce => produced?,
    }
    let answer = tokio::time::timeout(INSTALL_TIMEOUT, call).await.map_err(|_| stalled())?;
    Ok(answer?.into_inner())
}

async fn push(frames: &mpsc::Sender<pb::SnapshotFrame>, part: Part) -> Result<()> {
    match tokio::time::timeout(IDLE_TIMEOUT, frames.send(frame(part))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Error::unavailable("the receiver of a checkpoint has hung up")),
        Err(_) => Err(stalled()),
    }
}

async fn produce(
    frames: &mpsc::Sender<pb::SnapshotFrame>,
    start: pb::RaftMessage,
    checkpoint: &CheckpointHandle,
) -> Result<()> {
    fault::try_reach("raft::transfer::before_send").await?;
    push(frames, Part::Start(start)).await?;
    for file in checkpoint.files() {
        push(frames, Part::File(pb::SnapshotFile { name: file.name.clone(), length: file.length })).await?;
        let mut source = File::open(checkpoint.file_path(file)).map_err(Error::internal)?;
        let mut hasher = crc32fast::Hasher::new();
        let mut left = file.length;
        while left > 0 {
            let count = usize::try_from(left).map_or(FRAME_BYTES, |left| left.min(FRAME_BYTES));
            let mut piece = vec![0; count];
            blocking(|| source.read_exact(&mut piece)).map_err(Error::internal)?;
            hasher.update(&piece);
            left -= count as u64;
            push(frames, Part::Data(piece.into())).await?;
        }
        let crc = hasher.finalize();
        if crc != file.crc {
            tracing::error!(file = file.name, "a checkpoint is damaged on the disk");
            return Err(Error::internal("a checkpoint is damaged on the disk"));
        }
        push(frames, Part::End(pb::SnapshotFileEnd { crc })).await?;
    }
    push(frames, Part::Done(pb::SnapshotDone {})).await
}

/// A checkpoint on its way in; removes its directory unless it is finished.
pub(crate) struct Receiver {
    path: PathBuf,
    files: Vec<CheckpointFile>,
    open: Option<Incoming>,
    finished: bool,
}

struct Incoming {
    file: File,
    name: String,
    length: u64,
    left: u64,
    hasher: crc32fast::Hasher,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "half a checkpoint stays until the next start");
        }
    }
}

fn bad(what: &str) -> Error {
    Error::bad_argument(format!("checkpoint: {what}"))
}

impl Receiver {
    /// Receives into this directory, which is empty.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, files: Vec::new(), open: None, finished: false }
    }

    /// Takes the frames after the start until the whole is on the disk.
    ///
    /// # Errors
    /// What the connection or the disk says, or which frame is wrong.
    pub(crate) async fn receive(
        mut self,
        stream: &mut tonic::Streaming<pb::SnapshotFrame>,
        meta: SnapshotMeta,
    ) -> Result<CheckpointHandle> {
        while let Some(frame) = next(stream).await? {
            let part = frame.part.ok_or_else(|| bad("empty frame"))?;
            if blocking(|| self.take(part))? {
                fault::try_reach("raft::transfer::received").await?;
                self.finished = true;
                let files = std::mem::take(&mut self.files);
                let handle = CheckpointHandle::new(self.path.clone(), meta, files);
                // The machine keeps links of its own.
                handle.retire();
                return Ok(handle);
            }
        }
        Err(bad("it ends too early"))
    }

    /// Takes one frame; true if it was the last.
    pub(super) fn take(&mut self, part: Part) -> Result<bool> {
        match (part, self.open.take()) {
            (Part::File(file), None) => self.begin(&file)?,
            (Part::Data(data), Some(mut open)) => {
                open.left = open.left.checked_sub(data.len() as u64).ok_or_else(|| bad("too long"))?;
                open.hasher.update(&data);
                open.file.write_all(&data).map_err(Error::unavailable)?;
                self.open = Some(open);
            }
            (Part::End(end), Some(open)) => self.end(&end, open)?,
            (Part::Done(_), None) => {
                sync_dir(&self.path).map_err(Error::unavailable)?;
                return Ok(true);
            }
            (Part::Start(_) | Part::File(_) | Part::Data(_) | Part::End(_) | Part::Done(_), _) => {
                return Err(bad("frame out of order"));
            }
        }
        Ok(false)
    }

    fn begin(&mut self, file: &pb::SnapshotFile) -> Result<()> {
        check_file_name(&file.name).map_err(|error| bad(&error.to_string()))?;
        if room_of(&self.path, ROOM_BYTES_MIN)? < file.length.max(1) {
            return Err(Error::unavailable(
                "no room for the leader's checkpoint: make some on this master's disk",
            ));
        }
        if self.files.len() >= FILES_MAX {
            return Err(bad("too many files"));
        }
        self.open = Some(Incoming {
            file: create_new(&self.path.join(&file.name)).map_err(Error::unavailable)?,
            name: file.name.clone(),
            length: file.length,
            left: file.length,
            hasher: crc32fast::Hasher::new(),
        });
        Ok(())
    }

    fn end(&mut self, end: &pb::SnapshotFileEnd, open: Incoming) -> Result<()> {
        let crc = open.hasher.finalize();
        if open.left != 0 || crc != end.crc {
            return Err(bad("a file arrived damaged"));
        }
        open.file.sync_all().map_err(Error::unavailable)?;
        self.files.push(CheckpointFile { name: open.name, length: open.length, crc });
        Ok(())
    }
}

/// Refuses a second file of the same name.
fn create_new(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

/// The next frame, in bounded time.
///
/// # Errors
/// What the connection says, or that nothing came.
pub(crate) async fn next(
    stream: &mut tonic::Streaming<pb::SnapshotFrame>,
) -> Result<Option<pb::SnapshotFrame>> {
    match tokio::time::timeout(IDLE_TIMEOUT, stream.message()).await {
        Ok(frame) => Ok(frame?),
        Err(_) => Err(stalled()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, length: u64) -> Part {
        Part::File(pb::SnapshotFile { name: name.into(), length })
    }
    fn data(bytes: &'static [u8]) -> Part {
        Part::Data(bytes.into())
    }
    fn end(bytes: &[u8]) -> Part {
        Part::End(pb::SnapshotFileEnd { crc: crc32fast::hash(bytes) })
    }

    /// The outcome of the last of these frames.
    fn take(parts: Vec<Part>) -> Result<bool> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receive");
        std::fs::create_dir(&path).unwrap();
        let mut receiver = Receiver::new(path.clone());
        let outcome = parts.into_iter().try_fold(false, |_, part| receiver.take(part));
        drop(receiver);
        assert!(!path.exists(), "half a checkpoint stays");
        outcome
    }

    #[test]
    fn only_whole_files_in_order_make_a_checkpoint() {
        let done = || Part::Done(pb::SnapshotDone {});
        assert_eq!(take(vec![file("a.sst", 4), data(b"ab"), data(b"cd"), end(b"abcd"), done()]), Ok(true));
        assert_eq!(take(vec![file("CURRENT", 0), end(b"")]), Ok(false));
        for bad in [
            vec![file("a.sst", 4), data(b"abc"), end(b"abc")],
            vec![file("a.sst", 4), data(b"abcde")],
            vec![file("a.sst", 4), data(b"abcd"), end(b"abce")],
            vec![file("a.sst", 0), done()],
            vec![file("a.sst", 0), file("b.sst", 0)],
            vec![file("a.sst", 0), end(b""), file("a.sst", 0)],
            vec![data(b"x")],
            vec![file("../a", 0)],
            vec![file("checkpoint.gfs", 0)],
            vec![file(".", 0)],
            // No disk has room for that.
            vec![file("a.sst", 1 << 60)],
        ] {
            assert!(take(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
