//! Visit counter plug-in. The sum over all nodes is exact.
//!
//! Each visit is a journal entry, which every node counts once, no matter which node took it. Entries with
//! the same idempotency key, from a client that retried, count as one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::{
    Host, Problem, Service,
    http::{
        append::{WriteOptions, await_tokens, with_receipt},
        parameters::Parameters,
    },
    journal::{Journal, Projection, Recorded, read, restore::RestoreSupport},
    log_limit::LogLimit,
};

const ROLE: &str = "visits";
/// Limit of log lines for visits: one per second, with the number of suppressed lines.
static VISIT_LINES: LogLimit = LogLimit::each(Duration::from_secs(1));
/// Body of an entry.
const VISIT: &[u8] = b"1";

/// The visit counter.
#[derive(Debug)]
pub struct Visits;

impl Service for Visits {
    fn name(&self) -> &str {
        ROLE
    }

    fn prefixes(&self) -> &[&str] {
        &["/visits"]
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        Router::new()
            .route("/visits", get(get_total).post(count_visit))
            .route("/visits/hit", get(count_visit))
            .with_state(host)
    }

    fn projection(&self) -> Option<Arc<dyn Projection>> {
        Some(Arc::new(VisitTotals))
    }

    fn restoring(&self) -> RestoreSupport {
        RestoreSupport::Refused("its visits would be counted twice")
    }

    /// The body of a visit is ignored.
    fn takes_form_bodies(&self) -> bool {
        true
    }

    fn openapi(&self) -> Value {
        let refused = || json!({ "$ref": "#/components/responses/Problem" });
        let sum = || {
            json!({ "description": "Visits on all nodes", "content": { "application/json": { "schema": {
                "type": "object", "required": ["total"], "properties": { "total": { "type": "integer" } } } } } })
        };
        let counted = |summary: &str| {
            json!({ "summary": summary, "parameters": [
                { "$ref": "#/components/parameters/ack" }, { "$ref": "#/components/parameters/idempotencyKey" },
            ], "responses": { "200": sum(), "400": refused(), "409": refused(),
                "503": refused(), "504": refused(), "507": refused() } })
        };
        json!({
            "/visits": {
                "get": { "summary": "Number of visits", "parameters": [{ "$ref": "#/components/parameters/token" }],
                    "responses": { "200": sum(), "400": refused(), "503": refused() } },
                "post": counted("Count one visit"),
            },
            "/visits/hit": { "get": counted("Count one visit: for a link or a browser") },
        })
    }
}

/// Projection: the total, and the keys that it includes.
struct VisitTotals;

impl Projection for VisitTotals {
    fn version(&self) -> u32 {
        1
    }

    fn create(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute_batch(
            "CREATE TABLE visits_total (total INTEGER NOT NULL);
             INSERT INTO visits_total VALUES (0);
             CREATE TABLE visits_keys (key TEXT PRIMARY KEY) WITHOUT ROWID;",
        )
    }

    fn fold(&self, db: &Connection, entry: &Recorded<'_>) -> rusqlite::Result<()> {
        if entry.body != VISIT {
            return Ok(());
        }
        if let Some(key) = entry.key {
            let mut insert = db.prepare_cached("INSERT OR IGNORE INTO visits_keys (key) VALUES (?1)")?;
            if insert.execute([key])? == 0 {
                return Ok(());
            }
        }
        db.prepare_cached("UPDATE visits_total SET total = total + 1")?.execute([])?;
        Ok(())
    }
}

fn journal(host: &dyn Host) -> Result<Arc<dyn Journal>, Problem> {
    host.journal(ROLE).ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "this node does not count visits. Send the request to another visits node",
        )
    })
}

/// Handles `GET /visits`.
async fn get_total(
    State(host): State<Arc<dyn Host>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let journal = journal(host.as_ref())?;
    await_tokens(journal.as_ref(), &headers).await?;
    Ok(total_response(sum(journal.as_ref()).await?))
}

