//! Registrations: `POST` and `DELETE /services`, `GET /registrations`, `PUT /checks/{id}`,
//! `PUT /services/{id}/maintenance`.
//!
//! The response body follows the dialect of the request. Success is 200, never 201: older clients compare the
//! status.

pub(crate) mod hold;
pub(crate) mod required;

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, Path, State, rejection::PathRejection},
    http::{Extensions, HeaderMap, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use hearsay_protocol::Health;
use hearsay_services::{Problem, http::Parameters};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use hearsay_services::rfc3339_ms;

use crate::{
    go_duration,
    http::{
        api::instance::CheckJson, guard::caller::Caller, server::connection::Connection, state::AppState,
    },
    registry::{
        RegistryError, RegistryStoreError, Scope, Selector,
        input::{self, RegistrationSource},
        record::{Owner, RegistrationView},
        registration::{Dialect, Registration},
    },
};
use hold::HeldRegistration;
use required::RequiredInstances;

/// Bound on `grace`: the time for which an instance is kept after its connection has closed.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// Bound on the reason of a maintenance, in characters. More is cut off.
pub(crate) const REASON_CHARS_MAX: usize = 256;

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
            RegistryError::Store(RegistryStoreError::Stopped) | RegistryError::Stopping => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            RegistryError::Limit(_) | RegistryError::Store(_) => StatusCode::INSUFFICIENT_STORAGE,
        };
        Self::new(status, error.to_string())
    }
}

/// The client of a request. Both parts are missing if the request was made inside the process.
pub(crate) struct Requester {
    connection: Option<Connection>,
    caller: Option<Caller>,
}

impl<S: Sync> FromRequestParts<S> for Requester {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

impl Requester {
    /// Returns the client of a request with these extensions.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        Self { connection: extensions.get().cloned(), caller: extensions.get().cloned() }
    }

    /// Returns the registrations that it may change.
    pub(crate) fn scope(&self) -> Scope {
        Scope::of(self.caller.as_ref().and_then(Caller::unproven_ip))
    }

    /// Returns its origin, for defaults of a registration.
    pub(crate) fn source(&self) -> RegistrationSource {
        // A request from a trusted proxy originates from its client.
        if let Some(ip) = self.caller.as_ref().and_then(Caller::ip) {
            return RegistrationSource::caller(ip);
        }
        match &self.connection {
            Some(Connection { socket: Some(credentials), .. }) => RegistrationSource::socket(credentials.uid),
            Some(Connection { peer: Some(peer), .. }) => RegistrationSource::caller(peer.ip()),
            _ => RegistrationSource::caller(IpAddr::from([127, 0, 0, 1])),
        }
    }
}

/// Reads a registration from a request body.
fn read_registration(state: &AppState, requester: &Requester, body: &[u8]) -> Result<Registration, Problem> {
    if body.is_empty() {
        let detail = "the body is missing: a registration in JSON, such as {\"name\":\"web\",\"port\":8080}";
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    let read = input::read(body, requester.source(), state.registry.suffix());
    Ok(read.map_err(RegistryError::from)?)
}

/// Registers a program; with `?hold` for as long as the connection is open.
///
/// # Errors
/// 400 names the field and the limit. 409: a file registers the program. 507: a limit of the node or the
/// cluster is reached, or the disk is full. Nothing was registered.
pub(crate) async fn register(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["hold", "grace"])?;
    let scope = requester.scope();
    let hold = match parameters.single("hold")? {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(other) => return Err(Parameters::refuse("hold", other, "true or false")),
    };
    let grace = match parameters.single("grace")? {
        None => Duration::ZERO,
        Some(_) if !hold => {
            return Err(Problem::parameter(
                "grace",
                "needs hold: without it the registration does not end with the connection",
            ));
        }
        Some(text) => parse_grace(text)?,
    };
    let registration = read_registration(&state, &requester, &body)?;
    if hold {
        let held = HeldRegistration::begin(state, registration, grace, scope).await?;
        return Ok(held.into_events());
    }
    let (dialect, requires) = (registration.dialect, registration.requires.clone());
    let registered = state.registry.register(registration, Owner::Api, scope).await?;
    let required = RequiredInstances::look_up(&state, &requires);
    Ok(Json(match dialect {
        Dialect::NameAddr => required.to_dialect_two(),
        Dialect::Native | Dialect::ServiceUrl => required.to_json(&registered.id, &state.name),
    })
    .into_response())
}

/// Parses the time for which an instance is kept after its connection has closed.
///
/// # Errors
/// 400: it is no duration, or exceeds its limit.
pub(crate) fn parse_grace(text: &str) -> Result<Duration, Problem> {
    go_duration::parse(text)
        .filter(|grace| *grace <= GRACE_MAX)
        .ok_or_else(|| Parameters::refuse("grace", text, "a duration such as 5s, of at most 1h"))
}

