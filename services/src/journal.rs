//! Traits and types by which a plug-in uses a journal: it appends entries ([`Journal`]), folds the entries of
//! all nodes into SQL tables ([`Projection`]), and reads these tables ([`read`]).
//!
//! A plug-in changes its tables only by appending *entries*. Every node that runs the plug-in gets all
//! entries of all nodes, in any order. The plug-in's [`Projection`] folds each of them into the tables, in
//! the transaction that stores it. The same entries must give the same tables in any order. Where a later
//! entry replaces an earlier one, the projection compares [stamps](Recorded::stamp); elsewhere it uses sums
//! and sets.
//!
//! Reads are plain SQL on a read-only connection ([`read`]).

use std::{pin::Pin, sync::Arc, time::Duration};

pub use hearsay_protocol::journal::{
    AppendError, Appended, BODY_BYTES_MAX, EntryId, EpochFormat, FeedId, HybridTime, JournalEntry,
    KEY_BYTES_MAX, Level, Moment, Seq,
};
use http::StatusCode;
pub use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use crate::Problem;

mod readers;
pub(crate) mod restore;
pub(crate) mod stamp;

pub use readers::{Drained, Opener, Reader, Readers};
pub use restore::{
    Difference, ItemSelection, Resolution, RestoreItem, RestoreReport, RestoreSource, RestoreSupport,
};
pub use stamp::{STAMP_BYTES, Stamp};

/// Projection of the entries of a topic into tables (event sourcing).
pub trait Projection: Send + Sync + 'static {
    /// Returns the version of the projection. It must rise with every change of the tables or of their
    /// contents; tables of another version are dropped and rebuilt.
    fn version(&self) -> u32;

    /// Creates the empty tables. Their names must not begin with `journal_` or `sqlite_`.
    ///
    /// # Errors
    /// An error of the database. The journal does not start.
    fn create(&self, db: &Connection) -> rusqlite::Result<()>;

    /// Folds one entry into the tables. Called once for each entry, in any order, within a transaction. A
    /// malformed entry is ignored: a newer version or a hostile node may have written it.
    ///
    /// # Errors
    /// An error of the database. The entry is not stored.
    fn fold(&self, db: &Connection, entry: &Recorded<'_>) -> rusqlite::Result<()>;

    /// Folds entries of one feed in the order of their sequence numbers. Equivalent to [`fold`](Self::fold)
    /// for each; may be overridden to share work.
    ///
    /// # Errors
    /// An error of the database. None of the entries is stored.
    fn fold_all(&self, db: &Connection, entries: &[Recorded<'_>]) -> rusqlite::Result<()> {
        entries.iter().try_for_each(|entry| self.fold(db, entry))
    }

    /// Returns named queries whose rows, in any order, are the same on all nodes with the same entries.
    /// `None`: all tables, virtual ones excluded. A plug-in that numbers rows in the order of arrival returns
    /// queries that do not depend on that order.
    ///
    /// `node journal verify` compares the results with those of a rebuild.
    fn compared(&self) -> Option<&'static [(&'static str, &'static str)]> {
        None
    }

    /// Returns the encoding of the epoch in a body. A projection in which a later entry replaces an earlier
    /// one must have epochs and compare [stamps](Recorded::stamp): then an acknowledged write takes effect
    /// even if clocks differ. By default there are no epochs, and times are only informative.
    fn epochs(&self) -> Option<EpochFormat> {
        None
    }

    /// Returns the retention of entries. The default keeps them forever.
    fn retention(&self) -> Retention {
        Retention::default()
    }

    /// Removes the entries of a feed up to a sequence number, whether or not they ever arrived, from the
    /// tables that list entries.
    ///
    /// The result, at most [`REMNANT_BYTES_MAX`], replaces these entries and the previous result for the
    /// feed. It must contain everything about them that the tables still show, such as a count, because
    /// [`remember`](Self::remember) has nothing else.
    ///
    /// # Errors
    /// An error of the database. Nothing is dropped.
    fn dropped(&self, db: &Connection, feed: FeedId, up_to: Seq) -> rusqlite::Result<Option<Vec<u8>>> {
        let _ = (db, feed, up_to);
        Ok(None)
    }

    /// Restores the remnant of dropped entries in a rebuild. Called before the first entry of the feed, with
    /// the last result of [`dropped`](Self::dropped). The rebuilt tables must be equal to the old ones.
    ///
    /// # Errors
    /// An error of the database. The rebuild fails.
    fn remember(
        &self,
        db: &Connection,
        feed: FeedId,
        up_to: Seq,
        remnant: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        let _ = (db, feed, up_to, remnant);
        Ok(())
    }
}

