//! Tests that a nearly full log refuses a source over its share before the records of others are dropped, but
//! never a repeated write, a source that is alone, or the operator.

use std::net::IpAddr;

use hearsay_protocol::NodeId;

use super::*;
use crate::{
    http::source::Source,
    journal::Journal as _,
    plugins::log::admission::{Admission, AdmissionRequest, PROTECTED, exceeded_share},
};

/// Time of the first entries of the in-memory journal.
const WRITTEN_MS: u64 = 1_700_000_000_000;
/// Bound on the bytes of the log.
const MAX: u64 = 4_000_000;

/// Creates a bounded log with this clock.
fn bounded(now_ms: fn() -> u64) -> (Arc<MemoryHost>, Log, Router) {
    let log = Log { admission: Arc::new(Admission::at(now_ms)), ..Log::default() };
    let host = Arc::new(MemoryHost::new("n1").keeping(&log));
    host.memory_journal(LOG_ROLE).unwrap().bound_to(MAX);
    let router = log.router(host.clone());
    (host, log, router)
}

fn young() -> u64 {
    WRITTEN_MS + 60_000
}

fn host_at(ip: &str) -> Source {
    Source::Host(ip.parse::<IpAddr>().unwrap().into())
}

async fn post_as(router: &Router, source: Source, path: &str, body: String) -> Answer {
    let content_type = if path == "/log" { "text/plain" } else { "application/x-ndjson" };
    let mut request =
        Request::post(path).header("content-type", content_type).body(Body::from(body)).unwrap();
    request.extensions_mut().insert(source);
    send(router.clone(), request).await
}

/// Posts up to `records` large records until one is refused. Returns the number of stored records, and the
/// refusal.
async fn flood(router: &Router, source: Source, records: usize) -> (usize, Option<Answer>) {
    for stored in 0..records {
        let answer = post_as(router, source, "/log", "x".repeat(30_000)).await;
        if answer.status != 200 {
            return (stored, Some(answer));
        }
    }
    (records, None)
}

async fn used(host: &MemoryHost) -> u64 {
    let journal = host.memory_journal(LOG_ROLE).unwrap();
    let db = journal.readers().open().unwrap();
    let number = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, u64>(0)).unwrap();
    number("page_count") * number("page_size")
}

