//! `http` check: passes if a request gets the expected answer.
//!
//! Each run opens a new connection: a service that does not accept connections is not healthy. Redirects are
//! not followed, because they could lead to addresses outside the registration. The header `Via` keeps a node
//! that receives the request from treating it as the request of a local program.

use std::pin::pin;

use bytes::Bytes;
use hearsay_protocol::{Health, Invalid};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use regex::{Regex, RegexBuilder};

use super::{
    connect::{Connector, Socket},
    outcome::Outcome,
    spec::{CheckTls, HttpCheck},
    tls::{Protocol, TlsOptions},
};
use crate::registry::address::{HttpUrl, Scheme, Target};

/// `User-Agent` of checks.
pub(super) const USER_AGENT: HeaderValue = HeaderValue::from_static("Hearsay-Health-Check");
/// `Via` of checks: the request is sent on behalf of others.
pub(super) const VIA: HeaderValue = HeaderValue::from_static("1.1 hearsay");

/// Maximum number of bytes read of a body.
const BODY_BYTES_MAX: usize = 4096;
/// The largest head of a response, in bytes.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// The largest compiled pattern, in bytes. Guess: far above what a pattern of a health check needs.
const PATTERN_BYTES_MAX: usize = 256 * 1024;
/// Maximum number of characters of a redirect's target in the output.
const LOCATION_CHARS_MAX: usize = 200;

/// Headers of the connection and the message framing; only this client sets them.
const OWN_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// A check that sends a request.
#[derive(Debug)]
pub(super) struct HttpProbe {
    target: Target,
    tls: Option<TlsOptions>,
    method: Method,
    path: Uri,
    headers: HeaderMap,
    body: Bytes,
    expect_status: Vec<(u16, u16)>,
    expect_body: Option<Regex>,
}

impl HttpProbe {
    /// Parses URL, method, headers and pattern.
    pub(super) fn new(check: &HttpCheck) -> Result<Self, Invalid> {
        let url = HttpUrl::parse("http", &check.url)?;
        let tls = CheckTls {
            is_used: url.scheme == Scheme::Https,
            skip_verify: check.tls_skip_verify,
            server_name: check.tls_server_name.clone(),
        };
        Ok(Self {
            target: url.target,
            tls: TlsOptions::parse(&tls, Protocol::Http1)?,
            method: parse_method(&check.method)?,
            path: Uri::from(url.path),
            headers: parse_headers(check, &url.authority)?,
            body: Bytes::copy_from_slice(check.body.as_bytes()),
            expect_status: check.expect_status.clone(),
            expect_body: check.expect_body.as_deref().map(parse_pattern).transpose()?,
        })
    }

    /// The host and port of the URL.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Runs the check once. The caller enforces the timeout.
    pub(super) async fn run(&self, connector: &Connector) -> Outcome {
        let socket = match connector.open(&self.target, self.tls.as_ref()).await {
            Ok(socket) => socket,
            Err(error) => return error.into(),
        };
        match self.send_and_read(socket).await {
            Ok((answer, body)) => self.judge_answer(&answer, &body),
            Err(error) => Outcome::critical(format!("no answer from {}: {}", self.target, cause(&error))),
        }
    }

    /// Sends the request and closes the connection. Returns the head of the response and the start of its
    /// body.
    async fn send_and_read(&self, socket: Box<dyn Socket>) -> hyper::Result<(Response<()>, Vec<u8>)> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let (mut sender, connection) = builder.handshake(TokioIo::new(socket)).await?;
        let mut connection = pin!(connection);
        let mut exchange = pin!(async {
            let answer = sender.send_request(self.build_request()).await?;
            let (head, body) = answer.into_parts();
            Ok((Response::from_parts(head, ()), read_beginning(body).await?))
        });
        // The connection is polled in this task: a task for each run would cost more than the run.
        tokio::select! {
            biased;
            done = &mut exchange => return done,
            _ = &mut connection => (),
        }
        // The connection has ended, but the response may be buffered.
        exchange.await
    }

    fn build_request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    fn judge_answer(&self, answer: &Response<()>, body: &[u8]) -> Outcome {
        let status = answer.status();
        let text = String::from_utf8_lossy(body);
        let describe = |words: &str| match text.trim() {
            "" => format!("HTTP {status}{words}"),
            text => format!("HTTP {status}{words}: {text}"),
        };
        let is_expected = if self.expect_status.is_empty() {
            status.is_success()
        } else {
            self.expect_status.iter().any(|(low, high)| (*low..=*high).contains(&status.as_u16()))
        };
        if !is_expected && status == StatusCode::TOO_MANY_REQUESTS {
            return Outcome::new(Health::Warning, describe(""));
        }
        if !is_expected && status.is_redirection() && answer.headers().contains_key(header::LOCATION) {
            let location =
                answer.headers().get(header::LOCATION).map(|l| String::from_utf8_lossy(l.as_bytes()));
            let location: String = location.unwrap_or_default().chars().take(LOCATION_CHARS_MAX).collect();
            return Outcome::critical(format!("HTTP {status}: the redirect to {location:?} is not followed"));
        }
        if !is_expected {
            return Outcome::critical(describe(""));
        }
        match &self.expect_body {
            Some(pattern) if !pattern.is_match(&text) => {
                Outcome::critical(describe(&format!(", but the body does not match {:?}", pattern.as_str())))
            }
            _ => Outcome::passing(describe("")),
        }
    }
}

/// Reads at most [`BODY_BYTES_MAX`].
async fn read_beginning(mut body: Incoming) -> hyper::Result<Vec<u8>> {
    let mut beginning = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            let room = BODY_BYTES_MAX - beginning.len();
            beginning.extend_from_slice(&data[..data.len().min(room)]);
            if beginning.len() == BODY_BYTES_MAX {
                break;
            }
        }
    }
    Ok(beginning)
}

fn parse_method(method: &str) -> Result<Method, Invalid> {
    let invalid =
        || Invalid::new("method", format!("{method:?} is not a method; use GET or HEAD, for example"));
    match method.trim() {
        "" => Ok(Method::GET),
        word => {
            let word = word.to_ascii_uppercase();
            Method::from_bytes(word.as_bytes()).ok().filter(|m| *m != Method::CONNECT).ok_or_else(invalid)
        }
    }
}

fn parse_headers(check: &HttpCheck, authority: &str) -> Result<HeaderMap, Invalid> {
    let mut headers = HeaderMap::new();
    for (name, values) in &check.headers {
        let invalid = |reason: &str| Invalid::new("header", format!("{name:?} {reason}"));
        let parsed: HeaderName = name.trim().parse().map_err(|_| invalid("is not a header name"))?;
        if OWN_HEADERS.contains(&parsed) {
            return Err(invalid("is set by the node; leave it out"));
        }
        for value in values {
            let value = value.parse().map_err(|_| invalid("has a value that is not valid in a header"))?;
            headers.append(parsed.clone(), value);
        }
    }
    let host = authority.parse().map_err(|_| Invalid::new("http", "the host cannot be sent as a header"))?;
    headers.entry(header::HOST).or_insert(host);
    headers.entry(header::USER_AGENT).or_insert(USER_AGENT);
    headers.append(header::VIA, VIA);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

fn parse_pattern(pattern: &str) -> Result<Regex, Invalid> {
    let compiled = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
    compiled.map_err(|error| Invalid::new("expect_body", error.to_string()))
}

/// Returns the innermost cause of an error; hyper's own message contains no reason.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
