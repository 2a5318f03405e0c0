//! Fixtures of unit tests: a policy, providers, endpoints and groups.

use std::{collections::BTreeMap, sync::Arc};

use hearsay_protocol::{Health, Instance, NodeId, Provider};
use hearsay_services::testing::lenient_policy;

use crate::{
    routing::{
        options::GatewayOptions,
        policy::GatewayPolicy,
        routes::{Group, Routes},
    },
    upstream::endpoint::Endpoint,
};

pub(crate) fn policy() -> GatewayPolicy {
    GatewayPolicy::new(lenient_policy(), GatewayOptions::default())
}

pub(crate) fn provider(service: &str, id: &str, url: &str, tags: &[&str]) -> Provider {
    provider_with(service, id, url, tags, Health::Passing)
}

pub(crate) fn provider_with(service: &str, id: &str, url: &str, tags: &[&str], health: Health) -> Provider {
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

pub(crate) fn endpoint(id: &str) -> Endpoint {
    Endpoint::new(&provider("web", id, "http://10.0.0.1:1", &[]), &policy()).unwrap()
}

/// Returns a group of the instances `i0`, `i1`, … of one service.
pub(crate) fn group(instances: usize) -> Group {
    group_with(instances, |_| Health::Passing)
}

pub(crate) fn group_with(instances: usize, health: impl Fn(usize) -> Health) -> Group {
    let of =
        |i| provider_with("web", &format!("i{i}"), &format!("http://10.0.0.1:{}", i + 1), &[], health(i));
    let providers: Vec<_> = (0..instances).map(|i| Arc::new(of(i))).collect();
    Routes::default().updated(&providers, &policy(), 0).find("h", "/web").unwrap().route.group.clone()
}
