//! Attempts and retries: a request goes to one endpoint after another, until an endpoint responds or the
//! request must not be sent again.
//!
//! | failure | any request | safe request with a buffered body |
//! | --- | --- | --- |
//! | no connection could be opened; nothing was sent | next endpoint | next endpoint |
//! | an idle connection was closed before anything was sent on it | new connection | new connection |
//! | it was sent, and the connection broke or no response came in time | not retried; the client gets 502 or 504 | next endpoint |
//! | the response is 502, 503 or 504 | not retried; the response is forwarded | next endpoint, if there is one |
//!
//! Trying the next endpoint costs one unit of the [retry budget](crate::shared::Shared::retry_budget). A new
//! connection to the same endpoint is free.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hearsay_services::Problem;
use http::{Request, Response, StatusCode, header};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::{Instant, sleep, timeout};
use tower::retry::budget::Budget as _;

use super::{
    in_flight::InFlightRequest,
    request_body::{RequestBody, Upload},
};
use crate::{
    observe::access::AccessRecord,
    refusal::{Reason, Refusal},
    respond::error_response::{no_instance, not_connected, path_not_served},
    routing::{
        balance::{choose, record_failure},
        routes::{Route, RouteOptions},
    },
    shared::{InFlight, Shared},
    upstream::{
        connect::ConnectError,
        endpoint::Endpoint,
        outlier::{BAD_RESPONSE, BROKEN},
        pool::{Http1, Http2, Lease, Pool},
    },
};

/// Interval at which a request that waits for its response checks whether the endpoint is still listed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a request is repeated to a node that does not know this gateway's node yet. Gossip takes
/// milliseconds, a restart a second.
const UNKNOWN_MAX: Duration = Duration::from_secs(5);
/// Pause before each of these repetitions.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(200);

/// The state of one thread of the gateway.
#[derive(Debug)]
pub(crate) struct Worker {
    /// The state that all threads share.
    pub(crate) shared: Arc<Shared>,
    /// The connections of this thread to endpoints.
    pub(crate) pool: Arc<Pool>,
}

/// The response of an endpoint.
pub(crate) struct EndpointResponse {
    pub(crate) response: Response<Incoming>,
    /// The HTTP/1 connection of the response, to be reused; `None` for HTTP/2.
    pub(crate) lease: Option<Lease>,
    pub(crate) endpoint: Arc<Endpoint>,
}

/// Why an attempt failed.
enum Failure {
    /// Nothing was sent.
    NotConnected(ConnectError),
    /// An idle connection was closed when it was used.
    Stale { was_sent: bool },
    /// The connection broke.
    Broken(String),
    /// No response in time, or the endpoint is gone.
    TimedOut,
    /// The request itself is at fault.
    Refused(Refusal),
}

/// A connection to send a request on.
enum Sender {
    Http1 { sender: Http1, is_reused: bool },
    Http2(Http2),
}

