//! Read-only connections to a topic's database whose disk is full, and tests of whether the disk has room.
//!
//! Problem: to open a database in WAL mode, even for reading, SQLite creates `-wal` and `-shm`. On a full
//! disk that fails, and the node could not start. Rule: until the disk has room, the topic's worker and its
//! readers use connections that need neither file. Appends get the same answer as on a running node whose
//! disk is full. The file does not change meanwhile: the lock of the data directory keeps other nodes away.
//!
//! - Without a log, or with an empty one: SQLite's `immutable` mode, which reads the database file alone.
//! - With a log: the exclusive locking mode, which keeps the log's index in memory. In that mode one
//!   connection would lock out all others, so these connections use a VFS that takes no locks.
//!
//! Closing a file drops all locks that the process has on it (POSIX, `fcntl`). So all these connections are
//! closed before the database is opened for writing
//! ([`Readers::drain`](hearsay_services::journal::Readers::drain)).
//! (<https://sqlite.org/wal.html#use_of_wal_without_shared_memory>,
//! <https://sqlite.org/uri.html#uriimmutable>)

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

use super::integrity::checksum_vfs;
use crate::storage::is_full;

/// Free space required to open a database for writing: the log's index (32 KiB) and a transaction. SQLite
/// maps the index into memory. If the file system's blocks are smaller than memory pages, SQLite reserves
/// only some of the index's blocks. On a full disk, writing to the others would kill the node (SIGBUS).
pub(crate) const ROOM_BYTES: usize = 64 * 1024;
/// The pause between two attempts to open a read-only database for writing.
pub(crate) const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// Opens a database for reading without creating files. No connection may be writing to it.
///
/// # Errors
/// The error of the database.
pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    checksum_vfs::check_from_now_on();
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let db = match has_log(path) {
        true => Connection::open_with_flags_and_vfs(uri(path, ""), flags, checksum_vfs::UNLOCKED)?,
        false => Connection::open_with_flags(uri(path, "?immutable=1"), flags)?,
    };
    // Without locks, each connection assumes that it is the last one. On closing, it would copy the log into
    // the file and delete the log.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "cell_size_check", true)?;
    Ok(db)
}

/// Whether the write-ahead log of a database has content.
pub(crate) fn has_log(path: &Path) -> bool {
    PathBuf::from(format!("{}-wal", path.display())).metadata().is_ok_and(|log| log.len() > 0)
}

/// Returns the URI by which SQLite opens a file.
pub(crate) fn uri(path: &Path, parameters: &str) -> String {
    let name: String = path.as_os_str().as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
    format!("file:{name}{parameters}")
}

/// Whether an error means that the disk is full.
pub(crate) fn lacks_room(path: &Path, error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => true,
        // SQLite also reports these codes if it cannot create `-wal` or `-shm`.
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => !has_room(path),
        _ => false,
    }
}

/// Whether the disk has room for opening a database for writing. It tries to write, because free-space
/// figures do not include quotas.
pub(crate) fn has_room(path: &Path) -> bool {
    let probe = path.with_extension("room");
    let written = File::create(&probe).and_then(|mut file| file.write_all(&vec![0; ROOM_BYTES]));
    _ = fs::remove_file(&probe);
    // Opening the database reports any other error of the disk.
    !written.is_err_and(|error| is_full(&error))
}

#[cfg(test)]
mod tests;
