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

use crate::http::{
    AppState,
    guard::{caller::Caller, class::Class},
    server::connection::Connection,
};

/// Methods that only read. A path that ends with a slash stands for all methods of a service.
const READS: [&str; 1] = ["/envoy.service.discovery.v3.AggregatedDiscoveryService/"];
/// Methods that write registrations and checks.
const REGISTRY_WRITES: [&str; 0] = [];

/// Returns the class and the effect of a method. An unknown method is a write of the class admin, so that one
/// that is added later is never open by mistake.
fn class_of(path: &str) -> (Class, Effect) {
    let is_read = |known: &&str| path == *known || known.ends_with('/') && path.starts_with(*known);
    if READS.iter().any(is_read) {
        (Class::Registry, Effect::Read)
    } else if REGISTRY_WRITES.contains(&path) {
        (Class::Registry, Effect::Write)
    } else {
        (Class::Admin, Effect::Write)
    }
}

/// Passes a call whose caller may make it. The call gets the extension [`Caller`].
pub(super) async fn pass(State(state): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let access = &state.access;
    let (class, effect) = class_of(request.uri().path());
    let caller = Caller::of(&request, request.extensions().get::<Connection>(), None, access);
    if let Err(problem) = caller.check(class, effect, access) {
        state.metrics.http.refused("token");
        return status_of(&problem).into_http::<Body>();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Returns the status for a problem, by the table of `google.rpc.Code`.
pub(crate) fn status_of(problem: &Problem) -> Status {
    let code = match problem.status().as_u16() {
        400 | 411 | 413 | 415 | 422 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        409 => Code::FailedPrecondition,
        429 => Code::ResourceExhausted,
        501 => Code::Unimplemented,
        503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    Status::new(code, problem.detail())
}
