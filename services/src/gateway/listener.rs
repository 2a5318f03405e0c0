//! Takes clients' connections, on threads of its own.
//!
//! Each thread has a runtime of its own, accepts from the one listener, and keeps its connections to the end, those to instances
//! included: no request is handed from one core to another. A thread that is busy accepts less.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use hyper::{server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    batch::Socket,
    counters::{Counters, Reason},
    forward::Client,
    head_timer::HeadTimer,
    pool::Pool,
    proxy::Worker,
    shared::Shared,
    stream::{ClientStream, Connection},
    write_stall::{StreamExecutor, Taken},
};
use crate::{
    refusal,
    shares::{self, Activity, Exempt, Share},
};

/// How long to wait when the system has no socket to give (it is out of descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How often connections to instances are looked over.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether an HTTP/2 connection is idle.
const IDLE_LOOK_EVERY: Duration = Duration::from_secs(5);
/// What every HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection over the limit is told. Made once, so that refusing costs nothing.
static OVERFULL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    refusal::answer(StatusCode::SERVICE_UNAVAILABLE, "too many connections; try again or ask another")
});
/// What one over its host's share is told.
static OVER_SHARE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let detail = "your host has its share of the connections here, which are nearly as many as the limit; close some, or ask another";
    refusal::answer(StatusCode::SERVICE_UNAVAILABLE, detail)
});

/// Threads that serve, until this is dropped.
#[derive(Debug)]
pub struct Serving {
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
}

