//! For tests of plug-ins, here and in other crates: [`MemoryHost`] stands in for the node that runs a
//! plug-in, and [`breaches`] checks what every plug-in must do.
//!
//! ```
//! # async fn example(plugin: impl hearsay_services::Service) {
//! use std::sync::Arc;
//! use hearsay_services::testing::{MemoryHost, breaches};
//! assert!(breaches(&plugin, Arc::new(MemoryHost::new("n1"))).await.is_empty());
//! # }
//! ```

mod fuzzing;
mod markup;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, body::Body};
use hearsay_protocol::{Health, Index, Instance, NodeId, Provider, check_service_name};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::{
    Client, Host, Problem, Service,
    host::ResponseFuture,
    http::{
        prefixes::{self, Effect},
        problem,
        signing::UnsignedRequest,
    },
    journal::Journal,
    network::address_policy::{AddressPolicy, MemberAddresses},
    service::Task,
};

mod memory_journal;

pub use fuzzing::fuzz_addresses;
pub use markup::{HOSTILE, MarkupTag, markup_breaches, markup_skeleton, markup_tags};
pub use memory_journal::{MemoryEntry, MemoryJournal};

/// An in-memory node. Its journals are in a temporary directory.
#[derive(Clone)]
pub struct MemoryHost {
    node: String,
    demo: bool,
    client: Client,
    policy: AddressPolicy,
    name: Option<String>,
    providers: Arc<Mutex<BTreeMap<String, Vec<Arc<Provider>>>>>,
    journals: BTreeMap<String, Arc<MemoryJournal>>,
}

impl MemoryHost {
    /// A node of this name in the cluster `test`, without providers.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            demo: false,
            client: Client::default(),
            policy: lenient_policy(),
            name: None,
            providers: Arc::default(),
            journals: BTreeMap::new(),
        }
    }

    /// Adds the journal of a plug-in, if it has one.
    ///
    /// # Panics
    /// If no database can be created in the system's temporary directory.
    #[must_use]
    pub fn keeping(mut self, service: &dyn Service) -> Self {
        if let Some(projection) = service.projection() {
            self.journals
                .insert(service.name().to_owned(), Arc::new(MemoryJournal::of(projection, self.node_id())));
        }
        self
    }

    /// Returns the journal of a topic.
    pub fn memory_journal(&self, topic: &str) -> Option<&Arc<MemoryJournal>> {
        self.journals.get(topic)
    }

    /// Sets `--demo`.
    #[must_use]
    pub fn with_demo(self, demo: bool) -> Self {
        Self { demo, ..self }
    }

    /// Sets the only host name that the node accepts. The default accepts all.
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Adds an instance of a node with this name.
    #[must_use]
    pub fn with_provider(self, service: &str, node: &str, url: &str) -> Self {
        self.offer(service, node, url, Health::Passing);
        self
    }

    /// Adds an instance of a node with this name and this health.
    pub fn offer(&self, service: &str, node: &str, url: &str, health: Health) {
        self.add(service, node, (url, health), vec![]);
    }

    /// Adds an instance with several addresses (`host:port`), the first of which is its main one.
    pub fn offer_at(&self, service: &str, node: &str, addresses: &[&str]) {
        let url = format!("http://{}", addresses.first().copied().unwrap_or_default());
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        self.add(service, node, (&url, Health::Passing), addresses);
    }

    fn add(&self, service: &str, node: &str, (url, health): (&str, Health), addresses: Vec<String>) {
        let mut all = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        let providers = all.entry(service.to_owned()).or_default();
        let provider = Provider {
            id: format!("{service}-{node}-{}", providers.len()),
            node_id: id_of(node),
            node: node.to_owned(),
            zone: None,
            addresses,
            role: true,
            unverified: false,
            instance: Arc::new(Instance {
                service: service.to_owned(),
                address: "10.0.0.1".to_owned(),
                port: 7500,
                url: url.to_owned(),
                tags: vec![],
                meta: BTreeMap::new(),
                health,
                since_ms: 0,
                ..Instance::default()
            }),
        };
        providers.push(Arc::new(provider));
    }

    /// Removes the instance of a node.
    pub fn withdraw(&self, service: &str, node: &str) {
        let mut all = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(providers) = all.get_mut(service) {
            providers.retain(|provider| provider.node != node);
        }
    }
}

