//! Copies of a topic's file, made while a node may be writing to it.
//!
//! A file that is copied byte by byte while it is written is a mixture of moments. SQLite's own backup copies pages out of one read transaction: one
//! moment, whatever is committed meanwhile. The copy is a single file without a WAL, complete and synced before it gets its name.

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

use super::{
    pages::{have_sums, leave_room},
    store::APPLICATION_ID,
    verify::{self, Tell},
};

/// Pages copied between two looks at the clock: 4 MiB.
const PAGES_PER_STEP: i32 = 1024;
/// The file is locked only for moments (a checkpoint, another backup's start), so a minute is for ever.
const LOCKED_TRIES_MAX: u32 = 1200;
const LOCKED_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no copy. Nothing is left of the attempt, and nothing was overwritten.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something has the name already.
    #[error("{} is there already, and a backup never overwrites", .0.display())]
    Exists(PathBuf),
    /// The copy could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The copy.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no journal's.
    #[error("{} is the database of something else", .0.display())]
    Foreign(PathBuf),
    /// The copy is damaged, because the file is.
    #[error("{} is damaged ({problem}); `node journal verify` tells more", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first complaint.
        problem: String,
    },
    /// The file could not be read, or the copy not be written.
    #[error("cannot copy {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: rusqlite::Error,
    },
}

/// Copies a topic's file. Returns how many bytes the copy has.
///
/// # Errors
/// See [`BackupError`]; none leaves anything behind.
pub fn backup(from: &Path, to: &Path, tell: &mut Tell<'_>) -> Result<u64, BackupError> {
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let unwritable = |source| BackupError::Unwritable { path: to.to_owned(), source };
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // For the owner alone, as the file itself. One that is there is somebody else's attempt.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial) {
        Ok(_) => (),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Exists(partial));
        }
        Err(error) => return Err(unwritable(error)),
    }
    let copied = copy(from, &partial, tell).and_then(|()| {
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
            // The second is there only if the machine was about to fail.
            _ = fs::remove_file(format!("{}{suffix}", partial.display()));
        }
    }
    copied
}

/// Gives a file its name, unless something has it, and syncs the directory.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => (),
        // Not every file system can say no by itself.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.symlink_metadata().is_err() => {
            fs::rename(from, to)?;
        }
        Err(error) => return Err(error.into()),
    }
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn copy(from: &Path, to: &Path, tell: &mut Tell<'_>) -> Result<(), BackupError> {
    let failed = |source| BackupError::Database { path: from.to_owned(), source };
    let source = verify::open(from).map_err(failed)?;
    // Reading begins the transaction, which holds this moment fast until the end.
    source.execute_batch("BEGIN").map_err(failed)?;
    let application: i64 =
        source.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION_ID {
        return Err(BackupError::Foreign(from.to_owned()));
    }
    let mut target = Connection::open(to).map_err(failed)?;
    if have_sums(&source) {
        // Its first page says that pages have sums, and must be there before the others come.
        leave_room(&target);
        target.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    }
    pages(&source, &mut target, tell).map_err(failed)?;
    // Otherwise it would be a copy that begets two more files when it is looked at.
    target.pragma_update(None, "journal_mode", "DELETE").map_err(failed)?;
    tell("checking the copy", 0, 0);
    let verdict: String =
        target.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" {
        return Err(BackupError::Damaged { path: from.to_owned(), problem: verdict });
    }
    target.close().map_err(|(_, error)| failed(error))
}

fn pages(source: &Connection, target: &mut Connection, tell: &mut Tell<'_>) -> rusqlite::Result<()> {
    let backup = Backup::new(source, target)?;
    let mut tries = 0;
    loop {
        match backup.step(PAGES_PER_STEP)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {
                let (left, all) = (backup.progress().remaining, backup.progress().pagecount);
                tell(
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
