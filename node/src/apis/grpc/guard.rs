//! Guard of gRPC: the class of each method, and whether the caller has the proof that it needs.
//!
//! The rules are those of HTTP: a write needs the proof of its class, and with `--private` a read needs one,
//! too. Host and origin are not checked: a browser cannot send these requests, because it speaks HTTP/2 only
//! over TLS.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use hearsay_services::{Problem, http::Effect};
use tonic::{Code, Status};

use super::request_body::{EarlyEnd, RequestBody, Requests};
use crate::http::{
    guard::{caller::Caller, class::Class},
    server::connection::Connection,
    state::AppState,
};

/// Methods that only read. A path that ends with a slash stands for all methods of a service.
const READS: &[&str] = &[
    "/hearsay.v1.Discovery/List",
    "/hearsay.v1.Discovery/Get",
    "/hearsay.v1.Discovery/Watch",
    "/hearsay.v1.Discovery/Members",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];
/// Methods that write registrations and checks.
const REGISTRY_WRITES: &[&str] = &["/hearsay.v1.Discovery/Register", "/hearsay.v1.Discovery/ReportCheck"];
/// Methods that take a stream of messages; all others take one message.
const TAKE_STREAMS: &[&str] = &[
    "/hearsay.v1.Discovery/Register",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];
/// Characters of a status message. It is sent as a header field, which takes up to twelve bytes for each
/// character, and clients based on gRPC's core refuse responses with headers of more than 8 KiB.
const MESSAGE_CHARS_MAX: usize = 512;
/// Label of all methods that are not in the tables.
const UNKNOWN: &str = "unknown";

/// Returns the entry of a table that stands for a path.
fn entry(table: &[&'static str], path: &str) -> Option<&'static str> {
    let stands_for =
        |known: &&'static str| path == *known || known.ends_with('/') && path.starts_with(*known);
    table.iter().copied().find(stands_for)
}

/// Returns the class and the effect of a method; `None`: it is in no table. Such a method is refused, so that
/// one that is added later is never open by mistake.
fn class_of(path: &str) -> Option<(Class, Effect)> {
    if entry(READS, path).is_some() {
        Some((Class::Registry, Effect::Read))
    } else if entry(REGISTRY_WRITES, path).is_some() {
        Some((Class::Registry, Effect::Write))
    } else {
        None
    }
}

/// Returns the label of a method in metrics. The number of labels is bounded.
pub(super) fn method_label(path: &str) -> &'static str {
    entry(READS, path).or_else(|| entry(REGISTRY_WRITES, path)).unwrap_or(UNKNOWN)
}

/// Whether a path is a method of reflection, which is a stream without an end of its own.
pub(super) fn is_reflection(path: &str) -> bool {
    path.starts_with("/grpc.reflection.")
}

/// Returns the number of messages that a method takes.
fn requests_of(path: &str) -> Requests {
    if entry(TAKE_STREAMS, path).is_some() { Requests::Stream } else { Requests::One }
}

/// Passes a call whose caller may make it. The call gets the extension [`Caller`].
pub(super) async fn pass(State(state): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let access = &state.access;
    let Some((class, effect)) = class_of(request.uri().path()) else {
        return Status::unimplemented("this node does not serve this method").into_http::<Body>();
    };
    let caller = Caller::of(&request, request.extensions().get::<Connection>(), None, access);
    if let Err(problem) = caller.check(class, effect, access) {
        state.metrics.http.refused("token");
        return status_of(&problem).into_http::<Body>();
    }
    request.extensions_mut().insert(caller);
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
    let early_end = request.extensions().get::<EarlyEnd>().cloned().unwrap_or_default();
    let requests = requests_of(request.uri().path());
    let context = (Arc::clone(&state.metrics), early_end);
    next.run(request.map(|body| RequestBody::bound(body, requests, &connection, context))).await
}

/// Returns the status for a problem, by the table of `google.rpc.Code`.
pub(crate) fn status_of(problem: &Problem) -> Status {
    let code = match problem.status().as_u16() {
        400 | 411 | 413 | 415 | 422 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        409 => Code::FailedPrecondition,
        429 | 507 => Code::ResourceExhausted,
        501 => Code::Unimplemented,
        503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    status(code, problem.detail())
}

/// Returns a status with a message, which is cut if it is long. Messages name values of the client.
pub(super) fn status(code: Code, message: &str) -> Status {
    match message.char_indices().nth(MESSAGE_CHARS_MAX) {
        None => Status::new(code, message),
        Some((end, _)) => Status::new(code, format!("{}…", &message[..end])),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::apis::grpc::reflection::DESCRIPTORS;

    #[test]
    fn every_method_has_a_class() {
        let mut methods = Vec::new();
        for descriptors in DESCRIPTORS {
            for file in FileDescriptorSet::decode(*descriptors).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        let takes = if method.client_streaming() { Requests::Stream } else { Requests::One };
                        assert_eq!(requests_of(&path), takes, "{path}");
                        methods.push(path);
                    }
                }
            }
        }
        assert!(methods.len() >= 10, "{methods:?}");
        for method in &methods {
            let is_write =
                ["/hearsay.v1.Discovery/Register", "/hearsay.v1.Discovery/ReportCheck"].contains(&&**method);
            let effect = if is_write { Effect::Write } else { Effect::Read };
            assert_eq!(class_of(method), Some((Class::Registry, effect)), "{method}");
        }
        for table in [READS, REGISTRY_WRITES] {
            let ours = |known: &&&str| known.starts_with("/hearsay.") || known.starts_with("/grpc.");
            for known in table.iter().filter(ours) {
                assert!(
                    methods.iter().any(|method| entry(&[known], method).is_some()),
                    "{known} is no method"
                );
            }
        }
        assert_eq!(class_of("/hearsay.v1.Discovery/Listen"), None);
        assert_eq!(class_of("/hearsay.v1.Discovery/"), None);
        assert_eq!(method_label("/x.Y/Z"), UNKNOWN);
    }

    #[test]
    fn a_long_message_is_cut() {
        let long = Problem::not_found("ü".repeat(100_000));
        let message = status_of(&long).message().to_owned();
        assert_eq!(message.chars().count(), MESSAGE_CHARS_MAX + 1);
        assert_eq!(status_of(&Problem::not_found("short")).message(), "short");
    }

    #[test]
    fn a_problem_has_the_code_that_clients_expect() {
        let code = |status| status_of(&Problem::new(StatusCode::from_u16(status).unwrap(), "x")).code();
        for (status, expected) in [
            (400, Code::InvalidArgument),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::NotFound),
            (409, Code::FailedPrecondition),
            (429, Code::ResourceExhausted),
            (503, Code::Unavailable),
            (507, Code::ResourceExhausted),
        ] {
            assert_eq!(code(status), expected, "{status}");
        }
    }
}
