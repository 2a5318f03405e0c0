//! Files that decide admission to the cluster: reads and generates the cluster key, and reads the list of
//! admitted nodes (`--allow`). The swarm enforces them: the key in its transport, the list in its behaviour.
//!
//! The key file has the format of libp2p's private networks (`libp2p/specs`,
//! `pnet/Private-Networks-PSK-V1.md`), so that other libp2p tools can read it. This module has its own
//! parser, because libp2p's parser panics on some malformed files: it slices the text at byte offsets that
//! can fall inside a character.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use hearsay_protocol::NodeId;
use libp2p::pnet::PreSharedKey;

use crate::storage::{Secret, read_file};

const KEY_PREFACE: [&str; 2] = ["/key/swarm/psk/1.0.0/", "/base16/"];
const KEY_FILE_BYTES_MAX: usize = 4096;
/// Largest list: about 50,000 ids. A cluster has a few thousand nodes at most.
const ALLOW_FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A key file or a list of admitted nodes cannot be used. The node must not start: it would admit more nodes
/// than its operator intended.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The key file is missing or cannot be read.
    #[error("cannot read the cluster key {}: {problem}", path.display())]
    KeyUnreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        problem: String,
    },
    /// The file is no cluster key.
    #[error("{} is not a cluster key: {problem}", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// The expected content.
        problem: &'static str,
    },
    /// The list is missing or cannot be read.
    #[error("cannot read the list of allowed nodes {}: {problem}", path.display())]
    ListUnreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        problem: String,
    },
    /// A line of the list is no node id.
    #[error("{}, line {line}: {problem}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The error in the line.
        problem: String,
    },
}

impl AdmissionError {
    /// Returns advice for the operator.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::KeyUnreadable { .. } | Self::NotAKey { .. } => {
                "create a key with `node keygen > cluster.key` and give the same file to every node of the cluster"
            }
            Self::ListUnreadable { .. } | Self::BadLine { .. } => {
                "list one id a line, as `node members --json` prints them; # begins a comment"
            }
        }
    }
}

/// Directories into which container engines and systemd mount secrets, with file modes of their choice.
/// Access is limited to the container or the unit.
const MOUNTED: [&str; 2] = ["/run/secrets", "/run/credentials"];

/// Cluster key: the secret of all nodes of a closed cluster. Without it no connection is made.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterKey(Secret<[u8; 32]>);

impl ClusterKey {
    /// Generates a key.
    ///
    /// # Errors
    /// The system provides no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        Secret::random().map(Self)
    }

    /// Reads a key file. The second value is a warning if other users can read the file. That is no error,
    /// because secrets that an orchestrator mounts are often readable within their container.
    ///
    /// # Errors
    /// The file is missing, unreadable, or not a key.
    pub fn read(path: &Path) -> Result<(Self, Option<String>), AdmissionError> {
        let unreadable = |problem: String| AdmissionError::KeyUnreadable { path: path.to_owned(), problem };
        let content = read_file(path, KEY_FILE_BYTES_MAX)
            .map_err(|error| unreadable(error.to_string()))?
            .ok_or_else(|| unreadable("there is no such file".into()))?;
        let key = Self::parse(&content.text)
            .map_err(|problem| AdmissionError::NotAKey { path: path.to_owned(), problem })?;
        let warning =
            (content.is_too_open() && !MOUNTED.iter().any(|dir| path.starts_with(dir))).then(|| {
                format!(
                    "other users can read the cluster key {} (mode {:03o}); run chmod 600 on it",
                    path.display(),
                    content.mode
                )
            });
        Ok((key, warning))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut lines = text.lines().map(str::trim_end);
        if [lines.next(), lines.next()] != KEY_PREFACE.map(Some) {
            return Err("it must begin with the lines /key/swarm/psk/1.0.0/ and /base16/");
        }
        lines
            .next()
            .and_then(Secret::from_hex)
            .map(Self)
            .ok_or("the third line must have 64 hexadecimal digits")
    }

    /// Returns the content of a key file.
    pub fn to_file(&self) -> Secret<String> {
        Secret::new(format!("{}\n{}\n{}\n", KEY_PREFACE[0], KEY_PREFACE[1], self.0.to_hex().expose()))
    }

    /// Returns the key for libp2p's private networks.
    pub fn to_pnet(&self) -> PreSharedKey {
        PreSharedKey::new(*self.0.expose())
    }
}

