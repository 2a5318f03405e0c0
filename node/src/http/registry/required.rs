//! The passing instances of the services that a registration requires, in the shapes of the dialects.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hearsay_protocol::{providers::Provider, record::Health};
use serde_json::{Value, json};

use crate::http::{instance::InstanceJson, site::Site};

/// Passing instances, by the required services; an entry for each of them, also where there is none.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct RequiredInstances(BTreeMap<String, Vec<Arc<Provider>>>);

impl RequiredInstances {
    /// Looks the instances up in the table.
    pub(super) fn look_up(site: &Site, services: &BTreeSet<String>) -> Self {
        Self(site.read(|table| {
            let of = |service: &String| {
                let distinct = table.providers_distinct(service);
                let passing = distinct.filter(|p| p.instance.health == Health::Passing);
                (service.clone(), passing.cloned().collect())
            };
            services.iter().map(of).collect()
        }))
    }

    /// `{"<service>":[instance…]}`
    pub(super) fn instances_json(&self) -> Value {
        let of = |(service, providers): (&String, &Vec<Arc<Provider>>)| {
            let instances: Vec<_> = providers.iter().map(|p| InstanceJson::from(p.as_ref())).collect();
            (service.clone(), json!(instances))
        };
        Value::Object(self.0.iter().map(of).collect())
    }

    /// The answer to a registration.
    pub(super) fn to_json(&self, id: &str, node: &str) -> Value {
        json!({ "id": id, "node": node, "requires": self.instances_json() })
    }

    /// The same in dialect 2: `{"<service>":[{"Name","Addr","RequiredServices"}…]}` and nothing else.
    pub(super) fn to_dialect_two(&self) -> Value {
        let of = |(service, providers): (&String, &Vec<Arc<Provider>>)| {
            let instances: Vec<_> = providers.iter().map(|p| instance_in_dialect_two(p)).collect();
            (service.clone(), Value::Array(instances))
        };
        Value::Object(self.0.iter().map(of).collect())
    }
}

fn instance_in_dialect_two(provider: &Provider) -> Value {
    let stated = || format!("{}:{}", provider.host(), provider.instance.port);
    let addr = provider.addresses.first().cloned().unwrap_or_else(stated);
    json!({
        "Name": provider.instance.service,
        "Addr": addr,
        "RequiredServices": provider.instance.requires,
    })
}
