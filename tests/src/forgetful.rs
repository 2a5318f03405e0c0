//! A disk that forgets: what was written and not synced may be gone after the power went.
//!
//! `kill -9` ends a process, not its machine: whatever it wrote is in the kernel's cache and reaches the disk. So a program that never syncs
//! anything survives every kill, and loses everything in a power failure. Here the node, as it ships, keeps its state on a file system of the lab's
//! own (FUSE), which sees every write and every sync, whether they came by a library, a system call or a memory map. When the node is dead,
//! [`Forgetful::lose_power`] takes back what was never synced, but for what a real disk might have kept of it.

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

/// A forgetful disk, mounted until this is dropped.
pub struct Forgetful {
    at: PathBuf,
    disk: Arc<Mutex<Disk>>,
    _session: fuser::BackgroundSession,
}

impl fmt::Debug for Forgetful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forgetful").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Forgetful {
    /// Mounts an empty one. Needs `/dev/fuse` and the right to mount.
    ///
    /// # Errors
    /// What the system said.
    pub fn mount(at: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(at)?;
        let disk = Arc::new(Mutex::new(Disk::new()));
        let mut config = fuser::Config::default();
        config.mount_options = vec![fuser::MountOption::FSName("forgetful".into())];
        let session = fuser::spawn_mount(mount::Mount(Arc::clone(&disk)), at, &config)?;
        Ok(Self { at: at.to_owned(), disk, _session: session })
    }

    /// Whether one can be mounted here; if not, why.
    ///
    /// # Errors
    /// The reason.
    pub fn can_be_mounted() -> Result<(), String> {
        match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("needs /dev/fuse: {error}")),
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes and comes back: what was not synced is gone, but for what this seed keeps of it. Whoever wrote must be dead. Returns how
    /// much was forgotten: bytes, and names.
    pub fn lose_power(&self, seed: u64) -> u64 {
        self.disk().lose_power(&mut Rng::with_seed(seed))
    }

    /// How often something was synced.
    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        // Lazily: a node that is still alive keeps it busy. The session then ends with that node.
        _ = std::process::Command::new("umount").args([OsStr::new("-l"), self.at.as_os_str()]).status();
    }
}
