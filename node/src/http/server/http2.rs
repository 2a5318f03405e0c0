//! Connections of gRPC clients: HTTP/2 within the limits of the server.
//!
//! Every request is a stream of its connection and a task. Bounded are the streams of a connection, the
//! headers, the data that waits for a client to read it, the time without progress of a write, and the time
//! without a stream. Messages of gRPC are bounded by `apis/grpc/incomplete`. A client whose host is lost is
//! noticed by pings, and by the keepalive of TCP.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use bytes::Bytes;
use hearsay_services::network::{Activity, Holder};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    rt::Executor,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, futures::TaskLocalFuture},
};
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
/// Time for which a client may leave a response unread. Then its connection ends: a window of HTTP/2 that
/// stays shut keeps the response in memory, while the connection seems alive.
pub(crate) const UNREAD_MAX: Duration = Duration::from_secs(30);
/// Time without a stream after which a connection may end. gRPC clients connect again for the next call.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Time to end a connection without streams.
const IDLE_END: Duration = Duration::from_secs(1);
/// Interval of pings, and the time for the answer.
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
    let (requests, unread) = (Arc::clone(&activity), Arc::clone(&abort));
    let service = service_fn(move |request: Request<Incoming>| {
        let active = requests.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(connection.clone());
        let response = router.clone().call(request);
        let abort = Arc::clone(&unread);
        async {
            let response = response.await;
            response.map(|response| {
                response.map(|body| ReadBody {
                    body: TrackedBody { body, _active: active },
                    abort,
                    unread: None,
                })
            })
        }
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
            if activity.is_idle() {
                return;
            }
            None
        }
        () = unused(&activity) => {
            metrics.http.ended("idle");
            None
        }
    };
    let result = match ended {
        Some(result) => result,
        None => {
            Pin::as_mut(&mut serving).graceful_shutdown();
            // A client that has not sent its preface, or that does not answer, would stay for ever.
            let time = if activity.is_idle() { IDLE_END } else { limits.drain };
            tokio::select! {
                result = serving => result,
                () = abort.notified() => return,
                () = tokio::time::sleep(time) => return,
            }
        }
    };
    if result.is_err() {
        metrics.http.ended("broken");
    }
}

/// Resolves when a connection has had no stream for [`IDLE_MAX`] to twice that.
async fn unused(activity: &Activity) {
    let mut was_idle = false;
    loop {
        tokio::time::sleep(IDLE_MAX).await;
        if was_idle && activity.is_idle() {
            return;
        }
        was_idle = activity.is_idle();
    }
}

/// A response body whose client must read it. Hyper takes the next frame when the client has room for it.
struct ReadBody {
    body: TrackedBody,
    /// Ends the connection.
    abort: Arc<Notify>,
    /// Runs while a frame waits for the client.
    unread: Option<JoinHandle<()>>,
}

impl ReadBody {
    fn stop_timer(&mut self) {
        if let Some(timer) = self.unread.take() {
            timer.abort();
        }
    }
}

impl hyper::body::Body for ReadBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.stop_timer();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.is_data()
        {
            let abort = Arc::clone(&self.abort);
            self.unread = Some(tokio::spawn(async move {
                tokio::time::sleep(UNREAD_MAX).await;
                abort.notify_one();
            }));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ReadBody {
    fn drop(&mut self) {
        self.stop_timer();
    }
}
