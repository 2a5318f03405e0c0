//! [`Listeners`]: accepts HTTP connections over TCP and the Unix socket. [`Stream`] reads and writes an
//! accepted connection and enables its keepalive; [`Peer`] is the client at its other end.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use socket2::{SockRef, TcpKeepalive};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

/// Peer credentials: the process that opened a connection over the Unix socket (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "only the user decides so far; the kernel reports group and pid with it")]
pub(crate) struct PeerCredentials {
    /// Effective user of the process.
    pub(crate) uid: u32,
    /// Effective group of the process.
    pub(crate) gid: u32,
    /// Pid of the process; `None` if the process is in a PID namespace that this one does not see.
    pub(crate) pid: Option<i32>,
}

/// The client end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    Unix(PeerCredentials),
}

/// Version of HTTP that a listener speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113, section 3.3), as gRPC uses it. Browsers speak HTTP/2 over TLS
    /// only, so no web page can send a request to such a listener.
    Http2,
}

/// The listeners of one node.
#[derive(Debug)]
pub struct Listeners {
    tcp: TcpListener,
    socket: Option<UnixListener>,
    grpc: Option<(TcpListener, Router)>,
}

impl From<TcpListener> for Listeners {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, socket: None, grpc: None }
    }
}

impl Listeners {
    /// Adds the listener of gRPC and the router behind it.
    #[must_use]
    pub fn with_grpc(mut self, grpc: Option<(TcpListener, Router)>) -> Self {
        self.grpc = grpc;
        self
    }

    /// Returns the router of gRPC.
    pub(crate) fn grpc_router(&self) -> Option<Router> {
        self.grpc.as_ref().map(|(_, router)| router.clone())
    }

    /// Adds a Unix socket.
    #[must_use]
    pub fn with_socket(mut self, socket: Option<UnixListener>) -> Self {
        self.socket = socket;
        self
    }

    /// Accepts the next connection from any listener.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, Peer, Protocol)> {
        let unix_connection = async {
            match &self.socket {
                Some(socket) => socket.accept().await,
                None => std::future::pending().await,
            }
        };
        let grpc_connection = async {
            match &self.grpc {
                Some((listener, _)) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let ((stream, peer), protocol) = tokio::select! {
            accepted = self.tcp.accept() => (accepted?, Protocol::Http1),
            accepted = grpc_connection => (accepted?, Protocol::Http2),
            accepted = unix_connection => {
                let (stream, _) = accepted?;
                let peer = stream.peer_cred()?;
                // The kernel reports 0 for a process that has no pid here.
                let pid = peer.pid().filter(|pid| *pid > 0);
                let credentials = PeerCredentials { uid: peer.uid(), gid: peer.gid(), pid };
                return Ok((Stream::Unix(stream), Peer::Unix(credentials), Protocol::Http1));
            }
        };
        // Responses are written whole, so Nagle's algorithm would only delay them.
        _ = stream.set_nodelay(true);
        Ok((Stream::Tcp(stream), Peer::Tcp(peer), protocol))
    }
}

/// A connection over TCP or the Unix socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Silence after which keepalive probes a host, and the pause between probes.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Unanswered probes after which the connection ends.
const KEEPALIVE_PROBES: u32 = 3;
/// Time for which sent data may be unacknowledged (tcp(7), TCP_USER_TIMEOUT). No probes are sent while data
/// is unacknowledged, and this time applies instead of their number. It is long enough for a packet to be
/// lost several times.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(4);

impl Stream {
    /// Enables keepalive, so that the connection ends within seconds after the client's host is lost. A held
    /// registration ends with its connection.
    pub(crate) fn enable_keepalive(&self) {
        let Self::Tcp(stream) = self else { return };
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(KEEPALIVE_PROBES);
        let socket = SockRef::from(stream);
        // A system that lacks one of these options notices the loss later.
        _ = socket.set_tcp_keepalive(&keepalive);
        _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    }

    /// Reads without waiting.
    pub(crate) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buf),
            Self::Unix(stream) => stream.try_read(buf),
        }
    }

    /// Writes without waiting, as much as the socket has room for.
    pub(crate) fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
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
