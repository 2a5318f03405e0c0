//! [`Storage`]: a node's state on disk (its key, its last incarnation, known members, and the API token), and
//! the choice of its data directory.
//!
//! | file | holds | if it is damaged |
//! | --- | --- | --- |
//! | `lock` | the lock, and the pid of its holder | is written again |
//! | `node.key` | the Ed25519 seed, 0600 | the start is refused: a new key would be another node |
//! | `incarnation-slots` | the last incarnation used, twice | the other slot counts; with both damaged the start is refused |
//! | `incarnation` | the same for versions before the slots | the slots count; without them the start is refused |
//! | `peers.json` | members to dial first | a warning |
//! | `api-token` | the secret that writes from other hosts must present, 0600 | the start is refused |
//! | `journal/` | the databases of its plug-ins (`journal`) | they are put aside, and come back from other replicas |
//! | `events/` | log records made while no log node was reachable (`log_shipper`) | the readable ones are shipped |
//!
//! The incarnation is written *before* it is used. Otherwise, after a crash in between, the next life could
//! begin with the same number. Its entries would then lose against those of the last life. The incarnation is
//! the wall clock in milliseconds, forced above the last one, so a clock that was set back does no harm. A
//! restart needs no free space, because the slots are overwritten in place (`incarnation`).
//!
//! An ephemeral node keeps all this in memory and writes nothing.
//!
//! No other user can read these files. The process has the umask 077. A directory that other users can read
//! is closed to them. A directory that they can write, or that belongs to another user, is refused.

mod error;
mod file;
mod incarnation;
mod layout;
mod node_key;
mod peers;
mod private_file;
mod secret;
mod slot;

use std::path::{Path, PathBuf};

use hearsay_protocol::Incarnation;

pub use error::StorageError;
pub(crate) use file::{Content, PRIVATE, PRIVATE_DIR, is_full, make_dir, read as read_file, restrict_umask};
pub use layout::SLOTS_MAX;
use layout::{INCARNATION_MS_MAX, NODE_KEY};
pub use peers::{REMEMBERED_MAX, Remembered};
use private_file::read_private;
pub use secret::Secret;
pub(crate) use slot::Lock;

/// Distance of a new incarnation from the last one, if the wall clock is not ahead of the last one. The
/// provider table's index starts at the incarnation in microseconds, so sixty million changes of the last
/// life have lower indexes.
const BEHIND_MS: u64 = 60_000;

/// Where a node keeps its state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DataDir {
    /// The first free slot of the cluster under this directory.
    Slots(PathBuf),
    /// Always this directory.
    Exactly(PathBuf),
    /// No directory: the node has a new key at every start.
    Ephemeral,
}

impl DataDir {
    /// Returns the existing directories of nodes of a cluster.
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

/// Locks an existing data directory against all nodes.
///
/// # Errors
/// A node uses the directory, or it cannot be written.
pub(crate) fn lock(dir: &Path) -> Result<Lock, StorageError> {
    slot::lock_dir(dir)
}

/// A node's state. Its directory is locked against other nodes until this value is dropped.
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
    /// Locks the directory, and creates missing files.
    ///
    /// # Errors
    /// The directory is in use or not writable, or one of its files is damaged. See [`StorageError`] for the
    /// state of the files.
    pub fn open(data_dir: &DataDir, cluster: &str) -> Result<Self, StorageError> {
        let home = match data_dir {
            DataDir::Ephemeral => None,
            DataDir::Exactly(dir) => Some(Home { dir: dir.clone(), _lock: slot::lock_dir(dir)? }),
            DataDir::Slots(under) => {
                let (dir, lock) = slot::lock_first_free(&under.join(dir_name(cluster)))?;
                Some(Home { dir, _lock: lock })
            }
        };
        let (seed, api_token, last_incarnation_ms) = match &home {
            None => (Secret::random()?, Secret::random()?.to_hex(), 0),
            Some(Home { dir, .. }) => (
                node_key::read_or_create(&dir.join(NODE_KEY))?,
                read_or_create_token(&dir.join("api-token"))?,
                incarnation::read_last(dir)?,
            ),
        };
        Ok(Self { cluster: cluster.to_owned(), home, seed, api_token, last_incarnation_ms })
    }

    /// Returns the directory; `None` for an ephemeral node.
    pub fn dir(&self) -> Option<&Path> {
        self.home.as_ref().map(|home| home.dir.as_path())
    }

    /// Returns the seed of the node's key.
    pub fn seed(&self) -> &Secret<[u8; 32]> {
        &self.seed
    }

    /// Returns the API token, which writes from other hosts must present.
    pub fn api_token(&self) -> &Secret<String> {
        &self.api_token
    }

    /// Whether a node has run under this key before. A copy of its data directory has the key, too.
    pub fn has_run(&self) -> bool {
        self.last_incarnation_ms > 0
    }

    /// Returns a new incarnation, above all earlier ones and synced to disk. `now_ms` is the wall clock since
    /// 1970.
    ///
    /// # Errors
    /// The incarnation could not be written, and must not be used.
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

    /// Stores the first [`REMEMBERED_MAX`] of these members for the next start, in place of those stored
    /// before.
    ///
    /// # Errors
    /// The members could not be written; those stored before remain.
    pub fn remember(&self, peers: &[Remembered]) -> Result<(), StorageError> {
        let Some(path) = self.path("peers.json") else { return Ok(()) };
        peers::write(&path, &self.cluster, peers).map_err(|source| StorageError::Unwritable { path, source })
    }

    /// Returns the members that [`remember`](Self::remember) stored last. An unreadable file causes a
    /// warning.
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

/// Returns the directory name of a cluster. A cluster may be called `..`, so a leading dot is
/// percent-encoded. Cluster names hold no `%`, so no two clusters share a directory.
pub(crate) fn dir_name(cluster: &str) -> String {
    match cluster.strip_prefix('.') {
        Some(rest) => format!("%2e{rest}"),
        None => cluster.to_owned(),
    }
}

/// Reads a file with an API token that several nodes share. Also returns whether other users can read it:
/// secrets that an orchestrator mounts often are readable within their container.
///
/// # Errors
/// The file is missing, unreadable, or holds no token.
pub fn read_token(path: &Path) -> Result<(Secret<String>, bool), StorageError> {
    let unreadable = |source| StorageError::Unreadable { path: path.to_owned(), source };
    let content = file::read(path, 4096).map_err(unreadable)?;
    let content = content.ok_or_else(|| unreadable(std::io::ErrorKind::NotFound.into()))?;
    Ok((parse_token(path, &content)?, content.is_too_open()))
}

fn parse_token(path: &Path, content: &Content) -> Result<Secret<String>, StorageError> {
    let token = Secret::from_hex(content.text.trim_end());
    let problem = "expected 64 hexadecimal digits".to_owned();
    token.map(|token| token.to_hex()).ok_or(StorageError::Damaged { path: path.to_owned(), problem })
}

fn read_or_create_token(path: &Path) -> Result<Secret<String>, StorageError> {
    match read_private(path)? {
        Some(content) => parse_token(path, &content),
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
