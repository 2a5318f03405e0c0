//! Test harness: a gateway, a host whose provider table can be changed, and a client.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use hearsay_gateway::{Gateway, Limits};
use hearsay_protocol::{Health, Index, Instance, NodeId, Provider};
use hearsay_services::{
    Client, Host, Problem, ResponseFuture, Service, Task,
    http::{BUILT_IN, Effect, UnsignedRequest},
    journal::Journal,
    network::AddressPolicy,
    testing::{lenient_policy, request},
};
use http::{HeaderMap, HeaderValue, Request, Response, request::Parts};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

/// Timeout of every wait, long enough for a slow machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// A host with a provider table in memory.
pub(crate) struct TestHost {
    providers: Mutex<Vec<Arc<Provider>>>,
    index: watch::Sender<u64>,
    listener: Mutex<Option<TcpListener>>,
    client: Client,
    policy: AddressPolicy,
}

impl TestHost {
    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Provider>>)) {
        change(&mut self.providers.lock().unwrap());
        self.index.send_modify(|index| *index += 1);
    }

    /// Adds an instance, or replaces it.
    pub(crate) fn offer(&self, service: &str, id: &str, at: SocketAddr, tags: &[&str]) {
        self.offer_as(service, id, &format!("http://{at}"), tags, Health::Passing);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a provider")]
    pub(crate) fn offer_as(&self, service: &str, id: &str, url: &str, tags: &[&str], health: Health) {
        self.list(self.provider(service, id, url, tags, health));
    }

    /// Adds an instance with several addresses, of which the first is the stated one.
    pub(crate) fn offer_at(&self, service: &str, id: &str, addresses: &[SocketAddr]) {
        let stated = self.provider(service, id, &format!("http://{}", addresses[0]), &[], Health::Passing);
        let addresses = addresses.iter().map(SocketAddr::to_string).collect();
        self.list(Provider { addresses, ..stated });
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a provider")]
    fn provider(&self, service: &str, id: &str, url: &str, tags: &[&str], health: Health) -> Provider {
        Provider {
            id: id.to_owned(),
            node_id: self.node_id(),
            node: "n1".to_owned(),
            zone: None,
            addresses: vec![],
            role: BUILT_IN.iter().any(|(role, _)| *role == service),
            unverified: false,
            instance: Arc::new(Instance {
                service: service.to_owned(),
                address: String::new(),
                port: 0,
                url: url.to_owned(),
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                meta: BTreeMap::new(),
                health,
                since_ms: 0,
                ..Instance::default()
            }),
        }
    }

    fn list(&self, provider: Provider) {
        self.change(|all| {
            all.retain(|p| p.id != provider.id);
            all.push(Arc::new(provider));
        });
    }

    pub(crate) fn withdraw(&self, id: &str) {
        self.change(|all| all.retain(|p| p.id != id));
    }
}

impl Host for TestHost {
    fn cluster(&self) -> &str {
        "test"
    }
    fn node(&self) -> &str {
        "n1"
    }
    fn node_id(&self) -> NodeId {
        NodeId::from_public_key([7; 32])
    }
    fn demo(&self) -> bool {
        false
    }
    fn journal(&self, _topic: &str) -> Option<Arc<dyn Journal>> {
        None
    }
    fn client(&self) -> &Client {
        &self.client
    }

    /// Requests are not signed.
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
        host != "evil.example"
    }
    fn providers(&self, service: &str) -> Vec<Arc<Provider>> {
        let all = self.providers.lock().unwrap();
        all.iter().filter(|p| p.instance.service == service).cloned().collect()
    }
    fn all_providers(&self) -> (Index, Vec<Arc<Provider>>) {
        (Index(*self.index.borrow()), self.providers.lock().unwrap().clone())
    }
    fn services_changed(&self, since: Index) -> Task {
        let mut index = self.index.subscribe();
        Box::pin(async move {
            _ = index.wait_for(|index| *index != since.0).await;
        })
    }
    fn take_listener(&self, _plugin: &str) -> Option<TcpListener> {
        self.listener.lock().unwrap().take()
    }
}

