//! Reads pages of records in the order of time, forward or backward from a cursor. Pages of a search are read
//! in `search`.
//!
//! A page ends at its bound of bytes or time, or at the end of its window, and has the cursor of the next
//! page. So a page may be short or even empty; only the absence of `next` means that there are no more
//! records.

use std::{cmp::Ordering, collections::BTreeMap};

use hearsay_protocol::{NodeId, journal::HybridTime};
use rusqlite::{Connection, params};
use serde::{Serialize, Serializer};

use super::{
    cursor::{At, Cursor},
    filter::Filter,
    integers::sortable,
    offsets,
    page_budget::PageBudget,
    record::Level,
    search::{self, SearchQuery},
    tables::{self, COLUMNS, Row},
};
use crate::{journal::FeedId, timestamp};

/// Maximum number of records on one page.
pub(crate) const RECORDS_PER_PAGE_MAX: usize = 1000;
/// Rows in each window after the first. They are sorted for each page.
const WINDOW: i64 = 4096;

/// Query for one page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PageQuery {
    /// Filter by service and level.
    pub(super) filter: Filter,
    /// Words to search for. Pages of a search are in the order of arrival.
    pub(super) words: Option<SearchQuery>,
    /// Start and direction.
    pub(super) direction: Direction,
    /// Maximum number of records on the page.
    pub(super) limit: usize,
    /// This node, whose offsets are always known.
    pub(super) me: NodeId,
}

/// Direction of reading, with its start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// Forward from a position; `None`: from the beginning.
    Forward(Option<Position>),
    /// The last records before a position; `None`: the last of the log.
    Backward(Option<Cursor>),
}

/// Position to read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Position {
    /// The end of an earlier page.
    Cursor(Cursor),
    /// After this record and all records that arrived before it.
    Record(crate::journal::EntryId),
}

/// Reason why a query has no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum PageError {
    /// The cursor belongs to another node, or to tables that have been rebuilt since.
    #[error("the cursor means nothing here")]
    ForeignCursor,
    /// The record is not here, or was dropped.
    #[error("no such record")]
    NoRecord,
    /// The database failed.
    #[error("{0}")]
    Database(#[from] rusqlite::Error),
}

/// A page of records, with the cursors of the pages before and after it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Page {
    pub(super) records: Vec<ListedRecord>,
    /// Cursor of the next page; `None` if there are no more records now.
    pub(super) next: Option<String>,
    /// Cursor of the previous page; `None` if this is the first one.
    pub(super) prev: Option<String>,
    /// Cursor for a later request: after this page, including records that arrive in the meantime.
    pub(super) resume: String,
}

/// A record in the response.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct ListedRecord {
    id: String,
    node: String,
    offset: Option<u64>,
    #[serde(serialize_with = "moment")]
    time: u64,
    service: Option<String>,
    #[serde(serialize_with = "level_name")]
    level: Level,
    message: String,
    #[serde(skip)]
    pub(super) arrival: i64,
}

fn moment<S: Serializer>(ms: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&timestamp::rfc3339_ms(*ms))
}

fn level_name<S: Serializer>(level: &Level, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(level.name())
}

/// Reads a page from one snapshot of the database.
pub(super) fn read_page(db: &Connection, query: &PageQuery) -> Result<Page, PageError> {
    let snapshot = db.unchecked_transaction()?;
    let tables_id = tables::tables_id(&snapshot)?;
    let now = tables::newest(&snapshot)?;
    let budget = PageBudget::new(query.limit);
    let place = match &query.direction {
        Direction::Forward(Some(from)) => Some(find(&snapshot, from, &tables_id, now)?),
        Direction::Backward(Some(cursor)) => {
            Some(find(&snapshot, &Position::Cursor(cursor.clone()), &tables_id, now)?)
        }
        Direction::Forward(None) | Direction::Backward(None) => None,
    };
    let (rows, prev, next) = match (&query.direction, &query.words) {
        (Direction::Forward(_), Some(words)) => {
            let low = place.map_or(0, |place| place.low);
            let (rows, read) = search::after(&snapshot, words, &query.filter, (low, now), budget)?;
            let prev = rows.first().filter(|_| low > 0).map(|row| Cursor::after(&tables_id, row.id - 1));
            (rows, prev, (read < now).then(|| Cursor::after(&tables_id, read)))
        }
        (Direction::Forward(_), None) => {
            let is_first = place.is_none();
            let begin =
                place.unwrap_or_else(|| Cursor { tables_id: tables_id.clone(), low: 0, high: now, at: None });
            let (rows, next) = read_windows(&snapshot, &query.filter, begin, now, budget)?;
            let prev = rows.first().filter(|_| !is_first).map(|row| cursor_at_row(&tables_id, now, row));
            (rows, prev, next)
        }
        (Direction::Backward(_), Some(words)) => {
            let high = place.as_ref().map_or(now, |place| place.low);
            let (rows, read) = search::before(&snapshot, words, &query.filter, high, budget)?;
            (rows, (read > 0).then(|| Cursor::after(&tables_id, read)), place)
        }
        (Direction::Backward(_), None) => {
            let high = place.as_ref().map_or(now, |place| place.high);
            let before = place.as_ref().and_then(|place| place.at);
            let (rows, read) = read_back(&snapshot, &query.filter, (high, before), budget)?;
            let next =
                rows.last().filter(|_| place.is_some()).map(|row| cursor_at_row(&tables_id, high, row));
            (rows, read.map(|at| Cursor { tables_id: tables_id.clone(), low: 0, high, at: Some(at) }), next)
        }
    };
    let resume = match (&query.direction, &next) {
        (Direction::Forward(_), Some(next)) => next.to_string(),
        _ => Cursor::after(&tables_id, now).to_string(),
    };
    let text = |cursor: Option<Cursor>| cursor.map(|cursor| cursor.to_string());
    Ok(Page { records: list_rows(&snapshot, rows, query.me)?, next: text(next), prev: text(prev), resume })
}

