//! Write timeout of HTTP/2 streams: ends a stream whose client does not read its response.
//!
//! Hand-written, because hyper and h2 have no write timeout. A client that opens no window for a stream makes
//! the server keep the response. The request also stays in flight, without a byte on the wire. hyper takes
//! the next piece of a body only when the window has room for the last one, so the body cannot detect that.
//! Instead, the task of the stream ([`watch_stream`]) checks whether its [`WatchedBody`] was polled since its
//! last piece. After the limit it drops the stream, which resets it (RFC 9113, section 5.4.2).
//!
//! hyper takes a whole piece if the window has room for one byte, and finishes the stream with the last
//! piece, or with the trailers after it. So pieces are small, and the last byte is a piece of its own.
//! Otherwise a window of one byte could make hyper hold a response that is no longer watched. The gateway's
//! test `a_response_that_is_read_except_for_its_end_is_reset` checks this.

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
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    task::futures::TaskLocalFuture,
    time::{Instant, Sleep, sleep_until},
};

tokio::task_local! {
    /// The progress of the stream of the current task.
    static PROGRESS: Arc<Progress>;
}

/// Step counter of a response: odd while the response waits for the client, even while it waits for its
/// source.
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

    /// Records that there is no piece yet, or one that may stay unread.
    fn record_pending(&self) {
        self.0.store((self.0.load(Relaxed) + 1) & !1, Relaxed);
    }
}

/// Bytes of a piece: the default frame size (RFC 9113, section 6.5.2).
const PIECE_BYTES: usize = 16 * 1024;

/// What may follow the last byte of a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Nothing, as far as the body knows its end in advance.
    Plain,
    /// Trailers, as in gRPC. Any byte may be the last one.
    Trailers,
}

/// A response body that records when it is polled.
#[derive(Debug)]
pub struct WatchedBody<B> {
    body: B,
    /// The rest of a piece of the inner body.
    rest: Bytes,
    /// Pieces of the inner body up to this size may stay unread for any time.
    unwatched_bytes: usize,
    is_watched: bool,
    ending: Ending,
}

impl<B: Body<Data = Bytes> + Unpin> WatchedBody<B> {
    /// Returns the body of a response whose head is sent now. Must be called in the task of its stream.
    pub fn new(body: B, ending: Ending) -> Self {
        Self::with_unwatched(body, ending, 0)
    }

    /// Returns a body as [`new`](Self::new). Its pieces up to this size may stay unread for any time.
    pub fn with_unwatched(body: B, ending: Ending, unwatched_bytes: usize) -> Self {
        let is_watched = unwatched_bytes == 0;
        let new = Self { body, rest: Bytes::new(), unwatched_bytes, is_watched, ending };
        new.record(true);
        new
    }

    fn record(&self, is_ready: bool) {
        // An error means that the task is none of `watch_stream`, so the progress is not watched.
        _ = PROGRESS.try_with(|progress| match is_ready && self.is_watched {
            true => progress.record_ready(),
            false => progress.record_pending(),
        });
    }

    /// Returns the next piece of the rest, which is not empty.
    fn split_piece(&mut self) -> Bytes {
        let may_end = self.ending == Ending::Trailers || self.body.is_end_stream();
        let is_last = self.rest.len() <= PIECE_BYTES && may_end;
        let held_back = usize::from(is_last && self.rest.len() > 1);
        self.rest.split_to((self.rest.len() - held_back).min(PIECE_BYTES))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                polled => return polled,
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(data) => {
                    self.is_watched = data.len() > self.unwatched_bytes;
                    self.rest = data;
                }
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(self.split_piece()))))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for WatchedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = self.poll_piece(cx);
        self.record(polled.is_ready());
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

/// Outcome of a stream's task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamEnd {
    /// The stream has ended by itself.
    Done,
    /// The client has not read for the limit.
    Stalled,
}

/// The task of a stream. Dropping it resets the stream.
#[derive(Debug)]
pub struct WatchedStream<F> {
    stream: Pin<Box<TaskLocalFuture<Arc<Progress>, F>>>,
    progress: Arc<Progress>,
    limit: Duration,
    /// The step at which the timer was set.
    stalled_at: u64,
    /// Created when the response waits for the client for the first time.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Returns the task of a stream, as hyper gives it to its executor. The task ends when the client has not
/// read for `limit`.
pub fn watch_stream<F: Future<Output = ()>>(stream: F, limit: Duration) -> WatchedStream<F> {
    let progress = Arc::<Progress>::default();
    let stream = Box::pin(PROGRESS.scope(Arc::clone(&progress), stream));
    WatchedStream { stream, progress, limit, stalled_at: 0, timer: None }
}

impl<F: Future<Output = ()>> Future for WatchedStream<F> {
    type Output = StreamEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<StreamEnd> {
        if self.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(StreamEnd::Done);
        }
        let Some(at) = self.progress.waits_for_client() else { return Poll::Pending };
        let this = &mut *self;
        let deadline = Instant::now() + this.limit;
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if this.stalled_at != at {
            this.stalled_at = at;
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).map(|()| StreamEnd::Stalled)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn a_body_is_whole_and_its_last_byte_is_a_piece_of_its_own() {
        for length in [0, 1, 2, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7] {
            let whole = Bytes::from((0..length).map(|n| n as u8).collect::<Vec<_>>());
            let mut body = WatchedBody::new(Full::new(whole.clone()), Ending::Plain);
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

    #[tokio::test]
    async fn the_last_byte_before_trailers_is_a_piece_of_its_own() {
        for (ending, expected) in [(Ending::Trailers, vec![99, 1, 1]), (Ending::Plain, vec![100, 1])] {
            let frames = [Frame::data(Bytes::from(vec![7; 100])), Frame::data(Bytes::from_static(b"x"))];
            let frames = frames.into_iter().chain([Frame::trailers(http::HeaderMap::new())]);
            let frames = futures::stream::iter(frames.map(Ok::<_, std::io::Error>));
            let mut body = WatchedBody::new(http_body_util::StreamBody::new(frames), ending);
            let mut pieces = Vec::new();
            while let Some(frame) = body.frame().await {
                pieces.extend(frame.unwrap().data_ref().map(Bytes::len));
            }
            assert_eq!(pieces, expected);
        }
    }
}
