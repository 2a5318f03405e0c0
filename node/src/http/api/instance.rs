//! Types of the JSON of services, instances and checks, shared by the handlers of lists, events and
//! registrations.

use std::{borrow::Cow, collections::BTreeMap};

use hearsay_protocol::{CheckSummary, Index, NamedPort, Provider, wire::CheckReport};
use serde::Serialize;

use hearsay_services::rfc3339_ms;

use crate::http::state::AppState;

/// An instance as JSON. The field names are part of the API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InstanceJson<'a> {
    id: &'a str,
    name: &'a str,
    node: &'a str,
    node_id: String,
    /// Host of the first of `addresses`.
    address: &'a str,
    /// `host:port`, in the order in which clients of this node should try them.
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

/// A named port as JSON.
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

/// An instance in a change event.
#[derive(Serialize)]
pub(crate) struct ChangedInstance<'a> {
    #[serde(flatten)]
    instance: InstanceJson<'a>,
    /// The registration of the same program at another node that was listed until this one replaced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<ReplacedJson<'a>>,
}

/// The replaced registration: its id and its node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReplacedJson<'a> {
    id: &'a str,
    node: &'a str,
    node_id: String,
}

impl<'a> ChangedInstance<'a> {
    /// Creates the JSON of the instance's current or last state, and of the registration that it replaces.
    pub(crate) fn new(provider: &'a Provider, replaced: Option<&'a Provider>) -> Self {
        let replaces = replaced.map(|replaced| ReplacedJson {
            id: &replaced.id,
            node: &replaced.node,
            node_id: replaced.node_id.to_string(),
        });
        Self { instance: provider.into(), replaces }
    }
}

/// The provider table, or a part of it, as JSON.
#[derive(Serialize)]
pub(crate) struct ServicesJson<'a> {
    cluster: &'a str,
    node: &'a str,
    index: u64,
    services: BTreeMap<&'a str, Vec<InstanceJson<'a>>>,
}

impl<'a> ServicesJson<'a> {
    /// Groups providers by service, in the given order. `named` is listed even without an instance.
    pub(crate) fn new(
        state: &'a AppState,
        index: Index,
        named: Option<&'a str>,
        providers: impl IntoIterator<Item = &'a Provider>,
    ) -> Self {
        let mut services: BTreeMap<&str, Vec<_>> = named.into_iter().map(|name| (name, Vec::new())).collect();
        for provider in providers {
            services.entry(&provider.instance.service).or_default().push(provider.into());
        }
        Self { cluster: &state.cluster, node: &state.name, index: index.0, services }
    }
}

/// A check as JSON. The field names are part of the API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckJson {
    id: String,
    name: String,
    kind: String,
    status: &'static str,
    since: String,
    output: String,
    last_run: Option<String>,
    next_run: Option<String>,
    took_ms: u32,
    /// The holder did not answer: the values are those gossiped at the last change of status.
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

/// An instance and its checks as JSON.
#[derive(Serialize)]
pub(crate) struct InstanceWithChecks<'a> {
    #[serde(flatten)]
    instance: InstanceJson<'a>,
    checks: Vec<CheckJson>,
}

impl<'a> InstanceWithChecks<'a> {
    /// Creates the JSON of an instance and its checks.
    pub(crate) fn new(provider: &'a Provider, checks: Vec<CurrentCheck>) -> Self {
        let json = |check: CurrentCheck| CheckJson { stale: check.is_stale, ..CheckJson::from(check.report) };
        Self { instance: provider.into(), checks: checks.into_iter().map(json).collect() }
    }
}

/// A check of an instance, as current as its holder answers.
pub(crate) struct CurrentCheck {
    pub(crate) report: CheckReport,
    /// Whether the holder did not answer, so that the report is the one gossiped at the last change of
    /// status.
    pub(crate) is_stale: bool,
}

impl CurrentCheck {
    /// Reads the checks of an instance: from this node if it holds the registration, else from the holder.
    pub(crate) async fn read(state: &AppState, provider: &Provider) -> Vec<Self> {
        let gossiped = &provider.instance.checks;
        if provider.node_id == state.id
            && let Some(held) = state.registry.get(&provider.id)
        {
            let mut reports = held.checks;
            // The check that represents a maintenance is only in the table.
            for check in gossiped {
                if reports.iter().all(|report| report.id != check.id) {
                    reports.push(check.into());
                }
            }
            return reports.into_iter().map(|report| Self { report, is_stale: false }).collect();
        }
        if gossiped.is_empty() {
            return Vec::new();
        }
        let reports = state.registry.reports_of(provider.node_id, &provider.id).await;
        let current = |check: &CheckSummary| {
            let report = reports.as_ref().and_then(|reports| reports.iter().find(|r| r.id == check.id));
            match report {
                Some(report) => Self { report: report.clone(), is_stale: false },
                None => Self { report: check.into(), is_stale: reports.is_none() },
            }
        };
        gossiped.iter().map(current).collect()
    }
}
