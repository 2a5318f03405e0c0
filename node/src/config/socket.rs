//! [`SocketChoice`]: whether and where a node creates its Unix socket (`--socket`), and the directories in
//! which sockets are created and searched.

use std::path::PathBuf;

use super::options::Environment;

/// Directory that packages create for the sockets of all nodes.
pub(crate) const SOCKETS_DIR: &str = "/run/hearsay";
/// The value of `--socket` for no socket.
const OFF: &str = "none";

/// Location of a node's socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SocketChoice {
    /// No socket.
    Off,
    /// This path, or in this directory.
    At(PathBuf),
    /// In the first usable directory.
    Default {
        /// Directories to try before the data directory.
        before: Vec<PathBuf>,
        /// The directory for a node without a data directory.
        temporary: PathBuf,
    },
}

impl SocketChoice {
    /// Parses the option; not given or empty: the default.
    pub(super) fn read(text: Option<&str>, environment: &Environment) -> Self {
        match text.map(str::trim).filter(|text| !text.is_empty()) {
            Some(OFF) => Self::Off,
            Some(path) => Self::At(path.into()),
            None => Self::Default { before: shared_dirs(environment), temporary: temporary_dir(environment) },
        }
    }
}

/// Returns the directories to try before the data directory.
pub(crate) fn shared_dirs(environment: &Environment) -> Vec<PathBuf> {
    let runtime = environment.directory("XDG_RUNTIME_DIR").map(|directory| directory.join("hearsay"));
    [SOCKETS_DIR.into()].into_iter().chain(runtime).collect()
}

/// Returns the directory for a node without a data directory.
pub(crate) fn temporary_dir(environment: &Environment) -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    environment.directory("TMPDIR").unwrap_or_else(|| "/tmp".into()).join(format!("hearsay-{uid}"))
}
