//! Forwards a write to the node that its parameter `?node=NAME` names.
//!
//! On any path that writes, the parameter makes this node sign the request and forward it, once. So the
//! command line and programs authenticate to one node only. The other node's status and body are returned
//! unchanged, with the headers in `RESPONSE_HEADERS`. Where a user event is fired, the parameter is a filter
//! instead, as in Consul.
//!
//! Also forwards an [inner request](crate::http::reentry) for a role that this node lacks.

use std::{net::IpAddr, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hearsay_protocol::{Instance, Member, Provider};
use hearsay_services::{
    Host, Problem,
    http::{
        Call, CallError, Forwarded, HEARSAY_ACK, HEARSAY_TOKEN, IDEMPOTENCY_KEY, Parameters, covers,
        problem_detail,
    },
};

use crate::http::{
    guard::{caller::Caller, class::FIRE_PREFIX},
    reentry::RoleElsewhere,
    server::connection::Connection,
    state::AppState,
};

/// Time for the other node's response. A write waits for the disks of replicas for 5 s at most.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Forwarded request headers: those that the signature covers, and the token by which a client reads its own
/// writes.
const REQUEST_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, IDEMPOTENCY_KEY, HEARSAY_TOKEN];
/// Returned response headers.
const RESPONSE_HEADERS: [HeaderName; 6] =
    [header::CONTENT_TYPE, header::RETRY_AFTER, header::LOCATION, header::ALLOW, HEARSAY_ACK, HEARSAY_TOKEN];

/// Removes `node` from the query of a write and returns the other node that it names. `None`: the parameter
/// is missing or names this node.
///
/// # Errors
/// 400 for a request that was forwarded before or cannot be forwarded; 403 for a caller without proof; 404
/// for a node that is not present.
pub(crate) fn take_target(state: &AppState, request: &mut Request) -> Result<Option<Box<Member>>, Problem> {
    let Some(caller) = request.extensions().get::<Caller>() else { return Ok(None) };
    if covers(FIRE_PREFIX, request.uri().path()) {
        return Ok(None);
    }
    let query = request.uri().query().unwrap_or_default();
    let is_node = |pair: &&str| pair.split('=').next() == Some("node");
    let mut named = query.split('&').filter(is_node);
    let Some(first) = named.next() else { return Ok(None) };
    if named.next().is_some() {
        return Err(Problem::parameter("node", "is given more than once; give it once"));
    }
    let name = Parameters::read(Some(first), &["node"])?.single("node")?.unwrap_or_default().to_owned();
    let is_held = query.split('&').any(|pair| pair.split('=').next() == Some("hold"));
    let (is_proven, is_signed) = (caller.is_proven(), caller.is_signed());
    let rest = query.split('&').filter(|pair| !is_node(pair)).collect::<Vec<_>>().join("&");
    let path = request.uri().path();
    let target = if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = target.parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    if name == state.name || name == state.id.to_string() {
        return Ok(None);
    }
    if is_signed {
        return Err(Problem::parameter(
            "node",
            "a forwarded request is not forwarded again; send it to that node",
        ));
    }
    if !is_proven {
        let detail = "node: only a caller on this machine or with the node's token may write to another node through this one";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail).with("parameter", "node"));
    }
    if is_held {
        let problem = "cannot be forwarded, because a held registration ends with its connection; register with that node directly";
        return Err(Problem::parameter("hold", problem));
    }
    find(state, &name).map(|member| Some(Box::new(member)))
}

fn find(state: &AppState, name: &str) -> Result<Member, Problem> {
    let is_meant = |member: &&Member| {
        member.state.is_present() && (member.name == name || member.id.to_string() == name)
    };
    let mut found: Vec<Member> = state.read(|table| table.members().filter(is_meant).cloned().collect());
    let quoted: String = name.chars().take(128).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Problem::parameter(
            "node",
            format!("several nodes have the name {quoted:?}; give the id of one"),
        )),
        (None, _) => Err(Problem::not_found(format!(
            "no present node has the name {quoted:?}; GET /members lists them"
        ))
        .with("parameter", "node")),
    }
}

/// Forwards a write.
///
/// # Errors
/// 502: the other node does not answer. Whether it has executed the write is unknown.
pub(crate) async fn forward(host: &dyn Host, request: Request, to: &Member) -> Result<Response, Problem> {
    let call = call_of(request).await;
    let answer = host.client().forward(host, &provider_of(to), &call, ANSWER_MAX).await;
    let answer = answer.map_err(|why| {
        let detail = format!(
            "the node {:?} does not answer, so it may or may not have executed the write: {why}",
            to.name
        );
        Problem::new(StatusCode::BAD_GATEWAY, detail)
    })?;
    let (head, body) = answer.into_parts();
    Ok(response_of(head.status, &head.headers, body))
}

