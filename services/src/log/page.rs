//! Pages of records, in the order of time, onwards or back. Pages of a search are in `search`.
//!
//! A page has three ends besides its own: so many bytes, so much time, and the end of its window. Whichever comes first, it says where to go on; so
//! a page may be short, or even empty, and only the absence of `next` means that there is nothing more.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hearsay_protocol::{NodeId, journal::clock::HybridTime};
use rusqlite::{Connection, params};
use serde::{Serialize, Serializer};

use super::{
    cursor::{At, Cursor},
    numbers,
    record::Level,
    search::{self, Words},
    tables::{self, COLUMNS, Row, sortable},
};
use crate::{journal::FeedId, timestamp};

/// The most records on a page.
pub const RECORDS_PER_PAGE_MAX: usize = 1000;
/// A page with so many bytes of messages is full. At the longest messages it has 32 records.
const PAGE_BYTES: usize = 1024 * 1024;
/// After this long a page is answered as it is: a reader of rare records rather asks again than holds a place.
const TIME_MAX: Duration = Duration::from_millis(25);
/// Arrivals that make a window, after the first. They are sorted for each page.
const WINDOW: i64 = 4096;

/// Which records a reader asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Filter {
    /// Only of this service.
    pub(super) service: Option<String>,
    /// Only those that matter so much, or more.
    pub(super) level: Option<Level>,
}

impl Filter {
    pub(super) fn takes(&self, row: &Row) -> bool {
        !row.is_hidden
            && self.level.is_none_or(|level| row.level >= level)
            && self.service.as_ref().is_none_or(|service| row.service.as_ref() == Some(service))
    }

    /// The index that finds these records, in the order of time.
    fn index(&self) -> (&'static str, &'static str) {
        match self {
            // The fourth parameter stands in each, so that all take the same.
            Self { level: Some(level), .. } if *level >= Level::Warn => {
                ("log_warnings", "r.level >= 4 AND ?4 IS ?4")
            }
            Self { service: Some(_), .. } => ("log_by_service", "r.service = ?4"),
            _ => ("log_by_time", "?4 IS ?4"),
        }
    }
}

/// What a reader asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Question {
    /// Only these.
    pub(super) filter: Filter,
    /// Only with these words; then in the order of arrival.
    pub(super) words: Option<Words>,
    /// From where, and which way.
    pub(super) way: Way,
    /// At most so many.
    pub(super) limit: usize,
    /// Whose offsets are what is here.
    pub(super) me: NodeId,
}

/// Which way a reader goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// On from there; `None`: from the beginning.
    On(Option<From>),
    /// The last ones before there; `None`: the last there are.
    Back(Option<Cursor>),
}

/// Where a reader is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum From {
    /// Where a page ended.
    Cursor(Cursor),
    /// After what had arrived with this record.
    Record(crate::journal::EntryId),
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum PageError {
    /// The cursor was made by another node, or before the tables were made anew.
    #[error("the cursor means nothing here")]
    Stranger,
    /// The record is not here, or no longer kept.
    #[error("no such record")]
    NoRecord,
    /// The database refused.
    #[error("{0}")]
    Database(#[from] rusqlite::Error),
}

/// A page.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Page {
    pub(super) records: Vec<Listed>,
    /// Where to go on; `None`: nothing more is here now.
    pub(super) next: Option<String>,
    /// Where to go back; `None`: this is the beginning.
    pub(super) prev: Option<String>,
    /// Where to go on later, after this page and for what will have come by then.
    pub(super) resume: String,
}

/// A record, as clients see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Listed {
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

/// When a page that was begun now has to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    until: Instant,
    bytes: usize,
    records: usize,
}

impl Budget {
    pub(super) fn new(records: usize) -> Self {
        Self { until: Instant::now() + TIME_MAX, bytes: PAGE_BYTES, records }
    }

    pub(super) fn is_late(&self) -> bool {
        self.until < Instant::now()
    }

    /// Whether there is room for no more.
    pub(super) fn is_full(&self) -> bool {
        self.records == 0 || self.bytes == 0
    }

    pub(super) fn take(&mut self, row: &Row) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(row.message.len());
    }
}

