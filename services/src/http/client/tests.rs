//! Tests of the HTTP client on real sockets: after which failures it tries the next instance or address,
//! which writes it repeats, which targets it refuses, and in which order it tries instances.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::{Router, extract::State, response::IntoResponse};
use hearsay_protocol::Health;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use http::Method;

use super::*;
use crate::{http::append::IDEMPOTENCY_KEY, testing::MemoryHost};

/// Instance with a scripted answer, which records its requests.
struct Instance {
    url: String,
    asked: Arc<Mutex<Vec<(Method, String, HeaderMap)>>>,
}

#[derive(Clone)]
struct Does {
    status: u16,
    body: String,
    delay: Duration,
    asked: Arc<Mutex<Vec<(Method, String, HeaderMap)>>>,
}

impl Instance {
    async fn answering(status: u16, body: &str) -> Self {
        Self::slow(status, body, Duration::ZERO).await
    }

    async fn slow(status: u16, body: &str, delay: Duration) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let does = Does { status, body: body.to_owned(), delay, asked: Arc::clone(&asked) };
        let answer = async |State(does): State<Does>, request: http::Request<axum::body::Body>| {
            let (head, _) = request.into_parts();
            does.asked.lock().unwrap().push((head.method, head.uri.to_string(), head.headers));
            tokio::time::sleep(does.delay).await;
            (StatusCode::from_u16(does.status).unwrap(), [("location", "/elsewhere")], does.body)
                .into_response()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(does);
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { url, asked }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// Returns an address without a listener.
async fn unused_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Starts a server that counts requests and closes the connection instead of answering.
async fn breaking_server() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, count) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {
                counted.fetch_add(1, SeqCst);
            }
        }
    });
    (url, count)
}

fn quick() -> Client {
    Client::new(CallLimits { answer: Duration::from_secs(2), body_bytes: 1000, ..CallLimits::default() })
}

/// A host whose instances are tried in this order, because each has a worse health than the one before.
fn host(urls: &[&str]) -> MemoryHost {
    let host = MemoryHost::new("me");
    for (i, url) in urls.iter().enumerate() {
        let health = [Health::Passing, Health::Warning, Health::Critical][i.min(2)];
        host.offer("web", &format!("n{i}"), url, health);
    }
    host
}

fn write() -> Call {
    Call::new(Method::POST, "/things").json(&serde_json::json!({ "a": 1 }))
}

#[tokio::test]
async fn nobody_there_is_told_apart_from_nobody_able() {
    let client = quick();
    let none = client.call(&host(&[]), "web", &Call::get("/")).await.unwrap_err();
    assert_eq!(none.to_string(), "no instance of web is alive");
    let unable =
        client.call(&host(&[&unused_address().await, "ftp://x"]), "web", &Call::get("/")).await.unwrap_err();
    let text = unable.to_string();
    assert!(
        text.contains("n0: cannot be reached") && text.contains("n1: \"ftp://x\" is not an http:// address"),
        "{text}"
    );
}