/// Returns the forwarded parts of a request.
async fn call_of(request: Request) -> Call {
    let (head, body) = request.into_parts();
    // The body was read and bounded before.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut call = Call::new(head.method, target).raw_body(body);
    for name in REQUEST_HEADERS {
        if let Some(value) = head.headers.get(&name).and_then(|value| value.to_str().ok()) {
            call = call.header(name, value);
        }
    }
    call
}

/// Returns the response of another node as this node's.
fn response_of(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Response {
    let mut response = (status, Body::from(body)).into_response();
    response.headers_mut().remove(header::CONTENT_TYPE);
    for name in RESPONSE_HEADERS {
        if let Some(value) = headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// Forwards an inner request to a node of a role that this node lacks. The guard has checked the client by
/// the rule of this node; the signature of this node is the proof for the other one.
///
/// # Errors
/// 503: no node has the role, or none can answer. 502: a node of the role does not accept this one.
pub(crate) async fn forward_to_role(
    host: &dyn Host,
    request: Request,
    RoleElsewhere(role): RoleElsewhere,
) -> Result<Response, Problem> {
    let client = client_ip(&request);
    // By the rule of the client that sends it.
    let is_signed = host.reads_need_proof() || !request.method().is_safe();
    let authority =
        request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let mut call = call_of(request).await;
    if let (Some(client), Some(host)) = (client, &authority) {
        // A role charges a write to the client that the signer states.
        call = call.header(header::FORWARDED, &Forwarded { client, host, is_https: false }.write());
    }
    match host.client().call(host, role, &call).await {
        Ok(reply) if is_about_this_node(reply.status, is_signed) => {
            let answered = problem_detail(&reply.body).unwrap_or_else(|| reply.status.to_string());
            Err(not_accepted(&reply.provider.node, role, is_signed, &answered))
        }
        Ok(reply) => Ok(response_of(reply.status, &reply.headers, reply.body)),
        Err(error @ CallError::NoInstance { .. }) => {
            let detail = format!("{error}, and this node lacks the role; start a node with --role {role}");
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        }
        Err(error @ CallError::AllFailed { indeterminate: true, .. }) => {
            let detail = format!("the write may or may not take effect: {error}");
            Err(Problem::new(StatusCode::BAD_GATEWAY, detail))
        }
        Err(error @ CallError::AllFailed { .. }) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
        }
        Err(error @ CallError::TooLarge { .. }) => {
            Err(Problem::new(StatusCode::BAD_GATEWAY, format!("{error}; ask for less")))
        }
    }
}

/// Whether a node of a role has refused this node and not the client, whom it does not know.
fn is_about_this_node(status: StatusCode, is_signed: bool) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN && !is_signed
}

/// Returns the problem of a node of a role that does not accept this one. The answer of that node asks for a
/// proof that the client may have given here.
fn not_accepted(node: &str, role: &str, is_signed: bool, answered: &str) -> Problem {
    let detail = match is_signed {
        true => format!(
            "the node {node:?} of the role {role} does not accept the signature of this node, so nothing was done; compare the clocks and \
             the cluster keys of the two nodes. It answered: {answered}"
        ),
        false => format!(
            "the node {node:?} of the role {role} is private, and this node is not, so it signs no reads, and that node refuses them; start \
             this node with --private, too, or send the request to that node"
        ),
    };
    Problem::new(StatusCode::BAD_GATEWAY, detail)
}

/// Returns the address of a request's client, or that of the untrusted proxy in front of it.
fn client_ip(request: &Request) -> Option<IpAddr> {
    let caller = request.extensions().get::<Caller>().and_then(Caller::ip);
    let connection = request.extensions().get::<Connection>();
    caller.or_else(|| connection.and_then(|connection| connection.peer).map(|peer| peer.ip().to_canonical()))
}

/// Returns a node as a provider, in the form in which its roles are listed.
fn provider_of(member: &Member) -> Provider {
    let http = member.http.clone().unwrap_or_default();
    let port = http.rsplit_once(':').map_or("", |(_, port)| port);
    let others = member.addresses.iter().filter_map(|address| {
        let mut parts = address.strip_prefix('/')?.split('/');
        match (parts.next()?, parts.next()?) {
            ("ip6", ip) => Some(format!("[{ip}]:{port}")),
            (_, host) => Some(format!("{host}:{port}")),
        }
    });
    let mut addresses = vec![http.clone()];
    addresses.extend(others.filter(|address| *address != http));
    Provider {
        id: member.name.clone(),
        node_id: member.id,
        node: member.name.clone(),
        zone: None,
        instance: std::sync::Arc::new(Instance { url: format!("http://{http}"), ..Instance::default() }),
        addresses,
        role: true,
        unverified: false,
    }
}