/// Looks up what a question asks for. All of it is as of one moment.
pub(super) fn page(db: &Connection, question: &Question) -> Result<Page, PageError> {
    let moment = db.unchecked_transaction()?;
    let made = tables::made(&moment)?;
    let now = tables::newest(&moment)?;
    let budget = Budget::new(question.limit);
    let place = match &question.way {
        Way::On(Some(from)) => Some(find(&moment, from, &made, now)?),
        Way::Back(Some(cursor)) => Some(find(&moment, &From::Cursor(cursor.clone()), &made, now)?),
        Way::On(None) | Way::Back(None) => None,
    };
    let (rows, prev, next) = match (&question.way, &question.words) {
        (Way::On(_), Some(words)) => {
            let low = place.map_or(0, |place| place.low);
            let (rows, read) = search::after(&moment, words, &question.filter, (low, now), budget)?;
            let prev = rows.first().filter(|_| low > 0).map(|row| Cursor::after(&made, row.id - 1));
            (rows, prev, (read < now).then(|| Cursor::after(&made, read)))
        }
        (Way::On(_), None) => {
            let is_first = place.is_none();
            let begin = place.unwrap_or_else(|| Cursor { made: made.clone(), low: 0, high: now, at: None });
            let (rows, next) = windows(&moment, &question.filter, begin, now, budget)?;
            let prev = rows.first().filter(|_| !is_first).map(|row| at_row(&made, now, row));
            (rows, prev, next)
        }
        (Way::Back(_), Some(words)) => {
            let high = place.as_ref().map_or(now, |place| place.low);
            let (rows, read) = search::before(&moment, words, &question.filter, high, budget)?;
            (rows, (read > 0).then(|| Cursor::after(&made, read)), place)
        }
        (Way::Back(_), None) => {
            let high = place.as_ref().map_or(now, |place| place.high);
            let before = place.as_ref().and_then(|place| place.at);
            let (rows, read) = back(&moment, &question.filter, (high, before), budget)?;
            let next = rows.last().filter(|_| place.is_some()).map(|row| at_row(&made, high, row));
            (rows, read.map(|at| Cursor { made: made.clone(), low: 0, high, at: Some(at) }), next)
        }
    };
    let resume = match (&question.way, &next) {
        (Way::On(_), Some(next)) => next.to_string(),
        _ => Cursor::after(&made, now).to_string(),
    };
    let text = |cursor: Option<Cursor>| cursor.map(|cursor| cursor.to_string());
    Ok(Page { records: list(&moment, rows, question.me)?, next: text(next), prev: text(prev), resume })
}

/// The place of a row among all that had arrived.
fn at_row(made: &str, high: i64, row: &Row) -> Cursor {
    let at = At { time: row.time, feed: row.feed, seq: row.seq };
    Cursor { made: made.to_owned(), low: 0, high, at: Some(at) }
}

/// What a client named, as a place in these tables.
fn find(db: &Connection, from: &From, made: &str, now: i64) -> Result<Cursor, PageError> {
    match from {
        From::Cursor(cursor) if cursor.made != made || cursor.high > now => Err(PageError::Stranger),
        From::Cursor(cursor) => Ok(cursor.clone()),
        From::Record(id) => {
            let arrival = numbers::row_of(db, *id)?.ok_or(PageError::NoRecord)?;
            Ok(Cursor::after(made, arrival))
        }
    }
}

