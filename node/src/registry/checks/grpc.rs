//! `grpc` check: passes if `grpc.health.v1.Health/Check` answers SERVING.
//!
//! It speaks the gRPC health checking protocol over HTTP/2, with TLS or with prior knowledge. The call has
//! two messages, which are defined here instead of in generated code.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use hearsay_protocol::Invalid;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::Message as _;
use tokio::task::JoinSet;

use super::{
    connect::{Connector, Socket},
    http::{USER_AGENT, VIA, cause},
    outcome::Outcome,
    spec::CheckTls,
    tls::{Protocol, TlsOptions},
};
use crate::registry::address::Target;

const PATH: &str = "/grpc.health.v1.Health/Check";
/// The longest answer, in bytes. A `HealthCheckResponse` has two.
const ANSWER_BYTES_MAX: usize = 4096;
/// Maximum number of bytes of headers of an answer.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// The longest name of a service. Guess.
const SERVICE_BYTES_MAX: usize = 1024;
/// Prefix of a message: compression flag (1 byte) and length (4 bytes).
const PREFIX_BYTES: usize = 5;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub(super) status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub(super) enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// A check that calls `Health/Check` of a gRPC server.
#[derive(Debug)]
pub(super) struct GrpcProbe {
    target: Target,
    service: String,
    tls: Option<TlsOptions>,
    url: Uri,
    message: Bytes,
}

impl GrpcProbe {
    /// Returns a check of a service at `host:port`.
    pub(super) fn new(address: &str, service: &str, tls: &CheckTls) -> Result<Self, Invalid> {
        let target = Target::parse("grpc", address)?;
        if service.len() > SERVICE_BYTES_MAX {
            let reason = format!("the name of the service is longer than {SERVICE_BYTES_MAX} bytes");
            return Err(Invalid::new("grpc", reason));
        }
        let scheme = if tls.is_used { "https" } else { "http" };
        let url = format!("{scheme}://{target}{PATH}").parse();
        let url =
            url.map_err(|_| Invalid::new("grpc", format!("{address:?} is not an address; give host:port")))?;
        let tls = TlsOptions::parse(tls, Protocol::Http2)?;
        let message = frame(&HealthCheckRequest { service: service.to_owned() });
        Ok(Self { target, service: service.to_owned(), tls, url, message })
    }

    /// Runs the check once. The caller enforces the timeout; the header `grpc-timeout` states it to the
    /// server.
    pub(super) async fn run(&self, connector: &Connector, timeout: Duration) -> Outcome {
        let socket = match connector.open(&self.target, self.tls.as_ref()).await {
            Ok(socket) => socket,
            Err(error) => return error.into(),
        };
        match self.send_and_read(socket, timeout).await {
            Ok(answer) => self.judge_answer(&answer),
            Err(error) => Outcome::critical(format!("no answer from {}: {}", self.target, cause(&error))),
        }
    }

    async fn send_and_read(&self, socket: Box<dyn Socket>, timeout: Duration) -> hyper::Result<Answer> {
        let tasks = ConnectionTasks::default();
        let mut builder = http2::Builder::new(tasks.executor());
        builder.timer(TokioTimer::new()).max_header_list_size(HEADER_BYTES_MAX);
        let (mut sender, connection) = builder.handshake(TokioIo::new(socket)).await?;
        let mut connection = pin!(connection);
        let mut exchange =
            pin!(async { Answer::read(sender.send_request(self.build_request(timeout)).await?).await });
        tokio::select! {
            biased;
            done = &mut exchange => return done,
            _ = &mut connection => (),
        }
        exchange.await
    }