#[tokio::test]
async fn a_read_goes_on_to_the_next_whatever_is_wrong_with_the_first() {
    let (broken, _) = breaking_server().await;
    let slow = Instance::slow(200, "late", Duration::from_secs(5)).await;
    let failing = Instance::answering(503, r#"{"detail":"not now"}"#).await;
    for bad in [unused_address().await, broken, slow.url, failing.url] {
        let good = Instance::answering(200, "\"good\"").await;
        let reply = quick().call(&host(&[&bad, &good.url]), "web", &Call::get("/a?b=c")).await.unwrap();
        assert_eq!((reply.json::<String>().unwrap().as_str(), reply.provider.node.as_str()), ("good", "n1"));
        assert_eq!(good.asked.lock().unwrap()[0].1, "/a?b=c");
    }
}

#[tokio::test]
async fn an_instance_is_asked_at_the_first_of_its_addresses_that_takes_a_connection() {
    let (dead, dead_too) = (unused_address().await, unused_address().await);
    let good = Instance::answering(200, "").await;
    let host = MemoryHost::new("me");
    let bare = |url: &str| url.trim_start_matches("http://").to_owned();
    host.offer_at("web", "n0", &[&bare(&dead), &bare(&dead_too), &bare(&good.url)]);
    let client = quick();
    client.call(&host, "web", &Call::get("/")).await.unwrap();
    client.call(&host, "web", &write()).await.unwrap();
    assert_eq!(good.asked(), 2, "a write, too: nothing of it was sent elsewhere");
    assert_eq!(
        client.0.alternatives.order(&host.providers("web")[0])[0],
        good.url,
        "which is tried first now"
    );
    host.withdraw("web", "n0");
    host.offer_at("web", "n0", &[&bare(&dead), &bare(&dead_too)]);
    let error = client.call(&host, "web", &Call::get("/")).await.unwrap_err().to_string();
    assert!(error.contains(&dead) && error.contains(&dead_too), "{error}");
}

#[tokio::test]
async fn an_instance_that_broke_off_is_not_asked_at_its_other_addresses() {
    let (broken, taken) = breaking_server().await;
    let good = Instance::answering(200, "").await;
    let host = MemoryHost::new("me");
    let bare = |url: &str| url.trim_start_matches("http://").to_owned();
    host.offer_at("web", "n0", &[&bare(&broken), &bare(&good.url)]);
    quick().call(&host, "web", &write()).await.unwrap_err();
    assert_eq!((taken.load(SeqCst), good.asked()), (1, 0), "the write may have been carried out");
}

#[tokio::test]
async fn a_write_goes_on_only_if_nothing_of_it_can_have_arrived() {
    let good = Instance::answering(201, "{}").await;
    let reply = quick().call(&host(&[&unused_address().await, &good.url]), "web", &write()).await.unwrap();
    assert_eq!((reply.status.as_u16(), good.asked()), (201, 1));

    let (broken, taken) = breaking_server().await;
    let error = quick().call(&host(&[&broken, &good.url]), "web", &write()).await.unwrap_err();
    assert!(matches!(error, CallError::AllFailed { indeterminate: true, .. }), "{error}");
    assert_eq!((taken.load(SeqCst), good.asked()), (1, 1), "no instance was called twice");

    let failing = Instance::answering(500, "oops").await;
    let reply = quick().call(&host(&[&failing.url, &good.url]), "web", &write()).await.unwrap();
    assert_eq!((reply.status.as_u16(), good.asked()), (500, 1), "the failure is the answer");
}

#[tokio::test]
async fn a_write_with_a_key_is_repeated_under_the_same_key() {
    let (broken, taken) = breaking_server().await;
    let full = Instance::answering(507, r#"{"detail":"the disk is full"}"#).await;
    let good = Instance::answering(201, "{}").await;
    let call = write().header(IDEMPOTENCY_KEY, "k1");
    let reply = quick().call(&host(&[&broken, &full.url, &good.url]), "web", &call).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.provider.node.as_str(), taken.load(SeqCst)), (201, "n2", 1));
    for instance in [&full, &good] {
        let asked = instance.asked.lock().unwrap();
        assert_eq!((asked[0].0.as_str(), asked[0].2[IDEMPOTENCY_KEY].to_str().unwrap()), ("POST", "k1"));
    }
}

#[tokio::test]
async fn what_says_that_nothing_was_written_leaves_no_doubt() {
    let full = Instance::answering(507, r#"{"detail":"the disk is full"}"#).await;
    let call = write().header(IDEMPOTENCY_KEY, "k1");
    let error = quick().call(&host(&[&full.url]), "web", &call).await.unwrap_err();
    assert!(matches!(error, CallError::AllFailed { indeterminate: false, .. }));
    assert!(error.to_string().contains("507 Insufficient Storage: the disk is full"), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_taken_in() {
    let (large, other) =
        (Instance::answering(200, &"x".repeat(1001)).await, Instance::answering(200, "").await);
    let error = quick().call(&host(&[&large.url, &other.url]), "web", &Call::get("/")).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { bytes_max: 1000, .. }), "{error}");
    assert_eq!(other.asked(), 0, "it would be as large there");
}

/// A role with a URL that leads elsewhere, as an older node may announce it.
#[tokio::test]
async fn nothing_of_a_url_but_its_origin_is_called_and_no_path_but_the_roles() {
    let instance = Instance::answering(200, "").await;
    let host = MemoryHost::new("me");
    host.offer("grading", "n0", &format!("{}/v1/agent/leave?", instance.url), Health::Passing);
    let client = quick();
    client.call(&host, "grading", &Call::new(Method::PUT, "/students/1")).await.unwrap();
    for path in ["/v1/agent/leave", "/", "/studentship", "/students/../v1", "v1", "@10.0.0.1/"] {
        let answer = client.call(&host, "grading", &Call::get(path)).await;
        assert!(answer.is_err() || path.contains(".."), "{path}");
    }
    let asked = instance.asked.lock().unwrap();
    assert_eq!((asked[0].0.as_str(), asked[0].1.as_str()), ("PUT", "/students/1"));
    assert!(asked.iter().all(|(_, path, _)| path.starts_with("/students/")), "{asked:?}");
}

#[tokio::test]
async fn each_request_says_that_a_node_passes_it_on() {
    let instance = Instance::answering(200, "").await;
    let host = host(&[&instance.url]);
    quick().call(&host, "web", &Call::get("/")).await.unwrap();
    quick().stream(&host, "web", &Call::get("/")).await.unwrap();
    let via = format!("1.1 hearsay-{}", host.node_id().short());
    let asked = instance.asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|(_, _, headers)| headers[header::VIA] == via), "{asked:?}");
}

