//! Tests of blocking queries and of the event stream.

use tokio::io::AsyncBufReadExt;
use tokio::io::BufReader;

use hearsay_services::Host as _;

use super::*;

async fn server_with_web() -> Arc<Server> {
    let server = Server::start().await;
    server.apply([joined(member(1)), offered(instance(1, "a", "web"))]);
    Arc::new(server)
}

#[tokio::test]
async fn a_blocking_query_wakes_for_its_own_service_only() {
    let server = server_with_web().await;
    let seen = server.get("/services/web").await.json()["index"].as_u64().unwrap();
    let query = held(&server, &format!("/services/web?index={seen}&wait=10m")).await;
    server.apply([offered(instance(1, "d", "db"))]);
    assert_eq!(server.get("/services/db").await.status, 200);
    assert!(!query.is_finished(), "a change of another service");
    server.apply([offered(instance(1, "b", "web"))]);
    let reply = within(query).await.unwrap().json();
    assert!(reply["index"].as_u64().unwrap() > seen);
    assert_eq!(reply["services"]["web"].as_array().unwrap().len(), 2);
    until("the seat is given back", || server.metrics.http.waiting.get() == 0).await;
}

#[tokio::test]
async fn a_query_whose_time_is_over_answers_with_the_same_index() {
    let server = server_with_web().await;
    let seen = server.get("/services").await.json()["index"].as_u64().unwrap();
    let reply = server.get(&format!("/services?index={seen}&wait=20ms")).await;
    assert_eq!((reply.status, reply.json()["index"].as_u64()), (200, Some(seen)));
}