/// The cursor of a row among all rows up to `high`.
fn cursor_at_row(tables_id: &str, high: i64, row: &Row) -> Cursor {
    let at = At { time: row.time, feed: row.feed, seq: row.seq };
    Cursor { tables_id: tables_id.to_owned(), low: 0, high, at: Some(at) }
}

/// Resolves a client's position to a cursor in these tables.
fn find(db: &Connection, from: &Position, tables_id: &str, now: i64) -> Result<Cursor, PageError> {
    match from {
        Position::Cursor(cursor) if cursor.tables_id != tables_id || cursor.high > now => {
            Err(PageError::ForeignCursor)
        }
        Position::Cursor(cursor) => Ok(cursor.clone()),
        Position::Record(id) => {
            let arrival = offsets::row_of(db, *id)?.ok_or(PageError::NoRecord)?;
            Ok(Cursor::after(tables_id, arrival))
        }
    }
}

/// Reads windows until one has a matching record or there are no more.
fn read_windows(
    db: &Connection,
    filter: &Filter,
    mut cursor: Cursor,
    now: i64,
    mut budget: PageBudget,
) -> rusqlite::Result<(Vec<Row>, Option<Cursor>)> {
    loop {
        let (rows, at) = read_window(db, filter, &cursor, &mut budget)?;
        if at.is_some() {
            return Ok((rows, Some(Cursor { at, ..cursor })));
        }
        if cursor.high >= now {
            return Ok((rows, None));
        }
        cursor = Cursor { low: cursor.high, high: now.min(cursor.high + WINDOW), at: None, ..cursor };
        if !rows.is_empty() || budget.is_late() {
            return Ok((rows, Some(cursor)));
        }
    }
}

/// Reads one window from the cursor. Returns the position reached, or `None` at the end of the window.
fn read_window(
    db: &Connection,
    filter: &Filter,
    cursor: &Cursor,
    budget: &mut PageBudget,
) -> rusqlite::Result<(Vec<Row>, Option<At>)> {
    let mut order = TieSorter { db, ties: Vec::new(), feeds: BTreeMap::new() };
    let mut walk = PageCollector { filter, after: cursor.at, rows: Vec::new(), last: None, seen: 0, budget };
    let start = sortable(cursor.at.map_or(HybridTime(0), |at| at.time).0);
    if cursor.low == cursor.high {
        return Ok((Vec::new(), None));
    }
    // Handles all rows of one time together. Returns `true` once the page is full.
    let mut step = |row: Row| -> rusqlite::Result<bool> {
        let is_over = order.ties.first().is_some_and(|tied| tied.time != row.time)
            && walk.collect(order.sort_ties(cursor.at, Ordering::Greater)?);
        order.ties.push(row);
        Ok(is_over)
    };
    let mut is_over = false;
    if cursor.high - cursor.low <= WINDOW {
        // A small window; its rows may have any time.
        let mut find = db.prepare_cached(
            "SELECT id FROM log_records NOT INDEXED WHERE id > ?2 AND id <= ?3 AND time >= ?1 ORDER BY time",
        )?;
        let ids = find.query_map(params![start, cursor.low, cursor.high], |row| row.get(0))?;
        let ids: Vec<i64> = ids.collect::<rusqlite::Result<_>>()?;
        let mut look = db.prepare_cached(&format!("SELECT {COLUMNS} FROM log_records r WHERE r.id = ?1"))?;
        for id in ids {
            is_over = step(look.query_row([id], Row::read)?)?;
            if is_over {
                break;
            }
        }
    } else {
        // A window that covers nearly the whole log: the index yields it in order.
        let (index, condition) = filter.index();
        let mut find = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM log_records r INDEXED BY {index}
             WHERE r.time >= ?1 AND r.id > ?2 AND r.id <= ?3 AND {condition} ORDER BY r.time"
        ))?;
        let all = params![start, cursor.low, cursor.high, filter.service];
        for row in find.query_and_then(all, Row::read)? {
            is_over = step(row?)?;
            if is_over {
                break;
            }
        }
    }
    let is_over = is_over || walk.collect(order.sort_ties(cursor.at, Ordering::Greater)?);
    Ok((walk.rows, walk.last.filter(|_| is_over)))
}

