//! `GET /services`, `/services/{name}` and `/services/{name}/{id}`: lists instances of services, filtered by
//! tag, health and zone and sorted by distance, or shows one with its checks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
    response::{IntoResponse, Response},
};
use hearsay_protocol::{Health, Index, NodeId, Provider, ProviderTable};
use hearsay_services::{Problem, http::Parameters};

use crate::http::{
    api::{
        blocking_query::{INDEX_HEADER, Wait},
        instance::{CurrentCheck, InstanceWithChecks, ServicesJson},
    },
    state::AppState,
};

/// Lists all services and their instances.
pub(crate) async fn list(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    query.wait.hold(&state, ProviderTable::services_index).await?;
    let (index, found) = state.read(|table| {
        let all = table.services().flat_map(|service| table.providers_distinct(service)).cloned().collect();
        (table.services_index(), query.filter.select(&state, table, all))
    });
    Ok(answer(&state, index, None, query.filter.apply(found)))
}

/// Lists the instances of a service, in the same form.
///
/// # Errors
/// 404: the service has no instance.
pub(crate) async fn list_service(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::not_found("the name of the service is not UTF-8"))?;
    let query = Query::read(&uri)?;
    query.wait.hold(&state, |table| table.service_index(&name)).await?;
    let (index, found) = state.read(|table| {
        // A program that is registered with several nodes is one instance.
        let providers = table.providers_distinct(&name).cloned().collect();
        (table.service_index(&name), query.filter.select(&state, table, providers))
    });
    if found.providers.is_empty() {
        let detail =
            format!("no instance of service {name:?} is known here; /services lists the known services");
        // The index lets a client wait for the first instance.
        return Ok(([(INDEX_HEADER, index.0.to_string())], Problem::not_found(detail)).into_response());
    }
    Ok(answer(&state, index, Some(&name), query.filter.apply(found)))
}

/// Answers with an instance and its checks. The outputs are current if the holder answers; otherwise they are
/// those of the last changes of status.
///
/// # Errors
/// 404: no such instance is known here.
pub(crate) async fn instance(
    State(state): State<Arc<AppState>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let Path((name, id)) = path.map_err(|_| Problem::not_found("the path is not UTF-8"))?;
    Parameters::read(uri.query(), &[])?;
    let provider = find_instance(&state, &name, &id)?;
    let checks = CurrentCheck::read(&state, &provider).await;
    Ok(Json(InstanceWithChecks::new(&provider, checks)).into_response())
}

/// Returns the instance with this id of a service.
///
/// # Errors
/// 404: no such instance is known here.
pub(crate) fn find_instance(state: &AppState, name: &str, id: &str) -> Result<Arc<Provider>, Problem> {
    let provider = state.read(|table| table.providers(name).find(|provider| provider.id == id).cloned());
    provider.ok_or_else(|| {
        let detail = format!(
            "no instance {id:?} of service {name:?} is known here; /services/{{name}} lists the known instances"
        );
        Problem::not_found(detail)
    })
}

fn answer(state: &AppState, index: Index, named: Option<&str>, providers: Vec<Arc<Provider>>) -> Response {
    let json = ServicesJson::new(state, index, named, providers.iter().map(Arc::as_ref));
    ([(INDEX_HEADER, index.0.to_string())], Json(json)).into_response()
}

/// The parameters of a query.
struct Query {
    wait: Wait,
    filter: Filter,
}

impl Query {
    fn read(uri: &Uri) -> Result<Self, Problem> {
        let known = [&["tag", "health", "near", "zone"], Wait::PARAMETERS.as_slice()].concat();
        let parameters = Parameters::read(uri.query(), &known)?;
        Ok(Self { wait: Wait::read(&parameters)?, filter: Filter::read(&parameters)? })
    }
}

/// Filter and order of the instances.
pub(crate) struct Filter {
    /// Tags that an instance must have, all of them.
    pub(crate) tags: Vec<String>,
    pub(crate) health: Option<Health>,
    pub(crate) zone: Option<String>,
    pub(crate) nearest_first: bool,
}

impl Filter {
    fn read(parameters: &Parameters<'_>) -> Result<Self, Problem> {
        let health = match parameters.single("health")? {
            None => None,
            Some("passing") => Some(Health::Passing),
            Some("warning") => Some(Health::Warning),
            Some("critical") => Some(Health::Critical),
            Some(other) => {
                return Err(Parameters::refuse("health", other, "one of passing, warning, critical"));
            }
        };
        let nearest_first = match parameters.single("near")? {
            None => false,
            // `_agent` is Consul's name.
            Some("_self" | "_agent") => true,
            Some(other) => {
                return Err(Parameters::refuse(
                    "near",
                    other,
                    "_self: a node knows only its own round trips",
                ));
            }
        };
        let zone = parameters.single("zone")?.map(str::to_owned);
        Ok(Self { tags: parameters.all("tag").map(str::to_owned).collect(), health, zone, nearest_first })
    }

    /// Adds the data of the table that sorting needs. Runs under the lock of the table.
    pub(crate) fn select(
        &self,
        state: &AppState,
        table: &ProviderTable,
        providers: Vec<Arc<Provider>>,
    ) -> Selection {
        let here = self.nearest_first.then(|| Here {
            id: state.id,
            zone: table.member(state.id).and_then(|member| member.zone.clone()),
            round_trips: table.members().filter_map(|member| Some((member.id, member.rtt?))).collect(),
        });
        Selection { providers, here }
    }

    /// Filters and sorts. Runs without the lock.
    pub(crate) fn apply(&self, found: Selection) -> Vec<Arc<Provider>> {
        let Selection { mut providers, here } = found;
        providers.retain(|provider| {
            let instance = &provider.instance;
            self.tags.iter().all(|tag| instance.tags.contains(tag))
                && self.health.is_none_or(|health| instance.health == health)
                && self.zone.as_deref().is_none_or(|zone| provider.zone() == Some(zone))
        });
        if let Some(here) = here {
            // The sort is stable: equals stay in the table's order.
            providers.sort_by_cached_key(|provider| here.distance_to(provider));
        }
        providers
    }
}

/// Data from the table.
pub(crate) struct Selection {
    providers: Vec<Arc<Provider>>,
    /// Only for sorting by distance.
    here: Option<Here>,
}

/// Location of this node.
struct Here {
    id: NodeId,
    zone: Option<String>,
    round_trips: BTreeMap<NodeId, Duration>,
}

impl Here {
    fn distance_to(&self, provider: &Provider) -> Distance {
        Distance {
            elsewhere: provider.node_id != self.id,
            other_zone: self.zone.is_none() || provider.zone() != self.zone.as_deref(),
            round_trip: self.round_trips.get(&provider.node_id).copied().unwrap_or(Duration::MAX),
        }
    }
}

/// Distance of a provider: first the providers on this node, then those in its zone, then the others by their
/// last round trip. Providers without a measurement are last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Distance {
    elsewhere: bool,
    other_zone: bool,
    round_trip: Duration,
}
