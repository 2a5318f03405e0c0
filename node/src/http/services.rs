//! `GET /services` and `GET /services/{name}`: who offers what.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
    response::{IntoResponse, Response},
};
use hearsay_protocol::{
    NodeId,
    providers::{Index, Provider, ProviderTable},
    record::Health,
};
use hearsay_services::{Problem, parameters::Parameters};

use super::{
    instance::{InstanceWithChecks, ServicesJson},
    site::Site,
    wait::{INDEX_HEADER, Wait},
};

/// All services.
pub(super) async fn list(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    query.wait.hold(&site, ProviderTable::services_index).await?;
    let (index, found) = site.read(|table| {
        let all = table.services().flat_map(|service| table.providers_distinct(service)).cloned().collect();
        (table.services_index(), query.filter.take(&site, table, all))
    });
    Ok(answer(&site, index, None, query.filter.choose(found)))
}

/// One service, in the same shape.
pub(super) async fn one(
    State(site): State<Arc<Site>>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    // A name that is not even text belongs to no service.
    let Path(name) = name.map_err(|_| Problem::not_found("the name of the service is not UTF-8"))?;
    let query = Query::read(&uri)?;
    query.wait.hold(&site, |table| table.service_index(&name)).await?;
    let (index, found) = site.read(|table| {
        // What is registered with two nodes is one.
        let providers = table.providers_distinct(&name).cloned().collect();
        (table.service_index(&name), query.filter.take(&site, table, providers))
    });
    if found.providers.is_empty() {
        let detail = format!("no instance of service {name:?} is known here; /services lists those that are");
        // The index goes along, so that a client can wait for the first instance.
        return Ok(([(INDEX_HEADER, index.0.to_string())], Problem::not_found(detail)).into_response());
    }
    Ok(answer(&site, index, Some(&name), query.filter.choose(found)))
}

/// One instance, with its checks. Their newest outputs where this node holds it; elsewhere those of the last changes.
///
/// # Errors
/// 404: no such instance is known here.
pub(super) async fn instance(
    State(site): State<Arc<Site>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let Path((name, id)) = path.map_err(|_| Problem::not_found("the path is not UTF-8"))?;
    Parameters::read(uri.query(), &[])?;
    let found = site.read(|table| table.providers(&name).find(|provider| provider.id == id).cloned());
    let Some(provider) = found else {
        let detail = format!(
            "no instance {id:?} of service {name:?} is known here; /services/{{name}} lists those that are"
        );
        return Err(Problem::not_found(detail));
    };
    if provider.node_id == site.id
        && let Some(held) = site.registry.get(&id)
    {
        return Ok(Json(InstanceWithChecks::held_here(&provider, held)).into_response());
    }
    let is_checked = !provider.instance.checks.is_empty();
    let reports = if is_checked { site.registry.reports_of(provider.node_id, &id).await } else { None };
    Ok(Json(InstanceWithChecks::held_elsewhere(&provider, reports.as_deref())).into_response())
}

fn answer(site: &Site, index: Index, named: Option<&str>, providers: Vec<Arc<Provider>>) -> Response {
    let json = ServicesJson::new(site, index, named, providers.iter().map(Arc::as_ref));
    ([(INDEX_HEADER, index.0.to_string())], Json(json)).into_response()
}

/// What a query asks for.
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

/// Which instances a query wants, and in which order.
struct Filter {
    /// All of them must be there.
    tags: Vec<String>,
    health: Option<Health>,
    zone: Option<String>,
    nearest_first: bool,
}

impl Filter {
    fn read(parameters: &Parameters<'_>) -> Result<Self, Problem> {
        let health = match parameters.one("health")? {
            None => None,
            Some("passing") => Some(Health::Passing),
            Some("warning") => Some(Health::Warning),
            Some("critical") => Some(Health::Critical),
            Some(other) => {
                return Err(Parameters::refuse("health", other, "one of passing, warning, critical"));
            }
        };
        let nearest_first = match parameters.one("near")? {
            None => false,
            // The second is Consul's word for it.
            Some("_self" | "_agent") => true,
            Some(other) => {
                return Err(Parameters::refuse("near", other, "_self: a node knows only its own distances"));
            }
        };
        let zone = parameters.one("zone")?.map(str::to_owned);
        Ok(Self { tags: parameters.all("tag").map(str::to_owned).collect(), health, zone, nearest_first })
    }

    /// What is needed of the table, besides the providers. Runs under its lock.
    fn take(&self, site: &Site, table: &ProviderTable, providers: Vec<Arc<Provider>>) -> Found {
        let here = self.nearest_first.then(|| Here {
            id: site.id,
            zone: table.member(site.id).and_then(|member| member.zone.clone()),
            round_trips: table.members().filter_map(|member| Some((member.id, member.rtt?))).collect(),
        });
        Found { providers, here }
    }

    /// Filters and sorts.
    fn choose(&self, found: Found) -> Vec<Arc<Provider>> {
        let Found { mut providers, here } = found;
        providers.retain(|provider| {
            let instance = &provider.instance;
            self.tags.iter().all(|tag| instance.tags.contains(tag))
                && self.health.is_none_or(|health| instance.health == health)
                && self.zone.as_deref().is_none_or(|zone| provider.zone() == Some(zone))
        });
        if let Some(here) = here {
            // Stable: equals stay in the table's order.
            providers.sort_by_cached_key(|provider| here.distance_to(provider));
        }
        providers
    }
}

/// What was taken out of the table.
struct Found {
    providers: Vec<Arc<Provider>>,
    /// Only where distances matter.
    here: Option<Here>,
}

/// Where this node stands.
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

/// How far a provider is, nearest first: on this node, in its zone, then by the last round trip; unmeasured ones are last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Distance {
    elsewhere: bool,
    other_zone: bool,
    round_trip: Duration,
}
