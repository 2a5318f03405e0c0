//! The journal, as a plug-in sees it: append, and read what became of all that anybody appended.
//!
//! A plug-in that keeps something writes *entries* and never changes a table itself. Every node that runs it gets every entry, of
//! every node, in any order, and folds it into tables of its own by the plug-in's [`Projection`], in the transaction that stores it. So
//! whatever order they came in, the same entries must make the same tables: use the entry's [stamp](Recorded::stamp) where
//! the later one wins, sums and sets where none does.
//!
//! Reading is plain SQL on a connection that can only read ([`read`]).

use std::{pin::Pin, sync::Arc, time::Duration};

pub use hearsay_protocol::journal::{
    EpochFormat,
    append::{AppendError, Appended, Level},
    clock::{HybridTime, Moment},
    feed::{BODY_BYTES_MAX, Entry, EntryId, FeedId, KEY_BYTES_MAX, Seq},
};
use http::StatusCode;
pub use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use crate::Problem;

mod readers;
pub mod stamp;

pub use readers::{Drained, Opener, Reader, Readers};
pub use stamp::{STAMP_BYTES, Stamp};

/// What a plug-in makes of the entries of its topic.
pub trait Projection: Send + Sync + 'static {
    /// Raise it with every change of what is made of an entry: tables that another version made are dropped and made anew.
    fn version(&self) -> u32;

    /// Makes the tables, empty. Their names must not begin with `journal_` or `sqlite_`.
    ///
    /// # Errors
    /// What the database said. The journal then does not start.
    fn create(&self, db: &Connection) -> rusqlite::Result<()>;

    /// Takes in one entry. Called once for each, in any order, within a transaction. An entry that makes no sense is ignored: a newer
    /// version, or a hostile one, may have written it.
    ///
    /// # Errors
    /// What the database said. The entry is then not stored.
    fn fold(&self, db: &Connection, entry: &Recorded<'_>) -> rusqlite::Result<()>;

    /// Takes in entries of one feed, in the order of their numbers: the same as to [fold](Self::fold) each, for a plug-in that can do what they
    /// have in common once.
    ///
    /// # Errors
    /// What the database said. None of them is then stored.
    fn fold_all(&self, db: &Connection, entries: &[Recorded<'_>]) -> rusqlite::Result<()> {
        entries.iter().try_for_each(|entry| self.fold(db, entry))
    }

    /// What of the tables is the same wherever the same entries are: pairs of a name and a query, whose rows may come in any order. `None`:
    /// all of them, but for virtual ones. A plug-in that numbers rows as they arrive names here what does not depend on that.
    ///
    /// `node journal verify` compares it with what all entries, folded anew, come to.
    fn compared(&self) -> Option<&'static [(&'static str, &'static str)]> {
        None
    }

    /// How bodies carry the epoch of their entry. A projection in which an entry may replace what an earlier one made must carry epochs and
    /// compare [stamps](Recorded::stamp); then an acknowledged write takes effect whatever the clocks of the nodes show. By default none is carried,
    /// and times serve people only.
    fn epochs(&self) -> Option<EpochFormat> {
        None
    }

    /// How long entries are kept. By default for ever.
    fn retention(&self) -> Retention {
        Retention::default()
    }

    /// Everything of this feed up to this number is no longer kept, or will never come: take it out of the tables that list entries.
    ///
    /// What is returned, at most [`REMNANT_BYTES_MAX`], is kept in place of those entries and of what was returned for the feed before. It must
    /// hold whatever of them the tables still show, such as a count, because [`remember`](Self::remember) has nothing else.
    ///
    /// # Errors
    /// What the database said. Nothing is then dropped.
    fn dropped(&self, db: &Connection, feed: FeedId, up_to: Seq) -> rusqlite::Result<Option<Vec<u8>>> {
        let _ = (db, feed, up_to);
        Ok(None)
    }

    /// The tables are being made anew, and the entries of this feed up to this number are not among what is folded. Called before the feed's
    /// first entry, with what [`dropped`](Self::dropped) returned last: the tables must come out as they were.
    ///
    /// # Errors
    /// What the database said. The tables are then not made.
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

/// What a plug-in may leave of the entries of a feed that are no longer kept. There is one for each feed, for ever.
pub const REMNANT_BYTES_MAX: usize = 1024;

/// How long entries are kept: until either is passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// Since they were written.
    pub age: Option<Duration>,
    /// All of them together, as they are on the disk.
    pub bytes: Option<u64>,
}

/// An entry on its way into the tables.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// Its name, unique for ever.
    pub id: EntryId,
    /// Its epoch; 0 in a topic that carries none.
    pub epoch: u64,
    /// When it was written.
    pub time: HybridTime,
    /// Entries with the same key are the same write, done twice because somebody was not sure.
    pub key: Option<&'a str>,
    /// What was written.
    pub body: &'a [u8],
}

impl<'a> Recorded<'a> {
    /// An entry as its topic's projection reads it.
    pub fn of(projection: &dyn Projection, id: EntryId, entry: &'a Entry) -> Self {
        let epoch = projection.epochs().map_or(0, |format| (format.read)(&entry.body));
        Self { id, epoch, time: entry.time, key: entry.key.as_deref(), body: &entry.body }
    }

    /// Its place in the one order of all entries.
    pub fn stamp(&self) -> Stamp {
        Stamp { moment: Moment { epoch: self.epoch, time: self.time }, id: self.id }
    }
}

/// Something to write down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Tells a retry from a second write; 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Option<String>,
    /// At most [`BODY_BYTES_MAX`] bytes.
    pub body: Vec<u8>,
}

/// When a write is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// `None`: once it is on another disk, where another replica is alive; otherwise once it is on this one.
    pub level: Option<Level>,
    /// After this long it is answered that the level was not reached.
    pub timeout: Duration,
}

impl Default for Wanted {
    /// No level in particular, within five seconds.
    fn default() -> Self {
        Self { level: None, timeout: Duration::from_secs(5) }
    }
}

/// What became of writes, in their order.
pub type Answers<'a> = Pin<Box<dyn Future<Output = Vec<Result<Appended, AppendError>>> + Send + 'a>>;

/// The journal of a plug-in's topic.
pub trait Journal: Send + Sync + 'static {
    /// Writes these down, each by itself. What they are answered with holds from then on, whatever dies.
    fn append(&self, writes: Vec<Write>, wanted: Wanted) -> Answers<'_>;

    /// Connections that read.
    fn readers(&self) -> &Arc<Readers>;

    /// Whether this entry is here and in the tables.
    ///
    /// # Errors
    /// What the database said.
    fn has(&self, id: EntryId) -> rusqlite::Result<bool>;

    /// A reader of the so-manieth file ([`Readers::file`]) found it damaged.
    fn damaged(&self, file: u64) {
        let _ = file;
    }

    /// Changes each time that entries came into the tables.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Whether a database says that its file is damaged.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Reads from a plug-in's tables, on a thread that may wait for the disk.
///
/// # Errors
/// 503 where the database cannot be read.
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
        Err(_) => {
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "reading ended early; this is a defect"))
        }
    }
}
