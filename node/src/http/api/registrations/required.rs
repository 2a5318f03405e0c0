//! The passing instances of the services that a registration requires, as JSON for the response to it. The
//! form follows the registration's `Dialect`: `Name` and `Addr` for dialect 2, native for the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hearsay_protocol::{Health, Provider};
use serde_json::{Value, json};

use crate::http::{api::instance::InstanceJson, state::AppState};

/// Passing instances by required service, with an entry for services without an instance too.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct RequiredInstances(BTreeMap<String, Vec<Arc<Provider>>>);

impl RequiredInstances {
    /// Reads the instances from the table.
    pub(crate) fn look_up(state: &AppState, services: &BTreeSet<String>) -> Self {
        Self(state.read(|table| {
            let entry_of = |service: &String| {
                let distinct = table.providers_distinct(service);
                let passing = distinct.filter(|p| p.instance.health == Health::Passing);
                (service.clone(), passing.cloned().collect())
            };
            services.iter().map(entry_of).collect()
        }))
    }

    /// Returns each required service with its instances.
    pub(crate) fn services(&self) -> impl Iterator<Item = (&str, &[Arc<Provider>])> {
        self.0.iter().map(|(service, providers)| (service.as_str(), providers.as_slice()))
    }

    /// Returns `{"<service>":[instance…]}`.
    pub(crate) fn instances_json(&self) -> Value {
        let entry_of = |(service, providers): (&String, &Vec<Arc<Provider>>)| {
            let instances: Vec<_> = providers.iter().map(|p| InstanceJson::from(p.as_ref())).collect();
            (service.clone(), json!(instances))
        };
        Value::Object(self.0.iter().map(entry_of).collect())
    }

    /// Returns the response to a registration.
    pub(crate) fn to_json(&self, id: &str, node: &str) -> Value {
        json!({ "id": id, "node": node, "requires": self.instances_json() })
    }

    /// Returns the response in dialect 2: only `{"<service>":[{"Name","Addr","RequiredServices"}…]}`.
    pub(crate) fn to_dialect_two(&self) -> Value {
        let entry_of = |(service, providers): (&String, &Vec<Arc<Provider>>)| {
            let instances: Vec<_> = providers.iter().map(|p| instance_in_dialect_two(p)).collect();
            (service.clone(), Value::Array(instances))
        };
        Value::Object(self.0.iter().map(entry_of).collect())
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
