//! Tests of the log page (order, paging, filters and search) and of its live records, which miss nothing and
//! go on at another log node if one fails.

use std::time::Duration;

use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;

/// Upper bound of every wait, for a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

async fn with_records(count: usize) -> (Setup, Fake) {
    let (setup, fake) = Setup::with([]).await;
    setup.shared.lock().unwrap().records = (0..count)
        .map(|n| {
            record(
                n,
                if n % 2 == 0 { "web" } else { "db" },
                if n % 10 == 0 { "error" } else { "info" },
                &format!("message {n}"),
            )
        })
        .collect();
    (setup, fake)
}

/// Returns the messages on a page in order.
fn messages(page: &str) -> Vec<String> {
    let cells = page.split("<td class=\"message\">").skip(1);
    cells.map(|cell| cell.split('<').next().unwrap().to_owned()).collect()
}

fn link(page: &str, label: &str) -> Option<String> {
    let before = page.split(&format!("\">{label}</a>")).next().filter(|before| before.len() < page.len())?;
    Some(before.rsplit("href=\"").next().unwrap().replace("&#38;", "&"))
}

#[tokio::test]
async fn the_newest_records_come_first_and_pages_lead_back_to_the_first() {
    let (setup, _fake) = with_records(250).await;
    let page = setup.get("/portal/log").await.text();
    let shown = messages(&page);
    assert_eq!((shown.len(), shown[0].as_str(), shown[99].as_str()), (100, "message 249", "message 150"));
    assert!(page.contains("class=\"error\"") && page.contains("Answered by node <b>g1</b>"));
    assert!(link(&page, "← Newer").is_none());
    let page = setup.get(&link(&page, "Older →").unwrap()).await.text();
    assert_eq!(messages(&page)[0], "message 149");
    let last = setup.get(&link(&page, "Older →").unwrap()).await.text();
    assert_eq!((messages(&last).len(), messages(&last)[49].as_str()), (50, "message 0"));
    assert!(link(&last, "Older →").is_none());
    let newer = setup.get(&link(&last, "← Newer").unwrap()).await.text();
    assert_eq!(messages(&newer)[0], "message 50", "forward, the oldest come first");
}

#[tokio::test]
async fn a_log_node_that_only_reads_forward_is_read_from_the_beginning() {
    let setup = Setup::new();
    let fake = Fake::with(&setup.shared, false).await;
    setup.offer("g1", &fake);
    setup.shared.lock().unwrap().records =
        (0..150).map(|n| record(n, "web", "info", &format!("message {n}"))).collect();
    let page = setup.get("/portal/log").await.text();
    assert_eq!((messages(&page).len(), messages(&page)[0].as_str()), (100, "message 0"));
    let page = setup.get(&link(&page, "← Newer").unwrap()).await.text();
    assert_eq!(messages(&page).last().unwrap(), "message 149");
    assert!(page.contains("data-tail"), "at the end it goes on live");
}

#[tokio::test]
async fn records_are_filtered_and_searched() {
    let (setup, fake) = with_records(50).await;
    assert_eq!(messages(&setup.get("/portal/log?service=db").await.text()).len(), 25);
    assert_eq!(messages(&setup.get("/portal/log?level=error&service=web").await.text()).len(), 5);
    let page = setup.get("/portal/log?level=INFO").await.text();
    assert_eq!(messages(&page).len(), 50, "a level stands for those above it, too");
    assert!(page.contains("<option selected>info</option>"));
    let page = setup.get("/portal/log?level=loud").await.text();
    assert_eq!(messages(&page).len(), 50, "what is no level is left aside");
    let page = setup.get("/portal/log?q=message+4&level=").await.text();
    assert_eq!(messages(&page).len(), 11);
    assert!(
        page.contains("value=\"message 4\"") && !page.contains("data-tail"),
        "no live records while searching"
    );
    assert!(setup.get("/portal/log?q=none").await.text().contains("No record matches."));
    assert!(
        fake.state
            .asked
            .lock()
            .unwrap()
            .iter()
            .any(|(_, path, _)| path == "/log?limit=100&before=end&q=message+4")
    );
}

#[tokio::test]
async fn a_place_that_no_log_node_knows_any_more_leads_to_the_newest_records() {
    let (setup, fake) = with_records(5).await;
    *fake.state.fails.lock().unwrap() = Some((410, "this cursor is not of this node".into()));
    let answer = setup.get("/portal/log?before=c3").await;
    let page = answer.text();
    assert_eq!(answer.status, 410);
    assert!(page.contains("this cursor is not of this node"), "{page}");
    assert_eq!(link(&page, "Newest records").as_deref(), Some("/portal/log"));
}

