//! Asking grading and log nodes, and what to say when they do not answer.

use std::sync::Arc;

use hearsay_protocol::{NodeId, providers::Provider};
use http::{HeaderName, StatusCode};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::{
    Host,
    client::{AskError, Call, Reply},
};

/// What a grading node gives whoever has written, and takes from whoever wants to read that.
pub(super) const TOKEN: HeaderName = HeaderName::from_static("hearsay-token");
/// Log pages that are kept up to date at the same time. Each is a connection to a log node. Guess.
const TAILS_MAX: usize = 64;

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) host: Arc<dyn Host>,
    pub(super) tails: Arc<Semaphore>,
}

/// An answer, and how good it is.
pub(super) struct Read {
    pub(super) reply: Reply,
    /// The reader had just written, and nobody was found who has that yet.
    pub(super) stale: bool,
}

impl Desk {
    pub(super) fn new(host: Arc<dyn Host>) -> Self {
        Self { host, tails: Arc::new(Semaphore::new(TAILS_MAX)) }
    }

    pub(super) async fn ask(&self, service: &str, call: &Call) -> Result<Reply, AskError> {
        self.host.client().ask(self.host.as_ref(), service, call).await
    }

    /// Reads from a grading node what includes the reader's own last write. Where nobody has that, or nobody knows the token any
    /// more, an older answer is better than none.
    pub(super) async fn read(&self, path: &str, token: Option<&str>) -> Result<Read, AskError> {
        let Some(token) = token else {
            return Ok(Read { reply: self.ask("grading", &Call::get(path)).await?, stale: false });
        };
        match self.ask("grading", &Call::get(path).header(TOKEN, token)).await {
            Ok(reply) if reply.status != StatusCode::BAD_REQUEST => Ok(Read { reply, stale: false }),
            Ok(_) | Err(AskError::AllFailed { .. }) => {
                Ok(Read { reply: self.ask("grading", &Call::get(path)).await?, stale: true })
            }
            Err(error) => Err(error),
        }
    }
}

/// Who answered, for the foot of a page.
#[derive(Clone, Debug)]
pub(super) struct By {
    pub(super) node: String,
    pub(super) id: NodeId,
}

impl From<&Arc<Provider>> for By {
    fn from(provider: &Arc<Provider>) -> Self {
        Self { node: provider.node.clone(), id: provider.node_id }
    }
}

/// Why a page cannot show what it is for.
#[derive(Clone, Debug)]
pub(super) struct Outage {
    pub(super) status: StatusCode,
    pub(super) heading: String,
    pub(super) text: &'static str,
    /// What to run.
    pub(super) command: Option<String>,
    /// Which node said what.
    pub(super) tries: Vec<(String, String)>,
}

impl From<AskError> for Outage {
    fn from(error: AskError) -> Self {
        match error {
            AskError::NoInstance { service } => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                heading: format!("No {service} node is alive"),
                text: "Start one anywhere in this cluster; it is found by itself, and this page works as soon as you reload it.",
                command: Some(format!("node --role {service}")),
                tries: Vec::new(),
            },
            AskError::AllFailed { service, tries, indeterminate } => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                heading: format!("No {service} node could answer"),
                text: if indeterminate {
                    "It may have been saved all the same. Press the button again: it is saved once, however often it is sent."
                } else {
                    "They are listed in the cluster, and this is what happened. Reload to try again."
                },
                command: None,
                tries: tries.into_iter().map(|t| (t.node, t.why)).collect(),
            },
            AskError::TooLarge { service, .. } => Self {
                status: StatusCode::BAD_GATEWAY,
                heading: format!("The answer of the {service} node is too large for a page"),
                text: "Ask for less: search for part of it.",
                command: None,
                tries: Vec::new(),
            },
        }
    }
}

impl Outage {
    /// An instance answered with something else than the contract says.
    pub(super) fn strange(by: &Provider, what: impl std::fmt::Display) -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            heading: "The answer cannot be shown".to_owned(),
            text: "A node answered with something that this page does not understand; perhaps it is of another version.",
            command: None,
            tries: vec![(by.node.clone(), what.to_string().chars().take(300).collect())],
        }
    }

    /// The status of a page that people start from: that nobody is there is what it has to tell, not a failure of it.
    pub(super) fn front_status(&self) -> StatusCode {
        if self.command.is_some() { StatusCode::OK } else { self.status }
    }
}

/// Reads an id or a cursor, which is opaque here: a number or a text.
pub(super) fn opaque<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(serde::de::Error::custom("expected a number or a text")),
    }
}

/// Like [`opaque`], for what may be null.
pub(super) fn opaque_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Null => Ok(None),
        _ => Err(serde::de::Error::custom("expected a number, a text or null")),
    }
}

/// A query or path part, encoded.
pub(super) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// One parameter of a page's query; empty where it is missing. Pages take what they understand and leave the rest, because people edit
/// addresses and follow old ones.
pub(super) fn parameter(query: Option<&str>, name: &str) -> String {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let value = pairs.filter(|(n, _)| n == name).map(|(_, value)| value).next();
    value.map(|value| value.trim().chars().take(PARAMETER_CHARS_MAX).collect()).unwrap_or_default()
}

/// The longest parameter that is passed on.
const PARAMETER_CHARS_MAX: usize = 1024;
