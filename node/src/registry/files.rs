//! Registrations in files of `--services-dir`: the state of each file. [`follower`] reads them.

pub(crate) mod follower;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// The states of the files.
#[derive(Debug, Default)]
pub struct Files(Mutex<BTreeMap<PathBuf, FileState>>);

/// The state of a file.
#[derive(Clone, Debug, Default)]
pub struct FileState {
    /// Of the content that was read last.
    hash: Option<blake3::Hash>,
    /// The ids that it registers.
    ids: BTreeSet<String>,
    /// Why its newest version is not in effect.
    pub error: Option<String>,
}

impl Files {
    /// Reads or changes the states.
    fn change<R>(&self, change: impl FnOnce(&mut BTreeMap<PathBuf, FileState>) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The files and why their newest version is not in effect, if it is not.
    pub fn list(&self) -> Vec<(PathBuf, Option<String>)> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().map(|(path, state)| (path.clone(), state.error.clone())).collect()
    }

    /// How many of them are not in effect.
    pub fn failing(&self) -> usize {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().filter(|state| state.error.is_some()).count()
    }
}
