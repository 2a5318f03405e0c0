//! Fake grading and log node with nothing but the API: paths, JSON, idempotency keys, tokens, cursors,
//! server-sent events.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::{delete, get, post},
};
use futures::stream;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::broadcast, task::JoinHandle};

use crate::Problem;

/// Common state of all fake nodes of a test.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) students: BTreeMap<u64, Value>,
    next_id: u64,
    /// Answers by idempotency key.
    keys: BTreeMap<String, (String, u16, Value)>,
    /// Number of executed writes.
    pub(super) writes: usize,
    pub(super) records: Vec<Value>,
}

/// A fake node.
pub(super) struct Fake {
    pub(super) url: String,
    pub(super) state: FakeState,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
pub(super) struct FakeState {
    pub(super) shared: Arc<Mutex<Shared>>,
    /// Tokens whose writes this node does not have yet.
    pub(super) behind: Arc<Mutex<BTreeSet<String>>>,
    /// Every request: method, path with query, and headers.
    pub(super) asked: Arc<Mutex<Vec<(Method, String, HeaderMap)>>>,
    /// Status and body of injected failures; a 409 only affects writes.
    pub(super) fails: Arc<Mutex<Option<(u16, String)>>>,
    /// Whether `/log` supports `before`.
    pub(super) reads_back: bool,
    news: broadcast::Sender<Value>,
}

impl Fake {
    pub(super) async fn start(shared: &Arc<Mutex<Shared>>) -> Self {
        Self::with(shared, true).await
    }

    pub(super) async fn with(shared: &Arc<Mutex<Shared>>, reads_back: bool) -> Self {
        let state = FakeState {
            shared: Arc::clone(shared),
            behind: Arc::default(),
            asked: Arc::default(),
            fails: Arc::default(),
            reads_back,
            news: broadcast::channel(64).0,
        };
        let router = Router::new()
            .route("/students", get(list).post(add))
            .route("/students/{id}", get(one).put(rename).delete(remove))
            .route("/students/{id}/grades", post(grade))
            .route("/students/{id}/grades/{gid}", delete(ungrade))
            .route("/log", get(log))
            .route("/log/tail", get(tail))
            .layer(axum::middleware::from_fn_with_state(state.clone(), note))
            .with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async {
            axum::serve(listener, router).await.unwrap();
        });
        Self { url, state, serving }
    }

    /// Stops the node with its connections.
    pub(super) fn kill(&self) {
        self.serving.abort();
    }

    /// Appends a record, and sends it to the followers.
    pub(super) fn log(&self, record: Value) {
        self.state.shared.lock().unwrap().records.push(record.clone());
        // There may be no follower.
        _ = self.state.news.send(record);
    }

    pub(super) fn followers(&self) -> usize {
        self.state.news.receiver_count()
    }
}

/// Records a request, and fails it if so configured.
async fn note(
    State(state): State<FakeState>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let (method, uri, headers) =
        (request.method().clone(), request.uri().to_string(), request.headers().clone());
    state.asked.lock().unwrap().push((method, uri, headers.clone()));
    let fails = state.fails.lock().unwrap().clone();
    if let Some((status, detail)) = fails.filter(|(status, _)| *status != 409 || !request.method().is_safe())
    {
        return Problem::new(StatusCode::from_u16(status).unwrap(), detail).into_response();
    }
    let token = headers.get("hearsay-token").map(|t| t.to_str().unwrap().to_owned());
    if token.is_some_and(|token| state.behind.lock().unwrap().contains(&token)) {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this node does not have that write yet")
            .into_response();
    }
    next.run(request).await
}

type Query1 = Query<BTreeMap<String, String>>;

async fn list(State(state): State<FakeState>, Query(query): Query1) -> Json<Vec<Value>> {
    let number = |name: &str, otherwise| query.get(name).map_or(otherwise, |n| n.parse().unwrap());
    let (after, limit) = (number("after", 0), number("limit", 1000));
    let q = query.get("q").map(|q| q.to_lowercase()).unwrap_or_default();
    let shared = state.shared.lock().unwrap();
    let matches = |s: &&Value| {
        format!("{} {}", s["firstName"].as_str().unwrap(), s["lastName"].as_str().unwrap())
            .to_lowercase()
            .contains(&q)
    };
    let found = shared.students.range(after + 1..).map(|(_, s)| s).filter(matches).take(limit as usize);
    Json(found.cloned().collect())
}

