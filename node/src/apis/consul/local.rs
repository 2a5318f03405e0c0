//! Converts this node's registrations and their checks to the JSON of `/v1/agent`, with the fields that were
//! sent, and aggregates the checks of an instance to one status.

use std::collections::BTreeMap;

use hearsay_protocol::{Health, WEIGHT_DEFAULT, wire::CheckReport};

use super::shapes::{
    CheckJson, Empty, PortJson, ScheduleJson, ServiceJson, TaggedAddressJson, WeightsJson, create_index,
};
use crate::{
    go_duration,
    http::state::AppState,
    registry::{
        MAINTENANCE_CHECK, NODE_MAINTENANCE_CHECK,
        checks::{CheckKind, CheckSpec},
        record::{Maintenance, RegistrationView},
        registration::ConsulCheck,
    },
};

/// A registration of this node, and the index of its service.
pub(super) struct LocalService {
    pub(super) view: RegistrationView,
    pub(super) index: u64,
}

impl LocalService {
    /// Copies all registrations, by id.
    pub(super) fn list(state: &AppState) -> Vec<Self> {
        state.registry.list().into_iter().map(|view| Self::new(state, view)).collect()
    }

    /// Copies the registration with this id.
    pub(super) fn find(state: &AppState, id: &str) -> Option<Self> {
        state.registry.get(id).map(|view| Self::new(state, view))
    }

    fn new(state: &AppState, view: RegistrationView) -> Self {
        let service = &view.row.registration.service;
        let index = state.read(|table| table.service_index(service).0).max(1);
        Self { view, index }
    }

    /// The registration, as it was sent.
    pub(super) fn to_json(&self) -> ServiceJson<'_> {
        let registration = &self.view.row.registration;
        let sent = registration.consul.as_ref();
        let tagged = sent.iter().flat_map(|sent| &sent.tagged_addresses);
        ServiceJson {
            id: &registration.id,
            service: &registration.service,
            tags: &registration.tags,
            meta: &registration.meta,
            port: registration.port,
            ports: registration.ports.iter().map(PortJson::from).collect(),
            address: match sent {
                Some(sent) => &sent.address,
                None => registration.host.as_deref().unwrap_or_default(),
            },
            tagged_addresses: tagged
                .map(|(tag, address)| (tag.as_str(), TaggedAddressJson::from(address)))
                .collect(),
            weights: WeightsJson {
                passing: registration.weight.unwrap_or(WEIGHT_DEFAULT),
                warning: sent.map_or(1, |sent| sent.warning_weight),
            },
            enable_tag_override: sent.is_some_and(|sent| sent.enable_tag_override),
            create_index: create_index(self.view.row.since_ms, self.index),
            modify_index: self.index,
        }
    }

    /// Its checks as they are now, and its maintenance.
    pub(super) fn checks<'a>(&'a self, node: &'a str) -> Vec<CheckJson<'a>> {
        let registration = &self.view.row.registration;
        let mut checks: Vec<CheckJson<'_>> =
            self.view.checks.iter().map(|report| self.check(report, node)).collect();
        if let Some(maintenance) = &self.view.maintenance {
            checks.push(CheckJson {
                service_id: &registration.id,
                service_name: &registration.service,
                service_tags: &registration.tags,
                ..maintenance_check(
                    format!("{MAINTENANCE_CHECK}{}", registration.id),
                    "Service Maintenance Mode",
                    maintenance,
                    node,
                )
            });
        }
        checks
    }

    fn check<'a>(&'a self, report: &CheckReport, node: &'a str) -> CheckJson<'a> {
        let registration = &self.view.row.registration;
        let spec = registration.checks.iter().find(|spec| spec.id == report.id);
        let sent = registration.consul.as_ref().and_then(|sent| sent.checks.get(&report.id));
        CheckJson {
            node,
            check_id: report.id.clone(),
            name: report.name.clone(),
            status: report.status.as_str(),
            notes: sent.map(|sent| sent.notes.clone()).unwrap_or_default(),
            output: report.output.clone(),
            service_id: &registration.id,
            service_name: &registration.service,
            service_tags: &registration.tags,
            kind: report.kind.clone(),
            definition: Empty {},
            create_index: create_index(self.view.row.since_ms, self.index),
            modify_index: self.index,
            schedule: Some(schedule(spec, sent)),
        }
    }

    /// The aggregate of its checks: maintenance outranks all.
    pub(super) fn aggregate(&self, is_node_out: bool) -> Aggregate {
        match self.view.health {
            _ if is_node_out || self.view.maintenance.is_some() => Aggregate::Maintenance,
            Health::Critical => Aggregate::Critical,
            Health::Warning => Aggregate::Warning,
            Health::Passing => Aggregate::Passing,
        }
    }
}

/// The aggregated status of an instance, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Aggregate {
    Passing,
    Warning,
    Critical,
    Maintenance,
}

impl Aggregate {
    /// Consul's word.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }
}

/// The check that stands for the maintenance of this node, if it is in maintenance.
pub(super) fn node_maintenance(state: &AppState) -> Option<CheckJson<'_>> {
    let maintenance = state.registry.node_maintenance()?;
    let id = NODE_MAINTENANCE_CHECK.to_owned();
    Some(maintenance_check(id, "Node Maintenance Mode", &maintenance, &state.name))
}

fn maintenance_check<'a>(
    check_id: String,
    name: &str,
    maintenance: &Maintenance,
    node: &'a str,
) -> CheckJson<'a> {
    CheckJson {
        node,
        check_id,
        name: name.to_owned(),
        status: Health::Critical.as_str(),
        notes: maintenance.reason.clone(),
        output: String::new(),
        service_id: "",
        service_name: "",
        service_tags: &[],
        kind: "maintenance".into(),
        definition: Empty {},
        create_index: 1,
        modify_index: 1,
        schedule: Some(schedule(None, None)),
    }
}

/// Consul states durations as Go writes them, and none where a check has no interval.
fn schedule(spec: Option<&CheckSpec>, sent: Option<&ConsulCheck>) -> ScheduleJson {
    let spec = spec.filter(|spec| !matches!(spec.kind, CheckKind::Ttl { .. }));
    let timeout = sent.and_then(|sent| sent.timeout).or(spec.map(|spec| spec.timeout));
    let text = |duration: Option<std::time::Duration>| duration.map(go_duration::format).unwrap_or_default();
    ScheduleJson {
        interval: text(spec.map(|spec| spec.interval)),
        timeout: text(timeout.filter(|_| spec.is_some())),
        exposed_port: 0,
    }
}

/// All checks of this node's registrations by their ids, its own maintenance among them.
pub(super) fn all_checks<'a>(
    state: &'a AppState,
    services: &'a [LocalService],
) -> BTreeMap<String, CheckJson<'a>> {
    let checks = services.iter().flat_map(|service| service.checks(&state.name));
    let checks = checks.chain(node_maintenance(state));
    checks.map(|check| (check.check_id.clone(), check)).collect()
}
