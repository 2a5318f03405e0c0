//! Bodies on their way: a client's to an instance ([`Outgoing`]), an instance's answer to a client ([`Answer`]). Neither is gathered;
//! each piece is passed on as it comes, trailers included, and a body in which nothing moves for too long is given up.

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
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    access::Access,
    pool::Lease,
    shared::Flight,
    stream::{Active, Connection},
};

/// Why a body ended early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Tells when nothing has moved for too long. Costs a look at the clock for each piece, and a timer only for who has to wait.
#[derive(Debug)]
struct Progress {
    limit: Duration,
    moved: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Progress {
    fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, moved: now, timer: None }
    }

    fn moved(&mut self) {
        self.moved = Instant::now();
    }

    /// Whether somebody had to wait.
    fn has_waited(&self) -> bool {
        self.timer.is_some()
    }

    /// Whether it is too long now; otherwise the task is woken when it may be.
    fn is_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = self.moved + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return true;
            }
            timer.as_mut().reset(deadline);
        }
        false
    }
}

/// How an upload goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upload {
    /// As it should.
    Fine,
    /// The client sends nothing any more.
    Stalled,
    /// What the client sent is no body, or it has gone.
    Broken,
}

/// What is known of an upload while it is in other hands.
#[derive(Debug)]
pub struct UploadState {
    state: AtomicU8,
    started: Instant,
    moved_ms: AtomicU64,
}

impl UploadState {
    fn new() -> Self {
        Self { state: AtomicU8::new(0), started: Instant::now(), moved_ms: AtomicU64::new(0) }
    }

    /// How it goes.
    pub fn get(&self) -> Upload {
        match self.state.load(Relaxed) {
            0 => Upload::Fine,
            1 => Upload::Stalled,
            _ => Upload::Broken,
        }
    }

    /// When the last piece went.
    pub fn moved(&self) -> Instant {
        self.started + Duration::from_millis(self.moved_ms.load(Relaxed))
    }

    fn set(&self, upload: Upload) {
        self.state.store(upload as u8, Relaxed);
    }

    fn touch(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(ms, Relaxed);
    }
}

/// A client's body that is passed on as it comes.
#[derive(Debug)]
pub struct Uploading {
    body: Incoming,
    progress: Progress,
    connection: Arc<Connection>,
    state: Arc<UploadState>,
}

/// The body of a request to an instance.
#[derive(Debug)]
pub enum Outgoing {
    /// None.
    Nothing,
    /// One that is kept for a repetition.
    Kept(Bytes),
    /// One that is passed on as it comes.
    Stream(Box<Uploading>),
}

impl Outgoing {
    /// A body that is passed on as it comes, and how it goes.
    pub fn stream(body: Incoming, connection: &Arc<Connection>, stall: Duration) -> (Self, Arc<UploadState>) {
        let state = Arc::new(UploadState::new());
        let uploading = Uploading {
            body,
            progress: Progress::new(stall, Instant::now()),
            connection: Arc::clone(connection),
            state: Arc::clone(&state),
        };
        (Self::Stream(Box::new(uploading)), state)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let uploading = match self.get_mut() {
            Self::Nothing => return Poll::Ready(None),
            Self::Kept(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Kept(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(uploading) => uploading,
        };
        match Pin::new(&mut uploading.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                uploading.progress.moved();
                uploading.state.touch();
                if uploading.body.is_end_stream() {
                    uploading.connection.body_ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                uploading.state.set(Upload::Broken);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                uploading.connection.body_ended();
                Poll::Ready(None)
            }
            Poll::Pending if uploading.progress.is_stalled(cx) => {
                uploading.state.set(Upload::Stalled);
                Poll::Ready(Some(Err("the client sends nothing any more".into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Kept(bytes) => bytes.is_empty(),
            Self::Stream(uploading) => uploading.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Kept(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(uploading) => uploading.body.size_hint(),
        }
    }
}

/// Gathers a body of at most `max` bytes.
///
/// # Errors
/// The client broke off, or sent more.
pub async fn gather(mut body: Incoming, max: u64) -> Result<Bytes, BodyError> {
    let mut whole = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            if whole.len() as u64 + data.len() as u64 > max {
                return Err("the body is longer than was said".into());
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.into())
}

/// What is held for as long as an answer is on its way.
#[derive(Debug)]
pub struct Held {
    /// The request counts as in flight, here and at its instance.
    pub flight: Flight,
    /// Its connection counts as busy.
    pub active: Active,
    /// The line for the access log, if there is one.
    pub access: Option<Box<Access>>,
}

/// The body of an instance's answer.
#[derive(Debug)]
pub struct Relay {
    body: Incoming,
    progress: Progress,
    /// Whether a piece of it has come.
    has_begun: bool,
    /// Why it will break off, once what came before is on its way to the client.
    broken: Option<hyper::Error>,
    /// The connection it comes by, to be used again.
    lease: Option<Lease>,
    held: Held,
}

impl Relay {
    /// Passes on a body, the head before which came at `now`. `lease` is the connection, where it is not shared.
    pub fn new(body: Incoming, stall: Duration, now: Instant, lease: Option<Lease>, held: Held) -> Self {
        Self { body, progress: Progress::new(stall, now), has_begun: false, broken: None, lease, held }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut body = Pin::new(&mut self.body);
        let Some(driven) = self.lease.as_mut().and_then(|lease| lease.one.driven.as_mut()) else {
            return body.poll_frame(cx);
        };
        driven.rest();
        // What has come already, or else word to the connection that more is wanted.
        if let Poll::Ready(frame) = driven.quietly(|cx| body.as_mut().poll_frame(cx)) {
            return Poll::Ready(frame);
        }
        driven.drive(cx);
        driven.quietly(|cx| body.as_mut().poll_frame(cx))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // An answer of known length is read no further than that, so nobody may have asked for its end.
        if self.body.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back(self.progress.moved);
        }
    }
}

/// The body of an answer to a client.
#[derive(Debug)]
pub enum Answer {
    /// What the gateway says itself.
    Words(Bytes),
    /// What an instance says.
    Relay(Box<Relay>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let relay = match self.get_mut() {
            Self::Words(words) if words.is_empty() => return Poll::Ready(None),
            Self::Words(words) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(words))))),
            Self::Relay(relay) => relay,
        };
        if let Some(error) = relay.broken.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        match relay.poll_body(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // Most bodies have but one, which comes with the head: its time is the head's.
                if relay.has_begun || relay.progress.has_waited() || !relay.body.is_end_stream() {
                    relay.progress.moved();
                }
                relay.has_begun = true;
                if let (Some(access), Some(data)) = (&mut relay.held.access, frame.data_ref()) {
                    access.bytes += data.len() as u64;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                // hyper drops what it has not written when it hears of an error, and writes when it has to wait.
                relay.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                if relay.progress.has_waited() {
                    relay.progress.moved();
                }
                if let Some(lease) = relay.lease.take() {
                    lease.give_back(relay.progress.moved);
                }
                Poll::Ready(None)
            }
            Poll::Pending if relay.progress.is_stalled(cx) => {
                Poll::Ready(Some(Err("the instance sends nothing any more".into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Words(words) => words.is_empty(),
            Self::Relay(relay) => relay.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Words(words) => SizeHint::with_exact(words.len() as u64),
            Self::Relay(relay) => relay.body.size_hint(),
        }
    }
}
