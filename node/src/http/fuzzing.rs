//! Fuzzing of the request guard and the decoders: the target `request` of `node/fuzz`.
//!
//! The fuzz target, and the test below that replays its corpus, call [`request`], which panics if a property
//! does not hold.

use std::sync::{Arc, LazyLock};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, uri::Authority},
};
use bytes::Bytes;
use hearsay_protocol::{Identity, Index};
use hearsay_services::http::{Parameters, covers};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::{
    apis::{consul::consul_routes, xds::catalog_cache::CatalogCache},
    builtin,
    driver_command::Neighbourhood,
    http::{
        api::blocking_query::Wait,
        forward::take_target,
        guard::{Guard, access::Access, caller::Caller, host_names::HostNames},
        routes::own_routes,
        server::{
            connection::Connection, content_coding::Coding, listeners::PeerCredentials,
            response_budget::ResponseBudget, stream_limit::StreamLimit,
        },
        state::{AppState, Readiness},
    },
    metrics::Metrics,
    registry::{self, Registry},
    signing::Signing,
    storage::Secret,
    user_events::UserEvents,
    view::{Clock, View},
};

/// API token of each node.
const TOKEN: &str = "s3cret-token";
/// Address of the trusted proxy, in the settings that have one.
const TRUSTED: [u8; 4] = [203, 0, 113, 1];
/// Bound on a decoded body, in bytes.
const DECODED_BYTES_MAX: usize = 64 * 1024;
/// Memory budget for decoded bodies, in bytes.
const BUDGET: usize = 1 << 20;

/// A node with one of several access settings.
struct Node {
    state: Arc<AppState>,
    guard: Guard,
}

/// The nodes, and the runtime of their tasks.
static NODES: LazyLock<(tokio::runtime::Runtime, Vec<Node>)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime of one thread");
    let nodes = {
        let _entered = runtime.enter();
        settings().into_iter().map(Node::new).collect()
    };
    (runtime, nodes)
});

fn settings() -> [Access; 6] {
    let token = || Some(Secret::new(TOKEN.to_owned()));
    let trusted = || vec!["203.0.113.1".parse().expect("an address is a network")];
    [
        Access::default(),
        Access { token: token(), ..Access::default() },
        Access { token: token(), is_keyed: true, trusted_proxies: trusted(), ..Access::default() },
        Access { token: token(), is_open: true, trusted_proxies: trusted(), ..Access::default() },
        Access { token: token(), loopback_needs_token: true, ..Access::default() },
        Access { token: token(), is_keyed: true, reads_need_proof: true, ..Access::default() },
    ]
}

impl Node {
    fn new(access: Access) -> Self {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let me = Identity::from_seed(&[1; 32]);
        let id = me.id();
        // The receivers are dropped, so what a handler sends goes nowhere.
        let (orders, operator_requests) = (mpsc::channel(1).0, mpsc::channel(1).0);
        let parts = registry::RegistryContext {
            node_id: id,
            view: Arc::clone(&view),
            driver: orders,
            role_instances: 0,
            listeners: Vec::new(),
            allow_exec: false,
        };
        let metrics = Arc::new(Metrics::new(Arc::clone(&view)));
        let state = Arc::new(AppState {
            view: Arc::clone(&view),
            id,
            name: "n1".to_owned(),
            cluster: "test".to_owned(),
            xds: CatalogCache::new(id, Arc::clone(&view), Arc::clone(&metrics.xds)),
            metrics,
            registry: Registry::open(None, parts).expect("a registry in memory"),
            user_events: Arc::new(UserEvents::new(id, "n1".to_owned(), Arc::clone(&view))),
            driver: mpsc::channel(1).0,
            operator_requests,
            access: Arc::new(access),
            signing: Arc::new(Signing::new(me, "test".to_owned(), view, None)),
            readiness: watch::channel(Readiness::Ready).1,
            warnings: Arc::default(),
            neighbours: watch::channel(Neighbourhood::default()).1,
            names: HostNames::new(["node1.example.org".to_owned()]),
            stream_limit: StreamLimit::new(1),
            dns_port: None,
            response_budget: ResponseBudget::new(1 << 20),
        });
        let guard =
            Guard::new(Arc::clone(&state), &builtin(), consul_routes(own_routes("/ui", Vec::new())).writes());
        Self { state, guard }
    }
}

