//! [`Files`]: state of each file of `--services-dir` (content hash, instances, error), which [`watcher`]
//! updates.

pub(crate) mod watcher;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// States of all files, by path.
#[derive(Debug, Default)]
pub struct Files(Mutex<BTreeMap<PathBuf, FileState>>);

/// State of a file.
#[derive(Clone, Debug, Default)]
pub struct FileState {
    /// Hash of the content in effect, or of the last bad content.
    hash: Option<blake3::Hash>,
    /// Ids of the instances that the file registers.
    ids: BTreeSet<String>,
    /// Why the newest version is not in effect.
    pub error: Option<String>,
}

impl Files {
    /// Reads or changes the states under the lock.
    fn change<R>(&self, change: impl FnOnce(&mut BTreeMap<PathBuf, FileState>) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns each file with the reason why its newest version is not in effect, if so.
    pub fn list(&self) -> Vec<(PathBuf, Option<String>)> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().map(|(path, state)| (path.clone(), state.error.clone())).collect()
    }

    /// Returns the number of files whose newest version is not in effect.
    pub fn failing(&self) -> usize {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().filter(|state| state.error.is_some()).count()
    }
}
