//! Writes for another node: `?node=NAME`, on any path that writes, has this node pass the request on, once, and sign it.
//!
//! So the command line and programs need one node alone, which they prove themselves to: the one beside them. What the other node makes of the
//! request is answered as it is.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderName, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use hearsay_protocol::{
    providers::{Member, Provider},
    record::Instance,
};
use hearsay_services::{
    Host, Problem,
    client::{Call, IDEMPOTENCY_KEY},
    parameters::Parameters,
};

use super::{caller::Caller, site::Site};

/// How long the other node has for its answer. A write waits for disks of other nodes, 5 s at most.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// What goes along: what the signature covers, and what a read of one's own writes presents.
const PASSED_ON: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    IDEMPOTENCY_KEY,
    HeaderName::from_static("hearsay-token"),
];
/// What comes back.
const PASSED_BACK: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::RETRY_AFTER,
    header::LOCATION,
    header::ALLOW,
    HeaderName::from_static("hearsay-ack"),
    HeaderName::from_static("hearsay-token"),
];

/// Takes `node` out of the query of a write, and says which other node it names. Without it, or with this node's own name, the write is for here.
///
/// # Errors
/// 400 for a request that was passed on already, or cannot be; 403 for a caller that has shown no proof; 404 for a node that is not present.
pub(super) fn addressed(site: &Site, request: &mut Request) -> Result<Option<Box<Member>>, Problem> {
    let Some(caller) = request.extensions().get::<Caller>() else { return Ok(None) };
    let query = request.uri().query().unwrap_or_default();
    let is_node = |pair: &&str| pair.split('=').next() == Some("node");
    let mut named = query.split('&').filter(is_node);
    let Some(first) = named.next() else { return Ok(None) };
    if named.next().is_some() {
        return Err(Problem::parameter("node", "is there more than once"));
    }
    let name = Parameters::read(Some(first), &["node"])?.one("node")?.unwrap_or_default().to_owned();
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
    if name == site.name || name == site.id.to_string() {
        return Ok(None);
    }
    if is_signed {
        return Err(Problem::parameter(
            "node",
            "a request that one node has passed on is not passed on again",
        ));
    }
    if !is_proven {
        let detail = "node: only a caller on this machine or with the node's token may write at another node through this one";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail).with("parameter", "node"));
    }
    if is_held {
        let problem =
            "cannot be passed on, because it ends with its connection; register with that node itself";
        return Err(Problem::parameter("hold", problem));
    }
    find(site, &name).map(|member| Some(Box::new(member)))
}

fn find(site: &Site, name: &str) -> Result<Member, Problem> {
    let is_meant = |member: &&Member| {
        member.state.is_present() && (member.name == name || member.id.to_string() == name)
    };
    let mut found: Vec<Member> = site.read(|table| table.members().filter(is_meant).cloned().collect());
    let shown: String = name.chars().take(128).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Problem::parameter(
            "node",
            format!("several nodes bear the name {shown:?}; give the id of one"),
        )),
        (None, _) => {
            Err(Problem::not_found(format!("no present node is called {shown:?}; GET /members lists them"))
                .with("parameter", "node"))
        }
    }
}

/// Passes a write on.
///
/// # Errors
/// 502: the other node does not answer. Whether it has carried out the write is then not known.
pub(super) async fn forward(host: &dyn Host, request: Request, to: &Member) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    // The body is in memory already, and bounded.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut call = Call::new(head.method, target).whole_body(body);
    for name in PASSED_ON {
        if let Some(value) = head.headers.get(&name).and_then(|value| value.to_str().ok()) {
            call = call.header(name, value);
        }
    }
    let answer = host.client().forward(host, &provider_of(to), &call, ANSWER_MAX).await;
    let answer = answer.map_err(|why| {
        let detail =
            format!("the node {:?} does not answer, so it may have carried this out or not: {why}", to.name);
        Problem::new(StatusCode::BAD_GATEWAY, detail)
    })?;
    let (head, body) = answer.into_parts();
    let mut response = (head.status, Body::from(body)).into_response();
    response.headers_mut().remove(header::CONTENT_TYPE);
    for name in PASSED_BACK {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

/// A node as its roles are listed, whether it has any.
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
