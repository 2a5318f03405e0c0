//! `POST /mcp`: the streamable HTTP of the protocol, without sessions.
//!
//! Each message is answered by itself, in JSON. So a client makes nothing grow in the node: there is no
//! session that must expire, and no event stream. `GET` and `DELETE`, which belong to sessions, are answered
//! with 405, as the protocol allows.
//!
//! A tool's request enters the node's router again for the client ([`InnerClient`]). So the guard, the
//! classes of writes and `--private` hold as for HTTP. With `--private` the messages that make no request,
//! such as `initialize`, need the proof of a read, too. Tools that change something need the API token
//! besides: a client of this machine may be an agent that follows a text.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hearsay_services::{
    Problem,
    http::{Effect, Parameters},
    network::Holder,
};
use http_body_util::Full;
use rmcp::transport::{
    StreamableHttpServerConfig, StreamableHttpService,
    streamable_http_server::session::never::NeverSessionManager,
};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    backend::{Backend, ToolAnswer, ToolError, ToolRequest},
    envelope::{self, BadMessage},
    server::McpServer,
};
use crate::http::{
    guard::{caller::Caller, class::Class},
    reentry::{InnerClient, InnerRequest},
    server::connection::{Connection, HOLDER},
    state::AppState,
};

/// Size of a message. Tools have short arguments.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Size of an answer that a tool reads: about 30,000 instances at half a kilobyte each. Guess.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Memory that an answer takes as a tree of values, relative to its text. Estimate: an object of twenty
/// members takes 3 kB, its text 500 bytes.
const TREE_FACTOR: usize = 7;
/// Smaller answers are not charged to the response budget, as smaller responses are not.
const SMALL_BYTES: usize = 32 * 1024;
/// Size of an error of rmcp in plain text.
const TEXT_BYTES_MAX: usize = 4096;
/// Why tools that change something are refused.
const NO_TOKEN: &str = "this tool changes the cluster, and over /mcp such tools need the API token of the node, from its own machine too: \
    ask the user to configure `Authorization: Bearer …` for this server (the token is in the file api-token of the node's data directory), \
    or to run `node drain` or `node deregister`";

/// Answers a message of the protocol.
///
/// # Errors
/// 400: the path has no parameters. 401, 403: the node is private, and the client may not read it. 413: the
/// message is too large.
pub(crate) async fn answer(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, Problem> {
    Parameters::read(request.uri().query(), &[])?;
    let caller = Caller::of(&request, request.extensions().get::<Connection>(), None, &state.access);
    if let Err(problem) = caller.check(Class::Registry, Effect::Read, &state.access) {
        state.metrics.http.refused("token");
        return Ok(refuse_stranger(problem));
    }
    let (head, body) = request.into_parts();
    let Some(client) = InnerClient::of(&head) else {
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "this path cannot reach the others"));
    };
    // The body was read before, so an error can only be its size.
    let Ok(body) = to_bytes(body, MESSAGE_BYTES_MAX).await else {
        state.metrics.http.refused("body_size");
        let detail = format!(
            "the message is larger than {MESSAGE_BYTES_MAX} bytes, the limit of /mcp; shorten its arguments"
        );
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    };
    let id = match envelope::id_of(&body) {
        Ok(id) => id,
        Err(bad) => return Ok(refuse(bad)),
    };
    let node = OwnNode {
        client,
        holder: HOLDER.try_with(|holder| *holder).ok(),
        has_token: caller.has_token(),
        state,
        charges: Arc::default(),
    };
    let service = transport(McpServer::new(node));
    let is_json = is_json(&head.headers);
    let response = service.handle(Request::from_parts(head, Full::new(body))).await.map(Body::new);
    if is_json && response.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        return Ok(refuse(envelope::unread(id)));
    }
    if response.status().is_client_error() && !response.headers().contains_key(header::CONTENT_TYPE) {
        return Err(problem_of(response).await);
    }
    Ok(response)
}