/// The client end of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Unknown,
    Loopback,
    Private,
    Public,
    Socket,
}

/// Checks the properties for one request. The first byte selects the connection and the node. The rest is the
/// request: a line of method and target, headers, an empty line and a body.
pub fn request(bytes: &[u8]) {
    let Some((kind, message)) = bytes.split_first() else { return };
    let peer = match kind % 5 {
        0 => Peer::Unknown,
        1 => Peer::Loopback,
        2 => Peer::Private,
        3 => Peer::Public,
        _ => Peer::Socket,
    };
    let (_, nodes) = &*NODES;
    let node = &nodes[usize::from(kind / 5) % nodes.len()];
    let Some((head, body)) = parse_request(message) else { return };
    check_decoding(head.headers(), body);
    if let Ok(parameters) = Parameters::read(head.uri().query(), &Wait::PARAMETERS) {
        _ = Wait::read(&parameters);
    }
    let passes = passes_guard(node, peer, &head, body);
    // The mark of a proxy may remove permissions, never add any.
    let mut by_proxy = head;
    by_proxy.headers_mut().append(header::VIA, HeaderValue::from_static("1.1 proxy"));
    let passes_by_proxy = passes_guard(node, peer, &by_proxy, body);
    assert!(passes || !passes_by_proxy, "a request passes only because a proxy forwards it");
}

/// Whether the guard lets a request pass. Compares the decision with rules that do not share its code.
fn passes_guard(node: &Node, peer: Peer, head: &http::Request<()>, body: &[u8]) -> bool {
    let mut request: Request = head.clone().map(|()| Body::from(Bytes::copy_from_slice(body)));
    let address = match peer {
        Peer::Loopback => Some(([127, 0, 0, 1], 9)),
        Peer::Private => Some(([10, 0, 0, 1], 9)),
        Peer::Public => Some((TRUSTED, 9)),
        Peer::Unknown | Peer::Socket => None,
    };
    let socket = (peer == Peer::Socket).then_some(PeerCredentials { uid: 1000, gid: 1000, pid: Some(1) });
    let connection = Connection { peer: address.map(Into::into), socket, ..Connection::default() };
    request.extensions_mut().insert(connection);
    if let Err(answer) = node.guard.check(&mut request) {
        assert!(answer.status().is_client_error(), "{}", answer.status());
        return false;
    }
    let headers = head.headers();
    let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
    assert_eq!(hosts.len(), 1, "one Host");
    let authority = head.uri().authority().map(Authority::as_str).or(hosts[0].to_str().ok());
    let authority = authority.unwrap_or_default().to_ascii_lowercase();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let host = authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map(|(host, _)| host);
    let host = host.unwrap_or(authority);
    assert!(!host.is_empty() && node.state.names.accept(host), "{host:?} is no name of this node");
    let public = ["/livez", "/readyz", "/login", "/logout"];
    let is_public = head.uri().path() == "/" || public.iter().any(|own| covers(own, head.uri().path()));
    if head.method().is_safe() && node.state.access.reads_need_proof && !is_public {
        assert!(is_proven(node, peer, head), "{} {} is read without proof", head.method(), head.uri().path());
    }
    if !head.method().is_safe() {
        check_write(node, peer, head, host);
        let caller = request.extensions().get::<Caller>();
        let has_ip = caller.is_some_and(|caller| caller.ip().is_some());
        let is_trusted = peer == Peer::Public && !node.state.access.trusted_proxies.is_empty();
        assert!(
            !has_ip || !is_forwarded(headers) || is_trusted,
            "the address is from a proxy that is not trusted"
        );
        _ = take_target(&node.state, &mut request);
    }
    true
}