    fn build_request(&self, timeout: Duration) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.message.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert(header::VIA, VIA);
        if let Ok(timeout) = HeaderValue::from_str(&format!("{}m", timeout.as_millis().min(99_999_999))) {
            headers.insert(GRPC_TIMEOUT, timeout);
        }
        request
    }

    fn judge_answer(&self, answer: &Answer) -> Outcome {
        let subject = match self.service.as_str() {
            "" => self.target.to_string(),
            service => format!("{service} at {}", self.target),
        };
        match answer {
            Answer::NotGrpc(what) => Outcome::critical(format!("{subject} does not speak gRPC: {what}")),
            Answer::Failed { code: 12, .. } => {
                Outcome::critical(format!("{} does not implement grpc.health.v1", self.target))
            }
            Answer::Failed { code: 5, .. } => {
                Outcome::critical(format!("{} does not know the service {:?}", self.target, self.service))
            }
            Answer::Failed { code, message } => {
                Outcome::critical(format!("{subject} answered with gRPC status {code}: {message}"))
            }
            Answer::Status(ServingStatus::Serving) => Outcome::passing(format!("{subject} is SERVING")),
            Answer::Status(ServingStatus::NotServing) => {
                Outcome::critical(format!("{subject} is NOT_SERVING"))
            }
            Answer::Status(ServingStatus::Unknown) => Outcome::critical(format!("{subject} is UNKNOWN")),
            Answer::Status(ServingStatus::ServiceUnknown) => {
                Outcome::critical(format!("{subject} is SERVICE_UNKNOWN"))
            }
        }
    }
}

/// The answer of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    Status(ServingStatus),
    /// A status other than OK, with its message.
    Failed {
        code: u16,
        message: String,
    },
    /// Not a gRPC answer.
    NotGrpc(String),
}

impl Answer {
    async fn read(response: http::Response<Incoming>) -> hyper::Result<Self> {
        let (head, mut body) = response.into_parts();
        let content_type = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if !content_type.is_some_and(|t| t.starts_with(CONTENT_TYPE.as_bytes())) {
            return Ok(Self::NotGrpc(format!("HTTP {}", head.status)));
        }
        // If the response has no message, the status is in the headers.
        if let Some(failed) = Self::failed(&head.headers) {
            return Ok(failed);
        }
        let mut message = BytesMut::new();
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) if message.len() + data.len() > ANSWER_BYTES_MAX => {
                    return Ok(Self::NotGrpc(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
                }
                Ok(data) => message.extend_from_slice(&data),
                Err(frame) => {
                    if let Some(failed) = frame.trailers_ref().and_then(Self::failed) {
                        return Ok(failed);
                    }
                }
            }
        }
        Ok(unframe(&message))
    }

    /// Returns the failure in headers or trailers, if any.
    fn failed(headers: &HeaderMap) -> Option<Self> {
        let code = headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()?;
        let message = headers.get(GRPC_MESSAGE).map(|m| String::from_utf8_lossy(m.as_bytes()).into_owned());
        (code != 0).then(|| Self::Failed { code, message: message.unwrap_or_default() })
    }
}

/// Encodes a message with its prefix.
pub(super) fn frame(message: &impl prost::Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + body.len());
    framed.put_u8(0);
    // A request is a few hundred bytes.
    framed.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    framed.put_slice(&body);
    framed.freeze()
}

fn unframe(framed: &[u8]) -> Answer {
    let Some((prefix, body)) = framed.split_at_checked(PREFIX_BYTES) else {
        return Answer::NotGrpc("an answer without a message".into());
    };
    let length = prefix[1..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    if prefix[0] != 0 || length != body.len() {
        return Answer::NotGrpc("a compressed or cut message".into());
    }
    match HealthCheckResponse::decode(body) {
        Ok(response) => Answer::Status(response.status()),
        Err(error) => Answer::NotGrpc(error.to_string()),
    }
}

/// Tasks of a connection, aborted on drop: a server that does not read could keep them alive.
#[derive(Debug, Default)]
struct ConnectionTasks(Arc<Mutex<JoinSet<()>>>);

#[derive(Clone, Debug)]
struct ConnectionExecutor(Arc<Mutex<JoinSet<()>>>);

impl ConnectionTasks {
    fn executor(&self) -> ConnectionExecutor {
        ConnectionExecutor(Arc::clone(&self.0))
    }
}

impl Drop for ConnectionTasks {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for ConnectionExecutor {
    fn execute(&self, task: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}
