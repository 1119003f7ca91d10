//! Connections as pipes in memory.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use gfs_proto::net::{Connection, Listener, Net, Stream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

const PIPE_BYTES: usize = 256 * 1024;

/// Addresses are names; a name nobody listens on refuses.
#[derive(Default)]
pub(crate) struct FakeNet {
    listeners: Mutex<BTreeMap<String, mpsc::Sender<Connection>>>,
}

struct FakeListener(mpsc::Receiver<Connection>);
struct Pipe(DuplexStream);

impl Net for FakeNet {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let listener = self.listeners.lock().get(address).cloned().ok_or_else(refused)?;
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            listener.send(Connection::new(Box::new(Pipe(theirs)), None)).await.map_err(|_| refused())?;
            Ok(Connection::new(Box::new(Pipe(ours)), None))
        })
    }
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (sender, receiver) = mpsc::channel(16);
            self.listeners.lock().insert(address.to_owned(), sender);
            let listener: Box<dyn Listener> = Box::new(FakeListener(receiver));
            Ok(listener)
        })
    }
}
impl Listener for FakeListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async { self.0.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into()) })
    }
    fn local_address(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Stream for Pipe {}
impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}
impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
