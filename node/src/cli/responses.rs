//! Types into which commands parse a node's JSON responses, with the fields that the commands use.
//!
//! Missing fields (older nodes) are empty, and unknown fields (newer nodes) are ignored, so commands and
//! nodes of different versions work together.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use hearsay_services::{now_ms, parse_rfc3339_ms};

/// `GET /services`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Services {
    pub(super) services: BTreeMap<String, Vec<Instance>>,
}

/// An instance of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) url: String,
    /// `host:port`, best first; empty from an older node.
    pub(super) addresses: Vec<String>,
    pub(super) tags: Vec<String>,
    pub(super) health: String,
    /// Time of the last change of health.
    pub(super) since: Value,
    pub(super) ports: Vec<NamedPort>,
}

/// A named port of an instance.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NamedPort {
    pub(super) name: String,
    pub(super) port: u16,
}

/// The answer to a registration, and the data of the events of a held registration.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Registered {
    pub(super) id: String,
    /// Instances of the required services.
    pub(super) requires: BTreeMap<String, Vec<Instance>>,
}

/// `GET /registrations`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Registrations {
    pub(super) node: String,
    /// The reason of the node's drain, if it is drained.
    pub(super) maintenance: Option<String>,
    pub(super) registrations: Vec<Registration>,
    pub(super) files: Vec<RefusedFile>,
}

/// An instance that is registered with the node.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Registration {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) health: String,
    /// The reason of the drain; older nodes use other JSON types.
    pub(super) maintenance: Value,
    pub(super) checks: Vec<Check>,
}

impl Registration {
    /// Returns the reason of the drain, if the instance is drained.
    pub(super) fn drained(&self) -> Option<String> {
        match &self.maintenance {
            Value::Null | Value::Bool(false) => None,
            Value::String(reason) => Some(reason.clone()),
            Value::Object(drain) => match drain.get("enable").or(drain.get("enabled")) {
                Some(Value::Bool(false)) => None,
                _ => Some(drain.get("reason").map(plain).unwrap_or_default()),
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

/// A registration file whose newest version is not in effect.
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
    /// Whether the cluster has a key; `None`: an older node.
    pub(super) keyed: Option<bool>,
    pub(super) members: Vec<Member>,
}

/// A member, as the node lists it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) name: String,
    /// Whether another member keeps the name that this one states.
    pub(super) namesake: bool,
    pub(super) state: String,
    pub(super) roles: Vec<String>,
    pub(super) addresses: Vec<String>,
    pub(super) http: Option<String>,
    /// Address of gRPC, `host:port`; `None`: it serves none, or is an older node.
    pub(super) grpc: Option<String>,
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
    /// Other hosts from which mDNS received an announcement.
    pub(super) heard: Vec<String>,
    pub(super) outsiders: Vec<Outsider>,
}

/// A node that was announced or named and cannot be reached.
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

/// An observation or a verdict.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WhyEvent {
    pub(super) time: Value,
    pub(super) event: String,
    pub(super) by: Option<String>,
    pub(super) text: String,
}

/// Formats a JSON scalar as plain text.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Formats the age of an RFC 3339 time in its largest unit; empty if it is not a time.
pub(super) fn age(moment: &Value) -> String {
    let Some(then) = moment.as_str().and_then(parse_rfc3339_ms) else { return String::new() };
    let seconds = now_ms().saturating_sub(then) / 1000;
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
    fn an_age_has_its_largest_unit() {
        let ago = |seconds| {
            let moment = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
            age(&hearsay_services::rfc3339(moment).into())
        };
        assert_eq!([ago(3), ago(150), ago(7300), ago(200_000)], ["3s", "2m", "2h", "2d"]);
        assert_eq!([age(&Value::Null), age(&json!("never"))], ["", ""]);
        assert_eq!(age(&json!("2999-01-01T00:00:00Z")), "0s", "another clock is ahead");
    }

    #[test]
    fn a_drain_is_read_in_all_forms_of_nodes() {
        let drained = |maintenance: Value| Registration { maintenance, ..Registration::default() }.drained();
        assert_eq!(drained(Value::Null), None);
        assert_eq!(drained(json!(false)), None);
        assert_eq!(drained(json!({"enable": false, "reason": "x"})), None);
        assert_eq!(drained(json!(true)).as_deref(), Some(""));
        assert_eq!(drained(json!("disk")).as_deref(), Some("disk"));
        assert_eq!(drained(json!({"reason": "disk"})).as_deref(), Some("disk"));
    }
}
