//! Records through a client: appended, read in pieces, among padding and damage.

use bytes::Bytes;
use gfs_proto::Error;

use super::start;
use crate::fake::Verdict;

async fn rest(reader: &mut crate::record::RecordReader) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    while let Some(record) = reader.next().await.unwrap() {
        payloads.push(record.payload);
    }
    payloads
}

#[tokio::test(start_paused = true)]
async fn records_over_chunk_ends_are_read_once_each_and_a_reader_resumes_where_it_stopped() {
    let (_fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    // Four do not fit a chunk with their heads: padding follows the third one of each.
    let payloads: Vec<Bytes> = (0..10_u8).map(|number| vec![number; 1_000_000].into()).collect();
    for payload in &payloads {
        file.append_record(payload).await.unwrap();
    }
    let mut reader = file.record_reader(0);
    let first = reader.next().await.unwrap().unwrap();
    let second = reader.next().await.unwrap().unwrap();
    assert_eq!((first.position, second.position, second.next), (0, first.next, reader.position()));
    assert_eq!((second.id.producer, second.id.sequence), (first.id.producer, first.id.sequence + 1));
    let mut resumed = file.record_reader(second.next);
    assert!(rest(&mut resumed).await == payloads[2..]);
    assert!(rest(&mut reader).await == payloads[2..]);
    assert_eq!(reader.damaged_bytes(), 0);
    // What is appended later is found by the same reader.
    file.append_record(b"later").await.unwrap();
    assert_eq!(rest(&mut reader).await, ["later"]);
}

#[tokio::test(start_paused = true)]
async fn damage_and_repeats_are_passed_over() {
    let (_fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let (id, _) = file.append_record(b"one").await.unwrap();
    file.append(Bytes::from_static(b"no record")).await.unwrap();
    let (_, position) = file.append_record(b"broken").await.unwrap();
    file.append_record_as(id, b"one").await.unwrap();
    file.append_record(b"").await.unwrap();
    file.write_at(position + 34, Bytes::from_static(b"!")).await.unwrap();
    let mut reader = file.record_reader(0);
    assert_eq!(rest(&mut reader).await, ["one", ""]);
    assert_eq!(reader.damaged_bytes(), 9 + 38);
}

#[tokio::test(start_paused = true)]
async fn a_payload_over_a_quarter_of_a_chunk_is_refused_with_its_limit() {
    let (_fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let limit = client.chunk_bytes().record_bytes_max() as usize - crate::record::HEAD_BYTES;
    let error = file.append_record(&vec![1; limit + 1]).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: told, .. } if told == limit as u64), "{error}");
    file.append_record(&vec![1; limit]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_goes_on_after_an_error() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.append_record(b"one").await.unwrap();
    let mut refuse = true;
    fake.judge(move |call, _| match call.contains("locate") && std::mem::take(&mut refuse) {
        true => Verdict::Refuse(Error::bad_argument("no")),
        false => Verdict::Go,
    });
    let mut reader = file.record_reader(0);
    reader.next().await.unwrap_err();
    assert_eq!(rest(&mut reader).await, ["one"]);
}