/// Event stream of an open page.
struct Tail {
    body: axum::body::Body,
    text: String,
}

impl Tail {
    async fn open(setup: &Setup, path: &str) -> Self {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = setup.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// Returns the next event: kind and data.
    async fn next(&mut self) -> (String, serde_json::Value) {
        let reading = async {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let (event, rest) = (event.to_owned(), rest.to_owned());
                    self.text = rest;
                    let field = |name: &str| {
                        event.lines().find_map(|line| line.strip_prefix(name).map(|v| v.trim().to_owned()))
                    };
                    if let (Some(kind), Some(data)) = (field("event:"), field("data:")) {
                        return (kind, serde_json::from_str(&data).unwrap());
                    }
                    continue;
                }
                let frame = self.body.frame().await.expect("the stream goes on").unwrap();
                self.text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("it should have come by now")
    }

    async fn message(&mut self) -> String {
        loop {
            let (kind, data) = self.next().await;
            if kind == "record" {
                return data["message"].as_str().unwrap().to_owned();
            }
        }
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never came about: {what}");
}

#[tokio::test]
async fn new_records_come_as_they_are_written_and_only_those_that_are_wanted() {
    let (setup, fake) = with_records(3).await;
    let mut tail = Tail::open(&setup, "/portal/log/tail?service=web&level=info").await;
    assert_eq!(tail.next().await, ("from".to_owned(), serde_json::json!({ "node": "g1" })));
    until("it is followed", || fake.followers() == 1).await;
    fake.log(record(3, "db", "info", "not for us"));
    fake.log(record(3, "web", "debug", "nor this"));
    fake.log(record(4, "web", "warn", "a\u{1b}[31m<b>"));
    let (kind, data) = tail.next().await;
    assert_eq!(
        (kind.as_str(), data["message"].as_str(), data["class"].as_str()),
        ("record", Some("a\\u001b[31m<b>"), Some("warn"))
    );
    drop(tail);
    fake.log(record(5, "web", "info", "wakes it"));
    until("a page that is closed is followed no longer", || fake.followers() == 0).await;
}

#[tokio::test]
async fn what_came_between_the_page_and_its_tail_is_not_lost() {
    let (setup, fake) = with_records(5).await;
    let page = setup.get("/portal/log").await.text();
    assert!(page.contains("data-last=\"r4\""));
    fake.log(record(5, "web", "info", "between"));
    let mut tail = Tail::open(&setup, "/portal/log/tail?since=r4").await;
    assert_eq!(tail.message().await, "between");
}

#[tokio::test]
async fn when_its_log_node_dies_the_next_is_followed_from_where_it_was() {
    let (setup, first) = with_records(2).await;
    let mut tail = Tail::open(&setup, "/portal/log/tail?since=r1").await;
    assert_eq!(tail.next().await.0, "from");
    until("it is followed", || first.followers() == 1).await;
    first.log(record(2, "web", "info", "from the first"));
    assert_eq!(tail.message().await, "from the first");
    let second = setup.start("g2").await;
    setup.host.withdraw("log", "g1");
    first.kill();
    setup.shared.lock().unwrap().records.push(record(3, "web", "info", "meanwhile"));
    assert_eq!(tail.next().await.0, "lost");
    assert_eq!(tail.next().await, ("from".to_owned(), serde_json::json!({ "node": "g2" })));
    assert_eq!(tail.message().await, "meanwhile");
    until("it is followed", || second.followers() == 1).await;
    second.log(record(4, "web", "info", "from the second"));
    assert_eq!(tail.message().await, "from the second");
}

#[tokio::test]
async fn without_a_log_node_it_waits_for_one() {
    let setup = Setup::new();
    let mut tail = Tail::open(&setup, "/portal/log/tail").await;
    assert_eq!(tail.next().await.0, "absent");
    let fake = setup.start("g1").await;
    assert_eq!(tail.next().await.0, "from");
    until("it is followed", || fake.followers() == 1).await;
}

#[tokio::test]
async fn there_is_a_bound_on_pages_that_are_kept_up_to_date() {
    let setup = Setup::new();
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(Tail::open(&setup, "/portal/log/tail").await);
    }
    let answer = request(setup.router.clone(), Method::GET, "/portal/log/tail").await;
    assert!(answer.status == 503 && answer.is_problem());
    open.pop();
    Tail::open(&setup, "/portal/log/tail").await;
}
