//! Full-text search: which records hold all of some words.
//!
//! What users type is not the search language of the database: each word is quoted, so that nothing in it means anything. `"two words"` is a
//! phrase, and `err*` any word that begins so.
//!
//! The database cannot be told to stop after so much time. So it is asked for some rows after the other, as many as it was quick enough for. It
//! heeds the end of those only where it finds something: a phrase of the commonest words that is nowhere is looked for in all of the log (150 ms
//! in a million records). How many look at the same time is bounded, as for all reads.
//!
//! Pages of a search are in the order of arrival. That is the order of the index, so a page costs what is on it, and not what there is in all;
//! and it is the order in which nothing is ever late.

use std::time::{Duration, Instant};

use rusqlite::{Connection, params, types::ToSqlOutput};

use super::{
    page::{Budget, Filter},
    tables::{self, COLUMNS, INDEXED, Row, TOKENIZER},
};

/// The longest text to search for, in bytes.
pub(super) const QUERY_BYTES_MAX: usize = 256;
/// The most words and phrases in it.
pub(super) const WORDS_MAX: usize = 16;
/// The fewest letters that a word's beginning has. The index puts together all words that begin so, before it gives the first row.
pub(super) const BEGINNING_MIN: usize = 3;
/// Rows looked through before the first look at the clock. Guess: a few milliseconds, whatever words they are.
const STRIDE_MIN: i64 = 16 * 1024;
/// And at most.
const STRIDE_MAX: i64 = 512 * 1024;
/// A stride that took less is followed by one of twice the length.
const STRIDE_TIME: Duration = Duration::from_millis(2);

/// Words to search for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Words {
    terms: String,
    /// For a beginning of words the index does all its work each time that it is asked, whatever for.
    has_beginning: bool,
}

/// Why a text cannot be searched for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum NoWords {
    #[error("at most {QUERY_BYTES_MAX} bytes")]
    TooLong,
    #[error("at most {WORDS_MAX} words")]
    TooMany,
    #[error("has no letter or digit in it")]
    Empty,
    #[error("at least {BEGINNING_MIN} letters before *")]
    TooWide,
}

impl Words {
    /// Reads what somebody typed.
    pub(super) fn read(text: &str) -> Result<Self, NoWords> {
        if text.len() > QUERY_BYTES_MAX {
            return Err(NoWords::TooLong);
        }
        if !text.contains(char::is_alphanumeric) {
            return Err(NoWords::Empty);
        }
        let (mut terms, mut has_beginning) = (Vec::new(), false);
        // Between the first and the second quotation mark is a phrase, and so on; one without an end goes to the end.
        for (number, piece) in text.split('"').enumerate() {
            if number % 2 == 1 {
                terms.extend(term(piece, false));
                continue;
            }
            for word in piece.split_whitespace() {
                let beginning = word.strip_suffix('*').filter(|rest| rest.contains(char::is_alphanumeric));
                if beginning.is_some_and(|rest| rest.chars().count() < BEGINNING_MIN) {
                    return Err(NoWords::TooWide);
                }
                has_beginning |= beginning.is_some();
                terms.extend(term(beginning.unwrap_or(word), beginning.is_some()));
            }
        }
        if terms.len() > WORDS_MAX {
            return Err(NoWords::TooMany);
        }
        Ok(Self { terms: terms.join(" "), has_beginning })
    }

    /// As the database's search language has it.
    fn expression(&self, filter: &Filter) -> String {
        let words = format!("message : ({})", self.terms);
        match filter.service.as_deref().and_then(|service| term(service, false)) {
            // It finds more than is meant ("web" in "web 2"), and never less.
            Some(service) => format!("service : {service} AND {words}"),
            None => words,
        }
    }
}

/// How many rows to ask for next.
struct Stride {
    rows: i64,
    begun: Instant,
}

impl Stride {
    fn new(words: &Words) -> Self {
        Self { rows: if words.has_beginning { i64::MAX } else { STRIDE_MIN }, begun: Instant::now() }
    }

    /// Was walked to its end.
    fn done(&mut self) {
        if self.rows <= STRIDE_MAX / 2 && self.begun.elapsed() < STRIDE_TIME {
            self.rows *= 2;
        }
        self.begun = Instant::now();
    }
}

