//! The paths of the registry: `POST` and `DELETE /services`, `GET /registrations`, `PUT /checks/{id}`, `PUT /services/{id}/maintenance`.
//!
//! The answer's body follows the dialect of the request. A success is 200, never 201: older clients compare.

mod hold;
mod required;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use hearsay_protocol::record::Health;
use hearsay_services::{Problem, parameters::Parameters};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{accept::Connection, caller::Caller, instance::CheckJson, site::Site};
use crate::{
    go_duration,
    registry::{
        RegistryError, Scope, Selector, StoreError,
        input::{self, Source},
        record::{Owner, RegistrationView},
        registration::{Dialect, Registration},
    },
    timestamp::rfc3339_ms,
};
use required::RequiredInstances;

/// The longest that an instance is kept whose connection has closed.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// The longest reason of a maintenance, in characters; more is cut off.
pub(super) const REASON_CHARS_MAX: usize = 256;

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let status = match &error {
            RegistryError::Invalid(invalid) => {
                return Self::new(StatusCode::BAD_REQUEST, error.to_string()).with("field", invalid.field);
            }
            RegistryError::HeldElsewhere { node, .. } => {
                return Self::not_found(error.to_string()).with("holder", node.as_str());
            }
            RegistryError::Forbidden(invalid) => {
                return Self::new(StatusCode::FORBIDDEN, error.to_string()).with("field", invalid.field);
            }
            RegistryError::NotFound(_) => StatusCode::NOT_FOUND,
            RegistryError::Conflict(_) => StatusCode::CONFLICT,
            RegistryError::Store(StoreError::Stopped) | RegistryError::Stopping => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            RegistryError::Limit(_) | RegistryError::Store(_) => StatusCode::INSUFFICIENT_STORAGE,
        };
        Self::new(status, error.to_string())
    }
}

/// What the caller of a write may change. The guard lets no write pass without saying who makes it; a request that passed no guard was made on this
/// machine.
fn scope_of(caller: Option<&Extension<Caller>>) -> Scope {
    Scope::of(caller.and_then(|Extension(caller)| caller.unproven_ip()))
}

/// Where a request comes from.
fn source_of(connection: Option<&Connection>, caller: Option<&Extension<Caller>>) -> Source {
    // What a trusted proxy passes on comes from its client.
    if let Some(ip) = caller.and_then(|Extension(caller)| caller.ip()) {
        return Source::caller(ip);
    }
    let Some(connection) = connection else { return Source::caller(IpAddr::from([127, 0, 0, 1])) };
    match (connection.peer, &connection.socket) {
        (_, Some(credentials)) => Source::socket(credentials.uid),
        (Some(peer), None) => Source::caller(peer.ip()),
        // A request that did not come over any connection was made on this machine.
        (None, None) => Source::caller(IpAddr::from([127, 0, 0, 1])),
    }
}

fn read_registration(
    site: &Site,
    connection: Option<&Connection>,
    caller: Option<&Extension<Caller>>,
    body: &[u8],
) -> Result<Registration, Problem> {
    if body.is_empty() {
        let detail = "the body is missing: a registration in JSON, such as {\"name\":\"web\",\"port\":8080}";
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    let read = input::read(body, source_of(connection, caller), site.registry.suffix());
    Ok(read.map_err(RegistryError::from)?)
}

/// Registers a program; with `?hold` for as long as the connection is open.
///
/// # Errors
/// 400 names the field and the limit; 409 for one that a file registers; 507 for a limit of the node or the cluster, and for a full disk.
/// Nothing was registered.
pub(super) async fn register(
    State(site): State<Arc<Site>>,
    connection: Option<Extension<Connection>>,
    caller: Option<Extension<Caller>>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["hold", "grace"])?;
    let scope = scope_of(caller.as_ref());
    let hold = match parameters.one("hold")? {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(other) => return Err(Parameters::refuse("hold", other, "true or false")),
    };
    let grace = match parameters.one("grace")? {
        None => Duration::ZERO,
        Some(_) if !hold => return Err(Problem::parameter("grace", "belongs to a registration with hold")),
        Some(text) => go_duration::parse(text)
            .filter(|grace| *grace <= GRACE_MAX)
            .ok_or_else(|| Parameters::refuse("grace", text, "a duration such as 5s, of at most 1h"))?,
    };
    let registration = read_registration(&site, connection.as_deref(), caller.as_ref(), &body)?;
    if hold {
        return hold::hold_registration(site, registration, grace, scope).await;
    }
    let (dialect, requires) = (registration.dialect, registration.requires.clone());
    let registered = site.registry.register(registration, Owner::Api, scope).await?;
    let required = RequiredInstances::look_up(&site, &requires);
    Ok(Json(match dialect {
        Dialect::Two => required.to_dialect_two(),
        Dialect::Native | Dialect::One => required.to_json(&registered.id, &site.name),
    })
    .into_response())
}

