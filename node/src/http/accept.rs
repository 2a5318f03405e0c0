//! The accept loop, and every bound on connections.
//!
//! `axum::serve` sets no timer and no limit, so a node that used it could be stopped by anybody with a few thousand idle sockets.
//! Here each resource that a client can hold has an end: the number of connections, the time and size of a request's head (the
//! same time ends an idle connection, which costs the same as a slow one), the time and size of its body (see `body`), and the
//! time for which a client may refuse to read what it asked for. Each end is counted.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use bytes::Bytes;
use hearsay_services::{
    refusal,
    shares::{Active, Activity, Exempt, Holder, Refusal, Share, Shares},
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tower::Service;

use super::listeners::{Listeners, Peer, PeerCredentials, Stream};
use crate::{
    config::{MAX_CONNECTIONS, MAX_STREAMS},
    metrics::Metrics,
};

/// What clients may hold, and for how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; more are told 503 and closed. Each takes about 10 kB when idle.
    pub connections: usize,
    /// Blocking queries, event streams and held registrations; more are told 503. Fewer than connections, so that those that wait cannot keep
    /// out those that ask.
    pub streams: usize,
    /// Time to send a request's head, and for which a connection may stay idle. Node.js and Apache close idle ones after 5 s too.
    pub head: Duration,
    /// Size of a request's head; more is 431.
    pub head_bytes: usize,
    /// Lines of a request's head; more are 431. Hyper's own default.
    pub headers: usize,
    /// Time to send a body; more is 408.
    pub body: Duration,
    /// Size of a body; more is 413.
    pub body_bytes: usize,
    /// Memory that all bodies take together; a body that finds none left is told 503.
    pub bodies_bytes: usize,
    /// Time for which a client may take nothing of what is being sent to it.
    pub write_stall: Duration,
    /// Time that requests have to finish when the node stops.
    pub drain: Duration,
    /// The hosts that have no share of connections and streams.
    pub exempt: Exempt,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            streams: MAX_STREAMS,
            head: Duration::from_secs(5),
            head_bytes: 32 * 1024,
            headers: 100,
            body: Duration::from_secs(10),
            body_bytes: 1024 * 1024,
            bodies_bytes: 64 * 1024 * 1024,
            write_stall: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            exempt: Exempt::default(),
        }
    }
}

/// Files that are not for HTTP: the swarm's connections, the data dir, the log.
const FILES_FOR_OTHERS: u64 = 512;

impl Limits {
    /// As these, for a process that may open so many files. Out of files, it could neither refuse with words nor reach its neighbours.
    #[must_use]
    pub fn within(mut self, files: u64) -> Self {
        let left = files.saturating_sub(FILES_FOR_OTHERS).max(files / 2);
        self.connections = self.connections.min(usize::try_from(left).unwrap_or(usize::MAX));
        self.streams = self.streams.min(self.connections / 5 * 4);
        self
    }
}

/// What handlers may know of the connection that a request came over.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The address of the other end; `None` over the Unix socket, and where there is no network.
    pub(super) peer: Option<SocketAddr>,
    /// The process at the other end of the Unix socket; `None` for other connections.
    pub(super) socket: Option<PeerCredentials>,
    pub(super) limits: Arc<Limits>,
    /// One permit for each byte of all bodies.
    pub(super) body_room: Arc<Semaphore>,
}

impl Default for Connection {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Connection {
    fn new(limits: Limits) -> Self {
        let room = limits.bodies_bytes.min(Semaphore::MAX_PERMITS);
        Self { peer: None, socket: None, limits: Arc::new(limits), body_room: Arc::new(Semaphore::new(room)) }
    }
}

/// What a connection over the limit is told. Made once, so that refusing costs nothing.
static OVERFULL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    refusal::answer(StatusCode::SERVICE_UNAVAILABLE, "too many connections; try again or ask another")
});

/// What a connection over the share of its host is told.
static OVER_SHARE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let detail = "your host has its share of the connections here, which are nearly as many as the limit; close some, or ask another node";
    refusal::answer(StatusCode::SERVICE_UNAVAILABLE, detail)
});

tokio::task_local! {
    /// The host at the other end of the connection that this task serves: to it is charged what its requests hold.
    pub(super) static HOLDER: Holder;
}

/// How long to wait when the system has no socket to give (it is out of descriptors): long enough for one to be closed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until `stop` holds true (or its sender is gone), then lets requests finish for [`Limits::drain`] and returns.
///
/// Make the site [`Leaving`](super::Readiness::Leaving) first: that lets go of blocking queries and event streams, which would
/// otherwise hold on until the end of the drain.
pub async fn serve(
    listeners: impl Into<Listeners>,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let listeners = listeners.into();
    let base = Connection::new(limits);
    let shares = Shares::new(base.limits.connections);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            // Ended connections are taken out, so that the set's size is the number of open ones.
            Some(_) = connections.join_next() => continue,
            accepted = listeners.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let holder = match peer {
                    Peer::Tcp(address) => base.limits.exempt.holder(address.ip()),
                    Peer::Unix(_) => Holder::Exempt,
                };
                let activity = Arc::<Activity>::default();
                let share = match shares.take(holder, Some(&activity)) {
                    Ok(share) => share,
                    Err(refusal) => {
                        refuse(&stream, refusal, &metrics);
                        continue;
                    }
                };
                let connection = match peer {
                    Peer::Tcp(address) => {
                        if !address.ip().to_canonical().is_loopback() {
                            stream.notice_lost_hosts();
                        }
                        Connection { peer: Some(address), ..base.clone() }
                    }
                    Peer::Unix(credentials) => Connection { socket: Some(credentials), ..base.clone() },
                };
                let accepted = Accepted { stream, connection, activity, _share: share };
                let serving = serve_one(accepted, router.clone(), Arc::clone(&metrics), stop.clone());
                connections.spawn(HOLDER.scope(holder, serving));
            }
            Err(_) => {
                metrics.http.ended("accept_failed");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listeners);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(base.limits.drain, drained).await.is_err() {
        (0..connections.len()).for_each(|_| metrics.http.ended("drain"));
        connections.shutdown().await;
    }
}

