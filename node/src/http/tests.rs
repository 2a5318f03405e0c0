//! Tests of HTTP over a loopback socket: the test server, the reader of replies and the sample members that
//! the tests in `tests/` share.
//!
//! The clients write bytes instead of using a library, because a library refuses to send half of the tested
//! requests.

mod bounds;
mod classes;
mod consul;
mod contract;
mod grpc;
mod guard;
mod jsonrpc;
mod login;
mod mcp;
mod ui;
mod waiting;

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::Router;
use hearsay_protocol::{
    Change, FireRefusal, Health, Identity, Incarnation, Index, Instance, Member, MemberState, NodeId, Time,
    Version, wire::UserEventClaim,
};
use hearsay_services::Service;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

use super::*;
use crate::{
    apis::{self, xds::catalog_cache::CatalogCache},
    builtin,
    driver_command::{DriverCommand, Neighbourhood},
    journal::{JournalContext, Journals},
    metrics::Metrics,
    operator_request::OperatorRequest,
    registry::{self, Registry},
    signing::Signing,
    storage::Secret,
    user_events::UserEvents,
    view::{Clock, View},
};

/// Bound on every wait, generous for slow machines.
const PATIENCE: Duration = Duration::from_secs(20);
/// First index of every table.
const START: Index = Index(1000);

/// The HTTP server of a node, without the rest of the node.
struct Server {
    address: SocketAddr,
    view: Arc<View>,
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
    neighbours: watch::Sender<Neighbourhood>,
    stop: watch::Sender<bool>,
    operator_requests: mpsc::Receiver<OperatorRequest>,
    registry: Arc<Registry>,
    serving: tokio::task::JoinHandle<()>,
    router: Router,
    grpc: Router,
    host: Arc<NodeHost>,
    state: Arc<AppState>,
    _dir: tempfile::TempDir,
    /// Commands of the journals to the driver, which does not run here.
    _driver_commands: mpsc::Receiver<DriverCommand>,
}

/// Settings of a server.
struct Setup {
    limits: Limits,
    roles: &'static [&'static str],
    access: Access,
    stream_limit: usize,
    response_bytes: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            roles: &["grading"],
            access: Access::default(),
            stream_limit: 100,
            response_bytes: 1 << 28,
        }
    }
}

fn plugins_of(roles: &[&str]) -> Vec<Arc<dyn Service>> {
    builtin().into_iter().filter(|plugin| roles.contains(&plugin.name())).collect()
}

fn signing_of(view: &Arc<View>, cluster: &str) -> Arc<Signing> {
    let me = Identity::from_seed(&[1; 32]);
    Arc::new(Signing::new(me, cluster.to_owned(), Arc::clone(view), None))
}

fn open_registry(view: &Arc<View>) -> Arc<Registry> {
    let (orders, _) = mpsc::channel(16);
    let parts = registry::RegistryContext {
        node_id: node_id(1),
        view: Arc::clone(view),
        driver: orders,
        role_instances: 1,
        listeners: vec![],
        allow_exec: false,
    };
    Registry::open(None, parts).unwrap()
}

fn open_journals(
    plugins: &[Arc<dyn Service>],
    dir: &Path,
    clock: Clock,
) -> (Arc<Journals>, mpsc::Receiver<DriverCommand>) {
    let (orders, driver_commands) = mpsc::channel(16);
    let context = JournalContext {
        dir: Some(dir),
        me: &|| Identity::from_seed(&[1; 32]),
        cluster: "test",
        replicas_expected: None,
        retention: &Default::default(),
        clock,
        driver: orders,
        wrap_store: |store, _| Box::new(store),
    };
    (Arc::new(Journals::open(plugins, &context).unwrap()), driver_commands)
}

/// Starts a driver that only fires user events.
fn start_user_events(view: &Arc<View>) -> (Arc<UserEvents>, mpsc::Sender<DriverCommand>) {
    let events = Arc::new(UserEvents::new(node_id(1), "n1".to_owned(), Arc::clone(view)));
    let (driver, commands) = mpsc::channel(16);
    tokio::spawn(fire_user_events(Arc::clone(&events), commands));
    (events, driver)
}

