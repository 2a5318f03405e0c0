//! HTTP client by which plug-ins and the node call the instances of a service: it tries one instance after
//! the other, and repeats a request only if that is safe.
//!
//! The provider table may list an instance that does not answer. So a [`Client`] orders the instances of a
//! service and tries one after the other. It always retries a read. It retries a write only if no part of it
//! can have arrived, or if it has an `Idempotency-Key`. Every call is bounded: time to connect, time to
//! answer, number of instances, total time, and size of a body. Redirects are not followed.
//!
//! A request goes to the origin of an instance and to a path of its role, and only to addresses that the
//! [address policy](crate::network::address_policy) allows. Its content comes from other clients, so its
//! `Via` header keeps the recipient from treating it as a request of its own machine.
//!
//! [`CallError`] distinguishes a service without instances, where a node must be started, from instances that
//! do not answer, which must be repaired.

mod call;
mod order;
mod request;
mod resolver;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use hearsay_protocol::Provider;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client as Pool, Error as PoolError, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::Host;
pub use call::Call;
use order::{AlternativeAddresses, RecentFailures};
use request::{check_address, request, sign};
use resolver::{PolicyCell, Resolver};

/// Time for which a request is repeated to a node that does not know this node, or no longer knows it. Gossip
/// takes milliseconds, a restart takes a second.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// Pause before each of these repetitions.
const UNKNOWN_RETRY: Duration = Duration::from_millis(200);

/// Bounds of one call.
#[derive(Clone, Debug)]
pub struct CallLimits {
    /// Time to open a connection, for each address of an instance. An address on the same network answers
    /// within a millisecond.
    pub connect: Duration,
    /// Time for the answer of one instance (of a stream: for its head). Longer than the 2 s that a node waits
    /// for the entries of tokens, and than the time that a write waits for another disk.
    pub answer: Duration,
    /// Time for all instances together: how long a person waits for a page.
    pub all: Duration,
    /// Instances to try.
    pub instances: usize,
    /// Size of the response body.
    pub body_bytes: usize,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(8),
            all: Duration::from_secs(15),
            instances: 5,
            body_bytes: 4 * 1024 * 1024,
        }
    }
}

/// A complete response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The instance that answered.
    pub provider: Arc<Provider>,
    /// Status. For a repeatable request never 429 or 5xx, which count as failures of the instance.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Reply {
    /// Parses the body as JSON.
    ///
    /// # Errors
    /// The body has another form.
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.body)
    }
}

/// A response whose body is still arriving.
#[derive(Debug)]
pub struct Stream {
    /// The instance that answers.
    pub provider: Arc<Provider>,
    /// Body. The reader bounds what it keeps of it and how long it waits.
    pub body: Incoming,
}

/// A call without an answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// There is no live instance. Nothing was sent.
    #[error("no instance of {service} is alive")]
    NoInstance {
        /// Name of the service.
        service: String,
    },
    /// A response exceeds the limit, and so would those of other instances. Request less.
    #[error("the answer of {service} is larger than {bytes_max} bytes")]
    TooLarge {
        /// Name of the service.
        service: String,
        /// The limit.
        bytes_max: usize,
    },
    /// No instance that was tried has answered.
    #[error("no instance of {service} could answer: {}", describe_attempts(tries))]
    AllFailed {
        /// Name of the service.
        service: String,
        /// Attempts in order.
        tries: Vec<FailedAttempt>,
        /// Whether the write may have taken effect, or may still do so. Repeating it under the same key is
        /// safe.
        indeterminate: bool,
    },
}

/// A failed attempt at one instance, as the error of a call lists it.
#[derive(Clone, Debug)]
pub struct FailedAttempt {
    /// Name of the node.
    pub node: String,
    /// Reason.
    pub why: String,
    /// Status of the response, if there was one.
    pub status: Option<StatusCode>,
}

fn describe_attempts(tries: &[FailedAttempt]) -> String {
    tries.iter().map(|t| format!("{}: {}", t.node, t.why)).collect::<Vec<_>>().join("; ")
}

