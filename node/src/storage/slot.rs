//! One directory for one running node.
//!
//! Two nodes that share a directory would share a key and fight over who they are. So a node locks its directory for as long as it lives, with
//! `flock`, which the kernel gives back however the process ends. Nodes started without a word about it take the first free slot out of
//! `…/hearsay/<cluster>/0`, `1`, `2`…: each has a directory of its own, and one that is started again finds what it left.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{
    StorageError,
    file::{PRIVATE, PRIVATE_DIR, make_dir},
};

/// Nodes of one cluster, one user and one machine that can run without naming a directory. Five times what a test of overload starts.
pub const SLOTS_MAX: u32 = 1024;

/// Bytes of a lock file: a process id with spaces behind it, and the end of the line.
const HOLDER_BYTES: usize = 16;

/// Keeps every other node out of a directory for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: File,
}

/// Locks the first directory among the slots that nobody holds.
pub(super) fn first_free(under: &Path) -> Result<(PathBuf, Lock), StorageError> {
    for slot in 0..SLOTS_MAX {
        let dir = under.join(slot.to_string());
        match exactly(&dir) {
            Ok(lock) => return Ok((dir, lock)),
            Err(StorageError::Locked { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StorageError::NoFreeSlot { under: under.to_owned() })
}

/// Creates the directory where it is missing, and locks it.
pub(super) fn exactly(dir: &Path) -> Result<Lock, StorageError> {
    let failed = |source| StorageError::Unwritable { path: dir.to_owned(), source };
    // For the owner alone: keys will lie in it.
    make_dir(dir, PRIVATE_DIR).map_err(failed)?;
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
    // The number is for people only; that the file is locked is what counts. Always of the same length, so
    // that it is overwritten in place: on a full disk, a file that is cut first may not get its block back.
    _ = file
        .rewind()
        .and_then(|()| writeln!(file, "{:<width$}", std::process::id(), width = HOLDER_BYTES - 1));
    Ok(Lock { _held: file })
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
        let (a, lock_a) = first_free(dir.path()).unwrap();
        let (b, _lock_b) = first_free(dir.path()).unwrap();
        assert_eq!((a, b), (dir.path().join("0"), dir.path().join("1")));
        drop(lock_a);
        assert_eq!(first_free(dir.path()).unwrap().0, dir.path().join("0"));
    }

    #[test]
    fn a_locked_directory_says_its_name_and_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = exactly(dir.path()).unwrap();
        let error = exactly(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(error.contains(&std::process::id().to_string()), "{error}");
    }

    #[test]
    fn a_lock_file_keeps_its_block_and_names_only_its_newest_holder() {
        let dir = tempfile::tempdir().unwrap();
        // As a version before wrote it.
        std::fs::write(dir.path().join("lock"), "4194304\n").unwrap();
        for _ in 0..2 {
            drop(exactly(dir.path()).unwrap());
            let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
            assert_eq!((text.len(), text.trim()), (HOLDER_BYTES, &*std::process::id().to_string()));
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = exactly(&file.join("data")).unwrap_err();
        assert!(matches!(error, StorageError::Unwritable { .. }));
        assert!(error.to_string().contains("file/data"), "{error}");
    }
}
