//! [`Store`] of registrations: a SQLite database with one row per registration, written by its own thread.
//!
//! Group commit: one transaction and one sync (`synchronous=FULL` on a WAL) for all writes of a batch. An
//! acknowledged write survives a crash and a power loss, and 64 clients cost about as many syncs as one. A
//! failed transaction changes nothing.
//!
//! Statuses of checks are written without a sync: after a power loss an older status is listed until the
//! first run.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};

use super::record::{Row, StoredChecks};
use crate::storage::PRIVATE;

/// File name in the data directory.
pub(super) const FILE: &str = "registrations.db";
/// Application id in the header of the file: "hsrg".
const APPLICATION_ID: i64 = 0x6873_7267;
/// Version of the schema (`user_version`).
const FORMAT: i64 = 1;
/// Batches queued for the thread. The registrar sends one at a time.
const BATCHES_MAX: usize = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const CACHE_KIB: i64 = 2 * 1024;

const TABLES: &str = "
CREATE TABLE registrations (id TEXT PRIMARY KEY, body TEXT NOT NULL, checks TEXT NOT NULL DEFAULT '{}') WITHOUT ROWID;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// Errors of the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryStoreError {
    /// The disk is full or read-only. Nothing of the batch was stored; earlier registrations are intact.
    #[error("the disk is full or read-only: {0}. Free some space, then try again")]
    Full(String),
    /// The database failed. Nothing of the batch was stored.
    #[error("{0}")]
    Failed(String),
    /// The thread has ended: the node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

impl From<rusqlite::Error> for RegistryStoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::ReadOnly | ErrorCode::SystemIoFailure) => {
                Self::Full(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// One write of a batch.
#[derive(Clone, Debug)]
pub(super) enum Write {
    /// Inserts a registration, or replaces the one with the same id.
    Upsert(Box<Row>),
    /// Deletes the registration with this id.
    Delete(String),
    /// Replaces the check statuses of a registration.
    Checks(String, StoredChecks),
    /// Sets a setting of the node; `None` deletes it.
    Setting(String, Option<String>),
}

/// Content of the database when it was opened.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// All registrations.
    pub(super) rows: Vec<(Row, StoredChecks)>,
    /// Ids of unreadable rows, with the reason.
    pub(super) unreadable: Vec<(String, String)>,
    /// The settings of the node.
    pub(super) settings: Vec<(String, String)>,
}

/// Handle to the store's thread.
#[derive(Clone, Debug)]
pub(super) struct Store {
    batches: mpsc::Sender<Batch>,
}

struct Batch {
    writes: Vec<Write>,
    /// Whether the result waits for a sync.
    is_durable: bool,
    done: oneshot::Sender<Result<(), RegistryStoreError>>,
}

impl Store {
    /// Opens or creates the database in a data directory and starts the thread. A damaged database is
    /// renamed, and a new one is created; the third value is the new name of the damaged file. If the disk is
    /// too full to create one, each write tries again.
    ///
    /// # Errors
    /// An existing database cannot be read.
    pub(super) fn open(dir: &Path) -> Result<(Self, Stored, Option<PathBuf>), RegistryStoreError> {
        let path = dir.join(FILE);
        // The file is empty if the disk was full at the first start.
        let is_new = path.metadata().map_or(true, |file| file.len() == 0);
        let (db, stored, damaged) = match open(&path).and_then(|db| read(&db).map(|stored| (db, stored))) {
            Ok((db, stored)) => (Some(db), stored, None),
            Err(error) if is_damage(&error) => {
                let damaged =
                    rename_damaged(&path).map_err(|error| RegistryStoreError::Failed(error.to_string()))?;
                (open(&path).ok(), Stored::default(), Some(damaged))
            }
            Err(error) => match RegistryStoreError::from(error) {
                RegistryStoreError::Full(_) if is_new => (None, Stored::default(), None),
                error => return Err(error),
            },
        };
        let (batches, receiver) = mpsc::channel(BATCHES_MAX);
        let thread = std::thread::Builder::new().name("registrations".into());
        let spawned = thread.spawn(move || work(&path, db, receiver));
        spawned.map_err(|error| RegistryStoreError::Failed(error.to_string()))?;
        Ok((Self { batches }, stored, damaged))
    }