/// A running gateway.
pub(crate) struct Harness {
    pub(crate) address: SocketAddr,
    pub(crate) table: Arc<TestHost>,
    pub(crate) gateway: Gateway,
    _task: tokio::task::JoinHandle<()>,
}

impl Harness {
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let table = Arc::new(TestHost {
            providers: Mutex::default(),
            index: watch::Sender::new(1),
            listener: Mutex::new(Some(listener)),
            client: Client::default(),
            policy: lenient_policy(),
        });
        let gateway = Gateway::new(limits, 1);
        let task = tokio::spawn(gateway.task(Arc::clone(&table) as Arc<dyn Host>).unwrap());
        let harness = Self { address, table, gateway, _task: task };
        harness.until("it serves", |state| state["state"] == "serving").await;
        harness
    }

    /// Adds an instance and waits until the gateway has a route to it.
    pub(crate) async fn offer(&self, service: &str, id: &str, at: SocketAddr, tags: &[&str]) {
        self.table.offer(service, id, at, tags);
        self.settled().await;
    }

    /// Waits until the routes follow the current table.
    pub(crate) async fn settled(&self) {
        let (index, _) = self.table.all_providers();
        self.until("the routes are current", |state| state["index"] == index.0).await;
    }

    /// Returns the response of `GET /gateway`.
    pub(crate) async fn state(&self) -> Value {
        let router = self.gateway.router(Arc::clone(&self.table) as Arc<dyn Host>);
        request(router, http::Method::GET, "/gateway").await.json()
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let start = std::time::Instant::now();
        loop {
            let state = self.state().await;
            if holds(&state) {
                return;
            }
            assert!(start.elapsed() < TIMEOUT, "timed out: {what}; {state:#}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns a metric of the gateway.
    pub(crate) fn metric(&self, name: &str, label: Option<&str>) -> u64 {
        let metrics = self.gateway.metrics();
        let found = metrics.iter().find(|m| m.name == name && m.label.map(|(_, value)| value) == label);
        found.unwrap_or_else(|| panic!("no metric {name} {label:?}")).value
    }

    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.metric("gateway_refused", Some(reason))
    }

    /// Opens a connection and sends bytes.
    pub(crate) async fn open(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }

    /// Sends bytes and reads until the end of the connection.
    pub(crate) async fn send(&self, bytes: &str) -> Reply {
        Reply::read(self.open(bytes).await).await
    }

    /// Sends a request without a body, on a connection of its own.
    pub(crate) async fn request(&self, line: &str, headers: &str) -> Reply {
        self.send(&format!("{line} HTTP/1.1\r\nhost: gw:1\r\nconnection: close\r\n{headers}\r\n")).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request(&format!("GET {path}"), "").await
    }
}

/// A response, read up to the end of its connection.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) async fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A connection that is closed while the client sends may end in an error; the bytes before it count.
        _ = within(stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self { status: status.unwrap_or(0), head: head.to_owned(), body: body.to_owned() }
    }

    /// Returns the body as JSON; an echo instance describes its request in it.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Asserts that this is a problem with this status, and returns its detail.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        assert!(self.status == status && self.head.contains("application/problem+json"), "{self:?}");
        assert_eq!(self.json()["status"], status);
        self.json()["detail"].as_str().unwrap().to_owned()
    }
}

/// Awaits a future within the timeout.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future).await.expect("timed out")
}

/// Reads until the text contains `end`.
pub(crate) async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(end) {
        let mut part = [0; 1024];
        let n = within(stream.read(&mut part)).await.unwrap();
        assert!(n > 0, "ended before {end:?}: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&part[..n]);
    }
    String::from_utf8_lossy(&text).into_owned()
}
