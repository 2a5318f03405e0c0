//! Converts registrations to the instances that this node states to the cluster.

use hearsay_protocol::{CHECK_OUTPUT_BYTES_MAX, CheckSummary, Health, Instance, Origin, WEIGHT_DEFAULT};

use super::{
    address::{authority, bracketed},
    record::{ActiveRegistration, Maintenance},
    registration::Registration,
};

/// Maximum number of instances that a node states, its roles included.
pub(super) const INSTANCES_MAX: usize = 10_000;
/// Maximum number of instances of a cluster.
pub(super) const INSTANCES_OF_CLUSTER_MAX: usize = 100_000;
/// Prefix of the id of the check that represents an instance's maintenance, as in Consul.
pub const MAINTENANCE_CHECK: &str = "_service_maintenance:";
/// Id of the check that represents the node's maintenance, as in Consul.
pub const NODE_MAINTENANCE_CHECK: &str = "_node_maintenance";

const MAINTENANCE_NAME: &str = "Maintenance Mode";
pub(crate) const MAINTENANCE_KIND: &str = "maintenance";

/// State of the node that affects all its instances.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeState<'a> {
    /// The host that the node advertises.
    pub(super) advertised_host: &'a str,
    /// The node's maintenance.
    pub(super) maintenance: Option<&'a Maintenance>,
}

/// Returns the instance of a registration in its current state.
pub(super) fn instance(
    active: &ActiveRegistration,
    maintenance: Option<&Maintenance>,
    node: NodeState<'_>,
) -> Instance {
    let registration = &active.row.registration;
    let mut checks: Vec<CheckSummary> = active.checks.iter().map(summary).collect();
    let maintenances = [
        (maintenance, format!("{MAINTENANCE_CHECK}{}", registration.id)),
        (node.maintenance, NODE_MAINTENANCE_CHECK.to_owned()),
    ];
    for (maintenance, id) in maintenances {
        checks.extend(maintenance.map(|maintenance| CheckSummary {
            id,
            name: MAINTENANCE_NAME.into(),
            kind: MAINTENANCE_KIND.into(),
            status: Health::Critical,
            since_ms: maintenance.since_ms,
            output: shorten(&maintenance.reason),
            took_ms: 0,
        }));
    }
    let health = match active.is_orphaned {
        true => Health::Critical,
        false => checks.iter().map(|check| check.status).max().unwrap_or_default(),
    };
    Instance {
        health,
        checks,
        since_ms: active.row.since_ms,
        ..without_checks(registration, node.advertised_host)
    }
}

/// Returns the instance without checks and health.
pub(super) fn without_checks(registration: &Registration, advertised: &str) -> Instance {
    let host = registration.host.as_deref().unwrap_or(advertised);
    Instance {
        service: registration.service.clone(),
        address: host.to_owned(),
        port: registration.port,
        url: match registration.port {
            0 => format!("{}://{}", registration.scheme, bracketed(host)),
            port => format!("{}://{}", registration.scheme, authority(host, port)),
        },
        tags: registration.tags.clone(),
        meta: registration.meta.clone(),
        origin: match registration.host {
            Some(_) => Origin::Program,
            None => Origin::HostProgram,
        },
        ports: registration.ports.clone(),
        zone: registration.zone.clone(),
        weight: registration.weight.filter(|weight| *weight != WEIGHT_DEFAULT),
        requires: registration.requires.iter().cloned().collect(),
        ..Instance::default()
    }
}

/// Returns the largest instance that a registration can become: maximal check outputs, in maintenance.
pub(super) fn largest(registration: &Registration, advertised: &str) -> Instance {
    let summary = |id: &str, name: &str, kind: &str| CheckSummary {
        id: id.into(),
        name: name.into(),
        kind: kind.into(),
        status: Health::Critical,
        since_ms: u64::MAX,
        output: "x".repeat(CHECK_OUTPUT_BYTES_MAX),
        took_ms: u32::MAX,
    };
    let spec_summary = |spec: &super::checks::CheckSpec| summary(&spec.id, &spec.name, spec.kind.as_str());
    let mut checks: Vec<CheckSummary> = registration.checks.iter().map(spec_summary).collect();
    for id in [format!("{MAINTENANCE_CHECK}{}", registration.id), NODE_MAINTENANCE_CHECK.to_owned()] {
        checks.push(summary(&id, MAINTENANCE_NAME, MAINTENANCE_KIND));
    }
    Instance { checks, ..without_checks(registration, advertised) }
}

fn summary(check: &super::record::ActiveCheck) -> CheckSummary {
    let (spec, state) = (check.running.spec(), &check.stated);
    CheckSummary {
        id: spec.id.clone(),
        name: spec.name.clone(),
        kind: spec.kind.as_str().into(),
        status: state.status,
        since_ms: state.since_ms,
        output: shorten(&state.output),
        took_ms: state.took_ms,
    }
}

/// Truncates an output to the length that is gossiped.
fn shorten(output: &str) -> String {
    let mut end = output.len().min(CHECK_OUTPUT_BYTES_MAX);
    while !output.is_char_boundary(end) {
        end -= 1;
    }
    output[..end].to_owned()
}
