//! [`Admission`]: decides whether a source may write more to a log that is nearly full, by the source's
//! share.
//!
//! The journal drops the oldest entries of a node first, and cannot drop those of one source alone, because a
//! run is signed as a whole. A source that writes a lot would therefore push out the records of others.
//! Admission control refuses such a write before it is appended.
//!
//! Below three quarters of the log's bytes ([`COMMON_PERCENT`]) every write is admitted. Above, a write is
//! refused if all of these hold:
//!
//! - its source would hold more than its share, pending writes included;
//! - other sources have posted records at this node that are still in the log;
//! - the oldest record of this node is younger than [`PROTECTED`].
//!
//! The share is max-min fair (Bertsekas and Gallager 1987). Three quarters of the log are divided among the
//! nodes, and the part of a node among its sources. A holder of less than an equal part keeps what it holds,
//! and the rest is divided among the others. So a source may hold nearly everything while others write
//! little.
//!
//! The bytes of each source follow from the entries. They survive a restart and are the same on all replicas.
//! Events of the node and records of its operator have no source, count as one holder, and are never refused:
//! the operator sets the bounds.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::response::{IntoResponse, Response};
use hearsay_protocol::{NodeId, journal::HybridTime};
use http::{HeaderValue, StatusCode, header};
use rusqlite::{Connection, params};

use super::integers::unsortable;
use crate::{
    Problem,
    http::source::Source,
    journal::{Journal, read},
    network::shares::COMMON_PERCENT,
};

/// Age up to which the records of other sources are protected. Guess: within a day a record is read, or an
/// alert has been raised.
pub(super) const PROTECTED: Duration = Duration::from_secs(24 * 3600);
/// Seconds until a retry makes sense. By then, shares may have changed and records may have aged.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("60");
/// Admission control of one node.
#[derive(Debug)]
pub(super) struct Admission {
    /// Bytes of pending writes by source. Bounded by the request bodies that the node holds at once.
    pending: Mutex<BTreeMap<String, u64>>,
    refused: AtomicU64,
    now_ms: fn() -> u64,
}

impl Default for Admission {
    fn default() -> Self {
        Self::at(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
        })
    }
}

/// Room for one write. Dropped once the write is in the tables or has failed.
#[derive(Debug)]
pub(super) struct Reservation {
    admission: Arc<Admission>,
    source: String,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut pending = self.admission.pending();
        if let Some(bytes) = pending.get_mut(&self.source) {
            *bytes = bytes.saturating_sub(self.bytes);
            if *bytes == 0 {
                pending.remove(&self.source);
            }
        }
    }
}

impl Admission {
    /// Admission control with this wall clock, in milliseconds since 1970.
    pub(super) fn at(now_ms: fn() -> u64) -> Self {
        Self { pending: Mutex::default(), refused: AtomicU64::new(0), now_ms }
    }

    /// Returns the number of refused requests.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves `bytes`, as [`cost_bytes`](super::holdings::cost_bytes) counts them. Returns `None` if
    /// nothing needs to be counted: for the operator's writes, and for a log without a bound.
    ///
    /// # Errors
    /// 429: the source holds more than its share. Nothing was written. If the database cannot be read, the
    /// write is admitted, and the journal reports the error.
    pub(super) async fn admit(
        self: &Arc<Self>,
        journal: &dyn Journal,
        (source, me): (Source, NodeId),
        bytes: u64,
    ) -> Result<Option<Reservation>, Box<Response>> {
        let (Some(source), Some(max)) = (source.name(), journal.bytes_max()) else { return Ok(None) };
        let (pending, pending_of_source) = {
            let mut pending = self.pending();
            let of_source = pending.entry(source.clone()).or_default();
            *of_source += bytes;
            let of_source = *of_source;
            (pending.values().sum(), of_source)
        };
        let reservation = Reservation { admission: Arc::clone(self), source: source.clone(), bytes };
        let request =
            AdmissionRequest { me, source, pending, pending_of_source, max, now_ms: (self.now_ms)() };
        match read(journal, move |db| exceeded_share(db, &request)).await.ok().flatten() {
            None => Ok(Some(reservation)),
            Some(share) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(
                    source = reservation.source,
                    share,
                    "a write to the log is over the share of its source"
                );
                Err(Box::new(refusal(&reservation.source, share)))
            }
        }
    }
}

fn refusal(source: &str, share: u64) -> Response {
    let detail = format!(
        "the log is nearly full, and {source} would hold more than its share of {share} bytes, which would push out records of others \
         that are younger than a day; nothing was stored. Try again later, write to this node itself with its token, or raise --log-max-bytes"
    );
    let problem =
        Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).with("source", source).with("limit", share);
    let mut response = problem.into_response();
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}

/// The facts about a write that decide its admission.
#[derive(Clone, Debug)]
pub(super) struct AdmissionRequest {
    /// This node.
    pub(super) me: NodeId,
    /// Name of the source.
    pub(super) source: String,
    /// Bytes of all pending writes, including this one.
    pub(super) pending: u64,
    /// Bytes of the pending writes of this source, including this one.
    pub(super) pending_of_source: u64,
    /// Bound on the size of the database.
    pub(super) max: u64,
    /// Wall clock, in milliseconds since 1970.
    pub(super) now_ms: u64,
}

