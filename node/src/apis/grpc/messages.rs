//! The messages of `hearsay.v1`, and their conversion from the types of the table and the registry.

use std::time::{SystemTime, UNIX_EPOCH};

use hearsay_protocol::{Health, Member, MemberState, Provider};
use prost_types::Timestamp;

use crate::http::api::{instance::CurrentCheck, registrations::required::RequiredInstances};

/// The generated code.
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, clippy::too_many_lines)]
pub(crate) mod pb {
    tonic::include_proto!("hearsay.v1");
}

/// Converts milliseconds since the Unix epoch.
fn timestamp(ms: u64) -> Timestamp {
    let nanos = i32::try_from(ms % 1000 * 1_000_000).unwrap_or_default();
    Timestamp { seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX), nanos }
}

/// Converts a time of the wall clock.
pub(super) fn timestamp_of(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl From<Health> for pb::HealthStatus {
    fn from(health: Health) -> Self {
        match health {
            Health::Passing => Self::Passing,
            Health::Warning => Self::Warning,
            Health::Critical => Self::Critical,
        }
    }
}

impl From<&Provider> for pb::Instance {
    fn from(provider: &Provider) -> Self {
        let instance = &provider.instance;
        let health = match provider.unverified {
            true => pb::HealthStatus::Unverified,
            false => instance.health.into(),
        };
        let port = |port: &hearsay_protocol::NamedPort| pb::NamedPort {
            name: port.name.clone(),
            port: port.port.into(),
            default: port.is_default,
        };
        Self {
            id: provider.id.clone(),
            service: instance.service.clone(),
            node: provider.node.clone(),
            node_id: provider.node_id.to_string(),
            address: provider.host().to_owned(),
            addresses: provider.addresses.clone(),
            port: instance.port.into(),
            ports: instance.ports.iter().map(port).collect(),
            url: provider.url().into_owned(),
            tags: instance.tags.clone(),
            meta: instance.meta.clone().into_iter().collect(),
            weight: provider.weight().into(),
            zone: provider.zone().map(str::to_owned),
            requires: instance.requires.clone(),
            health: health.into(),
            since: Some(timestamp(instance.since_ms)),
        }
    }
}

impl From<CurrentCheck> for pb::Check {
    fn from(check: CurrentCheck) -> Self {
        let CurrentCheck { report, is_stale } = check;
        Self {
            id: report.id,
            name: report.name,
            kind: report.kind,
            status: pb::HealthStatus::from(report.status).into(),
            since: Some(timestamp(report.since_ms)),
            output: report.output,
            last_run: report.last_run_ms.map(timestamp),
            next_run: report.next_run_ms.map(timestamp),
            took_ms: report.took_ms,
            stale: is_stale,
        }
    }
}

impl From<&RequiredInstances> for Vec<pb::RequiredService> {
    fn from(required: &RequiredInstances) -> Self {
        let service = |(service, providers): (&str, &[std::sync::Arc<Provider>])| pb::RequiredService {
            service: service.to_owned(),
            instances: providers.iter().map(|provider| provider.as_ref().into()).collect(),
        };
        required.services().map(service).collect()
    }
}

/// Converts a member. `since` is the wall clock's time for the member's state.
pub(super) fn member(member: Member, since: SystemTime) -> pb::Member {
    let state = match member.state {
        MemberState::Alive => pb::MemberState::Alive,
        MemberState::Suspect => pb::MemberState::Suspect,
        MemberState::Failed => pb::MemberState::Failed,
        MemberState::Left => pb::MemberState::Left,
    };
    pb::Member {
        id: member.id.to_string(),
        name: member.name,
        state: state.into(),
        roles: member.roles,
        addresses: member.addresses,
        http: member.http,
        grpc: member.grpc,
        zone: member.zone,
        software: member.software,
        incarnation: member.incarnation.0,
        version: member.version.0,
        since: Some(timestamp_of(since)),
        // The measurement is exact to a microsecond.
        rtt_ms: member.rtt.map(|rtt| rtt.as_micros() as f64 / 1000.0),
    }
}
