//! The JSON of instances: one shape for lists, events and whoever else shows them.

use std::{borrow::Cow, collections::BTreeMap};

use hearsay_protocol::{
    providers::{Index, Provider},
    record::{NamedPort, WEIGHT_DEFAULT},
};
use serde::Serialize;

use super::{Site, registry::CheckJson};
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
            weight: instance.weight.unwrap_or(WEIGHT_DEFAULT),
            zone: instance.zone.as_deref().or(provider.zone.as_deref()),
            requires: &instance.requires,
            health: instance.health.as_str(),
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
    /// Takes the checks of the registration where this node holds it, else those that are gossiped.
    pub(super) fn new(provider: &'a Provider, held: Option<&'a View>) -> Self {
        let checks = match held {
            Some(held) => held.checks.iter().map(CheckJson::from).collect(),
            None => provider.instance.checks.iter().map(CheckJson::from).collect(),
        };
        Self { instance: provider.into(), checks }
    }
}