impl Serving {
    /// Starts threads that serve this listener.
    ///
    /// # Errors
    /// The system gives no thread, or no further handle of the listener. Those that were started stop again.
    pub fn start(shared: &Arc<Shared>, listener: &std::net::TcpListener) -> io::Result<Self> {
        let (stop, stopping) = watch::channel(false);
        let (running, ended) = mpsc::channel(1);
        for thread in 0..shared.threads {
            let (shared, listener) = (Arc::clone(shared), listener.try_clone()?);
            let (stopping, running) = (stopping.clone(), running.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name(format!("gateway-{thread}")).spawn(move || {
                runtime.block_on(async move {
                    let pool = Arc::new(Pool::new(thread, shared.limits, shared.policy.clone()));
                    let worker = Arc::new(Worker { shared, pool });
                    match TcpListener::from_std(listener) {
                        Ok(listener) => accept(worker, listener, stopping).await,
                        Err(error) => tracing::error!(%error, "a thread of the gateway cannot listen"),
                    }
                });
                // A resolver that does not answer keeps a thread for as long as it likes.
                runtime.shutdown_background();
                drop(running);
            })?;
        }
        Ok(Self { stop, ended })
    }

    /// Stops accepting, lets requests finish for [`Limits::drain`](super::limits::Limits::drain), and resolves when all threads are done.
    pub async fn drain(mut self) {
        self.stop.send_replace(true);
        // Nobody sends; it ends with the last thread.
        while self.ended.recv().await.is_some() {}
    }
}

async fn accept(worker: Arc<Worker>, listener: TcpListener, stopping: watch::Receiver<bool>) {
    let counters = &worker.shared.counters;
    let sweeper = tokio::spawn(sweep(Arc::clone(&worker)));
    let batch = Arc::clone(&worker.pool.batch);
    let sender = tokio::spawn(async move { batch.run().await });
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
                let (reason, words) = match shared.shares.take(holder, Some(&activity)) {
                    Ok(share) => {
                        let counted = Open::count(shared);
                        let (worker, stopping, open) = (Arc::clone(&worker), stopping.clone(), open.clone());
                        tokio::spawn(async move {
                            serve_one(worker, stream, Arrival { peer, share, activity }, stopping).await;
                            drop((counted, open));
                        });
                        continue;
                    }
                    Err(shares::Refusal::Share) => (Reason::ConnectionShare, &OVER_SHARE),
                    Err(shares::Refusal::Full) => (Reason::Connections, &OVERFULL),
                };
                counters.refused(reason);
                // A fresh socket has room for this. Taking in what it has sent lets the close be a close and no reset, which can
                // overtake the words.
                let _ = stream.try_read(&mut [0; 4096]);
                let _ = stream.try_write(words);
            }
            Err(_) => {
                counters.refused(Reason::Accept);
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop((listener, open));
    if timeout(worker.shared.limits.drain, all_closed.recv()).await.is_err() {
        counters.refused(Reason::Drain);
    }
    sweeper.abort();
    sender.abort();
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error: nobody can say stop any more, so nobody means us to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Closes connections to instances that have waited for too long.
async fn sweep(worker: Arc<Worker>) {
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        worker.shared.routes().targets().for_each(|target| worker.pool.sweep(target));
    }
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Shared>);

impl Open {
    fn count(shared: &Arc<Shared>) -> Self {
        shared.counters.connections.fetch_add(1, Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counters.connections.fetch_sub(1, Relaxed);
    }
}

/// A connection that was admitted.
struct Arrival {
    peer: SocketAddr,
    share: Share,
    activity: Arc<Activity>,
}

/// Serves one connection to its end, or until its place is needed while it is idle.
async fn serve_one(
    worker: Arc<Worker>,
    mut stream: TcpStream,
    Arrival { peer, share, activity }: Arrival,
    stopping: watch::Receiver<bool>,
) {
    // Answers are written whole; waiting for more to send with them would only delay them.
    let _ = stream.set_nodelay(true);
    let (shared, limits) = (Arc::clone(&worker.shared), worker.shared.limits);
    let mut beginning = Vec::with_capacity(PREFACE.len());
    let sniffed = tokio::select! {
        biased;
        sniffed = timeout(limits.head, sniff(&mut stream, &mut beginning)) => sniffed,
        () = activity.evicted() => return shared.counters.refused(Reason::Evicted),
    };
    let is_http2 = match sniffed {
        Ok(Ok(is_http2)) => is_http2,
        // It ended without a word, or in the middle of its first one.
        Ok(Err(_)) => return,
        Err(_) => return shared.counters.refused(Reason::HeadTime),
    };
    // Without an address there would be no connection.
    let port = stream.local_addr().map_or(0, |local| local.port());
    let ip = peer.ip().to_canonical();
    let client = Client { ip, address: address_of(ip), port: HeaderValue::from(port) };
    let connection = Arc::new(Connection::new(client, share, Arc::clone(&activity)));
    let stream = ClientStream::new(
        Socket::new(stream, &worker.pool.batch),
        Bytes::from(beginning),
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

/// Reads as much as tells HTTP/2 from everything else, and keeps it.
async fn sniff(stream: &mut TcpStream, beginning: &mut Vec<u8>) -> io::Result<bool> {
    while beginning.len() < PREFACE.len() {
        let mut part = [0; PREFACE.len()];
        let n = stream.read(part.get_mut(beginning.len()..).unwrap_or_default()).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from = beginning.len();
        beginning.extend_from_slice(part.get(from..from + n).unwrap_or_default());
        if !PREFACE.starts_with(beginning) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// As a list of addresses in a header has it. A mapped address is shown as what it is.
fn address_of(ip: IpAddr) -> HeaderValue {
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
            let answer = worker.serve(&connection, request).await;
            connection.answered();
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let mut serving = std::pin::pin!(
        http1::Builder::new()
            .timer(HeadTimer::new(limits.head))
            .header_read_timeout(limits.head)
            .max_header_size(limits.head_bytes)
            .max_headers(limits.headers)
            // Of reading and writing; hyper reads heads into it.
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
            worker.shared.counters.refused(Reason::Evicted);
            if connection.is_idle() {
                return;
            }
            // A request came just then, and is answered.
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    count(&worker.shared.counters, result, Reason::Malformed);
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
            let answer = worker.serve(&connection, request).await;
            Ok::<_, std::convert::Infallible>(answer.map(Taken::new))
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
            worker.shared.counters.refused(Reason::Evicted);
            if connection.is_idle() {
                return;
            }
            // Requests came just then, and are answered.
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = async { tokio::select! { () = stopped(&mut stopping) => (), () = idle => () } } => {
            serving.as_mut().graceful_shutdown();
            // Who does not even close has had enough time.
            match timeout(limits.head, serving).await {
                Ok(result) => result,
                Err(_) if connection.is_idle() => return worker.shared.counters.refused(Reason::Http2),
                Err(_) => return worker.shared.counters.refused(Reason::Drain),
            }
        }
    };
    count(&worker.shared.counters, result, Reason::Http2);
}

/// Resolves when a connection has had no request for so long.
async fn idle(connection: &Connection, limit: Duration) {
    let mut quiet = Duration::ZERO;
    while quiet < limit {
        let look = IDLE_LOOK_EVERY.min(limit);
        sleep(look).await;
        quiet = if connection.is_idle() { quiet + look } else { Duration::ZERO };
    }
}

/// Counts why a connection ended, unless it was by agreement.
fn count(counters: &Counters, ended: hyper::Result<()>, protocol: Reason) {
    let Err(error) = ended else { return };
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    if error.is_timeout() {
        counters.refused(Reason::HeadTime);
    } else if source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut) {
        counters.refused(Reason::WriteTime);
    } else if error.is_parse() || protocol == Reason::Http2 && source.is_none() {
        counters.refused(protocol);
    }
    // Everything else is a client that went away, or an answer that broke and was counted.
}
