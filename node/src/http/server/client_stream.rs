//! [`ClientStream`]: stream under hyper that fails if its client does not read. It also gives hyper's empty
//! error responses a body.
//!
//! Hyper has a timeout for reading a head and none for writing. A client that asks for a large response and
//! stops reading would keep the response in memory for ever. `tokio-io-timeout` would suffice for the timeout
//! alone. Hyper's error responses (400, 414, 431) have no body, but clients rely on
//! `application/problem+json`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hearsay_services::http::{WriteTimeout, bare_status_detail};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::server::listeners::Stream;

/// A stream whose writes fail after a time without progress.
pub(crate) struct ClientStream {
    pub(crate) stream: Stream,
    timeout: WriteTimeout,
    /// Rest of a response that is written in place of a bare one.
    replacement: Vec<u8>,
}

impl ClientStream {
    pub(crate) fn new(stream: Stream, limit: Duration) -> Self {
        Self { stream, timeout: WriteTimeout::new(limit), replacement: Vec::new() }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replacement.is_empty()
            && let Some(response) = bare_status_detail(buf)
        {
            self.replacement = response;
        }
        while !self.replacement.is_empty() {
            let this = &mut *self;
            let written = Pin::new(&mut this.stream).poll_write(cx, &this.replacement);
            let written = ready!(self.timeout.check(cx, written))?;
            self.replacement.drain(..written);
            if self.replacement.is_empty() {
                return Poll::Ready(Ok(buf.len()));
            }
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.timeout.check(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A bare error response is written alone.
        if let [only] = bufs
            && (!self.replacement.is_empty() || bare_status_detail(only).is_some())
        {
            return self.poll_write(cx, only);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.timeout.check(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
