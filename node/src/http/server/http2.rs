//! Connections of gRPC clients: HTTP/2 within the limits of the server.
//!
//! Every request is a stream of its connection and a task. Bounded are the streams of a connection, the
//! headers, the data that waits for a client to read it, and the time without progress of a write. A client
//! whose host is lost is noticed by pings, and by the keepalive of TCP.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use hearsay_services::network::Holder;
use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{sync::watch, task::futures::TaskLocalFuture};
use tower::Service as _;

use crate::{
    http::server::{
        accepted::{Accepted, OpenGuard, TrackedBody, stopped},
        client_stream::ClientStream,
        connection::HOLDER,
    },
    metrics::Metrics,
};

/// Streams of one connection. One client process multiplexes all its requests over one connection; the
/// default of gRPC servers is 100.
const STREAMS_MAX: u32 = 256;
/// Bytes of a response that are buffered while its client does not read.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes that a client may send on one stream, and on one connection, before they are read.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Size of a request's headers.
const HEADERS_BYTES: u32 = 16 * 1024;
/// Interval of pings on a connection with open streams, and the time for the answer.
const PING: Duration = Duration::from_secs(10);

/// Starts the tasks of a connection's streams, which are charged to the host of the connection.
#[derive(Clone)]
struct ChargedTo(Holder);

impl<F> Executor<F> for ChargedTo
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let charged: TaskLocalFuture<Holder, F> = HOLDER.scope(self.0, future);
        tokio::spawn(charged);
    }
}

/// Serves a connection to its end, or until it is evicted while idle.
pub(super) async fn serve_http2(
    accepted: Accepted,
    router: Router,
    metrics: Arc<Metrics>,
    (mut stop, holder): (watch::Receiver<bool>, Holder),
) {
    let _open = OpenGuard::count(&metrics);
    let Accepted { stream, connection, activity, _share } = accepted;
    let limits = Arc::clone(&connection.limits);
    let abort = Arc::clone(&connection.abort);
    let mut builder = http2::Builder::new(ChargedTo(holder));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADERS_BYTES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let requests = Arc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let active = requests.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(connection.clone());
        let response = router.clone().call(request);
        async { response.await.map(|response| response.map(|body| TrackedBody { body, _active: active })) }
    });
    let io = TokioIo::new(ClientStream::new(stream, limits.write_stall));
    let mut serving = std::pin::pin!(builder.serve_connection(io, service));
    let ended = tokio::select! {
        result = serving.as_mut() => Some(result),
        () = stopped(&mut stop) => None,
        () = abort.notified() => {
            metrics.http.ended("unread");
            return;
        }
        () = activity.evicted() => {
            metrics.http.ended("evicted");
            None
        }
    };
    let result = match ended {
        Some(result) => result,
        None => {
            Pin::as_mut(&mut serving).graceful_shutdown();
            serving.await
        }
    };
    if result.is_err() {
        metrics.http.ended("broken");
    }
}