/// Tells a connection that there is no place for it.
fn refuse(stream: &Stream, refusal: Refusal, metrics: &Metrics) {
    let (reason, words) = match refusal {
        Refusal::Share => ("connection_share", &OVER_SHARE),
        Refusal::Full => ("connections", &OVERFULL),
    };
    metrics.http.refused(reason);
    // A fresh socket has room for this; if not, the client misses only the words. Taking in what it has sent
    // lets the close be a close: with bytes unread it would be a reset, which can overtake the words.
    let _ = stream.try_read(&mut [0; 4096]);
    let _ = stream.try_write(words);
}

/// A connection that was admitted.
struct Accepted {
    stream: Stream,
    connection: Connection,
    activity: Arc<Activity>,
    _share: Share,
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error: nobody can say stop any more, so nobody means us to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves one connection to its end, or until its place is needed while it is idle.
async fn serve_one(
    accepted: Accepted,
    router: Router,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let _open = Open::count(&metrics);
    let Accepted { stream, connection, activity, _share } = accepted;
    let limits = Arc::clone(&connection.limits);
    let mut builder = http1::Builder::new();
    builder
        // Answers are short: to copy a head and its body together costs less than a system call that takes pieces.
        .writev(false)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_header_size(limits.head_bytes)
        .max_headers(limits.headers)
        // Of reading and writing; hyper wants at least 8 kB and reads heads into it.
        .max_buf_size(limits.head_bytes.max(8 * 1024) + 8 * 1024);
    let requests = Arc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let active = requests.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(connection.clone());
        // A router is always ready.
        let answer = router.clone().call(request);
        async { answer.await.map(|answer| answer.map(|body| Answer { body, _active: active })) }
    });
    let io = TokioIo::new(Impatient::new(stream, limits.write_stall));
    let mut serving = builder.serve_connection(io, service);
    let ended = tokio::select! {
        result = &mut serving => Some(result),
        () = stopped(&mut stop) => None,
        () = activity.evicted() => {
            metrics.http.ended("evicted");
            if activity.is_idle() {
                return;
            }
            // A request came just then, and is answered.
            None
        }
    };
    let result = match ended {
        Some(result) => result,
        None => {
            Pin::new(&mut serving).graceful_shutdown();
            (&mut serving).await
        }
    };
    if let Err(error) = result {
        metrics.http.ended(cause(&error));
        let parts = serving.into_parts();
        // An idle connection ends without a word: the client may be about to send its next request, and would take it for the answer.
        if error.is_timeout() && !parts.read_buf.is_empty() {
            let detail = "the head of the request took too long to arrive";
            // The client may be gone.
            _ = parts.io.into_inner().stream.try_write(&refusal::answer(StatusCode::REQUEST_TIMEOUT, detail));
        }
    }
}

/// Why a connection ended, as one of a few words.
fn cause(error: &hyper::Error) -> &'static str {
    let stalled = || {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
        source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
    };
    if error.is_timeout() {
        "head_time"
    } else if error.is_parse() {
        "malformed"
    } else if stalled() {
        "write_stall"
    } else {
        "broken"
    }
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Metrics>);

impl Open {
    fn count(metrics: &Arc<Metrics>) -> Self {
        metrics.http.connections.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.http.connections.dec();
    }
}

/// An answer, until whose end its connection is not idle.
struct Answer {
    body: Body,
    _active: Active,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that fails when its reader takes nothing for too long. Hyper has no timer for this: a client that asks for a large
/// answer and stops reading would hold it for ever.
struct Impatient {
    stream: Stream,
    patience: Duration,
    /// Made once, set anew at the start of each stall.
    timer: Option<Pin<Box<Sleep>>>,
    stalled: bool,
    /// Written in place of what was given, which had no words.
    words: Vec<u8>,
}

impl Impatient {
    fn new(stream: Stream, patience: Duration) -> Self {
        Self { stream, patience, timer: None, stalled: false, words: Vec::new() }
    }

    /// Passes on what a write said, and fails when the answer has been "not yet" for too long.
    fn watch(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = false;
            return written;
        }
        let deadline = Instant::now() + self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if !self.stalled {
            self.stalled = true;
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.words.is_empty()
            && let Some(words) = refusal::words_for(buf)
        {
            self.words = words;
        }
        while !self.words.is_empty() {
            let this = &mut *self;
            let written = Pin::new(&mut this.stream).poll_write(cx, &this.words);
            let written = ready!(self.watch(cx, written))?;
            self.words.drain(..written);
            if self.words.is_empty() {
                return Poll::Ready(Ok(buf.len()));
            }
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A bare error comes alone.
        if let [only] = bufs
            && (!self.words.is_empty() || refusal::words_for(only).is_some())
        {
            return self.poll_write(cx, only);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_swarm() {
        let connections = |files| Limits::default().within(files).connections;
        assert_eq!(connections(u64::MAX), 20_000);
        assert_eq!(connections(4096), 3584);
        assert_eq!(Limits::default().within(u64::MAX).streams, 16_000);
        assert_eq!(Limits::default().within(1024).streams, 408);
        assert_eq!(connections(1024), 512);
        assert_eq!(connections(256), 128);
    }
}
