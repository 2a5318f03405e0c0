//! [`Readers`]: pool of read-only connections to a topic's database. It bounds concurrent reads, closes
//! connections to a file that was replaced, and can be drained until no connection is open.

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

/// Maximum number of concurrent reads. Further ones wait, because a disk does not get faster with more
/// readers.
const READS_MAX: usize = 16;
/// Maximum number of idle connections that keep their page cache. Others are kept without it, because opening
/// a connection and reading the schema takes longer than most reads.
const WARM_MAX: usize = 4;
/// Page cache of a connection, in KiB.
const CACHE_KIB: i64 = 2048;

/// How long a reader waits while the pool is drained.
const DRAINING_MAX: Duration = Duration::from_secs(2);

/// Function that opens a database if the usual way fails, for example on a full disk.
pub type Opener = dyn Fn(&Path) -> rusqlite::Result<Connection> + Send + Sync;

/// Pool of the read connections of a database.
#[derive(Debug)]
pub struct Readers {
    path: PathBuf,
    connections: Mutex<Connections>,
    /// Signals that a connection was returned, or that draining has ended.
    returned: Condvar,
    /// Counts replacements of the file and of the opener. Changes only together with the idle connections.
    file: AtomicU64,
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct Connections {
    idle: Vec<Connection>,
    /// Connections in use.
    in_use: usize,
    /// Whether new connections are blocked.
    is_draining: bool,
    /// The opener; `None`: read-only in the usual way.
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
    /// A pool for the database at this path.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            connections: Mutex::default(),
            returned: Condvar::new(),
            file: AtomicU64::new(0),
            places: Arc::new(Semaphore::new(READS_MAX)),
        }
    }

    /// Waits for permission to read.
    pub async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an idle connection, or opens one.
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
        // The reader counts as in use until it is dropped, even if opening fails.
        let mut reader = Reader { connection: None, file, home: Arc::clone(self) };
        reader.connection = Some(match (idle, open) {
            (Some(connection), _) => connection,
            (None, None) => prepare(connect(&self.path)?)?,
            (None, Some(open)) => prepare(open(&self.path)?)?,
        });
        Ok(reader)
    }

    /// Returns the number of replacements of the file.
    pub fn file(&self) -> u64 {
        self.file.load(Ordering::SeqCst)
    }

    /// Notes that the file was replaced. Connections to the old file are closed after their current use.
    pub fn forget(&self) {
        self.close_idle(&mut self.connections());
    }

    fn close_idle(&self, connections: &mut Connections) {
        self.file.fetch_add(1, Ordering::SeqCst);
        connections.idle.clear();
    }

    /// Sets the opener; `None`: read-only in the usual way.
    pub fn set_opener(&self, opener: Option<Arc<Opener>>) {
        let mut connections = self.connections();
        connections.opener = opener;
        self.close_idle(&mut connections);
    }

    /// Closes all connections once they are unused, and blocks new ones until the guard is dropped. `None`: a
    /// connection was still in use after `wait_max`.
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

/// Guard of a drained pool. There is no read connection until it is dropped.
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
    // Otherwise SQLite prepares a statement again whenever a bound value may matter for a partial index.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    Ok(connection)
}

/// A read-only connection.
#[derive(Debug)]
pub struct Reader {
    connection: Option<Connection>,
    /// Number of the file that the connection belongs to.
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
        // The count falls only after the connection is closed, as `drain` promises.
        self.home.connections().in_use -= 1;
        self.home.returned.notify_all();
    }
}

impl Reader {
    fn give_back(&self, connection: Connection) {
        let mut warm = self.home.connections();
        if self.file != self.home.file() {
            // A connection to a replaced file is closed.
        } else if warm.idle.len() < WARM_MAX {
            warm.idle.push(connection);
        } else {
            drop(warm);
            // The number of connections is bounded, so a connection that does not shrink does no harm.
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
