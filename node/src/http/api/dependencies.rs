//! `GET /dependencies`: the graph of which services require which others, with the number of instances of
//! each, and the required services without a passing instance.

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
use hearsay_protocol::{Health, ProviderTable};
use hearsay_services::{Problem, http::Parameters};
use serde::Serialize;

use crate::http::{
    api::blocking_query::{INDEX_HEADER, Wait},
    state::AppState,
};

/// Answers with the whole graph. With `index` it is a blocking query.
pub(crate) async fn dependencies(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &Wait::PARAMETERS)?;
    Wait::read(&parameters)?.hold(&state, ProviderTable::services_index).await?;
    let (index, graph) = state.read(|table| (table.services_index(), Graph::read(table)));
    let json = DependenciesJson {
        cluster: &state.cluster,
        node: &state.name,
        index: index.0,
        services: graph.services.iter().map(|(name, service)| graph.json_of(name, service)).collect(),
    };
    Ok(([(INDEX_HEADER, index.0.to_string())], Json(json)).into_response())
}

/// Graph of services and the services that they require, those without an instance included.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// Services by name.
    pub(crate) services: BTreeMap<String, Dependent>,
}

/// A service of the graph.
#[derive(Debug, Default)]
pub(crate) struct Dependent {
    /// Number of instances.
    pub(crate) instances: usize,
    /// Number of passing instances.
    pub(crate) passing: usize,
    /// Services that at least one instance requires.
    pub(crate) requires: BTreeSet<String>,
}

impl Graph {
    /// Reads the graph from the table.
    pub(crate) fn read(table: &ProviderTable) -> Self {
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
    pub(crate) fn is_missing(&self, name: &str) -> bool {
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

/// A service as JSON. The field names are part of the API.
#[derive(Serialize)]
struct ServiceJson<'a> {
    name: &'a str,
    instances: usize,
    passing: usize,
    requires: Vec<&'a str>,
    /// Required services without a passing instance.
    missing: Vec<&'a str>,
}
