//! A host in memory, and what every plug-in has to keep to: for the tests of the plug-ins here, and of those elsewhere.
//!
//! ```
//! # async fn example(plugin: impl hearsay_services::Service) {
//! use std::sync::Arc;
//! use hearsay_services::testing::{MemoryHost, breaches};
//! assert!(breaches(&plugin, Arc::new(MemoryHost::new("n1"))).await.is_empty());
//! # }
//! ```

pub mod markup;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, body::Body};
use hearsay_protocol::{
    NodeId,
    providers::{Index, Provider},
    record::{Health, Instance, check_service_name},
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::{
    Client, Host, Problem, Service,
    address_policy::{AddressPolicy, MemberAddresses},
    journal::Journal,
    prefixes, problem,
    service::Task,
    signing::Unsigned,
};

mod journal;

pub use journal::{Kept, MemoryJournal};

/// A node that exists only in memory, but for its journals, which lie in a directory that goes with it.
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
    /// A node of this name in the cluster `test`, that knows of no service.
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

    /// Keeps the journal of this plug-in, if it has one.
    ///
    /// # Panics
    /// If no database can be made in the system's directory for temporary files.
    #[must_use]
    pub fn keeping(mut self, service: &dyn Service) -> Self {
        if let Some(projection) = service.projection() {
            self.journals
                .insert(service.name().to_owned(), Arc::new(MemoryJournal::of(projection, self.node_id())));
        }
        self
    }

    /// The journal of a topic that it keeps.
    pub fn memory_journal(&self, topic: &str) -> Option<&Arc<MemoryJournal>> {
        self.journals.get(topic)
    }

    /// With or without `--demo`.
    #[must_use]
    pub fn with_demo(self, demo: bool) -> Self {
        Self { demo, ..self }
    }

    /// Goes by this name alone, and not by any.
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Knows of one more instance, offered by a node of this name.
    #[must_use]
    pub fn with_provider(self, service: &str, node: &str, url: &str) -> Self {
        self.offer(service, node, url, Health::Passing);
        self
    }

    /// Hears of one more instance, offered by a node of this name.
    pub fn offer(&self, service: &str, node: &str, url: &str, health: Health) {
        self.add(service, node, url, health, vec![]);
    }

    /// Hears of one more instance that has several addresses (`host:port`), and states the first.
    pub fn offer_at(&self, service: &str, node: &str, addresses: &[&str]) {
        let url = format!("http://{}", addresses.first().copied().unwrap_or_default());
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        self.add(service, node, &url, Health::Passing, addresses);
    }

    fn add(&self, service: &str, node: &str, url: &str, health: Health, addresses: Vec<String>) {
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

    /// Hears that a node offers a service no longer.
    pub fn withdraw(&self, service: &str, node: &str) {
        let mut all = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(providers) = all.get_mut(service) {
            providers.retain(|provider| provider.node != node);
        }
    }
}

/// A policy under which every node is on this machine, and states every address as its own. Addresses that
/// mean no single host, or a cloud's metadata, it refuses as ever.
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

/// The id of the node of a name. It belongs to nobody: in memory nothing is signed.
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
    fn sign(&self, _recipient: NodeId, _request: &Unsigned<'_>, _body: &[u8]) -> Option<HeaderValue> {
        None
    }

    fn authenticate(&self, _client: IpAddr, _headers: &HeaderMap, _by_get: bool) -> Result<(), Problem> {
        Ok(())
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

    /// Nothing changes here.
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

/// What a router answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The content type, or nothing.
    pub fn content_type(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// Whether it is a problem whose body names its own status.
    pub fn is_problem(&self) -> bool {
        self.content_type() == problem::CONTENT_TYPE && self.json()["status"] == self.status.as_u16()
    }
}

/// Asks a router without a network. Give it a fresh clone each time.
///
/// # Panics
/// If the path is not one.
pub async fn ask(router: Router, method: Method, path: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).body(Body::empty());
    let request = request.unwrap_or_else(|error| panic!("{path:?} is not a path: {error}"));
    send(router, request).await
}

/// Sends a router a whole request without a network. Give it a fresh clone each time.
pub async fn send(router: Router, request: Request<Body>) -> Answer {
    let response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (head, body) = response.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes().to_vec()).unwrap_or_default();
    Answer { status: head.status, headers: head.headers, body }
}

/// Everything in which a plug-in breaks what nodes and users rely on, as sentences. Empty: it conforms.
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

        let answer = ask(router.clone(), Method::GET, prefix).await;
        expect(answer.status.is_success(), format!("GET {prefix} says what it is, not {}", answer.status));

        let answer = ask(router.clone(), Method::GET, &format!("{prefix}/no/such/thing/here")).await;
        expect(answer.status == 404, format!("an unknown path below {prefix} is 404, not {}", answer.status));

        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let answer = ask(router.clone(), method.clone(), prefix).await;
            let told = !answer.status.is_client_error() && !answer.status.is_server_error()
                || answer.is_problem()
                || is_method_not_allowed(&answer);
            expect(
                told,
                format!("an error of {method} {prefix} is a problem+json, or a 405 with Allow: {answer:?}"),
            );
        }
    }
    for (path, item) in service.openapi().as_object().into_iter().flatten() {
        let owned = service.prefixes().iter().any(|prefix| prefixes::covers(prefix, path));
        expect(owned, format!("{path}, which it documents, lies below a prefix of its own"));
        // No router serves this method, so the answer is 405 and lists those that are served.
        let concrete = path.replace(['{', '}'], "");
        let answer = ask(router.clone(), Method::TRACE, &concrete).await;
        let documented = sorted(item.as_object().into_iter().flatten().map(|(key, _)| key.to_uppercase()));
        let allow = answer.headers.get(header::ALLOW).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let served = sorted(allow.split(',').map(str::to_owned));
        expect(
            served == documented,
            format!("{path} serves what it documents: {served:?} and {documented:?}"),
        );
    }
    if let Some(front) = service.front_page() {
        let answer = ask(router.clone(), Method::GET, front).await;
        expect(answer.status == 200, format!("its front page {front} is there, not {}", answer.status));
    }
    breaches
}

fn is_method_not_allowed(answer: &Answer) -> bool {
    // The node writes the problem where a router leaves the body empty.
    answer.status == StatusCode::METHOD_NOT_ALLOWED && answer.headers.contains_key(header::ALLOW)
}

/// Methods in one order, without those that come along by themselves or are no methods (`parameters` of a path).
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
        let told = breaches.join("\n");
        for words in [
            "its name",
            "announces urlprefix-/careless",
            "GET /careless says",
            "an error of POST /careless",
            "/elsewhere, which it documents, lies below",
            "/careless serves what it documents",
            "its front page",
        ] {
            assert!(told.contains(words), "{words:?} is missing in:\n{told}");
        }
    }
}
