//! The JSON of instances and of their checks: one shape for lists, events and registrations.

use std::{borrow::Cow, collections::BTreeMap};

use hearsay_protocol::{
    providers::{Index, Provider},
    record::{CheckSummary, NamedPort},
    wire::checks::CheckReport,
};
use serde::Serialize;

use super::site::Site;
use crate::{registry::record::RegistrationView, timestamp::rfc3339_ms};

/// An instance. The names of the fields are a contract.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InstanceJson<'a> {
    id: &'a str,
    name: &'a str,
    node: &'a str,
    node_id: String,
    /// The host of the first of `addresses`.
    address: &'a str,
    /// `host:port`, in the order in which this node's host should try them.
    addresses: &'a [String],
    port: u16,
    ports: Vec<PortJson<'a>>,
    url: Cow<'a, str>,
    tags: &'a [String],
    meta: &'a BTreeMap<String, String>,
    weight: u16,
    zone: Option<&'a str>,
    requires: &'a [String],
    health: &'static str,
    since: String,
}

/// A named port.
#[derive(Serialize)]
struct PortJson<'a> {
    name: &'a str,
    port: u16,
    default: bool,
}

impl<'a> From<&'a NamedPort> for PortJson<'a> {
    fn from(port: &'a NamedPort) -> Self {
        Self { name: &port.name, port: port.port, default: port.is_default }
    }
}

impl<'a> From<&'a Provider> for InstanceJson<'a> {
    fn from(provider: &'a Provider) -> Self {
        let instance = &provider.instance;
        Self {
            id: &provider.id,
            name: &instance.service,
            node: &provider.node,
            node_id: provider.node_id.to_string(),
            address: provider.host(),
            addresses: &provider.addresses,
            port: instance.port,
            ports: instance.ports.iter().map(PortJson::from).collect(),
            url: provider.url(),
            tags: &instance.tags,
            meta: &instance.meta,
            weight: provider.weight(),
            zone: provider.zone(),
            requires: &instance.requires,
            health: provider.health_word(),
            since: rfc3339_ms(instance.since_ms),
        }
    }
}

/// An instance of a change.
#[derive(Serialize)]
pub(super) struct ChangedInstance<'a> {
    #[serde(flatten)]
    instance: InstanceJson<'a>,
    /// The registration of the same program that counted until now.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<ReplacedJson<'a>>,
}

/// A registration with another node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReplacedJson<'a> {
    id: &'a str,
    node: &'a str,
    node_id: String,
}

impl<'a> ChangedInstance<'a> {
    /// The instance as it is, or last was, and the registration that it takes the place of.
    pub(super) fn new(provider: &'a Provider, replaced: Option<&'a Provider>) -> Self {
        let replaces = replaced.map(|replaced| ReplacedJson {
            id: &replaced.id,
            node: &replaced.node,
            node_id: replaced.node_id.to_string(),
        });
        Self { instance: provider.into(), replaces }
    }
}

/// The provider table, or the requested part of it.
#[derive(Serialize)]
pub(super) struct ServicesJson<'a> {
    cluster: &'a str,
    node: &'a str,
    index: u64,
    services: BTreeMap<&'a str, Vec<InstanceJson<'a>>>,
}

impl<'a> ServicesJson<'a> {
    /// Groups providers by their service, in the given order. `named` is shown even if nothing of it is left.
    pub(super) fn new(
        site: &'a Site,
        index: Index,
        named: Option<&'a str>,
        providers: impl IntoIterator<Item = &'a Provider>,
    ) -> Self {
        let mut services: BTreeMap<&str, Vec<_>> = named.into_iter().map(|name| (name, Vec::new())).collect();
        for provider in providers {
            services.entry(&provider.instance.service).or_default().push(provider.into());
        }
        Self { cluster: &site.cluster, node: &site.name, index: index.0, services }
    }
}

/// A check. The names of the fields are a contract.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CheckJson {
    id: String,
    name: String,
    kind: String,
    status: &'static str,
    since: String,
    output: String,
    last_run: Option<String>,
    next_run: Option<String>,
    took_ms: u32,
    /// Its holder did not answer: this is what was gossiped at the last change of status.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
}

impl From<CheckReport> for CheckJson {
    fn from(check: CheckReport) -> Self {
        Self {
            id: check.id,
            name: check.name,
            kind: check.kind,
            status: check.status.as_str(),
            since: rfc3339_ms(check.since_ms),
            output: check.output,
            last_run: check.last_run_ms.map(rfc3339_ms),
            next_run: check.next_run_ms.map(rfc3339_ms),
            took_ms: check.took_ms,
            stale: false,
        }
    }
}

/// An instance and its checks.
#[derive(Serialize)]
pub(super) struct InstanceWithChecks<'a> {
    #[serde(flatten)]
    instance: InstanceJson<'a>,
    checks: Vec<CheckJson>,
}

impl<'a> InstanceWithChecks<'a> {
    /// With the checks of the registration that this node holds.
    pub(super) fn held_here(provider: &'a Provider, held: RegistrationView) -> Self {
        let mut checks = held.checks;
        // Maintenance is a check of the table alone.
        for gossiped in &provider.instance.checks {
            if checks.iter().all(|check| check.id != gossiped.id) {
                checks.push(gossiped.into());
            }
        }
        Self { instance: provider.into(), checks: checks.into_iter().map(CheckJson::from).collect() }
    }

    /// With the reports of the holder. Without an answer, checks are as they were gossiped, and marked as stale.
    pub(super) fn held_elsewhere(provider: &'a Provider, reports: Option<&[CheckReport]>) -> Self {
        let check = |gossiped: &CheckSummary| {
            let report = reports.and_then(|reports| reports.iter().find(|report| report.id == gossiped.id));
            match report {
                Some(report) => CheckJson::from(report.clone()),
                None => {
                    CheckJson { stale: reports.is_none(), ..CheckJson::from(CheckReport::from(gossiped)) }
                }
            }
        };
        Self { instance: provider.into(), checks: provider.instance.checks.iter().map(check).collect() }
    }
}
