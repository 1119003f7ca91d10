//! The network seam: a listener stream and a connector. Nothing else opens a socket.
//!
//! gRPC and data frames share one port: a server looks at the first bytes of a connection
//! ([`Connection::sniff`]) and hands it to the one or the other.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A call without an answer makes its gRPC connection ask after this long whether the peer is there ..
const ASK_AFTER: Duration = Duration::from_millis(500);
/// .. and give it up after so much more: a machine that is lost without a word costs no more than its successor
/// needs to be found. A process that is paused looks the same.
const ASK_PATIENCE: Duration = Duration::from_secs(1);
/// A connection on which bytes stay unacknowledged this long is broken. Without this a peer that is lost without a
/// word leaves it half open for a quarter of an hour, and after a short cut the next attempt comes as late again as
/// the cut was long. The same ends a connection whose peer has read nothing for so long while more was sent: it must
/// be longer than a disk that hesitates makes a server push back, and calls have shorter deadlines of their own.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(4);
/// An idle connection asks this often whether the other machine is there.
const PROBE: Duration = Duration::from_secs(1);
/// Unanswered probes that break it; the time above may do so before.
const PROBES: u32 = 3;
/// HTTP/2 flow-control window: the default of 64 KiB throttles snapshots.
const WINDOW_BYTES: u32 = 4 << 20;
/// Most bytes of the headers of an answer: an error travels in them, with up to two paths of which every byte may be escaped.
const HEADER_BYTES_MAX: u32 = 128 << 10;
/// Piece in which a file is copied where there is no `sendfile`.
const COPY_BYTES: usize = 256 * 1024;

/// Makes connections and takes them.
pub trait Net: Send + Sync {
    /// Connects to `host:port`.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>>;
    /// Listens on `host:port` (port 0: any).
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
}

/// Takes connections.
pub trait Listener: Send {
    /// The next connection.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Connection>>;
    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    fn local_address(&self) -> io::Result<SocketAddr>;
}

/// The bytes of one connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The TCP socket below, if there is one: then files go out by `sendfile`.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
    /// Both directions apart, for two tasks.
    fn halves(self: Box<Self>) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn WriteStream>)
    where
        Self: 'static,
    {
        let (reader, writer) = tokio::io::split(self);
        (Box::new(reader), Box::new(writer))
    }
}
impl Stream for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
    fn halves(self: Box<Self>) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn WriteStream>) {
        let (reader, writer) = self.into_split();
        (Box::new(reader), Box::new(writer))
    }
}

/// The writing direction of a [`Stream`].
pub trait WriteStream: AsyncWrite + Send + Unpin {
    /// The TCP socket below, if there is one.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}
impl WriteStream for OwnedWriteHalf {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.as_ref())
    }
}
impl<T: AsyncWrite + Send> WriteStream for tokio::io::WriteHalf<T> {}

/// What is kept as long as a connection is open.
type Held = Option<Box<dyn Send>>;

/// The reading half of a [`Connection`]; begins with what was sniffed.
pub type ReadHalf = tokio::io::Chain<io::Cursor<Vec<u8>>, Box<dyn AsyncRead + Send + Unpin>>;

/// The writing half of a [`Connection`].
pub struct WriteHalf {
    writer: Box<dyn WriteStream>,
    _held: Held,
}

impl WriteHalf {
    /// As [`Connection::send_file`].
    ///
    /// # Errors
    /// The same.
    pub async fn send_file(&mut self, file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
        match self.writer.tcp() {
            Some(tcp) => send_file_tcp(tcp, file.as_fd(), offset, length).await,
            None => send_file_copying(&mut self.writer, file.as_fd(), offset, length).await,
        }
    }
}
impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
impl std::fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriteHalf")
    }
}

/// One connection, either way.
pub struct Connection {
    stream: Box<dyn Stream>,
    peer: Option<SocketAddr>,
    /// Bytes that were read to see what the peer speaks.
    sniffed: Vec<u8>,
    held: Held,
}

