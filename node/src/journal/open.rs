//! Opens a topic's database: for writing, read-only while its disk is full, or replaced after damage.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hearsay_protocol::journal::RestoredJournal;
use hearsay_services::journal::{Projection, Readers};

use super::{
    integrity::{
        replace_damaged::{ReplaceError, Replaced, replace_damaged, resume},
        wal,
    },
    read_only,
    store::{database::Store, error::StoreError},
};

/// Why a topic's database could not be opened for writing.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The disk of the file is full. Every acknowledged entry is still in the file.
    #[error("the disk of {} is full ({problem}); free some space on it", path.display())]
    NoRoom { path: PathBuf, problem: String },
    /// Any other reason. The file was not touched.
    #[error("cannot use {}: {problem}; move it away, or name another --data-dir", path.display())]
    Unusable { path: PathBuf, problem: String },
}

impl OpenError {
    fn new(path: &Path, error: &ReplaceError) -> Self {
        let (path, problem, lacks_room) = (path.to_owned(), error.to_string(), error.lacks_room(path));
        if lacks_room { Self::NoRoom { path, problem } } else { Self::Unusable { path, problem } }
    }
}

/// Opens a topic's database read-only while its disk is full, for the worker and for readers. Returns `None`
/// if the database cannot be read until the disk has room; readers then get that reason.
pub(super) fn open_read_only(
    path: &Path,
    (cluster, topic): (&str, &str),
    projection: &dyn Projection,
    readers: &Readers,
) -> Option<(Store, RestoredJournal)> {
    let opened = Store::open_read_only(path, cluster, topic, projection).and_then(|store| {
        let restored = store.restored()?;
        Ok((store, restored))
    });
    match opened {
        Ok(opened) => {
            readers.set_opener(Some(Arc::new(read_only::connect)));
            Some(opened)
        }
        Err(error) => {
            let problem = format!("its disk is full, so it is not opened before there is room ({error})");
            tracing::error!(topic, problem, "the topic cannot be read");
            readers.set_opener(Some(Arc::new(move |_: &Path| {
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                Err(rusqlite::Error::SqliteFailure(full, Some(problem.clone())))
            })));
            None
        }
    }
}

/// Opens a topic's database. A damaged database is put aside, and a new one gets its sound runs. The other
/// runs come from other replicas.
///
/// # Errors
/// See [`OpenError`] for the state of the file.
pub(super) fn open(
    path: &Path,
    topic: &str,
    projection: &dyn Projection,
    cluster: &str,
) -> Result<(Store, RestoredJournal), OpenError> {
    let failed = |error: ReplaceError| OpenError::new(path, &error);
    let attempt = || -> Result<(Store, RestoredJournal), StoreError> {
        let store = Store::open(path, cluster, topic, projection)?;
        let restored = store.restored()?;
        Ok((store, restored))
    };
    if let Some(aside) = resume(path).map_err(|error| failed(error.into()))? {
        tracing::warn!(topic, kept = %aside.display(), "finished the interrupted replacement of a damaged database");
    }
    if !read_only::has_room(path) {
        let problem = format!("it has less than {} KiB of room", read_only::ROOM_BYTES / 1024);
        return Err(OpenError::NoRoom { path: path.to_owned(), problem });
    }
    let damage = if wal::is_stale(path).map_err(|error| failed(error.into()))? {
        "its write-ahead log is older than the pages already copied from it".to_owned()
    } else {
        match attempt() {
            Ok(opened) => return Ok(opened),
            Err(StoreError::Damaged(error)) => error.to_string(),
            Err(error) => return Err(failed(error.into())),
        }
    };
    let replaced = replace_damaged(path, cluster, topic, projection).map_err(failed)?;
    let opened = attempt().map_err(|error| failed(error.into()))?;
    log_damage(topic, &damage, &replaced);
    Ok(opened)
}

/// Logs that a damaged database was replaced.
pub(super) fn log_damage(topic: &str, error: &str, replaced: &Replaced) {
    tracing::error!(
        topic,
        error,
        kept = %replaced.aside.display(),
        runs_taken_over = replaced.runs,
        "the journal's database is damaged; it was put aside, and what other replicas have comes back from them"
    );
}