#[tokio::test]
async fn an_address_that_the_policy_refuses_is_not_called() {
    let good = Instance::answering(200, "").await;
    for (bad, rule) in [
        ("http://169.254.169.254", "link-local"),
        ("http://[fd00:ec2::254]", "metadata"),
        ("http://0.0.0.0:80", "unspecified"),
        ("http://2852039166", "link-local"),
    ] {
        let error = quick().call(&host(&[bad]), "web", &Call::get("/")).await.unwrap_err().to_string();
        assert!(error.contains("not called: ") && error.contains(rule), "{bad}: {error}");
        let host = host(&[bad, &good.url]);
        assert_eq!(quick().call(&host, "web", &Call::get("/")).await.unwrap().provider.node, "n1", "{bad}");
        let counted: u64 = host.address_policy().refusals().map(|(_, count)| count).sum();
        assert_eq!(counted, 1, "{bad}");
    }
}

#[tokio::test]
async fn refusals_and_redirects_are_answers() {
    for status in [404, 409, 307] {
        let (refusing, other) = (Instance::answering(status, "").await, Instance::answering(200, "").await);
        let reply = quick().call(&host(&[&refusing.url, &other.url]), "web", &Call::get("/")).await.unwrap();
        assert_eq!((reply.status.as_u16(), other.asked(), refusing.asked()), (status, 0, 1));
    }
}

#[tokio::test]
async fn the_local_come_first_and_the_critical_last() {
    let host = MemoryHost::new("me");
    let (far, here, sick) = (
        Instance::answering(200, "").await,
        Instance::answering(200, "").await,
        Instance::answering(200, "").await,
    );
    host.offer("web", "far", &far.url, Health::Passing);
    host.offer("web", "me", &here.url, Health::Passing);
    let client = quick();
    let by = async |call: Call| client.call(&host, "web", &call).await.unwrap().provider.node.clone();
    assert_eq!(by(Call::get("/")).await, "me");
    let preferred = host.providers("web")[0].node_id;
    assert_eq!(by(Call::get("/").prefer(Some(preferred))).await, "far");
    host.withdraw("web", "me");
    host.offer("web", "me", &sick.url, Health::Critical);
    assert_eq!(by(Call::get("/")).await, "far");
    host.withdraw("web", "far");
    assert_eq!(by(Call::get("/")).await, "me", "better a critical one than none");
}

#[tokio::test]
async fn one_that_could_not_be_reached_is_asked_last_for_a_while() {
    let slow = Instance::slow(200, "", Duration::from_secs(5)).await;
    let good = Instance::answering(200, "").await;
    let (host, client) = (host(&[&slow.url, &good.url]), quick());
    for _ in 0..3 {
        assert_eq!(client.call(&host, "web", &Call::get("/")).await.unwrap().provider.node, "n1");
    }
    assert_eq!(slow.asked(), 1);
}

#[tokio::test]
async fn a_stream_is_whatever_succeeds_first() {
    let failing = Instance::answering(404, r#"{"detail":"no such path"}"#).await;
    let good = Instance::answering(200, "data: x\n\n").await;
    let stream = quick().stream(&host(&[&failing.url, &good.url]), "web", &Call::get("/tail")).await.unwrap();
    let body = stream.body.collect().await.unwrap().to_bytes();
    assert_eq!((stream.provider.node.as_str(), body.as_ref()), ("n1", b"data: x\n\n".as_slice()));
}

#[tokio::test]
async fn connections_are_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    let (host, client) = (host(&[&url]), quick());
    for _ in 0..5 {
        client.call(&host, "web", &Call::get("/")).await.unwrap();
    }
    assert_eq!(accepted.load(SeqCst), 1);
}

/// The corpus of the fuzz target `addresses` has origins and other text.
#[test]
fn a_request_goes_to_the_origin_that_is_read_and_to_no_other_path() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/addresses");
    let provider = host(&["http://10.0.0.1:1"]).providers("web").remove(0);
    let (call, via) =
        (Call { is_for_role: false, ..Call::get("/things?a=b") }, HeaderValue::from_static("me"));
    let mut made = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let Ok(url) = std::str::from_utf8(&bytes) else { continue };
        let Ok(request) = request(&provider, url, &call, &via) else { continue };
        assert_eq!(request.uri().to_string(), format!("{url}/things?a=b"));
        made += 1;
    }
    assert!(made > 1, "{made} origins");
}