/// Failure of one attempt, and what follows from it for the next attempt.
struct AttemptFailure {
    /// Whether a part of the request can have reached the instance.
    sent: bool,
    /// Whether later calls try the instance last for a while.
    is_avoided: bool,
    /// Whether the response exceeds the limit.
    too_large: bool,
    status: Option<StatusCode>,
    why: String,
}

/// HTTP client. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Connections,
    /// Connections to instances whose loopback addresses are those of this machine.
    loopback_pool: Connections,
    /// Set by the first call.
    policy: PolicyCell,
    limits: CallLimits,
    recent_failures: RecentFailures,
    alternatives: AlternativeAddresses,
}

type Connections = Pool<HttpConnector<Resolver>, Full<Bytes>>;

/// Idle time after which a connection is closed. The other node closes it after 5 s, and a request that is
/// sent at that moment would be lost.
const IDLE_MAX: Duration = Duration::from_secs(3);
/// Idle connections kept to each instance. Guess.
const IDLE_PER_INSTANCE_MAX: usize = 8;
/// Maximum number of characters of an instance's error that are kept.
const DETAIL_CHARS_MAX: usize = 300;

impl Default for Client {
    fn default() -> Self {
        Self::new(CallLimits::default())
    }
}

impl Client {
    /// A client with these bounds.
    pub fn new(limits: CallLimits) -> Self {
        let policy = PolicyCell::default();
        let pool = |allows_loopback| {
            let resolver = Resolver { policy: Arc::clone(&policy), allows_loopback };
            let mut connector = HttpConnector::new_with_resolver(resolver);
            connector.set_connect_timeout(Some(limits.connect));
            connector.set_nodelay(true);
            Pool::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_MAX)
                .pool_max_idle_per_host(IDLE_PER_INSTANCE_MAX)
                .build(connector)
        };
        let (loopback_pool, pool) = (pool(true), pool(false));
        let (recent_failures, alternatives) = (RecentFailures::default(), AlternativeAddresses::default());
        Self(Arc::new(Inner { pool, loopback_pool, policy, limits, recent_failures, alternatives }))
    }

    /// Sends a request to the instances of a service until one answers.
    ///
    /// # Errors
    /// There is no instance, or none has answered.
    pub async fn call(&self, host: &dyn Host, service: &str, call: &Call) -> Result<Reply, CallError> {
        let mut attempts = Attempts::new(self, host, service, call);
        while let Some(provider) = attempts.next() {
            let asking = self.request_full(host, &provider, call, attempts.remaining.is_empty());
            let outcome = timeout_at(attempts.attempt_ends(), asking).await;
            match outcome.unwrap_or_else(|_| Err(AttemptFailure::late())) {
                Ok((status, headers, body)) => return Ok(Reply { provider, status, headers, body }),
                Err(failure) => attempts.failed(&provider, failure),
            }
        }
        Err(attempts.into_error())
    }

    /// Requests a body without an end, such as an event stream. Only a success status counts as an answer.
    ///
    /// # Errors
    /// There is no instance, or none has answered.
    pub async fn stream(&self, host: &dyn Host, service: &str, call: &Call) -> Result<Stream, CallError> {
        let mut attempts = Attempts::new(self, host, service, call);
        while let Some(provider) = attempts.next() {
            let asking = self.request_head(host, &provider, call, attempts.remaining.is_empty());
            match timeout_at(attempts.attempt_ends(), asking)
                .await
                .unwrap_or_else(|_| Err(AttemptFailure::late()))
            {
                Ok(response) if response.status().is_success() => {
                    return Ok(Stream { provider, body: response.into_body() });
                }
                Ok(response) => attempts.failed(&provider, self.read_failure(response).await),
                Err(failure) => attempts.failed(&provider, failure),
            }
        }
        Err(attempts.into_error())
    }

    /// Forwards a request to the node of `provider`, which is a role of that node. Any path is allowed, and
    /// any status counts as an answer.
    ///
    /// # Errors
    /// A sentence that says why there was no complete response within `answer_max`.
    pub async fn forward(
        &self,
        host: &dyn Host,
        provider: &Provider,
        call: &Call,
        answer_max: Duration,
    ) -> Result<Response<Bytes>, String> {
        let call = Call { is_for_role: false, ..call.clone() };
        let asking = async {
            let response =
                self.request_head(host, provider, &call, true).await.map_err(|failure| failure.why)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, self.0.limits.body_bytes).collect().await;
            let body = body.map_err(|error| format!("its answer was cut off: {error}"))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        timeout(answer_max, asking).await.unwrap_or_else(|_| Err("it takes too long".to_owned()))
    }

    /// Requests a complete response from one instance. For a repeatable request, 429 and 5xx are errors.
    async fn request_full(
        &self,
        host: &dyn Host,
        provider: &Provider,
        call: &Call,
        is_last: bool,
    ) -> Result<(StatusCode, HeaderMap, Bytes), AttemptFailure> {
        let response = self.request_head(host, provider, call, is_last).await?;
        let is_refused_here = response.status() == StatusCode::TOO_MANY_REQUESTS;
        if (response.status().is_server_error() || is_refused_here) && call.is_repeatable() {
            return Err(self.read_failure(response).await);
        }
        let (head, body) = response.into_parts();
        let max = self.0.limits.body_bytes;
        match Limited::new(body, max).collect().await {
            Ok(body) => Ok((head.status, head.headers, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(AttemptFailure {
                too_large: true,
                ..AttemptFailure::of_answer(None, format!("its answer is larger than {max} bytes"))
            }),
            Err(error) => Err(AttemptFailure::of_answer(None, format!("its answer was cut off: {error}"))),
        }
    }

    /// Requests the head of a response. A node that does not know this node has not carried out the request.
    /// Then the next instance is tried; the last instance is tried again, for [`UNKNOWN_FOR`].
    async fn request_head(
        &self,
        host: &dyn Host,
        provider: &Provider,
        call: &Call,
        is_last: bool,
    ) -> Result<Response<Incoming>, AttemptFailure> {
        let ends = Instant::now() + UNKNOWN_FOR;
        loop {
            let response = self.try_addresses(host, provider, call).await?;
            let is_unknown = response.status() == StatusCode::UNAUTHORIZED
                && response.headers().contains_key(header::RETRY_AFTER);
            if is_unknown && !is_last {
                return Err(AttemptFailure::of_address("does not know this node yet".to_owned()));
            }
            if !is_unknown || ends <= Instant::now() {
                return Ok(response);
            }
            sleep(UNKNOWN_RETRY).await;
        }
    }

    /// Tries the addresses of one instance.
    async fn try_addresses(
        &self,
        host: &dyn Host,
        provider: &Provider,
        call: &Call,
    ) -> Result<Response<Incoming>, AttemptFailure> {
        let Inner { pool, loopback_pool, policy, alternatives, .. } = self.0.as_ref();
        let policy = policy.get_or_init(|| host.address_policy().clone());
        let pool = if policy.allows_loopback(provider.node_id) { loopback_pool } else { pool };
        let via = HeaderValue::try_from(format!("1.1 hearsay-{}", host.node_id().short()));
        let via = via.unwrap_or_else(|_| HeaderValue::from_static("1.1 hearsay"));
        let mut unreached = Vec::new();
        for url in alternatives.order(provider) {
            let mut request = request(provider, &url, call, &via).map_err(AttemptFailure::of_address)?;
            if let Err(rule) = check_address(policy, provider, &url) {
                policy.count(rule);
                unreached.push(format!("{url}: not called: {rule}"));
                continue;
            }
            sign(host, provider, &mut request, &call.body);
            let asked = pool.request(request).await;
            match asked {
                Ok(response) => {
                    if !unreached.is_empty() {
                        alternatives.record(provider, &url);
                    }
                    return Ok(response);
                }
                // Nothing was sent, so the next address may be tried for any request.
                Err(error) if error.is_connect() => unreached.push(format!("{url}: {}", cause(&error))),
                Err(error) => return Err(AttemptFailure::of_pool(&error)),
            }
        }
        Err(AttemptFailure::unreached(&unreached))
    }

    /// Reads the error of an instance that answered with a failure status.
    async fn read_failure(&self, response: Response<Incoming>) -> AttemptFailure {
        let status = response.status();
        // A detail that is late or too long is ignored.
        let body = timeout(Duration::from_secs(1), Limited::new(response.into_body(), 64 * 1024).collect());
        let detail = match body.await {
            Ok(Ok(body)) => problem_detail(&body.to_bytes()),
            _ => None,
        };
        let why = match detail {
            Some(detail) => format!("answered {status}: {detail}"),
            None => format!("answered {status}"),
        };
        AttemptFailure::of_answer(Some(status), why)
    }
}

/// Returns the detail of a problem document, cut to a bounded length.
pub fn problem_detail(body: &[u8]) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(problem.get("detail")?.as_str()?.chars().take(DETAIL_CHARS_MAX).collect())
}

