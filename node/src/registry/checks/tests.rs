//! Tests of checks with real sockets and processes of this machine: the node, the servers and the waiting
//! functions, limited by [`PATIENCE`], that the tests in `tests/` share.

mod alias;
mod datagram;
mod exec;
mod grpc;
mod h2ping;
mod http;
mod policy;
mod process;
mod run;
mod tls;
mod ttl;
mod watch;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hearsay_protocol::{Health, Index, NodeId};
use hearsay_services::network::AddressPolicy;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    connect::Connector,
    outcome::{OUTPUT_BYTES_MAX, Outcome},
    probe::Plan,
    runner::{Begin, CheckContext, CheckEvent, CheckKey, CheckRunner, CheckState, RunningCheck},
    *,
};
use crate::view::{Clock, View};

/// Time limit for a fact; generous for busy machines.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns a check of this kind with the defaults.
pub(super) fn spec(kind: CheckKind) -> CheckSpec {
    CheckSpec {
        retry_interval: None,
        id: "check".into(),
        name: "check".into(),
        kind,
        interval: INTERVAL_DEFAULT,
        timeout: TIMEOUT_DEFAULT,
        failures_before_warning: None,
        failures_before_critical: 1,
        successes_before_passing: 1,
        deregister_after: None,
        initial_status: Health::Critical,
        is_status_given: false,
    }
}

/// Returns the check with a short interval.
fn often(kind: CheckKind) -> CheckSpec {
    CheckSpec { interval: Duration::from_millis(100), ..spec(kind) }
}

fn tcp(address: SocketAddr) -> CheckKind {
    CheckKind::Tcp { address: address.to_string(), tls: CheckTls::default() }
}

fn connector() -> Connector {
    Connector::new(AddressPolicy::new(Arc::new(|_| false)).with_loopback(true))
}

/// Runs a check once and returns the outcome.
async fn run_once(kind: CheckKind, limit: Duration) -> Outcome {
    match Plan::new(&kind).unwrap() {
        Plan::Probe(probe) => probe.run(&connector(), limit).await,
        other => panic!("{other:?} has no runs"),
    }
}

/// A runner of checks with its events.
struct Node {
    view: Arc<View>,
    me: NodeId,
    metrics: Arc<metrics::CheckMetrics>,
    runner: CheckRunner,
    events: mpsc::Receiver<CheckEvent>,
}

impl Node {
    fn new() -> Self {
        Self::with(|context| context.allow_exec = true)
    }

    fn with(change: impl FnOnce(&mut CheckContext)) -> Self {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let me = NodeId::from_public_key([1; 32]);
        let mut context = CheckContext::new(Arc::clone(&view), me);
        change(&mut context);
        let metrics = Arc::clone(&context.metrics);
        let (runner, events) = CheckRunner::new(context);
        Self { view, me, metrics, runner, events }
    }

    fn start(&self, spec: CheckSpec) -> RunningCheck {
        self.begin(spec, Begin::Registered)
    }

    fn begin(&self, spec: CheckSpec, begin: Begin) -> RunningCheck {
        self.runner.start(key(), spec, begin)
    }

    async fn event(&mut self) -> CheckEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event").unwrap()
    }

    /// Waits for the next event, which must be a change to this status.
    async fn change_to(&mut self, status: Health) -> CheckState {
        match self.event().await {
            CheckEvent::Changed(of, state) => {
                assert_eq!(of, key());
                assert_eq!(state.status, status, "{}", state.output);
                state
            }
            other => panic!("{other:?}"),
        }
    }

    fn metric(&self, name: &str) -> u64 {
        self.metrics.list().iter().filter(|m| m.name == name).map(|m| m.value).sum()
    }
}

fn key() -> CheckKey {
    CheckKey { instance: "web-1".into(), generation: 7, check: "check".into() }
}

fn state(status: Health) -> CheckState {
    CheckState { status, since_ms: 5, output: "before".into(), ..CheckState::default() }
}

/// Waits until a condition holds.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Waits until the output of a check contains this text.
async fn output(check: &RunningCheck, text: &str) -> CheckState {
    eventually(text, || check.state().output.contains(text)).await;
    check.state()
}

/// Returns an address at which nothing listens.
fn closed_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A server on an ephemeral port of 127.0.0.1, until it is dropped.
struct Server {
    address: SocketAddr,
    /// The requests so far.
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Starts a server with this connection handler.
    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::serve(move |stream, _| serve(stream)).await
    }

    /// Starts a server that reads a request and answers with these bytes.
    async fn answering(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::serve(move |mut stream, requests| {
            let answer = answer.clone();
            async move {
                read_request(&mut stream, &requests).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        })
        .await
    }

    async fn serve<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::default();
        let shared = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, requests, task }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn http(&self) -> HttpCheck {
        HttpCheck { url: format!("http://{}/health?x=1", self.address), ..HttpCheck::default() }
    }

    /// Stops the server and its connections, and waits for their end.
    async fn kill(self) {
        self.task.abort();
        let mut task = self.task;
        let _ = (&mut task).await;
    }
}

/// Reads a request head, and a body by `Content-Length`.
async fn read_request(stream: &mut TcpStream, requests: &Mutex<Vec<String>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                requests.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                return;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
    }
}
