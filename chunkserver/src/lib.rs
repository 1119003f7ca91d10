//! The chunkserver: chunk store, replicas, data plane.
//!
//! ```text
//! data/      framed TCP ──► handler.rs ──► write.rs, read.rs ──┐
//! service.rs gRPC orders ──► grant.rs, reconcile.rs ───────────┼─► chunk.rs: one lock per chunk
//! heartbeat.rs ──► masters; answers ──► the fence              │     ├─ replica/  PURE: may it?
//!                                                              └─────┴─ store/    LOCAL: do it
//! ```

mod chunk;
mod config;
pub mod data;
mod expiry;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod grant;
mod handler;
mod heartbeat;
mod read;
mod reconcile;
mod replica;
mod report;
mod server;
mod service;
pub mod store;
mod trace;
mod upkeep;
mod welcome;
mod write;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::net::{Connection, Listener};
use gfs_proto::pb::chunkserver_server::ChunkserverServer;
use gfs_proto::size::{CHUNK_BYTES_MAX, ChunkBytes, MESSAGE_BYTES_MAX};
use gfs_proto::{Environment, Error, Result, frame};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::data::{Data, Settings};
use crate::handler::Replicas;
use crate::heartbeat::Person;
use crate::server::Chunkserver;
use crate::service::Control;
use crate::store::files::RealFiles;
use crate::store::{Options, Store};
use crate::welcome::Welcome;

pub use config::{BUFFER_BYTES_DEFAULT, ChunkserverConfig};

/// Most connections, whatever they speak.
const CONNECTIONS_MAX: usize = 4096;
/// How long a new connection may take to say what it speaks.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(10);
/// First bytes of a gRPC connection: the preface of HTTP/2.
const HTTP2: [u8; 4] = *b"PRI ";
/// gRPC connections that wait to be taken.
const ACCEPTED_MAX: usize = 64;
/// Pause after a connection could not be taken, for want of descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long requests in flight may take at the end.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the small notes are brought to disk or thrown away.
const TIDY_PERIOD: Duration = Duration::from_millis(500);
/// How often, and how far, the scrubber goes on (GFS §5.2).
const SCRUB_PERIOD: Duration = Duration::from_secs(1);
const SCRUB_BYTES: u64 = 4 << 20;

/// Runs one chunkserver on `listener` until `stop`.
///
/// # Errors
/// Why it could not start, or what it died of.
pub async fn run(
    config: ChunkserverConfig,
    environment: Environment,
    listener: Box<dyn Listener>,
    stop: CancellationToken,
) -> Result<()> {
    config.check()?;
    let (directories, random) = (config.data.clone(), environment.random.clone());
    // Whatever the size of the cluster's chunks is: the primary knows.
    let chunk_bytes_max = ChunkBytes::parse(CHUNK_BYTES_MAX.into()).map_err(Error::internal)?;
    let workers = environment.workers.clone();
    let options = Options { chunk_bytes_max, workers, ..Options::default() };
    let open = move || Store::open(&directories, options, Arc::new(RealFiles), &*random);
    let store = environment.workers.run(open).await??;
    run_on(store, config, environment, listener, stop).await
}

/// As [`run`], on a store that is open already.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    store: Store,
    config: ChunkserverConfig,
    environment: Environment,
    listener: Box<dyn Listener>,
    stop: CancellationToken,
) -> Result<()> {
    let address = listener.local_address().map_err(Error::unavailable)?;
    let server = Chunkserver::new(store, environment.clone());
    let settings = Settings { buffer_bytes: usize::try_from(config.buffer_bytes).unwrap_or(usize::MAX) };
    let replicas = Arc::new(Replicas(server.clone()));
    let data = Data::new(&environment, replicas, server.links.clone(), settings);
    let stop = stop.child_token();
    let welcome = Arc::new(Welcome::new(stop.clone()));
    let person = Person {
        address: config.advertise.unwrap_or_else(|| address.to_string()),
        rack: config.rack,
        boot: environment.random.bits128(),
        welcome: welcome.clone(),
    };
    tracing::info!(address = person.address, "chunkserver started");

    let mut tasks = JoinSet::new();
    tasks.spawn(heartbeat::follow_masters(server.clone(), person, config.masters, stop.clone()));
    tasks.spawn(tidy(server.clone(), data.clone(), stop.clone()));
    tasks.spawn(scrub(server.clone(), stop.clone()));
    tasks.spawn(expiry::forget_expired(server.clone(), stop.clone()));
    accept(listener, &server, &data, &stop).await;
    while tasks.join_next().await.is_some() {}

    drop(server.write_marks());
    let store = server.store.clone();
    let closed = environment.workers.run(move || store.close()).await?;
    closed.map_err(|error| server.wire(&error))?;
    welcome.outcome()
}