/// Returns the transport of a server: without sessions, and without event streams.
pub(super) fn transport<B: Backend>(
    server: McpServer<B>,
) -> StreamableHttpService<McpServer<B>, NeverSessionManager> {
    // The guard has checked Host and Origin by the names of this node.
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .with_sse_keep_alive(None)
        .with_max_request_body_bytes(MESSAGE_BYTES_MAX)
        .disable_allowed_hosts()
        .disable_allowed_origins();
    let sessions = Arc::new(NeverSessionManager::default());
    StreamableHttpService::new(move || Ok(server.clone()), sessions, config)
}

/// Returns the refusal of a client that may not read this node, in the form of the guard's.
fn refuse_stranger(problem: Problem) -> Response {
    let is_unproven = problem.status() == StatusCode::UNAUTHORIZED;
    let mut response = problem.into_response();
    if is_unproven {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Returns an error of rmcp in plain text, such as 406, as a problem.
async fn problem_of(plain: Response) -> Problem {
    let status = plain.status();
    let text = to_bytes(plain.into_body(), TEXT_BYTES_MAX).await.unwrap_or_default();
    Problem::new(status, String::from_utf8_lossy(&text))
}

/// Returns the response to a body that is no message. The protocol leaves out an id that is not read.
fn refuse(bad: BadMessage) -> Response {
    let BadMessage { code, id, detail } = bad;
    let mut error = json!({ "jsonrpc": "2.0", "error": { "code": code, "message": detail } });
    if let Some(id) = id {
        error["id"] = json!(id);
    }
    (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/json")], error.to_string()).into_response()
}

/// Whether rmcp takes the content type for JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// Backend of the tools: this node, for the client of a request.
#[derive(Clone, Debug)]
struct OwnNode {
    client: InnerClient,
    /// Host of the connection. Tools run in a task of their own, which does not inherit it.
    holder: Option<Holder>,
    has_token: bool,
    state: Arc<AppState>,
    /// Memory of large answers, until the call ends.
    charges: Arc<Mutex<Vec<OwnedSemaphorePermit>>>,
}

impl OwnNode {
    /// Charges the memory of an answer to the response budget.
    ///
    /// # Errors
    /// The budget has too little left.
    fn charge(&self, bytes: usize) -> Result<(), ToolError> {
        if bytes <= SMALL_BYTES {
            return Ok(());
        }
        let Some(permit) = self.state.response_budget.acquire(bytes.saturating_mul(TREE_FACTOR)) else {
            self.state.metrics.http.refused("answers");
            let detail = "this node has no memory left for a large answer; try again in a second, or ask for less with a filter";
            return Err(ToolError {
                status: Some(StatusCode::SERVICE_UNAVAILABLE),
                detail: detail.to_owned(),
            });
        };
        self.charges.lock().unwrap_or_else(PoisonError::into_inner).push(permit);
        Ok(())
    }
}

impl Backend for OwnNode {
    fn may_write(&self) -> Result<(), &'static str> {
        if self.has_token { Ok(()) } else { Err(NO_TOKEN) }
    }

    fn count_refusal(&self) {
        self.state.metrics.http.refused("mcp_write");
    }

    async fn send(&self, request: ToolRequest) -> Result<ToolAnswer, ToolError> {
        let ToolRequest { method, target, body } = request;
        let inner = InnerRequest::new(method, target);
        let inner = match body {
            Some(body) => inner.json(Bytes::from(body.to_string())),
            None => inner,
        };
        let asking = self.client.ask(inner, ANSWER_BYTES_MAX);
        let reply = match self.holder {
            Some(holder) => HOLDER.scope(holder, asking).await,
            None => asking.await,
        };
        let reply = reply.map_err(|problem| ToolError {
            status: Some(problem.status()),
            detail: problem.detail().to_owned(),
        })?;
        self.charge(reply.body.len())?;
        Ok(ToolAnswer { status: reply.status, body: reply.body })
    }

    async fn read_log(&self, target: String) -> Result<ToolAnswer, ToolError> {
        // The router forwards a read of a role that this node lacks.
        self.send(ToolRequest::read(target)).await
    }
}
