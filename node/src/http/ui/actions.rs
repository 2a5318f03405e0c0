//! What the forms of a service's page do: deregister an instance of this node, take it out of service, take it back in.
//!
//! The guard has seen to it that such a form comes from a page of this node and from this machine. What is done is answered with 303, so
//! that loading the page again does not do it again; what cannot be done is said on the page.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, parameters::Parameters};

use super::{
    super::{registry::readable_reason, site::Site},
    note::{Done, Note},
    service, service_link,
};
use crate::registry::{RegistryError, Scope, Selector, record::Owner};

/// A field of a form that must be there.
fn field<'a>(form: &'a Parameters<'_>, name: &str) -> Result<&'a str, Problem> {
    form.one(name)?.ok_or_else(|| Problem::parameter(name, "the form lacks this field; load the page again"))
}

fn text_of(body: &Bytes) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the form is not UTF-8"))
}

/// Deregisters an instance.
///
/// # Errors
/// 400 for a form that lacks a field. What the registry refuses is answered with the page.
pub(in super::super) async fn deregister(
    State(site): State<Arc<Site>>,
    body: Bytes,
) -> Result<Response, Problem> {
    let form = Parameters::read(Some(text_of(&body)?), &["service", "id"])?;
    let (service, id) = (field(&form, "service")?, field(&form, "id")?);
    let which = Selector::ServiceAndId(service.to_owned(), id.to_owned());
    let done = site.registry.deregister(which, Owner::Api, Scope::All).await;
    Ok(answer(&site, service, done.map(|_| Done::Deregistered)))
}

/// Takes an instance out of service, or back in.
///
/// # Errors
/// As [`deregister`].
pub(in super::super) async fn maintenance(
    State(site): State<Arc<Site>>,
    body: Bytes,
) -> Result<Response, Problem> {
    let form = Parameters::read(Some(text_of(&body)?), &["service", "id", "enable", "reason"])?;
    let (service, id) = (field(&form, "service")?, field(&form, "id")?);
    let enable = match field(&form, "enable")? {
        "true" => true,
        "false" => false,
        other => return Err(Parameters::refuse("enable", other, "true or false")),
    };
    let reason = form.one("reason")?.unwrap_or_default().trim();
    let reason = enable.then(|| readable_reason(reason));
    let done = site.registry.set_maintenance(id, reason, Scope::All).await;
    Ok(answer(&site, service, done.map(|()| if enable { Done::Drained } else { Done::Undone })))
}

/// Leads to the page of the service, or shows it with the reason why nothing was done.
fn answer(site: &Site, service: &str, done: Result<Done, RegistryError>) -> Response {
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            let problem = Problem::from(error);
            let text = format!("Nothing was changed: {}.", problem.detail());
            // The guard lets no form pass that is not from this machine.
            return service::answer(site, service, true, Some(Note::refused(problem.status(), text)));
        }
    };
    let page = service_link(service).map(|page| format!("{page}?done={}", done.as_str()));
    let page = page.unwrap_or_else(|| "/ui/services".to_owned());
    match HeaderValue::from_str(&page) {
        Ok(page) => (StatusCode::SEE_OTHER, [(header::LOCATION, page)]).into_response(),
        Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}