/// Maximum number of bytes of the remnant that a projection keeps of a feed's dropped entries. There is one
/// per feed, forever.
pub const REMNANT_BYTES_MAX: usize = 1024;

/// Retention of entries. They are dropped when either bound is exceeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// Age.
    pub age: Option<Duration>,
    /// Bytes of all entries on disk.
    pub bytes: Option<u64>,
}

/// An entry, as a projection sees it.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// Unique id.
    pub id: EntryId,
    /// Epoch; 0 in a topic without epochs.
    pub epoch: u64,
    /// Time of the append.
    pub time: HybridTime,
    /// Idempotency key. Entries with the same key are repetitions of one write.
    pub key: Option<&'a str>,
    /// Body.
    pub body: &'a [u8],
}

impl<'a> Recorded<'a> {
    /// An entry as the projection of its topic reads it.
    pub fn of(projection: &dyn Projection, id: EntryId, entry: &'a JournalEntry) -> Self {
        let epoch = projection.epochs().map_or(0, |format| (format.read)(&entry.body));
        Self { id, epoch, time: entry.time, key: entry.key.as_deref(), body: &entry.body }
    }

    /// Returns the place in the total order of entries.
    pub fn stamp(&self) -> Stamp {
        Stamp { moment: Moment { epoch: self.epoch, time: self.time }, id: self.id }
    }
}

/// An entry to append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Idempotency key, 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Option<String>,
    /// Body, at most [`BODY_BYTES_MAX`] bytes.
    pub body: Vec<u8>,
}

/// Options of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppendOptions {
    /// Durability to wait for. `None`: a second disk if another replica is alive, else the local one.
    pub level: Option<Level>,
    /// Time after which the append reports that the durability was not reached.
    pub timeout: Duration,
}

impl Default for AppendOptions {
    /// No particular durability, within five seconds.
    fn default() -> Self {
        Self { level: None, timeout: Duration::from_secs(5) }
    }
}

/// Pending results of an append, in the order of the writes.
pub type AppendFuture<'a> = Pin<Box<dyn Future<Output = Vec<Result<Appended, AppendError>>> + Send + 'a>>;

/// The journal of a topic.
pub trait Journal: Send + Sync + 'static {
    /// Appends each write as one entry. An acknowledged level survives every failure that it covers.
    fn append(&self, writes: Vec<Write>, options: AppendOptions) -> AppendFuture<'_>;

    /// Returns the read connections.
    fn readers(&self) -> &Arc<Readers>;

    /// Returns whether an entry is in the tables.
    ///
    /// # Errors
    /// An error of the database.
    fn has(&self, id: EntryId) -> rusqlite::Result<bool>;

    /// Reports that a reader found a database file damaged; `file` is its [number](Readers::file).
    fn damaged(&self, file: u64) {
        let _ = file;
    }

    /// Returns the bound on the bytes of the database, above which the oldest entries are dropped, if there
    /// is one.
    fn bytes_max(&self) -> Option<u64> {
        None
    }

    /// Returns a counter that changes whenever entries have been folded.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Returns whether an error means that the database file is damaged.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Reads from the tables of a plug-in, on a thread that may block on the disk.
///
/// # Errors
/// 503 if the database cannot be read.
pub async fn read<R: Send + 'static>(
    journal: &dyn Journal,
    look: impl FnOnce(&Connection) -> rusqlite::Result<R> + Send + 'static,
) -> Result<R, Problem> {
    let readers = Arc::clone(journal.readers());
    let _place = readers.place().await;
    let file = readers.file();
    let looked = tokio::task::spawn_blocking(move || look(&*readers.open()?)).await;
    match looked {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => {
            if is_damage(&error) {
                journal.damaged(file);
            }
            let problem = format!("the database cannot be read: {error}");
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, problem))
        }
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the read ended early; this is a bug")),
    }
}
