//! HTTP from a plug-in to whichever instances of another service are alive.
//!
//! The provider table says who is there; it cannot say who answers right now. So a [`Client`] takes all instances of a service, asks the
//! one that promises most, and goes on to the next where asking once more does no harm: a read always, a write only if nothing of it
//! can have arrived, or if it carries an `Idempotency-Key`, by which the service knows it again. Every step has an end: the
//! connecting, the answer, the number of instances, the whole, and the size of a body. Redirects are not followed.
//!
//! A request goes to the origin of an instance, under a path of its role, and only where the [address policy](crate::address_policy)
//! allows. It carries `Via`, so that no node takes it for one that was made on its own machine: others write what it says.
//!
//! [`AskError`] says "nobody is there" apart from "none of them could": the first wants a node started, the second one mended.

mod call;
mod order;
mod request;
mod resolver;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use hearsay_protocol::providers::Provider;
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
use order::{Ailing, Reached};
use request::{check_address, request, sign};
use resolver::{PolicyCell, Resolver};

pub use crate::writing::IDEMPOTENCY_KEY;

/// How long a node is asked again that does not know this one yet, or not any more. Gossip takes milliseconds, a restart a second.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// How long to wait before each repetition.
const UNKNOWN_RETRY: Duration = Duration::from_millis(200);

/// What one question may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time to open a connection, for each address of an instance. An address on the same network answers in
    /// a millisecond or is not there.
    pub connect: Duration,
    /// Time of one instance for its whole answer (of a stream: for its head). Above the 2 s that a node waits for what a reader has
    /// just written, and the time that a write waits for another disk.
    pub answer: Duration,
    /// Time for all instances together: what a person waits for a page before pressing the button again.
    pub all: Duration,
    /// Instances asked before giving up.
    pub instances: usize,
    /// Size of an answer's body.
    pub body_bytes: usize,
}

impl Default for Limits {
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

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Who gave it.
    pub provider: Arc<Provider>,
    /// Its status: any but 5xx, which made the next instance be asked (of a write that may not be repeated: any).
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Errors
    /// The body is not what was expected.
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.body)
    }
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub struct Stream {
    /// Who gives it.
    pub provider: Arc<Provider>,
    /// The body. Whoever reads it sets the bounds on what is kept of it, and for how long nothing may come.
    pub body: Incoming,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing was asked.
    #[error("no instance of {service} is alive")]
    NoInstance {
        /// What was asked for.
        service: String,
    },
    /// An instance answered with more than this node takes in; another one would, too. Ask for less.
    #[error("the answer of {service} is larger than {bytes_max} bytes")]
    TooLarge {
        /// What was asked for.
        service: String,
        /// What is taken in.
        bytes_max: usize,
    },
    /// Instances are there, and none of those that were asked gave an answer.
    #[error("no instance of {service} could answer: {}", told(tries))]
    AllFailed {
        /// What was asked for.
        service: String,
        /// Each instance that was asked, in this order.
        tries: Vec<Try>,
        /// Of a write: it may have been carried out, or may be yet. Repeating it under the same key tells.
        indeterminate: bool,
    },
}

/// One instance that gave no answer.
#[derive(Clone, Debug)]
pub struct Try {
    /// Its node.
    pub node: String,
    /// What went wrong.
    pub why: String,
    /// The status, where it was that.
    pub status: Option<StatusCode>,
}

fn told(tries: &[Try]) -> String {
    tries.iter().map(|t| format!("{}: {}", t.node, t.why)).collect::<Vec<_>>().join("; ")
}

/// What happened to a request that was not answered.
struct Trouble {
    /// Whether any of it can have reached the instance.
    sent: bool,
    /// Whether the instance itself is to be left alone for a while.
    ails: bool,
    /// Whether the answer was more than is taken in.
    too_large: bool,
    status: Option<StatusCode>,
    why: String,
}

/// The client. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Connections,
    /// Connections to instances whose loopback addresses are this machine's.
    loopback_pool: Connections,
    /// Set by the first question.
    policy: PolicyCell,
    limits: Limits,
    ailing: Ailing,
    reached: Reached,
}

type Connections = Pool<HttpConnector<Resolver>, Full<Bytes>>;

/// Idle connections are closed after this, before the other node does it at 5 s: a request that crosses with that close would be lost.
const IDLE_MAX: Duration = Duration::from_secs(3);
/// Idle connections kept to each instance. Guess.
const IDLE_PER_INSTANCE_MAX: usize = 8;
/// Of what an instance says of its failure, so much is repeated.
const DETAIL_CHARS_MAX: usize = 300;

impl Default for Client {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Client {
    /// A client with these bounds.
    pub fn new(limits: Limits) -> Self {
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
        let (ailing, reached) = (Ailing::default(), Reached::default());
        Self(Arc::new(Inner { pool, loopback_pool, policy, limits, ailing, reached }))
    }