/// A word or phrase in quotes; `None` where the index could not find anything in it.
fn term(text: &str, is_start: bool) -> Option<String> {
    if !text.contains(char::is_alphanumeric) {
        return None;
    }
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(format!("\"{}\"{}", text.replace('"', "\"\""), if is_start { "*" } else { "" }))
}

/// Records with these words that arrived after `low` and up to `now`. Returns up to where it looked.
pub(super) fn after(
    db: &Connection,
    words: &Words,
    filter: &Filter,
    (low, now): (i64, i64),
    budget: Budget,
) -> rusqlite::Result<(Vec<Row>, i64)> {
    let expression = words.expression(filter);
    let indexed = tables::indexed(db)?.min(now);
    let mut find = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM log_search s CROSS JOIN log_records r ON r.id = s.rowid
         WHERE s.log_search MATCH ?1 AND s.rowid > ?2 AND s.rowid <= ?3 ORDER BY s.rowid"
    ))?;
    let mut taken = Taken { filter, budget, rows: Vec::new(), seen: 0 };
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
    for row in unindexed(db, &expression, read.max(indexed), now)? {
        let id = row.id;
        if !taken.take(row) {
            return Ok((taken.rows, read));
        }
        read = id;
    }
    Ok((taken.rows, now))
}

/// What was found so far.
struct Taken<'a> {
    filter: &'a Filter,
    budget: Budget,
    rows: Vec<Row>,
    seen: u32,
}

impl Taken<'_> {
    /// Takes a row, if it is asked for. `false`: there is no room or no time for it.
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

/// The last records with these words that arrived up to `high`, the earliest of them first. Returns up to where it did not look.
pub(super) fn before(
    db: &Connection,
    words: &Words,
    filter: &Filter,
    high: i64,
    budget: Budget,
) -> rusqlite::Result<(Vec<Row>, i64)> {
    let expression = words.expression(filter);
    let indexed = tables::indexed(db)?.min(high);
    let mut taken = Taken { filter, budget, rows: Vec::new(), seen: 0 };
    let mut unread = high;
    for row in unindexed(db, &expression, indexed, high)?.into_iter().rev() {
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

/// Matching rows of those that are not in the index yet. A few hundred at most, so an index is made of them here and now: what matches is
/// then told by the same rules.
fn unindexed(db: &Connection, expression: &str, low: i64, high: i64) -> rusqlite::Result<Vec<Row>> {
    if low >= high {
        return Ok(Vec::new());
    }
    let passing = Connection::open_in_memory()?;
    passing.execute_batch(&format!(
        "CREATE VIRTUAL TABLE log_search USING fts5(message, service, content='', columnsize=0, tokenize='{TOKENIZER}'); BEGIN"
    ))?;
    {
        let mut rows = db.prepare_cached(&format!(
            "SELECT {INDEXED} FROM log_records WHERE id > ?1 AND id <= ?2 ORDER BY id"
        ))?;
        let mut rows = rows.query(params![low, high])?;
        let mut insert =
            passing.prepare("INSERT INTO log_search (rowid, message, service) VALUES (?1, ?2, ?3)")?;
        while let Some(row) = rows.next()? {
            let borrowed = |column| row.get_ref(column).map(ToSqlOutput::Borrowed);
            insert.execute(params![borrowed(0)?, borrowed(1)?, borrowed(2)?])?;
        }
    }
    let mut matching =
        passing.prepare("SELECT rowid FROM log_search WHERE log_search MATCH ?1 ORDER BY rowid")?;
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
            let words = Words::read(text).unwrap();
            assert_eq!(
                (words.terms.as_str(), words.has_beginning),
                (expression, text.contains("r*")),
                "{text}"
            );
        }
    }

    #[test]
    fn a_text_without_words_or_with_too_many_is_refused() {
        assert_eq!(Words::read("--- \"\" *"), Err(NoWords::Empty));
        assert_eq!(Words::read("disk fu*"), Err(NoWords::TooWide));
        assert_eq!(Words::read(&"x".repeat(QUERY_BYTES_MAX + 1)), Err(NoWords::TooLong));
        assert_eq!(Words::read(&"x ".repeat(WORDS_MAX + 1)), Err(NoWords::TooMany));
    }
}
