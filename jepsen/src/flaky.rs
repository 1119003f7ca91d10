//! A network that loses answers: every connection breaks after a while, so that clients have to repeat what they asked.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_proto::Environment;
use gfs_proto::net::{Connection, Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long a connection lives: often shorter than a few calls.
const LIFE_MS: std::ops::Range<u64> = 20..700;

/// The doors of this machine, with connections that break.
pub(crate) fn environment() -> Environment {
    let real = Environment::real();
    Environment { net: Arc::new(FlakyNet(real.net.clone())), ..real }
}

struct FlakyNet(Arc<dyn Net>);

impl Net for FlakyNet {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        async move {
            let connection = self.0.connect(address).await?;
            let (peer, life) = (connection.peer(), Duration::from_millis(rand::random_range(LIFE_MS)));
            Ok(Connection::new(Box::new(Mortal { connection, until: Instant::now() + life }), peer))
        }
        .boxed()
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        self.0.listen(address)
    }
}

/// A connection with an end. What comes or goes afterwards is lost: also an answer to what had been asked before.
struct Mortal {
    connection: Connection,
    until: Instant,
}

impl Mortal {
    fn check(&self) -> io::Result<()> {
        if Instant::now() < self.until { Ok(()) } else { Err(io::ErrorKind::ConnectionReset.into()) }
    }
}

impl AsyncRead for Mortal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.connection).poll_read(cx, buf);
        if read.is_ready()
            && let Err(error) = self.check()
        {
            buf.set_filled(before);
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // What is written in time is sent: the answer is what gets lost.
        self.check()?;
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

impl Stream for Mortal {}