/// Reads the list of admitted nodes: one id a line, `#` begins a comment. An empty list admits no node.
///
/// # Errors
/// Names the file and the malformed line.
pub fn read_allowed(path: &Path) -> Result<BTreeSet<NodeId>, AdmissionError> {
    let unreadable = |problem: String| AdmissionError::ListUnreadable { path: path.to_owned(), problem };
    let content = read_file(path, ALLOW_FILE_BYTES_MAX)
        .map_err(|error| unreadable(error.to_string()))?
        .ok_or_else(|| unreadable("there is no such file".into()))?;
    let ids = content.text.lines().enumerate().filter_map(|(index, line)| {
        let id = line.split('#').next().unwrap_or_default().trim();
        let bad_line = |error: hearsay_protocol::NotANodeId| AdmissionError::BadLine {
            path: path.to_owned(),
            line: index + 1,
            problem: error.to_string(),
        };
        (!id.is_empty()).then(|| id.parse().map_err(bad_line))
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use hearsay_protocol::Identity;

    use super::*;

    fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_key_that_keygen_made_is_read_by_us_and_by_libp2p_alike() {
        let key = ClusterKey::random().unwrap();
        let (_dir, path) = file(key.to_file().expose());
        assert_eq!(ClusterKey::read(&path).unwrap(), (key.clone(), None));
        assert_eq!(key.to_file().expose().parse::<PreSharedKey>().unwrap(), key.to_pnet());
    }

    #[test]
    fn a_key_and_a_list_that_an_editor_on_windows_saved_are_read() {
        let key = ClusterKey::random().unwrap();
        let (_dir, path) = file(&format!("\u{feff}{}", key.to_file().expose().replace('\n', "\r\n")));
        assert_eq!(ClusterKey::read(&path).unwrap(), (key, None));
        let id = Identity::from_seed(&[1; 32]).id();
        let (_dir, path) = file(&format!("\u{feff}{id}\r\n"));
        assert_eq!(read_allowed(&path).unwrap(), BTreeSet::from([id]));
    }

    #[test]
    fn a_wrong_key_file_is_named_and_says_how_to_make_one() {
        let preface = KEY_PREFACE.join("\n");
        for wrong in
            ["", "hello", &preface, &format!("{preface}\nxyz"), &format!("{preface}\n{}", "ä".repeat(32))]
        {
            let (_dir, path) = file(wrong);
            let error = ClusterKey::read(&path).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            assert!(error.advice().contains("node keygen"));
        }
        let missing = ClusterKey::read(Path::new("/nowhere/cluster.key")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/cluster.key"), "{missing}");
    }

    #[test]
    fn a_key_that_others_can_read_is_used_with_a_warning() {
        let (_dir, path) = file(ClusterKey::random().unwrap().to_file().expose());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let (_, warning) = ClusterKey::read(&path).unwrap();
        assert!(warning.unwrap().contains("644"));
    }

    #[test]
    fn a_list_takes_comments_and_a_bad_line_is_told_by_its_number() {
        let id = Identity::from_seed(&[1; 32]).id();
        let (_dir, path) = file(&format!("# ours\n\n{id} # the first\n"));
        assert_eq!(read_allowed(&path).unwrap(), BTreeSet::from([id]));
        let (_dir, path) = file(&format!("{id}\n12D3oops\n"));
        let error = read_allowed(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
