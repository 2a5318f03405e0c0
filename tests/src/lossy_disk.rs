//! Lossy disk: a file system that loses unsynced writes when the power fails.
//!
//! `kill -9` ends a process, but not its machine: the writes are in the kernel's cache and reach the disk. So
//! a program that never syncs survives every kill, but loses all writes in a power failure. Here the shipped
//! node keeps its state on a FUSE file system of the lab. This file system receives every write and sync, by
//! system call or by memory map. After the node is killed, [`LossyDisk::lose_power`] undoes all writes that
//! were not synced, except for parts that a real disk might have kept.

use std::{
    ffi::OsStr,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fastrand::Rng;

mod disk;
mod mount;

use disk::Disk;

/// Lossy disk, which is mounted until this is dropped.
pub struct LossyDisk {
    at: PathBuf,
    disk: Arc<Mutex<Disk>>,
    _session: fuser::BackgroundSession,
}

impl fmt::Debug for LossyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LossyDisk").field("at", &self.at).finish_non_exhaustive()
    }
}

impl LossyDisk {
    /// Mounts an empty disk. Requires `/dev/fuse` and the right to mount.
    ///
    /// # Errors
    /// The system's error.
    pub fn mount(at: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(at)?;
        let disk = Arc::new(Mutex::new(Disk::new()));
        let mut config = fuser::Config::default();
        config.mount_options = vec![fuser::MountOption::FSName("lossy".into())];
        let session = fuser::spawn_mount(mount::Mount(Arc::clone(&disk)), at, &config)?;
        Ok(Self { at: at.to_owned(), disk, _session: session })
    }

    /// Checks whether a disk can be mounted here.
    ///
    /// # Errors
    /// The reason for which the disk cannot be mounted.
    pub fn can_be_mounted() -> Result<(), String> {
        match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("needs /dev/fuse: {error}")),
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Simulates a power failure: unsynced writes are lost, except for parts that the seed selects. All
    /// writing processes must be dead. Returns the size of the loss: bytes plus names.
    pub fn lose_power(&self, seed: u64) -> u64 {
        self.disk().lose_power(&mut Rng::with_seed(seed))
    }

    /// Returns the number of syncs.
    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }
}

impl Drop for LossyDisk {
    fn drop(&mut self) {
        // Unmounts lazily, because a node that is still alive keeps the disk busy. The FUSE session then ends
        // when the node ends.
        _ = std::process::Command::new("umount").args([OsStr::new("-l"), self.at.as_os_str()]).status();
    }
}
