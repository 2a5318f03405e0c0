//! Tests of the log shipper against log nodes on real sockets, with outages and lost answers.

use std::{net::SocketAddr, path::Path};

use axum::Router;
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;
use crate::{
    Service as _,
    journal::AppendError,
    plugins::log::{Log, record::Level},
    testing::{MemoryHost, MemoryJournal, request},
};

/// Upper bound of every wait, for a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn event(message: &str) -> LogEvent {
    LogEvent { time: 1_700_000_000_000, level: Level::Warn, service: "node".into(), message: message.into() }
}

/// A node that runs the log, with its HTTP.
struct LogNode {
    host: Arc<MemoryHost>,
    address: SocketAddr,
}

impl LogNode {
    async fn start() -> Self {
        let host = Arc::new(MemoryHost::new("log1").keeping(&Log::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Log::default().router(host.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { host, address }
    }

    fn journal(&self) -> &MemoryJournal {
        self.host.memory_journal(log::LOG_ROLE).unwrap()
    }

    fn router(&self) -> Router {
        Log::default().router(self.host.clone())
    }
}

async fn messages(router: Router) -> Vec<String> {
    let page = request(router, Method::GET, "/log?limit=1000").await.json();
    page["records"].as_array().unwrap().iter().map(|r| r["message"].as_str().unwrap().to_owned()).collect()
}

async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let ends = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < ends, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node that ships events, until it is stopped.
struct Ships {
    outbox: LogOutbox,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Ships {
    fn start(host: Arc<dyn Host>, dir: Option<&Path>) -> Self {
        let (outbox, waiting) = log_queue();
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(waiting.ship(host, dir.map(Into::into), stopping));
        Self { outbox, stop, task }
    }

    async fn stop(self) -> LogOutbox {
        self.stop.send_replace(true);
        self.task.await.unwrap();
        self.outbox
    }

    fn count(&self, name: &str) -> u64 {
        count(&self.outbox, name)
    }
}

fn count(outbox: &LogOutbox, name: &str) -> u64 {
    outbox.counters().list().iter().find(|(n, ..)| *n == name).unwrap().2
}

fn knowing(node: &LogNode) -> Arc<dyn Host> {
    Arc::new(MemoryHost::new("n1").with_provider("log", "log1", &format!("http://{}", node.address)))
}

#[tokio::test]
async fn events_reach_a_log_node_with_their_own_time_and_node_and_without_an_offset() {
    let log = LogNode::start().await;
    let ships = Ships::start(knowing(&log), None);
    ships.outbox.push(event("one"));
    ships.outbox.push(event("two"));
    until("both arrive", async || messages(log.router()).await == ["one", "two"]).await;
    let page = request(log.router(), Method::GET, "/log").await.json();
    let record = &page["records"][0];
    assert_eq!(
        (&record["node"], &record["service"], &record["level"]),
        (&"n1".into(), &"node".into(), &"warn".into())
    );
    assert_eq!((&record["time"], &record["offset"]), (&"2023-11-14T22:13:20.000Z".into(), &Value::Null));
    until("they are counted", async || ships.count("events_shipped") == 2).await;
}

#[tokio::test]
async fn what_the_log_refuses_of_a_batch_is_counted_and_the_rest_arrives() {
    let log = LogNode::start().await;
    let ships = Ships::start(knowing(&log), None);
    // An event from a clock that was never set is accepted.
    ships.outbox.push(LogEvent { time: 5, ..event("early") });
    ships.outbox.push(event(""));
    ships.outbox.push(event("late"));
    until("the good ones arrive", async || messages(log.router()).await == ["early", "late"]).await;
    until("each is counted", async || {
        (ships.count("events_shipped"), ships.count("events_refused")) == (2, 1)
    })
    .await;
}

#[tokio::test]
async fn a_node_that_runs_the_log_writes_its_own_journal() {
    let host = Arc::new(MemoryHost::new("log1").keeping(&Log::default()));
    let ships = Ships::start(host.clone(), None);
    ships.outbox.push(event("here"));
    until("it is written", async || messages(Log::default().router(host.clone())).await == ["here"]).await;
}

#[tokio::test]
async fn what_happens_while_there_is_no_log_is_kept_over_a_restart_and_arrives_once_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let alone = Ships::start(Arc::new(MemoryHost::new("n1")), Some(dir.path()));
    for n in 0..20 {
        alone.outbox.push(event(&format!("alone {n}")));
    }
    let outbox = alone.stop().await;
    assert_eq!((count(&outbox, "events_shipped"), count(&outbox, "events_unspooled")), (0, 0));
    let log = LogNode::start().await;
    let ships = Ships::start(knowing(&log), Some(dir.path()));
    ships.outbox.push(event("later"));
    let expected: Vec<String> = (0..20).map(|n| format!("alone {n}")).chain(["later".into()]).collect();
    until("all arrive", async || messages(log.router()).await.len() >= expected.len()).await;
    assert_eq!(messages(log.router()).await, expected);
    ships.stop().await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_log_node_that_cannot_write_is_tried_again_and_gets_each_event_once() {
    let log = LogNode::start().await;
    log.journal().refuse(Some(AppendError::DiskFull));
    let ships = Ships::start(knowing(&log), None);
    ships.outbox.push(event("one"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    ships.outbox.push(event("two"));
    assert_eq!(messages(log.router()).await, Vec::<String>::new());
    log.journal().refuse(None);
    until("both arrive", async || messages(log.router()).await.len() >= 2).await;
    assert_eq!(messages(log.router()).await, ["one", "two"]);
}

#[tokio::test]
async fn an_answer_that_got_lost_does_not_double_what_it_confirmed() {
    let log = LogNode::start().await;
    // The first node takes the events and breaks off; the second one has the same log.
    let broken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (front, back) = (broken.local_addr().unwrap(), log.address);
    tokio::spawn(async move {
        loop {
            let Ok((mut client, _)) = broken.accept().await else { return };
            let mut server = tokio::net::TcpStream::connect(back).await.unwrap();
            tokio::spawn(async move {
                let (mut from, _) = client.split();
                let (mut answer, mut to) = server.split();
                let mut one = [0; 1];
                tokio::select! {
                    _ = tokio::io::copy(&mut from, &mut to) => (),
                    // The log node has answered, so it has written the events.
                    _ = tokio::io::AsyncReadExt::read(&mut answer, &mut one) => (),
                }
            });
        }
    });
    let url = |address: SocketAddr| format!("http://{address}");
    let host = MemoryHost::new("n1").with_provider("log", "front", &url(front)).with_provider(
        "log",
        "back",
        &url(back),
    );
    let ships = Ships::start(Arc::new(host), None);
    for n in 0..5 {
        ships.outbox.push(event(&n.to_string()));
    }
    until("all are confirmed", async || ships.count("events_shipped") == 5).await;
    assert_eq!(messages(log.router()).await.len(), 5);
}

#[tokio::test]
async fn an_outbox_never_waits_and_counts_what_it_drops() {
    let (outbox, _waiting) = log_queue();
    for n in 0..QUEUE_MAX + 10 {
        outbox.push(event(&n.to_string()));
    }
    assert_eq!(count(&outbox, "events_unqueued"), 10);
}

#[tokio::test]
async fn a_long_message_is_cut_at_a_character() {
    let (outbox, mut waiting) = log_queue();
    outbox.push(event(&"ä".repeat(MESSAGE_BYTES_MAX)));
    let message = waiting.events.recv().await.unwrap().message;
    assert!(message.len() <= MESSAGE_BYTES_MAX + 3 && message.ends_with("ä…"));
}