/// Deregisters what the body names: a URL as plain text, or a registration in JSON.
///
/// # Errors
/// 404: this node holds no such registration; it names the node that does, where one is known.
pub(super) async fn deregister_matching(
    State(site): State<Arc<Site>>,
    connection: Option<Extension<Connection>>,
    caller: Option<Extension<Caller>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let bad = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, detail);
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json =
        content_type.is_some_and(|value| value.contains("json")) || body.trim_ascii().starts_with(b"{");
    let which = if is_json {
        match named_id(&body) {
            Some(id) => Selector::Id(id),
            None => Selector::Like(Box::new(read_registration(
                &site,
                connection.as_deref(),
                caller.as_ref(),
                &body,
            )?)),
        }
    } else {
        let url = std::str::from_utf8(&body).map_err(|_| bad("the body is not UTF-8"))?.trim();
        if url.is_empty() {
            return Err(bad(
                "the body is missing: the URL that was registered, as text/plain, or the registration in JSON",
            ));
        }
        Selector::Url(url.to_owned())
    };
    deregister(&site, which, scope_of(caller.as_ref())).await
}

/// A body such as `{"id":"web-1"}` names an instance by its id alone.
fn named_id(body: &[u8]) -> Option<String> {
    let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(body) else { return None };
    let id = object.iter().find(|(key, _)| key.eq_ignore_ascii_case("id"))?.1;
    id.as_str().map(str::to_owned)
}

/// Deregisters the instance with this id.
///
/// # Errors
/// As [`deregister_matching`].
pub(super) async fn deregister_id(
    State(site): State<Arc<Site>>,
    caller: Option<Extension<Caller>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let Path(id) = id.map_err(|_| not_utf8())?;
    deregister(&site, Selector::Id(id), scope_of(caller.as_ref())).await
}

/// Deregisters the instance with this id of a service.
///
/// # Errors
/// As [`deregister_matching`].
pub(super) async fn deregister_of_service(
    State(site): State<Arc<Site>>,
    caller: Option<Extension<Caller>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let Path((service, id)) = path.map_err(|_| not_utf8())?;
    deregister(&site, Selector::ServiceAndId(service, id), scope_of(caller.as_ref())).await
}

fn not_utf8() -> Problem {
    Problem::not_found("the path is not UTF-8")
}

async fn deregister(site: &Site, which: Selector, scope: Scope) -> Result<Response, Problem> {
    let removed = site.registry.deregister(which, Owner::Api, scope).await?;
    Ok(Json(json!({ "node": site.name, "removed": removed })).into_response())
}

/// The report of a program for a `ttl` check.
#[derive(Deserialize)]
struct Report {
    status: String,
    #[serde(default)]
    output: String,
}

