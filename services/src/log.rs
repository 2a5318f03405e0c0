//! `log`: the central log. What any service says, on any node, in one order, searchable, and kept whatever dies.
//!
//! | file | what |
//! | --- | --- |
//! | `record` | what a record is, and how an entry of the journal holds it |
//! | `input`, `incoming` | what clients send: bodies, and the record in each |
//! | `append` | records under the key of their request |
//! | `tables` | what is made of entries: rows, in the order in which they arrived here |
//! | `numbers`, `recent` | offsets |
//! | `cursor`, `page`, `search` | reading on, in the order of time; finding words |
//! | `write`, `read`, `tail` | the paths |
//!
//! Who reads a log does three things with it: reads on where the last page ended, looks for words, and watches what comes. The
//! first must miss nothing, though nodes that were cut off bring their records late (`cursor`); the second must be quick whatever there is
//! (`search`); and the third must cost nothing when nobody writes and hold nothing back when somebody reads slowly (`tail`).

mod append;
mod cursor;
mod incoming;
mod input;
mod numbers;
mod openapi;
mod page;
mod read;
mod recent;
pub mod record;
mod search;
mod tables;
mod tail;
mod write;

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    routing::{get, post},
};
use hearsay_protocol::NodeId;
use http::StatusCode;
use serde_json::Value;
use tokio::sync::Semaphore;

pub use input::RECORDS_PER_REQUEST_MAX;
pub use page::RECORDS_PER_PAGE_MAX;
pub use write::{Unstored, append_events};

use crate::{
    Host, Problem, Service,
    journal::{Journal, Projection, Retention},
    restore::Restoring,
    service::{Metric, MetricKind},
};

/// The role, the name under which it is announced, and the topic of its journal.
pub const ROLE: &str = "log";
/// How long records are kept where nobody says otherwise: 30 days, and at most 1 GiB.
pub const KEPT: Retention =
    Retention { age: Some(Duration::from_secs(30 * 24 * 3600)), bytes: Some(1 << 30) };
/// Tails followed at the same time. Each looks at what comes; guess.
const TAILS_MAX: usize = 256;

/// The plug-in.
#[derive(Clone, Debug, Default)]
pub struct Log {
    tables: tables::Tables,
    refused: Arc<AtomicU64>,
}

impl Log {
    /// A log that keeps its records so long. By default [`KEPT`].
    pub fn keeping(retention: Retention) -> Self {
        Self { tables: tables::Tables::keeping(retention), refused: Arc::default() }
    }
}

impl Service for Log {
    fn name(&self) -> &str {
        ROLE
    }

    fn prefixes(&self) -> &[&str] {
        &["/log", "/records"]
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        let tails = Arc::new(Semaphore::new(TAILS_MAX));
        let desk = Desk { host, tails, recent: self.tables.recent(), refused: Arc::clone(&self.refused) };
        Router::new()
            .route("/log", get(read::list).post(write::records))
            .route("/log/tail", get(tail::tail))
            .route("/log/events", post(write::events))
            .route("/records", get(read::numbered).post(write::numbered))
            .route("/records/{offset}", get(read::at))
            .with_state(desk)
    }

    fn projection(&self) -> Option<Arc<dyn Projection>> {
        Some(Arc::new(self.tables.clone()))
    }

    fn restoring(&self) -> Restoring {
        Restoring::Refused("its records would be in the log twice")
    }

    /// A line of text is the simplest record there is.
    fn takes_form_bodies(&self) -> bool {
        true
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![Metric {
            name: "log_records_refused",
            help: "Records that clients sent and that were not stored, because they made no sense or were over a limit",
            kind: MetricKind::Counter,
            label: None,
            value: self.refused.load(Ordering::Relaxed),
        }]
    }

    fn openapi(&self) -> Value {
        openapi::paths()
    }
}

/// What handlers know.
#[derive(Clone)]
struct Desk {
    host: Arc<dyn Host>,
    tails: Arc<Semaphore>,
    recent: Arc<recent::Recent>,
    refused: Arc<AtomicU64>,
}

impl Desk {
    fn journal(&self) -> Result<Arc<dyn Journal>, Problem> {
        self.host.journal(ROLE).ok_or_else(|| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this node keeps no journal of the log; ask another",
            )
        })
    }

    fn count_refused(&self, records: usize) {
        self.refused.fetch_add(records as u64, Ordering::Relaxed);
    }

    fn me(&self) -> NodeId {
        self.host.node_id()
    }
}
