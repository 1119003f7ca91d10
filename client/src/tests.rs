//! The client against a cluster in memory: what it does when things go wrong. Time is virtual.

mod check;
mod losses;
mod masters;
mod reading;
mod records;
mod trash;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use futures::future::join_all;
use gfs_proto::Error;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tracing::field::Field;
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::client::Client;
use crate::fake::{CHUNK_BYTES, Fake, Verdict};
use crate::options::Options;
use crate::transfer::{PutOptions, TransferError, is_unfinished};

/// Bytes of a unit.
const UNIT: usize = 1 << 20;

async fn start() -> (Fake, Client) {
    let fake = Fake::start();
    let client = fake.client(Options::default()).await;
    (fake, client)
}

/// Bytes that differ at every position within a few chunks.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at / 251 + at % 251) % 256).unwrap()).collect()
}

async fn put(client: &Client, path: &str, bytes: &[u8]) -> Result<u64, TransferError> {
    client.put(bytes, path, PutOptions { replication: 0, replace: true }, |_| {}).await
}

/// So many at a time, and none of them waits longer than its patience.
async fn creations_give_up_together(client: &Client, count: u32) {
    let began = Instant::now();
    let told = join_all((0..count).map(|at| {
        let (client, path) = (client.clone(), format!("/{at}"));
        async move { client.create(&path, 0).await.map(drop) }
    }))
    .await;
    for told in told {
        assert!(matches!(told, Err(Error::DeadlineExceeded { .. })), "{told:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(35), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_file_of_several_chunks_goes_in_and_out_whole() {
    let (fake, client) = start().await;
    let bytes = pattern(2 * CHUNK_BYTES as usize + 300_001);
    let mut heard = Vec::new();
    let options = PutOptions::default();
    client.put(&bytes[..], "/a", options, |count| heard.push(count)).await.unwrap();
    assert_eq!(heard.last(), Some(&(bytes.len() as u64)));
    assert!(heard.is_sorted());
    assert!(fake.with(|cluster| cluster.content("/a")) == bytes);
    assert_eq!(fake.with(|cluster| cluster.names.len()), 1, "the hidden name is gone");

    let file = client.open("/a").await.unwrap();
    assert_eq!(file.len().await.unwrap(), bytes.len() as u64);
    let mut back = Vec::new();
    assert_eq!(client.get("/a", &mut back, |_| {}).await.unwrap(), bytes.len() as u64);
    assert!(back == bytes);
    let mut streamed = Vec::new();
    file.reader(5).await.unwrap().read_to_end(&mut streamed).await.unwrap();
    assert!(streamed == bytes[5..]);
    let at = CHUNK_BYTES as usize - 10;
    assert_eq!(file.read_at(at as u64, 20).await.unwrap(), bytes[at..at + 20]);
    assert_eq!(file.read_at(bytes.len() as u64 - 1, 10).await.unwrap().len(), 1);
    assert!(file.read_at(u64::MAX - 1, 10).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_empty_file_is_a_file() {
    let (_fake, client) = start().await;
    put(&client, "/a", b"").await.unwrap();
    assert_eq!(client.get("/a", &mut Vec::new(), |_| {}).await.unwrap(), 0);
    assert!(client.stat("/a").await.unwrap().is_file());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_exists_is_replaced_only_when_asked() {
    let (fake, client) = start().await;
    put(&client, "/a", b"old").await.unwrap();
    let refused = client.put(&b"new"[..], "/a", PutOptions::default(), |_| {}).await.unwrap_err();
    assert!(matches!(refused, TransferError::Gfs(Error::AlreadyExists { .. })));
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"old");
    put(&client, "/a", b"new").await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"new");
}

#[tokio::test(start_paused = true)]
async fn a_put_that_fails_leaves_nothing_under_any_name() {
    let (fake, client) = start().await;
    fake.judge(|call, _| match call.contains("write") {
        true => Verdict::Refuse(Error::bad_argument("no")),
        false => Verdict::Go,
    });
    client.create("/b", 0).await.unwrap();
    client.delete("/b").await.unwrap();
    let failed = put(&client, "/a", b"x").await.unwrap_err();
    assert!(matches!(failed, TransferError::Gfs(Error::BadArgument { .. })), "{failed}");
    assert!(fake.with(|cluster| cluster.names.is_empty()));
    // Nor does its room wait in the trash; what a user has deleted does.
    let trash: Vec<_> = client.trash("/").map_ok(|trashed| trashed.path).try_collect().await.unwrap();
    assert_eq!(trash, ["/b"]);
}

/// Takes down the warnings of this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &Field, value: &dyn std::fmt::Debug| {
            text += &format!("{field}={value:?} ");
        });
        self.0.lock().push(text);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn what_an_unfinished_put_may_leave_behind_is_told() {
    let (fake, client) = start().await;
    let warnings = Warnings::default();
    let _listens = tracing::subscriber::set_default(warnings.clone());
    // Nothing is left, nothing is told.
    put(&client, "/a", b"x").await.unwrap();
    fake.once("write", Verdict::Refuse(Error::bad_argument("no")));
    put(&client, "/a", b"x").await.unwrap_err();
    assert_eq!(*warnings.0.lock(), Vec::<String>::new());
    // It can't be removed; or nobody waits for the end.
    fake.judge(|call, _| match call.contains("write") || call.contains("delete") {
        true => Verdict::Refuse(Error::bad_argument("no")),
        false => Verdict::Go,
    });
    put(&client, "/a", b"x").await.unwrap_err();
    fake.judge(|call, _| if call.contains("write") { Verdict::Silence } else { Verdict::Go });
    tokio::time::timeout(Duration::from_secs(1), put(&client, "/a", b"x")).await.unwrap_err();
    let told = warnings.0.lock().clone();
    let left =
        fake.with(|cluster| cluster.names.keys().filter(|name| *name != "/a").cloned().collect::<Vec<_>>());
    assert_eq!((told.len(), left.len()), (2, 2), "{told:?} {left:?}");
    assert!(
        left.iter().all(|path| told.iter().any(|line| line.contains(path.as_str()))),
        "{told:?} {left:?}"
    );
    assert!(left.iter().all(|path| is_unfinished(&path[1..])), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_listing_goes_on_over_its_pages() {
    let (_fake, client) = start().await;
    for name in ["/e", "/a", "/c", "/b", "/d"] {
        client.create(name, 0).await.unwrap();
    }
    let names: Vec<_> = client.list("/").map_ok(|entry| entry.name).try_collect().await.unwrap();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    let refused: Result<Vec<_>, _> = client.list("no/path").try_collect().await;
    assert!(matches!(refused, Err(Error::BadPath { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_in_the_middle_of_a_call_is_followed_under_the_same_request_id() {
    let (fake, client) = start().await;
    fake.judge(|call, cluster| {
        if call.starts_with("m1 create") {
            cluster.leader = 2;
        }
        Verdict::Go
    });
    client.create("/a", 0).await.unwrap();
    let calls = fake.with(|cluster| cluster.calls("create"));
    assert_eq!(calls, ["m1 create 1:1", "m2 create 1:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_falls_silent_is_left_for_the_next() {
    let (fake, client) = start().await;
    fake.judge(|call, cluster| match call.starts_with("m1 create") {
        true => {
            cluster.leader = 2;
            Verdict::Silence
        }
        false => Verdict::Go,
    });
    client.create("/a", 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_of_a_create_is_found_again_and_not_taken_for_a_clash() {
    let (fake, client) = start().await;
    fake.once("create", Verdict::LoseReply);
    client.create("/a", 0).await.unwrap();
    let calls = fake.with(|cluster| cluster.calls("create"));
    // Who fell silent is left alone for a while: the others are asked meanwhile, under the same request id.
    assert!(calls.iter().all(|call| call.ends_with(" create 1:1")), "{calls:?}");
    assert_eq!(calls.first().zip(calls.last()), Some((&"m1 create 1:1".into(), &"m1 create 1:1".into())));
    assert!(matches!(client.create("/a", 0).await, Err(Error::AlreadyExists { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expired_while_idle_is_replaced_without_notice() {
    let (fake, client) = start().await;
    fake.with(|cluster| cluster.expired.insert(1));
    client.create("/a", 0).await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.calls("create")), ["m1 create 1:1", "m1 create 2:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expires_with_an_answer_outstanding_is_told() {
    let (fake, client) = start().await;
    let mut first = true;
    fake.judge(move |call, cluster| match call.contains("create") && std::mem::take(&mut first) {
        true => {
            cluster.expired.insert(1);
            Verdict::Refuse(Error::unavailable("no idea what became of it"))
        }
        false => Verdict::Go,
    });
    assert!(matches!(client.create("/a", 0).await, Err(Error::SessionExpired { .. })));
    client.create("/b", 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_renews_its_session_and_says_what_it_has_seen() {
    let (fake, client) = start().await;
    client.create("/a", 0).await.unwrap();
    client.create("/b", 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(125)).await;
    assert_eq!(fake.with(|cluster| cluster.first_unacked), 3);
    drop(client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = fake.with(|cluster| cluster.calls("renew").len());
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(fake.with(|cluster| cluster.calls("renew").len()), before, "renewed after its end");
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_a_call_gives_up_after_the_patience_and_says_why() {
    let (fake, client) = start().await;
    fake.judge(|_, _| Verdict::Refuse(Error::NotEnoughServers { wanted: 3, alive: 2 }));
    let started = Instant::now();
    let error = client.create("/a", 0).await.unwrap_err();
    let waited = started.elapsed();
    assert!(
        matches!(&error, Error::DeadlineExceeded { last, .. } if last.contains("3 replicas wanted, 2")),
        "{error}"
    );
    assert!((Duration::from_secs(28)..Duration::from_secs(31)).contains(&waited), "{waited:?}");
}
