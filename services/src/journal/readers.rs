//! Connections that can only read, kept open between requests.

use std::{
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags, config::DbConfig, ffi};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Reads under way at the same time. More wait: a disk is not faster for being asked by more.
const READS_MAX: usize = 16;
/// Connections kept with what they have read. The others are kept without: to open one, and to read the schema, takes longer than most reads.
const WARM_MAX: usize = 4;
/// Pages of a connection's cache, in KiB.
const CACHE_KIB: i64 = 2048;

/// How long a reader waits while the readers are drained.
const DRAINING_MAX: Duration = Duration::from_secs(2);

/// A way to open a database, such as that for one whose disk is full.
pub type Opener = dyn Fn(&Path) -> rusqlite::Result<Connection> + Send + Sync;

/// A database's readers.
#[derive(Debug)]
pub struct Readers {
    path: PathBuf,
    connections: Mutex<Connections>,
    /// A connection came back, or draining has ended.
    returned: Condvar,
    /// How often the file, or the way to open it, was replaced. Changes only together with what is idle.
    file: AtomicU64,
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct Connections {
    idle: Vec<Connection>,
    /// How many are in use.
    in_use: usize,
    /// Whether no connection may be opened now.
    is_draining: bool,
    /// How to open them; `None`: read-only, in the usual way.
    opener: Option<Arc<Opener>>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("in_use", &self.in_use)
            .field("is_draining", &self.is_draining)
            .finish_non_exhaustive()
    }
}

impl Readers {
    /// Of the database in this file.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            connections: Mutex::default(),
            returned: Condvar::new(),
            file: AtomicU64::new(0),
            places: Arc::new(Semaphore::new(READS_MAX)),
        }
    }

    /// Waits for its turn.
    pub async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes the semaphore.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection: one that was used before, or a new one.
    ///
    /// # Errors
    /// The file cannot be opened, or draining takes too long.
    pub fn open(self: &Arc<Self>) -> rusqlite::Result<Reader> {
        let (file, idle, open) = {
            let is_draining = |connections: &mut Connections| connections.is_draining;
            let waited = self.returned.wait_timeout_while(self.connections(), DRAINING_MAX, is_draining);
            let (mut connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if connections.is_draining {
                let busy = ffi::Error::new(ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(
                    busy,
                    Some("it is being opened for writing".into()),
                ));
            }
            connections.in_use += 1;
            (self.file(), connections.idle.pop(), connections.opener.clone())
        };
        // Counts as in use until it is dropped, also if it cannot be opened.
        let mut reader = Reader { connection: None, file, home: Arc::clone(self) };
        reader.connection = Some(match (idle, open) {
            (Some(connection), _) => connection,
            (None, None) => prepare(connect(&self.path)?)?,
            (None, Some(open)) => prepare(open(&self.path)?)?,
        });
        Ok(reader)
    }

    /// How often the file was replaced since this was made.
    pub fn file(&self) -> u64 {
        self.file.load(Ordering::SeqCst)
    }

    /// The file was replaced: whoever reads from the old one does so for the last time.
    pub fn forget(&self) {
        self.close_idle(&mut self.connections());
    }

    fn close_idle(&self, connections: &mut Connections) {
        self.file.fetch_add(1, Ordering::SeqCst);
        connections.idle.clear();
    }

    /// Opens connections in this way from now on; `None`: in the usual way.
    pub fn set_opener(&self, opener: Option<Arc<Opener>>) {
        let mut connections = self.connections();
        connections.opener = opener;
        self.close_idle(&mut connections);
    }

    /// Closes all connections once they are no longer in use, and lets no reader open one until the guard is
    /// dropped. `None`: a connection was still in use after `wait_max`.
    pub fn drain(&self, wait_max: Duration) -> Option<Drained<'_>> {
        let mut connections = self.connections();
        connections.is_draining = true;
        let held = Drained(self);
        let until = Instant::now() + wait_max;
        while connections.in_use > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(connections);
                return None;
            }
            connections =
                self.returned.wait_timeout(connections, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.close_idle(&mut connections);
        Some(held)
    }
}

/// Guard: no reader has a connection, or gets one, until this is dropped.
#[derive(Debug)]
pub struct Drained<'a>(&'a Readers);

impl Drop for Drained<'_> {
    fn drop(&mut self) {
        self.0.connections().is_draining = false;
        self.0.returned.notify_all();
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
}

fn prepare(connection: Connection) -> rusqlite::Result<Connection> {
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
        if let Some(connection) = self.connection.take() {
            self.give_back(connection);
        }
        // Only now: `drain` promises that every connection is closed.
        self.home.connections().in_use -= 1;
        self.home.returned.notify_all();
    }
}

impl Reader {
    fn give_back(&self, connection: Connection) {
        let mut warm = self.home.connections();
        if self.file != self.home.file() {
            // Of a file that was replaced.
        } else if warm.idle.len() < WARM_MAX {
            warm.idle.push(connection);
        } else {
            drop(warm);
            // There are no more than READS_MAX, so one that does not shrink does no harm.
            _ = connection.execute_batch("PRAGMA shrink_memory");
            let mut connections = self.home.connections();
            if self.file == self.home.file() {
                connections.idle.insert(0, connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readers(dir: &tempfile::TempDir) -> Arc<Readers> {
        let path = dir.path().join("x.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (7)")
            .unwrap();
        Arc::new(Readers::new(&path))
    }

    fn read(readers: &Arc<Readers>) -> rusqlite::Result<i64> {
        readers.open()?.query_row("SELECT x FROM t", [], |row| row.get(0))
    }

    #[test]
    fn no_reader_reads_while_readers_are_drained_and_waiting_ones_read_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let readers = readers(&dir);
        let reader = readers.open().unwrap();
        assert!(readers.drain(Duration::from_millis(1)).is_none(), "one still reads");
        assert_eq!(read(&readers).unwrap(), 7, "draining was given up");
        drop(reader);
        let held = readers.drain(Duration::ZERO).unwrap();
        assert!(readers.connections().idle.is_empty());
        let waiting = std::thread::spawn({
            let readers = Arc::clone(&readers);
            move || read(&readers)
        });
        drop(held);
        assert_eq!(waiting.join().unwrap().unwrap(), 7);
        assert_eq!(readers.connections().in_use, 0);
    }

    #[test]
    fn another_opener_is_used_at_once_and_one_that_fails_blocks_no_draining() {
        let dir = tempfile::tempdir().unwrap();
        let readers = readers(&dir);
        assert_eq!(read(&readers).unwrap(), 7);
        readers.set_opener(Some(Arc::new(|_: &Path| {
            let full = ffi::Error::new(ffi::SQLITE_FULL);
            Err(rusqlite::Error::SqliteFailure(full, Some("no room".into())))
        })));
        assert!(read(&readers).unwrap_err().to_string().contains("no room"));
        assert!(readers.drain(Duration::ZERO).is_some());
        readers.set_opener(None);
        assert_eq!(read(&readers).unwrap(), 7);
    }
}