/// Asserts the properties of a write that passes.
fn check_write(node: &Node, peer: Peer, head: &http::Request<()>, host: &str) {
    let (headers, path) = (head.headers(), head.uri().path());
    let value_of = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    assert!(!matches!(value_of("sec-fetch-site"), Some(b"cross-site" | b"same-site")), "another site writes");
    let origins: Vec<_> = headers.get_all(header::ORIGIN).iter().collect();
    assert!(origins.len() < 2, "several origins");
    for origin in origins {
        let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let rest = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
        let rest = rest.and_then(|rest| rest.strip_prefix(host));
        assert!(
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':')),
            "{origin} writes at {host}"
        );
    }
    let path = path.strip_suffix('/').unwrap_or(path);
    // A form of the sign-in page carries the proof itself.
    let is_sign_in = ["/login", "/logout"].contains(&path) && headers.contains_key(header::ORIGIN);
    assert!(is_sign_in || is_proven(node, peer, head), "{} {path} without proof", head.method());
}

/// Whether a request has the proof that its path needs.
fn is_proven(node: &Node, peer: Peer, head: &http::Request<()>) -> bool {
    let (access, headers, path) = (&node.state.access, head.headers(), head.uri().path());
    let is_direct = !is_forwarded(headers);
    let is_local = peer == Peer::Loopback && is_direct && !access.loopback_needs_token
        || peer == Peer::Socket && is_direct;
    let shows_token = |name: &str| {
        headers.get_all(name).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(TOKEN)))
    };
    let has_token = access.token.is_some() && (shows_token("authorization") || shows_token("x-consul-token"));
    let is_known = peer == Peer::Private && is_direct
        || peer == Peer::Public && !is_direct && !access.trusted_proxies.is_empty();
    let is_private = is_known && !access.is_keyed;
    let is_admin = !head.method().is_safe()
        && ["/v1/agent/leave", "/v1/agent/maintenance", "/members"].iter().any(|own| covers(own, path));
    let is_role = builtin().iter().any(|plugin| plugin.prefixes().iter().any(|prefix| covers(prefix, path)));
    is_local || has_token || !is_admin && is_private || is_role && access.is_open
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    let marks = ["via", "forwarded"];
    headers.keys().any(|name| marks.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-"))
}

/// Asserts that a body decodes within its limit, and that the budget is charged and released.
fn check_decoding(headers: &HeaderMap, body: &[u8]) {
    let Ok(coding) = Coding::of(headers) else { return };
    let budget = Arc::new(Semaphore::new(BUDGET));
    if let Ok((decoded, permit)) = coding.decode(body, DECODED_BYTES_MAX, &budget) {
        assert!(decoded.len() <= DECODED_BYTES_MAX);
        assert_eq!(budget.available_permits(), BUDGET - decoded.len());
        assert!(coding != Coding::Identity || decoded == body);
        drop(permit);
    }
    assert_eq!(budget.available_permits(), BUDGET, "the budget was not released");
}

/// Parses a request as hyper would. `None`: hyper would refuse it.
fn parse_request(message: &[u8]) -> Option<(http::Request<()>, &[u8])> {
    let mut request = http::Request::new(());
    let mut rest = message;
    let mut line = || {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest.get(..end)?;
        rest = rest.get(end + 1..)?;
        Some(line)
    };
    let first = line()?;
    let space = first.iter().position(|byte| *byte == b' ')?;
    *request.method_mut() = Method::from_bytes(first.get(..space)?).ok()?;
    *request.uri_mut() = Uri::try_from(first.get(space + 1..)?).ok()?;
    loop {
        let header = line()?;
        if header.is_empty() {
            break;
        }
        let colon = header.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(header.get(..colon)?).ok()?;
        let value = HeaderValue::from_bytes(header.get(colon + 1..)?.trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some((request, rest))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_corpus_of_requests_keeps_its_properties() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/request");
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 9, "{} files", files.len());
        for file in files {
            // The test harness shows this output only if the test fails: it names the failing file.
            println!("{}", file.display());
            super::request(&fs::read(&file).unwrap());
        }
    }
}
