//! The access log: one event for each request, when its answer has ended.
//!
//! The target is `hearsay_services::gateway::access` at level debug, so it is off unless asked for (`HEARSAY_LOG=…access=debug`): a line
//! for each request costs as much as the request. What a client chose is written with `?`, which escapes control characters.

use std::time::Instant;

use http::{Method, StatusCode};
use tracing::Level;

/// Names the events.
const TARGET: &str = "hearsay_services::gateway::access";
/// Of a path, so much is logged.
const PATH_CHARS_MAX: usize = 512;

/// A line that is not finished. It is written when dropped.
#[derive(Debug)]
pub struct Access {
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// The status; 499 (as nginx says) while the client has been told nothing.
    pub status: u16,
    /// Who answered.
    pub instance: Option<String>,
    /// Further attempts.
    pub retries: usize,
    client: String,
    method: Method,
    host: String,
    path: String,
    started: Instant,
}

impl Access {
    /// Begins a line, if anybody will read it.
    pub fn begin<B>(request: &http::Request<B>, client: &http::HeaderValue) -> Option<Box<Self>> {
        if !tracing::enabled!(target: TARGET, Level::DEBUG) {
            return None;
        }
        let text = |value: Option<&http::HeaderValue>| {
            value.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
        };
        let host = match request.uri().authority() {
            Some(authority) => authority.to_string(),
            None => text(request.headers().get(http::header::HOST)),
        };
        Some(Box::new(Self {
            bytes: 0,
            status: 499,
            instance: None,
            retries: 0,
            client: text(Some(client)),
            method: request.method().clone(),
            host,
            path: request.uri().path().chars().take(PATH_CHARS_MAX).collect(),
            started: Instant::now(),
        }))
    }

    /// What the client is told.
    pub fn answer(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        tracing::debug!(
            target: "hearsay_services::gateway::access",
            client = %self.client,
            method = %self.method,
            host = ?self.host,
            path = ?self.path,
            status = self.status,
            bytes = self.bytes,
            ms = self.started.elapsed().as_secs_f64() * 1000.0,
            instance = self.instance.as_deref().unwrap_or("-"),
            retries = self.retries,
        );
    }
}
