//! Tests of the log over its HTTP paths: writes, batches and retries, paging, filters and search, numbered
//! records (`/records`), and live tails.

mod dropping;
mod order;
mod shares;

use axum::{Router, body::Body};
use base64::Engine as _;
use http::{Method, Request};
use serde_json::{Value, json};

use super::{write::BASE64, *};
use crate::{
    journal::AppendError,
    testing::{Answer, MemoryHost, MemoryJournal, breaches, request, send},
};

fn host() -> Arc<MemoryHost> {
    Arc::new(MemoryHost::new("n1").keeping(&Log::default()))
}

fn router() -> Router {
    Log::default().router(host())
}

async fn post(router: &Router, path: &str, content_type: &str, body: impl Into<Body>) -> Answer {
    let request = Request::post(path).header("content-type", content_type).body(body.into()).unwrap();
    send(router.clone(), request).await
}

async fn get(router: &Router, path: &str) -> Answer {
    request(router.clone(), Method::GET, path).await
}

/// Returns every record of a listing, page by page, and the cursor for later requests.
async fn all(router: &Router, query: &str) -> (Vec<Value>, String) {
    let (mut records, mut after) = (Vec::new(), String::new());
    loop {
        let page = get(router, &format!("/log?{query}&after={after}")).await;
        assert_eq!(page.status, 200, "{}", page.text());
        let page = page.json();
        records.extend(page["records"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => return (records, page["resume"].as_str().unwrap().to_owned()),
        }
    }
}

/// Returns every record of a listing, backward from the end.
async fn all_back(router: &Router, query: &str) -> Vec<Value> {
    let (mut records, mut before) = (Vec::new(), "end".to_owned());
    loop {
        let page = get(router, &format!("/log?{query}&before={before}")).await.json();
        let mut part = page["records"].as_array().unwrap().clone();
        part.append(&mut records);
        records = part;
        match page["prev"].as_str() {
            Some(prev) => before = prev.to_owned(),
            None => return records,
        }
    }
}

fn messages(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn it_conforms() {
    let found = breaches(&Log::default(), host()).await;
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn a_record_is_answered_with_its_id_offset_and_level_and_listed_with_all_its_fields() {
    let router = router();
    let answer = post(&router, "/log", "text/plain", "hello\n").await;
    let reply = answer.json();
    assert_eq!((answer.status.as_u16(), &reply["offset"], &reply["ack"]), (200, &json!(0), &json!("local")));
    assert_eq!(answer.headers["hearsay-token"].to_str().unwrap(), reply["id"].as_str().unwrap());
    let record = r#"{"message":"full","level":"warn","service":"web","time":"2026-11-21T10:00:00.250Z"}"#;
    let second = post(&router, "/log", "application/json", record).await.json();
    let page = get(&router, "/log").await.json();
    let first = &page["records"][0];
    assert_eq!(
        (&first["id"], &first["message"], &first["service"]),
        (&reply["id"], &json!("hello"), &Value::Null)
    );
    assert_eq!((&first["level"], &first["node"]), (&json!("info"), &json!("n1")));
    assert!(first["time"].as_str().unwrap().ends_with('Z'));
    let expected = json!({ "id": second["id"], "node": "n1", "offset": 1, "time": "2026-11-21T10:00:00.250Z",
        "service": "web", "level": "warn", "message": "full" });
    assert_eq!(page["records"][1], expected);
    assert_eq!(page["next"], Value::Null);
}

#[tokio::test]
async fn several_records_are_answered_together_and_a_bad_one_is_refused_alone() {
    let router = router();
    let body = "{\"message\":\"a\"}\n{\"message\":\"b\"}\n";
    let answer = post(&router, "/log", "application/x-ndjson", body).await;
    let records = answer.json()["records"].clone();
    assert_eq!((&records[0]["offset"], &records[1]["offset"]), (&json!(0), &json!(1)));
    assert_eq!(answer.headers["hearsay-token"].to_str().unwrap().split(',').count(), 2);
    let array = post(&router, "/log", "application/json", r#"[{"message":"c"}]"#).await.json();
    assert_eq!(array["records"][0]["offset"], 2);
    let body = "{\"message\":\"d\"}\n\n{}\n{\"message\":\"e\",\"level\":\"FATAL\"}\n";
    let partly = post(&router, "/log", "application/x-ndjson", body).await;
    let answer = partly.json();
    assert_eq!((partly.status.as_u16(), answer["records"].as_array().unwrap().len()), (207, 2), "{answer}");
    let refused = json!([{ "record": 1, "line": 3, "field": "message", "detail": "message: is missing; expected a string" }]);
    assert_eq!(answer["refused"], refused);
    assert_eq!(partly.headers["hearsay-token"].to_str().unwrap().split(',').count(), 2);
    let none = post(&router, "/log", "application/x-ndjson", "\n{}\n{}\n").await;
    assert_eq!((none.status.as_u16(), &none.json()["line"]), (400, &json!(2)));
    assert_eq!(none.json()["refused"].as_array().unwrap().len(), 2);
    assert_eq!(post(&router, "/log", "text/plain", "").await.status, 400);
    assert_eq!(messages(&all(&router, "").await.0), ["a", "b", "c", "d", "e"]);
    assert_eq!(get(&router, "/log?level=error").await.json()["records"][0]["message"], "e");
}

#[tokio::test]
async fn what_is_refused_is_counted() {
    let log = Log::default();
    let router = log.router(host());
    post(&router, "/log", "application/x-ndjson", "{\"message\":\"a\"}\n{}\n7\n").await;
    post(&router, "/log", "application/json", "{}").await;
    assert_eq!(log.metrics()[0].value, 3);
}

#[tokio::test]
async fn a_retry_at_another_node_is_the_same_record() {
    let node = |name: &str| Arc::new(MemoryHost::new(name).keeping(&Log::default()));
    let (first, second) = (node("n1"), node("n2"));
    let routers = [Log::default().router(first.clone()), Log::default().router(second.clone())];
    let with_key = async |at: usize, content_type: &str, body: &'static str| {
        let request =
            Request::post("/log").header("idempotency-key", "k").header("content-type", content_type);
        send(routers[at].clone(), request.body(Body::from(body)).unwrap()).await
    };
    let lines =
        "{\"message\":\"x\"}\n{\"message\":\"y\",\"level\":\"warn\",\"service\":\"s\",\"time\":1795950000}";
    let one = with_key(0, "text/plain", "a").await.json();
    let many = with_key(0, "application/x-ndjson", lines).await.json();
    // All entries of the first node but the last reach the second one before the first node fails.
    let entries = first.memory_journal(LOG_ROLE).unwrap().entries();
    entries.iter().take(2).for_each(|entry| second.memory_journal(LOG_ROLE).unwrap().take(entry.clone()));
    assert_eq!(with_key(1, "text/plain", "a").await.json()["id"], one["id"]);
    let again = with_key(1, "application/x-ndjson", lines).await;
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(again.json()["records"][0]["id"], many["records"][0]["id"]);
    assert_eq!(messages(&all(&routers[1], "").await.0), ["a", "x", "y"]);
    assert_eq!(with_key(1, "text/plain", "b").await.status, 409);
}

#[tokio::test]
async fn a_retry_is_the_same_record_and_another_body_is_a_conflict() {
    let router = router();
    let with_key = async |content_type: &str, body: &'static str| {
        let request =
            Request::post("/log").header("idempotency-key", "k").header("content-type", content_type);
        send(router.clone(), request.body(Body::from(body)).unwrap()).await
    };
    let first = with_key("text/plain", "a").await;
    assert_eq!(with_key("text/plain", "a").await.json(), first.json());
    assert_eq!(with_key("text/plain", "b").await.status, 409);
    let lines = "{\"message\":\"x\"}\n{\"message\":\"y\"}";
    let many = with_key("application/x-ndjson", lines).await;
    assert_eq!(with_key("application/x-ndjson", lines).await.json(), many.json());
    assert_eq!(messages(&all(&router, "").await.0), ["a", "x", "y"]);
}

#[tokio::test]
async fn numbered_records_come_back_byte_for_byte_and_share_one_sequence_with_the_log() {
    let router = router();
    let value = BASE64.encode([0, 159, 255, 10]);
    let add = async |value: &str| {
        post(&router, "/records", "application/json", json!({ "record": { "value": value } }).to_string())
            .await
    };
    assert_eq!(add(&value).await.json(), json!({ "offset": 0 }));
    assert_eq!(post(&router, "/log", "text/plain", "text").await.json()["offset"], 1);
    // Events are listed but have no offset.
    let events = "{\"message\":\"started\",\"node\":\"n9\",\"service\":\"node\"}\n{\"message\":\"joined\"}";
    let answer = post(&router, "/log/events", "application/x-ndjson", events).await.json();
    assert_eq!(answer["records"][0]["offset"], Value::Null);
    assert_eq!(add("YQ").await.json(), json!({ "offset": 2 }), "without padding, too");
    for (offset, expected) in [(0, value.as_str()), (1, "dGV4dA=="), (2, "YQ==")] {
        let record = json!({ "record": { "value": expected, "offset": offset } });
        assert_eq!(get(&router, &format!("/records/{offset}")).await.json(), record);
        let request =
            Request::get("/records").body(Body::from(json!({ "offset": offset }).to_string())).unwrap();
        assert_eq!(send(router.clone(), request).await.json(), record);
    }
    assert_eq!(get(&router, "/records").await.json()["count"], 3);
    for path in ["/records/3", "/records/x", "/records/-1", "/records/18446744073709551615"] {
        let answer = get(&router, path).await;
        assert!(answer.status == 404 && answer.is_problem(), "{path}");
    }
    let listed = all(&router, "").await.0;
    assert_eq!((&listed[2]["node"], &listed[2]["offset"]), (&json!("n9"), &Value::Null));
    for (body, status) in [
        ("", 400),
        ("{}", 400),
        ("{\"record\":{}}", 400),
        ("{\"record\":{\"value\":5}}", 400),
        ("{\"record\":{\"value\":\"*\"}}", 400),
    ] {
        let answer = post(&router, "/records", "application/json", body).await;
        assert!(answer.status == status && answer.text().contains("record"), "{body}: {}", answer.text());
    }
    let long = BASE64.encode(vec![0; record::MESSAGE_BYTES_MAX + 1]);
    assert_eq!(add(&long).await.status, 413);
}

#[tokio::test]
async fn a_page_goes_on_where_the_last_one_ended_and_nothing_is_told_twice() {
    let router = router();
    for n in 0..25 {
        post(&router, "/log", "text/plain", n.to_string()).await;
    }
    let (records, resume) = all(&router, "limit=7").await;
    let expected: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    assert_eq!(messages(&records), expected);
    post(&router, "/log", "text/plain", "later").await;
    let page = get(&router, &format!("/log?after={resume}")).await.json();
    assert_eq!(messages(page["records"].as_array().unwrap()), ["later"]);
    // `after` with the id of a record: records that arrived after it.
    let id = records[23]["id"].as_str().unwrap();
    let page = get(&router, &format!("/log?after={id}")).await.json();
    assert_eq!(messages(page["records"].as_array().unwrap()), ["24", "later"]);
    let newest = get(&router, "/log?before=end&limit=2").await.json();
    assert_eq!(messages(newest["records"].as_array().unwrap()), ["24", "later"]);
    assert_eq!(newest["next"], Value::Null);
    let before =
        get(&router, &format!("/log?before={}&limit=2", newest["prev"].as_str().unwrap())).await.json();
    assert_eq!(messages(before["records"].as_array().unwrap()), ["22", "23"]);
    let onwards = get(&router, &format!("/log?after={}", before["next"].as_str().unwrap())).await.json();
    assert_eq!(onwards["records"], newest["records"]);
    assert_eq!(all_back(&router, "limit=4").await, all(&router, "").await.0);
    let page = get(&router, &format!("/log?after={}", newest["resume"].as_str().unwrap())).await.json();
    assert_eq!(page["records"], json!([]));
}

#[tokio::test]
async fn records_are_chosen_by_service_level_and_words() {
    let router = router();
    let lines = [
        r#"{"message":"Disk is full on /dev/sda","level":"error","service":"web"}"#,
        r#"{"message":"disk is fine","level":"debug","service":"web"}"#,
        r#"{"message":"Grüße aus Köln","service":"web 2"}"#,
        r#"{"message":"full moon","level":"warn"}"#,
    ];
    post(&router, "/log", "application/x-ndjson", lines.join("\n")).await;
    let found = async |query: &str| {
        let (records, _) = all(&router, query).await;
        let newest = get(&router, &format!("/log?before=end&{query}")).await.json();
        assert_eq!(newest["records"], json!(records), "{query}");
        records.iter().map(|r| r["offset"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(found("service=web").await, [0, 1]);
    assert_eq!(found("level=warn").await, [0, 3]);
    assert_eq!(found("level=INFO").await, [0, 2, 3]);
    assert_eq!(found("level=warn&service=web").await, [0]);
    assert_eq!(found("q=full").await, [0, 3]);
    assert_eq!(found("q=FULL%20disk").await, [0]);
    assert_eq!(found("q=disk&service=web&level=info").await, [0]);
    assert_eq!(found("q=KOLN&service=web%202").await, [2]);
    assert_eq!(found("q=koln&service=web").await, [0; 0]);
    assert_eq!(found("q=%22is%20full%22").await, [0]);
    assert_eq!(found("q=ful*").await, [0, 3]);
    assert_eq!(found("q=dev%2Fsda").await, [0]);
    // The name of a service is not part of the message.
    assert_eq!(found("q=web").await, [0; 0]);
}

#[tokio::test]
async fn nothing_that_is_typed_into_a_search_is_an_error_of_the_database() {
    let router = router();
    for n in 0..300 {
        post(&router, "/log", "text/plain", format!("x {n}")).await;
    }
    let mut rng = fastrand::Rng::with_seed(7);
    let alphabet: Vec<char> = "ax0*\"'()^:-+{}NEAR ANDORT\u{0}\u{1}é,.\\%_".chars().collect();
    for _ in 0..300 {
        let text: String = (0..rng.usize(0..20)).map(|_| *rng.choice(&alphabet).unwrap()).collect();
        let q: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
        let status = get(&router, &format!("/log?q={q}")).await.status.as_u16();
        match text.contains(char::is_alphanumeric) || text.is_empty() {
            false => assert_eq!(status, 400, "{text:?}"),
            // A prefix may be too short.
            true => assert!(status == 200 || status == 400 && text.contains('*'), "{status} {text:?}"),
        }
    }
}

#[tokio::test]
async fn a_search_finds_the_same_in_the_index_and_beside_it() {
    let router = router();
    let total = 2 * tables::INDEX_EVERY as u64 + 10;
    for n in 0..total {
        post(&router, "/log", "text/plain", format!("word{} number {n}", n % 3)).await;
    }
    let (records, _) = all(&router, "q=WORD1&limit=50").await;
    let offsets: Vec<u64> = records.iter().map(|r| r["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, (0..total).filter(|n| n % 3 == 1).collect::<Vec<_>>());
    assert_eq!(all_back(&router, "q=word1&limit=50").await, records);
    let newest = get(&router, "/log?before=end&q=word1&limit=40").await.json();
    assert_eq!(newest["records"], json!(records[records.len() - 40..]));
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_what_can() {
    let router = router();
    for (query, words) in [
        ("limit=0", "1 to 1000"),
        ("limit=1001", "1 to 1000"),
        ("level=loud", "trace, debug"),
        ("after=x", "cursor"),
        ("q=---", "no letter"),
        ("page=2", "unknown parameter"),
        ("before=end&after=c.00000000.0.0", "without after"),
        ("before=x", "end or the prev"),
    ] {
        let answer = get(&router, &format!("/log?{query}")).await;
        assert!(answer.status == 400 && answer.text().contains(words), "{query}: {}", answer.text());
    }
    // Well-formed cursors of another node.
    for after in ["c.00000000.0.0", "c.00000000.1.5.ff.1.1"] {
        let answer = get(&router, &format!("/log?after={after}")).await;
        assert!(answer.status == 410 && answer.is_problem(), "{}", answer.text());
    }
    let page = get(&router, "/log").await.json();
    let ahead = page["resume"].as_str().unwrap().replace(".0.0", ".5.5");
    assert_eq!(get(&router, &format!("/log?after={ahead}")).await.status, 410);
}

#[tokio::test]
async fn a_write_that_fails_says_so_and_stores_nothing() {
    let host = host();
    let router = Log::default().router(host.clone());
    let journal: &Arc<MemoryJournal> = host.memory_journal(LOG_ROLE).unwrap();
    journal.refuse(Some(AppendError::DiskFull));
    for (path, content_type, body) in [
        ("/log", "text/plain", "a"),
        ("/log", "application/x-ndjson", "{\"message\":\"a\"}"),
        ("/log/events", "application/x-ndjson", "{\"message\":\"a\"}"),
        ("/records", "application/json", "{\"record\":{\"value\":\"\"}}"),
    ] {
        let answer = post(&router, path, content_type, body).await;
        assert!(answer.status == 507 && answer.is_problem(), "{path}: {}", answer.text());
    }
    journal.refuse(None);
    assert_eq!(all(&router, "").await.0, Vec::<Value>::new());
    assert_eq!(post(&router, "/log", "text/plain", "a").await.json()["offset"], 0);
}

#[tokio::test]
async fn a_host_without_the_journal_says_that_another_is_to_be_asked() {
    let router = Log::default().router(Arc::new(MemoryHost::new("n1")));
    for path in ["/log", "/log/tail", "/records", "/records/0"] {
        assert_eq!(get(&router, path).await.status, 503, "{path}");
    }
}

mod tail {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;

    struct Reader {
        body: Body,
        text: String,
    }

    impl Reader {
        async fn open(router: &Router, path: &str, last_id: Option<&str>) -> Self {
            let mut request = Request::get(path);
            if let Some(id) = last_id {
                request = request.header("last-event-id", id);
            }
            let response = tower::ServiceExt::oneshot(router.clone(), request.body(Body::empty()).unwrap())
                .await
                .unwrap();
            assert_eq!(response.status(), 200);
            Self { body: response.into_body(), text: String::new() }
        }

        /// Returns the next event: name, id and data.
        async fn event(&mut self) -> (String, String, Value) {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let field = |name: &str| {
                        let line = event.lines().find_map(|line| line.strip_prefix(name));
                        line.unwrap_or_default().trim().to_owned()
                    };
                    let found = (
                        field("event:"),
                        field("id:"),
                        serde_json::from_str(&field("data:")).unwrap_or_default(),
                    );
                    self.text = rest.to_owned();
                    return found;
                }
                let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await;
                let frame = frame.expect("an event comes").expect("the stream goes on").unwrap();
                self.text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
            }
        }

        async fn message(&mut self) -> String {
            self.event().await.2["message"].as_str().unwrap_or_default().to_owned()
        }
    }

    #[tokio::test]
    async fn records_come_as_they_are_written_and_a_reader_goes_on_where_it_was() {
        let router = router();
        post(&router, "/log", "text/plain", "before").await;
        let mut reader = Reader::open(&router, "/log/tail", None).await;
        for message in ["one", "two", "three"] {
            post(&router, "/log", "text/plain", message).await;
        }
        let (name, id, data) = reader.event().await;
        assert_eq!((name.as_str(), &data["message"], &data["offset"]), ("", &json!("one"), &json!(1)));
        let mut second = Reader::open(&router, "/log/tail", Some(&id)).await;
        assert_eq!([second.message().await, second.message().await], ["two", "three"]);
        let mut after =
            Reader::open(&router, &format!("/log/tail?after={}", data["id"].as_str().unwrap()), None).await;
        assert_eq!(after.message().await, "two");
    }

    #[tokio::test]
    async fn a_tail_is_filtered_and_may_begin_with_the_last_records() {
        let router = router();
        let line = |message: &str, level: &str, service: &str| {
            json!({ "message": message, "level": level, "service": service }).to_string()
        };
        let lines = [
            line("Alpha", "warn", "web"),
            line("beta", "warn", "web"),
            line("alphabet", "info", "web"),
            line("alpha", "error", "db"),
        ];
        post(&router, "/log", "application/x-ndjson", lines.join("\n")).await;
        let mut reader = Reader::open(&router, "/log/tail?last=10&q=ALPHA&service=web", None).await;
        assert_eq!([reader.message().await, reader.message().await], ["Alpha", "alphabet"]);
        let mut reader = Reader::open(&router, "/log/tail?last=1&level=warn", None).await;
        assert_eq!(reader.message().await, "alpha");
        post(
            &router,
            "/log",
            "application/x-ndjson",
            [line("quiet", "info", "web"), line("loud", "error", "web")].join("\n"),
        )
        .await;
        assert_eq!(reader.message().await, "loud");
    }

    #[tokio::test]
    async fn who_was_at_another_node_is_told_of_the_gap() {
        let router = router();
        let mut reader = Reader::open(&router, "/log/tail", Some("c.00000000.5.5")).await;
        assert_eq!(reader.event().await.0, "gap");
        post(&router, "/log", "text/plain", "next").await;
        assert_eq!(reader.message().await, "next");
        assert_eq!(get(&router, "/log/tail?after=c.00000000.5.5").await.status, 410);
    }

    #[tokio::test]
    async fn there_are_only_so_many_places() {
        let router = router();
        let mut readers = Vec::new();
        for _ in 0..TAILS_MAX {
            readers.push(Reader::open(&router, "/log/tail", None).await);
        }
        assert_eq!(get(&router, "/log/tail").await.status, 503);
        readers.pop();
        Reader::open(&router, "/log/tail", None).await;
    }
}
