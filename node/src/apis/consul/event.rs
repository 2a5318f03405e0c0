//! `/v1/event`: fires user events, and lists those that this node received.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearsay_protocol::{
    FireRefusal,
    wire::{EVENT_PAYLOAD_BYTES_MAX, UserEvent, UserEventContent},
};
use hearsay_services::{Problem, http::Parameters};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{
    answer::{indexed, json},
    fields::OF_EVENTS,
    lookup::filtered,
    query::Query,
};
use crate::{
    driver_command::DriverCommand,
    http::{api::blocking_query::Wait, state::AppState},
    user_events::compile_filters,
};

/// Version of the event's form, as Consul answers it.
const VERSION: u64 = 1;
/// Parameters with filters, in the order of [`compile_filters`].
const FILTERS: [&str; 3] = ["node", "service", "tag"];

/// A user event, as Consul answers it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EventJson<'a> {
    #[serde(rename = "ID")]
    id: String,
    name: &'a str,
    /// In base64; `None` without a payload.
    payload: Option<String>,
    node_filter: &'a str,
    service_filter: &'a str,
    tag_filter: &'a str,
    version: u64,
    #[serde(rename = "LTime")]
    lamport: u64,
}

impl<'a> From<&'a UserEvent> for EventJson<'a> {
    fn from(event: &'a UserEvent) -> Self {
        let content = &event.claim.content;
        Self {
            id: event.id().to_string(),
            name: &content.name,
            payload: (!content.payload.is_empty()).then(|| STANDARD.encode(&content.payload)),
            node_filter: &content.node_filter,
            service_filter: &content.service_filter,
            tag_filter: &content.tag_filter,
            version: VERSION,
            lamport: event.claim.lamport,
        }
    }
}

/// `PUT` or `POST /v1/event/fire/{name}?node=&service=&tag=`; the body is the payload.
///
/// # Errors
/// 400 names the parameter and the limit. 413: the payload is too large. 429: this node fires too many. No
/// node lists the event.
pub(super) async fn fire(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    if body.len() > EVENT_PAYLOAD_BYTES_MAX {
        let detail = format!("payload: at most {EVENT_PAYLOAD_BYTES_MAX} bytes, this one has {}", body.len());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let mut content = UserEventContent { name, payload: body.to_vec(), ..UserEventContent::default() };
    for (parameter, value) in Parameters::pairs(uri.query()) {
        match parameter.as_ref() {
            "node" => content.node_filter = value.into_owned(),
            "service" => content.service_filter = value.into_owned(),
            "tag" => content.tag_filter = value.into_owned(),
            _ => (),
        }
    }
    content.check().map_err(|invalid| Problem::new(StatusCode::BAD_REQUEST, invalid.to_string()))?;
    let filters = [&*content.node_filter, &content.service_filter, &content.tag_filter];
    if let Err((number, error)) = compile_filters(filters) {
        let problem = format!("is no regular expression that a node takes: {error}");
        return Err(Problem::parameter(FILTERS[number], problem));
    }
    let (answer, answered) = oneshot::channel();
    let stopping = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the node is already stopping");
    let command = DriverCommand::FireUserEvent(Box::new(content), answer);
    state.driver.send(command).await.map_err(|_| stopping())?;
    match answered.await.map_err(|_| stopping())? {
        Ok(event) => Ok(json(&query, &EventJson::from(&*event))),
        Err(refusal) => {
            let status = match refusal {
                FireRefusal::Invalid(_) => StatusCode::BAD_REQUEST,
                FireRefusal::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
                FireRefusal::Left => StatusCode::SERVICE_UNAVAILABLE,
            };
            Err(Problem::new(status, refusal.to_string()))
        }
    }
}

/// `GET /v1/event/list?name=`: the newest events that were fired since this node's start and whose filters
/// accept it. A query with the index of the newest one waits for the next.
///
/// # Errors
/// 400 for a filter that cannot be parsed. 429: too many requests wait.
pub(super) async fn list(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let mut names = Parameters::pairs(uri.query()).filter(|(parameter, _)| parameter == "name");
    let name = names.next().map(|(_, name)| name.into_owned()).filter(|name| !name.is_empty());
    let filter = query.filter(&OF_EVENTS)?;
    let events = &state.user_events;
    state.started().await;
    if let Some(seen) = query.index {
        let wait = Wait::new(query.index, query.wait);
        wait.until_changed(&state, events.subscribe(), || events.index(name.as_deref()) != seen.0).await?;
    }
    let listed = events.list(name.as_deref());
    let index = listed.last().map_or(1, |newest| newest.id().index());
    let listed = filtered(filter.as_ref(), listed.iter().map(|event| EventJson::from(&**event)));
    Ok(indexed(&query, index, &listed))
}