    /// Asks the instances of a service that this node knows of, until one answers.
    ///
    /// # Errors
    /// Nobody is there, or nobody could answer.
    pub async fn ask(&self, host: &dyn Host, service: &str, call: &Call) -> Result<Reply, AskError> {
        let mut over = Over::new(self, host, service, call);
        while let Some(provider) = over.next() {
            let asking = self.whole(host, &provider, call, over.left.is_empty());
            let outcome = timeout_at(over.attempt_ends(), asking).await;
            match outcome.unwrap_or_else(|_| Err(Trouble::late())) {
                Ok((status, headers, body)) => return Ok(Reply { provider, status, headers, body }),
                Err(trouble) => over.failed(&provider, trouble),
            }
        }
        Err(over.give_up())
    }

    /// Asks for a stream that does not end by itself. Only a success counts as an answer.
    ///
    /// # Errors
    /// Nobody is there, or nobody could answer.
    pub async fn stream(&self, host: &dyn Host, service: &str, call: &Call) -> Result<Stream, AskError> {
        let mut over = Over::new(self, host, service, call);
        while let Some(provider) = over.next() {
            let asking = self.head(host, &provider, call, over.left.is_empty());
            match timeout_at(over.attempt_ends(), asking).await.unwrap_or_else(|_| Err(Trouble::late())) {
                Ok(response) if response.status().is_success() => {
                    return Ok(Stream { provider, body: response.into_body() });
                }
                Ok(response) => over.failed(&provider, self.refused(response).await),
                Err(trouble) => over.failed(&provider, trouble),
            }
        }
        Err(over.give_up())
    }

    /// Passes a request on to a node, whatever its path and answer. The provider is one of this node's roles.
    ///
    /// # Errors
    /// In words: there is no whole answer within this time.
    pub async fn forward(
        &self,
        host: &dyn Host,
        provider: &Provider,
        call: &Call,
        answer_max: Duration,
    ) -> Result<Response<Bytes>, String> {
        let call = Call { is_for_role: false, ..call.clone() };
        let asking = async {
            let response = self.head(host, provider, &call, true).await.map_err(|trouble| trouble.why)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, self.0.limits.body_bytes).collect().await;
            let body = body.map_err(|error| format!("its answer broke off: {error}"))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        timeout(answer_max, asking).await.unwrap_or_else(|_| Err("it takes too long".to_owned()))
    }

    /// The answer of one instance, unless it is a failure of that instance.
    async fn whole(
        &self,
        host: &dyn Host,
        provider: &Provider,
        call: &Call,
        is_last: bool,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Trouble> {
        let response = self.head(host, provider, call, is_last).await?;
        if response.status().is_server_error() && call.is_repeatable() {
            return Err(self.refused(response).await);
        }
        let (head, body) = response.into_parts();
        let max = self.0.limits.body_bytes;
        match Limited::new(body, max).collect().await {
            Ok(body) => Ok((head.status, head.headers, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(Trouble {
                too_large: true,
                ..Trouble::of_answer(None, format!("its answer is larger than {max} bytes"))
            }),
            Err(error) => Err(Trouble::of_answer(None, format!("its answer broke off: {error}"))),
        }
    }

    /// The head of one instance's answer. A node that does not know this one yet, or not any more, has done nothing: the next one is asked, or
    /// after the last this one again.
    async fn head(
        &self,
        host: &dyn Host,
        provider: &Provider,
        call: &Call,
        is_last: bool,
    ) -> Result<Response<Incoming>, Trouble> {
        let ends = Instant::now() + UNKNOWN_FOR;
        loop {
            let response = self.head_of_one(host, provider, call).await?;
            let is_unknown = response.status() == StatusCode::UNAUTHORIZED
                && response.headers().contains_key(header::RETRY_AFTER);
            if is_unknown && !is_last {
                return Err(Trouble::of_address("does not know this node yet".to_owned()));
            }
            if !is_unknown || ends <= Instant::now() {
                return Ok(response);
            }
            sleep(UNKNOWN_RETRY).await;
        }
    }

    /// The same, asked once.
    async fn head_of_one(
        &self,
        host: &dyn Host,
        provider: &Provider,
        call: &Call,
    ) -> Result<Response<Incoming>, Trouble> {
        let Inner { pool, loopback_pool, policy, reached, .. } = self.0.as_ref();
        let policy = policy.get_or_init(|| host.address_policy().clone());
        let pool = if policy.allows_loopback(provider.node_id) { loopback_pool } else { pool };
        let via = HeaderValue::try_from(format!("1.1 hearsay-{}", host.node_id().short()));
        let via = via.unwrap_or_else(|_| HeaderValue::from_static("1.1 hearsay"));
        let mut unreached = Vec::new();
        for url in reached.order(provider) {
            let mut request = request(provider, &url, call, &via).map_err(Trouble::of_address)?;
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
                        reached.record(provider, &url);
                    }
                    return Ok(response);
                }
                // Nothing was sent, so the next address may be tried whatever the request is.
                Err(error) if error.is_connect() => unreached.push(format!("{url}: {}", cause(&error))),
                Err(error) => return Err(Trouble::of_pool(&error)),
            }
        }
        Err(Trouble::unreached(&unreached))
    }

