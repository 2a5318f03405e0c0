//! [`ResponseBody`]: body of a response to a client. It is streamed with its trailers, and aborted after too
//! long without progress.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hearsay_services::http::StallTimer;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::request_body::BodyError;
use crate::{
    observe::access::AccessRecord, server::connection::ActiveRequest, shared::InFlight, upstream::pool::Lease,
};

/// Resources of a request that are released at the end of its response.
#[derive(Debug)]
pub(crate) struct RequestGuards {
    /// Counts the request as in flight, at the gateway and at the endpoint.
    pub(crate) _in_flight: InFlight,
    /// Marks the client's connection as busy.
    pub(crate) _active: ActiveRequest,
    /// The record for the access log, if that is enabled.
    pub(crate) access: Option<Box<AccessRecord>>,
}

/// The body of an endpoint's response.
#[derive(Debug)]
pub(crate) struct RelayedBody {
    body: Incoming,
    stall: StallTimer,
    /// An error that is passed on at the next poll.
    error: Option<hyper::Error>,
    /// The HTTP/1 connection of the response, to be reused.
    lease: Option<Lease>,
    guards: RequestGuards,
}

impl RelayedBody {
    /// Returns a body to be relayed. `lease` is the HTTP/1 connection of the response; HTTP/2 has none.
    pub(crate) fn new(body: Incoming, stall: Duration, lease: Option<Lease>, guards: RequestGuards) -> Self {
        Self { body, stall: StallTimer::new(stall), error: None, lease, guards }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.stall.restart();
                if let (Some(access), Some(data)) = (&mut self.guards.access, frame.data_ref()) {
                    access.bytes += data.len() as u64;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                // On an error hyper discards the bytes that it has not written yet. hyper writes while the
                // body is pending, so the error is returned one poll later.
                self.error = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                // The end of a chunked body is known only when it has been read.
                self.lease.take().into_iter().for_each(Lease::give_back);
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.stall.poll_stalled(cx));
                Poll::Ready(Some(Err("the instance stopped sending its response".into())))
            }
        }
    }
}

impl Drop for RelayedBody {
    fn drop(&mut self) {
        if self.body.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

/// The body of a response to a client.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// A response that the gateway makes itself.
    Own(Bytes),
    /// The response of an endpoint.
    Relayed(Box<RelayedBody>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Relayed(relayed) => relayed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_empty(),
            Self::Relayed(relayed) => relayed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relayed(relayed) => relayed.body.size_hint(),
        }
    }
}
