//! Example of a plug-in in its own program: notes that all nodes of the role `notes` share.
//!
//! ```sh
//! cargo run --release --example notes -- --role notes     # in two terminals
//! curl http://127.0.0.1:7500/notes -H 'content-type: application/json' -d '"buy milk"'
//! curl http://127.0.0.1:7501/notes
//! ```
//!
//! It defines the journal entry (a note's text), the projection (a table) and the HTTP handlers, and adds one
//! line to `main`. The node provides replication, repair, acknowledgement levels, idempotency keys and the
//! announcement to the cluster.

use std::{process::ExitCode, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use hearsay_node::builtin;
use hearsay_services::{
    Host, Problem, Service,
    http::{Parameters, WriteOptions, await_tokens, with_receipt},
    journal::{Connection, Journal, Projection, Recorded, params, read},
};
use http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};

const ROLE: &str = "notes";
/// The longest note, in bytes.
const NOTE_BYTES_MAX: usize = 4096;
/// Maximum number of notes in an answer, newest first.
const LISTED_MAX: usize = 100;

struct Notes;

impl Service for Notes {
    fn name(&self) -> &str {
        ROLE
    }

    fn prefixes(&self) -> &[&str] {
        &["/notes"]
    }

    fn projection(&self) -> Option<Arc<dyn Projection>> {
        Some(Arc::new(Table))
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        Router::new().route("/notes", get(list).post(add)).with_state(host.journal(ROLE))
    }

    fn openapi(&self) -> Value {
        json!({ "/notes": {
            "get": { "summary": "The newest notes", "responses": { "200": { "description": "Texts" } } },
            "post": { "summary": "Add a note, a JSON text", "responses": { "201": { "description": "Added" } } },
        } })
    }
}

/// Projection: notes ordered by stamp, equal on all nodes.
struct Table;

impl Projection for Table {
    fn version(&self) -> u32 {
        1
    }

    fn create(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute_batch("CREATE TABLE notes (stamp BLOB PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
    }

    fn fold(&self, db: &Connection, entry: &Recorded<'_>) -> rusqlite::Result<()> {
        // An entry that is not UTF-8 was not written by this plug-in.
        let Ok(text) = std::str::from_utf8(entry.body) else { return Ok(()) };
        let mut insert = db.prepare_cached("INSERT OR IGNORE INTO notes VALUES (?1, ?2)")?;
        insert.execute(params![entry.stamp().to_bytes(), text]).map(drop)
    }
}

type Kept = State<Option<Arc<dyn Journal>>>;

fn journal(kept: &Kept) -> Result<&dyn Journal, Problem> {
    kept.0.as_deref().ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no journal"))
}

async fn list(kept: Kept, headers: HeaderMap) -> Result<Response, Problem> {
    let journal = journal(&kept)?;
    await_tokens(journal, &headers).await?;
    let notes: Vec<String> = read(journal, |db| {
        let mut list = db.prepare_cached("SELECT text FROM notes ORDER BY stamp DESC LIMIT ?1")?;
        list.query_map([LISTED_MAX], |row| row.get(0))?.collect()
    })
    .await?;
    Ok(Json(notes).into_response())
}

async fn add(kept: Kept, uri: Uri, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let wish = WriteOptions::read(&headers, &Parameters::read(uri.query(), &["ack"])?)?;
    let text: String = serde_json::from_slice(&body).map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, "the body must be a JSON text, such as \"buy milk\"")
    })?;
    if text.is_empty() || text.len() > NOTE_BYTES_MAX {
        let detail = format!("a note has 1 to {NOTE_BYTES_MAX} bytes");
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    let appended = wish.write(journal(&kept)?, text.into_bytes()).await?;
    Ok(with_receipt(&appended, StatusCode::CREATED))
}

fn main() -> ExitCode {
    let mut services = builtin();
    // The line that adds the plug-in.
    services.push(Arc::new(Notes));
    hearsay_node::main(services, hearsay_node::run)
}

#[cfg(test)]
mod tests {
    use hearsay_services::testing::{MemoryHost, breaches};

    use super::*;

    #[tokio::test]
    async fn it_keeps_to_what_every_plugin_promises() {
        let host = Arc::new(MemoryHost::new("n1").keeping(&Notes));
        assert_eq!(breaches(&Notes, host).await, [""; 0]);
    }
}
