//! Part of [`Store`]: opens a topic's database for reading only, while its disk is full, and closes it.

use std::path::Path;

use hearsay_services::journal::Projection;
use rusqlite::Connection;

use super::{
    database::Store,
    error::{StoreError, damaged},
    format::APPLICATION_ID,
};
use crate::journal::{integrity::wal, read_only};

impl Store {
    /// Opens a topic's file for reading, while its disk has no room to open it for writing.
    ///
    /// # Errors
    /// The file does not exist, is damaged, or needs its tables rebuilt.
    pub(crate) fn open_read_only(
        path: &Path,
        cluster: &str,
        topic: &str,
        projection: &dyn Projection,
    ) -> Result<Self, StoreError> {
        match wal::is_stale(path) {
            Ok(false) => (),
            Ok(true) => {
                return Err(damaged(
                    "its write-ahead log is older than the pages already copied from it".into(),
                )
                .into());
            }
            Err(error) => {
                let unreadable = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_READ);
                return Err(rusqlite::Error::SqliteFailure(unreadable, Some(error.to_string())).into());
            }
        }
        let db = read_only::connect(path)?;
        let application: i64 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
        if application != APPLICATION_ID {
            return Err(StoreError::Foreign);
        }
        let store = Self {
            db,
            cluster: cluster.to_owned(),
            topic: topic.to_owned(),
            in_transaction: false,
            is_read_only: true,
        };
        store.check_owner()?;
        if store.meta::<i64>("projection")? != Some(i64::from(projection.version())) {
            return Err(StoreError::Outdated);
        }
        Ok(store)
    }

    /// Whether the file is not open for writing, because its disk was full.
    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Closes the file. Afterwards the store is empty and read-only.
    ///
    /// # Errors
    /// The error of the database; the file is still open.
    pub(crate) fn close_file(&mut self) -> rusqlite::Result<()> {
        self.db = Connection::open_in_memory()?;
        self.in_transaction = false;
        self.is_read_only = true;
        Ok(())
    }
}
