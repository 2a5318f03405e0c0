//! Full-text search for records with all of the given words.
//!
//! Each word is quoted, so that no input is interpreted as SQLite's query language. `"two words"` is a
//! phrase; `err*` matches words that start with `err`.
//!
//! SQLite cannot stop a query after a given time. So the index is queried in strides of rows, whose length
//! doubles while they are fast. SQLite checks the end of a stride only at a match. So a phrase of very common
//! words that occurs nowhere scans the whole index (150 ms for a million records). The number of concurrent
//! reads is bounded.
//!
//! Pages of a search are in the order of arrival, which is the order of the index. So the cost of a page
//! depends on its content, not on the size of the log. A record that arrives later never belongs on a page
//! that was already read.

use std::time::{Duration, Instant};

use rusqlite::{Connection, params, types::ToSqlOutput};

use super::{
    filter::Filter,
    page_budget::PageBudget,
    tables::{self, COLUMNS, INDEXED, Row, TOKENIZER},
};

/// Maximum number of bytes of a search text.
pub(super) const QUERY_BYTES_MAX: usize = 256;
/// Maximum number of words and phrases in a search text.
pub(super) const WORDS_MAX: usize = 16;
/// Fewest characters before `*`. The index merges all words with the prefix before it yields the first row.
pub(super) const PREFIX_CHARS_MIN: usize = 3;
/// Rows in the first stride. Guess: a few milliseconds for any words.
const STRIDE_MIN: i64 = 16 * 1024;
/// Rows in the longest stride.
const STRIDE_MAX: i64 = 512 * 1024;
/// A stride that took less time is followed by one of twice the length.
const STRIDE_TIME: Duration = Duration::from_millis(2);

/// Parsed words of a search.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SearchQuery {
    terms: String,
    /// Whether there is a prefix. For a prefix, SQLite repeats the merge in each stride, so there is only one
    /// stride.
    has_prefix: bool,
}

/// A text that cannot be searched for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum QueryError {
    #[error("at most {QUERY_BYTES_MAX} bytes")]
    TooLong,
    #[error("at most {WORDS_MAX} words")]
    TooMany,
    #[error("has no letter or digit in it")]
    Empty,
    #[error("at least {PREFIX_CHARS_MIN} letters before *")]
    TooWide,
}

impl SearchQuery {
    /// Parses the text of a user.
    pub(super) fn read(text: &str) -> Result<Self, QueryError> {
        if text.len() > QUERY_BYTES_MAX {
            return Err(QueryError::TooLong);
        }
        if !text.contains(char::is_alphanumeric) {
            return Err(QueryError::Empty);
        }
        let (mut terms, mut has_prefix) = (Vec::new(), false);
        // Every second piece is a phrase. A quotation mark without a partner opens a phrase up to the end.
        for (number, piece) in text.split('"').enumerate() {
            if number % 2 == 1 {
                terms.extend(quote_term(piece, false));
                continue;
            }
            for word in piece.split_whitespace() {
                let prefix = word.strip_suffix('*').filter(|rest| rest.contains(char::is_alphanumeric));
                if prefix.is_some_and(|rest| rest.chars().count() < PREFIX_CHARS_MIN) {
                    return Err(QueryError::TooWide);
                }
                has_prefix |= prefix.is_some();
                terms.extend(quote_term(prefix.unwrap_or(word), prefix.is_some()));
            }
        }
        if terms.len() > WORDS_MAX {
            return Err(QueryError::TooMany);
        }
        Ok(Self { terms: terms.join(" "), has_prefix })
    }

    /// Returns the query in SQLite's FTS5 language.
    fn expression(&self, filter: &Filter) -> String {
        let words = format!("message : ({})", self.terms);
        match filter.service.as_deref().and_then(|service| quote_term(service, false)) {
            // This also matches the service "web 2" for "web", but misses none; the filter removes the
            // others.
            Some(service) => format!("service : {service} AND {words}"),
            None => words,
        }
    }
}

/// Length and start of the current stride.
struct Stride {
    rows: i64,
    begun: Instant,
}

impl Stride {
    fn new(words: &SearchQuery) -> Self {
        Self { rows: if words.has_prefix { i64::MAX } else { STRIDE_MIN }, begun: Instant::now() }
    }

    /// Ends a stride, and doubles the length if it was fast.
    fn done(&mut self) {
        if self.rows <= STRIDE_MAX / 2 && self.begun.elapsed() < STRIDE_TIME {
            self.rows *= 2;
        }
        self.begun = Instant::now();
    }
}

/// Quotes a word or phrase; `None` if it has no letter or digit.
fn quote_term(text: &str, is_start: bool) -> Option<String> {
    if !text.contains(char::is_alphanumeric) {
        return None;
    }
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(format!("\"{}\"{}", text.replace('"', "\"\""), if is_start { "*" } else { "" }))
}

/// Finds matching records that arrived after `low` and up to `now`. Returns them with the last row searched.
pub(super) fn after(
    db: &Connection,
    words: &SearchQuery,
    filter: &Filter,
    (low, now): (i64, i64),
    budget: PageBudget,
) -> rusqlite::Result<(Vec<Row>, i64)> {
    let expression = words.expression(filter);
    let indexed = tables::indexed(db)?.min(now);
    let mut find = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM log_search s CROSS JOIN log_records r ON r.id = s.rowid
         WHERE s.log_search MATCH ?1 AND s.rowid > ?2 AND s.rowid <= ?3 ORDER BY s.rowid"
    ))?;
    let mut taken = MatchCollector { filter, budget, rows: Vec::new(), seen: 0 };
    let (mut read, mut stride) = (low, Stride::new(words));
    while read < indexed {
        let end = indexed.min(read.saturating_add(stride.rows));
        for row in find.query_and_then(params![expression, read, end], Row::read)? {
            let row = row?;
            let id = row.id;
            if !taken.take(row) {
                return Ok((taken.rows, read));
            }
            read = id;
        }
        read = end;
        stride.done();
        if budget.is_late() {
            return Ok((taken.rows, read));
        }
    }
    for row in match_unindexed(db, &expression, read.max(indexed), now)? {
        let id = row.id;
        if !taken.take(row) {
            return Ok((taken.rows, read));
        }
        read = id;
    }
    Ok((taken.rows, now))
}