/// An address policy under which every node is on this machine and announces every address as its own. The
/// policy still refuses metadata services, and addresses that do not belong to one host.
pub fn lenient_policy() -> AddressPolicy {
    struct Everywhere;
    impl MemberAddresses for Everywhere {
        fn contains(&self, _: SocketAddr) -> bool {
            false
        }
        fn is_http_of(&self, _: NodeId, _: &str, _: u16) -> bool {
            true
        }
        fn shares_loopback(&self, _: NodeId) -> bool {
            true
        }
    }
    AddressPolicy::new(Arc::new(Everywhere))
}

/// Returns the id of the node with this name. It has no private key, because nothing is signed in memory.
fn id_of(name: &str) -> NodeId {
    let mut key = [7; 32];
    key.iter_mut().zip(name.bytes()).for_each(|(k, b)| *k = b);
    NodeId::from_public_key(key)
}

impl Host for MemoryHost {
    fn cluster(&self) -> &str {
        "test"
    }

    fn node(&self) -> &str {
        &self.node
    }

    fn node_id(&self) -> NodeId {
        id_of(&self.node)
    }

    fn demo(&self) -> bool {
        self.demo
    }

    fn journal(&self, topic: &str) -> Option<Arc<dyn Journal>> {
        self.journals.get(topic).map(|journal| Arc::clone(journal) as Arc<dyn Journal>)
    }

    fn client(&self) -> &Client {
        &self.client
    }

    /// In memory nothing is signed.
    fn sign(&self, _recipient: NodeId, _request: &UnsignedRequest<'_>, _body: &[u8]) -> Option<HeaderValue> {
        None
    }

    fn authenticate(
        &self,
        _client: IpAddr,
        _request: &Parts,
        _path: &str,
        _effect: Effect,
    ) -> Result<(), Problem> {
        Ok(())
    }

    fn sign_in(&self, _client: IpAddr, request: Request<Body>) -> ResponseFuture<'_> {
        let words = format!("the node answers {}", request.uri().path());
        Box::pin(std::future::ready(Response::new(words.into())))
    }

    fn strip_credentials(&self, _headers: &mut HeaderMap) {}

    fn address_policy(&self) -> &AddressPolicy {
        &self.policy
    }

    fn accepts_host(&self, host: &str) -> bool {
        self.name.as_ref().is_none_or(|name| name == host)
    }

    fn providers(&self, service: &str) -> Vec<Arc<Provider>> {
        let all = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(service).cloned().unwrap_or_default()
    }

    fn all_providers(&self) -> (Index, Vec<Arc<Provider>>) {
        let all = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        (Index(1), all.values().flatten().cloned().collect())
    }

    /// The table does not change.
    fn services_changed(&self, since: Index) -> Task {
        Box::pin(async move {
            if since == Index(1) {
                std::future::pending().await
            }
        })
    }

    fn take_listener(&self, _plugin: &str) -> Option<TcpListener> {
        None
    }
}

/// Response of a router.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the body as JSON; `null` if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Returns the content type; empty if there is none.
    pub fn content_type(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// Returns whether the body is a problem with the status of the response.
    pub fn is_problem(&self) -> bool {
        self.content_type() == problem::PROBLEM_CONTENT_TYPE && self.json()["status"] == self.status.as_u16()
    }
}

/// Sends a request without a body to a router, without a network. Each call needs a fresh clone of the
/// router.
///
/// # Panics
/// If the path is malformed.
pub async fn request(router: Router, method: Method, path: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).body(Body::empty());
    let request = request.unwrap_or_else(|error| panic!("{path:?} is not a path: {error}"));
    send(router, request).await
}

/// Sends a request to a router, without a network. Each call needs a fresh clone of the router.
pub async fn send(router: Router, request: Request<Body>) -> Answer {
    let response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (head, body) = response.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes().to_vec()).unwrap_or_default();
    Answer { status: head.status, headers: head.headers, body }
}

