//! Write timeout of HTTP/2 streams: resets a stream whose client does not read its response.
//!
//! Hand-written, because hyper and h2 have no write timeout. A client that opens no window for a stream makes
//! the gateway keep the response. The request also stays in flight, without a byte on the wire. hyper polls a
//! body only while the window is open, so the body cannot detect that. Instead, the task of the stream checks
//! whether the body was polled since its last piece. After
//! [`Limits::write_stall`](crate::limits::Limits::write_stall) it drops the stream, which resets it (RFC
//! 9113, section 5.4.2). HTTP/1 connections have the same limit ([`super::client_stream`]).
//!
//! hyper takes a whole piece if the window has room for one byte, and finishes the stream with the last
//! piece. So pieces are small, and the last byte is a piece of its own. Otherwise a window of one byte could
//! make hyper hold a response that is no longer watched. The test
//! `a_response_that_is_read_except_for_its_end_is_reset` checks this.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    body::{Body, Frame, SizeHint},
    rt::Executor,
};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    forward::{request_body::BodyError, response_body::ResponseBody},
    refusal::Reason,
    shared::Shared,
};

tokio::task_local! {
    /// The progress of the stream of the current task.
    static PROGRESS: Arc<Progress>;
}

/// Step counter of a response: odd while the response waits for the client, even while it waits for the
/// instance.
#[derive(Debug, Default)]
struct Progress(AtomicU64);

impl Progress {
    fn waits_for_client(&self) -> Option<u64> {
        let moves = self.0.load(Relaxed);
        (moves % 2 == 1).then_some(moves)
    }

    /// Records that the head or a piece is ready for the client.
    fn record_ready(&self) {
        // Only the task of the stream writes the counter.
        self.0.store((self.0.load(Relaxed) + 1) | 1, Relaxed);
    }

    /// Records that the instance has no piece yet.
    fn record_pending(&self) {
        self.0.store((self.0.load(Relaxed) + 1) & !1, Relaxed);
    }
}

/// Bytes of a piece: the default frame size (RFC 9113, section 6.5.2).
const PIECE_BYTES: usize = 16 * 1024;

/// A response body that records when it is polled.
#[derive(Debug)]
pub(crate) struct WatchedBody {
    body: ResponseBody,
    /// The rest of a piece of the inner body.
    rest: Bytes,
}

impl WatchedBody {
    /// Returns the body of a response whose head is sent now. Must be called in the task of its stream.
    pub(crate) fn new(body: ResponseBody) -> Self {
        // An error means that this is no task of [`StreamExecutor`], so the progress is not watched.
        _ = PROGRESS.try_with(|progress| progress.record_ready());
        Self { body, rest: Bytes::new() }
    }

    /// Returns the next piece of the rest, which is not empty.
    fn split_piece(&mut self) -> Bytes {
        let is_last = self.rest.len() <= PIECE_BYTES && self.body.is_end_stream();
        let held_back = usize::from(is_last && self.rest.len() > 1);
        self.rest.split_to((self.rest.len() - held_back).min(PIECE_BYTES))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.rest.is_empty() {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                polled => return polled,
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(self.split_piece()))))
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_piece(cx);
        _ = PROGRESS.try_with(|progress| {
            if polled.is_ready() { progress.record_ready() } else { progress.record_pending() }
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// Executor of the streams of HTTP/2 connections. It drops those whose client does not read.
#[derive(Clone, Debug)]
pub(crate) struct StreamExecutor {
    shared: Arc<Shared>,
}

impl StreamExecutor {
    /// Returns an executor with the limits and counters of this gateway.
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared) }
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let progress = Arc::<Progress>::default();
        let shared = Arc::clone(&self.shared);
        let limit = shared.limits.write_stall;
        let stream = Box::pin(PROGRESS.scope(Arc::clone(&progress), stream));
        let watched = WatchedStream { stream, progress, limit, stalled_at: 0, timer: None };
        tokio::spawn(async move {
            if watched.await == End::Stalled {
                shared.counters.count_refusal(Reason::WriteTime);
            }
        });
    }
}

/// How the task of a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Done,
    Stalled,
}

/// The task of a stream. Dropping it resets the stream.
struct WatchedStream<F> {
    stream: Pin<Box<F>>,
    progress: Arc<Progress>,
    limit: Duration,
    /// The step at which the timer was set.
    stalled_at: u64,
    /// Created when the response waits for the client for the first time.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for WatchedStream<F> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        if self.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Done);
        }
        let Some(at) = self.progress.waits_for_client() else { return Poll::Pending };
        let this = &mut *self;
        let deadline = Instant::now() + this.limit;
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if this.stalled_at != at {
            this.stalled_at = at;
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).map(|()| End::Stalled)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_body_is_whole_and_its_last_byte_is_a_piece_of_its_own() {
        for length in [0, 1, 2, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7] {
            let whole = Bytes::from((0..length).map(|n| n as u8).collect::<Vec<_>>());
            let mut body = WatchedBody::new(ResponseBody::Own(whole.clone()));
            let (mut pieces, mut read) = (Vec::new(), Vec::new());
            assert_eq!(body.size_hint().exact(), Some(length as u64));
            while let Some(frame) = body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                read.extend_from_slice(&data);
                pieces.push(data.len());
                assert_eq!(body.size_hint().exact(), Some((length - read.len()) as u64));
                assert_eq!(body.is_end_stream(), read.len() == length);
            }
            assert_eq!(read, whole);
            assert!(pieces.iter().all(|piece| *piece <= PIECE_BYTES), "{pieces:?}");
            assert_eq!(pieces.last().copied(), (length > 0).then_some(1), "{pieces:?}");
        }
    }
}
