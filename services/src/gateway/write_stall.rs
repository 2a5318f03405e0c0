//! Answers of HTTP/2 that the client does not take.
//!
//! A client that opens no window for a stream holds its answer, and with it a place among the requests in flight, without a byte on the wire: hyper asks
//! for a piece of a body only while there is room for it, so the body cannot notice by itself. Here the task of a stream watches whether the body has been
//! asked since its last piece. A stream whose answer stands still for [`Limits::write_stall`](super::limits::Limits::write_stall) is dropped, which
//! resets it (RFC 9113, section 5.4.2). HTTP/1 has the same bound on its connection ([`super::stream`]).
//!
//! hyper takes a whole piece where there is room for one byte, and is done with the stream when it has the last one. So pieces are small, and the last byte
//! is a piece of its own: a client that opens a window of one byte does not have an answer kept for it that nothing watches any more.

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

use super::{
    body::{Answer, BodyError},
    counters::Reason,
    shared::Shared,
};

tokio::task_local! {
    /// The progress of the stream whose task is running.
    static PROGRESS: Arc<Progress>;
}

/// How often the answer of a stream moved. Odd while the client has to move next, even while the instance has to.
#[derive(Debug, Default)]
struct Progress(AtomicU64);

impl Progress {
    fn is_up_to_client(&self) -> Option<u64> {
        let moves = self.0.load(Relaxed);
        (moves % 2 == 1).then_some(moves)
    }

    /// A piece is ready for the client, or the head is.
    fn ready(&self) {
        // The task of the stream alone writes.
        self.0.store((self.0.load(Relaxed) + 1) | 1, Relaxed);
    }

    /// There is no piece.
    fn waits(&self) {
        self.0.store((self.0.load(Relaxed) + 1) & !1, Relaxed);
    }
}

/// Bytes of a piece: a frame's, unless the client wants larger ones (RFC 9113, section 6.5.2).
const PIECE_BYTES: usize = 16 * 1024;

/// The body of an answer, which notes when it is asked.
#[derive(Debug)]
pub struct Taken {
    answer: Answer,
    /// Of a piece of the answer, what has not been handed over.
    rest: Bytes,
}

impl Taken {
    /// An answer whose head goes to the client now. Inside the task of its stream.
    pub fn new(answer: Answer) -> Self {
        // Without a task of [`StreamExecutor`] nothing is watched.
        _ = PROGRESS.try_with(|progress| progress.ready());
        Self { answer, rest: Bytes::new() }
    }

    /// The next piece of the rest, which is not empty.
    fn split_piece(&mut self) -> Bytes {
        let is_last = self.rest.len() <= PIECE_BYTES && self.answer.is_end_stream();
        let held_back = usize::from(is_last && self.rest.len() > 1);
        self.rest.split_to((self.rest.len() - held_back).min(PIECE_BYTES))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.rest.is_empty() {
            let frame = match Pin::new(&mut self.answer).poll_frame(cx) {
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

impl Body for Taken {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_piece(cx);
        _ = PROGRESS.try_with(|progress| if polled.is_ready() { progress.ready() } else { progress.waits() });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (answer, rest) = (self.answer.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(answer.lower() + rest);
        if let Some(upper) = answer.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// Runs the streams of HTTP/2 connections, each for as long as its client takes what it is sent.
#[derive(Clone, Debug)]
pub struct StreamExecutor {
    shared: Arc<Shared>,
}

impl StreamExecutor {
    /// With the bounds and counters of this gateway.
    pub fn new(shared: &Arc<Shared>) -> Self {
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
        let watched = Watched { stream, progress, limit, stalled_at: 0, timer: None };
        tokio::spawn(async move {
            if watched.await == End::Stalled {
                shared.counters.refused(Reason::WriteTime);
            }
        });
    }
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Done,
    Stalled,
}

/// The task of a stream. Dropped, it resets the stream.
struct Watched<F> {
    stream: Pin<Box<F>>,
    progress: Arc<Progress>,
    limit: Duration,
    /// Where the answer was when the timer was set.
    stalled_at: u64,
    /// Made once, for the first answer that is not taken at once.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        if self.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Done);
        }
        let Some(at) = self.progress.is_up_to_client() else { return Poll::Pending };
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
    async fn an_answer_is_whole_and_its_last_byte_is_a_piece_of_its_own() {
        for length in [0, 1, 2, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7] {
            let whole = Bytes::from((0..length).map(|n| n as u8).collect::<Vec<_>>());
            let mut body = Taken::new(Answer::Words(whole.clone()));
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
