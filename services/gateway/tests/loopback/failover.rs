//! Tests of failover: a request goes to another instance if it was not sent or is safe to repeat, failing
//! instances are ejected and return, and each kind of failure has its status.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hearsay_gateway::Limits;
use hearsay_services::Service as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    harness::{Harness, read_until, within},
    instance::{always, closed_address, echo, full, http1, raw, raw_response, silent},
};

/// Sends requests on one connection until `stop`. Returns a sentence for each failure.
async fn ask_on(harness: Arc<Harness>, stop: Arc<AtomicBool>, asked: Arc<AtomicUsize>) -> Vec<String> {
    let mut failures = Vec::new();
    let mut stream = TcpStream::connect(harness.address).await.unwrap();
    while !stop.load(Relaxed) {
        stream.write_all(b"GET /web/x HTTP/1.1\r\nhost: gw\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        while !reply.ends_with("whole") {
            let mut part = [0; 1024];
            match within(stream.read(&mut part)).await {
                Ok(n @ 1..) => reply += &String::from_utf8_lossy(&part[..n]),
                ended => {
                    failures.push(format!("{ended:?} after {reply:?}"));
                    stream = TcpStream::connect(harness.address).await.unwrap();
                    break;
                }
            }
            if reply.contains("problem+json") {
                failures.push(reply);
                stream = TcpStream::connect(harness.address).await.unwrap();
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
    let harness = Arc::new(Harness::start().await);
    let mut instances = Vec::new();
    for id in ["a", "b", "c"] {
        let instance = answers_whole().await;
        harness.offer("web", id, instance.address, &[]).await;
        instances.push(instance);
    }
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..64 {
        clients.spawn(ask_on(Arc::clone(&harness), Arc::clone(&stop), Arc::clone(&asked)));
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
    // The provider table still lists the killed instance.
    instances.pop().unwrap().kill().await;
    at_least(1000).await;
    harness.table.withdraw("c");
    at_least(500).await;
    let newcomer = answers_whole().await;
    harness.offer("web", "c", newcomer.address, &[]).await;
    at_least(1000).await;
    instances.pop().unwrap().kill().await;
    at_least(1000).await;
    stop.store(true, Relaxed);
    let failures: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    let retries = harness.metric("gateway_retries", None);
    println!("{} requests, {retries} retries, {} failures", asked.load(Relaxed), failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(retries > 0 && newcomer.connections() > 0);
    assert!(harness.metric("gateway_ejections", None) > 0);
}

#[tokio::test]
async fn an_instance_is_reached_at_the_first_address_that_answers() {
    let harness = Harness::start().await;
    let good = echo("good").await;
    harness.table.offer_at("web", "a", &[closed_address(), closed_address(), good.address]);
    harness.settled().await;
    for _ in 0..5 {
        let post = "POST /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(harness.send(post).await.json()["body"], "hello");
    }
    let state = harness.state().await;
    let instance = &state["instances"][0];
    assert_eq!(
        (&instance["failed"], &instance["answered"]),
        (&0.into(), &5.into()),
        "it is not blamed: {state:#}"
    );
    assert_eq!(instance["addresses"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn a_request_that_was_not_sent_goes_to_another_instance_for_any_method() {
    let harness = Harness::start().await;
    let good = echo("good").await;
    harness.offer("web", "dead", closed_address(), &[]).await;
    harness.offer("web", "good", good.address, &[]).await;
    for _ in 0..20 {
        let post = "POST /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(harness.send(post).await.json()["body"], "hello");
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_repeated_only_if_it_is_safe() {
    let harness = Harness::start().await;
    let (breaker, good) = (raw_response("").await, echo("good").await);
    harness.offer("web", "good", good.address, &[]).await;
    harness.offer("web", "breaker", breaker.address, &[]).await;
    // Enough requests to cause an ejection.
    let (mut broken, mut asked) = (0, 0);
    for _ in 0..20 {
        asked += 1;
        assert_eq!(harness.get("/web").await.status, 200, "a safe request succeeds at another instance");
        let post = harness
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
    assert_eq!(u64::try_from(broken).unwrap(), harness.refused("broken"));
}

#[tokio::test]
async fn kinds_of_failures_have_different_statuses() {
    let limits = Limits { response: Duration::from_secs(2), ..Limits::default() };
    let harness = Harness::with(limits).await;
    let (breaker, liar, silent) =
        (raw_response("").await, raw_response("SMTP 220\r\n\r\n").await, silent().await);
    harness.offer("dead", "d", closed_address(), &[]).await;
    harness.offer("breaker", "b", breaker.address, &[]).await;
    harness.offer("liar", "l", liar.address, &[]).await;
    harness.offer("silent", "s", silent.address, &[]).await;
    harness.table.offer_as("tls", "t", "https://127.0.0.1:1", &[], hearsay_protocol::Health::Passing);
    harness.settled().await;
    for (path, status, words) in [
        ("/dead", 503, "could be reached"),
        ("/tls", 503, "GET /gateway says why"),
        ("/breaker", 502, "broke off"),
        ("/liar", 502, "broke off"),
        ("/silent", 504, "did not respond"),
    ] {
        let detail = harness.get(path).await.problem(status);
        assert!(detail.contains(words), "{path}: {detail}");
    }
    for (reason, count) in [("unreachable", 2), ("broken", 2), ("answer_time", 1)] {
        assert_eq!(harness.refused(reason), count, "{reason}");
    }
}

#[tokio::test]
async fn an_unavailable_instance_is_skipped_for_safe_requests() {
    let harness = Harness::start().await;
    let (busy, good) = (always(503).await, echo("good").await);
    harness.offer("web", "busy", busy.address, &[]).await;
    harness.offer("web", "good", good.address, &[]).await;
    for _ in 0..20 {
        assert_eq!(harness.get("/web").await.status, 200);
    }
    harness.table.withdraw("good");
    harness.settled().await;
    let only = harness.get("/web").await;
    assert!(
        only.status == 503 && only.body.contains("always the same"),
        "its own response, when there is no other: {only:?}"
    );
}

#[tokio::test]
async fn a_failing_instance_is_ejected_unless_it_is_the_last() {
    let harness = Harness::start().await;
    let (bad, good) = (always(500).await, echo("good").await);
    harness.offer("web", "bad", bad.address, &[]).await;
    harness.offer("web", "good", good.address, &[]).await;
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(harness.get("/web").await.status == 500);
    }
    assert!((1..=10).contains(&failed), "it is ejected after five failures: {failed}");
    harness.table.withdraw("good");
    harness.settled().await;
    assert_eq!(
        harness.get("/web").await.status,
        500,
        "the last instance gets requests even if it is ejected"
    );
}

#[tokio::test]
async fn an_ejected_instance_returns_when_it_has_recovered() {
    let harness = Harness::start().await;
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
    harness.offer("web", "patient", patient.address, &[]).await;
    harness.offer("web", "good", good.address, &[]).await;
    let is_ejected = |state: &serde_json::Value| {
        state["instances"].as_array().unwrap().iter().any(|i| i["id"] == "patient" && i["ejected"] == true)
    };
    while !is_ejected(&harness.state().await) {
        harness.get("/web").await;
    }
    ill.store(false, Relaxed);
    within(async {
        while served.load(Relaxed) == 0 {
            harness.get("/web").await;
        }
    })
    .await;
    assert!(!is_ejected(&harness.state().await));
}

#[tokio::test]
async fn a_request_does_not_wait_for_an_instance_that_is_gone() {
    let harness = Harness::start().await;
    let (frozen, good) = (silent().await, echo("good").await);
    harness.offer("web", "frozen", frozen.address, &[]).await;
    let stream = harness.open("GET /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n").await;
    harness.until("it waits", |state| state["instances"][0]["inFlight"] == 1).await;
    harness.table.withdraw("frozen");
    harness.offer("web", "good", good.address, &[]).await;
    // The request keeps the route that was found before `good` was added. So it gets a 504, but not after a
    // minute.
    let start = std::time::Instant::now();
    let reply = crate::harness::Reply::read(stream).await;
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn requests_finish_when_the_node_stops_and_no_new_ones_begin() {
    let harness = Harness::start().await;
    let slow = http1(|_| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        http::Response::new(full("done"))
    })
    .await;
    harness.offer("web", "w", slow.address, &[]).await;
    let stream = harness.open("GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    harness.until("it is in flight", |state| state["totals"]["inFlight"] == 1).await;
    let draining = tokio::spawn(harness.gateway.drain().unwrap());
    let reply = crate::harness::Reply::read(stream).await;
    assert!(reply.status == 200 && reply.body == "done", "{reply:?}");
    within(draining).await.unwrap();
    assert!(TcpStream::connect(harness.address).await.is_err());
}

#[tokio::test]
async fn an_idle_connection_that_the_instance_closed_is_no_failure() {
    let harness = Harness::start().await;
    // Closes the connection after each response without announcing it.
    let closer = raw(|mut stream| async move {
        if stream.read(&mut [0; 4096]).await.is_ok() {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await;
    harness.offer("web", "w", closer.address, &[]).await;
    let mut stream = harness.open("").await;
    for _ in 0..50 {
        stream.write_all(b"GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await.unwrap();
        let reply = read_until(&mut stream, "\r\n\r\nok").await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    }
    assert_eq!(harness.metric("gateway_ejections", None), 0);
}
