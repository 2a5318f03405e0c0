//! Creates the Unix socket of a node with the permissions of the users that may connect, and finds the
//! sockets of nodes on this machine.
//!
//! The command line and programs of the machine reach a node over the socket without knowing a port. The
//! kernel reports the user of each connection (`SO_PEERCRED`, unix(7)). The file is `CLUSTER-PORT.sock` with
//! the port of HTTP, which is unique on a machine. It is in the first usable directory of these:
//!
//! | directory | users that may connect |
//! | --- | --- |
//! | `/run/hearsay`, if it exists | the group `hearsay` if the directory belongs to it, else the node's user |
//! | `$XDG_RUNTIME_DIR/hearsay` | the node's user |
//! | the data directory | the node's user |
//! | `$TMPDIR/hearsay-UID`, for a node that keeps nothing on disk | the node's user |
//!
//! A path that another process uses is not touched: the next directory is tried, or the start fails if the
//! path was given.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    config::{Environment, SOCKETS_DIR, SocketChoice, shared_dirs, temporary_dir},
    storage::dir_name,
};

/// Group whose members may connect if the directory belongs to it.
const GROUP: &str = "hearsay";
const SUFFIX: &str = ".sock";
/// Maximum number of connections that wait to be accepted: the kernel's default bound since Linux 5.4.
const BACKLOG: i32 = 4096;
/// Maximum number of files that are read from a directory. A guess, far above the number of nodes on a
/// machine.
const FILES_MAX: usize = 1024;

/// The socket cannot be opened at the given path. Nothing there was changed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error(
        "--socket {}: another process listens there. Choose another path, or leave --socket out",
        path.display()
    )]
    Live {
        /// The path.
        path: PathBuf,
    },
    /// The path is a file that is no socket.
    #[error("--socket {}: the file is no socket. Remove it, or choose another path", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused the path.
    #[error("--socket {}: {source}. Choose another path, or turn the socket off with --socket none", path.display())]
    Unusable {
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// The file of a socket, removed on drop unless another process has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |file: fs::Metadata| (file.dev(), file.ino()) == self.device_and_inode;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // If this fails, the next start recognises the file as stale.
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens the socket of the node of `cluster` whose HTTP listens at `port`. `None`: the socket is turned off,
/// or no directory is usable, which is logged.
///
/// # Errors
/// The given path cannot be used.
pub fn open(
    choice: &SocketChoice,
    cluster: &str,
    port: u16,
    data_dir: Option<&Path>,
) -> Result<Option<(SocketFile, UnixListener)>, SocketError> {
    let name = file_name(cluster, port);
    let (before, temporary) = match choice {
        SocketChoice::Off => return Ok(None),
        SocketChoice::At(path) if path.is_dir() => return bind(&path.join(name)).map(Some),
        SocketChoice::At(path) => return bind(path).map(Some),
        SocketChoice::Default { before, temporary } => (before, temporary),
    };
    let last = data_dir.unwrap_or(temporary);
    let mut problem = None;
    for directory in before.iter().map(PathBuf::as_path).chain([last]) {
        let is_temporary = directory == temporary;
        if !prepare(directory, is_temporary) {
            continue;
        }
        match bind(&directory.join(&name)) {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) => problem = Some(error),
        }
    }
    let problem = problem.map_or_else(|| "no usable directory".to_owned(), |error| error.to_string());
    tracing::warn!(problem, "this node has no Unix socket; local clients use HTTP on loopback");
    Ok(None)
}

/// The socket of a node on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FoundSocket {
    pub(crate) path: PathBuf,
    /// Port of the node's HTTP.
    pub(crate) port: u16,
}

/// Finds the sockets of this machine's nodes to which this user can connect, in the order of the directories.
pub(crate) fn find(environment: &Environment) -> Vec<FoundSocket> {
    let mut directories = shared_dirs(environment);
    directories.extend(slot_dirs(environment));
    directories.extend(Some(temporary_dir(environment)).filter(|directory| is_private(directory)));
    let files = directories.iter().flat_map(|directory| files_of(directory));
    let sockets = files.filter_map(|path| Some(FoundSocket { port: port_of(&path)?, path }));
    sockets.filter(|found| connect(&found.path).is_ok()).collect()
}