impl Worker {
    /// Sends a request until an endpoint responds.
    ///
    /// # Errors
    /// No endpoint could respond, or the request may not be sent again.
    pub(crate) async fn try_endpoints(
        &self,
        route: &Route,
        request: &mut InFlightRequest<'_>,
        in_flight: &mut InFlight,
        access: &mut Option<Box<AccessRecord>>,
    ) -> Result<EndpointResponse, Refusal> {
        let (shared, group) = (&self.shared, &route.group);
        let mut count_retry = || {
            shared.counters.retries.fetch_add(1, Relaxed);
            access.iter_mut().for_each(|access| access.retries += 1);
        };
        shared.retry_budget.deposit();
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let mut failure: Option<Refusal> = None;
        let mut is_unserved = false;
        while tried.len() < shared.limits.attempts {
            let Some(member) = choose(group, &tried, shared.now_ms(), |n| fastrand::usize(..n)) else {
                break;
            };
            let endpoint = Arc::clone(&member.endpoint);
            let is_late = || request.started.elapsed() >= shared.limits.response;
            let is_unpaid = |_: &mut Refusal| is_late() || !shared.retry_budget.withdraw();
            if let Some(failure) = failure.take_if(is_unpaid) {
                shared.counters.retries_refused.fetch_add(1, Relaxed);
                return Err(failure);
            }
            if failure.is_some() {
                count_retry();
            }
            in_flight.assign(&endpoint);
            request.strip(&member.options)?;
            tried.push(Arc::clone(&endpoint));
            if !endpoint.serves(request.path.path()) {
                // This endpoint is a node's role and does not serve the path. Another instance of this
                // service may be an ordinary program, to which every path is forwarded.
                is_unserved = true;
                continue;
            }
            request.set_forwarded(&endpoint, shared.role_auth.host())?;
            let is_last = group.members.len() <= tried.len();
            let failed = match self.attempt(&endpoint, request, &member.options, is_last).await {
                Err(Failure::Refused(refusal)) => return Err(refusal),
                Err(failed) => failed,
                Ok(response) => {
                    let status = response.response.status();
                    if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
                        record_failure(group, &endpoint, BAD_RESPONSE, shared.now_ms(), &shared.counters);
                    } else {
                        endpoint.outlier.clear_failures();
                    }
                    let has_next = || {
                        tried.len() < shared.limits.attempts
                            && choose(group, &tried, shared.now_ms(), |n| fastrand::usize(..n)).is_some()
                    };
                    let is_final = !request.is_repeatable || !is_unavailable(status) || !has_next();
                    if is_final || !shared.retry_budget.withdraw() {
                        return Ok(response);
                    }
                    count_retry();
                    continue;
                }
            };
            record_failure(group, &endpoint, BROKEN, shared.now_ms(), &shared.counters);
            let was_sent = !matches!(failed, Failure::NotConnected(_));
            failure = Some(self.refusal(&endpoint, failed));
            if was_sent && !request.is_repeatable {
                break;
            }
        }
        let unserved = || if is_unserved { path_not_served(request.path.path()) } else { no_instance(group) };
        Err(failure.unwrap_or_else(unserved))
    }

    /// Returns the refusal for the last failed attempt.
    fn refusal(&self, endpoint: &Endpoint, failed: Failure) -> Refusal {
        let id = &endpoint.id;
        let (reason, status, detail) = match failed {
            Failure::Refused(refusal) => return refusal,
            Failure::NotConnected(error) => return not_connected(endpoint, &error),
            Failure::TimedOut => {
                let seconds = self.shared.limits.response.as_secs();
                let detail =
                    format!("the instance {id} took the request and did not respond within {seconds} s");
                (Reason::AnswerTime, StatusCode::GATEWAY_TIMEOUT, detail)
            }
            Failure::Broken(error) => {
                let detail = format!("the instance {id} took the request and broke off: {error}");
                (Reason::Broken, StatusCode::BAD_GATEWAY, detail)
            }
            Failure::Stale { .. } => {
                let detail = format!("the instance {id} took the request and closed the connection");
                (Reason::Broken, StatusCode::BAD_GATEWAY, detail)
            }
        };
        (reason, Problem::new(status, detail))
    }

    /// Sends a request to an endpoint. A node that serves a role may not know this gateway's node yet. It
    /// then refuses the request (401 with `Retry-After`) without executing it. The request goes to the next
    /// endpoint; if there is none, it is sent to this endpoint again until [`UNKNOWN_MAX`] is over.
    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &mut InFlightRequest<'_>,
        options: &RouteOptions,
        is_last: bool,
    ) -> Result<EndpointResponse, Failure> {
        let Some(proof) = request.proof_for(endpoint) else {
            return self.send(endpoint, request, options).await;
        };
        proof.check(&request.method, request.path.path()).map_err(Failure::Refused)?;
        let deadline = Instant::now() + UNKNOWN_MAX;
        loop {
            let answered = self.send(endpoint, request, options).await?;
            let (status, headers) = (answered.response.status(), answered.response.headers());
            if status != StatusCode::UNAUTHORIZED || !headers.contains_key(header::RETRY_AFTER) {
                return Ok(answered);
            }
            if !is_last {
                let error = "its node does not know this gateway yet".to_owned();
                return Err(Failure::NotConnected(ConnectError::Refused(error)));
            }
            if Instant::now() >= deadline {
                return Ok(answered);
            }
            drop(answered);
            sleep(UNKNOWN_PAUSE).await;
        }
    }

    /// Sends a request on an idle connection, or else on a new one.
    async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &mut InFlightRequest<'_>,
        options: &RouteOptions,
    ) -> Result<EndpointResponse, Failure> {
        match self.send_once(endpoint, request, options, true).await {
            Err(Failure::Stale { was_sent }) if !was_sent || request.is_repeatable => {
                self.send_once(endpoint, request, options, false).await
            }
            result => result,
        }
    }

    async fn send_once(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &mut InFlightRequest<'_>,
        options: &RouteOptions,
        may_reuse: bool,
    ) -> Result<EndpointResponse, Failure> {
        let wants_http2 = request.wants_http2(endpoint, options);
        let sender = self.sender(endpoint, wants_http2, may_reuse).await.map_err(Failure::NotConnected)?;
        let shared = &self.shared;
        let Some(message) = request.message(endpoint, options, &shared.via, &shared.role_auth) else {
            return Err(Failure::Broken("its authority or path cannot be written as a URI".into()));
        };
        let sent = Instant::now();
        let (result, is_reused, sender) = match sender {
            Sender::Http1 { mut sender, is_reused } => {
                let sending = sender.try_send_request(message);
                (self.await_response(sending, endpoint, request, sent).await, is_reused, Some(sender))
            }
            Sender::Http2(mut sender) => {
                let sending = sender.try_send_request(message);
                // Several requests share this connection, so the endpoint may have closed it because of
                // another request.
                (self.await_response(sending, endpoint, request, sent).await, true, None)
            }
        };
        let mut failed = match result.ok_or(Failure::TimedOut)? {
            Err(failed) => failed,
            Ok(response) => {
                endpoint.record_response(sent.elapsed(), shared.now_ms());
                let (endpoint, pool) = (Arc::clone(endpoint), &self.pool);
                let lease = sender.map(|sender| Lease::new(sender, &endpoint, pool));
                return Ok(EndpointResponse { response, lease, endpoint });
            }
        };
        let unsent = failed.take_message();
        let was_sent = unsent.is_none();
        unsent.into_iter().for_each(|message| request.take_back(message));
        let upload = request.upload.as_ref().map_or(Upload::Fine, |upload| upload.get());
        Err(match upload {
            Upload::Fine if is_reused && may_reuse => Failure::Stale { was_sent },
            Upload::Fine if was_sent => Failure::Broken(describe(failed.error())),
            Upload::Fine => Failure::NotConnected(ConnectError::Refused(describe(failed.error()))),
            upload => Failure::Refused(upload.refusal()),
        })
    }

    async fn sender(
        &self,
        endpoint: &Arc<Endpoint>,
        wants_http2: bool,
        may_reuse: bool,
    ) -> Result<Sender, ConnectError> {
        if wants_http2 {
            return self.pool.http2(endpoint).await.map(Sender::Http2);
        }
        if may_reuse && let Some(sender) = self.pool.take_idle(endpoint) {
            return Ok(Sender::Http1 { sender, is_reused: true });
        }
        self.shared.counters.connects.fetch_add(1, Relaxed);
        Ok(Sender::Http1 { sender: self.pool.open_http1(endpoint).await?, is_reused: false })
    }

    /// Waits for the head of a response. Returns `None` if the limit has passed since the last progress of
    /// the request's body, or if the endpoint is gone and the request may be repeated.
    async fn await_response(
        &self,
        sending: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
        endpoint: &Endpoint,
        request: &InFlightRequest<'_>,
        sent: Instant,
    ) -> Option<Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> {
        let mut sending = std::pin::pin!(sending);
        let limit = self.shared.limits.response;
        loop {
            let since = request.upload.as_ref().map_or(sent, |upload| upload.last_progress().max(sent));
            let pause = CHECK_INTERVAL.min(limit.saturating_sub(since.elapsed()));
            if let Ok(result) = timeout(pause, sending.as_mut()).await {
                return Some(result);
            }
            // A failed node will not respond. A request that must not be repeated waits nevertheless.
            let progress = request.upload.as_ref().map_or(sent, |upload| upload.last_progress().max(sent));
            if progress.elapsed() >= limit || endpoint.is_gone() && request.is_repeatable {
                return None;
            }
        }
    }
}

/// Whether another endpoint may respond better.
fn is_unavailable(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// Describes an error with its source.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
