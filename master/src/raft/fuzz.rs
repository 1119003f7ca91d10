//! Fuzz targets of what Raft keeps and sends: log entries, votes, messages, checkpoints.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use gfs_fuzz::{Dice, hex};
use gfs_proto::pb;
use pb::snapshot_frame::Part;
use prost::Message;

use super::codec::{self, EntryRow, FORMAT, LogIdRow, SnapshotMetaRow, StoredMembershipRow, VoteRow};
use super::message::{
    AppendBody, AppendReply, SnapshotReply, SnapshotStart, TransferBody, TransferReply, VoteBody, VoteReply,
    open,
};
use super::store::{check_file_name, open_checkpoint, sweep_checkpoints};
use super::transfer::Receiver;
use super::types::{LogId, Vote};

/// Rows on the disk and bodies of messages: refused, or the same again; another format is refused.
pub(crate) fn codec(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    for row in [codec::from_disk::<EntryRow>(bytes.clone()).ok(), EntryRow::decode(bytes.clone()).ok()]
        .into_iter()
        .flatten()
    {
        if let Ok(entry) = row.into_entry() {
            let again: io::Result<EntryRow> = codec::from_disk(codec::to_disk(&EntryRow::from(&entry)));
            assert!(
                again.and_then(EntryRow::into_entry).is_ok_and(|again| again == entry),
                "an entry is lost"
            );
        }
    }
    if let Ok(row) = codec::from_disk::<VoteRow>(bytes.clone()) {
        assert_eq!(VoteRow::from(&Vote::from(row)), row);
    }
    if let Ok(row) = codec::from_disk::<LogIdRow>(bytes.clone()) {
        assert_eq!(LogIdRow::from(&LogId::from(row)), row);
    }
    for meta in
        [codec::from_disk::<SnapshotMetaRow>(bytes.clone()).ok(), SnapshotMetaRow::decode(bytes.clone()).ok()]
    {
        if let Some(Ok(meta)) = meta.map(SnapshotMetaRow::into_meta) {
            assert!(SnapshotMetaRow::from(&meta).into_meta().is_ok_and(|again| again == meta));
        }
    }
    if let Ok(Ok(stored)) = StoredMembershipRow::decode(bytes.clone()).map(StoredMembershipRow::into_stored) {
        assert!(StoredMembershipRow::from(&stored).into_stored().is_ok_and(|again| again == stored));
    }
    if data.first().is_some_and(|format| *format != FORMAT) {
        assert!(codec::from_disk::<EntryRow>(bytes.clone()).is_err(), "an unknown format is taken");
    }
    bodies(&pb::RaftMessage { format: u32::from(FORMAT), body: bytes.clone(), ..pb::RaftMessage::default() });
    let other = pb::RaftMessage { format: u32::from(FORMAT) + 1, body: bytes, ..pb::RaftMessage::default() };
    assert!(open::<VoteBody>(&other).is_err() && open::<AppendBody>(&other).is_err());
}

/// The message as each body that there is.
fn bodies(message: &pb::RaftMessage) {
    fn same<Body: Message + Default + PartialEq, Value>(
        message: &pb::RaftMessage,
        read: impl Fn(Body) -> io::Result<Value>,
        write: impl Fn(Value) -> Body,
    ) {
        if let Ok(value) = open::<Body>(message).and_then(&read) {
            let body = write(value);
            let again = read(Body::decode(&body.encode_to_vec()[..]).unwrap_or_default()).map(&write);
            assert!(again.is_ok_and(|again| again == body), "a message is lost on the wire");
        }
    }
    same(message, AppendBody::into_request, |request| AppendBody::from(&request));
    same(message, AppendReply::into_response, AppendReply::from);
    same(message, VoteBody::into_request, |request| VoteBody::from(&request));
    same(message, VoteReply::into_response, VoteReply::from);
    same(message, TransferBody::into_request, |request| TransferBody::from(&request));
    same(message, TransferReply::into_response, TransferReply::from);
    same(message, SnapshotStart::into_parts, |(vote, meta)| SnapshotStart::new(&vote, &meta));
    same(message, SnapshotReply::into_response, SnapshotReply::from);
}

/// Checkpoints on their way in and their manifests: only whole files under flat names, and nothing is left of the rest.
pub(crate) fn checkpoint(data: &[u8]) {
    let mut dice = Dice::new(data);
    let path = directory();
    if std::fs::create_dir_all(&path).is_err() {
        return;
    }
    match dice.below(5) {
        0 | 1 => {
            receive(&mut dice, &path);
            assert!(!path.exists(), "half a checkpoint stays");
        }
        2 => names(&mut dice, &path),
        _ => manifest(&mut dice, &path),
    }
    std::fs::remove_dir_all(&path).ok();
}

