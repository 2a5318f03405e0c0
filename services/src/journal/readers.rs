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

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Reads under way at the same time. More wait: a disk is not faster for being asked by more.
const READS_MAX: usize = 16;
/// Connections kept for the next reader. Each holds a page cache.
const IDLE_MAX: usize = 4;
/// Pages of a connection's cache, in KiB.
const CACHE_KIB: i64 = 2048;

/// A database's readers.
#[derive(Debug)]
pub struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// How often the file was replaced.
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
        let file = self.file();
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
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
        self.file.fetch_add(1, Ordering::SeqCst);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(2))?;
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
        let mut idle = self.home.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && self.file == self.home.file() {
            idle.extend(self.connection.take());
        }
    }
}
