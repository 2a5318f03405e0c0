//! Types of the JSON in Consul's answers (nodes, members, services, checks), built from the provider table.
//! The names of the fields are Consul's: clients decode them.

use std::collections::BTreeMap;

use hearsay_protocol::{CheckSummary, Health, MemberState, NamedPort, Provider};
use serde::Serialize;

use super::{node::CatalogNode, query::DATACENTER};
use crate::registry::{NODE_MAINTENANCE_CHECK, registration::TaggedAddress};

/// The version of Consul whose interface this is.
pub(super) const CONSUL_VERSION: &str = "1.22.0";
/// The id of the check that says whether a node is alive. Consul's clients look for this word.
pub(super) const ALIVE_CHECK: &str = "serfHealth";
/// The output of checks that the table guard keeps.
const UNVERIFIED: &str = "unverified";
/// The kind of maintenance checks in the table.
const MAINTENANCE_KIND: &str = "maintenance";

/// An empty JSON object.
#[derive(Serialize)]
pub(super) struct Empty {}

/// A node in the catalog.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeJson<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    node: &'a str,
    address: &'a str,
    datacenter: &'static str,
    tagged_addresses: BTreeMap<&'static str, &'a str>,
    meta: &'a BTreeMap<String, String>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> From<&'a CatalogNode> for NodeJson<'a> {
    fn from(node: &'a CatalogNode) -> Self {
        Self {
            id: &node.uuid,
            node: &node.name,
            address: &node.address,
            datacenter: DATACENTER,
            tagged_addresses: ["lan", "wan"].map(|tag| (tag, node.address.as_str())).into(),
            meta: &node.meta,
            create_index: node.modify_index,
            modify_index: node.modify_index,
        }
    }
}

/// A member, as `/v1/agent/members` and `/v1/agent/self` have it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MemberJson<'a> {
    name: &'a str,
    addr: &'a str,
    port: u16,
    tags: BTreeMap<&'static str, String>,
    status: u8,
    protocol_min: u8,
    protocol_max: u8,
    protocol_cur: u8,
    delegate_min: u8,
    delegate_max: u8,
    delegate_cur: u8,
}

impl<'a> From<&'a CatalogNode> for MemberJson<'a> {
    fn from(node: &'a CatalogNode) -> Self {
        let tags = [
            ("role", "node".to_owned()),
            ("dc", DATACENTER.to_owned()),
            ("build", format!("{CONSUL_VERSION}:")),
            ("vsn", "2".to_owned()),
            ("id", node.uuid.clone()),
        ];
        Self {
            name: &node.name,
            addr: &node.address,
            port: node.swarm_port,
            tags: tags.into(),
            status: match node.state {
                MemberState::Alive | MemberState::Suspect => 1,
                MemberState::Left => 3,
                MemberState::Failed => 4,
            },
            // The versions of Serf's protocols that Consul states.
            protocol_min: 1,
            protocol_max: 5,
            protocol_cur: 2,
            delegate_min: 2,
            delegate_max: 5,
            delegate_cur: 4,
        }
    }
}

/// A named port.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PortJson<'a> {
    name: &'a str,
    port: u16,
    default: bool,
}

impl<'a> From<&'a NamedPort> for PortJson<'a> {
    fn from(port: &'a NamedPort) -> Self {
        Self { name: &port.name, port: port.port, default: port.is_default }
    }
}

/// The weights of an instance.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct WeightsJson {
    pub(super) passing: u16,
    pub(super) warning: u16,
}

/// An address under a tag.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TaggedAddressJson<'a> {
    address: &'a str,
    port: u16,
}

impl<'a> From<&'a TaggedAddress> for TaggedAddressJson<'a> {
    fn from(tagged: &'a TaggedAddress) -> Self {
        Self { address: &tagged.address, port: tagged.port }
    }
}

/// An instance, as `Service` in answers.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceJson<'a> {
    #[serde(rename = "ID")]
    pub(super) id: &'a str,
    pub(super) service: &'a str,
    pub(super) tags: &'a [String],
    pub(super) meta: &'a BTreeMap<String, String>,
    pub(super) port: u16,
    pub(super) ports: Vec<PortJson<'a>>,
    pub(super) address: &'a str,
    pub(super) tagged_addresses: BTreeMap<&'a str, TaggedAddressJson<'a>>,
    pub(super) weights: WeightsJson,
    pub(super) enable_tag_override: bool,
    pub(super) create_index: u64,
    pub(super) modify_index: u64,
}

impl<'a> ServiceJson<'a> {
    /// An instance of the table, as of an index of its service.
    pub(super) fn new(provider: &'a Provider, index: u64) -> Self {
        let instance = &provider.instance;
        Self {
            id: &provider.id,
            service: &instance.service,
            tags: &instance.tags,
            meta: &instance.meta,
            port: instance.port,
            ports: instance.ports.iter().map(PortJson::from).collect(),
            address: provider.host(),
            tagged_addresses: BTreeMap::new(),
            weights: WeightsJson { passing: provider.weight(), warning: 1 },
            enable_tag_override: false,
            create_index: create_index(instance.since_ms, index),
            modify_index: index,
        }
    }
}

/// Returns the index of a registration: its time in milliseconds. That is the same on every node and after a
/// restart, and below the indexes of changes, which begin at a time in microseconds.
pub(super) fn create_index(since_ms: u64, modify_index: u64) -> u64 {
    since_ms.clamp(1, modify_index.max(1))
}