async fn one(State(state): State<FakeState>, Path(id): Path<u64>) -> Response {
    match state.shared.lock().unwrap().students.get(&id) {
        Some(student) => Json(student).into_response(),
        None => Problem::not_found(format!("no student has the id {id}")).into_response(),
    }
}

/// Executes a write once per key.
fn once(
    state: &FakeState,
    headers: &HeaderMap,
    body: &[u8],
    write: impl FnOnce(&mut Shared) -> (u16, Value),
) -> Response {
    let key = headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
    let body = String::from_utf8(body.to_vec()).unwrap();
    let mut shared = state.shared.lock().unwrap();
    let known = key.as_ref().and_then(|key| shared.keys.get(key).cloned());
    let (status, value) = match known {
        Some((first, ..)) if first != body => {
            (409, json!({ "detail": "this key was used for something else" }))
        }
        Some((_, status, value)) => (status, value),
        None => {
            let (status, value) = write(&mut shared);
            if status < 300 {
                shared.writes += 1;
                if let Some(key) = key {
                    shared.keys.insert(key, (body, status, value.clone()));
                }
            }
            (status, value)
        }
    };
    let token = format!("t{};\"{}", shared.writes, "\u{20}x");
    (StatusCode::from_u16(status).unwrap(), [("hearsay-token", token)], Json(value)).into_response()
}

fn bad(detail: &str) -> (u16, Value) {
    (400, json!({ "status": 400, "detail": detail }))
}

async fn add(State(state): State<FakeState>, headers: HeaderMap, body: Bytes) -> Response {
    let input: Value = serde_json::from_slice(&body).unwrap();
    once(&state, &headers, &body, |shared| {
        if input["firstName"].as_str().unwrap_or_default().is_empty() {
            return bad("firstName: has 0 characters; 1 to 128 are allowed");
        }
        let id = shared.next_id.max(1);
        shared.next_id = id + 1;
        let student =
            student(id, input["firstName"].as_str().unwrap(), input["lastName"].as_str().unwrap(), &[]);
        shared.students.insert(id, student.clone());
        (201, student)
    })
}

async fn rename(
    State(state): State<FakeState>,
    Path(id): Path<u64>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let input: Value = serde_json::from_slice(&body).unwrap();
    once(&state, &headers, &body, |shared| match shared.students.get_mut(&id) {
        _ if input["lastName"] == "" => bad("lastName: has 0 characters; 1 to 128 are allowed"),
        _ if input["firstName"] == "" => bad("firstName: has 0 characters; 1 to 128 are allowed"),
        Some(student) => {
            student["firstName"] = input["firstName"].clone();
            student["lastName"] = input["lastName"].clone();
            (200, student.clone())
        }
        None => (404, json!({ "detail": "no such student" })),
    })
}

async fn remove(
    State(state): State<FakeState>,
    Path(id): Path<u64>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    once(&state, &headers, &body, |shared| match shared.students.remove(&id) {
        Some(student) => (200, student),
        None => (404, json!({ "detail": "no such student" })),
    })
}

async fn grade(
    State(state): State<FakeState>,
    Path(id): Path<u64>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let input: Value = serde_json::from_slice(&body).unwrap();
    once(&state, &headers, &body, |shared| {
        let score = input["score"].as_f64().unwrap_or(-1.0);
        if !(0.0..=100.0).contains(&score) {
            return bad(&format!("score: {score} is not allowed; a number from 0 to 100 is"));
        }
        let Some(student) = shared.students.get_mut(&id) else {
            return (404, json!({ "detail": "no such student" }));
        };
        let grades = student["grades"].as_array_mut().unwrap();
        let grade = json!({ "id": 100 + grades.len(), "title": input["title"], "type": input["type"], "score": score });
        grades.push(grade.clone());
        average(student);
        (201, grade)
    })
}

