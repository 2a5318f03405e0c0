//! Handler of `GET /log/tail`: sends new records as server-sent events.
//!
//! A tail has no queue. When its connection accepts more, it reads the next rows in the order of arrival. So
//! a slow reader costs nothing but its place. To free places for others, a reader that accepts nothing for 30
//! s gets a last event, and its stream ends. A client that returns with `Last-Event-ID` resumes there.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use hearsay_protocol::NodeId;
use http::{HeaderMap, StatusCode, Uri};
use rusqlite::{Connection, params};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{
    cursor::Cursor,
    filter::Filter,
    offsets,
    page::{self, ListedRecord, Position},
    page_budget::PageBudget,
    read,
    state::{LogState, TAILS_MAX},
    tables::{self, COLUMNS, Row},
};
use crate::{
    Problem,
    http::parameters::Parameters,
    journal::{self, Journal},
};

/// Maximum number of rows per read. Few, because they stay in memory until the reader accepts them.
const BATCH: usize = 64;
/// Interval of comments in an idle stream. Below the minute after which proxies commonly close it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Pause between two reads, so that many writes cause one read.
const PAUSE: Duration = Duration::from_millis(20);
/// Time after which a reader that accepts nothing is dropped.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Maximum number of older records at the start of a tail.
const LAST_MAX: usize = 1000;
/// Maximum number of bytes of the text that messages must contain.
const PART_BYTES_MAX: usize = 256;

/// Handles `GET /log/tail`.
pub(super) async fn follow(
    State(state): State<LogState>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["service", "level", "q", "after", "last"])?;
    let filter = read::filter(&parameters)?;
    let part = parameters.single("q")?.filter(|part| !part.is_empty()).map(str::to_lowercase);
    if part.as_ref().is_some_and(|part| part.len() > PART_BYTES_MAX) {
        return Err(Problem::parameter("q", format_args!("at most {PART_BYTES_MAX} bytes")));
    }
    let allowed = format!("a whole number from 0 to {LAST_MAX}");
    let last = parameters.parse::<usize>("last", &allowed)?.unwrap_or(0);
    if last > LAST_MAX {
        return Err(Parameters::refuse("last", &last.to_string(), allowed));
    }
    let after = read::read_position(&parameters, "after")?;
    // After a lost connection, a browser repeats the same query and states its position in this header.
    let resumed = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let journal = state.journal()?;
    let Ok(place) = Arc::clone(&state.tails).try_acquire_owned() else {
        let detail = format!(
            "{TAILS_MAX} tails are open here, which is the limit. Use another node, or read /log page by page"
        );
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let changes = journal.changes();
    let begin = TailRequest { me: state.me(), filter: filter.clone(), part: part.clone(), last };
    let (from, is_resumed) = match resumed {
        Some(id) => (read::parse_position(id), true),
        None => (after, false),
    };
    let begun = journal::read(journal.as_ref(), move |db| begin.find(db, from, is_resumed)).await?;
    let Some(begun) = begun else { return Err(read::refused(&page::PageError::ForeignCursor)) };
    let follower = TailReader {
        journal,
        changes,
        me: state.me(),
        filter,
        part,
        tables_id: begun.tables_id,
        position: begun.position,
        ready: begun.events.into(),
        handed_over: None,
        has_ended: false,
        _place: place,
    };
    Ok(Sse::new(stream::unfold(follower, TailReader::next))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// Start and filter of a stream.
struct TailRequest {
    me: NodeId,
    filter: Filter,
    part: Option<String>,
    last: usize,
}

/// First events of a stream, and the position after them.
struct TailStart {
    tables_id: String,
    position: i64,
    events: Vec<Event>,
}

impl TailRequest {
    /// Finds the start. Returns `None` for a position that belongs to another node.
    fn find(
        self,
        db: &Connection,
        from: Option<Position>,
        is_resumed: bool,
    ) -> rusqlite::Result<Option<TailStart>> {
        let snapshot = db.unchecked_transaction()?;
        let (tables_id, now) = (tables::tables_id(&snapshot)?, tables::newest(&snapshot)?);
        let known = match &from {
            Some(Position::Cursor(cursor)) => {
                (cursor.tables_id == tables_id && cursor.high <= now).then_some(cursor.low)
            }
            Some(Position::Record(id)) => offsets::row_of(&snapshot, *id)?,
            None => None,
        };
        if let Some(position) = known {
            return Ok(Some(TailStart { tables_id, position, events: Vec::new() }));
        }
        if is_resumed {
            // It is unknown which records the reader has missed. The stream reports the gap and continues
            // with new records.
            let gap = json!({ "detail": "this node does not know your position, so records may be missing here. GET /log returns all of them" });
            let cursor = Cursor::after(&tables_id, now).to_string();
            let event = Event::default().event("gap").id(cursor).data(gap.to_string());
            return Ok(Some(TailStart { tables_id, position: now, events: vec![event] }));
        }
        if from.is_some() {
            return Ok(None);
        }
        let mut events = Vec::new();
        if self.last > 0 {
            let rows = self.last_rows(&snapshot, now)?;
            events.extend(
                page::list_rows(&snapshot, rows, self.me)?
                    .iter()
                    .filter_map(|listed| event(&tables_id, listed)),
            );
        }
        Ok(Some(TailStart { tables_id, position: now, events }))
    }

    fn last_rows(&self, db: &Connection, now: i64) -> rusqlite::Result<Vec<Row>> {
        let mut find = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM log_records r WHERE r.id <= ?1 ORDER BY r.id DESC"
        ))?;
        let mut budget = PageBudget::new(self.last);
        let mut rows = Vec::new();
        for (seen, row) in find.query_and_then([now], Row::read)?.enumerate() {
            let row = row?;
            if budget.is_full() || seen % 64 == 63 && budget.is_late() {
                break;
            }
            if self.filter.takes(&row) && holds(&row, self.part.as_deref()) {
                budget.take(&row);
                rows.push(row);
            }
        }
        rows.reverse();
        Ok(rows)
    }
}