#[tokio::test]
async fn a_source_that_floods_is_refused_before_it_pushes_out_others_and_they_are_not() {
    let (host, log, router) = bounded(young);
    let (honest, stranger) = (host_at("192.0.2.1"), host_at("192.0.2.66"));
    assert_eq!(post_as(&router, honest, "/log", "marked".into()).await.status, 200);
    let (stored, refusal) = flood(&router, stranger, 1000).await;
    let refusal = refusal.expect("a refusal");
    assert!(stored > 20, "{stored}");
    assert_eq!((refusal.status.as_u16(), &refusal.json()["source"]), (429, &json!("192.0.2.66")));
    assert_eq!(refusal.headers["retry-after"], "60");
    assert!(refusal.json()["detail"].as_str().unwrap().contains("nothing was stored"));
    // The node's journal would also store its runs in the database, which the in-memory journal does not
    // have.
    assert!(used(&host).await < MAX, "{}", used(&host).await);
    assert_eq!(log.metrics()[1].value, 1);
    // All paths count for the same source, and other sources still have room.
    for path in ["/log", "/log/events"] {
        let line = format!("{{\"message\":\"{}\"}}", "x".repeat(30_000));
        assert_eq!(post_as(&router, stranger, path, line.clone()).await.status, 429, "{path}");
        assert_eq!(post_as(&router, honest, path, line.clone()).await.status, 200, "{path}");
        assert_eq!(post_as(&router, Source::Operator, path, line).await.status, 200, "{path}");
    }
    let mut numbered = Request::post("/records").body(Body::from(r#"{"record":{"value":"eA=="}}"#)).unwrap();
    numbered.extensions_mut().insert(stranger);
    assert_eq!(send(router.clone(), numbered).await.status, 429);
    assert_eq!(get(&router, "/log?q=marked").await.json()["records"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_repetition_is_no_new_write_and_takes_no_new_records_along() {
    let (_, _, router) = bounded(young);
    let stranger = host_at("192.0.2.66");
    let batch = async |records: usize| {
        // Long records have the length of the one that was refused.
        let text = |n: usize| if n < 2 { "short".to_owned() } else { "x".repeat(30_000) };
        let lines: String = (0..records).map(|n| format!("{{\"message\":\"{}\"}}\n", text(n))).collect();
        let request = Request::post("/log").header("content-type", "application/x-ndjson");
        let mut request = request.header("idempotency-key", "k").body(Body::from(lines)).unwrap();
        request.extensions_mut().insert(stranger);
        send(router.clone(), request).await.status.as_u16()
    };
    assert_eq!(post_as(&router, host_at("192.0.2.1"), "/log", "marked".into()).await.status, 200);
    assert_eq!(batch(2).await, 200);
    assert!(flood(&router, stranger, 1000).await.1.is_some());
    assert_eq!(batch(2).await, 200, "it is stored");
    assert_eq!(batch(3).await, 429, "the third is not");
}

#[tokio::test]
async fn a_source_that_is_alone_is_never_refused_whatever_the_node_says_of_itself() {
    let (host, _, router) = bounded(young);
    let event = r#"{"message":"started","node":"n1"}"#.to_owned();
    assert_eq!(post_as(&router, Source::Operator, "/log/events", event).await.status, 200);
    let (stored, refusal) = flood(&router, host_at("192.0.2.66"), 200).await;
    assert_eq!((stored, refusal.is_none()), (200, true));
    assert!(used(&host).await > MAX);
}

#[tokio::test]
async fn the_operator_is_never_refused_and_neither_is_a_log_that_reaches_back() {
    let (_, _, router) = bounded(young);
    assert_eq!(post_as(&router, host_at("192.0.2.1"), "/log", "marked".into()).await.status, 200);
    assert!(flood(&router, Source::Operator, 200).await.1.is_none());
    let (_, _, router) = bounded(|| WRITTEN_MS + 25 * 3600 * 1000);
    assert_eq!(post_as(&router, host_at("192.0.2.1"), "/log", "marked".into()).await.status, 200);
    assert!(flood(&router, host_at("192.0.2.66"), 200).await.1.is_none());
}

#[tokio::test]
async fn of_a_full_log_a_newcomer_gets_a_share() {
    let (_, _, router) = bounded(young);
    // The first source is alone and has everything.
    let (first, second, third) =
        (host_at("192.0.2.1"), host_at("192.0.2.2"), Source::Member(NodeId::from_public_key([9; 32])));
    assert!(flood(&router, first, 70).await.1.is_none());
    let (of_second, refusal) = flood(&router, second, 100).await;
    assert_eq!(refusal.map(|answer| answer.status.as_u16()), Some(429));
    let (of_third, refusal) = flood(&router, third, 100).await;
    assert_eq!(refusal.map(|answer| answer.status.as_u16()), Some(429));
    assert_eq!(flood(&router, first, 1).await.0, 0, "the first has more than a share now");
    assert!((10..60).contains(&of_second) && (5..=of_second).contains(&of_third), "{of_second} {of_third}");
}

#[tokio::test]
async fn writes_that_are_under_way_count() {
    let (host, _, router) = bounded(young);
    assert_eq!(post_as(&router, host_at("192.0.2.1"), "/log", "marked".into()).await.status, 200);
    let journal = host.memory_journal(LOG_ROLE).unwrap();
    let request = |pending| AdmissionRequest {
        me: host.node_id(),
        source: "192.0.2.66".into(),
        pending,
        pending_of_source: pending,
        max: MAX,
        now_ms: young(),
    };
    let db = journal.readers().open().unwrap();
    assert_eq!(exceeded_share(&db, &request(MAX / 2)).unwrap(), None);
    let share = exceeded_share(&db, &request(MAX)).unwrap().expect("it is too much");
    assert!((MAX / 2..MAX).contains(&share), "{share}");
    let old = AdmissionRequest { now_ms: young() + PROTECTED.as_millis() as u64, ..request(MAX) };
    assert_eq!(exceeded_share(&db, &old).unwrap(), None);
}
