//! [`LogState`]: state that the log's handlers share (host, admission, counters and places for tails).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::response::Response;
use hearsay_protocol::NodeId;
use http::StatusCode;
use tokio::sync::Semaphore;

use super::{
    admission::{Admission, Reservation},
    holdings::cost_bytes,
    recent::RecentOffsets,
    record,
};
use crate::{
    Host, Problem,
    http::source::Source,
    journal::{Journal, read},
};

/// Role, service name and journal topic of the log.
pub const LOG_ROLE: &str = "log";
/// Maximum number of tails that are open at the same time. Guess: each reads every new record.
pub(super) const TAILS_MAX: usize = 256;

/// Shared state of the handlers.
#[derive(Clone)]
pub(super) struct LogState {
    pub(super) host: Arc<dyn Host>,
    pub(super) tails: Arc<Semaphore>,
    pub(super) recent: Arc<RecentOffsets>,
    pub(super) refused: Arc<AtomicU64>,
    pub(super) admission: Arc<Admission>,
}

impl LogState {
    pub(super) fn journal(&self) -> Result<Arc<dyn Journal>, Problem> {
        self.host.journal(LOG_ROLE).ok_or_else(|| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this node does not keep the log. Send the request to another log node",
            )
        })
    }

    /// Reserves room for the records of a source, until the reservation is dropped. `keys` has one
    /// idempotency key per record, or is empty. A repetition whose keys are all in the log takes no room and
    /// is always admitted.
    ///
    /// # Errors
    /// The 429 response.
    pub(super) async fn admit<'a>(
        &self,
        journal: &dyn Journal,
        source: Source,
        keys: Vec<String>,
        records: impl IntoIterator<Item = &'a record::Record>,
    ) -> Result<Option<Reservation>, Box<Response>> {
        let (name, key) = (source.name(), keys.first().map(String::as_str));
        let cost = |record| cost_bytes(record::encoded_bytes(record), key, record, name.as_deref());
        let bytes = records.into_iter().map(cost).sum();
        match self.admission.admit(journal, (source, self.me()), bytes).await {
            Err(_) if !keys.is_empty() && are_known(journal, keys).await => Ok(None),
            admitted => admitted,
        }
    }

    pub(super) fn count_refused(&self, records: usize) {
        self.refused.fetch_add(records as u64, Ordering::Relaxed);
    }

    pub(super) fn me(&self) -> NodeId {
        self.host.node_id()
    }
}

/// Returns whether the log has a record under each of these keys.
async fn are_known(journal: &dyn Journal, keys: Vec<String>) -> bool {
    let are_known = read(journal, move |db| {
        let mut find = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM log_keys WHERE key = ?1)")?;
        for key in &keys {
            if !find.query_row([key], |row| row.get::<_, bool>(0))? {
                return Ok(false);
            }
        }
        Ok(true)
    });
    are_known.await.unwrap_or(false)
}
