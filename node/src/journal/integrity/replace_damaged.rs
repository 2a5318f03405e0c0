//! Replaces a damaged journal database by a new one with all its runs (signed groups of entries) that still
//! verify; survives a crash at any point.
//!
//! The runs are copied into a new file under another name. The complete and synced file is renamed to mark it
//! as finished. Then the damaged file is renamed aside, and the finished one takes its name. The next start
//! deletes an unfinished file, and continues the replacement if it finds a finished one.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use hearsay_services::journal::Projection;

use super::salvage::salvage;
use crate::{
    journal::{
        read_only::lacks_room,
        store::{database::Store, error::StoreError},
    },
    storage::is_full,
};

/// Suffixes of a database's files. The log is moved first: SQLite must never find it beside another database.
const PARTS: [&str; 3] = ["-wal", "-shm", ""];

/// Result of replacing a damaged database.
pub(crate) struct Replaced {
    /// Path to which the damaged database was moved.
    pub(crate) aside: PathBuf,
    /// Number of runs in the new database.
    pub(crate) runs: u64,
}

/// Why a damaged database was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplaceError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ReplaceError {
    /// Whether a full disk is the only cause.
    pub(crate) fn lacks_room(&self, path: &Path) -> bool {
        match self {
            Self::Store(StoreError::Database(error)) => lacks_room(path, error),
            Self::Store(_) => false,
            Self::Io(error) => is_full(error),
        }
    }
}

/// Replaces the database at `path` by a new one with its sound runs.
///
/// # Errors
/// Either nothing has changed, or the next [`resume`] finishes the replacement.
pub(crate) fn replace_damaged(
    path: &Path,
    cluster: &str,
    topic: &str,
    projection: &dyn Projection,
) -> Result<Replaced, ReplaceError> {
    let begun = begun(path);
    remove(&begun)?;
    let take = || -> Result<u64, ReplaceError> {
        let mut store = Store::open(&begun, cluster, topic, projection)?;
        let runs = salvage(path, &mut store, projection)?;
        store.close().map_err(StoreError::from)?;
        File::open(&begun)?.sync_all()?;
        Ok(runs)
    };
    let runs = take().inspect_err(|_| {
        // The unfinished file takes room on a disk that may be full. If it cannot be removed now, the next
        // attempt removes it.
        _ = remove(&begun);
    })?;
    fs::rename(&begun, finished(path))?;
    sync_around(path)?;
    Ok(Replaced { aside: change_places(path)?, runs })
}

/// Finishes an interrupted replacement, before the database is opened. Returns the path of the damaged
/// database, if it was replaced.
///
/// # Errors
/// The error of the system. The database must not be opened.
pub(crate) fn resume(path: &Path) -> io::Result<Option<PathBuf>> {
    remove(&begun(path))?;
    if finished(path).exists() { change_places(path).map(Some) } else { Ok(None) }
}

fn begun(path: &Path) -> PathBuf {
    path.with_extension("mending")
}

fn finished(path: &Path) -> PathBuf {
    path.with_extension("mended")
}

/// Returns a free name for a damaged database; `None`: there are too many already.
pub(crate) fn name_aside(path: &Path) -> Option<PathBuf> {
    (1..1000).map(|n| path.with_extension(format!("damaged-{n}"))).find(|aside| !aside.exists())
}

fn part(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn change_places(path: &Path) -> io::Result<PathBuf> {
    let aside = name_aside(path).ok_or_else(|| {
        io::Error::other(format!("too many damaged databases beside {}; move them away", path.display()))
    })?;
    for suffix in PARTS {
        absent_is_fine(fs::rename(part(path, suffix), part(&aside, suffix)))?;
    }
    // Without this sync, a power failure could keep the last rename and lose an earlier one.
    sync_around(path)?;
    fs::rename(finished(path), path)?;
    sync_around(path)?;
    Ok(aside)
}

fn remove(path: &Path) -> io::Result<()> {
    PARTS.iter().try_for_each(|suffix| absent_is_fine(fs::remove_file(part(path, suffix))))
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn sync_around(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
