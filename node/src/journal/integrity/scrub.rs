//! [`Scrub`]: reads pages in the background, so that damage is found while another replica still has the
//! data.
//!
//! A topic's worker wakes up at least once a second and reads a few pages, bypassing SQLite's caches. It goes
//! through the whole file and starts again. A step needs no memory and a fraction of a millisecond.
//!
//! The scrub also empties the log when nothing was written for a while. After a crash, SQLite prefers all
//! pages of a log to those of the file, even if the log was damaged after its checkpoint (`wal`). An empty
//! log can do no harm.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::checksum_vfs::{Page, look_at};
use crate::journal::{store::format::BUSY_TIMEOUT, topic_metrics::TopicMetrics};

/// Time between two steps of the scrub.
const EVERY: Duration = Duration::from_secs(1);
/// Pages read in a step: 64 KiB, so that five gigabytes are read in a day. A guess; the cost is the time that
/// a slow disk needs for them.
const PAGES: u64 = 16;

/// State of the scrub.
#[derive(Debug)]
pub(crate) struct Scrub {
    next: u64,
    last: Instant,
    /// Whether the file is complete without its log. After a power failure, a page that is torn in the file
    /// may be sound in the log.
    is_whole: bool,
    /// Rows changed on this connection until the last step.
    changes: u64,
    /// Rows changed until the log was last emptied.
    emptied: Option<u64>,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { next: 1, last: Instant::now(), is_whole: false, changes: 0, emptied: None }
    }
}

impl Scrub {
    /// Reads the next pages, if a step is due. Returns whether damage was found.
    pub(crate) fn run_if_due(&mut self, db: &Connection, metrics: &TopicMetrics) -> bool {
        if self.last.elapsed() < EVERY {
            return false;
        }
        self.last = Instant::now();
        let changes = db.total_changes();
        // An error here shows again in the next write.
        if std::mem::replace(&mut self.changes, changes) == changes && self.emptied != Some(changes) {
            if empty_log(db).unwrap_or(false) {
                (self.emptied, self.is_whole) = (Some(changes), true);
            }
        } else if !self.is_whole {
            self.is_whole = checkpoint(db).unwrap_or(false);
        }
        if !self.is_whole {
            return false;
        }
        for _ in 0..PAGES {
            match look_at(db, self.next) {
                Page::Sound => self.next += 1,
                Page::Absent => {
                    // The file is truncated, unless its end is still in the log.
                    let is_cut = self.next <= pages(db) && matches!(checkpoint(db), Ok(true));
                    if is_cut && self.next <= pages(db) && look_at(db, self.next) == Page::Absent {
                        return true;
                    }
                    self.next = 1;
                    break;
                }
                Page::Damaged => {
                    // A checkpoint may have failed while it wrote the page; another checkpoint then repairs
                    // it.
                    let again = checkpoint(db).is_ok() && look_at(db, self.next) == Page::Sound;
                    if !again {
                        return true;
                    }
                }
            }
            metrics.scrubbed_pages.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
}

/// Returns the number of pages that the database should have.
fn pages(db: &Connection) -> u64 {
    let count = db.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
    count.map_or(0, |count| count.max(0).cast_unsigned())
}

/// Copies the log into the file. `false`: a part was not copied, because a reader still needs the old pages.
fn checkpoint(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && log == done)
    })
}

/// Copies the log into the file and empties the log. `false`: a reader is in the way, and is not waited for.
fn empty_log(db: &Connection) -> rusqlite::Result<bool> {
    db.busy_timeout(Duration::ZERO)?;
    let emptied = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0));
    db.busy_timeout(BUSY_TIMEOUT)?;
    emptied
}
