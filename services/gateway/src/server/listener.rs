//! Accepts client connections on threads of the gateway ([`Serving`]), and serves HTTP/1 and HTTP/2 on them.
//!
//! Each thread has a runtime, accepts from the shared listener, and owns its connections to clients and
//! endpoints. So no request moves from one core to another, and a busy thread accepts fewer connections.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use hearsay_services::{
    http::{Ending, WatchedBody, bare_response},
    network::{Activity, Exempt, Share, ShareRefusal},
};
use http::{HeaderValue, StatusCode, header};
use hyper::{server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{client_stream::ClientStream, connection::Connection, stream_executor::StreamExecutor};
use crate::{
    forward::{attempts::Worker, headers::Client},
    observe::counters::Counters,
    refusal::Reason,
    shared::Shared,
    upstream::pool::Pool,
};

/// Pause after a failed accept, which happens when the process has no free file descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Interval at which idle connections to endpoints are checked.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Interval at which an HTTP/2 connection is checked for idleness.
const IDLE_CHECK: Duration = Duration::from_secs(5);
/// The connection preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The response to a connection over the limit.
static OVER_LIMIT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    bare_response(StatusCode::SERVICE_UNAVAILABLE, "too many connections; try again or ask another")
});
/// The response to a connection over its host's share.
static OVER_SHARE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let detail = "your host holds its share of the connections here, which are close to the limit; close some, or ask another";
    bare_response(StatusCode::SERVICE_UNAVAILABLE, detail)
});

/// The threads of the gateway. Dropping this value stops them.
#[derive(Debug)]
pub(crate) struct Serving {
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
}

impl Serving {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system refuses a thread or a file descriptor. Threads that were already started stop again.
    pub(crate) fn start(shared: &Arc<Shared>, listener: &std::net::TcpListener) -> io::Result<Self> {
        let (stop, stopping) = watch::channel(false);
        let (running, ended) = mpsc::channel(1);
        for thread in 0..shared.threads {
            let (shared, listener) = (Arc::clone(shared), listener.try_clone()?);
            let (stopping, running) = (stopping.clone(), running.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name(format!("gateway-{thread}")).spawn(move || {
                runtime.block_on(async move {
                    let pool = Arc::new(Pool::new(shared.limits, shared.policy.clone()));
                    let worker = Arc::new(Worker { shared, pool });
                    match TcpListener::from_std(listener) {
                        Ok(listener) => accept(worker, listener, stopping).await,
                        Err(error) => tracing::error!(%error, "a thread of the gateway cannot listen"),
                    }
                });
                // A normal shutdown would wait for a name resolution, which may never end.
                runtime.shutdown_background();
                drop(running);
            })?;
        }
        Ok(Self { stop, ended })
    }

    /// Drains: stops accepting, gives requests the time [`Limits::drain`](crate::limits::Limits::drain) to
    /// finish, and resolves when all threads have ended.
    pub(crate) async fn drain(mut self) {
        self.stop.send_replace(true);
        // Nothing is sent; the channel closes with the last thread.
        while self.ended.recv().await.is_some() {}
    }
}

async fn accept(worker: Arc<Worker>, listener: TcpListener, stopping: watch::Receiver<bool>) {
    let counters = &worker.shared.counters;
    let sweeper = tokio::spawn(sweep(Arc::clone(&worker.pool)));
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    let mut stop = stopping.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let activity = Arc::<Activity>::default();
                let shared = &worker.shared;
                let holder = shared.exempt.get_or_init(Exempt::default).holder(peer.ip());
                let (reason, response) = match shared.shares.take(holder, Some(&activity)) {
                    Ok(share) => {
                        let counted = OpenConnection::count(shared);
                        let (worker, stopping, open) = (Arc::clone(&worker), stopping.clone(), open.clone());
                        tokio::spawn(async move {
                            serve_connection(worker, stream, Accepted { peer, share, activity }, stopping)
                                .await;
                            drop((counted, open));
                        });
                        continue;
                    }
                    Err(ShareRefusal::Share) => (Reason::ConnectionShare, &OVER_SHARE),
                    Err(ShareRefusal::Full) => (Reason::Connections, &OVER_LIMIT),
                };
                counters.count_refusal(reason);
                // A new socket has room for the response. Unread bytes would turn the close into a reset,
                // which can overtake the response.
                _ = stream.try_read(&mut [0; 4096]);
                _ = stream.try_write(response);
            }
            Err(_) => {
                counters.count_refusal(Reason::Accept);
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop((listener, open));
    if timeout(worker.shared.limits.drain, all_closed.recv()).await.is_err() {
        counters.count_refusal(Reason::Drain);
    }
    sweeper.abort();
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which stops the threads too.
    _ = stop.wait_for(|stop| *stop).await;
}

/// Closes connections to endpoints that are no longer needed, at the interval [`SWEEP_EVERY`].
async fn sweep(pool: Arc<Pool>) {
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        pool.sweep();
    }
}

