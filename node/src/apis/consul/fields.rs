//! Tables of the fields that a filter expression may name, with their types, for each path under `/v1`.

use super::filter::{Field, Kind};

/// `/v1/catalog/services` and `/v1/catalog/service/:name`.
pub(super) const OF_CATALOG: [Field; 12] = [
    ("ID", Kind::Text),
    ("Node", Kind::Text),
    ("Address", Kind::Text),
    ("Datacenter", Kind::Text),
    ("TaggedAddresses", Kind::Map),
    ("NodeMeta", Kind::Map),
    ("ServiceName", Kind::Text),
    ("ServiceID", Kind::Text),
    ("ServiceTags", Kind::Texts),
    ("ServiceAddress", Kind::Text),
    ("ServiceMeta", Kind::Map),
    ("ServicePort", Kind::Number),
];

/// `/v1/catalog/nodes`.
pub(super) const OF_NODES: [Field; 6] = [
    ("ID", Kind::Text),
    ("Node", Kind::Text),
    ("Address", Kind::Text),
    ("Datacenter", Kind::Text),
    ("TaggedAddresses", Kind::Map),
    ("Meta", Kind::Map),
];

/// `/v1/health/service/:name`.
pub(super) const OF_ENTRIES: [Field; 19] = [
    ("Node.ID", Kind::Text),
    ("Node.Node", Kind::Text),
    ("Node.Address", Kind::Text),
    ("Node.Datacenter", Kind::Text),
    ("Node.TaggedAddresses", Kind::Map),
    ("Node.Meta", Kind::Map),
    ("Service.ID", Kind::Text),
    ("Service.Service", Kind::Text),
    ("Service.Tags", Kind::Texts),
    ("Service.Address", Kind::Text),
    ("Service.Meta", Kind::Map),
    ("Service.Port", Kind::Number),
    ("Service.Weights.Passing", Kind::Number),
    ("Service.Weights.Warning", Kind::Number),
    ("Checks.CheckID", Kind::Text),
    ("Checks.Name", Kind::Text),
    ("Checks.Status", Kind::Text),
    ("Checks.Notes", Kind::Text),
    ("Checks.Output", Kind::Text),
];

/// `/v1/health/checks/:name`, `/state/:state`, `/node/:node` and `/v1/agent/checks`.
pub(super) const OF_CHECKS: [Field; 9] = [
    ("Node", Kind::Text),
    ("CheckID", Kind::Text),
    ("Name", Kind::Text),
    ("Status", Kind::Text),
    ("Notes", Kind::Text),
    ("Output", Kind::Text),
    ("ServiceID", Kind::Text),
    ("ServiceName", Kind::Text),
    ("ServiceTags", Kind::Texts),
];

/// `/v1/agent/services`, `/v1/catalog/node/:node` and `/v1/catalog/node-services/:node`.
pub(super) const OF_SERVICES: [Field; 8] = [
    ("ID", Kind::Text),
    ("Service", Kind::Text),
    ("Tags", Kind::Texts),
    ("Meta", Kind::Map),
    ("Port", Kind::Number),
    ("Address", Kind::Text),
    ("Weights.Passing", Kind::Number),
    ("Weights.Warning", Kind::Number),
];

/// `/v1/event/list`.
pub(super) const OF_EVENTS: [Field; 5] = [
    ("ID", Kind::Text),
    ("Name", Kind::Text),
    ("NodeFilter", Kind::Text),
    ("ServiceFilter", Kind::Text),
    ("TagFilter", Kind::Text),
];

/// `/v1/agent/members`.
pub(super) const OF_MEMBERS: [Field; 5] = [
    ("Name", Kind::Text),
    ("Addr", Kind::Text),
    ("Port", Kind::Number),
    ("Status", Kind::Number),
    ("Tags", Kind::Map),
];
