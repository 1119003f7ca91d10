//! The connections of a master: so many at a time, and none that never speaks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use gfs_proto::net::{Connection, Listener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Pause after a connection could not be taken, for instance because file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a peer may take to say what it speaks: whoever calls a master says so at once.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);

struct Incoming {
    listener: Box<dyn Listener>,
    places: Arc<Semaphore>,
    silence_max: Duration,
    /// Those that have not spoken yet: each has a place.
    silent: FuturesUnordered<BoxFuture<'static, Option<Connection>>>,
}

/// The listener's connections; one that can't be taken does not end the service. At most so many at a time, since the stores
/// need descriptors too: a node whose store fails stops, and its clients would go on to the next one. One that is silent gives
/// its place back.
pub(super) fn incoming(
    (listener, most): (Box<dyn Listener>, usize),
    silence_max: Duration,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(most));
    let incoming = Incoming { listener, places, silence_max, silent: FuturesUnordered::new() };
    futures::stream::unfold(incoming, |mut incoming| async move {
        let connection = incoming.next().await;
        Some((Ok(connection), incoming))
    })
}

impl Incoming {
    /// The next one that speaks.
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                taken = self.listener.accept() => match taken {
                    Ok(connection) => self.place(connection),
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not taken");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(spoken) = self.silent.next() => {
                    if let Some(connection) = spoken {
                        return connection;
                    }
                }
            }
        }
    }

    /// Gives a connection a place, if there is one.
    fn place(&self, connection: Connection) {
        let Ok(permit) = self.places.clone().try_acquire_owned() else {
            tracing::warn!("too many connections");
            return;
        };
        let mut connection = connection.holding(permit);
        let silence_max = self.silence_max;
        let speaks = async move {
            let first = timeout(silence_max, connection.sniff()).await;
            matches!(first, Ok(Ok(_))).then_some(connection)
        };
        self.silent.push(speaks.boxed());
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use gfs_proto::net::{Net, TcpNet};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// How long anything may take on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Somebody who takes connections, one place for all of them, and where.
    async fn one_place(silence_max: Duration) -> (impl Stream<Item = io::Result<Connection>>, SocketAddr) {
        let listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap();
        (incoming((listener, 1), silence_max), address)
    }

    #[tokio::test]
    async fn whoever_speaks_keeps_its_place_until_it_goes_and_what_it_said_is_read() {
        let (connections, address) = one_place(PATIENCE).await;
        let mut connections = std::pin::pin!(connections);
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"PRI * and more").await.unwrap();
        let mut taken = timeout(PATIENCE, connections.next()).await.unwrap().unwrap().unwrap();
        let mut said = [0; 14];
        taken.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"PRI * and more");

        let mut second = TcpStream::connect(address).await.unwrap();
        let refused = async {
            tokio::select! {
                _ = connections.next() => panic!("there was no place for it"),
                ended = second.read(&mut said) => ended,
            }
        };
        assert!(matches!(timeout(PATIENCE, refused).await.unwrap(), Ok(0) | Err(_)));
        drop(taken);
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(b"PRI *").await.unwrap();
        timeout(PATIENCE, connections.next()).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn whoever_never_speaks_loses_its_place() {
        let (connections, address) = one_place(Duration::from_millis(100)).await;
        let mut connections = std::pin::pin!(connections);
        let _silent = TcpStream::connect(address).await.unwrap();
        let speaks = async {
            loop {
                let mut other = TcpStream::connect(address).await.unwrap();
                other.write_all(b"PRI *").await.unwrap();
                tokio::select! {
                    taken = connections.next() => return taken,
                    () = sleep(Duration::from_millis(20)) => {}
                }
            }
        };
        timeout(PATIENCE, speaks).await.unwrap().unwrap().unwrap();
    }
}
