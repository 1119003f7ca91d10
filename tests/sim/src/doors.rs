//! The simulated side of every seam: network, clocks, randomness, and who does the work of disks.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use gfs_proto::Environment;
use gfs_proto::net::{CONNECT_TIMEOUT, Connection, Listener, Net, Stream, WriteStream};
use gfs_proto::random::{Random, SeededRandom};
use gfs_proto::time::{Clock, Moment, UnixMs};
use gfs_proto::work::Workers;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use turmoil::net::{TcpListener, TcpStream};

/// Wall time at the start of every run: 2026.
pub(crate) const EPOCH_MS: u64 = 1_767_225_600_000;

/// How often the connections between two hosts, the lower address first, were reset.
static RESETS: LazyLock<Mutex<BTreeMap<(IpAddr, IpAddr), u64>>> = LazyLock::new(Mutex::default);

fn resets_between(a: IpAddr, b: IpAddr) -> u64 {
    RESETS.lock().get(&(a.min(b), a.max(b))).copied().unwrap_or(0)
}

/// Ends all connections between two hosts at their next use: turmoil sends nothing again, so one that has lost a message
/// would stay silent, where a real one goes on or is reset.
pub(crate) fn reset_between(a: IpAddr, b: IpAddr) {
    *RESETS.lock().entry((a.min(b), a.max(b))).or_default() += 1;
}

/// The ends of a connection, how often those between them had been reset when it began, and whose it is.
#[derive(Clone)]
struct Ends(IpAddr, IpAddr, u64, Arc<Knobs>);

impl Ends {
    fn of(stream: &TcpStream, knobs: &Arc<Knobs>) -> io::Result<Self> {
        let (local, peer) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
        Ok(Self(local, peer, resets_between(local, peer), knobs.clone()))
    }
    fn check(&self) -> io::Result<()> {
        let Self(local, peer, resets, knobs) = self;
        if resets_between(*local, *peer) == *resets && !knobs.dead.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
}

/// What the nemesis can change about a host while it runs.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    /// How far its wall clock is off.
    pub(crate) wall_ms: AtomicI64,
    /// How many times slower its disks are than they should be; 0 counts as 1.
    pub(crate) slow: AtomicU32,
    /// How long its disks stand still before the next piece of work.
    pub(crate) stall_us: AtomicU64,
    /// It died in the middle of something: what it still does must not be seen.
    pub(crate) dead: AtomicBool,
}

/// The doors of one life of a host. `life` counts its starts.
pub(crate) fn environment(
    seed: u64,
    rate_ppm: i64,
    disk: (Duration, Duration),
    knobs: &Arc<Knobs>,
) -> Environment {
    let paces = SeededRandom::new(seed ^ 0xD15C);
    let slow = knobs.clone();
    let pace = move || {
        let (least, most) = disk;
        let spread = u64::try_from((most - least).as_micros()).unwrap_or(0) + 1;
        // Mostly quick: the square of a fraction.
        let fraction = paces.below(1000);
        let extra = Duration::from_micros(spread * fraction * fraction / 1_000_000);
        let stall = Duration::from_micros(slow.stall_us.swap(0, Ordering::Relaxed));
        (least + extra) * slow.slow.load(Ordering::Relaxed).max(1) + stall
    };
    Environment {
        net: Arc::new(SimNet(knobs.clone())),
        clock: Arc::new(SimClock { rate_ppm, knobs: knobs.clone() }),
        random: Arc::new(SeededRandom::new(seed)),
        workers: Workers::Inline(Arc::new(pace)),
    }
}

/// Simulated time, as one host's clocks show it.
struct SimClock {
    rate_ppm: i64,
    knobs: Arc<Knobs>,
}

impl SimClock {
    fn elapsed(&self) -> Duration {
        let real = turmoil::sim_elapsed().unwrap_or_default();
        let nanos = i128::try_from(real.as_nanos()).unwrap_or(0);
        let shown = nanos + nanos * i128::from(self.rate_ppm) / 1_000_000;
        Duration::from_nanos(u64::try_from(shown).unwrap_or(0))
    }
}

impl Clock for SimClock {
    fn wall(&self) -> UnixMs {
        let now = EPOCH_MS + u64::try_from(self.elapsed().as_millis()).unwrap_or(0);
        UnixMs::from_raw(now.saturating_add_signed(self.knobs.wall_ms.load(Ordering::Relaxed)))
    }
    fn moment(&self) -> Moment {
        Moment::from_start(self.elapsed())
    }
}

/// The simulated network, as one host sees it.
struct SimNet(Arc<Knobs>);

impl Net for SimNet {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            if self.0.dead.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            let (ends, peer) = (Ends::of(&stream, &self.0)?, stream.peer_addr().ok());
            Ok(Connection::new(Box::new(SimStream(stream, ends)), peer))
        })
    }
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener: Box<dyn Listener> =
                Box::new(SimListener(TcpListener::bind(address).await?, self.0.clone()));
            Ok(listener)
        })
    }
}

struct SimListener(TcpListener, Arc<Knobs>);

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            let ends = Ends::of(&stream, &self.1)?;
            Ok(Connection::new(Box::new(SimStream(stream, ends)), Some(peer)))
        })
    }
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

struct SimStream(TcpStream, Ends);

impl Stream for SimStream {
    fn halves(self: Box<Self>) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn WriteStream>) {
        let (reader, writer) = self.0.into_split();
        (Box::new(SimReader(reader, self.1.clone())), Box::new(SimWriter(writer, self.1)))
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.1.check()?;
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.1.check()?;
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct SimReader(OwnedReadHalf, Ends);

impl AsyncRead for SimReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.1.check()?;
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

struct SimWriter(OwnedWriteHalf, Ends);

impl WriteStream for SimWriter {}

impl AsyncWrite for SimWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.1.check()?;
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