/// A health check.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CheckJson<'a> {
    pub(super) node: &'a str,
    #[serde(rename = "CheckID")]
    pub(super) check_id: String,
    pub(super) name: String,
    pub(super) status: &'static str,
    pub(super) notes: String,
    pub(super) output: String,
    #[serde(rename = "ServiceID")]
    pub(super) service_id: &'a str,
    pub(super) service_name: &'a str,
    pub(super) service_tags: &'a [String],
    #[serde(rename = "Type")]
    pub(super) kind: String,
    pub(super) definition: Empty,
    pub(super) create_index: u64,
    pub(super) modify_index: u64,
    /// Only of this node's own checks.
    #[serde(flatten)]
    pub(super) schedule: Option<ScheduleJson>,
}

/// When a check of this node runs.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ScheduleJson {
    pub(super) interval: String,
    pub(super) timeout: String,
    pub(super) exposed_port: u16,
}

impl<'a> CheckJson<'a> {
    /// The check that says whether a node is alive. Instances that the table guard keeps pass.
    pub(super) fn alive(node: &'a CatalogNode, is_unverified: bool) -> Self {
        let (status, output) = match (is_unverified, node.state.is_present()) {
            (true, _) => (Health::Passing, UNVERIFIED),
            (false, true) => (Health::Passing, "Agent alive and reachable"),
            (false, false) => (Health::Critical, "Agent not live or unreachable"),
        };
        Self {
            node: &node.name,
            check_id: ALIVE_CHECK.into(),
            name: "Serf Health Status".into(),
            status: status.as_str(),
            notes: String::new(),
            output: output.into(),
            service_id: "",
            service_name: "",
            service_tags: &[],
            kind: String::new(),
            definition: Empty {},
            create_index: node.modify_index,
            modify_index: node.modify_index,
            schedule: None,
        }
    }

    /// The checks of an instance. The worst of them is the health of the instance, also where the instance is
    /// critical without a check that says so: as a role of a node in maintenance, or after its connection has
    /// closed.
    pub(super) fn of_instance(provider: &'a Provider, node: &'a str, index: u64) -> Vec<Self> {
        let instance = &provider.instance;
        let mut checks: Vec<Self> =
            instance.checks.iter().map(|check| Self::gossiped(check, provider, node, index)).collect();
        let worst = instance.checks.iter().map(|check| check.status).max().unwrap_or_default();
        if worst < instance.health && !provider.unverified {
            let stated = CheckSummary {
                id: format!("service:{}:state", provider.id),
                name: format!("Service '{}' state", instance.service),
                status: instance.health,
                since_ms: instance.since_ms,
                output: format!("its node offers it as {}", instance.health),
                ..CheckSummary::default()
            };
            checks.push(Self::gossiped(&stated, provider, node, index));
        }
        checks
    }

    fn gossiped(check: &CheckSummary, provider: &'a Provider, node: &'a str, index: u64) -> Self {
        let is_maintenance = check.kind == MAINTENANCE_KIND;
        let is_of_node = check.id == NODE_MAINTENANCE_CHECK;
        let instance = &provider.instance;
        Self {
            node,
            check_id: check.id.clone(),
            name: match (is_maintenance, is_of_node) {
                (true, true) => "Node Maintenance Mode".into(),
                (true, false) => "Service Maintenance Mode".into(),
                (false, _) => check.name.clone(),
            },
            status: check.status.as_str(),
            notes: if is_maintenance { check.output.clone() } else { String::new() },
            output: if is_maintenance { String::new() } else { check.output.clone() },
            service_id: if is_of_node { "" } else { &provider.id },
            service_name: if is_of_node { "" } else { &instance.service },
            service_tags: if is_of_node { &[] } else { &instance.tags },
            kind: check.kind.clone(),
            definition: Empty {},
            create_index: create_index(instance.since_ms, index),
            modify_index: index,
            schedule: None,
        }
    }
}

/// An instance with its node and checks, as `/v1/health/service` has it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct EntryJson<'a> {
    node: NodeJson<'a>,
    service: ServiceJson<'a>,
    checks: Vec<CheckJson<'a>>,
}

impl<'a> EntryJson<'a> {
    /// An entry never lacks checks: clients take an instance without any for an unhealthy one.
    pub(super) fn new(provider: &'a Provider, node: &'a CatalogNode, index: u64) -> Self {
        let mut checks = CheckJson::of_instance(provider, &node.name, index);
        checks.push(CheckJson::alive(node, provider.unverified));
        Self { node: node.into(), service: ServiceJson::new(provider, index), checks }
    }
}

/// An instance, as `/v1/catalog/service` has it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CatalogServiceJson<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    node: &'a str,
    address: &'a str,
    datacenter: &'static str,
    tagged_addresses: BTreeMap<&'static str, &'a str>,
    node_meta: &'a BTreeMap<String, String>,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [String],
    service_address: &'a str,
    service_port: u16,
    service_ports: Vec<PortJson<'a>>,
    service_meta: &'a BTreeMap<String, String>,
    service_weights: WeightsJson,
    service_enable_tag_override: bool,
    create_index: u64,
    modify_index: u64,
}

impl<'a> CatalogServiceJson<'a> {
    /// An instance and its node.
    pub(super) fn new(provider: &'a Provider, node: &'a CatalogNode, index: u64) -> Self {
        let instance = &provider.instance;
        Self {
            id: &node.uuid,
            node: &node.name,
            address: &node.address,
            datacenter: DATACENTER,
            tagged_addresses: ["lan", "wan"].map(|tag| (tag, node.address.as_str())).into(),
            node_meta: &node.meta,
            service_id: &provider.id,
            service_name: &instance.service,
            service_tags: &instance.tags,
            service_address: provider.host(),
            service_port: instance.port,
            service_ports: instance.ports.iter().map(PortJson::from).collect(),
            service_meta: &instance.meta,
            service_weights: WeightsJson { passing: provider.weight(), warning: 1 },
            service_enable_tag_override: false,
            create_index: create_index(instance.since_ms, index),
            modify_index: index,
        }
    }
}