/// Name of a user event that the driver refuses in [`fire_user_events`].
const REFUSED_EVENT: &str = "refused";

/// Fires user events as the driver of a node without neighbours does.
async fn fire_user_events(events: Arc<UserEvents>, mut commands: mpsc::Receiver<DriverCommand>) {
    let me = Identity::from_seed(&[1; 32]);
    let (by, incarnation, mut number) = (me.id(), Incarnation(5), 0);
    while let Some(command) = commands.recv().await {
        let DriverCommand::FireUserEvent(content, answer) = command else { continue };
        if content.name == REFUSED_EVENT {
            _ = answer.send(Err(FireRefusal::RateLimited { per_s: 10, burst: 100 }));
            continue;
        }
        number += 1;
        let claim = UserEventClaim { by, incarnation, number, lamport: number, content: *content };
        let event = claim.sign(&me, "test");
        events.deliver(event.clone());
        _ = answer.send(Ok(Box::new(event)));
    }
}

impl Server {
    async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    async fn with(setup: Setup) -> Self {
        let view = Arc::new(View::new(START, Clock::start()));
        let metrics = Arc::new(Metrics::new(Arc::clone(&view)));
        let (operator_requests, request_receiver) = mpsc::channel(1);
        let (readiness, is_ready) = watch::channel(Readiness::Ready);
        let (stop, is_stopped) = watch::channel(false);
        let (neighbours, neighbourhood) = watch::channel(Neighbourhood::default());
        let (id, name, cluster) = (node_id(1), "n1".to_owned(), "test".to_owned());
        let registry = open_registry(&view);
        let (user_events, driver) = start_user_events(&view);
        let (access, limits) = (Arc::new(setup.access), setup.limits);
        let (names, signing) = (HostNames::new([name.clone()]), signing_of(&view, &cluster));
        let state = Arc::new(AppState {
            view: Arc::clone(&view),
            id,
            name: name.clone(),
            cluster: cluster.clone(),
            metrics: Arc::clone(&metrics),
            registry: Arc::clone(&registry),
            user_events,
            driver,
            operator_requests,
            access: Arc::clone(&access),
            signing: Arc::clone(&signing),
            readiness: is_ready,
            warnings: Arc::default(),
            neighbours: neighbourhood,
            names: names.clone(),
            stream_limit: StreamLimit::new(setup.stream_limit),
            dns_port: Some(8600),
            response_budget: ResponseBudget::new(setup.response_bytes),
            xds: CatalogCache::new(id, Arc::clone(&view), Arc::clone(&metrics.xds)),
        });
        let plugins = plugins_of(setup.roles);
        let dir = tempfile::tempdir().unwrap();
        let (journals, driver_commands) = open_journals(&plugins, dir.path(), view.clock());
        let host = Arc::new(NodeHost {
            view: Arc::clone(&view),
            exempt: Default::default(),
            id,
            name,
            cluster,
            demo: true,
            journals,
            listeners: Default::default(),
            access,
            signing,
            client: hearsay_services::Client::default(),
            address_policy: registry.address_policy().clone(),
            names,
            metrics: Arc::clone(&metrics),
            gateway_options: Default::default(),
            own_http: None,
        });
        for task in plugins.iter().filter_map(|plugin| plugin.task(host.clone())) {
            within(task).await;
        }
        let grpc = apis::grpc::router(Arc::clone(&state));
        let router = router(Arc::clone(&state), &plugins, host.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, router.clone(), limits, Arc::clone(&metrics), is_stopped));
        Self {
            address,
            view,
            metrics,
            readiness,
            neighbours,
            stop,
            operator_requests: request_receiver,
            registry,
            serving,
            router,
            grpc,
            host,
            state,
            _dir: dir,
            _driver_commands: driver_commands,
        }
    }

    /// Applies changes to the table.
    fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        self.view.apply(self.view.clock().now(), changes);
    }

    /// Opens a connection and sends bytes.
    async fn open(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        stream
    }

    /// Sends a request with these header lines and this body on a new connection.
    async fn send(&self, request: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Reply {
        let body = body.as_ref();
        let mut head = format!("{request} HTTP/1.1\r\nconnection: close\r\n");
        let is_sent = |name: &str| headers.iter().any(|line| line.starts_with(name));
        if !is_sent("host:") {
            head.push_str("host: 127.0.0.1\r\n");
        }
        if !body.is_empty() && !is_sent("transfer-encoding:") && !is_sent("content-length:") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        headers.iter().for_each(|line| head.push_str(&format!("{line}\r\n")));
        Reply::read(self.open([format!("{head}\r\n").as_bytes(), body].concat()).await).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(&format!("GET {path}"), &[], "").await
    }
}

