//! Looking at what nobody asks for, so that damage is found while others still have what it hit.
//!
//! A disk decays unseen where nobody reads, and two replicas that decay in different places have lost both by the time that somebody looks. So a
//! topic's thread, which wakes up once a second anyhow, reads a few pages past all caches of SQLite's, one after the other through the whole file and
//! again from the beginning. It needs no memory and a fraction of a millisecond.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{
    Shown,
    pages::{Page, look_at},
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
}

impl Default for Scrub {
    fn default() -> Self {
        Self { next: 1, last: Instant::now(), is_whole: false }
    }
}

impl Scrub {
    /// Looks at the next pages, if it is time. Returns whether one of them is damaged.
    pub(super) fn look(&mut self, db: &Connection, shown: &Shown) -> bool {
        if self.last.elapsed() < EVERY {
            return false;
        }
        self.last = Instant::now();
        if !self.is_whole {
            // What goes wrong here goes wrong again where somebody waits for it.
            self.is_whole = checkpoint(db).unwrap_or(false);
            return false;
        }
        for _ in 0..PAGES {
            match look_at(db, self.next) {
                Page::Sound => self.next += 1,
                Page::Absent => {
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

/// Brings what is in the log into the file. `false`: not all of it, because somebody still reads what was there before.
fn checkpoint(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && log == done)
    })
}
