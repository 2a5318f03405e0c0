//! The listeners of a node's HTTP, and their connections: TCP, and the Unix socket.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

/// The process that opened a connection over the Unix socket, as the kernel saw it (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "the user decides so far; group and pid are what the kernel tells with it")]
pub(crate) struct PeerCredentials {
    /// Its effective user.
    pub(crate) uid: u32,
    /// Its effective group.
    pub(crate) gid: u32,
    /// Its pid, as this process sees it; `None`: it is in a PID namespace that this process does not see.
    pub(crate) pid: Option<i32>,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    Unix(PeerCredentials),
}

/// The listeners of one node.
#[derive(Debug)]
pub struct Listeners {
    tcp: TcpListener,
    socket: Option<UnixListener>,
}

impl From<TcpListener> for Listeners {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, socket: None }
    }
}

impl Listeners {
    /// The same, and a Unix socket.
    #[must_use]
    pub fn with_socket(mut self, socket: Option<UnixListener>) -> Self {
        self.socket = socket;
        self
    }

    /// The next connection of either.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        let by_socket = async {
            match &self.socket {
                Some(socket) => socket.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.tcp.accept() => {
                let (stream, peer) = accepted?;
                // Answers are written whole; waiting for more to send with them would only delay them.
                _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Peer::Tcp(peer)))
            }
            accepted = by_socket => {
                let (stream, _) = accepted?;
                let found = stream.peer_cred()?;
                // The kernel says 0 where the process has no pid here.
                let pid = found.pid().filter(|pid| *pid > 0);
                let credentials = PeerCredentials { uid: found.uid(), gid: found.gid(), pid };
                Ok((Stream::Unix(stream), Peer::Unix(credentials)))
            }
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Silence of a host after which it is probed, and the pause between probes. Design, section 9.2.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Unanswered probes after which the host is lost.
const KEEPALIVE_PROBES: u32 = 3;
/// How long data may stay unacknowledged. Probes are not sent meanwhile, and the system also ends unanswered probes by this time and not by
/// their number (tcp(7), TCP_USER_TIMEOUT). Long enough for a packet to be lost several times.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(4);

impl Stream {
    /// Ends the connection soon after the other host is gone without a word. A held registration ends with its connection.
    pub(super) fn notice_lost_hosts(&self) {
        let Self::Tcp(stream) = self else { return };
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(KEEPALIVE_PROBES);
        let socket = SockRef::from(stream);
        // A system that lacks one of these notices later.
        _ = socket.set_tcp_keepalive(&keepalive);
        _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    }

    /// Reads what has arrived.
    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buf),
            Self::Unix(stream) => stream.try_read(buf),
        }
    }

    /// Writes what there is room for.
    pub(super) fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(buf),
            Self::Unix(stream) => stream.try_write(buf),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
