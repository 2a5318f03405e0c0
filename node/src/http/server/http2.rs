//! Connections of gRPC clients: HTTP/2 within the limits of the server.
//!
//! Every request is a stream of its connection and a task. Bounded are the streams of a connection, the
//! headers, the time for which a client may leave a response unread, the time without progress of a write,
//! and the time without a stream. Messages of gRPC are bounded by `apis/grpc/request_body`. A client whose
//! host is lost is noticed by pings, and by the keepalive of TCP.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use hearsay_services::{
    http::{Ending, StreamEnd, WatchedBody, watch_stream},
    network::{Activity, Holder},
};
use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
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
/// Time for a client to close a connection that is to end and has no streams.
const IDLE_END: Duration = Duration::from_secs(1);
/// Interval of pings, and the time for the answer.
const PING: Duration = Duration::from_secs(10);

/// Messages of a response up to this size may stay unread for any time, while larger ones reset its stream.
/// An extension of responses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MayStayUnread(pub(crate) usize);

/// Starts the tasks of a connection's streams. They are charged to the host of the connection, and end when
/// the client does not read its response.
#[derive(Clone)]
struct StreamExecutor {
    holder: Holder,
    unread_max: Duration,
    metrics: Arc<Metrics>,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let watched = HOLDER.scope(self.holder, watch_stream(stream, self.unread_max));
        let metrics = Arc::clone(&self.metrics);
        tokio::spawn(async move {
            if watched.await == StreamEnd::Stalled {
                metrics.http.refused("unread");
            }
        });
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
    let streams = StreamExecutor { holder, unread_max: limits.write_stall, metrics: Arc::clone(&metrics) };
    let mut builder = http2::Builder::new(streams);
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
        async {
            let response = response.await;
            response.map(|response| {
                let unwatched = response.extensions().get::<MayStayUnread>().map_or(0, |unread| unread.0);
                response.map(|body| {
                    WatchedBody::with_unwatched(
                        TrackedBody { body, _active: active },
                        Ending::Trailers,
                        unwatched,
                    )
                })
            })
        }
    });
    let io = TokioIo::new(ClientStream::new(stream, limits.write_stall));
    let mut serving = std::pin::pin!(builder.serve_connection(io, service));
    let ended = tokio::select! {
        result = serving.as_mut() => Some(result),
        () = stopped(&mut stop) => None,
        () = activity.evicted() => {
            metrics.http.ended("evicted");
            if activity.is_idle() {
                return;
            }
            None
        }
        () = unused(&activity, limits.idle) => {
            metrics.http.ended("idle");
            None
        }
    };
    let result = match ended {
        Some(result) => result,
        None => {
            Pin::as_mut(&mut serving).graceful_shutdown();
            tokio::select! {
                result = serving => result,
                // A client that has not sent its preface, or that does not answer, would stay for ever.
                () = without_streams(&activity) => return,
                () = tokio::time::sleep(limits.drain) => return,
            }
        }
    };
    if result.is_err() {
        metrics.http.ended("broken");
    }
}

/// Resolves when a connection has had no stream for `limit` to twice that.
async fn unused(activity: &Activity, limit: Duration) {
    let mut was_idle = false;
    loop {
        tokio::time::sleep(limit).await;
        if was_idle && activity.is_idle() {
            return;
        }
        was_idle = activity.is_idle();
    }
}

/// Resolves when a connection that is to end has no stream, and its client has had [`IDLE_END`] to close it.
async fn without_streams(activity: &Activity) {
    loop {
        tokio::time::sleep(IDLE_END).await;
        if activity.is_idle() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use hearsay_protocol::Index;
    use hearsay_services::network::{HostKey, Shares};
    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        http::server::{connection::Connection, limits::Limits, listeners::Stream},
        view::{Clock, View},
    };

    const HOST: Holder = Holder::Host(HostKey::Ipv4(1));

    #[tokio::test]
    async fn an_evicted_connection_closes_at_once_if_it_is_idle_and_else_after_its_call() {
        for is_busy in [false, true] {
            let metrics = Arc::new(Metrics::new(Arc::new(View::new(Index(1), Clock::start()))));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let (shares, activity) = (Shares::new(1), Arc::<Activity>::default());
            let accepted = Accepted {
                stream: Stream::Tcp(stream),
                connection: Connection::new(Limits::default()),
                activity: Arc::clone(&activity),
                _share: shares.take(HOST, Some(&activity)).unwrap(),
            };
            let (_stop, stopping) = watch::channel(false);
            let router = Router::new().route("/", get(|| async {}));
            let serving = tokio::spawn(serve_http2(accepted, router, Arc::clone(&metrics), (stopping, HOST)));
            // The connection is idle when it is chosen, and a call may arrive before its task notices.
            assert!(shares.take(HOST, Some(&Arc::default())).is_ok(), "another connection replaces it");
            let active = is_busy.then(|| activity.begin());
            if is_busy {
                while metrics.http.ended_count("evicted") == 0 {
                    tokio::task::yield_now().await;
                }
                assert!(!serving.is_finished());
            }
            drop(active);
            _ = client.read_to_end(&mut Vec::new()).await.unwrap();
            serving.await.unwrap();
            assert_eq!((metrics.http.ended_count("evicted"), metrics.http.connections.get()), (1, 0));
        }
    }
}
