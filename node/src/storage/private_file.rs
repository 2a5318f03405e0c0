//! Reads files with secrets, and refuses a file that other users can read or write.

use std::path::Path;

use super::{
    error::StorageError,
    file::{self, Content},
};

/// Largest private file.
const BYTES_MAX: usize = 4096;

/// Reads a private file. `None`: the file does not exist.
///
/// # Errors
/// The file cannot be read, or other users can read or write it.
pub(super) fn read_private(path: &Path) -> Result<Option<Content>, StorageError> {
    let content = file::read(path, BYTES_MAX)
        .map_err(|source| StorageError::Unreadable { path: path.to_owned(), source })?;
    match content {
        Some(content) if content.is_too_open() => {
            Err(StorageError::TooOpen { path: path.to_owned(), mode: content.mode })
        }
        content => Ok(content),
    }
}