fn holds(row: &Row, part: Option<&str>) -> bool {
    part.is_none_or(|part| row.message.to_lowercase().contains(part))
}

fn event(tables_id: &str, listed: &ListedRecord) -> Option<Event> {
    // Serialising a record cannot fail. If it did, only this event would be missing.
    let data = serde_json::to_string(listed).ok()?;
    Some(Event::default().id(Cursor::after(tables_id, listed.arrival).to_string()).data(data))
}

/// Open stream of one reader.
struct TailReader {
    journal: Arc<dyn Journal>,
    changes: watch::Receiver<u64>,
    me: NodeId,
    filter: Filter,
    part: Option<String>,
    tables_id: String,
    /// Every row up to this one has been read.
    position: i64,
    /// Events that the connection has not accepted yet.
    ready: VecDeque<Event>,
    /// When the connection accepted the last event.
    handed_over: Option<Instant>,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

/// Rows of one read.
struct Batch {
    tables_id: String,
    /// The last row that was read.
    position: i64,
    /// Whether there may be more rows.
    more: bool,
    listed: Vec<ListedRecord>,
}

impl TailReader {
    /// Returns the next event; `None` at the end of the stream.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.has_ended {
            return None;
        }
        let stalled = self.handed_over.take().is_some_and(|since| since.elapsed() > STALL_MAX);
        if stalled {
            return Some((Ok(self.drop_slow_reader()), self));
        }
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.handed_over = Some(Instant::now());
                return Some((Ok(event), self));
            }
            self.changes.borrow_and_update();
            match self.refill().await {
                // Rows were read, whether or not any passed the filter.
                Ok(true) => continue,
                Ok(false) => (),
                Err(problem) => {
                    self.has_ended = true;
                    let data = json!({ "detail": problem.detail() });
                    return Some((Ok(Event::default().event("error").data(data.to_string())), self));
                }
            }
            self.changes.changed().await.ok()?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends the stream. The reader's position is the id of its last event.
    fn drop_slow_reader(&mut self) -> Event {
        self.has_ended = true;
        self.ready.clear();
        let detail = format!(
            "you read nothing for {} seconds, and other readers need the place. Resume with Last-Event-ID",
            STALL_MAX.as_secs()
        );
        Event::default().event("dropped").data(json!({ "detail": detail }).to_string())
    }

    /// Reads the next rows. Returns whether there may be more.
    async fn refill(&mut self) -> Result<bool, Problem> {
        let (position, filter, part, me) = (self.position, self.filter.clone(), self.part.clone(), self.me);
        let batch =
            journal::read(self.journal.as_ref(), move |db| batch(db, position, &filter, part.as_deref(), me));
        let batch = batch.await?;
        if batch.tables_id != self.tables_id {
            let detail = "the tables of this node were rebuilt. Start a new tail";
            return Err(Problem::new(StatusCode::GONE, detail));
        }
        self.position = batch.position;
        self.ready.extend(batch.listed.iter().filter_map(|listed| event(&batch.tables_id, listed)));
        Ok(batch.more || !self.ready.is_empty())
    }
}

fn batch(
    db: &Connection,
    position: i64,
    filter: &Filter,
    part: Option<&str>,
    me: NodeId,
) -> rusqlite::Result<Batch> {
    let snapshot = db.unchecked_transaction()?;
    let (tables_id, now) = (tables::tables_id(&snapshot)?, tables::newest(&snapshot)?);
    let mut budget = PageBudget::new(BATCH);
    let (mut read, mut rows) = (position, Vec::new());
    let mut more = false;
    if position < now {
        let mut find = snapshot.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM log_records r WHERE r.id > ?1 AND r.id <= ?2 ORDER BY r.id"
        ))?;
        for (seen, row) in find.query_and_then(params![position, now], Row::read)?.enumerate() {
            let row = row?;
            more = budget.is_full() || seen % 64 == 63 && budget.is_late();
            if more {
                break;
            }
            read = row.id;
            if filter.takes(&row) && holds(&row, part) {
                budget.take(&row);
                rows.push(row);
            }
        }
    }
    let listed = page::list_rows(&snapshot, rows, me)?;
    Ok(Batch { tables_id, position: if more { read } else { now.max(position) }, more, listed })
}
