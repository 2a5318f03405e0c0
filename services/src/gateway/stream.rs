//! A client's connection: its bytes, read along for [`super::framing`], and given up when nobody reads them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{batch::Socket, forward::Client, framing::Framing, published::Published};
use crate::{
    refusal,
    shares::{self, Activity, Share},
};

/// What a connection and the requests on it know of each other.
#[derive(Debug)]
pub struct Connection {
    /// Who asks.
    pub client: Client,
    /// Its part of the connections, and of the requests in flight.
    pub share: Share,
    /// What was said of it to roles.
    pub published: Published,
    /// A head said how long its body is in two ways.
    both_lengths: AtomicBool,
    /// A body has ended.
    body_ended: AtomicBool,
    /// Requests that are not answered wholly.
    activity: Arc<Activity>,
    /// Answers whose heads have not been written. Of HTTP/1, any other head is an error that hyper writes by itself.
    unwritten: AtomicUsize,
}

impl Connection {
    /// A connection of this client.
    pub fn new(client: Client, share: Share, activity: Arc<Activity>) -> Self {
        Self {
            client,
            share,
            activity,
            published: Published::default(),
            both_lengths: AtomicBool::new(false),
            body_ended: AtomicBool::new(false),
            unwritten: AtomicUsize::new(0),
        }
    }

    /// Whether a head said both `Content-Length` and `Transfer-Encoding`.
    pub fn said_both(&self) -> bool {
        self.both_lengths.load(Relaxed)
    }

    /// The body of a request has ended.
    pub fn body_ended(&self) {
        self.body_ended.store(true, Relaxed);
    }

    /// A request has come, until what is given back is dropped.
    pub fn begin(self: &Arc<Self>) -> Active {
        Active { _request: self.activity.begin(), _connection: Arc::clone(self) }
    }

    /// A request has been answered: the head of that is written next.
    pub fn answered(&self) {
        self.unwritten.fetch_add(1, Relaxed);
    }

    /// A head of an answer is written: whether it is one of those.
    fn is_answer(&self) -> bool {
        self.unwritten.load(Relaxed) > 0
    }

    /// It has been written.
    fn wrote_answer(&self) {
        // Only the connection's own task takes one off.
        self.unwritten.fetch_sub(1, Relaxed);
    }

    /// Resolves when its place is needed for another one.
    pub async fn evicted(&self) {
        self.activity.evicted().await;
    }

    /// Whether no request is being answered.
    pub fn is_idle(&self) -> bool {
        self.activity.is_idle()
    }
}

/// A request that is being answered. Its connection has its share for as long, also when it has become a tunnel.
#[derive(Debug)]
pub struct Active {
    _request: shares::Active,
    _connection: Arc<Connection>,
}

/// The bytes of a connection.
#[derive(Debug)]
pub struct ClientStream {
    stream: Socket,
    /// What was read to find out which protocol this is.
    prefix: Bytes,
    /// Only HTTP/1 has heads that can be read along.
    framing: Option<Framing>,
    connection: Arc<Connection>,
    patience: Duration,
    /// Made once, set anew at the start of each stall. Without it, a client that asks for a large answer and stops reading would hold
    /// it for ever.
    timer: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
    /// Written in place of what was given, which had no words.
    words: Vec<u8>,
}

impl ClientStream {
    /// A stream of which `prefix` has been read already. It fails when the client takes nothing for as long as `patience`.
    pub fn new(
        stream: Socket,
        prefix: Bytes,
        is_http1: bool,
        connection: Arc<Connection>,
        patience: Duration,
    ) -> Self {
        let framing = is_http1.then(Framing::default);
        Self {
            stream,
            prefix,
            framing,
            connection,
            patience,
            timer: None,
            is_stalled: false,
            words: Vec::new(),
        }
    }

    fn read_along(&mut self, bytes: &[u8]) {
        let Some(framing) = &mut self.framing else { return };
        if self.connection.body_ended.load(Relaxed) {
            self.connection.body_ended.store(false, Relaxed);
            framing.forget();
        }
        framing.read(bytes);
        if framing.said_both() != self.connection.said_both() {
            self.connection.both_lengths.store(framing.said_both(), Relaxed);
        }
    }

    /// Whether this begins with the final head of an answer of HTTP/1.
    fn is_head(&self, bytes: &[u8]) -> bool {
        self.framing.is_some() && bytes.starts_with(b"HTTP/1.") && bytes.get(8..10) != Some(b" 1")
    }

    /// The words for what hyper writes by itself. What an instance answered is left as it is, though it may look the same.
    fn words_for(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        (self.is_head(bytes) && !self.connection.is_answer()).then(|| refusal::words_for(bytes)).flatten()
    }

    /// A write has begun with these bytes, or has not.
    fn wrote(&self, bytes: &[u8], written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) && self.is_head(bytes) && self.connection.is_answer() {
            self.connection.wrote_answer();
        }
    }

    /// Passes on what a write, a flush or a shutdown said, and fails when the answer has been "not yet" for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_stalled = false;
            return written;
        }
        let deadline = Instant::now() + self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if !self.is_stalled {
            self.is_stalled = true;
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let taken = self.prefix.len().min(buf.remaining());
            let part = self.prefix.split_to(taken);
            self.read_along(&part);
            buf.put_slice(&part);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.read_along(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.words.is_empty()
            && let Some(words) = self.words_for(buf)
        {
            self.words = words;
        }
        while !self.words.is_empty() {
            let this = &mut *self;
            let written = Pin::new(&mut this.stream).poll_write(cx, &this.words);
            let written = ready!(self.watch(cx, written))?;
            self.words.drain(..written);
            if self.words.is_empty() {
                return Poll::Ready(Ok(buf.len()));
            }
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(buf, &written);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A bare error comes alone.
        if let [only] = bufs
            && (!self.words.is_empty() || self.words_for(only).is_some())
        {
            return self.poll_write(cx, only);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) {
            self.wrote(first, &written);
        }
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, shut_down)
    }
}
