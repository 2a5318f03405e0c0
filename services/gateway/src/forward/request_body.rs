//! Body of a request on its way to an endpoint: buffered if it is small and the request may be repeated, else
//! streamed. A streamed body is aborted if the client sends nothing for too long. A buffered body must arrive
//! completely in that time.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hearsay_services::{Problem, http::StallTimer};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, timeout};

use crate::{
    limits::Limits,
    refusal::{Reason, Refusal},
    server::connection::Connection,
};

/// Why a body ended early.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// State of an upload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Upload {
    /// No error so far.
    Fine,
    /// The client stopped sending.
    Stalled,
    /// The client sent a malformed body, or closed its connection.
    Broken,
}

impl Upload {
    /// Returns the refusal for a body that the client did not complete.
    pub(crate) fn refusal(self) -> Refusal {
        let (status, detail) = match self {
            Self::Stalled => (StatusCode::REQUEST_TIMEOUT, "the body of the request took too long to arrive"),
            Self::Fine | Self::Broken => {
                (StatusCode::BAD_REQUEST, "the body of the request is malformed or incomplete")
            }
        };
        (Reason::BodyTime, Problem::new(status, detail))
    }
}

/// State of an upload, which an attempt reads while hyper owns the body.
#[derive(Debug)]
pub(crate) struct UploadState {
    state: AtomicU8,
    started: Instant,
    progress_ms: AtomicU64,
}

impl UploadState {
    fn new() -> Self {
        Self { state: AtomicU8::new(0), started: Instant::now(), progress_ms: AtomicU64::new(0) }
    }

    /// Returns the state.
    pub(crate) fn get(&self) -> Upload {
        match self.state.load(Relaxed) {
            0 => Upload::Fine,
            1 => Upload::Stalled,
            _ => Upload::Broken,
        }
    }

    /// Returns the time at which the last piece was passed to the endpoint's connection.
    pub(crate) fn last_progress(&self) -> Instant {
        self.started + Duration::from_millis(self.progress_ms.load(Relaxed))
    }

    fn set(&self, upload: Upload) {
        self.state.store(upload as u8, Relaxed);
    }

    fn record_progress(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress_ms.store(ms, Relaxed);
    }
}

/// A body that is forwarded piece by piece.
#[derive(Debug)]
pub(crate) struct StreamedBody {
    body: Incoming,
    stall: StallTimer,
    connection: Arc<Connection>,
    state: Arc<UploadState>,
}

/// The body of a request to an endpoint.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// No body.
    Empty,
    /// A body in memory, which each attempt sends.
    Buffered(Bytes),
    /// A body that can be sent once.
    Streamed(Box<StreamedBody>),
}

impl RequestBody {
    /// Prepares the body of a request. Buffers it if the request `is_safe` and the body is small enough.
    ///
    /// # Errors
    /// The body to be buffered stalls or is malformed.
    pub(crate) async fn prepare(
        limits: &Limits,
        connection: &Arc<Connection>,
        body: Incoming,
        is_safe: bool,
    ) -> Result<(Self, Option<Arc<UploadState>>), Refusal> {
        if body.is_end_stream() {
            return Ok((Self::Empty, None));
        }
        if is_safe && body.size_hint().upper().is_some_and(|bytes| bytes <= limits.replay_bytes) {
            let max = usize::try_from(limits.replay_bytes).unwrap_or(usize::MAX);
            let collected = timeout(limits.stall, Limited::new(body, max).collect()).await;
            connection.end_body();
            return match collected {
                Ok(Ok(collected)) => Ok((Self::Buffered(collected.to_bytes()), None)),
                Ok(Err(_)) => Err(Upload::Broken.refusal()),
                Err(_) => Err(Upload::Stalled.refusal()),
            };
        }
        let state = Arc::new(UploadState::new());
        let streamed = StreamedBody {
            body,
            stall: StallTimer::new(limits.stall),
            connection: Arc::clone(connection),
            state: Arc::clone(&state),
        };
        Ok((Self::Streamed(Box::new(streamed)), Some(state)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let streamed = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Buffered(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Buffered(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Streamed(streamed) => streamed,
        };
        let polled = Pin::new(&mut streamed.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(_))) => {
                streamed.stall.restart();
                streamed.state.record_progress();
            }
            Poll::Ready(Some(Err(_))) => streamed.state.set(Upload::Broken),
            Poll::Ready(None) => streamed.connection.end_body(),
            Poll::Pending if streamed.stall.poll_stalled(cx).is_ready() => {
                streamed.state.set(Upload::Stalled);
                return Poll::Ready(Some(Err("the client stopped sending its body".into())));
            }
            Poll::Pending => (),
        }
        if polled.is_ready() && streamed.body.is_end_stream() {
            streamed.connection.end_body();
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Buffered(bytes) => bytes.is_empty(),
            Self::Streamed(streamed) => streamed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Buffered(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(streamed) => streamed.body.size_hint(),
        }
    }
}
