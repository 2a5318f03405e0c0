//! The answers of a node, as far as the commands show them.
//!
//! Read leniently: what an older node does not say is empty, and what a newer one says besides is passed over. So commands and nodes of
//! different versions get along.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::timestamp;

/// `GET /services`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Services {
    pub(super) services: BTreeMap<String, Vec<Instance>>,
}

/// One address that offers a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) url: String,
    /// `host:port`, best first; empty where the asked node is older.
    pub(super) addresses: Vec<String>,
    pub(super) tags: Vec<String>,
    pub(super) health: String,
    /// When its health became what it is.
    pub(super) since: Value,
    pub(super) ports: Vec<NamedPort>,
}

/// A port of an instance that has several.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NamedPort {
    pub(super) name: String,
    pub(super) port: u16,
}

/// The answer to a registration, and the data of a held one's events.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Registered {
    pub(super) id: String,
    /// The services that the instance requires.
    pub(super) requires: BTreeMap<String, Vec<Instance>>,
}

/// `GET /registrations`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Registrations {
    pub(super) node: String,
    /// Why the node itself is drained, if it is.
    pub(super) maintenance: Option<String>,
    pub(super) registrations: Vec<Registration>,
    pub(super) files: Vec<RefusedFile>,
}

/// An instance that the asked node holds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Registration {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) health: String,
    /// The reason of the drain, or whatever else says that it is drained.
    pub(super) maintenance: Value,
    pub(super) checks: Vec<Check>,
}

impl Registration {
    /// Why it is drained, if it is.
    pub(super) fn drained(&self) -> Option<String> {
        match &self.maintenance {
            Value::Null | Value::Bool(false) => None,
            Value::String(reason) => Some(reason.clone()),
            Value::Object(said) => match said.get("enable").or(said.get("enabled")) {
                Some(Value::Bool(false)) => None,
                _ => Some(said.get("reason").map(plain).unwrap_or_default()),
            },
            _ => Some(String::new()),
        }
    }
}

/// A check of an instance.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Check {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) since: Value,
    pub(super) output: String,
    pub(super) last_run: Value,
}

/// A file of registrations that is not in effect as it stands.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RefusedFile {
    pub(super) path: String,
    pub(super) error: Option<String>,
}

/// `GET /readyz` of a node that is ready.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ready {
    pub(super) warnings: Vec<String>,
}

/// `GET /members`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Members {
    pub(super) cluster: String,
    pub(super) node: String,
    pub(super) root_hash: String,
    /// Whether strangers are kept out by a key, where the node says so.
    pub(super) keyed: Option<bool>,
    pub(super) members: Vec<Member>,
}

/// What the asked node knows of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) roles: Vec<String>,
    pub(super) addresses: Vec<String>,
    pub(super) http: Option<String>,
    pub(super) incarnation: u64,
    pub(super) version: Value,
    pub(super) since: Value,
    pub(super) rtt_ms: Option<f64>,
}

impl Member {
    pub(super) fn is_present(&self) -> bool {
        matches!(self.state.as_str(), "alive" | "suspect")
    }
}

/// `GET /network`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Network {
    pub(super) mdns: bool,
    /// Other hosts that mDNS has heard of a node.
    pub(super) heard: Vec<String>,
    pub(super) outsiders: Vec<Outsider>,
}

/// A node that the asked node cannot talk to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Outsider {
    pub(super) address: String,
    pub(super) reason: String,
    pub(super) cluster: Option<String>,
}

/// `GET /why/{name}`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Why {
    pub(super) events: Vec<WhyEvent>,
}

/// One thing that was seen or concluded.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WhyEvent {
    pub(super) time: Value,
    pub(super) event: String,
    pub(super) by: Option<String>,
    pub(super) text: String,
}

/// A scalar as a person would write it.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// How long ago a moment was, in its largest unit. Empty: it is none.
pub(super) fn age(moment: &Value) -> String {
    let Some(then) = moment.as_str().and_then(timestamp::parse_ms) else { return String::new() };
    let seconds = timestamp::now_ms().saturating_sub(then) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_age_is_told_in_its_largest_unit() {
        let ago = |seconds| {
            let moment = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
            age(&timestamp::rfc3339(moment).into())
        };
        assert_eq!([ago(3), ago(150), ago(7300), ago(200_000)], ["3s", "2m", "2h", "2d"]);
        assert_eq!([age(&Value::Null), age(&json!("never"))], ["", ""]);
        assert_eq!(age(&json!("2999-01-01T00:00:00Z")), "0s", "another clock is ahead");
    }

    #[test]
    fn a_drain_is_told_in_whichever_form_a_node_tells_it() {
        let drained = |maintenance: Value| Registration { maintenance, ..Registration::default() }.drained();
        assert_eq!(drained(Value::Null), None);
        assert_eq!(drained(json!(false)), None);
        assert_eq!(drained(json!({"enable": false, "reason": "x"})), None);
        assert_eq!(drained(json!(true)).as_deref(), Some(""));
        assert_eq!(drained(json!("disk")).as_deref(), Some("disk"));
        assert_eq!(drained(json!({"reason": "disk"})).as_deref(), Some("disk"));
    }
}
