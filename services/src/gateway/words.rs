//! What the gateway says itself, where no instance has answered.

use http::{HeaderValue, Response, StatusCode, header};

use super::{
    body::{Answer, Upload},
    counters::Reason,
    pool::ConnectError,
    request::Refusal,
    routes::Group,
    target::Target,
};
use crate::{Problem, problem};

/// The methods in `Allow`, where one is not passed on.
const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// There is no such service.
pub fn unknown(path: &str) -> Refusal {
    let first = path.split('/').nth(1).unwrap_or_default();
    let first: String = first.chars().take(128).collect();
    let detail = format!(
        "no service is called {first:?} and none announces a prefix of this path; GET /services on a node lists them all"
    );
    (Reason::Unknown, Problem::not_found(detail))
}

/// The service is a role of nodes, and the path is none of the role's. A node answers more than its roles,
/// and that is not passed on.
pub fn not_of_role(path: &str) -> Refusal {
    let path: String = path.chars().take(128).collect();
    let detail = format!(
        "{path:?} is no path of this role; the gateway passes on what is below the role's own prefixes"
    );
    (Reason::Unknown, Problem::not_found(detail))
}

/// There is, and nobody of it can be asked.
pub fn nobody(group: &Group) -> Refusal {
    let detail = match (group.unusable, group.gone_ms) {
        (0, Some(_)) => "every instance of this service has gone; try again".to_owned(),
        (0, None) => "this service has no instance that could be asked".to_owned(),
        (n, _) => format!(
            "this service has {n} instances, to none of which anything can be sent; GET /gateway says why"
        ),
    };
    (Reason::Unreachable, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
}

/// The last instance that was asked could not be reached.
pub fn not_opened(target: &Target, why: &ConnectError) -> Refusal {
    match why {
        ConnectError::Refused(why) => {
            let detail = format!("no instance could be reached; {} last: {why}", target.id);
            (Reason::Unreachable, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        }
        ConnectError::TimedOut => {
            let detail =
                format!("no instance could be reached; {} last: it did not answer in time", target.id);
            (Reason::AnswerTime, Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
        }
    }
}

/// The client's body is at fault.
pub fn bad_upload(upload: Upload) -> Refusal {
    let (status, detail) = match upload {
        Upload::Stalled => (StatusCode::REQUEST_TIMEOUT, "the body of the request took too long to arrive"),
        Upload::Fine | Upload::Broken => {
            (StatusCode::BAD_REQUEST, "the body of the request is malformed or incomplete")
        }
    };
    (Reason::BodyTime, Problem::new(status, detail))
}

/// An error with what lies below it.
pub fn told(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What the gateway says itself.
pub fn own_words(problem: &Problem) -> Response<Answer> {
    let mut response = Response::new(Answer::Words(problem.to_json().into()));
    *response.status_mut() = problem.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    match problem.status() {
        StatusCode::SERVICE_UNAVAILABLE => {
            _ = headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"))
        }
        StatusCode::UNAUTHORIZED => {
            _ = headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
        }
        StatusCode::METHOD_NOT_ALLOWED => _ = headers.insert(header::ALLOW, ALLOWED),
        // What follows on this connection may be what was smuggled.
        StatusCode::BAD_REQUEST => _ = headers.insert(header::CONNECTION, HeaderValue::from_static("close")),
        _ => (),
    }
    response
}