/// Reads windows until one holds something, or there are no more.
fn windows(
    db: &Connection,
    filter: &Filter,
    mut cursor: Cursor,
    now: i64,
    mut budget: Budget,
) -> rusqlite::Result<(Vec<Row>, Option<Cursor>)> {
    loop {
        let (rows, at) = window(db, filter, &cursor, &mut budget)?;
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

/// Reads on in a window. Returns how far, unless it was read to its end.
fn window(
    db: &Connection,
    filter: &Filter,
    cursor: &Cursor,
    budget: &mut Budget,
) -> rusqlite::Result<(Vec<Row>, Option<At>)> {
    let mut order = Order { db, ties: Vec::new(), feeds: BTreeMap::new() };
    let mut walk = Walk { filter, after: cursor.at, rows: Vec::new(), last: None, seen: 0, budget };
    let start = sortable(cursor.at.map_or(HybridTime(0), |at| at.time).0);
    if cursor.low == cursor.high {
        return Ok((Vec::new(), None));
    }
    // Takes the rows of one moment together; `true`: enough.
    let mut step = |row: Row| -> rusqlite::Result<bool> {
        let is_over = order.ties.first().is_some_and(|tied| tied.time != row.time)
            && walk.over(order.settle(cursor.at, Ordering::Greater)?);
        order.ties.push(row);
        Ok(is_over)
    };
    let mut is_over = false;
    if cursor.high - cursor.low <= WINDOW {
        // Small, and what is in it may be of any time.
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
        // Nearly all that is here, and an index has it in order.
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
    let is_over = is_over || walk.over(order.settle(cursor.at, Ordering::Greater)?);
    Ok((walk.rows, walk.last.filter(|_| is_over)))
}

/// Rows of one moment, put into the order that they have on every node.
struct Order<'a> {
    db: &'a Connection,
    ties: Vec<Row>,
    feeds: BTreeMap<i64, FeedId>,
}

impl Order<'_> {
    fn feed(&mut self, id: i64) -> rusqlite::Result<FeedId> {
        if let Some(feed) = self.feeds.get(&id) {
            return Ok(*feed);
        }
        let feed = numbers::feed_id(self.db, id)?;
        self.feeds.insert(id, feed);
        Ok(feed)
    }

    /// Gives those on one side of a place (where there is one), in order, and begins anew.
    fn settle(&mut self, place: Option<At>, side: Ordering) -> rusqlite::Result<Vec<Row>> {
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

/// Collects what is asked for, until there is enough of it.
struct Walk<'a> {
    filter: &'a Filter,
    after: Option<At>,
    rows: Vec<Row>,
    /// The last row looked at.
    last: Option<At>,
    seen: u32,
    budget: &'a mut Budget,
}

impl Walk<'_> {
    /// Takes rows in; `true`: there is one for which there is no room or no time, and everything from it on is left for the next page.
    fn over(&mut self, rows: Vec<Row>) -> bool {
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

/// The last records before a place, the earliest of them first; and how far back it looked, unless that was to the beginning.
fn back(
    db: &Connection,
    filter: &Filter,
    (high, before): (i64, Option<At>),
    mut budget: Budget,
) -> rusqlite::Result<(Vec<Row>, Option<At>)> {
    let (index, condition) = filter.index();
    let mut find = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM log_records r INDEXED BY {index} WHERE r.time <= ?1 AND r.id > ?2 AND r.id <= ?3
         AND {condition} ORDER BY r.time DESC"
    ))?;
    let latest = before.map_or(i64::MAX, |at| sortable(at.time.0));
    let found = find.query_and_then(params![latest, 0, high, filter.service], Row::read)?;
    let mut order = Order { db, ties: Vec::new(), feeds: BTreeMap::new() };
    let mut walk = Walk { filter, after: before, rows: Vec::new(), last: None, seen: 0, budget: &mut budget };
    let mut is_over = false;
    for row in found {
        let row = row?;
        is_over = order.ties.first().is_some_and(|tied| tied.time != row.time) && {
            let mut settled = order.settle(before, Ordering::Less)?;
            settled.reverse();
            walk.over(settled)
        };
        if is_over {
            break;
        }
        order.ties.push(row);
    }
    if !is_over {
        let mut settled = order.settle(before, Ordering::Less)?;
        settled.reverse();
        is_over = walk.over(settled);
    }
    let (mut rows, last) = (walk.rows, walk.last.filter(|_| is_over));
    rows.reverse();
    Ok((rows, last))
}

/// Rows as clients see them.
pub(super) fn list(db: &Connection, rows: Vec<Row>, me: NodeId) -> rusqlite::Result<Vec<Listed>> {
    let mut feeds: BTreeMap<i64, numbers::Shown> = BTreeMap::new();
    let mut listed = Vec::with_capacity(rows.len());
    for row in rows {
        let shown = match feeds.get(&row.feed) {
            Some(shown) => shown,
            None => {
                let shown = numbers::shown(db, row.feed, me)?;
                feeds.entry(row.feed).or_insert(shown)
            }
        };
        let offset = match (row.is_posted, shown.base, row.before) {
            (true, Some(base), Some(before)) => u64::try_from(base + before).ok(),
            _ => None,
        };
        listed.push(Listed {
            id: numbers::name(shown.feed, row.seq).to_string(),
            node: row.node,
            offset,
            time: row.said_ms.unwrap_or_else(|| row.time.wall_ms()),
            service: row.service,
            level: row.level,
            message: row.message,
            arrival: row.id,
        });
    }
    Ok(listed)
}
