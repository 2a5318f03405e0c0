//! [`StorageError`]: why a node's state on disk cannot be read or written, with advice to the operator.

use std::{io, path::PathBuf};

use super::{
    file,
    layout::{INCARNATION, INCARNATION_SLOTS, NODE_KEY, SLOTS_MAX},
};

/// Why a node's state could not be read or written, and the state of the files.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another node uses this directory. Nothing in it was touched.
    #[error("the data directory {} is in use by another node{}", dir.display(), pid(*holder))]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process that holds it, if it could be read.
        holder: Option<u32>,
    },
    /// Every slot is in use.
    #[error("all {SLOTS_MAX} slots under {} are in use", under.display())]
    NoFreeSlot {
        /// The directory of the slots.
        under: PathBuf,
    },
    /// A file or directory could not be written. Its old content is still there.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file exists and could not be read. It was not touched.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Other users can read or write a secret. It was not used.
    #[error("{} can be read or written by others (mode {mode:03o})", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// The file's permission bits.
        mode: u32,
    },
    /// The data directory belongs to another user, who could change its files. Nothing in it was touched.
    #[error("the data directory {} belongs to user {owner}, and this process runs as user {user}", dir.display())]
    ForeignDir {
        /// The directory.
        dir: PathBuf,
        /// The owner.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Other users could replace files in the data directory. Nothing in it was touched.
    #[error("the data directory {} can be written by other users (mode {mode:04o})", dir.display())]
    WritableDir {
        /// The directory.
        dir: PathBuf,
        /// The directory's permission bits.
        mode: u32,
    },
    /// The content of a file is invalid. The file was not touched, so that an operator can look at it.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// The system has no random numbers, so no key was created.
    #[error("the system gave no randomness for a key: {0}")]
    NoRandomness(#[from] getrandom::Error),
}

fn pid(holder: Option<u32>) -> String {
    holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl StorageError {
    /// Returns advice to the operator.
    pub fn advice(&self) -> String {
        match self {
            Self::Locked { .. } => {
                "stop that node, or give this one a directory of its own with --data-dir".into()
            }
            Self::NoFreeSlot { .. } => "name a directory with --data-dir, or run with --ephemeral".into(),
            Self::Unwritable { path, source } if file::is_full(source) => {
                format!(
                    "free some space on the disk of {}, or name a directory on another disk with --data-dir",
                    path.display()
                )
            }
            Self::Unwritable { .. } => {
                "let this user write there, name another directory with --data-dir, or run with --ephemeral"
                    .into()
            }
            Self::Unreadable { .. } => {
                "let this user read it, or name another directory with --data-dir".into()
            }
            Self::TooOpen { path, .. } => {
                format!("chmod 600 {} (and replace it, if another user may have copied it)", path.display())
            }
            Self::ForeignDir { dir, owner, .. } => format!(
                "run it as user {owner}, or name a directory of its own with --data-dir; in a volume whose root stays as it is, \
                 --data-dir {}/state is one that the node makes",
                dir.display()
            ),
            Self::WritableDir { dir, .. } => format!(
                "make sure that no other user changed its files, then run: chmod 700 {0}; where that is undone (a volume with fsGroup), \
                 name a directory inside it that the node makes: --data-dir {0}/state",
                dir.display()
            ),
            Self::Damaged { path, .. } if path.ends_with(NODE_KEY) => {
                "restore it from a backup, or remove it: the node then comes back as a new one".into()
            }
            Self::Damaged { path, .. }
                if path.ends_with(INCARNATION) || path.ends_with(INCARNATION_SLOTS) =>
            {
                "make sure that the clock is right, then remove this file".into()
            }
            Self::Damaged { .. } => "remove it; the node creates it again".into(),
            Self::NoRandomness(_) => "this machine cannot run a node safely".into(),
        }
    }
}
