//! The registrations on disk: a SQLite database with one row for each, written by a thread of its own.
//!
//! Group commit: the thread takes all writes that wait, and ends their transaction with one sync (`synchronous=FULL` on a WAL). So a write that has been
//! answered survives a crash and the loss of power, and 64 clients cost about as many syncs as one. A transaction that fails leaves nothing of its
//! writes behind.
//!
//! The statuses of checks are written beside, without a sync of their own: after a power loss an older status is shown until the first run.

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

/// The name of the file in the data directory.
pub(super) const FILE: &str = "registrations.db";
/// Says in the file's header whose it is: "hsrg".
const APPLICATION_ID: i64 = 0x6873_7267;
/// The format of the tables.
const FORMAT: i64 = 1;
/// Batches that wait for the thread. The registry sends one at a time.
const BATCHES_MAX: usize = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const CACHE_KIB: i64 = 2 * 1024;

const TABLES: &str = "
CREATE TABLE registrations (id TEXT PRIMARY KEY, body TEXT NOT NULL, checks TEXT NOT NULL DEFAULT '{}') WITHOUT ROWID;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// Why the registrations are not read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, or may not be written. Nothing of the batch was stored; what was stored before is still there.
    #[error("the disk takes no more: {0}")]
    Full(String),
    /// The database refused. Nothing of the batch was stored.
    #[error("{0}")]
    Failed(String),
    /// The thread is gone: the node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

impl From<rusqlite::Error> for StoreError {
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

/// A write.
#[derive(Clone, Debug)]
pub(super) enum Write {
    /// A registration, new or in place of the one with its id.
    Put(Box<Row>),
    /// The registration with this id is gone.
    Delete(String),
    /// The statuses of the checks of a registration.
    Checks(String, StoredChecks),
    /// A setting of the node; `None`: it has none.
    Setting(String, Option<String>),
}

/// What the database held when it was opened.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// All registrations.
    pub(super) rows: Vec<(Row, StoredChecks)>,
    /// Rows that could not be read, with the reason.
    pub(super) unreadable: Vec<(String, String)>,
    /// The settings of the node.
    pub(super) settings: Vec<(String, String)>,
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub(super) struct Store {
    batches: mpsc::Sender<Batch>,
}

struct Batch {
    writes: Vec<Write>,
    /// Whether it must be synced before it is answered.
    is_durable: bool,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Store {
    /// Opens the database in a data directory, makes it where there is none, and starts the thread. A database that is damaged is put aside
    /// under another name, and a new one is begun: the third value names it. Where the disk is too full to make one, that is tried again at
    /// each write.
    ///
    /// # Errors
    /// A database that is there cannot be read.
    pub(super) fn open(dir: &Path) -> Result<(Self, Stored, Option<PathBuf>), StoreError> {
        let path = dir.join(FILE);
        // A disk that was full at the first start left a file without content.
        let is_new = path.metadata().map_or(true, |file| file.len() == 0);
        let (db, stored, aside) = match open(&path).and_then(|db| read(&db).map(|stored| (db, stored))) {
            Ok((db, stored)) => (Some(db), stored, None),
            Err(error) if is_damage(&error) => {
                let aside = put_aside(&path).map_err(|error| StoreError::Failed(error.to_string()))?;
                (open(&path).ok(), Stored::default(), Some(aside))
            }
            Err(error) => match StoreError::from(error) {
                StoreError::Full(_) if is_new => (None, Stored::default(), None),
                error => return Err(error),
            },
        };
        let (batches, receiver) = mpsc::channel(BATCHES_MAX);
        let thread = std::thread::Builder::new().name("registrations".into());
        let spawned = thread.spawn(move || work(&path, db, receiver));
        spawned.map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok((Self { batches }, stored, aside))
    }

    /// Writes a batch, all of it or nothing. The answer comes once it is synced, if it is to be durable.
    pub(super) fn write(&self, writes: Vec<Write>, is_durable: bool) -> Pending {
        let (done, pending) = oneshot::channel();
        // The registry has one batch under way at a time, so there is room; a thread that is gone is told by the answer.
        _ = self.batches.try_send(Batch { writes, is_durable, done });
        Pending(pending)
    }
}

/// A batch under way.
#[derive(Debug)]
pub(super) struct Pending(oneshot::Receiver<Result<(), StoreError>>);

impl Pending {
    /// What became of it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(super) async fn done(&mut self) -> Result<(), StoreError> {
        (&mut self.0).await.unwrap_or(Err(StoreError::Stopped))
    }
}

/// Makes the file readable for its owner alone, whatever the umask and the directory allow: requests of checks may carry credentials.
/// SQLite gives a new log the permissions of the database. What the system refuses here, it refuses to SQLite as well, which reports it.
fn make_private(path: &Path) {
    let made = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path);
    if made.is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        // Versions before this one made it by the umask. A file system that is read-only keeps the old permissions.
        for file in [path, &path.with_file_name(format!("{FILE}-wal"))] {
            _ = fs::set_permissions(file, Permissions::from_mode(PRIVATE));
        }
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    make_private(path);
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    // The node's lock on the data directory keeps other nodes out, and without shared memory the database opens on a full disk.
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

fn put_aside(path: &Path) -> io::Result<PathBuf> {
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
            // A status that cannot be read is found out again by the next run.
            Ok(body) => stored.rows.push((body, serde_json::from_str(&checks).unwrap_or_default())),
            Err(error) => stored.unreadable.push((id, error.to_string())),
        }
    }
    let mut settings = db.prepare("SELECT name, value FROM settings")?;
    let settings = settings.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    stored.settings = settings.collect::<Result<_, _>>()?;
    Ok(stored)
}

/// Writes batches until all handles are gone.
fn work(path: &Path, db: Option<Connection>, mut batches: mpsc::Receiver<Batch>) {
    let mut writer = db.map(Writer::new);
    while let Some(batch) = batches.blocking_recv() {
        let written = match writer.take().map_or_else(|| open(path).map(Writer::new), Ok) {
            Ok(mut open) => match open.write(&batch) {
                Ok(()) => {
                    writer = Some(open);
                    Ok(())
                }
                // After a failed sync it is unknown which pages the system still has: the next batch reads the disk again.
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        // The asker may be gone.
        _ = batch.done.send(written.map_err(StoreError::from));
    }
}

/// The database as it is written to.
struct Writer {
    db: Connection,
    /// Whether a commit ends with a sync, as the database is set now.
    syncs: bool,
}

impl Writer {
    /// For a database that was just opened, which syncs.
    fn new(db: Connection) -> Self {
        Self { db, syncs: true }
    }

    fn write(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        // To set it takes as long as to write a row.
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
            Write::Put(row) => {
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

/// These shapes have texts for keys, so they always serialise.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