#[tokio::test]
async fn a_query_for_a_service_that_is_not_there_waits_and_then_finds_it_or_404() {
    let server = server_with_web().await;
    let index: u64 = server.get("/services/new").await.header("x-hearsay-index").parse().unwrap();
    server.get(&format!("/services/new?index={index}&wait=20ms")).await.problem(404);
    let query = held(&server, &format!("/services/new?index={index}")).await;
    server.apply([offered(instance(1, "n", "new"))]);
    assert_eq!(within(query).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_query_wakes_when_the_last_provider_goes() {
    let server = server_with_web().await;
    let seen = server.get("/services/web").await.json()["index"].as_u64().unwrap();
    let query = held(&server, &format!("/services/web?index={seen}")).await;
    server.apply([withdrawn(1, "a")]);
    within(query).await.unwrap().problem(404);
}

#[tokio::test]
async fn members_block_likewise() {
    let server = server_with_web().await;
    let seen: u64 = server.get("/members").await.header("x-hearsay-index").parse().unwrap();
    let query = held(&server, &format!("/members?index={seen}")).await;
    server.apply([joined(member(2))]);
    assert_eq!(within(query).await.unwrap().json()["members"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_index_of_another_node_is_answered_at_once() {
    let server = server_with_web().await;
    assert_eq!(server.get("/services?index=9007199254740991").await.status, 200);
}

#[tokio::test]
async fn who_waits_is_let_go_when_the_node_leaves() {
    let server = server_with_web().await;
    let seen = server.get("/services").await.json()["index"].as_u64().unwrap();
    let query = held(&server, &format!("/services?index={seen}")).await;
    let stream = held(&server, "/services/watch").await;
    server.readiness.send_replace(Readiness::Leaving);
    assert_eq!(within(query).await.unwrap().status, 200);
    assert_eq!(within(stream).await.unwrap().status, 200);
}

#[tokio::test]
async fn those_who_wait_cannot_keep_out_those_who_ask() {
    let server = Arc::new(Server::with(Setup { stream_limit: 1, ..Setup::default() }).await);
    let held = held(&server, &format!("/services?index={}", START.0)).await;
    let refused = server.get(&format!("/services?index={}", START.0)).await;
    assert_eq!(refused.header("retry-after"), "5");
    refused.problem(429);
    let refused = server.get(&format!("/v1/health/service/web?index={}", START.0)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "5"), "as Consul beyond a limit");
    server.get("/services/watch").await.problem(429);
    assert_eq!(server.get("/services").await.status, 200);
    held.abort();
}

/// A client of the event stream.
struct Events(BufReader<TcpStream>);

#[derive(Debug)]
struct Event {
    kind: String,
    id: u64,
    data: Value,
}

impl Events {
    async fn follow(server: &Server, path: &str, header: &str) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nhost: n1\r\n{header}\r\n");
        Self(BufReader::new(server.open(&request).await))
    }

    /// Returns the next event. Skips heads, chunk sizes and comments.
    async fn next(&mut self) -> Event {
        let mut event = Event { kind: String::new(), id: 0, data: Value::Null };
        loop {
            let mut line = String::new();
            assert_ne!(within(self.0.read_line(&mut line)).await.unwrap(), 0, "the stream ended");
            match line.trim_end().split_once(": ") {
                Some(("event", kind)) => event.kind = kind.to_owned(),
                Some(("id", id)) => event.id = id.parse().unwrap(),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                _ if line.trim_end().is_empty() && !event.kind.is_empty() => return event,
                _ => (),
            }
        }
    }
}

#[tokio::test]
async fn a_stream_begins_with_a_snapshot_and_follows_every_change() {
    let server = server_with_web().await;
    let mut events = Events::follow(&server, "/services/watch", "").await;
    let snapshot = events.next().await;
    assert_eq!((snapshot.kind.as_str(), &snapshot.data), ("snapshot", &server.get("/services").await.json()));
    assert_eq!(snapshot.data["index"], snapshot.id);
    let (node, id, mut changed) = instance(1, "b", "db");
    changed.health = Health::Warning;
    server.apply([offered(instance(1, "b", "db")), offered((node, id, changed)), withdrawn(1, "b")]);
    let mut last = snapshot.id;
    for (kind, health) in [("added", "passing"), ("changed", "warning"), ("removed", "warning")] {
        let event = events.next().await;
        assert_eq!((event.kind.as_str(), &event.data["health"]), (kind, &Value::from(health)));
        assert_eq!((&event.data["id"], &event.data["name"]), (&Value::from("b"), &Value::from("db")));
        assert!(event.id > last, "ids grow");
        last = event.id;
    }
}

#[tokio::test]
async fn a_program_of_two_nodes_is_one_instance_in_streams_and_for_plugins() {
    let server = Server::start().await;
    server.apply([joined(member(1)), joined(member(2))]);
    let at_one_place = |seed: u8, id: &str| {
        let (node, id, stated) = instance(seed, id, "web");
        (node, id, Instance { address: "10.0.0.9".into(), ..stated })
    };
    let [(low, low_id), (high, high_id)] =
        if node_id(1) < node_id(2) { [(1, "a"), (2, "b")] } else { [(2, "b"), (1, "a")] };
    server.apply([offered(at_one_place(high, high_id)), offered(at_one_place(low, low_id))]);
    let mut events = Events::follow(&server, "/services/watch?service=web", "").await;
    let snapshot = events.next().await;
    assert_eq!(snapshot.data["services"], server.get("/services/web").await.json()["services"]);
    assert_eq!(snapshot.data["services"]["web"].as_array().unwrap().len(), 1);
    let of_plugins = || server.host.all_providers().1.into_iter().map(|p| p.id.clone()).collect::<Vec<_>>();
    assert_eq!((of_plugins(), server.host.providers("web").len()), (vec![low_id.to_owned()], 1));
    server.apply([withdrawn(low, low_id)]);
    let moved = events.next().await;
    assert_eq!((moved.kind.as_str(), &moved.data["id"]), ("changed", &Value::from(high_id)));
    let replaced = &moved.data["replaces"];
    assert_eq!(replaced["nodeId"], node_id(low).to_string());
    assert_eq!((&replaced["id"], &replaced["node"]), (&Value::from(low_id), &Value::from(format!("n{low}"))));
    assert_eq!(of_plugins(), [high_id]);
    server.apply([withdrawn(high, high_id)]);
    let removed = events.next().await;
    assert_eq!((removed.kind.as_str(), &removed.data["id"]), ("removed", &Value::from(high_id)));
    assert_eq!(removed.data["replaces"], Value::Null);
}

#[tokio::test]
async fn a_stream_resumes_where_it_was_cut_off() {
    let server = server_with_web().await;
    let seen = Events::follow(&server, "/services/watch", "").await.next().await.id;
    server.apply([offered(instance(1, "b", "db")), offered(instance(1, "c", "web"))]);
    let header = format!("last-event-id: {seen}\r\n");
    let mut events = Events::follow(&server, "/services/watch", &header).await;
    assert_eq!(events.next().await.data["id"], "b");
    assert_eq!(events.next().await.data["id"], "c");
}

#[tokio::test]
async fn a_stream_that_cannot_resume_gets_a_new_snapshot() {
    let server = server_with_web().await;
    for id in ["1", "9007199254740991", "nonsense"] {
        let mut events =
            Events::follow(&server, "/services/watch", &format!("last-event-id: {id}\r\n")).await;
        assert_eq!(events.next().await.kind, "snapshot", "{id}");
    }
}

#[tokio::test]
async fn a_stream_of_one_service_hears_of_no_other() {
    let server = server_with_web().await;
    let mut events = Events::follow(&server, "/services/watch?service=db", "").await;
    assert_eq!(events.next().await.data["services"], serde_json::json!({ "db": [] }));
    server.apply([offered(instance(1, "c", "web")), offered(instance(1, "b", "db"))]);
    assert_eq!(events.next().await.data["id"], "b");
}

#[tokio::test]
async fn a_reader_behind_by_more_than_a_batch_misses_nothing() {
    let server = server_with_web().await;
    let mut events = Events::follow(&server, "/services/watch", "").await;
    events.next().await;
    server.apply((0..500).map(|i| offered(instance(1, &format!("i{i}"), "web"))));
    for i in 0..500 {
        assert_eq!(events.next().await.data["id"], format!("i{i}"));
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_gives_its_place_back() {
    let server = server_with_web().await;
    let mut events = Events::follow(&server, "/services/watch", "").await;
    events.next().await;
    drop(events);
    until("the place is free", || server.metrics.http.waiting.get() == 0).await;
}
