//! [`Backend`]: requests from the portal to grading and log nodes, and the messages that pages show for
//! failures.

use std::sync::Arc;

use hearsay_protocol::{NodeId, Provider};
use http::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::{
    Host,
    http::{
        append::HEARSAY_TOKEN,
        client::{Call, CallError, Reply},
    },
};

/// Maximum number of open log pages with live records. Guess: each holds a connection to a log node.
const TAILS_MAX: usize = 64;

/// Shared state of the handlers.
#[derive(Clone)]
pub(super) struct Backend {
    pub(super) host: Arc<dyn Host>,
    pub(super) tails: Arc<Semaphore>,
}

/// Answer of a grading node.
pub(super) struct GradingReply {
    pub(super) reply: Reply,
    /// Whether the answer may lack the reader's own last write.
    pub(super) stale: bool,
}

impl Backend {
    pub(super) fn new(host: Arc<dyn Host>) -> Self {
        Self { host, tails: Arc::new(Semaphore::new(TAILS_MAX)) }
    }

    pub(super) async fn call(&self, service: &str, call: &Call) -> Result<Reply, CallError> {
        self.host.client().call(self.host.as_ref(), service, call).await
    }

    /// Reads from a grading node that has the reader's own last write (`token`). If no node has it, or the
    /// token is malformed, an older answer is returned.
    pub(super) async fn read(&self, path: &str, token: Option<&str>) -> Result<GradingReply, CallError> {
        let Some(token) = token else {
            return Ok(GradingReply { reply: self.call("grading", &Call::get(path)).await?, stale: false });
        };
        match self.call("grading", &Call::get(path).header(HEARSAY_TOKEN, token)).await {
            Ok(reply) if reply.status != StatusCode::BAD_REQUEST => Ok(GradingReply { reply, stale: false }),
            Ok(_) | Err(CallError::AllFailed { .. }) => {
                Ok(GradingReply { reply: self.call("grading", &Call::get(path)).await?, stale: true })
            }
            Err(error) => Err(error),
        }
    }
}

/// The node that answered, for the foot of a page.
#[derive(Clone, Debug)]
pub(super) struct AnsweredBy {
    pub(super) node: String,
    pub(super) id: NodeId,
}

impl From<&Arc<Provider>> for AnsweredBy {
    fn from(provider: &Arc<Provider>) -> Self {
        Self { node: provider.node.clone(), id: provider.node_id }
    }
}

/// A failure that a page shows instead of its content.
#[derive(Clone, Debug)]
pub(super) struct Outage {
    pub(super) status: StatusCode,
    pub(super) heading: String,
    pub(super) text: &'static str,
    /// A command that helps.
    pub(super) command: Option<String>,
    /// Names of nodes, with their errors.
    pub(super) tries: Vec<(String, String)>,
}

impl From<CallError> for Outage {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NoInstance { service } => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                heading: format!("No {service} node is alive"),
                text: "Start one anywhere in this cluster, then reload this page.",
                command: Some(format!("node --role {service}")),
                tries: Vec::new(),
            },
            CallError::AllFailed { service, tries, indeterminate } => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                heading: format!("No {service} node could answer"),
                text: if indeterminate {
                    "It may have been saved nevertheless. Press the button again: it will not be saved twice."
                } else {
                    "The nodes below are listed but gave no answer. Reload to try again."
                },
                command: None,
                tries: tries.into_iter().map(|t| (t.node, t.why)).collect(),
            },
            CallError::TooLarge { service, .. } => Self {
                status: StatusCode::BAD_GATEWAY,
                heading: format!("The answer of the {service} node is too large for a page"),
                text: "Search for a part of it.",
                command: None,
                tries: Vec::new(),
            },
        }
    }
}

impl Outage {
    /// An answer that the portal does not understand.
    pub(super) fn unexpected(by: &Provider, what: impl std::fmt::Display) -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            heading: "The answer cannot be shown".to_owned(),
            text: "A node gave an answer that this page does not understand. It may have another version.",
            command: None,
            tries: vec![(by.node.clone(), what.to_string().chars().take(300).collect())],
        }
    }

    /// Returns the status for a start page. If no node offers the service, the page says so, which is not a
    /// failure.
    pub(super) fn front_status(&self) -> StatusCode {
        if self.command.is_some() { StatusCode::OK } else { self.status }
    }
}

/// Deserializes an opaque id or cursor: a number or a string.
pub(super) fn opaque<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(serde::de::Error::custom("expected a number or a text")),
    }
}

/// Like [`opaque`], for a value that may be null.
pub(super) fn opaque_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Null => Ok(None),
        _ => Err(serde::de::Error::custom("expected a number, a text or null")),
    }
}

/// Percent-encodes a part of a path or query.
pub(super) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Returns a parameter of a page's query; empty if it is missing. Unknown parameters are ignored, because
/// people edit addresses and follow old links.
pub(super) fn parameter(query: Option<&str>, name: &str) -> String {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let value = pairs.filter(|(n, _)| n == name).map(|(_, value)| value).next();
    value.map(|value| value.trim().chars().take(PARAMETER_CHARS_MAX).collect()).unwrap_or_default()
}

/// Maximum number of characters of a parameter that are used.
const PARAMETER_CHARS_MAX: usize = 1024;
