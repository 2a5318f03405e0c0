//! `GET /dependencies`: which service requires which, and what is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json,
    extract::State,
    http::Uri,
    response::{IntoResponse, Response},
};
use hearsay_protocol::{providers::ProviderTable, record::Health};
use hearsay_services::{Problem, parameters::Parameters};
use serde::Serialize;

use super::{
    site::Site,
    wait::{INDEX_HEADER, Wait},
};

/// The whole graph. Blocks with `index` as `/services` does.
pub(super) async fn dependencies(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &Wait::PARAMETERS)?;
    Wait::read(&parameters)?.hold(&site, ProviderTable::services_index).await?;
    let (index, graph) = site.read(|table| (table.services_index(), Graph::read(table)));
    let json = DependenciesJson {
        cluster: &site.cluster,
        node: &site.name,
        index: index.0,
        services: graph.services.iter().map(|(name, service)| graph.json_of(name, service)).collect(),
    };
    Ok(([(INDEX_HEADER, index.0.to_string())], Json(json)).into_response())
}

/// Services and what they require, those without an instance included.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// By their names.
    pub(super) services: BTreeMap<String, Dependent>,
}

/// A service of the graph.
#[derive(Debug, Default)]
pub(super) struct Dependent {
    /// How many instances it has.
    pub(super) instances: usize,
    /// How many of them are passing.
    pub(super) passing: usize,
    /// The services that any of its instances requires.
    pub(super) requires: BTreeSet<String>,
}

impl Graph {
    /// Reads it from the table.
    pub(super) fn read(table: &ProviderTable) -> Self {
        let mut services = BTreeMap::<String, Dependent>::new();
        for name in table.services() {
            let service = services.entry(name.to_owned()).or_default();
            for provider in table.providers_distinct(name) {
                service.instances += 1;
                service.passing += usize::from(provider.instance.health == Health::Passing);
                service.requires.extend(provider.instance.requires.iter().cloned());
            }
        }
        let required: BTreeSet<String> = services.values().flat_map(|s| s.requires.iter().cloned()).collect();
        required.into_iter().for_each(|name| _ = services.entry(name).or_default());
        Self { services }
    }

    /// Whether no instance of a service is passing.
    pub(super) fn is_missing(&self, name: &str) -> bool {
        self.services.get(name).is_none_or(|service| service.passing == 0)
    }

    fn json_of<'a>(&'a self, name: &'a str, service: &'a Dependent) -> ServiceJson<'a> {
        let requires: Vec<&str> = service.requires.iter().map(String::as_str).collect();
        let missing = requires.iter().copied().filter(|name| self.is_missing(name)).collect();
        let (instances, passing) = (service.instances, service.passing);
        ServiceJson { name, instances, passing, requires, missing }
    }
}

#[derive(Serialize)]
struct DependenciesJson<'a> {
    cluster: &'a str,
    node: &'a str,
    index: u64,
    services: Vec<ServiceJson<'a>>,
}

/// A service. The names of the fields are a contract.
#[derive(Serialize)]
struct ServiceJson<'a> {
    name: &'a str,
    instances: usize,
    passing: usize,
    requires: Vec<&'a str>,
    /// Those of `requires` that have no passing instance.
    missing: Vec<&'a str>,
}
