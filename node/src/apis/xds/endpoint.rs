//! [`Endpoint`]: one address of a service, as xDS knows it; and [`Traits`] of a service that its tags choose.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hearsay_protocol::{Health, Member, NodeId, Provider, ProviderTable, host_of_multiaddr};
use hearsay_services::network::check_ip;

use crate::registry::MAINTENANCE_KIND;

/// Whether clients should send requests to an endpoint. In order: the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Usability {
    /// Passing, warning, or kept by the table guard.
    Healthy,
    /// In maintenance: requests under way may end.
    Draining,
    /// Critical.
    Unhealthy,
}

/// One address of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) usability: Usability,
    /// 0: no requests while others can be used.
    pub(super) weight: u16,
    /// Zone of the instance, or of its node; empty: none.
    pub(super) zone: Arc<str>,
}

/// Properties of a service's cluster.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Traits {
    /// An instance has the tag `lb=least_request`.
    pub(super) is_least_request: bool,
    /// An instance has the tag `grpc` or `h2c`, or a gateway route with `proto=grpc` or `proto=h2c`.
    pub(super) is_http2: bool,
}

impl Traits {
    fn add(&mut self, tag: &str) {
        for word in tag.split_ascii_whitespace() {
            match word {
                "lb=least_request" | "lb=least-request" => self.is_least_request = true,
                "grpc" | "h2c" | "proto=grpc" | "proto=h2c" => self.is_http2 = true,
                _ => (),
            }
        }
    }
}

/// The endpoints of a service, each address once, in the order of their addresses.
#[derive(Default, Debug)]
pub(super) struct Endpoints {
    pub(super) all: Vec<Endpoint>,
    pub(super) traits: Traits,
    /// Instances without an IP address or a port, because endpoints cannot have host names, and those at
    /// addresses that the address policy refuses.
    pub(super) left_out: usize,
}

impl Endpoints {
    /// Reads the endpoints of instances. `me`: this node.
    pub(super) fn of<'a>(
        table: &ProviderTable,
        me: NodeId,
        providers: impl Iterator<Item = &'a Arc<Provider>>,
    ) -> Self {
        let (mut by_address, mut read) = (BTreeMap::new(), Self::default());
        for provider in providers {
            provider.instance.tags.iter().for_each(|tag| read.traits.add(tag));
            let Some(address) = address_of(provider).filter(|at| is_allowed(table, me, provider, *at)) else {
                read.left_out += 1;
                continue;
            };
            let endpoint = Endpoint {
                address,
                usability: usability_of(provider),
                weight: provider.weight(),
                zone: provider.zone().unwrap_or_default().into(),
            };
            // Clients refuse an assignment that has an address twice.
            let known = by_address.entry(address).or_insert_with(|| endpoint.clone());
            if endpoint.usability < known.usability {
                *known = endpoint;
            }
        }
        read.all = by_address.into_values().collect();
        read
    }
}

/// Returns the first address of an instance that is an IP address with a port.
fn address_of(provider: &Provider) -> Option<SocketAddr> {
    let parsed = provider.addresses.iter().find_map(|address| address.parse::<SocketAddr>().ok());
    let stated = || {
        let host = provider.instance.address.trim_matches(['[', ']']);
        Some(SocketAddr::new(host.parse().ok()?, provider.instance.port))
    };
    let address = parsed.or_else(stated).filter(|address| address.port() != 0)?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Whether clients may be sent to an address: the rules of the gateway. A program may neither be at an
/// address that leads to the machine of the client or to metadata of a cloud, nor where a node listens.
fn is_allowed(table: &ProviderTable, me: NodeId, provider: &Provider, at: SocketAddr) -> bool {
    let may_be_loopback = at.ip().is_loopback() && shares_loopback(table, me, provider.node_id);
    if check_ip(at.ip(), may_be_loopback).is_err() {
        return false;
    }
    let states = |host: &Option<String>| {
        let stated = host.as_deref().and_then(|host| host.parse::<SocketAddr>().ok());
        stated.is_some_and(|stated| stated.port() == at.port())
    };
    let is_node = |member: &Member| states(&member.http) || states(&member.grpc);
    provider.is_role() || !table.member_at(at.ip()).is_some_and(is_node)
}

/// Whether a node is on this machine: this node, one that is connected over loopback, and every node where
/// this one has no other address.
fn shares_loopback(table: &ProviderTable, me: NodeId, node: NodeId) -> bool {
    let is_loopback = |address: &String| {
        let ip = host_of_multiaddr(address).and_then(|host| host.parse::<IpAddr>().ok());
        ip.is_some_and(|ip| ip.is_loopback())
    };
    node == me
        || table.connected(node).is_some_and(|ip| ip.to_canonical().is_loopback())
        || table.member(me).is_some_and(|me| !me.addresses.is_empty() && me.addresses.iter().all(is_loopback))
}

fn usability_of(provider: &Provider) -> Usability {
    match provider.instance.health {
        _ if provider.unverified => Usability::Healthy,
        Health::Passing | Health::Warning => Usability::Healthy,
        Health::Critical => {
            match provider.instance.checks.iter().any(|check| check.kind == MAINTENANCE_KIND) {
                true => Usability::Draining,
                false => Usability::Unhealthy,
            }
        }
    }
}
