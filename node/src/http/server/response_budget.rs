//! [`ResponseBudget`]: limit on the memory of all large responses together.
//!
//! A response is kept in memory until its client has read it. A few thousand clients that ask for a large
//! table and read slowly would keep as many copies of the table in memory. Large responses are therefore
//! charged to one budget. A request that finds the budget exhausted is answered with 503.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Extension,
    body::{Body, HttpBody},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hearsay_services::Problem;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;

/// Smaller responses are not charged: the buffers of a connection take about as much.
pub(crate) const SMALL_BYTES: u64 = 32 * 1024;
/// Size of the pieces in which a response is handed to hyper. The whole response stays charged until the last
/// piece is handed over.
const PIECE_BYTES: usize = 16 * 1024;

/// Mark of a response whose memory its handler has charged.
#[derive(Clone, Copy, Debug)]
struct Charged;

/// Mark of the 503 in place of a response that has found no memory, with the status of that response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unkept(pub(crate) StatusCode);

/// Returns a response whose memory is charged by these permits. It is never refused: what it reports has
/// been done.
pub(crate) fn charged(text: String, permits: Vec<OwnedSemaphorePermit>) -> Response {
    let body = ChargedBody { rest: text.into(), _permits: permits };
    (Extension(Charged), Body::new(body)).into_response()
}

/// Memory budget of the large responses that clients have not read yet.
#[derive(Debug)]
pub struct ResponseBudget(Arc<Semaphore>);

impl ResponseBudget {
    /// Returns a budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Charges `bytes` until the permit is dropped; `None` if the budget has less left.
    pub(crate) fn acquire(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// Charges a response if it is large. Without memory for it the response becomes 503.
    pub(crate) async fn charge(&self, response: Response, metrics: &Metrics) -> Response {
        let is_charged = response.extensions().get::<Charged>().is_some();
        match response.body().size_hint().exact() {
            Some(bytes) if bytes > SMALL_BYTES && !is_charged => {
                self.charge_bytes(response, bytes, metrics).await
            }
            // An event stream creates each event when the client has read the one before.
            _ => response,
        }
    }

    async fn charge_bytes(&self, response: Response, bytes: u64, metrics: &Metrics) -> Response {
        let (head, body) = response.into_parts();
        let permit = usize::try_from(bytes).ok().and_then(|bytes| self.acquire(bytes));
        let (Some(permit), Ok(whole)) = (permit, body.collect().await) else {
            metrics.http.refused("answers");
            let detail = "this node has no memory left for large responses that clients read slowly; try again in a second, or ask another node";
            let mut response = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            response.extensions_mut().insert(Unkept(head.status));
            return response;
        };
        Response::from_parts(head, Body::new(ChargedBody { rest: whole.to_bytes(), _permits: vec![permit] }))
    }
}

impl Default for ResponseBudget {
    /// 256 MiB: a thousand clients that read a table of a thousand instances.
    fn default() -> Self {
        Self::new(256 * 1024 * 1024)
    }
}

/// The unread part of a response and the memory charged for it.
struct ChargedBody {
    rest: Bytes,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl HttpBody for ChargedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready((piece > 0).then(|| Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
