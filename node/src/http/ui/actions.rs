//! Handlers that receive the forms of a service's page: they deregister an instance of this node, or begin or
//! end its maintenance.
//!
//! The guard lets such a form pass only from a page of this node, and from this machine or with a session.
//! Success is answered with 303, so that a reload does not repeat the action. An error is shown on the page.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, http::Parameters};

use crate::{
    http::{
        api::registrations::readable_reason,
        state::AppState,
        ui::{
            notice::{Done, Notice},
            parts::service_link,
            service,
        },
    },
    registry::{RegistryError, Scope, Selector, record::Owner},
};

/// Returns a required field of a form.
fn field<'a>(form: &'a Parameters<'_>, name: &str) -> Result<&'a str, Problem> {
    form.single(name)?.ok_or_else(|| Problem::parameter(name, "the form has no such field; reload the page"))
}

/// Returns the body of a form as text.
fn text_of(body: &Bytes) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the form is not UTF-8"))
}

/// Deregisters an instance.
///
/// # Errors
/// 400: the form has no such field. Refusals of the registry are shown on the page.
pub(crate) async fn deregister(State(state): State<Arc<AppState>>, body: Bytes) -> Result<Response, Problem> {
    let form = Parameters::read(Some(text_of(&body)?), &["service", "id"])?;
    let (service, id) = (field(&form, "service")?, field(&form, "id")?);
    let selector = Selector::ServiceAndId(service.to_owned(), id.to_owned());
    let done = state.registry.deregister(selector, Owner::Api, Scope::All).await;
    Ok(answer(&state, service, done.map(|_| Done::Deregistered)))
}

/// Begins or ends the maintenance of an instance.
///
/// # Errors
/// As [`deregister`].
pub(crate) async fn maintenance(
    State(state): State<Arc<AppState>>,
    body: Bytes,
) -> Result<Response, Problem> {
    let form = Parameters::read(Some(text_of(&body)?), &["service", "id", "enable", "reason"])?;
    let (service, id) = (field(&form, "service")?, field(&form, "id")?);
    let enable = match field(&form, "enable")? {
        "true" => true,
        "false" => false,
        other => return Err(Parameters::refuse("enable", other, "true or false")),
    };
    let reason = form.single("reason")?.unwrap_or_default().trim();
    let reason = enable.then(|| readable_reason(reason));
    let done = state.registry.set_maintenance(id, reason, Scope::All).await;
    Ok(answer(&state, service, done.map(|()| if enable { Done::Drained } else { Done::Undone })))
}

/// Redirects to the page of the service, or answers with the page and the reason for the refusal.
fn answer(state: &AppState, service: &str, done: Result<Done, RegistryError>) -> Response {
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            let problem = Problem::from(error);
            let text = format!("Nothing was changed: {}.", problem.detail());
            // A form that has passed the guard may change registrations.
            return service::answer(state, service, true, Some(Notice::refused(problem.status(), text)));
        }
    };
    let page = service_link(service).map(|page| format!("{page}?done={}", done.as_str()));
    let page = page.unwrap_or_else(|| "/ui/services".to_owned());
    match HeaderValue::from_str(&page) {
        Ok(page) => (StatusCode::SEE_OTHER, [(header::LOCATION, page)]).into_response(),
        Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}