async fn ungrade(
    State(state): State<FakeState>,
    Path((id, gid)): Path<(u64, u64)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    once(&state, &headers, &body, |shared| {
        let Some(student) = shared.students.get_mut(&id) else {
            return (404, json!({ "detail": "no such student" }));
        };
        let grades = student["grades"].as_array_mut().unwrap();
        let Some(at) = grades.iter().position(|g| g["id"] == gid) else {
            return (404, json!({ "detail": "no such grade" }));
        };
        let gone = grades.remove(at);
        average(student);
        (200, gone)
    })
}

fn average(student: &mut Value) {
    let scores: Vec<f64> =
        student["grades"].as_array().unwrap().iter().map(|g| g["score"].as_f64().unwrap()).collect();
    let mean = (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64);
    student["average"] = json!(mean);
}

/// A student in the JSON of the API.
pub(super) fn student(id: u64, first: &str, last: &str, grades: &[(&str, &str, f64)]) -> Value {
    let grade = |(i, (title, kind, score)): (usize, &(&str, &str, f64))| json!({ "id": 100 + i, "title": title, "type": kind, "score": score });
    let grades: Vec<Value> = grades.iter().enumerate().map(grade).collect();
    let mut student = json!({ "id": id, "firstName": first, "lastName": last, "grades": grades });
    average(&mut student);
    student
}

/// A record in the JSON of the API.
pub(super) fn record(n: usize, service: &str, level: &str, message: &str) -> Value {
    json!({
        "id": format!("r{n}"), "node": "n1", "offset": n, "time": format!("2026-02-11T12:00:{:02}.000Z", n % 60),
        "service": service, "level": level, "message": message,
    })
}

/// Cursors are positions: `c3` is before the third record.
async fn log(State(state): State<FakeState>, Query(query): Query1) -> Response {
    let position = |cursor: &String| cursor.strip_prefix('c').and_then(|n| n.parse::<usize>().ok());
    if query.contains_key("before") && !state.reads_back {
        return Problem::parameter(
            "before",
            "unknown parameter; known here are after, limit, service, level, q",
        )
        .into_response();
    }
    let limit: usize = query.get("limit").map_or(100, |n| n.parse().unwrap());
    let shared = state.shared.lock().unwrap();
    let finds =
        |record: &Value| query.get("q").is_none_or(|q| record["message"].as_str().unwrap().contains(q));
    let wanted = |(_, r): &(usize, &Value)| takes(&query, r) && finds(r);
    let all: Vec<(usize, &Value)> = shared.records.iter().enumerate().filter(wanted).collect();
    let len = shared.records.len();
    let page: Vec<&(usize, &Value)> = match query.get("before") {
        Some(before) => {
            let end = if before == "end" { len } else { position(before).unwrap() };
            let before: Vec<_> = all.iter().filter(|(i, _)| *i < end).collect();
            before[before.len().saturating_sub(limit)..].to_vec()
        }
        None => {
            let after = query.get("after").and_then(position).unwrap_or(0);
            all.iter().filter(|(i, _)| *i >= after).take(limit).collect()
        }
    };
    let (first, last) = (page.first().map_or(0, |p| p.0), page.last().map_or(0, |p| p.0));
    let more_before = all.iter().any(|(i, _)| *i < first);
    let more_after = all.iter().any(|(i, _)| *i > last);
    Json(json!({
        "records": page.iter().map(|(_, r)| (*r).clone()).collect::<Vec<Value>>(),
        "next": more_after.then(|| format!("c{}", last + 1)),
        "prev": more_before.then(|| format!("c{first}")),
    }))
    .into_response()
}

async fn tail(State(state): State<FakeState>, Query(query): Query1) -> Response {
    let events = stream::unfold((state.news.subscribe(), query), async |(mut news, query)| {
        loop {
            let record: Value = news.recv().await.ok()?;
            if takes(&query, &record) {
                let event = Event::default().event("record").data(record.to_string());
                return Some((Ok::<_, Infallible>(event), (news, query)));
            }
        }
    });
    Sse::new(events).into_response()
}

/// Applies the filter: a service matches itself, a level itself and those above.
fn takes(query: &BTreeMap<String, String>, record: &Value) -> bool {
    let level = |text: &str| text.parse::<crate::plugins::log::record::Level>().unwrap_or_default();
    query.get("service").is_none_or(|wanted| record["service"] == *wanted)
        && query.get("level").is_none_or(|l| level(record["level"].as_str().unwrap_or_default()) >= level(l))
}
