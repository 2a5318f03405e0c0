//! [`AccessRecord`]: an event in the access log for each request, at the end of its response.
//!
//! The target is `hearsay_services::gateway::access` at level debug, so the log is off by default: it costs
//! as much as the request. `HEARSAY_LOG=…access=debug` turns it on. Values that the client chose (host, path)
//! are logged in `Debug` form (`?` in tracing), which escapes control characters.

use std::time::Instant;

use http::{Method, StatusCode};
use tracing::Level;

/// Target of the events. It is older than this crate and stays, because operators' filters contain it.
const TARGET: &str = "hearsay_services::gateway::access";
/// Maximum number of characters of a path that are logged.
const PATH_CHARS_MAX: usize = 512;

/// The record of a request. It is logged when it is dropped.
#[derive(Debug)]
pub(crate) struct AccessRecord {
    /// Bytes of the response body.
    pub(crate) bytes: u64,
    /// The status; 499 (as in nginx) if the request ended without a response.
    status: u16,
    /// The instance that responded.
    pub(crate) instance: Option<String>,
    /// Attempts after the first.
    pub(crate) retries: usize,
    client: String,
    method: Method,
    host: String,
    path: String,
    started: Instant,
}

impl AccessRecord {
    /// Returns a new record, if the log is on.
    pub(crate) fn start<B>(request: &http::Request<B>, client: &http::HeaderValue) -> Option<Box<Self>> {
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

    /// Sets the status of the response.
    pub(crate) fn set_status(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        tracing::debug!(
            target: TARGET,
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
