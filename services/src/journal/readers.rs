//! Connections that can only read, kept open between requests.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Reads under way at the same time. More wait: a disk is not faster for being asked by more.
const READS_MAX: usize = 16;
/// Connections kept with what they have read. The others are kept without: to open one, and to read the schema, takes longer than most reads.
const WARM_MAX: usize = 4;
/// Pages of a connection's cache, in KiB.
const CACHE_KIB: i64 = 2048;

/// A database's readers.
#[derive(Debug)]
pub struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// How often the file was replaced. Changes only together with what is idle.
    file: AtomicU64,
    places: Arc<Semaphore>,
}

impl Readers {
    /// Of the database in this file.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            idle: Mutex::new(Vec::new()),
            file: AtomicU64::new(0),
            places: Arc::new(Semaphore::new(READS_MAX)),
        }
    }

    /// Waits for its turn.
    pub async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes the semaphore.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// A connection: one that was used before, or a new one.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(self: &Arc<Self>) -> rusqlite::Result<Reader> {
        let (file, idle) = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            (self.file(), idle.pop())
        };
        let connection = match idle {
            Some(connection) => connection,
            None => connect(&self.path)?,
        };
        Ok(Reader { connection: Some(connection), file, home: Arc::clone(self) })
    }

    /// How often the file was replaced since this was made.
    pub fn file(&self) -> u64 {
        self.file.load(Ordering::SeqCst)
    }

    /// The file was replaced: whoever reads from the old one does so for the last time.
    pub fn forget(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.fetch_add(1, Ordering::SeqCst);
        idle.clear();
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    // Otherwise a statement is prepared again whenever a value is bound that a partial index might have to do with.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    Ok(connection)
}

/// A connection that can only read.
#[derive(Debug)]
pub struct Reader {
    connection: Option<Connection>,
    /// As how many files there had been when it was opened.
    file: u64,
    home: Arc<Readers>,
}

impl Deref for Reader {
    type Target = Connection;
    #[expect(clippy::expect_used, reason = "taken out only when this is dropped")]
    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a reader has its connection")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let idle = || self.home.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut warm = idle();
        if self.file != self.home.file() {
            // Of a file that was replaced.
        } else if warm.len() < WARM_MAX {
            warm.push(connection);
        } else {
            drop(warm);
            // There are no more than READS_MAX, so one that does not shrink does no harm.
            _ = connection.execute_batch("PRAGMA shrink_memory");
            let mut idle = idle();
            if self.file == self.home.file() {
                idle.insert(0, connection);
            }
        }
    }
}