/// Collector of the matching rows of a page.
struct MatchCollector<'a> {
    filter: &'a Filter,
    budget: PageBudget,
    rows: Vec<Row>,
    seen: u32,
}

impl MatchCollector<'_> {
    /// Adds a row if it passes the filter. Returns `false` if there is no room or no time for it.
    fn take(&mut self, row: Row) -> bool {
        self.seen += 1;
        if self.budget.is_full() || self.seen.is_multiple_of(64) && self.budget.is_late() {
            return false;
        }
        if self.filter.takes(&row) {
            self.budget.take(&row);
            self.rows.push(row);
        }
        true
    }
}

/// Finds the last matching records that arrived up to `high`, oldest first. Returns them with the last row
/// that was not searched.
pub(super) fn before(
    db: &Connection,
    words: &SearchQuery,
    filter: &Filter,
    high: i64,
    budget: PageBudget,
) -> rusqlite::Result<(Vec<Row>, i64)> {
    let expression = words.expression(filter);
    let indexed = tables::indexed(db)?.min(high);
    let mut taken = MatchCollector { filter, budget, rows: Vec::new(), seen: 0 };
    let mut unread = high;
    for row in match_unindexed(db, &expression, indexed, high)?.into_iter().rev() {
        let id = row.id;
        if !taken.take(row) {
            taken.rows.reverse();
            return Ok((taken.rows, unread));
        }
        unread = id - 1;
    }
    unread = indexed;
    let mut find = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM log_search s CROSS JOIN log_records r ON r.id = s.rowid
         WHERE s.log_search MATCH ?1 AND s.rowid > ?2 AND s.rowid <= ?3 ORDER BY s.rowid DESC"
    ))?;
    let (mut end, mut stride) = (indexed, Stride::new(words));
    'strides: while end > 0 {
        let start = end.saturating_sub(stride.rows).max(0);
        for row in find.query_and_then(params![expression, start, end], Row::read)? {
            let row = row?;
            let id = row.id;
            if !taken.take(row) {
                break 'strides;
            }
            unread = id - 1;
        }
        (end, unread) = (start, start);
        stride.done();
        if budget.is_late() {
            break;
        }
    }
    taken.rows.reverse();
    Ok((taken.rows, unread))
}

/// Returns matching rows among those that are not indexed yet, a few hundred at most. They are indexed in a
/// temporary database, so that the same rules decide what matches.
fn match_unindexed(db: &Connection, expression: &str, low: i64, high: i64) -> rusqlite::Result<Vec<Row>> {
    if low >= high {
        return Ok(Vec::new());
    }
    let scratch = Connection::open_in_memory()?;
    scratch.execute_batch(&format!(
        "CREATE VIRTUAL TABLE log_search USING fts5(message, service, content='', columnsize=0, tokenize='{TOKENIZER}'); BEGIN"
    ))?;
    {
        let mut rows = db.prepare_cached(&format!(
            "SELECT {INDEXED} FROM log_records WHERE id > ?1 AND id <= ?2 ORDER BY id"
        ))?;
        let mut rows = rows.query(params![low, high])?;
        let mut insert =
            scratch.prepare("INSERT INTO log_search (rowid, message, service) VALUES (?1, ?2, ?3)")?;
        while let Some(row) = rows.next()? {
            let borrowed = |column| row.get_ref(column).map(ToSqlOutput::Borrowed);
            insert.execute(params![borrowed(0)?, borrowed(1)?, borrowed(2)?])?;
        }
    }
    let mut matching =
        scratch.prepare("SELECT rowid FROM log_search WHERE log_search MATCH ?1 ORDER BY rowid")?;
    let ids: Vec<i64> =
        matching.query_map([expression], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut find = db.prepare_cached(&format!("SELECT {COLUMNS} FROM log_records r WHERE r.id = ?1"))?;
    ids.into_iter().map(|id| find.query_row([id], Row::read)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_typed_is_search_language() {
        for (text, expression) in [
            ("disk full", "\"disk\" \"full\""),
            ("NOT a OR", "\"NOT\" \"a\" \"OR\""),
            ("\"disk full\" x", "\"disk full\" \"x\""),
            ("a\"b", "\"a\" \"b\""),
            ("err* --- (x", "\"err\"* \"(x\""),
            ("message:x^2", "\"message:x^2\""),
            ("a\0b", "\"a b\""),
        ] {
            let words = SearchQuery::read(text).unwrap();
            assert_eq!((words.terms.as_str(), words.has_prefix), (expression, text.contains("r*")), "{text}");
        }
    }

    #[test]
    fn a_text_without_words_or_with_too_many_is_refused() {
        assert_eq!(SearchQuery::read("--- \"\" *"), Err(QueryError::Empty));
        assert_eq!(SearchQuery::read("disk fu*"), Err(QueryError::TooWide));
        assert_eq!(SearchQuery::read(&"x".repeat(QUERY_BYTES_MAX + 1)), Err(QueryError::TooLong));
        assert_eq!(SearchQuery::read(&"x ".repeat(WORDS_MAX + 1)), Err(QueryError::TooMany));
    }
}