    /// Writes a batch atomically. A durable batch completes after its sync.
    pub(super) fn write(&self, writes: Vec<Write>, is_durable: bool) -> Pending {
        let (done, pending) = oneshot::channel();
        // The queue has room: the registrar sends one batch at a time. If the thread has ended, the result
        // reports it.
        _ = self.batches.try_send(Batch { writes, is_durable, done });
        Pending(pending)
    }
}

/// A batch in progress.
#[derive(Debug)]
pub(super) struct Pending(oneshot::Receiver<Result<(), RegistryStoreError>>);

impl Pending {
    /// Waits for the result of the batch.
    ///
    /// # Errors
    /// See [`RegistryStoreError`].
    pub(super) async fn done(&mut self) -> Result<(), RegistryStoreError> {
        (&mut self.0).await.unwrap_or(Err(RegistryStoreError::Stopped))
    }
}

/// Makes the file readable only for its owner, because requests of checks may carry credentials. SQLite gives
/// a new WAL the permissions of the database. Errors are ignored here: SQLite meets and reports the same
/// ones.
fn make_private(path: &Path) {
    let made = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path);
    if made.is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        // Older versions created the file with the permissions of the umask. On a read-only file system they
        // cannot be changed.
        for file in [path, &path.with_file_name(format!("{FILE}-wal"))] {
            _ = fs::set_permissions(file, Permissions::from_mode(PRIVATE));
        }
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    make_private(path);
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    // The lock on the data directory keeps other nodes out. In exclusive mode SQLite needs no shared memory,
    // so the database opens on a full disk.
    db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    db.pragma_update(None, "cell_size_check", true)?;
    let format: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if format == 0 {
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT;"
        ))?;
    }
    Ok(db)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode;
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Renames a damaged database and its WAL, and returns the new name.
fn rename_damaged(path: &Path) -> io::Result<PathBuf> {
    let named = |n: u32, ending: &str| path.with_file_name(format!("{FILE}.damaged-{n}{ending}"));
    let n = (1..).find(|n| !named(*n, "").exists()).unwrap_or(1);
    fs::rename(path, named(n, ""))?;
    for ending in ["-wal", "-shm"] {
        let beside = path.with_file_name(format!("{FILE}{ending}"));
        if beside.exists() {
            fs::rename(beside, named(n, ending))?;
        }
    }
    Ok(named(n, ""))
}

fn read(db: &Connection) -> rusqlite::Result<Stored> {
    let mut stored = Stored::default();
    let mut rows = db.prepare("SELECT id, body, checks FROM registrations ORDER BY id")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let (id, body, checks): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        match serde_json::from_str::<Row>(&body) {
            // The next run of the check replaces an unreadable status.
            Ok(body) => stored.rows.push((body, serde_json::from_str(&checks).unwrap_or_default())),
            Err(error) => stored.unreadable.push((id, error.to_string())),
        }
    }
    let mut settings = db.prepare("SELECT name, value FROM settings")?;
    let settings = settings.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    stored.settings = settings.collect::<Result<_, _>>()?;
    Ok(stored)
}

/// Writes batches until all handles are dropped.
fn work(path: &Path, db: Option<Connection>, mut batches: mpsc::Receiver<Batch>) {
    let mut writer = db.map(Writer::new);
    while let Some(batch) = batches.blocking_recv() {
        let written = match writer.take().map_or_else(|| open(path).map(Writer::new), Ok) {
            Ok(mut open) => match open.write(&batch) {
                Ok(()) => {
                    writer = Some(open);
                    Ok(())
                }
                // After a failed sync the page cache may differ from the disk: the next batch reopens the
                // database.
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        // An error means that the caller is gone.
        _ = batch.done.send(written.map_err(RegistryStoreError::from));
    }
}

/// The open database and its sync setting.
struct Writer {
    db: Connection,
    /// Whether a commit ends with a sync.
    syncs: bool,
}

impl Writer {
    /// Wraps a database that was just opened, which syncs.
    fn new(db: Connection) -> Self {
        Self { db, syncs: true }
    }

    fn write(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        // The pragma is set only on a change, because setting it takes as long as writing a row.
        if self.syncs != batch.is_durable {
            let level = if batch.is_durable { "FULL" } else { "NORMAL" };
            self.db.pragma_update(None, "synchronous", level)?;
            self.syncs = batch.is_durable;
        }
        write(&mut self.db, &batch.writes)
    }
}

fn write(db: &mut Connection, writes: &[Write]) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    for write in writes {
        match write {
            Write::Upsert(row) => {
                let sql = "INSERT INTO registrations (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body";
                transaction.prepare_cached(sql)?.execute(params![row.registration.id, json(row)])?;
            }
            Write::Delete(id) => {
                transaction.prepare_cached("DELETE FROM registrations WHERE id = ?1")?.execute([id])?;
            }
            Write::Checks(id, checks) => {
                let sql = "UPDATE registrations SET checks = ?2 WHERE id = ?1";
                transaction.prepare_cached(sql)?.execute(params![id, json(checks)])?;
            }
            Write::Setting(name, Some(value)) => {
                let sql = "INSERT INTO settings (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
                transaction.prepare_cached(sql)?.execute(params![name, value])?;
            }
            Write::Setting(name, None) => {
                transaction.prepare_cached("DELETE FROM settings WHERE name = ?1")?.execute([name])?;
            }
        }
    }
    transaction.commit()
}

/// Serialises a value; these types have string keys, so it cannot fail.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
