//! `GET /log/tail`: records as they come (server-sent events).
//!
//! There is no queue for a reader. It pulls: when its connection takes more, the next rows are read, in the order in which they arrived
//! here. So one that is slow costs nothing but its place; and for the sake of those who wait for a place, one that takes
//! nothing for half a minute is told where it was, and let go. Whoever comes back with `Last-Event-ID` goes on there.

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
    Desk, TAILS_MAX,
    cursor::Cursor,
    numbers,
    page::{self, Budget, Filter, From, Listed},
    read,
    tables::{self, COLUMNS, Row},
};
use crate::{
    Problem,
    journal::{self, Journal},
    parameters::Parameters,
};

/// Rows read at a time. Few, because they are held until the reader takes them.
const BATCH: usize = 64;
/// How often a stream without news shows that it lives. Below the minute after which proxies commonly give up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Between two looks at what came. Many writes within it are one look.
const PAUSE: Duration = Duration::from_millis(20);
/// A reader that takes nothing for so long, though there is something, is let go.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Records that a tail may begin with.
const LAST_MAX: usize = 1000;
/// The longest part of a message to look for, in bytes.
const PART_BYTES_MAX: usize = 256;

/// Answers with the stream.
pub(super) async fn tail(
    State(desk): State<Desk>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["service", "level", "q", "after", "last"])?;
    let filter = read::filter(&parameters)?;
    let part = parameters.one("q")?.filter(|part| !part.is_empty()).map(str::to_lowercase);
    if part.as_ref().is_some_and(|part| part.len() > PART_BYTES_MAX) {
        return Err(Problem::parameter("q", format_args!("at most {PART_BYTES_MAX} bytes")));
    }
    let allowed = format!("a whole number from 0 to {LAST_MAX}");
    let last = parameters.parse::<usize>("last", &allowed)?.unwrap_or(0);
    if last > LAST_MAX {
        return Err(Parameters::refuse("last", &last.to_string(), allowed));
    }
    let after = read::from(&parameters, "after")?;
    // A browser that lost its connection says where it was, whatever stood in the address.
    let resumed = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let journal = desk.journal()?;
    let Ok(place) = Arc::clone(&desk.tails).try_acquire_owned() else {
        let detail =
            format!("{TAILS_MAX} tails are followed here; ask another node, or read /log page by page");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let changes = journal.changes();
    let begin = Begin { me: desk.me(), filter: filter.clone(), part: part.clone(), last };
    let (from, is_resumed) = match resumed {
        Some(id) => (read::place(id), true),
        None => (after, false),
    };
    let begun = journal::read(journal.as_ref(), move |db| begin.find(db, from, is_resumed)).await?;
    let Some(begun) = begun else { return Err(read::refused(&page::PageError::Stranger)) };
    let follower = Follower {
        journal,
        changes,
        me: desk.me(),
        filter,
        part,
        made: begun.made,
        position: begun.position,
        ready: begun.events.into(),
        handed_over: None,
        has_ended: false,
        _place: place,
    };
    Ok(Sse::new(stream::unfold(follower, Follower::next))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// Where a stream begins.
struct Begin {
    me: NodeId,
    filter: Filter,
    part: Option<String>,
    last: usize,
}

/// What a stream begins with.
struct Begun {
    made: String,
    position: i64,
    events: Vec<Event>,
}

impl Begin {
    /// `None`: the place to go on from is none of this node's.
    fn find(self, db: &Connection, from: Option<From>, is_resumed: bool) -> rusqlite::Result<Option<Begun>> {
        let moment = db.unchecked_transaction()?;
        let (made, now) = (tables::made(&moment)?, tables::newest(&moment)?);
        let known = match &from {
            Some(From::Cursor(cursor)) => (cursor.made == made && cursor.high <= now).then_some(cursor.low),
            Some(From::Record(id)) => numbers::row_of(&moment, *id)?,
            None => None,
        };
        if let Some(position) = known {
            return Ok(Some(Begun { made, position, events: Vec::new() }));
        }
        if is_resumed {
            // It cannot be said what it missed. It is told so, and goes on with what comes.
            let gap = json!({ "detail": "this node cannot tell where you were: records may be missing here; GET /log has them all" });
            let cursor = Cursor::after(&made, now).to_string();
            let event = Event::default().event("gap").id(cursor).data(gap.to_string());
            return Ok(Some(Begun { made, position: now, events: vec![event] }));
        }
        if from.is_some() {
            return Ok(None);
        }
        let mut events = Vec::new();
        if self.last > 0 {
            let rows = self.last_rows(&moment, now)?;
            events
                .extend(page::list(&moment, rows, self.me)?.iter().filter_map(|listed| event(&made, listed)));
        }
        Ok(Some(Begun { made, position: now, events }))
    }

    fn last_rows(&self, db: &Connection, now: i64) -> rusqlite::Result<Vec<Row>> {
        let mut find = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM log_records r WHERE r.id <= ?1 ORDER BY r.id DESC"
        ))?;
        let mut budget = Budget::new(self.last);
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

fn event(made: &str, listed: &Listed) -> Option<Event> {
    // This shape always serialises; should it not, the reader misses it rather than the node its life.
    let data = serde_json::to_string(listed).ok()?;
    Some(Event::default().id(Cursor::after(made, listed.arrival).to_string()).data(data))
}

/// One reader.
struct Follower {
    journal: Arc<dyn Journal>,
    changes: watch::Receiver<u64>,
    me: NodeId,
    filter: Filter,
    part: Option<String>,
    made: String,
    /// All that arrived up to here was looked at.
    position: i64,
    /// Read, and not yet taken.
    ready: VecDeque<Event>,
    /// When the last event was given to the connection.
    handed_over: Option<Instant>,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

/// What was read.
struct Batch {
    made: String,
    /// Up to where.
    position: i64,
    /// Whether there is more.
    more: bool,
    listed: Vec<Listed>,
}

impl Follower {
    /// The next event; `None`: the stream ends.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.has_ended {
            return None;
        }
        let stalled = self.handed_over.take().is_some_and(|since| since.elapsed() > STALL_MAX);
        if stalled {
            return Some((Ok(self.let_go()), self));
        }
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.handed_over = Some(Instant::now());
                return Some((Ok(event), self));
            }
            self.changes.borrow_and_update();
            match self.refill().await {
                // More was looked at, whether or not it was asked for.
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

    /// Where it was stands in the last id that it got.
    fn let_go(&mut self) -> Event {
        self.has_ended = true;
        self.ready.clear();
        let detail = format!(
            "you took nothing for {} seconds, and others wait for the place; go on with Last-Event-ID",
            STALL_MAX.as_secs()
        );
        Event::default().event("dropped").data(json!({ "detail": detail }).to_string())
    }

    /// Reads on, and says whether there may be more.
    async fn refill(&mut self) -> Result<bool, Problem> {
        let (position, filter, part, me) = (self.position, self.filter.clone(), self.part.clone(), self.me);
        let batch =
            journal::read(self.journal.as_ref(), move |db| batch(db, position, &filter, part.as_deref(), me));
        let batch = batch.await?;
        if batch.made != self.made {
            let detail = "the tables of this node were made anew; begin anew";
            return Err(Problem::new(StatusCode::GONE, detail));
        }
        self.position = batch.position;
        self.ready.extend(batch.listed.iter().filter_map(|listed| event(&batch.made, listed)));
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
    let moment = db.unchecked_transaction()?;
    let (made, now) = (tables::made(&moment)?, tables::newest(&moment)?);
    let mut budget = Budget::new(BATCH);
    let (mut read, mut rows) = (position, Vec::new());
    let mut more = false;
    if position < now {
        let mut find = moment.prepare_cached(&format!(
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
    let listed = page::list(&moment, rows, me)?;
    Ok(Batch { made, position: if more { read } else { now.max(position) }, more, listed })
}
