//! The bound on answers that wait for their readers.
//!
//! An answer is written as fast as its reader takes it, and until then it is held here. A few thousand readers that ask for a large table and
//! take a byte now and then would hold it a few thousand times. So large answers are charged to one account, and who finds it empty is told
//! to come again.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, HttpBody},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hearsay_services::Problem;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::site::Site;

/// Smaller answers are not counted: what a connection holds anyway is no less.
const SMALL_BYTES: u64 = 32 * 1024;
/// An answer is handed over in such pieces, so that it is on the account until nearly all of it is taken.
const PIECE_BYTES: usize = 16 * 1024;

/// An answer, if there is room for it.
pub(super) async fn bound(site: &Site, response: Response) -> Response {
    match response.body().size_hint().exact() {
        Some(bytes) if bytes > SMALL_BYTES => hold(site, response, bytes).await,
        // A stream makes its parts when they are asked for.
        _ => response,
    }
}

async fn hold(site: &Site, response: Response, bytes: u64) -> Response {
    let (head, body) = response.into_parts();
    let room = usize::try_from(bytes).ok().and_then(|bytes| site.answers.take(bytes));
    let (Some(room), Ok(whole)) = (room, body.collect().await) else {
        site.metrics.http.refused("answers");
        let detail = "too many large answers wait for their readers here; try again, or ask another node";
        let mut response = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    };
    Response::from_parts(head, Body::new(Unread { rest: whole.to_bytes(), _room: room }))
}

/// What is left of an answer, and the room that it takes.
struct Unread {
    rest: Bytes,
    _room: OwnedSemaphorePermit,
}

impl HttpBody for Unread {
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
