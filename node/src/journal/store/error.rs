//! [`StoreError`]: why a topic's database cannot be used, and its conversion to the journal's [`DiskError`].

use hearsay_protocol::journal::DiskError;
use rusqlite::ErrorCode;

use super::format::FORMAT;

/// Why a topic's database cannot be used, and the state of the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is a database of something else. It was not touched.
    #[error("it is the database of something else")]
    Foreign,
    /// The file was made by another version of this program. It was not touched.
    #[error("its format is {0}, and this version reads {FORMAT}")]
    Format(i64),
    /// The file belongs to another cluster or topic. It was not touched.
    #[error("it belongs to {0}")]
    Elsewhere(String),
    /// Another version of the plug-in made the tables, and there is no room to rebuild them. The file was not
    /// touched.
    #[error("its tables are of another version, and are rebuilt once there is room")]
    Outdated,
    /// The file is no database, or damaged.
    #[error("it is damaged: {0}")]
    Damaged(rusqlite::Error),
    /// Any other error of the database.
    #[error("{0}")]
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Damaged(error),
            _ => Self::Database(error),
        }
    }
}

/// Converts a database error into the error for the journal's state machine.
pub(crate) fn disk_error(error: &rusqlite::Error) -> DiskError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => DiskError::Full,
        _ => DiskError::Failed,
    }
}

/// Returns SQLite's error for damage (`SQLITE_CORRUPT`), for damage that SQLite itself does not notice.
pub(super) fn damaged(problem: String) -> rusqlite::Error {
    let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(error, Some(problem))
}
