//! Client stream: the byte stream of a client connection. It fails if the client does not read for too long,
//! observes the heads of requests ([`super::framing`]), and replaces hyper's bare errors by problems.
//!
//! | mechanism | what the library lacks |
//! | --- | --- |
//! | write timeout | hyper has none: a client that requests much and reads nothing would hold its memory |
//! | problem bodies | hyper answers a malformed head with a bare 400, and one that is too large with a bare 431; both get `application/problem+json` like every other error |

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use hearsay_services::http::{WriteTimeout, bare_status_detail};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{connection::Connection, framing::Framing};

/// The byte stream of a client connection.
#[derive(Debug)]
pub(crate) struct ClientStream {
    stream: TcpStream,
    /// Bytes that were read to detect the protocol.
    prefix: Bytes,
    /// Observes the heads of HTTP/1 requests.
    framing: Option<Framing>,
    connection: Arc<Connection>,
    write_timeout: WriteTimeout,
    /// The unwritten rest of a response that replaces a bare error of hyper.
    replacement: Bytes,
}

impl ClientStream {
    /// Returns a stream whose first bytes, `prefix`, were already read. It fails when the client reads
    /// nothing for `write_stall`.
    pub(crate) fn new(
        stream: TcpStream,
        prefix: Bytes,
        is_http1: bool,
        connection: Arc<Connection>,
        write_stall: Duration,
    ) -> Self {
        Self {
            stream,
            prefix,
            framing: is_http1.then(Framing::default),
            connection,
            write_timeout: WriteTimeout::new(write_stall),
            replacement: Bytes::new(),
        }
    }

    fn observe_read(&mut self, bytes: &[u8]) {
        let Some(framing) = &mut self.framing else { return };
        if self.connection.take_ended_body() {
            framing.forget();
        }
        framing.read(bytes);
        if framing.has_both() != self.connection.has_both_lengths() {
            self.connection.set_both_lengths(framing.has_both());
        }
    }

    /// Whether the bytes begin with the head of an HTTP/1 response that is not interim (1xx).
    fn is_head(&self, bytes: &[u8]) -> bool {
        self.framing.is_some() && bytes.starts_with(b"HTTP/1.") && bytes.get(8..10) != Some(b" 1")
    }

    /// Returns the replacement for a bare error of hyper. An instance's response may look the same, but the
    /// connection announces it before it is written.
    fn replacement_for(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        (self.is_head(bytes) && !self.connection.awaits_head()).then(|| bare_status_detail(bytes)).flatten()
    }

    fn observe_write(&self, bytes: &[u8], written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) && self.is_head(bytes) && self.connection.awaits_head() {
            self.connection.record_head();
        }
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
            self.observe_read(&part);
            buf.put_slice(&part);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.observe_read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replacement.is_empty()
            && let Some(replacement) = self.replacement_for(buf)
        {
            self.replacement = replacement.into();
        }
        while !self.replacement.is_empty() {
            let this = &mut *self;
            let written = Pin::new(&mut this.stream).poll_write(cx, &this.replacement);
            let written = ready!(self.write_timeout.check(cx, written))?;
            self.replacement.advance(written);
            if self.replacement.is_empty() {
                return Poll::Ready(Ok(buf.len()));
            }
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.observe_write(buf, &written);
        self.write_timeout.check(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // hyper writes a bare error as one buffer.
        if let [buf] = bufs
            && (!self.replacement.is_empty() || self.replacement_for(buf).is_some())
        {
            return self.poll_write(cx, buf);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) {
            self.observe_write(first, &written);
        }
        self.write_timeout.check(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.write_timeout.check(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.write_timeout.check(cx, shut_down)
    }
}
