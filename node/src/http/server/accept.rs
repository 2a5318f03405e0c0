//! Accept loop: admits connections within the limits and serves each in a task of its own.
//!
//! `axum::serve` sets no timer and no limit, so a client with a few thousand idle sockets could stop a node.
//! Here every resource that a client can hold has a bound. Bounded are connections, time and size of a
//! request's head, time and size of its body (`request_body`), and the time without progress of a write
//! (`client_stream`). An idle connection ends after the same time as a slow head. Each end is counted.

use std::{
    io,
    pin::Pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, StatusCode},
};
use hearsay_services::{
    http::bare_response,
    network::{Activity, Holder, ShareRefusal, Shares},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tower::Service;

use crate::{
    http::server::{
        accepted::{Accepted, OpenGuard, TrackedBody, stopped},
        client_stream::ClientStream,
        connection::{Connection, HOLDER},
        http2::serve_http2,
        limits::Limits,
        listeners::{Listeners, Peer, Protocol, Stream},
    },
    metrics::Metrics,
};

/// Response to a connection over the limit. Built once, so that a refusal is cheap.
static OVER_LIMIT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    bare_response(
        StatusCode::SERVICE_UNAVAILABLE,
        "this node has too many connections; try again, or ask another node",
    )
});

/// Response to a connection over the share of its host.
static OVER_SHARE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let detail = "your host holds its share of this node's connections, which are nearly at the limit; close some, or ask another node";
    bare_response(StatusCode::SERVICE_UNAVAILABLE, detail)
});

/// Pause after a failed accept. The process is out of file descriptors; meanwhile some may be closed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until `stop` is true or its sender is dropped, then drains: requests have [`Limits::drain`] to
/// finish.
///
/// Set the readiness to [`Leaving`](crate::http::Readiness::Leaving) first. It ends blocking queries and
/// event streams, which would otherwise last until the end of the drain.
pub async fn serve(
    listeners: impl Into<Listeners>,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let listeners = listeners.into();
    let grpc = listeners.grpc_router();
    let base = Connection::new(limits);
    let shares = Shares::new(base.limits.connections);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            // Removes ended connections, so that the size of the set is the number of open ones.
            Some(_) = connections.join_next() => continue,
            accepted = listeners.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer, protocol)) => {
                let holder = match peer {
                    Peer::Tcp(address) => base.limits.exempt.holder(address.ip()),
                    Peer::Unix(_) => Holder::Exempt,
                };
                let activity = Arc::<Activity>::default();
                let share = match shares.take(holder, Some(&activity)) {
                    Ok(share) => share,
                    Err(refusal) => {
                        refuse(&stream, (refusal, protocol), &metrics);
                        continue;
                    }
                };
                let connection = match peer {
                    Peer::Tcp(address) => {
                        if !address.ip().to_canonical().is_loopback() {
                            stream.enable_keepalive();
                        }
                        Connection { peer: Some(address), ..base.clone() }
                    }
                    Peer::Unix(credentials) => Connection { socket: Some(credentials), ..base.clone() },
                };
                let accepted = Accepted { stream, connection, activity, _share: share };
                let (metrics, stop) = (Arc::clone(&metrics), stop.clone());
                match (protocol, &grpc) {
                    (Protocol::Http2, Some(grpc)) => {
                        connections.spawn(serve_http2(accepted, grpc.clone(), metrics, (stop, holder)));
                    }
                    _ => {
                        let serving = serve_connection(accepted, router.clone(), metrics, stop);
                        connections.spawn(HOLDER.scope(holder, serving));
                    }
                }
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

/// Sends 503 to a connection that is not admitted.
///
/// A connection of gRPC only closes. Its client reports UNAVAILABLE, and waits before it connects again.
/// After SETTINGS and GOAWAY, clients based on gRPC's core would count the connection as established. They
/// would open one after another without a pause, until the deadline of the call.
fn refuse(stream: &Stream, (refusal, protocol): (ShareRefusal, Protocol), metrics: &Metrics) {
    let (reason, response) = match refusal {
        ShareRefusal::Share => ("connection_share", &OVER_SHARE),
        ShareRefusal::Full => ("connections", &OVER_LIMIT),
    };
    metrics.http.refused(reason);
    // A fresh socket has room for the response; otherwise the client only misses the text. Closing a socket
    // with unread bytes would send a reset, which can overtake the response, so the bytes are read first.
    let _ = stream.try_read(&mut [0; 4096]);
    if protocol == Protocol::Http1 {
        let _ = stream.try_write(response);
    }
}

/// Serves a connection to its end, or until it is evicted while idle.
async fn serve_connection(
    accepted: Accepted,
    router: Router,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let _open = OpenGuard::count(&metrics);
    let Accepted { stream, connection, activity, _share } = accepted;
    let limits = Arc::clone(&connection.limits);
    let mut builder = http1::Builder::new();
    builder
        // Responses are short: copying head and body together costs less than a vectored write.
        .writev(false)
        // Some clients of Consul compare the bytes of header names, in title case.
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_header_size(limits.head_bytes)
        .max_headers(limits.headers)
        // Limit of the read buffer and of the write buffer. Hyper needs at least 8 kB, and the read buffer
        // must hold a head.
        .max_buf_size(limits.head_bytes.max(8 * 1024) + 8 * 1024);
    let requests = Arc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let active = requests.begin();
        let mut request = request.map(Body::new);
        if may_wait(&request) {
            copy_head(&mut request);
        }
        request.extensions_mut().insert(connection.clone());
        // A router is always ready.
        let response = router.clone().call(request);
        async { response.await.map(|response| response.map(|body| TrackedBody { body, _active: active })) }
    });
    let io = TokioIo::new(ClientStream::new(stream, limits.write_stall));
    let mut serving = builder.serve_connection(io, service);
    let ended = tokio::select! {
        result = &mut serving => Some(result),
        () = stopped(&mut stop) => None,
        () = activity.evicted() => {
            metrics.http.ended("evicted");
            if activity.is_idle() {
                return;
            }
            // A request has arrived meanwhile; it is answered before the connection ends.
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
        metrics.http.ended(end_reason(&error));
        let parts = serving.into_parts();
        // An idle connection ends without a response: the client may be sending its next request, and would
        // take the response for the answer to that request.
        if error.is_timeout() && !parts.read_buf.is_empty() {
            let detail = "the head of the request took too long to arrive; send it at once";
            // The client may be gone.
            _ = parts.io.into_inner().stream.try_write(&bare_response(StatusCode::REQUEST_TIMEOUT, detail));
        }
    }
}

/// Returns whether a request is a blocking query, which may wait for minutes.
fn may_wait(request: &Request<Body>) -> bool {
    request.uri().query().is_some_and(|query| ["index=", "hash="].iter().any(|name| query.contains(name)))
}

/// Copies the head of a request. Its parts are slices of hyper's read buffer of 8 KiB. While they are alive,
/// hyper allocates another buffer to notice that the client closes the connection.
fn copy_head(request: &mut Request<Body>) {
    if let Ok(uri) = request.uri().to_string().parse() {
        *request.uri_mut() = uri;
    }
    for value in request.headers_mut().values_mut() {
        if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
            *value = copy;
        }
    }
}

/// Returns the metric label for the end of a connection.
fn end_reason(error: &hyper::Error) -> &'static str {
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
