//! The instance that this node states for a registration.

use hearsay_protocol::record::{
    CHECK_OUTPUT_BYTES_MAX, CheckSummary, Health, Instance, Origin, WEIGHT_DEFAULT,
};

use super::{
    address::{authority, bracketed},
    record::{Held, Maintenance},
    registration::Registration,
};

/// The id of the check that stands for the maintenance of an instance. As Consul's.
pub const MAINTENANCE_CHECK: &str = "_service_maintenance:";
/// The id of the check that stands for the maintenance of the node. As Consul's.
pub const NODE_MAINTENANCE_CHECK: &str = "_node_maintenance";

const MAINTENANCE_NAME: &str = "Maintenance Mode";
const MAINTENANCE_KIND: &str = "maintenance";

/// The state of the node, as far as it is part of its instances.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    /// The host that the node advertises.
    pub(super) host: &'a str,
    /// The node's own maintenance.
    pub(super) node_maintenance: Option<&'a Maintenance>,
}

/// States a registration as it is now.
pub(super) fn instance(held: &Held, maintenance: Option<&Maintenance>, around: Surroundings<'_>) -> Instance {
    let registration = &held.row.registration;
    let mut checks: Vec<CheckSummary> = held.checks.iter().map(summary).collect();
    let upkeep = [
        (maintenance, format!("{MAINTENANCE_CHECK}{}", registration.id)),
        (around.node_maintenance, NODE_MAINTENANCE_CHECK.to_owned()),
    ];
    for (maintenance, id) in upkeep {
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
    let health = match held.is_orphaned {
        true => Health::Critical,
        false => checks.iter().map(|check| check.status).max().unwrap_or_default(),
    };
    Instance { health, checks, since_ms: held.row.since_ms, ..without_checks(registration, around.host) }
}

/// The part of an instance that does not depend on checks.
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

/// The largest instance that a registration can become, with every check at its longest output and in maintenance.
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
    let of_spec = |spec: &super::checks::CheckSpec| summary(&spec.id, &spec.name, spec.kind.as_str());
    let mut checks: Vec<CheckSummary> = registration.checks.iter().map(of_spec).collect();
    for id in [format!("{MAINTENANCE_CHECK}{}", registration.id), NODE_MAINTENANCE_CHECK.to_owned()] {
        checks.push(summary(&id, MAINTENANCE_NAME, MAINTENANCE_KIND));
    }
    Instance { checks, ..without_checks(registration, advertised) }
}

fn summary(check: &super::record::HeldCheck) -> CheckSummary {
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

/// The start of an output, as much as is gossiped.
fn shorten(output: &str) -> String {
    let mut end = output.len().min(CHECK_OUTPUT_BYTES_MAX);
    while !output.is_char_boundary(end) {
        end -= 1;
    }
    output[..end].to_owned()
}