/// Returns the port of HTTP from the name of a socket.
pub(crate) fn port_of(path: &Path) -> Option<u16> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    name.rsplit_once('-')?.1.parse().ok()
}

/// Returns the default directories of sockets as text.
pub(crate) fn searched(environment: &Environment) -> String {
    let directories = shared_dirs(environment).into_iter().chain(state_dir(environment));
    directories.map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn file_name(cluster: &str, port: u16) -> String {
    format!("{}-{port}{SUFFIX}", dir_name(cluster))
}

fn state_dir(environment: &Environment) -> Option<PathBuf> {
    Some(environment.state_home()?.join("hearsay"))
}

/// Returns the default data directories of nodes: `STATE/hearsay/CLUSTER/SLOT`.
fn slot_dirs(environment: &Environment) -> Vec<PathBuf> {
    let clusters = state_dir(environment).map(|state| files_of(&state)).unwrap_or_default();
    clusters.iter().flat_map(|cluster| files_of(cluster)).collect()
}

/// Returns the files of a directory, sorted by name.
fn files_of(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.take(FILES_MAX).map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Prepares a directory for sockets and returns whether it is usable.
fn prepare(directory: &Path, is_temporary: bool) -> bool {
    if directory == Path::new(SOCKETS_DIR) || directory.is_dir() {
        // All users can write to the parent of the temporary directory, so another user may have created it.
        return directory.is_dir() && (!is_temporary || is_private(directory));
    }
    DirBuilder::new().mode(0o700).create(directory).is_ok()
}

/// Whether this user owns the directory and no other user may enter it.
fn is_private(directory: &Path) -> bool {
    fs::symlink_metadata(directory).is_ok_and(|found| {
        found.is_dir() && found.uid() == rustix::process::getuid().as_raw() && found.mode() & 0o077 == 0
    })
}

fn bind(path: &Path) -> Result<(SocketFile, UnixListener), SocketError> {
    remove_stale(path)?;
    let unusable = |source| SocketError::Unusable { path: path.to_owned(), source };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(unusable)?;
    socket.set_nonblocking(true).map_err(unusable)?;
    socket.bind(&SockAddr::unix(path).map_err(unusable)?).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => SocketError::Live { path: path.to_owned() },
        _ => unusable(error),
    })?;
    let opened = fs::symlink_metadata(path).and_then(|file| {
        let file = SocketFile { path: path.to_owned(), device_and_inode: (file.dev(), file.ino()) };
        // Connections are refused until listen(2), so none is accepted before the mode is set.
        permit(path)?;
        socket.listen(BACKLOG)?;
        Ok((file, socket.into()))
    });
    opened.map_err(unusable)
}

/// Removes the socket of a process that has ended.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let unusable = |source| SocketError::Unusable { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(SocketError::NoSocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match connect(path) {
        Ok(()) => Err(SocketError::Live { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(unusable)
        }
        Err(error) => Err(unusable(error)),
    }
}

/// Checks whether a process listens, without waiting: a full queue means that a process listens.
fn connect(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        connected => connected,
    }
}

