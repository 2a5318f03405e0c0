//! A new database in the place of a damaged one, whatever is killed meanwhile.
//!
//! What is sound is taken over into a file under another name. Only when that is finished and synced the two change places, by renaming; and the name of
//! a finished one says so, so that the next start goes on with what was interrupted. Until then the damaged one stays where it is, and
//! with it everything that only it has.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use hearsay_services::journal::Projection;

use super::{
    read_only::lacks_room,
    salvage::salvage,
    store::{Store, StoreError},
};
use crate::storage::is_full;

/// What belongs to a database, the log first: it must never stand beside another one.
const PARTS: [&str; 3] = ["-wal", "-shm", ""];

/// What became of a damaged database.
pub(super) struct Mended {
    /// Where it is now.
    pub(super) aside: PathBuf,
    /// How many runs of it were taken over.
    pub(super) runs: u64,
}

/// Why a damaged database is still in its place.
#[derive(Debug, thiserror::Error)]
pub(super) enum MendError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl MendError {
    /// Whether the disk of this file is full, and nothing else is wrong.
    pub(super) fn lacks_room(&self, path: &Path) -> bool {
        match self {
            Self::Store(StoreError::Database(error)) => lacks_room(path, error),
            Self::Store(_) => false,
            Self::Io(error) => is_full(error),
        }
    }
}

/// Puts a database of all that is sound in the one at `path` into its place.
///
/// # Errors
/// Nothing has changed, or the next [`resume`] goes on.
pub(super) fn mend(
    path: &Path,
    cluster: &str,
    topic: &str,
    projection: &dyn Projection,
) -> Result<Mended, MendError> {
    let begun = begun(path);
    remove(&begun)?;
    let take = || -> Result<u64, MendError> {
        let mut store = Store::open(&begun, cluster, topic, projection)?;
        let runs = salvage(path, &mut store, projection)?;
        store.close().map_err(StoreError::from)?;
        File::open(&begun)?.sync_all()?;
        Ok(runs)
    };
    let runs = take().inspect_err(|_| {
        // It takes up room on what may be a full disk; what cannot be removed now is removed by the next attempt.
        _ = remove(&begun);
    })?;
    fs::rename(&begun, finished(path))?;
    sync_around(path)?;
    Ok(Mended { aside: change_places(path)?, runs })
}

/// Goes on with what was interrupted, before the database is opened. Returns where the damaged one is now, if it was replaced.
///
/// # Errors
/// What the system said; the database must not be opened.
pub(super) fn resume(path: &Path) -> io::Result<Option<PathBuf>> {
    remove(&begun(path))?;
    if finished(path).exists() { change_places(path).map(Some) } else { Ok(None) }
}

fn begun(path: &Path) -> PathBuf {
    path.with_extension("mending")
}

fn finished(path: &Path) -> PathBuf {
    path.with_extension("mended")
}

/// A free name beside a database that is damaged. `None`: there are too many already.
pub(super) fn name_aside(path: &Path) -> Option<PathBuf> {
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
    // Else the last step could be remembered, and one before it forgotten.
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
