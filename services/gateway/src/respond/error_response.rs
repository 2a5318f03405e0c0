//! Error responses of the gateway: problems for requests to which no endpoint has responded.

use hearsay_services::{Problem, http::PROBLEM_CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode, header};

use crate::{
    forward::response_body::ResponseBody,
    refusal::{Reason, Refusal},
    routing::routes::Group,
    upstream::{connect::ConnectError, endpoint::Endpoint},
};

/// The value of `Allow` in a 405.
const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// Returns 404: no route covers the path.
pub(crate) fn unknown_service(path: &str) -> Refusal {
    let name: String = path.split('/').nth(1).unwrap_or_default().chars().take(128).collect();
    let detail = format!(
        "no service is called {name:?} and none announces a prefix of this path; GET /services on a node lists them all"
    );
    (Reason::Unknown, Problem::not_found(detail))
}

/// Returns 404: the service is a role, and the path is none of the role's.
pub(crate) fn path_not_served(path: &str) -> Refusal {
    let path: String = path.chars().take(128).collect();
    let detail = format!(
        "{path:?} is no path of this role; the gateway forwards what is below the role's own prefixes"
    );
    (Reason::Unknown, Problem::not_found(detail))
}

/// Returns 503: the service exists but has no usable instance.
pub(crate) fn no_instance(group: &Group) -> Refusal {
    let detail = match (group.unusable, group.gone_ms) {
        (0, Some(_)) => "every instance of this service has gone; try again".to_owned(),
        (0, None) => "this service has no instance that could respond".to_owned(),
        (n, _) => format!("this service has {n} instances, none of which is usable; GET /gateway says why"),
    };
    (Reason::Unreachable, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
}

/// Returns 503 or 504: no endpoint could be reached, and `endpoint` was the last one tried.
pub(crate) fn not_connected(endpoint: &Endpoint, error: &ConnectError) -> Refusal {
    let id = &endpoint.id;
    match error {
        ConnectError::Refused(error) => {
            let detail = format!("no instance could be reached; {id} last: {error}");
            (Reason::Unreachable, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        }
        ConnectError::TimedOut => {
            let detail = format!("no instance could be reached; {id} last: it did not answer in time");
            (Reason::AnswerTime, Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
        }
    }
}

/// Returns the response for a problem.
pub(crate) fn error_response(problem: &Problem) -> Response<ResponseBody> {
    if let Some(page) = problem.page() {
        let mut response = Response::new(ResponseBody::Own(Default::default()));
        *response.status_mut() = StatusCode::SEE_OTHER;
        response.headers_mut().insert(header::LOCATION, page.clone());
        return response;
    }
    let mut response = Response::new(ResponseBody::Own(problem.to_json().into()));
    *response.status_mut() = problem.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
    let special = match problem.status() {
        StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, HeaderValue::from_static("1"))),
        StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        StatusCode::METHOD_NOT_ALLOWED => Some((header::ALLOW, ALLOWED)),
        // The following bytes of the connection may be a smuggled request.
        StatusCode::BAD_REQUEST => Some((header::CONNECTION, HeaderValue::from_static("close"))),
        _ => None,
    };
    headers.extend(special);
    response
}
