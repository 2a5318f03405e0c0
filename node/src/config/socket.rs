//! Where a node's Unix socket may be: `--socket`, or the directories of this user and machine.

use std::path::PathBuf;

use super::options::Environment;

/// Where packages make a directory for the sockets of all nodes.
pub(crate) const SOCKETS_DIR: &str = "/run/hearsay";
/// What turns the socket off.
const OFF: &str = "none";

/// Where a node's socket is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SocketChoice {
    /// Nowhere.
    Off,
    /// At this path, or in this directory.
    At(PathBuf),
    /// In the first directory that can be used.
    Default {
        /// Directories that precede the data directory.
        before: Vec<PathBuf>,
        /// The directory of a node without a data directory.
        temporary: PathBuf,
    },
}

impl SocketChoice {
    /// Reads the option; one that says nothing is the default.
    pub(super) fn read(text: Option<&str>, environment: &Environment) -> Self {
        match text.map(str::trim).filter(|text| !text.is_empty()) {
            Some(OFF) => Self::Off,
            Some(path) => Self::At(path.into()),
            None => Self::Default { before: shared_dirs(environment), temporary: temporary_dir(environment) },
        }
    }
}

/// The directories that precede the data directory.
pub(crate) fn shared_dirs(environment: &Environment) -> Vec<PathBuf> {
    let runtime = environment.directory("XDG_RUNTIME_DIR").map(|directory| directory.join("hearsay"));
    [SOCKETS_DIR.into()].into_iter().chain(runtime).collect()
}

/// The directory of a node without a data directory.
pub(crate) fn temporary_dir(environment: &Environment) -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    environment.directory("TMPDIR").unwrap_or_else(|| "/tmp".into()).join(format!("hearsay-{uid}"))
}