/// One directory for each process and thread.
fn directory() -> PathBuf {
    let thread = format!("{:?}", std::thread::current().id());
    let number: String = thread.chars().filter(char::is_ascii_digit).collect();
    std::env::temp_dir().join(format!("gfs-fuzz-{}-{number}", std::process::id()))
}

fn receive(dice: &mut Dice<'_>, path: &std::path::Path) {
    let mut receiver = Receiver::new(path.to_owned());
    // What should be there, and the file that is open.
    let (mut sent, mut whole) = (Vec::new(), Vec::new());
    while !dice.is_empty() {
        let part = part(dice, &sent);
        match &part {
            Part::File(file) => {
                (sent, whole) = (Vec::new(), [&whole[..], std::slice::from_ref(&file.name)].concat())
            }
            Part::Data(data) => sent.extend_from_slice(data),
            Part::Start(_) | Part::End(_) | Part::Done(_) => {}
        }
        match receiver.take(part) {
            Ok(false) => {}
            Ok(true) => {
                assert!(whole.iter().all(|name| check_file_name(name).is_ok() && path.join(name).is_file()));
                let there = std::fs::read_dir(path).map_or(0, Iterator::count);
                assert_eq!(there, whole.len(), "files that nobody sent");
                break;
            }
            Err(_) => break,
        }
    }
}

fn part(dice: &mut Dice<'_>, sent: &[u8]) -> Part {
    match dice.below(8) {
        0 | 1 => {
            let names = ["a.sst", "CURRENT", "../up", "b/c", "", ".", "checkpoint.gfs", "MANIFEST-1"];
            let name = match dice.below(4) {
                0 => String::from_utf8_lossy(dice.bytes(80)).into_owned(),
                _ => names[dice.index(names.len())].to_owned(),
            };
            let length = if dice.below(4) > 0 { dice.below(8) } else { dice.number() };
            Part::File(pb::SnapshotFile { name, length })
        }
        2 | 3 => Part::Data(Bytes::copy_from_slice(dice.bytes(8))),
        4 | 5 => {
            let crc = if dice.below(4) > 0 { crc32fast::hash(sent) } else { dice.small_number() };
            Part::End(pb::SnapshotFileEnd { crc })
        }
        6 => Part::Done(pb::SnapshotDone {}),
        _ => {
            let frame = pb::SnapshotFrame::decode(dice.bytes(40)).ok().and_then(|frame| frame.part);
            frame.unwrap_or(Part::Done(pb::SnapshotDone {}))
        }
    }
}

/// What lies about in the directory of the state: what is no checkpoint of ours stays, and no name makes a start fail.
fn names(dice: &mut Dice<'_>, path: &std::path::Path) {
    let kinds = ["checkpoint", "live", "building", "receive", "other", ""];
    let mut strange = 0;
    for _ in 0..dice.below(6) {
        let kind = kinds[dice.index(kinds.len())];
        let rest = match dice.below(3) {
            0 => format!("{}-{}", dice.number(), u64::MAX),
            1 => dice.number().to_string(),
            _ => hex(dice.bytes(8)),
        };
        let is_new = std::fs::create_dir(path.join(format!("{kind}-{rest}"))).is_ok();
        strange += usize::from(is_new && matches!(kind, "other" | ""));
    }
    let swept = sweep_checkpoints(path, None);
    assert!(swept.is_ok_and(|(newest, _)| newest.is_none()), "an empty directory is no checkpoint");
    assert_eq!(std::fs::read_dir(path).map_or(0, Iterator::count), strange);
}

fn manifest(dice: &mut Dice<'_>, path: &std::path::Path) {
    let proven = dice.below(8) > 0;
    let mut bytes = if dice.below(8) > 0 { vec![FORMAT] } else { vec![dice.byte()] };
    bytes.extend_from_slice(dice.rest());
    if proven {
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    }
    let written = std::fs::write(path.join("a.sst"), b"four")
        .and_then(|()| std::fs::write(path.join("checkpoint.gfs"), &bytes));
    if written.is_err() {
        return;
    }
    if let Ok(checkpoint) = open_checkpoint(path) {
        assert!(proven && bytes[0] == FORMAT);
        for file in checkpoint.files() {
            assert!(file.name == "a.sst" && file.length == 4, "a file that is not there");
        }
    }
}