impl Connection {
    /// Wraps a stream.
    pub fn new(stream: Box<dyn Stream>, peer: Option<SocketAddr>) -> Self {
        Self { stream, peer, sniffed: Vec::new(), held: None }
    }

    /// Keeps this as long as the connection is open: its place among those that are counted.
    pub fn holding(self, what: impl Send + 'static) -> Self {
        Self { held: Some(Box::new(what)), ..self }
    }

    /// The other side's address, if it has one.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// The first four bytes that the peer sends; they stay to be read.
    ///
    /// # Errors
    /// What the connection says, also when it ends before.
    pub async fn sniff(&mut self) -> io::Result<[u8; 4]> {
        let mut first = [0; 4];
        self.read_exact(&mut first).await?;
        self.sniffed = first.to_vec();
        Ok(first)
    }

    /// Both directions apart, so that one task can read while another writes.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        let (reader, writer) = self.stream.halves();
        (io::Cursor::new(self.sniffed).chain(reader), WriteHalf { writer, _held: self.held })
    }

    /// Sends `length` bytes of `file` from `offset`, by `sendfile` where that is possible.
    ///
    /// # Errors
    /// What the connection or the file says; a file that is too short is `UnexpectedEof`.
    pub async fn send_file(&mut self, file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
        match self.stream.tcp() {
            Some(tcp) => send_file_tcp(tcp, file.as_fd(), offset, length).await,
            None => send_file_copying(&mut self.stream, file.as_fd(), offset, length).await,
        }
    }
}

async fn send_file_tcp(tcp: &TcpStream, file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    let mut at = offset;
    let end = offset + length;
    while at < end {
        tcp.writable().await?;
        let piece = usize::try_from((end - at).min(1 << 20)).unwrap_or(1 << 20);
        let sent = tcp.try_io(tokio::io::Interest::WRITABLE, || {
            let mut from = at;
            // The page may have to come from the disk: let other tasks leave this thread meanwhile.
            blocking(|| rustix::fs::sendfile(tcp, file, Some(&mut from), piece)).map_err(io::Error::from)
        });
        match sent {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(sent) => at += sent as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn send_file_copying(
    stream: &mut (impl AsyncWrite + Unpin),
    file: BorrowedFd<'_>,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = offset;
    let end = offset + length;
    while at < end {
        let piece = usize::try_from((end - at).min(COPY_BYTES as u64)).unwrap_or(COPY_BYTES);
        let count = blocking(|| rustix::io::pread(file, &mut buffer[..piece], at))?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.write_all(&buffer[..count]).await?;
        at += count as u64;
    }
    Ok(())
}

/// Runs a short blocking call in place, moving other tasks off this thread if the runtime can.
pub fn blocking<T>(call: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(call),
        _ => call(),
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.sniffed.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.sniffed.len().min(buf.remaining());
        buf.put_slice(&self.sniffed[..count]);
        self.sniffed.drain(..count);
        Poll::Ready(Ok(()))
    }
}
impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Option<SocketAddr>;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer
    }
}
impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({:?})", self.peer)
    }
}

/// The network of this machine.
#[derive(Debug)]
pub struct TcpNet;

impl Net for TcpNet {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            set_options(&stream)?;
            let peer = stream.peer_addr().ok();
            Ok(Connection::new(Box::new(stream), peer))
        })
    }
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener: Box<dyn Listener> = Box::new(TcpListener::bind(address).await?);
            Ok(listener)
        })
    }
}
impl Listener for TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async move {
            let (stream, peer) = TcpListener::accept(self).await?;
            set_options(&stream)?;
            Ok(Connection::new(Box::new(stream), Some(peer)))
        })
    }
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }
}

/// No Nagle delay; cubic, because bbr's pacing halves the speed of a fast short path (measured).
/// A kernel without cubic keeps its own choice. A peer that falls silent is noticed, by both sides.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let unacknowledged_ms = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).map_err(io::Error::other)?;
    rustix::net::sockopt::set_tcp_user_timeout(stream, unacknowledged_ms)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, PROBE)?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, PROBE)?;
    rustix::net::sockopt::set_tcp_keepcnt(stream, PROBES)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    if let Err(error) = rustix::net::sockopt::set_tcp_congestion(stream, "cubic") {
        tracing::trace!(%error, "congestion control left as it is");
    }
    Ok(())
}

