//! Calls of gRPC clients: their deadlines (`grpc-timeout`), their counters, and the memory of their
//! responses.
//!
//! A deadline holds for the whole call. When it passes, the handler is dropped, and with it a registration or
//! a watch. A call that ends without a status was cancelled by its client.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::Stream;
use hearsay_services::Problem;
use hyper::body::{Frame, SizeHint};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::{Code, Status};

use super::{guard, request_body::EarlyEnd};
use crate::{
    http::{server::stream_limit::StreamPermit, state::AppState},
    metrics::Metrics,
};

/// Header field of a client's deadline.
const TIMEOUT: &str = "grpc-timeout";
/// Detail of the responses to requests that are not of gRPC.
const NOT_GRPC: &str = "this port serves gRPC: POST with the content type application/grpc or application/grpc+proto; \
     the HTTP API is at the address that /members lists as http";
/// Longer deadlines count as none: no call lasts for years.
const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Charge of a large response to the response budget, as an extension of the response. It is returned when
/// the client has read the response.
#[derive(Clone)]
pub(super) struct Charge(
    #[allow(dead_code, reason = "returns the memory on drop")] Arc<OwnedSemaphorePermit>,
);

impl From<OwnedSemaphorePermit> for Charge {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

/// Stream of a call's messages.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Smaller responses are not charged to the response budget.
pub(super) const SMALL_BYTES: usize = 32 * 1024;

/// Charges a response of so many bytes to the response budget, if it is large.
///
/// # Errors
/// RESOURCE_EXHAUSTED: the budget has less left.
pub(super) fn charge(state: &AppState, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Status> {
    if bytes <= SMALL_BYTES {
        return Ok(None);
    }
    let permit = state.response_budget.acquire(bytes);
    if permit.is_none() {
        state.metrics.http.refused("answers");
    }
    permit.map(Some).ok_or_else(no_memory)
}

/// Returns the status of a call whose response finds no memory.
pub(super) fn no_memory() -> Status {
    Status::resource_exhausted(
        "this node holds too many large answers that their clients have not read yet; ask again later, or another node",
    )
}

/// Returns the status of a stream that ends because the node leaves.
pub(super) fn leaving() -> Status {
    Status::unavailable("this node is leaving the cluster; call another node")
}

/// Passes a call, ends it at its deadline, and counts it when it has ended.
pub(super) async fn track(State(state): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    if let Some(response) = refuse_foreign(&request) {
        state.metrics.http.refused("not_grpc");
        return response;
    }
    let path = request.uri().path();
    let mut count = CallCount {
        metrics: Arc::clone(&state.metrics),
        method: guard::method_label(path),
        is_counted: false,
    };
    let deadline = request.headers().get(TIMEOUT).map(parse_timeout).transpose();
    // The other streams ask for a permit themselves, because they know their ends better.
    let is_reflection = guard::is_reflection(path);
    let permit = is_reflection.then(|| state.admit_stream()).transpose();
    let (deadline, permit) = match (deadline, permit) {
        (Ok(deadline), Ok(permit)) => (deadline.flatten(), permit),
        (Err(status), _) => return count.refuse(status),
        (_, Err(problem)) => return count.refuse(guard::status_of(&problem)),
    };
    let early_end = EarlyEnd::default();
    request.extensions_mut().insert(early_end.clone());
    let deadline = deadline.map(|timeout| Instant::now() + timeout);
    let running = next.run(request);
    let response = match deadline {
        None => running.await,
        Some(at) => match tokio::time::timeout_at(at, running).await {
            Ok(response) => response,
            Err(_) => return count.refuse(deadline_exceeded()),
        },
    };
    let (mut head, body) = response.into_parts();
    if let Some(code) = code_in(&head.headers) {
        count.finish(code);
    }
    let charge = head.extensions.remove::<Charge>();
    let cut = cut(state, deadline, is_reflection);
    Response::from_parts(
        head,
        Body::new(CallBody { body, cut, early_end, count, _charge: charge, _permit: permit }),
    )
}

/// Returns the response to a request that is not one of gRPC ("gRPC over HTTP/2", section "Requests").
fn refuse_foreign(request: &Request) -> Option<Response> {
    if request.method() != Method::POST {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, NOT_GRPC);
        return Some(([(header::ALLOW, "POST")], problem).into_response());
    }
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let subtype = content_type.and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    let is_grpc = subtype.is_some_and(|rest| {
        let rest = rest.strip_prefix(b"+proto").unwrap_or(rest);
        matches!(rest.first(), None | Some(b';' | b' '))
    });
    (!is_grpc).then(|| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, NOT_GRPC).into_response())
}