/// Sorter of rows with the same time, into the order that all nodes share.
struct TieSorter<'a> {
    db: &'a Connection,
    ties: Vec<Row>,
    feeds: BTreeMap<i64, FeedId>,
}

impl TieSorter<'_> {
    fn feed(&mut self, id: i64) -> rusqlite::Result<FeedId> {
        if let Some(feed) = self.feeds.get(&id) {
            return Ok(*feed);
        }
        let feed = offsets::feed_id(self.db, id)?;
        self.feeds.insert(id, feed);
        Ok(feed)
    }

    /// Sorts the collected rows and returns them, restricted to one side of a position if there is one.
    fn sort_ties(&mut self, place: Option<At>, side: Ordering) -> rusqlite::Result<Vec<Row>> {
        let mut rows = std::mem::take(&mut self.ties);
        let after = place.filter(|at| rows.first().is_some_and(|row| row.time == at.time));
        if rows.len() > 1 || after.is_some() {
            let mut named = Vec::with_capacity(rows.len());
            for row in rows {
                named.push(((self.feed(row.feed)?, row.seq), row));
            }
            if let Some(at) = after {
                let place = (self.feed(at.feed)?, at.seq);
                named.retain(|(name, _)| name.cmp(&place) == side);
            }
            named.sort_by_key(|(name, _)| *name);
            rows = named.into_iter().map(|(_, row)| row).collect();
        }
        Ok(rows)
    }
}

/// Collector of the matching rows of a page.
struct PageCollector<'a> {
    filter: &'a Filter,
    after: Option<At>,
    rows: Vec<Row>,
    /// The last row examined.
    last: Option<At>,
    seen: u32,
    budget: &'a mut PageBudget,
}

impl PageCollector<'_> {
    /// Collects matching rows. Returns `true` at the first row for which there is no room or no time; that
    /// row and those after it are left for the next page.
    fn collect(&mut self, rows: Vec<Row>) -> bool {
        for row in rows {
            self.seen += 1;
            let is_late = self.seen.is_multiple_of(64) && self.budget.is_late();
            if self.budget.is_full() || is_late {
                self.last = self.last.or(self.after);
                return true;
            }
            self.last = Some(At { time: row.time, feed: row.feed, seq: row.seq });
            if self.filter.takes(&row) {
                self.budget.take(&row);
                self.rows.push(row);
            }
        }
        false
    }
}

/// Reads the last matching records before a position, oldest first. Returns them with the position reached,
/// or `None` at the beginning of the log.
fn read_back(
    db: &Connection,
    filter: &Filter,
    (high, before): (i64, Option<At>),
    mut budget: PageBudget,
) -> rusqlite::Result<(Vec<Row>, Option<At>)> {
    let (index, condition) = filter.index();
    let mut find = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM log_records r INDEXED BY {index} WHERE r.time <= ?1 AND r.id > ?2 AND r.id <= ?3
         AND {condition} ORDER BY r.time DESC"
    ))?;
    let latest = before.map_or(i64::MAX, |at| sortable(at.time.0));
    let found = find.query_and_then(params![latest, 0, high, filter.service], Row::read)?;
    let mut order = TieSorter { db, ties: Vec::new(), feeds: BTreeMap::new() };
    let mut walk =
        PageCollector { filter, after: before, rows: Vec::new(), last: None, seen: 0, budget: &mut budget };
    let mut is_over = false;
    for row in found {
        let row = row?;
        is_over = order.ties.first().is_some_and(|tied| tied.time != row.time) && {
            let mut settled = order.sort_ties(before, Ordering::Less)?;
            settled.reverse();
            walk.collect(settled)
        };
        if is_over {
            break;
        }
        order.ties.push(row);
    }
    if !is_over {
        let mut settled = order.sort_ties(before, Ordering::Less)?;
        settled.reverse();
        is_over = walk.collect(settled);
    }
    let (mut rows, last) = (walk.rows, walk.last.filter(|_| is_over));
    rows.reverse();
    Ok((rows, last))
}

/// Converts rows for the response.
pub(super) fn list_rows(db: &Connection, rows: Vec<Row>, me: NodeId) -> rusqlite::Result<Vec<ListedRecord>> {
    let mut feeds: BTreeMap<i64, offsets::FeedView> = BTreeMap::new();
    let mut listed = Vec::with_capacity(rows.len());
    for row in rows {
        let shown = match feeds.get(&row.feed) {
            Some(shown) => shown,
            None => {
                let shown = offsets::feed_view(db, row.feed, me)?;
                feeds.entry(row.feed).or_insert(shown)
            }
        };
        let offset = match (row.is_posted, shown.base, row.before) {
            (true, Some(base), Some(before)) => u64::try_from(base + before).ok(),
            _ => None,
        };
        listed.push(ListedRecord {
            id: offsets::entry_id(shown.feed, row.seq).to_string(),
            node: row.node,
            offset,
            time: row.stated_ms.unwrap_or_else(|| row.time.wall_ms()),
            service: row.service,
            level: row.level,
            message: row.message,
            arrival: row.id,
        });
    }
    Ok(listed)
}
