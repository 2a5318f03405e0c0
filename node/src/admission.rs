//! Who may join: the cluster's key, and the list of nodes to admit.
//!
//! The key file has the format that libp2p's private networks use everywhere (`libp2p/specs`, `pnet/Private-Networks-PSK-V1.md`), so that
//! other libp2p tools can read it. It is parsed by hand: the library's parser slices text without asking where its characters end, and
//! panics on some files that are no keys.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use hearsay_protocol::NodeId;
use libp2p::pnet::PreSharedKey;

use crate::storage::{Secret, read_file};

const KEY_PREFACE: [&str; 2] = ["/key/swarm/psk/1.0.0/", "/base16/"];
const KEY_FILE_BYTES_MAX: usize = 4096;
/// Room for some 50,000 ids; a cluster has at most a few thousand.
const ALLOW_FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a file that says who may join cannot be used. The node must not start: it would be more open than its owner meant.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The key file is missing or cannot be read.
    #[error("cannot read the cluster's key file {}: {problem}", path.display())]
    KeyUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// The file holds something else.
    #[error("{} is no cluster key: {problem}", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What is missing.
        problem: &'static str,
    },
    /// The list is missing or cannot be read.
    #[error("cannot read the list of allowed nodes {}: {problem}", path.display())]
    ListUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// A line of the list is no id.
    #[error("{}, line {line}: {problem}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl AdmissionError {
    /// What a person can do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::KeyUnreadable { .. } | Self::NotAKey { .. } => {
                "make one with `node keygen > cluster.key` and give the same file to every node of the cluster"
            }
            Self::ListUnreadable { .. } | Self::BadLine { .. } => {
                "list one id a line, as `node members --json` shows them; # starts a comment"
            }
        }
    }
}

/// Where container engines and systemd mount secrets, with modes of their own: who may look into the container, or the unit, may read them.
const MOUNTED: [&str; 2] = ["/run/secrets", "/run/credentials"];

/// What all nodes of a closed cluster share. Strangers cannot say so much as hello.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterKey(Secret<[u8; 32]>);

impl ClusterKey {
    /// A new one.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        Secret::random().map(Self)
    }

    /// Reads a key file, and says in words if others can read it too. That alone is no error: secrets that an orchestrator mounts often
    /// are readable within their container.
    ///
    /// # Errors
    /// The file is missing, unreadable, or no key.
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
                    "the cluster's key {} can be read by others (mode {:03o}); chmod 600 it",
                    path.display(),
                    content.mode
                )
            });
        Ok((key, warning))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut lines = text.lines().map(str::trim_end);
        if [lines.next(), lines.next()] != KEY_PREFACE.map(Some) {
            return Err("expected it to begin with the lines /key/swarm/psk/1.0.0/ and /base16/");
        }
        lines
            .next()
            .and_then(Secret::from_hex)
            .map(Self)
            .ok_or("expected 64 hexadecimal digits on the third line")
    }

    /// The content of a key file.
    pub fn to_file(&self) -> Secret<String> {
        Secret::new(format!("{}\n{}\n{}\n", KEY_PREFACE[0], KEY_PREFACE[1], self.0.to_hex().expose()))
    }

    /// For libp2p's private networks.
    pub fn to_pnet(&self) -> PreSharedKey {
        PreSharedKey::new(*self.0.expose())
    }
}

/// Reads the list of nodes to admit: one id a line, the rest of a line after `#` is a comment. An empty list admits nobody.
///
/// # Errors
/// Names the file, and the line that is wrong.
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
