//! `ClusterLoadAssignment`: the endpoints of a service by zone, with priorities, weights and health.
//!
//! - A zone is a locality. The zone of the client has priority 0; the others follow by measured distance,
//!   and equally distant ones have one priority. Priorities have no gap, as gRPC demands.
//! - Envoy chooses among the endpoints of a priority by their weights. gRPC's `round_robin` ignores these,
//!   but honours the weights of localities (gRFC A42). So where the weights of a zone differ, the endpoints
//!   of each weight are a locality of their own (`sub_zone`), whose weight is their sum.
//! - An endpoint of weight 0 is left out while another one can be used.

use std::{collections::BTreeMap, net::SocketAddr};

use envoy_types::pb::{
    envoy::config::{
        core::v3::{Address, HealthStatus, Locality, SocketAddress, address, socket_address::PortSpecifier},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as Host, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
        },
    },
    google::protobuf::UInt32Value,
};

use super::{
    catalog::Zones,
    endpoint::{Endpoint, Usability},
};

/// Endpoints of one priority, zone and weight.
pub(super) struct Group<'a> {
    /// 0 is the first choice. No number is left out.
    pub(super) priority: u32,
    pub(super) zone: &'a str,
    /// Distinguishes the groups of a zone whose weights differ; empty where all weights are equal.
    pub(super) sub_zone: String,
    /// Share of the requests of its priority.
    pub(super) weight: u32,
    pub(super) endpoints: Vec<(&'a Endpoint, u32)>,
}

/// Groups endpoints for a client in a zone (empty: the zone of this node).
pub(super) fn group<'a>(endpoints: &'a [Endpoint], zones: &Zones, of_client: &str) -> Vec<Group<'a>> {
    let is_usable = |endpoint: &&Endpoint| endpoint.usability == Usability::Healthy && endpoint.weight > 0;
    let has_usable = endpoints.iter().any(|endpoint| is_usable(&endpoint));
    let nearest = zones.nearest(of_client);
    let mut by_rank: BTreeMap<(u32, &str), BTreeMap<u16, Vec<&Endpoint>>> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.weight > 0 || !has_usable) {
        let rank =
            if *endpoint.zone == *nearest { 0 } else { zones.distance(&endpoint.zone).saturating_add(1) };
        by_rank
            .entry((rank, &endpoint.zone))
            .or_default()
            .entry(endpoint.weight.max(1))
            .or_default()
            .push(endpoint);
    }
    let (mut groups, mut priority, mut last_rank) = (Vec::new(), 0, None);
    for ((rank, zone), by_weight) in by_rank {
        if last_rank.is_some_and(|last| last != rank) {
            priority += 1;
        }
        last_rank = Some(rank);
        let is_divided = by_weight.len() > 1;
        for (weight, endpoints) in by_weight {
            let usable = endpoints.iter().filter(|endpoint| endpoint.usability == Usability::Healthy).count();
            groups.push(Group {
                priority,
                zone,
                sub_zone: if is_divided { format!("weight-{weight}") } else { String::new() },
                // gRPC ignores localities of weight 0.
                weight: u32::try_from(usable).unwrap_or(u32::MAX).saturating_mul(weight.into()).max(1),
                endpoints: endpoints.into_iter().map(|endpoint| (endpoint, weight.into())).collect(),
            });
        }
    }
    // The sum over a priority must fit 32 bits.
    let weight_max = u32::MAX / u32::try_from(groups.len()).unwrap_or(u32::MAX).max(1);
    groups.iter_mut().for_each(|group| group.weight = group.weight.min(weight_max));
    groups
}

/// Returns the assignment of a service. An unknown service has no endpoints.
pub(super) fn assignment(
    name: &str,
    endpoints: &[Endpoint],
    zones: &Zones,
    of_client: &str,
) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: group(endpoints, zones, of_client).into_iter().map(locality).collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn locality(group: Group<'_>) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: Some(Locality {
            zone: group.zone.to_owned(),
            sub_zone: group.sub_zone,
            ..Locality::default()
        }),
        lb_endpoints: group
            .endpoints
            .into_iter()
            .map(|(endpoint, weight)| lb_endpoint(endpoint, weight))
            .collect(),
        load_balancing_weight: Some(UInt32Value { value: group.weight }),
        priority: group.priority,
        ..LocalityLbEndpoints::default()
    }
}

fn lb_endpoint(endpoint: &Endpoint, weight: u32) -> LbEndpoint {
    let health = match endpoint.usability {
        Usability::Healthy => HealthStatus::Healthy,
        Usability::Draining => HealthStatus::Draining,
        Usability::Unhealthy => HealthStatus::Unhealthy,
    };
    let host = Host { address: Some(address(endpoint.address)), ..Host::default() };
    LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: Some(UInt32Value { value: weight }),
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(host)),
        ..LbEndpoint::default()
    }
}

fn address(address: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}