/// A response, read to the end of the connection.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Reply {
    async fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A connection that the server closes during the request may end in an error; the bytes before it
        // count.
        let _ = within(stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|s| s.parse().ok());
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()));
        Self { status: status.unwrap_or(0), headers: headers.collect(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Asserts that the response is a problem with this status, and returns its detail.
    #[track_caller]
    fn problem(&self, status: u16) -> String {
        assert_eq!(
            (self.status, self.header("content-type")),
            (status, "application/problem+json"),
            "{self:?}"
        );
        let json = self.json();
        assert_eq!(json["status"], status);
        assert!(json["type"].is_string() && json["title"].is_string());
        json["detail"].as_str().unwrap().to_owned()
    }
}

/// Waits for a future within [`PATIENCE`].
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it should have happened by now")
}

/// Starts a query in the background and returns once the server holds it.
async fn held(server: &Arc<Server>, path: &str) -> tokio::task::JoinHandle<Reply> {
    let before = server.metrics.http.waiting.get();
    let (asking, path) = (Arc::clone(server), path.to_owned());
    let query = tokio::spawn(async move { asking.get(&path).await });
    until("the query waits", || server.metrics.http.waiting.get() == before + 1).await;
    query
}

/// Waits until a condition holds.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never came about: {what}");
}

fn node_id(seed: u8) -> NodeId {
    Identity::from_seed(&[seed; 32]).id()
}

/// The member `n<seed>`.
fn member(seed: u8) -> Member {
    Member {
        id: node_id(seed),
        name: format!("n{seed}"),
        state: MemberState::Alive,
        roles: vec!["grading".into()],
        addresses: vec![format!("/ip4/10.0.0.{seed}/tcp/7600")],
        http: Some(format!("10.0.0.{seed}:7500")),
        zone: None,
        software: "test".into(),
        protocol: 1,
        ephemeral: false,
        grpc: None,
        incarnation: Incarnation(5),
        version: Version(3),
        since: Time::ZERO,
        rtt: None,
        rank: 0,
        namesake: false,
    }
}

fn joined(member: Member) -> Change {
    Change::Member(Box::new(member))
}

/// An instance of a service on member `n<seed>`.
fn instance(seed: u8, id: &str, service: &str) -> (NodeId, String, Instance) {
    let instance = Instance {
        service: service.into(),
        address: format!("10.0.0.{seed}"),
        port: 80,
        url: format!("http://10.0.0.{seed}:80"),
        tags: vec!["a".into(), format!("n{seed}")],
        meta: BTreeMap::from([("k".into(), "v".into())]),
        health: Health::Passing,
        since_ms: 1_500,
        ..Instance::default()
    };
    (node_id(seed), id.into(), instance)
}

fn offered((node, id, instance): (NodeId, String, Instance)) -> Change {
    Change::Instance { node, id, instance: Some(Arc::new(instance)) }
}

fn withdrawn(seed: u8, id: &str) -> Change {
    Change::Instance { node: node_id(seed), id: id.into(), instance: None }
}
