//! What a node keeps over a restart: who it is, which life this is, whom it knew, and what its owner presents.
//!
//! | file | holds | if it is damaged |
//! | --- | --- | --- |
//! | `lock` | the lock, and the pid of its holder | is written anew |
//! | `node.key` | the Ed25519 seed, 0600 | the start is refused: a new key would be another node |
//! | `incarnation-slots` | the last incarnation used, twice | the other slot counts; with both damaged the
//! start is refused |
//! | `incarnation` | the same for versions before the slots | the slots count; without them the start is
//! refused |
//! | `peers.json` | members to try first | a warning |
//! | `api-token` | what writes from elsewhere must present, 0600 | the start is refused |
//! | `journal/` | the databases of its plug-ins (`journal`) | they are put aside, and come back from other replicas |
//! | `events/` | what it said while no node kept the log (`shipping`) | what can be read is shipped |
//!
//! The incarnation is written *before* it is used. Written after, a crash in between would let the next life
//! begin with the same number, and what it then says would lose against what the last life said. (It is
//! milliseconds of wall time, forced above the last; so a clock that was set back does no harm.) A restart
//! needs no room for it: its slots are overwritten in place (`incarnation`).
//!
//! An ephemeral node has all this in memory and writes nothing.
//!
//! No other user can read any of this: the process has the umask 077, a directory that others can read is closed, and one that
//! they can write, or that belongs to another user, is refused.

mod file;
mod incarnation;
mod node_key;
mod peers;
mod secret;
mod slot;

use std::{
    io,
    path::{Path, PathBuf},
};

use hearsay_protocol::Incarnation;

pub(crate) use file::{Content, PRIVATE, PRIVATE_DIR, is_full, make_dir, read as read_file, restrict_umask};
pub use peers::{REMEMBERED_MAX, Remembered};
pub use secret::Secret;
pub(crate) use slot::Lock;
pub use slot::SLOTS_MAX;

/// The greatest incarnation there is, in milliseconds since 1970 (the year 2223). The provider table's index starts at it in microseconds and
/// must stay below 2^53, which is what JSON carries exactly.
const INCARNATION_MS_MAX: u64 = 8_000_000_000_000;

/// How far a life begins above the last where the clock says less: the table's index goes on in microseconds from there, so that sixty million
/// changes of the last life have lower ones.
const BEHIND_MS: u64 = 60_000;

/// Where a node keeps its state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DataDir {
    /// The first free slot of the cluster under this directory.
    Slots(PathBuf),
    /// This directory and no other.
    Exactly(PathBuf),
    /// Nowhere: a new identity at every start, gone with the process.
    Ephemeral,
}

/// Why a node's state could not be read or written, and what has become of it.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another node runs on this directory. Nothing in it was touched.
    #[error("the data directory {} is in use by another node{}", dir.display(), pid(*holder))]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process that holds it, where it could be read.
        holder: Option<u32>,
    },
    /// Every slot is taken.
    #[error("all {SLOTS_MAX} slots under {} are in use", under.display())]
    NoFreeSlot {
        /// The directory of the slots.
        under: PathBuf,
    },
    /// A file or directory could not be written. What it held before is still there.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there and could not be read. It was not touched.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A secret that others may read is none. It was not used.
    #[error("{} can be read or written by others (mode {mode:03o})", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The data directory is another user's, who could change what is in it. Nothing in it was touched.
    #[error("the data directory {} belongs to user {owner}, and this process runs as user {user}", dir.display())]
    ForeignDir {
        /// The directory.
        dir: PathBuf,
        /// The user that it belongs to.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Other users could replace what is in the data directory. Nothing in it was touched.
    #[error("the data directory {} can be written by other users (mode {mode:04o})", dir.display())]
    WritableDir {
        /// The directory.
        dir: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file does not hold what it should. It was not touched, so that it can be looked at.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The system gave no randomness, so no key was made.
    #[error("the system gave no randomness for a key: {0}")]
    NoRandomness(#[from] getrandom::Error),
}

fn pid(holder: Option<u32>) -> String {
    holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl StorageError {
    /// What a person can do about it.
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
                format!("chmod 600 {} (and replace it, if somebody may have copied it)", path.display())
            }
            Self::ForeignDir { dir, owner, .. } => format!(
                "run it as user {owner}, or name a directory of its own with --data-dir; in a volume whose root stays as it is, \
                 --data-dir {}/state is one that the node makes",
                dir.display()
            ),
            Self::WritableDir { dir, .. } => format!(
                "make sure that nobody changed what is in it, then run: chmod 700 {0}; where that is undone (a volume with fsGroup), \
                 name a directory inside it that the node makes: --data-dir {0}/state",
                dir.display()
            ),
            Self::Damaged { path, .. } if path.ends_with("node.key") => {
                "restore it from a backup, or remove it: the node then comes back as a new one".into()
            }
            Self::Damaged { path, .. }
                if path.ends_with(incarnation::FILE) || path.ends_with(incarnation::SLOTS) =>
            {
                "make sure that the clock is right, then remove this file".into()
            }
            Self::Damaged { .. } => "remove it; it will be made anew".into(),
            Self::NoRandomness(_) => "this machine cannot run a node safely".into(),
        }
    }
}

impl DataDir {
    /// The directories in which nodes of a cluster have kept state, as far as they are there.
    pub(crate) fn existing(&self, cluster: &str) -> Vec<PathBuf> {
        let candidates = match self {
            Self::Ephemeral => Vec::new(),
            Self::Exactly(dir) => vec![dir.clone()],
            Self::Slots(under) => {
                let under = under.join(dir_name(cluster));
                (0..SLOTS_MAX).map(|slot| under.join(slot.to_string())).collect()
            }
        };
        candidates.into_iter().filter(|dir| dir.is_dir()).collect()
    }
}