/// Resolves when a call is to end before its handler ends it. Reflection, whose handler is tonic's, does not
/// end by itself when the node leaves.
type Cut = Pin<Box<dyn Future<Output = Status> + Send>>;

fn cut(state: Arc<AppState>, deadline: Option<Instant>, is_reflection: bool) -> Option<Cut> {
    if deadline.is_none() && !is_reflection {
        return None;
    }
    let late = async move {
        match deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    Some(Box::pin(async move {
        tokio::select! {
            () = late => deadline_exceeded(),
            () = state.leaving(), if is_reflection => leaving(),
        }
    }))
}

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the call took longer than its grpc-timeout allows")
}

/// Parses a deadline: up to eight digits and a unit. `None`: so long that it counts as none.
fn parse_timeout(value: &HeaderValue) -> Result<Option<Duration>, Status> {
    let malformed = || {
        Status::invalid_argument(
            "grpc-timeout: is not of 1 to 8 digits and one of the units H, M, S, m, u, n",
        )
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let unit = text.chars().next_back().ok_or_else(malformed)?;
    let digits = &text[..text.len() - unit.len_utf8()];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let number: u64 = digits.parse().map_err(|_| malformed())?;
    let timeout = match unit {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return Err(malformed()),
    };
    Ok((timeout <= DEADLINE_MAX).then_some(timeout))
}

/// Returns the status code in header fields or trailers.
fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Counts a call once: with its status, or as cancelled when it is dropped without one.
struct CallCount {
    metrics: Arc<Metrics>,
    method: &'static str,
    is_counted: bool,
}

impl CallCount {
    fn finish(&mut self, code: Code) {
        if !self.is_counted {
            self.is_counted = true;
            self.metrics.grpc.count(self.method, code);
        }
    }

    /// Returns the response of a call that does not reach its handler, or does not wait for it.
    fn refuse(mut self, status: Status) -> Response {
        self.finish(status.code());
        status.into_http()
    }
}

impl Drop for CallCount {
    fn drop(&mut self) {
        self.finish(Code::Cancelled);
    }
}

/// Body of a response: ends at the deadline, and counts the call by its trailers.
struct CallBody {
    body: Body,
    cut: Option<Cut>,
    early_end: EarlyEnd,
    count: CallCount,
    _charge: Option<Charge>,
    _permit: Option<StreamPermit>,
}

impl CallBody {
    /// Returns the trailers that end the call with this status. Drops the handler's stream.
    fn end(&mut self, status: &Status) -> Option<Result<Frame<Bytes>, axum::Error>> {
        self.cut = None;
        self.body = Body::empty();
        self.count.finish(status.code());
        let mut trailers = HeaderMap::new();
        let written = status.add_header(&mut trailers);
        written.is_ok().then(|| Ok(Frame::trailers(trailers)))
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if !this.count.is_counted
            && let Some(cut) = &mut this.cut
            && let Poll::Ready(status) = cut.as_mut().poll(context)
        {
            return Poll::Ready(this.end(&status));
        }
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(code) = frame.trailers_ref().and_then(code_in)
        {
            if code == Code::Ok
                && let Some(status) = this.early_end.status().cloned()
            {
                return Poll::Ready(this.end(&status));
            }
            this.count.finish(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_digits_and_a_unit() {
        let parse = |text: &'static str| {
            parse_timeout(&HeaderValue::from_static(text)).map_err(|status| status.code())
        };
        assert_eq!(parse("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(parse("00000003S"), Ok(Some(Duration::from_secs(3))));
        assert_eq!(parse("2H"), Ok(Some(Duration::from_secs(7200))));
        assert_eq!(parse("99999999M"), Ok(None), "so long that it counts as none");
        assert_eq!(parse("99999999H"), Ok(None));
        for malformed in ["", "S", "1", "1x", "-1S", "+1S", "1.5S", "123456789S", " 1S", "1 S"] {
            assert_eq!(parse(malformed), Err(Code::InvalidArgument), "{malformed:?}");
        }
        let foreign = HeaderValue::from_bytes("1µ".as_bytes()).unwrap();
        assert!(parse_timeout(&foreign).is_err());
    }
}
