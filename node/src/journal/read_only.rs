//! Reading a database whose disk is full.
//!
//! Problem: to open a database in WAL mode, also for reading, SQLite makes `-wal` and `-shm`. On a full disk
//! that fails, and with it the start of the node, though nothing has to be written to read. Rule: until there
//! is room, the topic's thread and its readers have connections that need none, and appends are answered as
//! on a running node whose disk is full. The file does not change meanwhile: the lock of the data directory
//! keeps other nodes away.
//!
//! - With an empty log, or none: SQLite's `immutable`, which looks at the file alone.
//! - With a log: the exclusive locking mode keeps the log's index in memory. Each connection would lock out
//!   all others, so the file system below locks nothing.
//!
//! Closing a file drops all locks that the process has on it (POSIX, `fcntl`). So every such connection is
//! closed before the database is opened for writing
//! ([`Readers::drain`](hearsay_services::journal::Readers::drain)).
//! (<https://sqlite.org/wal.html#use_of_wal_without_shared_memory>,
//! <https://sqlite.org/uri.html#uriimmutable>)

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

use super::pages;
use crate::storage::is_full;

/// Room without which a database is not opened for writing: the index of its log (32 KiB), and a transaction.
/// SQLite maps that index into memory. Where blocks are smaller than pages, what it writes before does not
/// reserve all of them, and on a full disk the node would end by a signal (SIGBUS).
pub(super) const ROOM_BYTES: usize = 64 * 1024;

/// Opens a database for reading without writing anything. No connection may be writing to it.
///
/// # Errors
/// What the database said.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    pages::check_from_now_on();
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let db = match has_log(path) {
        true => Connection::open_with_flags_and_vfs(uri(path, ""), flags, pages::UNLOCKED)?,
        false => Connection::open_with_flags(uri(path, "?immutable=1"), flags)?,
    };
    // Without locks, every connection takes itself for the last one, which copies the log into the file and
    // removes it.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "cell_size_check", true)?;
    Ok(db)
}

/// Whether the write-ahead log of a database has content.
pub(super) fn has_log(path: &Path) -> bool {
    PathBuf::from(format!("{}-wal", path.display())).metadata().is_ok_and(|log| log.len() > 0)
}

/// Returns the URI by which SQLite opens a file.
pub(super) fn uri(path: &Path, parameters: &str) -> String {
    let name: String = path.as_os_str().as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
    format!("file:{name}{parameters}")
}

/// Whether a database refused because there is no room on its disk.
pub(super) fn lacks_room(path: &Path, error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => true,
        // A full disk has these codes, too, where SQLite cannot make `-wal` or `-shm`.
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => !has_room(path),
        _ => false,
    }
}

/// Whether the disk has room for opening this database for writing. It tries to write, because no statistics
/// of a disk include quotas.
pub(super) fn has_room(path: &Path) -> bool {
    let probe = path.with_extension("room");
    let written = File::create(&probe).and_then(|mut file| file.write_all(&vec![0; ROOM_BYTES]));
    _ = fs::remove_file(&probe);
    // Any other fault of the disk shows when the database is opened.
    !written.is_err_and(|error| is_full(&error))
}

#[cfg(test)]
mod tests;