/// Returns the share that a write exceeds; `None` if the write is admitted.
///
/// # Errors
/// An error of the database.
pub(super) fn exceeded_share(db: &Connection, request: &AdmissionRequest) -> rusqlite::Result<Option<u64>> {
    let used = used_bytes(db)?.saturating_add(request.pending);
    let common = request.max / 100 * COMMON_PERCENT as u64;
    if used < common || reaches_back(db, request)? {
        return Ok(None);
    }
    let held = LogUsage::read(db, request)?;
    if !held.have_others_posted {
        return Ok(None);
    }
    // The counted bytes and the bytes of the database differ by a factor that depends on the records.
    let counted = held.total().saturating_add(request.pending);
    let capacity = u128::from(counted) * u128::from(common) / u128::from(used.max(1));
    let of_node = fair_share(u64::try_from(capacity).unwrap_or(u64::MAX), held.other_nodes);
    let share = fair_share(of_node, held.other_sources);
    Ok((held.source.saturating_add(request.pending_of_source) > share).then_some(share))
}

/// Returns the bytes that the database uses, free pages excluded.
fn used_bytes(db: &Connection) -> rusqlite::Result<u64> {
    let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = pragma("page_count")? - pragma("freelist_count")?;
    Ok(pages.max(0).cast_unsigned() * pragma("page_size")?.max(0).cast_unsigned())
}

/// Returns whether the record that this node would drop first is older than [`PROTECTED`].
fn reaches_back(db: &Connection, request: &AdmissionRequest) -> rusqlite::Result<bool> {
    let mut find = db.prepare_cached(
        "SELECT min((SELECT time FROM log_records WHERE feed = f.id ORDER BY seq LIMIT 1)) FROM log_feeds f WHERE writer = ?1",
    )?;
    let oldest: Option<i64> = find.query_row([request.me.public_key()], |row| row.get(0))?;
    let protected = u64::try_from(PROTECTED.as_millis()).unwrap_or(u64::MAX);
    Ok(oldest.is_some_and(|time| {
        HybridTime(unsortable(time)).wall_ms().saturating_add(protected) < request.now_ms
    }))
}

/// Bytes in the log by holder, as [`cost_bytes`](super::holdings::cost_bytes) counts them.
#[derive(Debug, Default)]
struct LogUsage {
    /// Bytes of the requesting source at this node.
    source: u64,
    /// Bytes of every other holder at this node: the other sources, and the operator.
    other_sources: Vec<u64>,
    /// Bytes of every other node.
    other_nodes: Vec<u64>,
    /// Whether any other holder has posted a record at this node that is still in the log.
    have_others_posted: bool,
}

impl LogUsage {
    fn read(db: &Connection, request: &AdmissionRequest) -> rusqlite::Result<Self> {
        let mut held = Self::default();
        let me = request.me.public_key();
        let positive = |bytes: i64| bytes.max(0).cast_unsigned();
        let mut own =
            db.prepare_cached("SELECT sum(own_bytes), sum(own_posted) FROM log_feeds WHERE writer = ?1")?;
        let (bytes, posted): (Option<i64>, Option<i64>) =
            own.query_row([me], |row| Ok((row.get(0)?, row.get(1)?)))?;
        held.other_sources.push(positive(bytes.unwrap_or(0)));
        held.have_others_posted = posted.unwrap_or(0) > 0;
        let mut sources = db.prepare_cached(
            "SELECT h.source, sum(h.bytes), sum(h.posted) FROM log_feeds f JOIN log_holdings h ON h.feed = f.id
             WHERE f.writer = ?1 GROUP BY h.source",
        )?;
        let mut rows = sources.query([me])?;
        while let Some(row) = rows.next()? {
            let (source, bytes, posted) = (row.get_ref(0)?, positive(row.get(1)?), row.get::<_, i64>(2)?);
            if source.as_str().is_ok_and(|source| source == request.source) {
                held.source = bytes;
            } else {
                held.other_sources.push(bytes);
                held.have_others_posted |= posted > 0;
            }
        }
        let mut nodes = db.prepare_cached(
            "SELECT sum(f.own_bytes + coalesce((SELECT sum(bytes) FROM log_holdings WHERE feed = f.id), 0)) FROM log_feeds f
             WHERE f.writer <> ?1 GROUP BY f.writer",
        )?;
        let rows = nodes.query_map(params![me], |row| row.get(0).map(positive))?;
        held.other_nodes = rows.collect::<rusqlite::Result<_>>()?;
        Ok(held)
    }

    fn total(&self) -> u64 {
        let others = self.other_sources.iter().chain(&self.other_nodes).sum::<u64>();
        self.source.saturating_add(others)
    }
}

/// Returns the max-min fair share of one more holder with unlimited demand. Holders of less than an equal
/// part keep what they hold; the rest is divided equally among the others.
fn fair_share(capacity: u64, mut others: Vec<u64>) -> u64 {
    others.sort_unstable();
    let (mut left, mut holders) = (capacity, others.len() as u64 + 1);
    for held in others {
        let part = left / holders;
        if held >= part {
            return part;
        }
        left -= held;
        holders -= 1;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_the_small_leave_and_an_equal_part_beside_the_large() {
        for (capacity, others, expected) in [
            (100, vec![], 100),
            (100, vec![0, 1, 2], 97),
            (100, vec![80], 50),
            (100, vec![10, 80], 45),
            (100, vec![30, 5, 80, 200], 23),
            (100, vec![30, 30], 40),
            (0, vec![5], 0),
        ] {
            assert_eq!(fair_share(capacity, others.clone()), expected, "{others:?}");
        }
    }
}