/// Handles `POST /visits` and `GET /visits/hit`.
async fn count_visit(
    State(host): State<Arc<dyn Host>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack"])?;
    let journal = journal(host.as_ref())?;
    // A HEAD request does not count.
    if method == Method::HEAD {
        return Ok(total_response(sum(journal.as_ref()).await?));
    }
    let appended = WriteOptions::read(&headers, &parameters)?.write(journal.as_ref(), VISIT.to_vec()).await?;
    let total = sum(journal.as_ref()).await?;
    if !appended.repeated {
        // Events are shipped to the log, so a flood of visits must not become a flood of log lines.
        if let Some(left_out) = VISIT_LINES.pass(Instant::now()) {
            tracing::info!(total, left_out, id = %appended.id, "a visit");
        }
    }
    Ok(with_receipt(&appended, total_response(total)))
}

async fn sum(journal: &dyn Journal) -> Result<u64, Problem> {
    read(journal, |db| {
        let mut find = db.prepare_cached("SELECT total FROM visits_total")?;
        find.query_row([], |row| row.get::<_, i64>(0)).map(|total| u64::try_from(total).unwrap_or(0))
    })
    .await
}

fn total_response(total: u64) -> Response {
    let mut response = Json(json!({ "total": total })).into_response();
    // A browser that caches the answer to a link would not count the next click.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;

    use super::*;
    use crate::{
        journal::AppendError,
        testing::{Answer, MemoryEntry, MemoryHost, MemoryJournal, request, send},
    };

    fn host() -> Arc<MemoryHost> {
        Arc::new(MemoryHost::new("n1").keeping(&Visits))
    }

    async fn post(router: Router, key: &str) -> Answer {
        let request =
            Request::post("/visits").header("idempotency-key", key).body(Body::from("a=b")).unwrap();
        send(router, request).await
    }

    #[tokio::test]
    async fn each_visit_counts_once_and_looking_counts_none() {
        let router = Visits.router(host());
        let total = async |method, path| {
            let answer = request(router.clone(), method, path).await;
            assert!(answer.status == 200 && answer.headers["cache-control"] == "no-store", "{answer:?}");
            answer.json()["total"].as_u64()
        };
        assert_eq!(total(Method::GET, "/visits").await, Some(0));
        assert_eq!(total(Method::POST, "/visits").await, Some(1));
        assert_eq!(total(Method::GET, "/visits/hit").await, Some(2));
        total(Method::HEAD, "/visits/hit").await;
        assert_eq!(total(Method::GET, "/visits").await, Some(2));
    }

    #[tokio::test]
    async fn a_visit_that_was_tried_again_counts_once() {
        let router = Visits.router(host());
        for (key, total) in [("a", 1), ("a", 1), ("b", 2)] {
            let answer = post(router.clone(), key).await;
            assert_eq!(answer.json()["total"], total);
            assert!(answer.headers.contains_key("hearsay-token") && answer.headers["hearsay-ack"] == "local");
        }
    }

    #[tokio::test]
    async fn a_visit_that_is_not_written_is_not_counted() {
        let host = host();
        host.memory_journal(ROLE).unwrap().refuse(Some(AppendError::DiskFull));
        let answer = request(Visits.router(host.clone()), Method::POST, "/visits").await;
        assert_eq!((answer.status.as_u16(), answer.is_problem()), (507, true));
        assert_eq!(request(Visits.router(host), Method::GET, "/visits").await.json()["total"], 0);
    }

    #[tokio::test]
    async fn the_sum_is_the_same_in_any_order() {
        let host = host();
        let router = Visits.router(host.clone());
        for key in ["a", "b", "c", "d"] {
            post(router.clone(), key).await;
        }
        let mut entries: Vec<MemoryEntry> = host.memory_journal(ROLE).unwrap().entries();
        // The same writes on another node that did not have them, and an entry that is not a visit.
        let others: Vec<MemoryEntry> = entries
            .iter()
            .map(|kept| MemoryEntry {
                id: crate::journal::EntryId { seq: hearsay_protocol::Version(kept.id.seq.0 + 50), ..kept.id },
                ..kept.clone()
            })
            .collect();
        entries.extend(others);
        entries.push(MemoryEntry { body: b"2".to_vec(), key: None, ..entries[0].clone() });
        for seed in 0..20 {
            fastrand::Rng::with_seed(seed).shuffle(&mut entries);
            let journal = MemoryJournal::new(Arc::new(VisitTotals));
            entries.iter().cloned().for_each(|kept| journal.take(kept));
            assert_eq!(sum(&journal).await, Ok(4));
        }
    }
}
