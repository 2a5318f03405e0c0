//! Instances for the tests of the parts.

use std::{collections::BTreeMap, sync::Arc};

use hearsay_protocol::{
    NodeId,
    providers::Provider,
    record::{Health, Instance},
};

use super::{
    options::GatewayOptions,
    policy::GatewayPolicy,
    routes::{Group, Routes},
    target::Target,
};
use crate::testing::lenient_policy;

pub(super) fn policy() -> GatewayPolicy {
    GatewayPolicy::new(lenient_policy(), GatewayOptions::default())
}

pub(super) fn provider(service: &str, id: &str, url: &str, tags: &[&str]) -> Provider {
    provider_with(service, id, url, tags, Health::Passing)
}

pub(super) fn provider_with(service: &str, id: &str, url: &str, tags: &[&str], health: Health) -> Provider {
    Provider {
        id: id.to_owned(),
        node_id: NodeId::from_public_key([7; 32]),
        node: "n1".to_owned(),
        zone: None,
        addresses: vec![],
        role: true,
        unverified: false,
        instance: Arc::new(Instance {
            service: service.to_owned(),
            address: "10.0.0.9".to_owned(),
            port: 99,
            url: url.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            meta: BTreeMap::new(),
            health,
            since_ms: 0,
            ..Instance::default()
        }),
    }
}

pub(super) fn target(id: &str) -> Target {
    Target::new(&provider("web", id, "http://10.0.0.1:1", &[]), &policy(), 1).unwrap()
}

/// The instances `i0`, `i1`, … of one service.
pub(super) fn group(instances: usize) -> Group {
    group_with(instances, |_| Health::Passing)
}

pub(super) fn group_with(instances: usize, health: impl Fn(usize) -> Health) -> Group {
    let of =
        |i| provider_with("web", &format!("i{i}"), &format!("http://10.0.0.1:{}", i + 1), &[], health(i));
    let providers: Vec<_> = (0..instances).map(|i| Arc::new(of(i))).collect();
    Routes::default().learn(&providers, &policy(), 1, 0).find("h", "/web").unwrap().route.group.clone()
}