/// A gRPC channel to `host:port` over this network; connects at the first call and again after a failure.
///
/// # Errors
/// [`crate::Error::BadArgument`] if the address is no `host:port`.
pub fn channel(
    net: std::sync::Arc<dyn Net>,
    address: &str,
    request_timeout: Duration,
) -> crate::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| crate::Error::bad_argument(format!("{address:?} is no host:port")))?
        .timeout(request_timeout)
        .http2_keep_alive_interval(ASK_AFTER)
        .keep_alive_timeout(ASK_PATIENCE)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES);
    let address = address.to_owned();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (net, address) = (net.clone(), address.clone());
        async move { net.connect(&address).await.map(TokioIo::new) }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[tokio::test]
    async fn what_counts_a_connection_is_let_go_when_it_ends_also_after_it_was_split() {
        let counted = std::sync::Arc::new(());
        let open = |counted: &std::sync::Arc<()>| {
            let (_, stream) = tokio::io::duplex(64);
            Connection::new(Box::new(stream), None).holding(counted.clone())
        };
        let whole = open(&counted);
        assert_eq!(std::sync::Arc::strong_count(&counted), 2);
        drop(whole);
        let (reader, writer) = open(&counted).split();
        drop(reader);
        assert_eq!(std::sync::Arc::strong_count(&counted), 2);
        drop(writer);
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
    }

    #[tokio::test]
    async fn a_call_to_a_server_that_is_silent_fails_long_before_its_deadline_and_can_be_repeated() {
        let mut listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let silent = tokio::spawn(async move { listener.accept().await.unwrap() });
        let deadline = Duration::from_secs(60);
        let channel = channel(std::sync::Arc::new(TcpNet), &address, deadline).unwrap();
        let mut master = crate::pb::master_client::MasterClient::new(channel);
        let call = tokio::time::timeout(deadline / 12, master.leader(crate::pb::LeaderRequest {}));
        let status = call.await.expect("the silence is noticed").unwrap_err();
        let error = crate::Error::from(status);
        assert!(matches!(error, crate::Error::Unavailable { .. }), "another one is to be asked: {error}");
        drop(silent.await.unwrap());
    }

    #[tokio::test]
    async fn a_connection_asks_by_itself_whether_the_other_machine_is_there() {
        let mut listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let ends = tokio::join!(TcpStream::connect(&address), listener.accept());
        let (connecting, accepted) = (ends.0.unwrap(), ends.1.unwrap());
        set_options(&connecting).unwrap();
        for stream in [&connecting, accepted.stream.tcp().unwrap()] {
            assert!(rustix::net::sockopt::socket_keepalive(stream).unwrap());
            assert_eq!(rustix::net::sockopt::tcp_user_timeout(stream).unwrap(), 4000);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sniffed_bytes_are_read_again_and_a_file_arrives_whole() {
        let mut listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let sender = tokio::spawn(async move {
            let path = std::env::temp_dir().join(format!("gfs-net-test-{}", std::process::id()));
            std::fs::write(&path, vec![7; 3_000_000]).unwrap();
            let file = File::open(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let mut connection = TcpNet.connect(&address).await.unwrap();
            connection.write_all(b"GFS!rest").await.unwrap();
            connection.send_file(&file, 1, 2_999_999).await.unwrap();
            connection.send_file(&file, 1, 3_000_000).await.unwrap_err().kind()
        });
        let mut connection = listener.accept().await.unwrap();
        assert_eq!(&connection.sniff().await.unwrap(), b"GFS!");
        let mut head = [0; 8];
        connection.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"GFS!rest");
        let mut body = Vec::new();
        connection.read_to_end(&mut body).await.unwrap();
        assert!(body.iter().all(|byte| *byte == 7) && body.len() >= 2_999_999);
        assert_eq!(sender.await.unwrap(), io::ErrorKind::UnexpectedEof);
    }
}