/// Deregisters the instance that the body names: a URL as plain text, or a registration in JSON.
///
/// # Errors
/// 404: this node holds no such registration. The error names the holder, if it is known.
pub(crate) async fn deregister_matching(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let bad = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, detail);
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json =
        content_type.is_some_and(|value| value.contains("json")) || body.trim_ascii().starts_with(b"{");
    let selector = if is_json {
        match named_id(&body) {
            Some(id) => Selector::Id(id),
            None => Selector::Like(Box::new(read_registration(&state, &requester, &body)?)),
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
    deregister(&state, selector, requester.scope()).await
}

/// Returns the id in a body such as `{"id":"web-1"}`.
fn named_id(body: &[u8]) -> Option<String> {
    let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(body) else { return None };
    let id = object.iter().find(|(key, _)| key.eq_ignore_ascii_case("id"))?.1;
    id.as_str().map(str::to_owned)
}

/// Deregisters the instance with this id.
///
/// # Errors
/// As [`deregister_matching`].
pub(crate) async fn deregister_id(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let Path(id) = id.map_err(|_| not_utf8())?;
    deregister(&state, Selector::Id(id), requester.scope()).await
}

/// Deregisters the instance with this id of a service.
///
/// # Errors
/// As [`deregister_matching`].
pub(crate) async fn deregister_of_service(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let Path((service, id)) = path.map_err(|_| not_utf8())?;
    deregister(&state, Selector::ServiceAndId(service, id), requester.scope()).await
}

fn not_utf8() -> Problem {
    Problem::not_found("the path is not UTF-8")
}

async fn deregister(state: &AppState, selector: Selector, scope: Scope) -> Result<Response, Problem> {
    let removed = state.registry.deregister(selector, Owner::Api, scope).await?;
    Ok(Json(json!({ "node": state.name, "removed": removed })).into_response())
}

/// A program's report for a `ttl` check.
#[derive(Deserialize)]
struct Report {
    status: String,
    #[serde(default)]
    output: String,
}

/// Records a report for a `ttl` check.
///
/// # Errors
/// 400: the body is no report. 404: unknown check. 409: the check is of another kind.
pub(crate) async fn report(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let Path(id) = id.map_err(|_| not_utf8())?;
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let report: Report = serde_json::from_slice(&body).map_err(|error| {
        bad(format!("the body is not a report such as {{\"status\":\"passing\"}}: {error}"))
    })?;
    let status = parse_status("status", &report.status)?;
    // The check bounds the output.
    state.registry.report(&id, status, report.output, requester.scope())?;
    Ok(Json(json!({ "id": id, "status": status.as_str() })).into_response())
}

/// Returns the status in a report. `field` names it in the error.
///
/// # Errors
/// 400: it is no status that a program can report.
pub(crate) fn parse_status(field: &str, status: &str) -> Result<Health, Problem> {
    match status {
        "passing" => Ok(Health::Passing),
        "warning" => Ok(Health::Warning),
        "critical" => Ok(Health::Critical),
        other => {
            let quoted: String = other.chars().take(64).collect();
            let detail = format!("{field}: {quoted:?} is not one of passing, warning, critical");
            Err(Problem::new(StatusCode::BAD_REQUEST, detail))
        }
    }
}

#[derive(Deserialize)]
struct MaintenanceInput {
    enable: bool,
    #[serde(default)]
    reason: String,
}

/// Begins or ends the maintenance of an instance.
///
/// # Errors
/// 400: the body has no `enable`. 404: this node does not hold the instance.
pub(crate) async fn maintenance(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let Path(id) = id.map_err(|_| not_utf8())?;
    let input: MaintenanceInput = serde_json::from_slice(&body).map_err(|error| {
        let detail =
            format!("the body is not an object such as {{\"enable\":true,\"reason\":\"…\"}}: {error}");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })?;
    let reason = input.enable.then(|| readable_reason(&input.reason));
    state.registry.set_maintenance(&id, reason, requester.scope()).await?;
    Ok(Json(json!({ "id": id, "maintenance": input.enable })).into_response())
}

/// Returns the reason of a maintenance without control characters, cut at [`REASON_CHARS_MAX`].
pub(crate) fn readable_reason(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

/// Lists the registrations that this node holds.
pub(crate) async fn list(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let held = state.registry.list();
    let json = RegistrationsJson {
        node: &state.name,
        maintenance: state.registry.node_maintenance().map(|maintenance| maintenance.reason),
        registrations: held.iter().map(RegistrationJson::from).collect(),
        files: state
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
    /// Reason of the node's maintenance; `None` if it is in service.
    #[serde(skip_serializing_if = "Option::is_none")]
    maintenance: Option<String>,
    registrations: Vec<RegistrationJson<'a>>,
    files: Vec<FileJson>,
}

/// A file of `--services-dir`, and the error in its newest version.
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
    /// The registered host.
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
