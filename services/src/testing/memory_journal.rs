//! Journal for tests of plug-ins, without a node: keeps entries in memory and folds them at once into a
//! temporary database.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use hearsay_protocol::{
    NodeId, Version,
    journal::{FeedId, HybridTime},
};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::journal::{
    AppendError, AppendFuture, AppendOptions, Appended, BODY_BYTES_MAX, EntryId, Journal, Level, Projection,
    Readers, Recorded, Seq, Write,
};

/// An entry that a test may fold into any journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryEntry {
    /// Id.
    pub id: EntryId,
    /// Time of the append.
    pub time: HybridTime,
    /// Idempotency key.
    pub key: Option<String>,
    /// Body.
    pub body: Vec<u8>,
}

struct Inner {
    db: Connection,
    entries: Vec<MemoryEntry>,
    keys: BTreeMap<String, usize>,
    /// Error with which appends fail.
    refusing: Option<AppendError>,
}

/// Journal of a plug-in for tests.
pub struct MemoryJournal {
    projection: Arc<dyn Projection>,
    inner: Mutex<Inner>,
    readers: Arc<Readers>,
    changed: watch::Sender<u64>,
    feed: FeedId,
    bytes_max: Mutex<Option<u64>>,
    _dir: TempDir,
}

impl MemoryJournal {
    /// An empty journal.
    ///
    /// # Panics
    /// If the database or the tables cannot be created.
    pub fn new(projection: Arc<dyn Projection>) -> Self {
        Self::of(projection, NodeId::from_public_key([7; 32]))
    }

    /// An empty journal of the node with this id.
    ///
    /// # Panics
    /// If the database or the tables cannot be created.
    #[expect(clippy::expect_used, reason = "for tests, where a panic is the message")]
    pub fn of(projection: Arc<dyn Projection>, writer: NodeId) -> Self {
        let dir = tempfile::tempdir().expect("a directory for temporary files");
        let path = dir.path().join("journal.db");
        let db = Connection::open(&path).expect("a database can be made");
        db.pragma_update(None, "journal_mode", "WAL").expect("a WAL");
        // Nothing here outlives its test.
        db.pragma_update(None, "synchronous", "OFF").expect("writes that are not synced");
        projection.create(&db).expect("the plug-in's tables can be made");
        let inner = Inner { db, entries: Vec::new(), keys: BTreeMap::new(), refusing: None };
        Self {
            projection,
            inner: Mutex::new(inner),
            readers: Arc::new(Readers::new(&path)),
            changed: watch::channel(0).0,
            feed: FeedId { writer, boot: 1 },
            bytes_max: Mutex::default(),
            _dir: dir,
        }
    }

    /// Sets the error of further appends; `None`: they succeed again.
    pub fn refuse(&self, with: Option<AppendError>) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).refusing = with;
    }

    /// Sets the bound on the database that plug-ins see. Nothing is dropped because of it.
    pub fn bound_to(&self, bytes: u64) {
        *self.bytes_max.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    /// Returns all entries in the order of arrival.
    pub fn entries(&self) -> Vec<MemoryEntry> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).entries.clone()
    }

    /// Folds an entry of another node.
    ///
    /// # Panics
    /// If the plug-in cannot fold it.
    #[expect(clippy::expect_used, reason = "for tests, where a panic is the message")]
    pub fn take(&self, entry: MemoryEntry) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.projection.epochs().map_or(0, |format| (format.read)(&entry.body));
        let recorded =
            Recorded { id: entry.id, epoch, time: entry.time, key: entry.key.as_deref(), body: &entry.body };
        self.projection.fold(&inner.db, &recorded).expect("the plug-in folds every entry");
        if let Some(key) = entry.key.clone() {
            let index = inner.entries.len();
            inner.keys.entry(key).or_insert(index);
        }
        inner.entries.push(entry);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Drops the entries of a feed up to a sequence number.
    ///
    /// # Panics
    /// If the plug-in cannot drop them.
    #[expect(clippy::expect_used, reason = "for tests, where a panic is the message")]
    pub fn drop_up_to(&self, feed: FeedId, up_to: Seq) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.projection.dropped(&inner.db, feed, up_to).expect("the plug-in takes out what is dropped");
        self.changed.send_modify(|changes| *changes += 1);
    }

    fn write(&self, write: Write) -> Result<Appended, AppendError> {
        let (next, found) = {
            let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = &inner.refusing {
                return Err(error.clone());
            }
            let found = write.key.as_ref().and_then(|key| inner.keys.get(key)).map(|i| &inner.entries[*i]);
            (inner.entries.len() as u64 + 1, found.cloned())
        };
        if write.body.len() > BODY_BYTES_MAX {
            return Err(AppendError::BodyTooLarge(write.body.len(), BODY_BYTES_MAX));
        }
        if let Some(kept) = found {
            if kept.body != write.body {
                return Err(AppendError::KeyTaken(kept.id));
            }
            return Ok(Appended { id: kept.id, time: kept.time, level: Level::Local, repeated: true });
        }
        let id = EntryId { feed: self.feed, seq: Version(next) };
        let time = HybridTime::from_wall(1_700_000_000_000 + next);
        self.take(MemoryEntry { id, time, key: write.key, body: write.body });
        Ok(Appended { id, time, level: Level::Local, repeated: false })
    }
}

impl Journal for MemoryJournal {
    fn append(&self, writes: Vec<Write>, _: AppendOptions) -> AppendFuture<'_> {
        let answers = writes.into_iter().map(|write| self.write(write)).collect();
        Box::pin(async move { answers })
    }

    fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    fn has(&self, id: EntryId) -> rusqlite::Result<bool> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(inner.entries.iter().any(|kept| kept.id == id))
    }

    fn bytes_max(&self) -> Option<u64> {
        *self.bytes_max.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
