//! Instances that die, stall and misbehave.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hearsay_services::Service as _;
use hearsay_services::gateway::limits::Limits;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    instance::{always, echo, full, http1, mute, nobody, raw, says},
    world::{World, read_until, within},
};

/// Asks again and again on one connection, until told to stop. Every failure is a sentence.
async fn ask_on(world: Arc<World>, stop: Arc<AtomicBool>, asked: Arc<AtomicUsize>) -> Vec<String> {
    let mut failures = Vec::new();
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    while !stop.load(Relaxed) {
        stream.write_all(b"GET /web/x HTTP/1.1\r\nhost: gw\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        while !reply.ends_with("whole") {
            let mut part = [0; 1024];
            match within(stream.read(&mut part)).await {
                Ok(n @ 1..) => reply += &String::from_utf8_lossy(&part[..n]),
                ended => {
                    failures.push(format!("{ended:?} after {reply:?}"));
                    stream = TcpStream::connect(world.address).await.unwrap();
                    break;
                }
            }
            if reply.contains("problem+json") {
                failures.push(reply);
                stream = TcpStream::connect(world.address).await.unwrap();
                break;
            }
        }
        asked.fetch_add(1, Relaxed);
    }
    failures
}

async fn answers_whole() -> crate::instance::Running {
    http1(|_| async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        http::Response::new(full("whole"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_killed_under_load_costs_no_safe_request() {
    let world = Arc::new(World::start().await);
    let mut instances = Vec::new();
    for id in ["a", "b", "c"] {
        let instance = answers_whole().await;
        world.offer("web", id, instance.address, &[]).await;
        instances.push(instance);
    }
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..64 {
        clients.spawn(ask_on(Arc::clone(&world), Arc::clone(&stop), Arc::clone(&asked)));
    }
    let at_least = async |more: usize| {
        let so_far = asked.load(Relaxed);
        within(async {
            while asked.load(Relaxed) < so_far + more {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    };
    at_least(1000).await;
    // Its node has not noticed yet: the table goes on listing it.
    instances.pop().unwrap().kill().await;
    at_least(1000).await;
    world.table.withdraw("c");
    at_least(500).await;
    let newcomer = answers_whole().await;
    world.offer("web", "c", newcomer.address, &[]).await;
    at_least(1000).await;
    instances.pop().unwrap().kill().await;
    at_least(1000).await;
    stop.store(true, Relaxed);
    let failures: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    let retries = world.metric("gateway_retries", None);
    println!("{} requests, {retries} retries, {} failures", asked.load(Relaxed), failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(retries > 0 && newcomer.connections() > 0);
    assert!(world.metric("gateway_ejections", None) > 0);
}

#[tokio::test]
async fn an_instance_is_reached_at_whichever_of_its_addresses_answers() {
    let world = World::start().await;
    let good = echo("good").await;
    world.table.offer_at("web", "a", &[nobody(), nobody(), good.address]);
    world.settled().await;
    for _ in 0..5 {
        let post = "POST /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(world.send(post).await.json()["body"], "hello");
    }
    let state = world.state().await;
    let instance = &state["instances"][0];
    assert_eq!(
        (&instance["failed"], &instance["answered"]),
        (&0.into(), &5.into()),
        "it is not blamed: {state:#}"
    );
    assert_eq!(instance["addresses"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn a_request_that_was_never_sent_goes_elsewhere_whatever_its_method() {
    let world = World::start().await;
    let good = echo("good").await;
    world.offer("web", "dead", nobody(), &[]).await;
    world.offer("web", "good", good.address, &[]).await;
    for _ in 0..20 {
        let post = "POST /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(world.send(post).await.json()["body"], "hello");
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_repeated_only_if_it_is_safe() {
    let world = World::start().await;
    let (breaker, good) = (says("").await, echo("good").await);
    world.offer("web", "good", good.address, &[]).await;
    world.offer("web", "breaker", breaker.address, &[]).await;
    // As many as it takes until the ejection: then nobody goes there.
    let (mut broken, mut asked) = (0, 0);
    for _ in 0..20 {
        asked += 1;
        assert_eq!(world.get("/web").await.status, 200, "a safe one succeeds, whoever is asked first");
        let post = world
            .send("POST /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx")
            .await;
        if post.status != 200 {
            assert!(post.problem(502).contains("breaker"));
            broken += 1;
        }
    }
    let connections = breaker.connections();
    println!("{asked} of each, {broken} broken posts, {connections} times at the breaker");
    assert!(connections > 0 && connections <= 4, "three failures eject it: {connections}");
    assert_eq!(u64::try_from(broken).unwrap(), world.refused("broken"));
}

#[tokio::test]
async fn what_went_wrong_is_told_apart() {
    let limits = Limits { answer: Duration::from_millis(200), ..Limits::default() };
    let world = World::with(limits).await;
    let (breaker, liar, silent) = (says("").await, says("SMTP 220\r\n\r\n").await, mute().await);
    world.offer("dead", "d", nobody(), &[]).await;
    world.offer("breaker", "b", breaker.address, &[]).await;
    world.offer("liar", "l", liar.address, &[]).await;
    world.offer("silent", "s", silent.address, &[]).await;
    world.table.offer_as("tls", "t", "https://127.0.0.1:1", &[], hearsay_protocol::record::Health::Passing);
    world.settled().await;
    for (path, status, words) in [
        ("/dead", 503, "could be reached"),
        ("/tls", 503, "GET /gateway says why"),
        ("/breaker", 502, "broke off"),
        ("/liar", 502, "broke off"),
        ("/silent", 504, "did not answer"),
    ] {
        let detail = world.get(path).await.problem(status);
        assert!(detail.contains(words), "{path}: {detail}");
    }
    for (reason, count) in [("unreachable", 2), ("broken", 2), ("answer_time", 1)] {
        assert_eq!(world.refused(reason), count, "{reason}");
    }
}

#[tokio::test]
async fn an_instance_that_says_it_cannot_is_passed_over_for_safe_requests() {
    let world = World::start().await;
    let (busy, good) = (always(503).await, echo("good").await);
    world.offer("web", "busy", busy.address, &[]).await;
    world.offer("web", "good", good.address, &[]).await;
    for _ in 0..20 {
        assert_eq!(world.get("/web").await.status, 200);
    }
    world.table.withdraw("good");
    world.settled().await;
    let only = world.get("/web").await;
    assert!(
        only.status == 503 && only.body.contains("this is how I am"),
        "its own words, when nobody else is there: {only:?}"
    );
}

#[tokio::test]
async fn an_instance_that_fails_is_left_out_and_asked_again_when_nobody_else_is_there() {
    let world = World::start().await;
    let (bad, good) = (always(500).await, echo("good").await);
    world.offer("web", "bad", bad.address, &[]).await;
    world.offer("web", "good", good.address, &[]).await;
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(world.get("/web").await.status == 500);
    }
    assert!((1..=10).contains(&failed), "it was left out after five: {failed}");
    world.table.withdraw("good");
    world.settled().await;
    assert_eq!(world.get("/web").await.status, 500, "ejected or not, it is all there is");
}

#[tokio::test]
async fn an_ejected_instance_comes_back_when_it_is_well_again() {
    let world = World::start().await;
    let ill = Arc::new(AtomicBool::new(true));
    let (served, asked_ill) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&ill));
    let count = Arc::clone(&served);
    let patient = http1(move |_| {
        let (ill, count) = (asked_ill.load(Relaxed), Arc::clone(&count));
        async move {
            let mut response = http::Response::new(full("x"));
            if ill {
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            } else {
                count.fetch_add(1, Relaxed);
            }
            response
        }
    })
    .await;
    let good = echo("good").await;
    world.offer("web", "patient", patient.address, &[]).await;
    world.offer("web", "good", good.address, &[]).await;
    let is_ejected = |state: &serde_json::Value| {
        state["instances"].as_array().unwrap().iter().any(|i| i["id"] == "patient" && i["ejected"] == true)
    };
    while !is_ejected(&world.state().await) {
        world.get("/web").await;
    }
    ill.store(false, Relaxed);
    within(async {
        while served.load(Relaxed) == 0 {
            world.get("/web").await;
        }
    })
    .await;
    assert!(!is_ejected(&world.state().await));
}

#[tokio::test]
async fn what_the_table_believes_dead_is_not_waited_for() {
    let world = World::start().await;
    let (frozen, good) = (mute().await, echo("good").await);
    world.offer("web", "frozen", frozen.address, &[]).await;
    let stream = world.open("GET /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n").await;
    world.until("it waits", |state| state["instances"][0]["inFlight"] == 1).await;
    world.table.withdraw("frozen");
    world.offer("web", "good", good.address, &[]).await;
    // The route that it was sent by knows nobody else, so it is told; a minute is not waited for.
    let start = std::time::Instant::now();
    let reply = crate::world::Reply::read(stream).await;
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn requests_finish_when_the_node_stops_and_no_new_ones_begin() {
    let world = World::start().await;
    let slow = http1(|_| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        http::Response::new(full("done"))
    })
    .await;
    world.offer("web", "w", slow.address, &[]).await;
    let stream = world.open("GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    world.until("it is in flight", |state| state["totals"]["inFlight"] == 1).await;
    let draining = tokio::spawn(world.gateway.drain().unwrap());
    let reply = crate::world::Reply::read(stream).await;
    assert!(reply.status == 200 && reply.body == "done", "{reply:?}");
    within(draining).await.unwrap();
    assert!(TcpStream::connect(world.address).await.is_err());
}

#[tokio::test]
async fn a_kept_connection_that_the_instance_closed_is_no_failure() {
    let world = World::start().await;
    // Says nothing of closing, and closes after each answer.
    let closer = raw(|mut stream| async move {
        if stream.read(&mut [0; 4096]).await.is_ok() {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await;
    world.offer("web", "w", closer.address, &[]).await;
    let mut stream = world.open("").await;
    for _ in 0..50 {
        stream.write_all(b"GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await.unwrap();
        let reply = read_until(&mut stream, "\r\n\r\nok").await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    }
    assert_eq!(world.metric("gateway_ejections", None), 0);
}