impl AttemptFailure {
    fn of_address(why: String) -> Self {
        Self { sent: false, is_avoided: true, too_large: false, status: None, why }
    }

    fn of_answer(status: Option<StatusCode>, why: String) -> Self {
        Self { sent: true, is_avoided: false, too_large: false, status, why }
    }

    fn late() -> Self {
        Self {
            sent: true,
            is_avoided: true,
            too_large: false,
            status: None,
            why: "did not answer in time".to_owned(),
        }
    }

    /// The connection broke after the request was sent.
    fn of_pool(error: &PoolError) -> Self {
        let why = format!("the connection broke before the answer: {}", cause(error));
        Self { sent: true, is_avoided: true, too_large: false, status: None, why }
    }

    /// No address accepted a connection. `addresses` are those that were tried, each with the cause.
    fn unreached(addresses: &[String]) -> Self {
        let why = format!("cannot be reached at {}", addresses.join(", "));
        Self { sent: false, is_avoided: true, too_large: false, status: None, why }
    }
}

/// Returns the innermost source of an error.
fn cause(error: &PoolError) -> &dyn std::error::Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause
}

/// State of a call: the remaining instances and the failed attempts.
struct Attempts<'a> {
    client: &'a Client,
    service: &'a str,
    call: &'a Call,
    /// Remaining instances, the next one last.
    remaining: Vec<Arc<Provider>>,
    ends: Instant,
    tries: Vec<FailedAttempt>,
    /// Whether an instance that did not answer may have executed the request.
    indeterminate: bool,
    too_large: bool,
}

