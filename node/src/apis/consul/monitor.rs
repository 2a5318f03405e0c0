//! `GET /v1/agent/monitor`: streams the lines of this node's log, as `consul monitor` prints them.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use hearsay_services::{
    Problem,
    http::{Effect, Parameters},
};
use tracing::Level;

use crate::{
    http::{
        guard::{caller::Caller, class::Class},
        server::{
            connection::Connection,
            stream_limit::{RETRY_AFTER_S, StreamPermit},
        },
        state::AppState,
    },
    logging::{LineFormat, LogLines, follow},
};

/// Streams the lines from now on, of the level `loglevel` (info) and above; with `logjson` as JSON. The
/// stream ends when the client reads too slowly, or the node leaves.
///
/// # Errors
/// 401 and 403: the caller has no proof of an administrator. 400 for an unknown level. 429: too many readers.
pub(super) async fn follow_log(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, Problem> {
    check_caller(&state, &request)?;
    let (mut level, mut format) = (Level::INFO, LineFormat::Text);
    for (name, value) in Parameters::pairs(request.uri().query()) {
        match name.as_ref() {
            "loglevel" if !value.is_empty() => level = read_level(&value)?,
            "logjson" if Parameters::flag(&name, &value)? => format = LineFormat::Json,
            _ => (),
        }
    }
    let permit = state.admit_stream()?;
    let Some(lines) = follow(level, format) else {
        let detail = "too many clients follow this node's log; end one of them";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(RETRY_AFTER_S));
    };
    let body = Body::from_stream(stream::unfold(Lines { lines, state, _permit: permit }, Lines::next));
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(([content_type], body).into_response())
}

/// Refuses a caller that may not administer the node. Reads need no proof by default, but the log of a node
/// says more than its answers.
fn check_caller(state: &AppState, request: &Request) -> Result<(), Problem> {
    let connection = request.extensions().get::<Connection>();
    // A member's signature is no proof of an administrator.
    let caller = Caller::of(request, connection, None, &state.access);
    // The proof of a write by GET: a web page can make a browser send this request.
    caller.check(Class::Admin, Effect::WriteByGet, &state.access)
}

fn read_level(text: &str) -> Result<Level, Problem> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "trace" => Level::TRACE,
        "debug" => Level::DEBUG,
        "info" => Level::INFO,
        "warn" | "warning" => Level::WARN,
        "err" | "error" => Level::ERROR,
        _ => return Err(Parameters::refuse("loglevel", text, "trace, debug, info, warn or err")),
    })
}

/// The lines for one client.
struct Lines {
    lines: LogLines,
    state: Arc<AppState>,
    _permit: StreamPermit,
}

impl Lines {
    async fn next(mut self) -> Option<(Result<String, Infallible>, Self)> {
        let line = tokio::select! {
            line = self.lines.next() => line?,
            () = self.state.leaving() => return None,
        };
        Some((Ok(line), self))
    }
}
