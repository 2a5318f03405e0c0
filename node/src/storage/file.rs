//! Reads small files whole within a bound, replaces them atomically, and creates directories.
//!
//! A file that is written in place may be half written after a crash. So new content is written to a
//! temporary file in the same directory, synced, and renamed. Then the directory is synced, because a power
//! failure could undo the rename. For the same reason the parent of a new directory is synced.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::Mode;
use zeroize::Zeroizing;

/// Mode of a file that only its owner reads.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of a file that all users read.
pub(crate) const PUBLIC: u32 = 0o644;
/// Mode of a directory that only its owner uses.
pub(crate) const PRIVATE_DIR: u32 = 0o700;

/// Makes all files and directories that this process creates private to its user, also those of libraries
/// (SQLite).
pub(crate) fn restrict_umask() {
    rustix::process::umask(Mode::from_raw_mode(0o077));
}

/// The text and mode of a file. The text is wiped when dropped, since it may be a key.
pub(crate) struct Content {
    pub(crate) text: Zeroizing<String>,
    /// The permission bits.
    pub(crate) mode: u32,
}

impl Content {
    /// Whether other users may read or write the file.
    pub(crate) fn is_too_open(&self) -> bool {
        self.mode & 0o077 != 0
    }
}

/// Mark that editors on Windows write before UTF-8. It is not part of the text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Reads a text file of at most `bytes_max`, without a byte order mark. `None`: there is no such file.
pub(crate) fn read(path: &Path, bytes_max: usize) -> io::Result<Option<Content>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mode = file.metadata()?.mode() & 0o7777;
    // One byte more than the bound shows that a file is too long. The buffer is reserved in advance, so that
    // growing it leaves no copies of a key in memory.
    let mut text = Zeroizing::new(String::with_capacity((bytes_max + 1).min(4096)));
    file.take(bytes_max as u64 + 1).read_to_string(&mut text)?;
    if text.len() > bytes_max {
        return Err(io::Error::other(format!("it is longer than {bytes_max} bytes")));
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(Some(Content { text, mode }))
}

/// Whether the system refused a write because the disk or the user's quota is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Replaces a file's content atomically, and syncs it.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let mut temporary = name.to_owned();
    temporary.push(".tmp");
    let temporary = dir.join(temporary);
    // A crash may have left a temporary file with other permissions. The directory is locked, so no node is
    // writing that file.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_new(&temporary, content, mode).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The old content is still stored; the failed attempt should not use space on a full disk.
        _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(dir)?.sync_all()
}

/// Creates a directory and its missing parents, and syncs their names.
///
/// # Errors
/// The error of the system.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    if dir.is_dir() {
        // The process that created the directory may have died before syncing the parent. The parent may
        // belong to another user and be unreadable, so errors are ignored.
        _ = File::open(parent).and_then(|parent| parent.sync_all());
        return Ok(());
    }
    make_dir(parent, mode)?;
    match DirBuilder::new().mode(mode).create(dir) {
        // Another node was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        made => made?,
    }
    File::open(parent)?.sync_all()
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_and_keeps_the_mode_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write(&path, b"a long first content", PUBLIC).unwrap();
        write(&path, b"short", PRIVATE).unwrap();
        let content = read(&path, 5).unwrap().unwrap();
        assert_eq!(content.text.as_str(), "short");
        assert!(!content.is_too_open());
    }

    #[test]
    fn a_directory_is_created_with_its_parents_and_once_more_without_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        make_dir(&deep, PRIVATE_DIR).unwrap();
        make_dir(&deep, PRIVATE_DIR).unwrap();
        for dir in [&deep, deep.parent().unwrap()] {
            assert_eq!(fs::metadata(dir).unwrap().mode() & 0o777, PRIVATE_DIR);
        }
        write(&dir.path().join("file"), b"", PUBLIC).unwrap();
        assert!(make_dir(&dir.path().join("file/in"), PRIVATE_DIR).is_err());
    }

    #[test]
    fn what_a_crash_left_behind_does_not_hinder_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.tmp"), "half").unwrap();
        write(&dir.path().join("x"), b"whole", PRIVATE).unwrap();
        assert!(!dir.path().join("x.tmp").exists());
    }

    #[test]
    fn a_file_over_the_bound_is_refused_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(read(&path, 10).unwrap().is_none());
        fs::write(&path, "0123456789a").unwrap();
        assert!(read(&path, 10).is_err());
    }
}