/// Counts a connection as open until it is dropped.
struct OpenConnection(Arc<Shared>);

impl OpenConnection {
    fn count(shared: &Arc<Shared>) -> Self {
        shared.counters.connections.fetch_add(1, Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.counters.connections.fetch_sub(1, Relaxed);
    }
}

/// An accepted connection: address of the client, share and activity.
struct Accepted {
    peer: SocketAddr,
    share: Share,
    activity: Arc<Activity>,
}

/// Serves a connection to its end, or until it is evicted while it is idle.
async fn serve_connection(
    worker: Arc<Worker>,
    mut stream: TcpStream,
    Accepted { peer, share, activity }: Accepted,
    stopping: watch::Receiver<bool>,
) {
    // hyper writes messages whole, so Nagle's algorithm would only delay them.
    _ = stream.set_nodelay(true);
    let (shared, limits) = (Arc::clone(&worker.shared), worker.shared.limits);
    let mut prefix = Vec::with_capacity(PREFACE.len());
    let detected = tokio::select! {
        biased;
        detected = timeout(limits.head, detect_http2(&mut stream, &mut prefix)) => detected,
        () = activity.evicted() => return shared.counters.count_refusal(Reason::Evicted),
    };
    let is_http2 = match detected {
        Ok(Ok(is_http2)) => is_http2,
        // The client closed the connection before its first request.
        Ok(Err(_)) => return,
        Err(_) => return shared.counters.count_refusal(Reason::HeadTime),
    };
    let port = stream.local_addr().map_or(0, |local| local.port());
    let ip = peer.ip().to_canonical();
    let client = Client { ip, address: header_value(ip), port: HeaderValue::from(port) };
    let connection = Arc::new(Connection::new(client, share, Arc::clone(&activity)));
    let stream = ClientStream::new(
        stream,
        Bytes::from(prefix),
        !is_http2,
        Arc::clone(&connection),
        limits.write_stall,
    );
    if is_http2 {
        serve_http2(worker, connection, stream, stopping).await;
    } else {
        serve_http1(worker, connection, stream, stopping).await;
    }
}

/// Reads until the first bytes distinguish HTTP/2 from HTTP/1, and keeps them in `prefix`.
async fn detect_http2(stream: &mut TcpStream, prefix: &mut Vec<u8>) -> io::Result<bool> {
    while prefix.len() < PREFACE.len() {
        let mut part = [0; PREFACE.len()];
        let n = stream.read(part.get_mut(prefix.len()..).unwrap_or_default()).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from = prefix.len();
        prefix.extend_from_slice(part.get(from..from + n).unwrap_or_default());
        if !PREFACE.starts_with(prefix) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns an address as a header value; an IPv4-mapped one as IPv4.
fn header_value(ip: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&ip.to_canonical().to_string())
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

async fn serve_http1(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    stream: ClientStream,
    mut stopping: watch::Receiver<bool>,
) {
    let limits = worker.shared.limits;
    let service = service_fn(|request| {
        let (worker, connection) = (Arc::clone(&worker), Arc::clone(&connection));
        async move {
            let response = worker.serve(&connection, request).await;
            connection.announce_response();
            Ok::<_, Infallible>(response)
        }
    });
    let mut serving = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_header_size(limits.head_bytes)
            .max_headers(limits.headers)
            // Buffer of reads and of writes; a whole head must fit.
            .max_buf_size(limits.head_bytes + 32 * 1024)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let result = tokio::select! {
        biased;
        result = serving.as_mut() => result,
        () = stopped(&mut stopping) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = connection.evicted() => {
            worker.shared.counters.count_refusal(Reason::Evicted);
            if connection.is_idle() {
                return;
            }
            // A request has just arrived, so the connection ends after its response.
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    count_end(&worker.shared.counters, result, Reason::Malformed);
}

async fn serve_http2(
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    stream: ClientStream,
    mut stopping: watch::Receiver<bool>,
) {
    let limits = worker.shared.limits;
    let service = service_fn(|request| {
        let (worker, connection) = (Arc::clone(&worker), Arc::clone(&connection));
        async move {
            let response = worker.serve(&connection, request).await;
            let ending = ending(&response);
            Ok::<_, Infallible>(response.map(|body| WatchedBody::new(body, ending)))
        }
    });
    let mut serving = std::pin::pin!(
        http2::Builder::new(StreamExecutor::new(&worker.shared))
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_pending_accept_reset_streams(limits.pending_resets)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(limits.window_bytes)
            .initial_connection_window_size(limits.window_bytes)
            .max_send_buf_size(64 * 1024)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .serve_connection(TokioIo::new(stream), service)
    );
    let idle = idle(&connection, limits.http2_idle);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = connection.evicted() => {
            worker.shared.counters.count_refusal(Reason::Evicted);
            if connection.is_idle() {
                return;
            }
            // A request has just arrived, so the connection ends after its response.
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = async { tokio::select! { () = stopped(&mut stopping) => (), () = idle => () } } => {
            serving.as_mut().graceful_shutdown();
            // The client has this time to finish and to close.
            match timeout(limits.head, serving).await {
                Ok(result) => result,
                Err(_) if connection.is_idle() => return worker.shared.counters.count_refusal(Reason::Http2),
                Err(_) => return worker.shared.counters.count_refusal(Reason::Drain),
            }
        }
    };
    count_end(&worker.shared.counters, result, Reason::Http2);
}

/// Returns whether trailers may follow a response: they do in gRPC, or the response announces them.
fn ending<B>(response: &http::Response<B>) -> Ending {
    let headers = response.headers();
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_grpc = content_type.is_some_and(|media_type| media_type.starts_with(b"application/grpc"));
    if is_grpc || headers.contains_key(header::TRAILER) { Ending::Trailers } else { Ending::Plain }
}

/// Resolves when a connection has had no request for `limit`.
async fn idle(connection: &Connection, limit: Duration) {
    let mut quiet = Duration::ZERO;
    while quiet < limit {
        let interval = IDLE_CHECK.min(limit);
        sleep(interval).await;
        quiet = if connection.is_idle() { quiet + interval } else { Duration::ZERO };
    }
}

/// Counts the reason why a connection ended; none if the client closed it.
fn count_end(counters: &Counters, ended: hyper::Result<()>, protocol: Reason) {
    let Err(error) = ended else { return };
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    if error.is_timeout() {
        counters.count_refusal(Reason::HeadTime);
    } else if source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut) {
        counters.count_refusal(Reason::WriteTime);
    } else if error.is_parse() || protocol == Reason::Http2 && source.is_none() {
        counters.count_refusal(protocol);
    }
    // Otherwise the client closed the connection, or a response broke off. Neither is counted here.
}
