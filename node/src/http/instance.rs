//! The JSON of instances: one shape for lists, events and whoever else shows them.

use std::{borrow::Cow, collections::BTreeMap};

use hearsay_protocol::{
    providers::{Index, Provider},
    record::{CheckSummary, NamedPort},
    wire::checks::CheckReport,
};
use serde::Serialize;

use super::{registry::CheckJson, site::Site};
use crate::{registry::record::View, timestamp::rfc3339_ms};

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

/// The provider table, or the part of it that was asked for.
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

/// An instance and its checks.
#[derive(Serialize)]
pub(super) struct InstanceWithChecks<'a> {
    #[serde(flatten)]
    instance: InstanceJson<'a>,
    checks: Vec<CheckJson<'a>>,
}

impl<'a> InstanceWithChecks<'a> {
    /// With the checks of the registration that this node holds.
    pub(super) fn held_here(provider: &'a Provider, held: &'a View) -> Self {
        let mut checks: Vec<CheckJson<'a>> = held.checks.iter().map(CheckJson::from).collect();
        // Maintenance is a check of the table alone.
        let is_run = |id: &str| held.checks.iter().any(|check| check.id == id);
        checks.extend(provider.instance.checks.iter().filter(|c| !is_run(&c.id)).map(CheckJson::from));
        Self { instance: provider.into(), checks }
    }

    /// With what its holder answered. What it did not answer is as it was gossiped, and marked as stale.
    pub(super) fn held_elsewhere(provider: &'a Provider, reports: Option<&'a [CheckReport]>) -> Self {
        let check = |gossiped: &'a CheckSummary| {
            let report = reports.and_then(|reports| reports.iter().find(|report| report.id == gossiped.id));
            match report {
                Some(report) => CheckJson::from(report),
                None => CheckJson { stale: reports.is_none(), ..CheckJson::from(gossiped) },
            }
        };
        Self { instance: provider.into(), checks: provider.instance.checks.iter().map(check).collect() }
    }
}
