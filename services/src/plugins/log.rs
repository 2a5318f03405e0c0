//! Central log plug-in: records of all services and nodes, replicated, ordered and searchable.
//!
//! | file | contents |
//! | --- | --- |
//! | `record` | a record, and its encoding in a journal entry |
//! | `input`, `incoming` | request bodies, and the JSON of one record |
//! | `admission`, `holdings` | share of one source in a log that is nearly full; bytes that each source holds |
//! | `append` | appends records under the idempotency key of their request |
//! | `tables`, `integers` | the projection: one row per record, in the order of arrival |
//! | `offsets`, `recent` | offsets of records; those of the newest records, in memory |
//! | `cursor`, `filter`, `page`, `page_budget` | pages in the order of time |
//! | `search` | full-text search |
//! | `write`, `read`, `tail`, `state` | HTTP handlers and their state |
//!
//! Three kinds of reading have three mechanisms. Paging misses nothing, although a node that was cut off
//! delivers its records late (`cursor`). Search is fast in a log of any size (`search`). A tail costs nothing
//! while there are no writes, and a slow reader delays no other (`tail`).

mod admission;
mod append;
mod cursor;
mod filter;
mod holdings;
mod incoming;
mod input;
mod integers;
mod offsets;
mod openapi;
mod page;
mod page_budget;
mod read;
mod recent;
pub(crate) mod record;
mod search;
mod state;
mod tables;
mod tail;
mod write;

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use admission::Admission;
use axum::{
    Router,
    routing::{get, post},
};
use serde_json::Value;
use tokio::sync::Semaphore;

use state::{LogState, TAILS_MAX};

pub use state::LOG_ROLE;
pub use tables::LOG_RETENTION_DEFAULT;
pub(crate) use write::append_events;

use crate::{
    Host, Service,
    journal::{Projection, Retention, restore::RestoreSupport},
    service::{Metric, MetricKind},
};

/// The log plug-in.
#[derive(Clone, Debug, Default)]
pub struct Log {
    tables: tables::Tables,
    refused: Arc<AtomicU64>,
    admission: Arc<Admission>,
}

impl Log {
    /// A log with this retention. The default is [`LOG_RETENTION_DEFAULT`].
    pub fn keeping(retention: Retention) -> Self {
        Self { tables: tables::Tables::keeping(retention), ..Self::default() }
    }
}

impl Service for Log {
    fn name(&self) -> &str {
        LOG_ROLE
    }

    fn prefixes(&self) -> &[&str] {
        &["/log", "/records"]
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        let tails = Arc::new(Semaphore::new(TAILS_MAX));
        let state = LogState {
            host,
            tails,
            recent: self.tables.recent(),
            refused: Arc::clone(&self.refused),
            admission: Arc::clone(&self.admission),
        };
        Router::new()
            .route("/log", get(read::list_records).post(write::write_records))
            .route("/log/tail", get(tail::follow))
            .route("/log/events", post(write::write_events))
            .route("/records", get(read::read_numbered).post(write::write_numbered))
            .route("/records/{offset}", get(read::read_at))
            .with_state(state)
    }

    fn projection(&self) -> Option<Arc<dyn Projection>> {
        Some(Arc::new(self.tables.clone()))
    }

    fn restoring(&self) -> RestoreSupport {
        RestoreSupport::Refused("its records would be in the log twice")
    }

    /// Plain text is the simplest form of a record, and an HTML form can send it.
    fn takes_form_bodies(&self) -> bool {
        true
    }

    fn metrics(&self) -> Vec<Metric> {
        let counter =
            |name, help, value| Metric { name, help, kind: MetricKind::Counter, label: None, value };
        vec![
            counter(
                "log_records_refused",
                "Records of clients that were not stored, because they were malformed or over a limit",
                self.refused.load(Ordering::Relaxed),
            ),
            counter(
                "log_writes_over_share",
                "Writes refused because the log is nearly full and their source holds more than its share",
                self.admission.refused(),
            ),
        ]
    }

    fn openapi(&self) -> Value {
        openapi::paths()
    }
}