/// Records a report for a `ttl` check.
///
/// # Errors
/// 400 for a body that is no report, 404 for an unknown check, 409 for a check of another kind.
pub(super) async fn report(
    State(site): State<Arc<Site>>,
    caller: Option<Extension<Caller>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let Path(id) = id.map_err(|_| not_utf8())?;
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let report: Report = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("the body is no report such as {{\"status\":\"passing\"}}: {error}")))?;
    let status = match report.status.as_str() {
        "passing" => Health::Passing,
        "warning" => Health::Warning,
        "critical" => Health::Critical,
        other => {
            let shown: String = other.chars().take(64).collect();
            return Err(bad(format!("status: {shown:?} is not one of passing, warning, critical")));
        }
    };
    // The check bounds its output.
    site.registry.report(&id, status, report.output, scope_of(caller.as_ref()))?;
    Ok(Json(json!({ "id": id, "status": status.as_str() })).into_response())
}

#[derive(Deserialize)]
struct MaintenanceInput {
    enable: bool,
    #[serde(default)]
    reason: String,
}

/// Takes an instance out of service, or back in.
///
/// # Errors
/// 400 for a body without `enable`, 404 for an instance that this node does not hold.
pub(super) async fn maintenance(
    State(site): State<Arc<Site>>,
    caller: Option<Extension<Caller>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let Path(id) = id.map_err(|_| not_utf8())?;
    let input: MaintenanceInput = serde_json::from_slice(&body).map_err(|error| {
        let detail = format!("the body is not such as {{\"enable\":true,\"reason\":\"…\"}}: {error}");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })?;
    let reason = input.enable.then(|| readable_reason(&input.reason));
    site.registry.set_maintenance(&id, reason, scope_of(caller.as_ref())).await?;
    Ok(Json(json!({ "id": id, "maintenance": input.enable })).into_response())
}

/// The reason of a maintenance as it is kept: without control characters, and cut at [`REASON_CHARS_MAX`].
pub(super) fn readable_reason(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

/// Lists the registrations that this node holds.
pub(super) async fn list(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let held = site.registry.list();
    let json = RegistrationsJson {
        node: &site.name,
        maintenance: site.registry.node_maintenance().map(|maintenance| maintenance.reason),
        registrations: held.iter().map(RegistrationJson::from).collect(),
        files: site
            .registry
            .files()
            .list()
            .into_iter()
            .map(|(path, error)| FileJson { path: path.display().to_string(), error })
            .collect(),
    };
    Ok(Json(json).into_response())
}

#[derive(Serialize)]
struct RegistrationsJson<'a> {
    node: &'a str,
    /// Why the node is in maintenance, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    maintenance: Option<String>,
    registrations: Vec<RegistrationJson<'a>>,
    files: Vec<FileJson>,
}

/// A file of `--services-dir`, and why its newest version is not in effect, if it is not.
#[derive(Serialize)]
struct FileJson {
    path: String,
    error: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RegistrationJson<'a> {
    id: &'a str,
    name: &'a str,
    owner: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    maintenance: Option<&'a str>,
    /// The host that was registered.
    address: &'a str,
    port: u16,
    tags: &'a [String],
    since: String,
    requires: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updates: Option<&'a str>,
    checks: Vec<CheckJson>,
}

impl<'a> From<&'a RegistrationView> for RegistrationJson<'a> {
    fn from(view: &'a RegistrationView) -> Self {
        let registration = &view.row.registration;
        let file = match &view.owner {
            Owner::File(file) => Some(file.display().to_string()),
            Owner::Api | Owner::Connection(_) => None,
        };
        Self {
            id: &registration.id,
            name: &registration.service,
            owner: view.owner.as_str(),
            file,
            health: view.health.as_str(),
            maintenance: view.maintenance.as_ref().map(|maintenance| maintenance.reason.as_str()),
            address: &registration.local_host,
            port: registration.port,
            tags: &registration.tags,
            since: rfc3339_ms(view.row.since_ms),
            requires: registration.requires.iter().map(String::as_str).collect(),
            updates: registration.updates.as_deref(),
            checks: view.checks.iter().cloned().map(CheckJson::from).collect(),
        }
    }
}
