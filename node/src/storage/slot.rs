//! Locks a data directory ([`Lock`]): a given one, or the first free numbered slot of a cluster.
//!
//! Two nodes with one directory would have one key. So a node locks its directory with `flock`, which the
//! kernel releases however the process ends. A node without `--data-dir` takes the first free slot of
//! `…/hearsay/<cluster>/0`, `1`, `2`…, so a restarted node finds its state.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::geteuid,
};

use super::{
    error::StorageError,
    file::{PRIVATE, PRIVATE_DIR, make_dir},
    layout::SLOTS_MAX,
};

/// Bytes of a lock file: a process id, padded with spaces, and a newline.
const HOLDER_BYTES: usize = 16;

/// The lock of a data directory, released when this value is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: File,
}

/// Locks the first free slot.
pub(super) fn lock_first_free(under: &Path) -> Result<(PathBuf, Lock), StorageError> {
    make_dir(under, PRIVATE_DIR)
        .map_err(|source| StorageError::Unwritable { path: under.to_owned(), source })?;
    close_to_others(under)?;
    for slot in 0..SLOTS_MAX {
        let dir = under.join(slot.to_string());
        match lock_dir(&dir) {
            Ok(lock) => return Ok((dir, lock)),
            Err(StorageError::Locked { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StorageError::NoFreeSlot { under: under.to_owned() })
}

/// Locks a directory, which is created if it does not exist.
pub(super) fn lock_dir(dir: &Path) -> Result<Lock, StorageError> {
    let failed = |source| StorageError::Unwritable { path: dir.to_owned(), source };
    // Private, because the directory will hold keys.
    make_dir(dir, PRIVATE_DIR).map_err(failed)?;
    close_to_others(dir)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(dir.join("lock"))
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(StorageError::Locked { dir: dir.to_owned(), holder: holder(&mut file) });
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    // The process id is for people; only the lock counts. Its text has a fixed length and is overwritten in
    // place: on a full disk, a truncated file may not get its block back.
    _ = file
        .rewind()
        .and_then(|()| writeln!(file, "{:<width$}", std::process::id(), width = HOLDER_BYTES - 1));
    Ok(Lock { _held: file })
}

/// Makes sure that other users can neither change nor read files in a directory. A user with write access to
/// the directory could replace the node's key, whatever the modes of the files are.
fn close_to_others(dir: &Path) -> Result<(), StorageError> {
    // One handle for both steps, because the path could be renamed in between.
    let unreadable = |source| StorageError::Unreadable { path: dir.to_owned(), source };
    let opened = File::open(dir).map_err(unreadable)?;
    let found = opened.metadata().map_err(unreadable)?;
    let (owner, user, mode) = (found.uid(), geteuid().as_raw(), found.mode() & 0o7777);
    if owner != user {
        return Err(StorageError::ForeignDir { dir: dir.to_owned(), owner, user });
    }
    if mode & 0o022 != 0 {
        return Err(StorageError::WritableDir { dir: dir.to_owned(), mode });
    }
    if mode & 0o077 != 0 {
        let closed = opened.set_permissions(Permissions::from_mode(PRIVATE_DIR));
        let dir = dir.display();
        match closed {
            Ok(()) => tracing::warn!(
                "other users could read the data directory {dir} (mode {mode:03o}); it is now open to its owner alone (mode 700)"
            ),
            // On a read-only file system, the next write reports the error.
            Err(error) => tracing::warn!(
                "other users can read the data directory {dir} (mode {mode:03o}), and it cannot be closed: {error}. Run: chmod 700 {dir}"
            ),
        }
    }
    Ok(())
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(HOLDER_BYTES as u64).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_gets_a_slot_of_its_own_and_a_freed_one_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let (a, lock_a) = lock_first_free(dir.path()).unwrap();
        let (b, _lock_b) = lock_first_free(dir.path()).unwrap();
        assert_eq!((a, b), (dir.path().join("0"), dir.path().join("1")));
        drop(lock_a);
        assert_eq!(lock_first_free(dir.path()).unwrap().0, dir.path().join("0"));
    }

    #[test]
    fn a_locked_directory_says_its_name_and_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = lock_dir(dir.path()).unwrap();
        let error = lock_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(error.contains(&std::process::id().to_string()), "{error}");
    }

    #[test]
    fn a_lock_file_keeps_its_block_and_names_only_its_newest_holder() {
        let dir = tempfile::tempdir().unwrap();
        // As an earlier version wrote the file.
        std::fs::write(dir.path().join("lock"), "4194304\n").unwrap();
        for _ in 0..2 {
            drop(lock_dir(dir.path()).unwrap());
            let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
            assert_eq!((text.len(), text.trim()), (HOLDER_BYTES, &*std::process::id().to_string()));
        }
    }

    fn mode(dir: &Path) -> u32 {
        std::fs::metadata(dir).unwrap().mode() & 0o7777
    }

    fn set_mode(dir: &Path, mode: u32) {
        std::fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_read_is_closed_and_one_that_they_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for readable in [0o755, 0o750, 0o711, 0o701] {
            set_mode(dir.path(), readable);
            lock_dir(dir.path()).unwrap();
            assert_eq!(mode(dir.path()), 0o700, "{readable:o}");
        }
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        for writable in [0o777, 0o770, 0o702, 0o1777, 0o2775] {
            set_mode(dir.path(), writable);
            let refused = lock_dir(dir.path()).unwrap_err();
            assert!(matches!(&refused, StorageError::WritableDir { mode, .. } if *mode == writable));
            let advice = refused.advice();
            assert!(advice.contains("chmod 700") && advice.contains("/state"), "{advice}");
            assert_eq!(mode(dir.path()), writable, "what others may have put there is for a person to see");
            assert!(!dir.path().join("lock").exists(), "nothing was written");
        }
    }

    #[test]
    fn a_directory_of_the_slots_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let under = dir.path().join("default");
        lock_first_free(&under).unwrap();
        set_mode(&under, 0o777);
        assert!(matches!(lock_first_free(&under), Err(StorageError::WritableDir { .. })));
    }

    #[test]
    fn a_directory_of_another_user_is_refused_with_both_users() {
        if !geteuid().is_root() {
            // Only root can give a directory away; `tests/tests/local.rs` runs nodes as another user.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
        let refused = lock_dir(dir.path()).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("belongs to user 65534") && text.contains("runs as user 0"), "{text}");
        assert!(refused.advice().contains("--data-dir"));
        assert!(!dir.path().join("lock").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = lock_dir(&file.join("data")).unwrap_err();
        assert!(matches!(error, StorageError::Unwritable { .. }));
        assert!(error.to_string().contains("file/data"), "{error}");
    }
}
