//! The JSON of instances: one shape for lists, events and whoever else shows them.

use std::{borrow::Cow, collections::BTreeMap};

use hearsay_protocol::providers::{Index, Provider};
use serde::Serialize;

use super::Site;
use crate::timestamp::rfc3339_ms;

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
    url: Cow<'a, str>,
    tags: &'a [String],
    meta: &'a BTreeMap<String, String>,
    health: &'static str,
    since: String,
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
            url: provider.url(),
            tags: &instance.tags,
            meta: &instance.meta,
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