    /// The words of an instance that answers, and cannot.
    async fn refused(&self, response: Response<Incoming>) -> Trouble {
        let status = response.status();
        // A detail that does not come in time, or is too long for one, is not worth waiting for.
        let body = timeout(Duration::from_secs(1), Limited::new(response.into_body(), 64 * 1024).collect());
        let detail = match body.await {
            Ok(Ok(body)) => problem_detail(&body.to_bytes()),
            _ => None,
        };
        let why = match detail {
            Some(detail) => format!("answered {status}: {detail}"),
            None => format!("answered {status}"),
        };
        Trouble::of_answer(Some(status), why)
    }
}

/// The sentence of a problem+json, cut to a length.
pub fn problem_detail(body: &[u8]) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(problem.get("detail")?.as_str()?.chars().take(DETAIL_CHARS_MAX).collect())
}

impl Trouble {
    fn of_address(why: String) -> Self {
        Self { sent: false, ails: true, too_large: false, status: None, why }
    }

    fn of_answer(status: Option<StatusCode>, why: String) -> Self {
        Self { sent: true, ails: false, too_large: false, status, why }
    }

    fn late() -> Self {
        Self {
            sent: true,
            ails: true,
            too_large: false,
            status: None,
            why: "did not answer in time".to_owned(),
        }
    }

    /// The instance had the request, and its connection broke.
    fn of_pool(error: &PoolError) -> Self {
        let why = format!("broke off before its answer: {}", cause(error));
        Self { sent: true, ails: true, too_large: false, status: None, why }
    }

    /// No address took a connection. `addresses` are those that were tried, each with the cause.
    fn unreached(addresses: &[String]) -> Self {
        let why = format!("cannot be reached at {}", addresses.join(", "));
        Self { sent: false, ails: true, too_large: false, status: None, why }
    }
}

/// What the system says, below all that wraps it.
fn cause(error: &PoolError) -> &dyn std::error::Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause
}

/// One question on its way over the instances.
struct Over<'a> {
    client: &'a Client,
    service: &'a str,
    call: &'a Call,
    /// In the reverse order of asking.
    left: Vec<Arc<Provider>>,
    ends: Instant,
    tries: Vec<Try>,
    /// Whether an instance may have carried out what it did not answer.
    indeterminate: bool,
    too_large: bool,
}

impl<'a> Over<'a> {
    fn new(client: &'a Client, host: &dyn Host, service: &'a str, call: &'a Call) -> Self {
        let Inner { limits, ailing, .. } = client.0.as_ref();
        // A program that bears the role's name does not keep what the role keeps.
        let roles = host.providers(service).into_iter().filter(|provider| provider.is_role()).collect();
        let mut left = order::best_first(roles, host.node_id(), call.prefer, ailing);
        left.truncate(limits.instances);
        left.reverse();
        let ends = Instant::now() + limits.all;
        Self { client, service, call, left, ends, tries: Vec::new(), indeterminate: false, too_large: false }
    }

    fn next(&mut self) -> Option<Arc<Provider>> {
        if self.ends <= Instant::now() { None } else { self.left.pop() }
    }

    fn attempt_ends(&self) -> Instant {
        (Instant::now() + self.client.0.limits.answer).min(self.ends)
    }

    fn failed(&mut self, provider: &Provider, trouble: Trouble) {
        if trouble.ails {
            self.client.0.ailing.note(&provider.instance.url);
        }
        // These say that nothing was written: not able to, not now, no room.
        let refused = trouble.status.is_some_and(|status| matches!(status.as_u16(), 501 | 503 | 507));
        self.indeterminate |= trouble.sent && !refused && !self.call.method.is_safe();
        self.too_large |= trouble.too_large;
        if trouble.too_large || trouble.sent && !self.call.is_repeatable() {
            self.left.clear();
        }
        self.tries.push(Try { node: provider.node.clone(), why: trouble.why, status: trouble.status });
    }

    fn give_up(self) -> AskError {
        let service = self.service.to_owned();
        if self.tries.is_empty() {
            return AskError::NoInstance { service };
        }
        if self.too_large {
            return AskError::TooLarge { service, bytes_max: self.client.0.limits.body_bytes };
        }
        AskError::AllFailed { service, tries: self.tries, indeterminate: self.indeterminate }
    }
}