/// Conformance suite: returns a sentence for each property that nodes and users rely on and the plug-in does
/// not have. Empty: the plug-in conforms.
pub async fn breaches(service: &dyn Service, host: Arc<dyn Host>) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut expect = |kept: bool, sentence: String| {
        if !kept {
            breaches.push(sentence);
        }
    };
    if let Err(invalid) = check_service_name("name", service.name()) {
        expect(false, format!("its name can be announced: {invalid}"));
    }
    let router = service.router(Arc::clone(&host));
    for prefix in service.prefixes() {
        let tag = format!("urlprefix-{prefix}");
        expect(service.tags().contains(&tag), format!("it announces {tag}, so that proxies find {prefix}"));

        let answer = request(router.clone(), Method::GET, prefix).await;
        expect(answer.status.is_success(), format!("GET {prefix} says what it is, not {}", answer.status));

        let answer = request(router.clone(), Method::GET, &format!("{prefix}/no/such/thing/here")).await;
        expect(answer.status == 404, format!("an unknown path below {prefix} is 404, not {}", answer.status));

        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let answer = request(router.clone(), method.clone(), prefix).await;
            let is_shown = !answer.status.is_client_error() && !answer.status.is_server_error()
                || answer.is_problem()
                || is_method_not_allowed(&answer);
            expect(
                is_shown,
                format!("an error of {method} {prefix} is a problem+json, or a 405 with Allow: {answer:?}"),
            );
        }
    }
    for (path, item) in service.openapi().as_object().into_iter().flatten() {
        let owned = service.prefixes().iter().any(|prefix| prefixes::covers(prefix, path));
        expect(owned, format!("{path}, which it documents, lies below a prefix of its own"));
        // No router serves this method, so the answer is 405 with the list of served methods.
        let concrete = path.replace(['{', '}'], "");
        let answer = request(router.clone(), Method::TRACE, &concrete).await;
        let documented = sorted(item.as_object().into_iter().flatten().map(|(key, _)| key.to_uppercase()));
        let allow = answer.headers.get(header::ALLOW).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let served = sorted(allow.split(',').map(str::to_owned));
        expect(
            served == documented,
            format!("{path} serves what it documents: {served:?} and {documented:?}"),
        );
    }
    if let Some(front) = service.front_page() {
        let answer = request(router.clone(), Method::GET, front).await;
        expect(answer.status == 200, format!("its front page {front} is there, not {}", answer.status));
    }
    breaches
}

fn is_method_not_allowed(answer: &Answer) -> bool {
    // The node adds the problem if a router leaves the body empty.
    answer.status == StatusCode::METHOD_NOT_ALLOWED && answer.headers.contains_key(header::ALLOW)
}

/// Sorts methods, without implied ones and without keys that are not methods (`parameters` of a path).
fn sorted(methods: impl Iterator<Item = String>) -> Vec<String> {
    let mut methods: Vec<_> = methods.filter(|m| !m.is_empty() && m != "HEAD" && m != "PARAMETERS").collect();
    methods.sort();
    methods
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use serde_json::json;

    use super::*;

    struct Careless;

    impl Service for Careless {
        fn name(&self) -> &str {
            "a/b"
        }
        fn prefixes(&self) -> &[&str] {
            &["/careless"]
        }
        fn router(&self, _: Arc<dyn Host>) -> Router {
            let failing = || async { (StatusCode::INTERNAL_SERVER_ERROR, "oops") };
            Router::new().route("/careless", get(failing).post(failing))
        }
        fn tags(&self) -> Vec<String> {
            vec![]
        }
        fn openapi(&self) -> Value {
            json!({ "/careless": { "get": {} }, "/elsewhere": { "get": {} } })
        }
        fn front_page(&self) -> Option<&str> {
            Some("/careless/none")
        }
    }

    #[tokio::test]
    async fn each_breach_of_a_careless_plugin_is_told() {
        let breaches = breaches(&Careless, Arc::new(MemoryHost::new("n1"))).await;
        let sentences = breaches.join("\n");
        for words in [
            "its name",
            "announces urlprefix-/careless",
            "GET /careless says",
            "an error of POST /careless",
            "/elsewhere, which it documents, lies below",
            "/careless serves what it documents",
            "its front page",
        ] {
            assert!(sentences.contains(words), "{words:?} is missing in:\n{sentences}");
        }
    }
}
