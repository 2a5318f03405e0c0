//! Online backup of a topic's file (`node journal backup`).
//!
//! A byte-wise copy of a file that a node writes mixes several states. SQLite's backup API copies pages in
//! one read transaction, so the copy is one snapshot. The copy is a single file without a WAL, complete and
//! synced before it gets its name.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::verify::{self, Progress};
use crate::journal::{
    integrity::checksum_vfs::{have_sums, leave_room},
    store::format::APPLICATION_ID,
};

/// Pages copied in one step: 4 MiB.
const PAGES_PER_STEP: i32 = 1024;
/// Maximum number of attempts on a locked file: one minute in total. A checkpoint or the start of another
/// backup locks a file for milliseconds.
const LOCKED_TRIES_MAX: u32 = 1200;
const LOCKED_PAUSE: Duration = Duration::from_millis(50);

/// Why a backup failed. Its partial file was removed, and nothing was overwritten.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file of this name exists.
    #[error("{} is there already, and a backup never overwrites", .0.display())]
    Exists(PathBuf),
    /// The copy could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The copy.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is not a journal.
    #[error("{} is the database of something else", .0.display())]
    Foreign(PathBuf),
    /// The file is damaged, and so was its copy.
    #[error("{} is damaged ({problem}); `node journal verify` tells more", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first problem found.
        problem: String,
    },
    /// The file could not be read, or the copy could not be written.
    #[error("cannot copy {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The error of the database.
        source: rusqlite::Error,
    },
}

/// Copies a topic's file. Returns the size of the copy in bytes.
///
/// # Errors
/// See [`BackupError`].
pub fn backup(from: &Path, to: &Path, progress: &mut Progress<'_>) -> Result<u64, BackupError> {
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let unwritable = |source| BackupError::Unwritable { path: to.to_owned(), source };
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // Private, like the file itself. An existing partial file belongs to another process.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial) {
        Ok(_) => (),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Exists(partial));
        }
        Err(error) => return Err(unwritable(error)),
    }
    let copied = copy(from, &partial, progress).and_then(|()| {
        let file = File::open(&partial).map_err(unwritable)?;
        file.sync_all().map_err(unwritable)?;
        let bytes = file.metadata().map_err(unwritable)?.len();
        rename(&partial, to).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(to.to_owned()),
            _ => unwritable(error),
        })?;
        Ok(bytes)
    });
    if copied.is_err() {
        for suffix in ["", "-journal"] {
            // SQLite removes its rollback journal itself, unless writing failed.
            _ = fs::remove_file(format!("{}{suffix}", partial.display()));
        }
    }
    copied
}

/// Renames a file without overwriting another, and syncs the directory.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => (),
        // Some file systems do not support NOREPLACE.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.symlink_metadata().is_err() => {
            fs::rename(from, to)?;
        }
        Err(error) => return Err(error.into()),
    }
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn copy(from: &Path, to: &Path, progress: &mut Progress<'_>) -> Result<(), BackupError> {
    let failed = |source| BackupError::Database { path: from.to_owned(), source };
    let source = verify::open(from).map_err(failed)?;
    // The first read starts the transaction, whose snapshot lasts until the end.
    source.execute_batch("BEGIN").map_err(failed)?;
    let application: i64 =
        source.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION_ID {
        return Err(BackupError::Foreign(from.to_owned()));
    }
    let mut target = Connection::open(to).map_err(failed)?;
    if have_sums(&source) {
        // The first page says that pages have checksums, and must be written before the others.
        leave_room(&target);
        target.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    }
    copy_pages(&source, &mut target, progress).map_err(failed)?;
    // In WAL mode, reading the copy would create two more files.
    target.pragma_update(None, "journal_mode", "DELETE").map_err(failed)?;
    progress("checking the copy", 0, 0);
    let verdict: String =
        target.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" {
        return Err(BackupError::Damaged { path: from.to_owned(), problem: verdict });
    }
    target.close().map_err(|(_, error)| failed(error))
}

fn copy_pages(
    source: &Connection,
    target: &mut Connection,
    progress: &mut Progress<'_>,
) -> rusqlite::Result<()> {
    let backup = Backup::new(source, target)?;
    let mut tries = 0;
    loop {
        match backup.step(PAGES_PER_STEP)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {
                let (left, all) = (backup.progress().remaining, backup.progress().pagecount);
                progress(
                    "copying pages",
                    u64::try_from(all - left).unwrap_or(0),
                    u64::try_from(all).unwrap_or(0),
                );
            }
            _ if tries < LOCKED_TRIES_MAX => {
                tries += 1;
                std::thread::sleep(LOCKED_PAUSE);
            }
            _ => {
                let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(busy, Some("the file stays locked".into())));
            }
        }
    }
}
