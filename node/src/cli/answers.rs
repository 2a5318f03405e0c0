//! The answers of a node, as far as the commands show them.
//!
//! Read leniently: what an older node does not say is empty, and what a newer one says besides is passed over. So commands and nodes of
//! different versions get along.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

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
