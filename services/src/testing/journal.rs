//! A journal of one writer, without a node: entries go straight into the tables.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use hearsay_protocol::{
    NodeId, Version,
    journal::{clock::HybridTime, feed::FeedId},
};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::journal::{
    Answers, AppendError, Appended, BODY_BYTES_MAX, EntryId, Journal, Level, Projection, Readers, Recorded,
    Seq, Wanted, Write,
};

/// An entry, as a test may fold it anywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Its name.
    pub id: EntryId,
    /// When it was written.
    pub time: HybridTime,
    /// Its key.
    pub key: Option<String>,
    /// What was written.
    pub body: Vec<u8>,
}

struct Inner {
    db: Connection,
    entries: Vec<Kept>,
    keys: BTreeMap<String, usize>,
    /// What the next appends are answered with instead of being written.
    refusing: Option<AppendError>,
}

/// A plug-in's journal for its tests.
pub struct MemoryJournal {
    projection: Arc<dyn Projection>,
    inner: Mutex<Inner>,
    readers: Arc<Readers>,
    changed: watch::Sender<u64>,
    feed: FeedId,
    _dir: TempDir,
}

impl MemoryJournal {
    /// An empty one.
    ///
    /// # Panics
    /// If the database or the plug-in's tables cannot be made.
    pub fn new(projection: Arc<dyn Projection>) -> Self {
        Self::of(projection, NodeId::from_public_key([7; 32]))
    }

    /// An empty one, of the node with this id.
    ///
    /// # Panics
    /// If the database or the plug-in's tables cannot be made.
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
            _dir: dir,
        }
    }

    /// From now on appends are answered with this; `None`: they are written again.
    pub fn refuse(&self, with: Option<AppendError>) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).refusing = with;
    }

    /// All entries, in the order in which they came.
    pub fn entries(&self) -> Vec<Kept> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).entries.clone()
    }

    /// Takes in an entry of another node.
    ///
    /// # Panics
    /// If the plug-in cannot fold it.
    #[expect(clippy::expect_used, reason = "for tests, where a panic is the message")]
    pub fn take(&self, entry: Kept) {
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

    /// Everything of this feed up to this number is no longer kept.
    ///
    /// # Panics
    /// If the plug-in cannot take it out of its tables.
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
        self.take(Kept { id, time, key: write.key, body: write.body });
        Ok(Appended { id, time, level: Level::Local, repeated: false })
    }
}

impl Journal for MemoryJournal {
    fn append(&self, writes: Vec<Write>, _: Wanted) -> Answers<'_> {
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

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
