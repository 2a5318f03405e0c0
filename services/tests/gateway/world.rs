//! A gateway, a table that can be changed, and a client.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use hearsay_protocol::{
    NodeId,
    providers::{Index, Provider},
    record::{Health, Instance},
};
use hearsay_services::{
    Client, Host, Problem, Service,
    address_policy::AddressPolicy,
    gateway::{Gateway, limits::Limits},
    journal::Journal,
    prefixes::BUILT_IN,
    service::Task,
    signing::Unsigned,
    testing::{ask, lenient_policy},
};
use http::{HeaderMap, HeaderValue};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

/// No fact here takes longer to come about, however slow the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A host whose table the test writes.
pub(crate) struct Table {
    providers: Mutex<Vec<Arc<Provider>>>,
    index: watch::Sender<u64>,
    listener: Mutex<Option<TcpListener>>,
    client: Client,
    policy: AddressPolicy,
}

impl Table {
    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Provider>>)) {
        change(&mut self.providers.lock().unwrap());
        self.index.send_modify(|index| *index += 1);
    }

    /// Lists an instance, or lists it anew.
    pub(crate) fn offer(&self, service: &str, id: &str, at: SocketAddr, tags: &[&str]) {
        self.offer_as(service, id, &format!("http://{at}"), tags, Health::Passing);
    }

    pub(crate) fn offer_as(&self, service: &str, id: &str, url: &str, tags: &[&str], health: Health) {
        self.list(self.provider(service, id, url, tags, health));
    }

    /// Lists an instance that has several addresses, and states the first.
    pub(crate) fn offer_at(&self, service: &str, id: &str, addresses: &[SocketAddr]) {
        let stated = self.provider(service, id, &format!("http://{}", addresses[0]), &[], Health::Passing);
        let addresses = addresses.iter().map(SocketAddr::to_string).collect();
        self.list(Provider { addresses, ..stated });
    }

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

impl Host for Table {
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

/// A gateway that serves.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) table: Arc<Table>,
    pub(crate) gateway: Gateway,
    _task: tokio::task::JoinHandle<()>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let table = Arc::new(Table {
            providers: Mutex::default(),
            index: watch::Sender::new(1),
            listener: Mutex::new(Some(listener)),
            client: Client::default(),
            policy: lenient_policy(),
        });
        let gateway = Gateway::new(limits, 1);
        let task = tokio::spawn(gateway.task(Arc::clone(&table) as Arc<dyn Host>).unwrap());
        let world = Self { address, table, gateway, _task: task };
        world.until("it serves", |state| state["state"] == "serving").await;
        world
    }

    /// Lists an instance and waits until the gateway knows of it.
    pub(crate) async fn offer(&self, service: &str, id: &str, at: SocketAddr, tags: &[&str]) {
        self.table.offer(service, id, at, tags);
        self.settled().await;
    }

    /// Waits until the gateway has learnt what the table says now.
    pub(crate) async fn settled(&self) {
        let (index, _) = self.table.all_providers();
        self.until("it has learnt", |state| state["index"] == index.0).await;
    }

    /// What `GET /gateway` says.
    pub(crate) async fn state(&self) -> Value {
        let router = self.gateway.router(Arc::clone(&self.table) as Arc<dyn Host>);
        ask(router, http::Method::GET, "/gateway").await.json()
    }

    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) {
        let start = std::time::Instant::now();
        loop {
            let state = self.state().await;
            if is_so(&state) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "never came about: {what}; {state:#}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A number of the gateway's metrics.
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

    /// Sends bytes and reads everything that comes back.
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

/// What came back, up to the end of the connection.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) async fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A connection that is cut while we still send may end in an error; what came before it counts.
        _ = within(stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self { status: status.unwrap_or(0), head: head.to_owned(), body: body.to_owned() }
    }

    /// What an instance said of the request it got.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Asserts that this is a problem of this status, and gives its sentence.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        assert!(self.status == status && self.head.contains("application/problem+json"), "{self:?}");
        assert_eq!(self.json()["status"], status);
        self.json()["detail"].as_str().unwrap().to_owned()
    }
}

/// Waits for something that will happen, and not for ever.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it should have happened by now")
}

/// Reads until this has come.
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