impl<'a> Attempts<'a> {
    fn new(client: &'a Client, host: &dyn Host, service: &'a str, call: &'a Call) -> Self {
        let Inner { limits, recent_failures, .. } = client.0.as_ref();
        // A program registered under the name of a role does not have the data of the role.
        let roles = host.providers(service).into_iter().filter(|provider| provider.is_role()).collect();
        let mut remaining = order::best_first(roles, host.node_id(), call.prefer, recent_failures);
        remaining.truncate(limits.instances);
        remaining.reverse();
        let ends = Instant::now() + limits.all;
        Self {
            client,
            service,
            call,
            remaining,
            ends,
            tries: Vec::new(),
            indeterminate: false,
            too_large: false,
        }
    }

    fn next(&mut self) -> Option<Arc<Provider>> {
        if self.ends <= Instant::now() { None } else { self.remaining.pop() }
    }

    fn attempt_ends(&self) -> Instant {
        (Instant::now() + self.client.0.limits.answer).min(self.ends)
    }

    fn failed(&mut self, provider: &Provider, failure: AttemptFailure) {
        if failure.is_avoided {
            self.client.0.recent_failures.record(&provider.instance.url);
        }
        // With these statuses nothing was written.
        let was_refused =
            failure.status.is_some_and(|status| matches!(status.as_u16(), 429 | 501 | 503 | 507));
        self.indeterminate |= failure.sent && !was_refused && !self.call.method.is_safe();
        self.too_large |= failure.too_large;
        if failure.too_large || failure.sent && !self.call.is_repeatable() {
            self.remaining.clear();
        }
        self.tries.push(FailedAttempt {
            node: provider.node.clone(),
            why: failure.why,
            status: failure.status,
        });
    }

    fn into_error(self) -> CallError {
        let service = self.service.to_owned();
        if self.tries.is_empty() {
            return CallError::NoInstance { service };
        }
        if self.too_large {
            return CallError::TooLarge { service, bytes_max: self.client.0.limits.body_bytes };
        }
        CallError::AllFailed { service, tries: self.tries, indeterminate: self.indeterminate }
    }
}
