//! [`Scratch`]: temporary directory for the databases of an ephemeral node, removed on drop.

use std::{
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use crate::storage::PRIVATE_DIR;

/// A temporary directory, which is removed when this value is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Creates a directory under a random name.
    ///
    /// # Errors
    /// The system has no random numbers, or refused to create the directory.
    pub(super) fn create() -> anyhow::Result<Self> {
        let mut name = [0; 8];
        getrandom::fill(&mut name)
            .map_err(|e| anyhow::anyhow!("this system gives no random numbers: {e}"))?;
        let dir = std::env::temp_dir().join(format!("hearsay-{:016x}", u64::from_le_bytes(name)));
        // The directory must be new: in a directory that all users can write, another user may have taken the
        // name.
        std::fs::DirBuilder::new()
            .mode(PRIVATE_DIR)
            .create(&dir)
            .map_err(|e| anyhow::anyhow!("cannot make {}: {e}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Returns the directory.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failure leaves files in the temporary directory, which the system clears.
        _ = std::fs::remove_dir_all(&self.0);
    }
}