/// Keeps every node out of a directory that is there, for as long as the lock lives.
///
/// # Errors
/// A node runs on it, or it cannot be written.
pub(crate) fn lock(dir: &Path) -> Result<Lock, StorageError> {
    slot::exactly(dir)
}

/// A node's state, locked against every other node for as long as this lives.
#[derive(Debug)]
pub struct Storage {
    cluster: String,
    home: Option<Home>,
    seed: Secret<[u8; 32]>,
    api_token: Secret<String>,
    last_incarnation_ms: u64,
}

#[derive(Debug)]
struct Home {
    dir: PathBuf,
    _lock: slot::Lock,
}

impl Storage {
    /// Locks the directory, and makes what is missing in it.
    ///
    /// # Errors
    /// The directory is taken, not writable, or holds something damaged. See [`StorageError`] for what became of it.
    pub fn open(data_dir: &DataDir, cluster: &str) -> Result<Self, StorageError> {
        let home = match data_dir {
            DataDir::Ephemeral => None,
            DataDir::Exactly(dir) => Some(Home { dir: dir.clone(), _lock: slot::exactly(dir)? }),
            DataDir::Slots(under) => {
                let (dir, lock) = slot::first_free(&under.join(dir_name(cluster)))?;
                Some(Home { dir, _lock: lock })
            }
        };
        let (seed, api_token, last_incarnation_ms) = match &home {
            None => (Secret::random()?, Secret::random()?.to_hex(), 0),
            Some(Home { dir, .. }) => (
                node_key::read_or_make(&dir.join("node.key"))?,
                read_or_make_token(&dir.join("api-token"))?,
                incarnation::read_last(dir)?,
            ),
        };
        Ok(Self { cluster: cluster.to_owned(), home, seed, api_token, last_incarnation_ms })
    }

    /// The directory; `None` where nothing is kept.
    pub fn dir(&self) -> Option<&Path> {
        self.home.as_ref().map(|home| home.dir.as_path())
    }

    /// The seed of the node's key.
    pub fn seed(&self) -> &Secret<[u8; 32]> {
        &self.seed
    }

    /// What a write from elsewhere than loopback must present.
    pub fn api_token(&self) -> &Secret<String> {
        &self.api_token
    }

    /// Whether a node has run under this key before. A copy of its data dir has it, too.
    pub fn has_run(&self) -> bool {
        self.last_incarnation_ms > 0
    }

    /// The incarnation of the life that begins at `now_ms` (since 1970, by the wall clock): above every one before. On disk when this returns.
    ///
    /// # Errors
    /// It could not be written, and must not be used.
    pub fn next_incarnation(&mut self, now_ms: u64) -> Result<Incarnation, StorageError> {
        let next = if now_ms > self.last_incarnation_ms {
            now_ms
        } else {
            self.last_incarnation_ms.saturating_add(BEHIND_MS)
        };
        let next = next.min(INCARNATION_MS_MAX);
        if let Some(home) = &self.home {
            incarnation::write_next(&home.dir, next)?;
        }
        self.last_incarnation_ms = next;
        Ok(Incarnation(next))
    }

    /// Keeps the first [`REMEMBERED_MAX`] of these for the next start, in place of those kept before.
    ///
    /// # Errors
    /// They could not be written; those kept before still are.
    pub fn remember(&self, peers: &[Remembered]) -> Result<(), StorageError> {
        let Some(path) = self.path("peers.json") else { return Ok(()) };
        peers::write(&path, &self.cluster, peers).map_err(|source| StorageError::Unwritable { path, source })
    }

    /// Whom [`remember`](Self::remember) kept last. What cannot be read is warned of and left out.
    pub fn remembered(&self) -> Vec<Remembered> {
        let Some(path) = self.path("peers.json") else { return Vec::new() };
        peers::read(&path, &self.cluster).unwrap_or_else(|problem| {
            tracing::warn!(path = %path.display(), problem, "starting without remembered members");
            Vec::new()
        })
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.dir.join(name))
    }
}

/// The directory of a cluster. A name such as `..` is a fine name and no fine directory, so a leading dot is spelt out; names hold no `%`,
/// so no two clusters share a directory.
pub(crate) fn dir_name(cluster: &str) -> String {
    match cluster.strip_prefix('.') {
        Some(rest) => format!("%2e{rest}"),
        None => cluster.to_owned(),
    }
}

/// Reads a file that is for its owner alone.
fn read_private(path: &Path) -> Result<Option<Content>, StorageError> {
    let content = file::read(path, 4096)
        .map_err(|source| StorageError::Unreadable { path: path.to_owned(), source })?;
    match content {
        Some(content) if content.is_too_open() => {
            Err(StorageError::TooOpen { path: path.to_owned(), mode: content.mode })
        }
        content => Ok(content),
    }
}

fn read_or_make_token(path: &Path) -> Result<Secret<String>, StorageError> {
    match read_private(path)? {
        Some(content) => match Secret::from_hex(content.text.trim_end()) {
            Some(token) => Ok(token.to_hex()),
            None => Err(StorageError::Damaged {
                path: path.to_owned(),
                problem: "expected 64 hexadecimal digits".into(),
            }),
        },
        None => {
            let token = Secret::random()?.to_hex();
            file::write(path, token.expose().as_bytes(), file::PRIVATE)
                .map_err(|source| StorageError::Unwritable { path: path.to_owned(), source })?;
            Ok(token)
        }
    }
}

#[cfg(test)]
mod tests;