/// Takes connections until `stop`, and waits a little for what is in flight then.
async fn accept(
    mut listener: Box<dyn Listener>,
    server: &Arc<Chunkserver>,
    data: &Arc<Data<Replicas>>,
    stop: &CancellationToken,
) {
    let (grpc, incoming) = mpsc::channel::<io::Result<Connection>>(ACCEPTED_MAX);
    let service = ChunkserverServer::new(Control(server.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let ended = stop.clone();
    let control = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move { ended.cancelled().await });
    let control = tokio::spawn(control);

    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let taken = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            taken = listener.accept() => taken,
        };
        let connection = match taken {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "no connection taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!("too many connections");
            continue;
        };
        let (data, grpc, stop) = (data.clone(), grpc.clone(), stop.clone());
        let connection = connection.holding(permit);
        connections.spawn(dispatch(connection, data, grpc, stop));
    }
    drop(grpc);
    let rest = async {
        while connections.join_next().await.is_some() {}
        control.await
    };
    match tokio::time::timeout(STOP_TIMEOUT, rest).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::debug!(%error, "control service ended"),
        Ok(Err(_)) | Err(_) => tracing::debug!("requests in flight were cut off"),
    }
}

/// Hands a connection to whom it speaks to.
async fn dispatch(
    mut connection: Connection,
    data: Arc<Data<Replicas>>,
    grpc: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let first = tokio::select! {
        () = stop.cancelled() => return,
        first = tokio::time::timeout(SNIFF_TIMEOUT, connection.sniff()) => first,
    };
    match first {
        Ok(Ok(frame::MAGIC)) => data.serve(connection, stop).await,
        Ok(Ok(HTTP2)) => {
            if grpc.send(Ok(connection)).await.is_err() {
                tracing::debug!("the control service has ended");
            }
        }
        Ok(Ok(first)) => tracing::debug!(?first, peer = ?connection.peer(), "neither gRPC nor data frames"),
        Ok(Err(_)) | Err(_) => tracing::debug!(peer = ?connection.peer(), "a connection that said nothing"),
    }
}

/// Brings the small notes to disk, or throws them away.
async fn tidy(server: Arc<Chunkserver>, data: Arc<Data<Replicas>>, stop: CancellationToken) {
    let mut round = 0;
    while tick(TIDY_PERIOD, &stop).await {
        round += 1;
        let unknown = server.write_marks();
        server.ask_what_is_committed(unknown, round).await;
        server.tidy();
        data.buffer().drop_aged();
    }
}

/// Verifies what lies on the disks, a little at a time, so that damage is found before the last good copy is needed.
async fn scrub(server: Arc<Chunkserver>, stop: CancellationToken) {
    while tick(SCRUB_PERIOD, &stop).await {
        let store = server.store.clone();
        let found = server.environment.workers.run(move || store.scrub(SCRUB_BYTES)).await;
        match found {
            Ok(Ok(scrubbed)) => {
                for (handle, block) in scrubbed.corrupt {
                    server.found_corrupt(handle, block);
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "not scrubbed"),
            Err(error) => tracing::debug!(%error, "not scrubbed"),
        }
    }
}

/// Waits for a period; false at the end.
async fn tick(period: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(period) => true,
    }
}
