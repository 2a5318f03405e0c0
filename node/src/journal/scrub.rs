//! Looking at what nobody asks for, so that damage is found while others still have what it hit.
//!
//! A disk decays unseen where nobody reads, and two replicas that decay in different places have lost both by the time that somebody looks. So a
//! topic's thread, which wakes up once a second anyhow, reads a few pages past all caches of SQLite's, one after the other through the whole file and
//! again from the beginning. It needs no memory and a fraction of a millisecond.
//!
//! It empties the log, too, when nothing was written for a while. A log stays as it is when all of it is in the file; whoever opens both after a
//! crash takes what is in the log for newer. Of a log that was damaged meanwhile that is a part: pages of then among pages of now, each with
//! a sum that holds. A log that is empty says nothing wrong.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{
    Shown,
    pages::{Page, look_at},
    store::BUSY_TIMEOUT,
};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Pages at a look: 64 KiB, so that five gigabytes are seen in a day. Guess; the price is what reading that takes of a slow disk.
const PAGES: u64 = 16;

/// How far it is.
#[derive(Debug)]
pub(super) struct Scrub {
    next: u64,
    last: Instant,
    /// Whether the file is whole without its log. After a power failure pages may be torn that are sound in the log.
    is_whole: bool,
    /// Rows that were changed until the last look, and until the log was emptied.
    changes: u64,
    emptied: Option<u64>,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { next: 1, last: Instant::now(), is_whole: false, changes: 0, emptied: None }
    }
}

impl Scrub {
    /// Looks at the next pages, if it is time. Returns whether one of them is damaged.
    pub(super) fn look(&mut self, db: &Connection, shown: &Shown) -> bool {
        if self.last.elapsed() < EVERY {
            return false;
        }
        self.last = Instant::now();
        let changes = db.total_changes();
        // What goes wrong here goes wrong again where somebody waits for it.
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
                    // Cut short, unless the rest is in the log still.
                    let is_cut = self.next <= pages(db) && matches!(checkpoint(db), Ok(true));
                    if is_cut && self.next <= pages(db) && look_at(db, self.next) == Page::Absent {
                        return true;
                    }
                    self.next = 1;
                    break;
                }
                Page::Damaged => {
                    // Unless writing it failed half way, which another try mends.
                    let again = checkpoint(db).is_ok() && look_at(db, self.next) == Page::Sound;
                    if !again {
                        return true;
                    }
                }
            }
            shown.looked_at.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
}

/// How many pages there should be.
fn pages(db: &Connection) -> u64 {
    let count = db.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
    count.map_or(0, |count| count.max(0).cast_unsigned())
}

/// Brings what is in the log into the file. `false`: not all of it, because somebody still reads what was there before.
fn checkpoint(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && log == done)
    })
}

/// As [`checkpoint`], and removes what is in the log. Waits for nobody.
fn empty_log(db: &Connection) -> rusqlite::Result<bool> {
    db.busy_timeout(Duration::ZERO)?;
    let emptied = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0));
    db.busy_timeout(BUSY_TIMEOUT)?;
    emptied
}