/// Permits connections of the node's user, and of the group `hearsay` if the directory belongs to it.
fn permit(path: &Path) -> io::Result<()> {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let of_directory = path.parent().and_then(|parent| fs::metadata(parent).ok()).map(|found| found.gid());
    let group = group_id(&groups, GROUP).filter(|group| Some(*group) == of_directory);
    // The packaged node runs in this group, and its unit forbids chown(2).
    let is_of_group = |group: u32| fs::metadata(path).is_ok_and(|file| file.gid() == group);
    let mode = match group {
        // chown(2) fails for a user that is not in the group.
        Some(group) if is_of_group(group) || chown(path, None, Some(group)).is_ok() => 0o660,
        _ => 0o600,
    };
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Returns the id of a group from `/etc/group`, group(5).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    let fields = groups.lines().map(|line| line.split(':'));
    fields.into_iter().find_map(|mut fields| {
        if fields.next()? != name {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn environment(pairs: &[(&str, &Path)]) -> Environment {
        pairs.iter().map(|(name, value)| (*name, *value)).collect()
    }

    /// Returns a [`SocketChoice::Default`] without the system's directory, which may exist on this machine.
    fn default(before: &Path, temporary: &Path) -> SocketChoice {
        SocketChoice::Default { before: vec![before.to_owned()], temporary: temporary.to_owned() }
    }

    #[test]
    fn a_socket_is_for_its_user_is_found_by_its_port_and_goes_with_its_node() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("hearsay");
        let choice = default(&runtime, &dir.path().join("tmp"));
        let (file, _listener) = open(&choice, "shop", 7501, None).unwrap().unwrap();
        assert_eq!(file.path(), runtime.join("shop-7501.sock"));
        assert_eq!(fs::metadata(file.path()).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(file.path()).unwrap();
        let environment = environment(&[("XDG_RUNTIME_DIR", dir.path()), ("TMPDIR", dir.path())]);
        let expected = FoundSocket { path: file.path().to_owned(), port: 7501 };
        assert!(find(&environment).contains(&expected));
        let path = file.path().to_owned();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_is_named_and_a_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.sock");
        drop(UnixListener::bind(&path).unwrap());
        let at = SocketChoice::At(path.clone());
        let (first, _listener) = open(&at, "default", 7500, None).unwrap().unwrap();
        let error = open(&at, "default", 7500, None).unwrap_err();
        assert!(matches!(error, SocketError::Live { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "notes").unwrap();
        let error = open(&at, "default", 7500, None).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket { .. }), "{error}");
        drop(first);
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
    }

    #[test]
    fn where_a_directory_cannot_be_used_the_next_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let (data, temporary) = (dir.path().join("data"), dir.path().join("tmp"));
        fs::create_dir(&data).unwrap();
        let choice = default(&dir.path().join("missing/hearsay"), &temporary);
        let (kept, _listener) = open(&choice, ".x", 7500, Some(&data)).unwrap().unwrap();
        assert_eq!(kept.path(), data.join("%2ex-7500.sock"));
        let (ephemeral, _listener) = open(&choice, "default", 7500, None).unwrap().unwrap();
        assert_eq!(ephemeral.path(), temporary.join("default-7500.sock"));
        assert!(is_private(&temporary));
        // A directory in a place that all users can write to is used only if it is private to this user.
        fs::set_permissions(&temporary, Permissions::from_mode(0o755)).unwrap();
        assert!(open(&choice, "default", 7502, None).unwrap().is_none());
        assert!(open(&SocketChoice::Off, "default", 7503, Some(&data)).unwrap().is_none());
        let (in_directory, _listener) =
            open(&SocketChoice::At(data.clone()), "default", 7504, None).unwrap().unwrap();
        assert_eq!(in_directory.path(), data.join("default-7504.sock"));
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error_where_it_was_given_and_passed_over_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let at = SocketChoice::At(dir.path().join("x".repeat(200)));
        assert!(matches!(open(&at, "default", 7500, None), Err(SocketError::Unusable { .. })));
        let choice = default(&dir.path().join("hearsay"), &dir.path().join("tmp"));
        assert!(open(&choice, &"c".repeat(128), 7500, None).unwrap().is_none());
    }

    #[test]
    fn the_group_is_read_from_the_systems_file() {
        let groups = "root:x:0:\nhearsays:x:7:\nhearsay:x:990:ann,bob\n";
        assert_eq!(group_id(groups, "hearsay"), Some(990));
        assert_eq!(group_id("root:x:0:\n", "hearsay"), None);
        assert_eq!(port_of(Path::new("/run/hearsay/a-b-7500.sock")), Some(7500));
        assert_eq!(port_of(Path::new("/run/hearsay/other.sock")), None);
    }
}
