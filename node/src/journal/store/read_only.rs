//! A store that can be read and not written, because its disk was full when it was opened.

use std::path::Path;

use hearsay_services::journal::Projection;
use rusqlite::Connection;

use super::{APPLICATION_ID, Store, StoreError, damaged};
use crate::journal::{read_only, wal};

impl Store {
    /// Opens a topic's file for reading, while its disk has no room to open it for writing.
    ///
    /// # Errors
    /// It does not exist, it is damaged, or its tables have to be rebuilt.
    pub(in crate::journal) fn open_read_only(
        path: &Path,
        cluster: &str,
        topic: &str,
        projection: &dyn Projection,
    ) -> Result<Self, StoreError> {
        match wal::is_stale(path) {
            Ok(false) => (),
            Ok(true) => return Err(damaged("its log is older than what was copied from it".into()).into()),
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

    /// Whether nothing can be written, because the disk had no room when it was opened.
    pub(in crate::journal) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Closes the file. The store is empty and read-only from then on.
    ///
    /// # Errors
    /// What the database said; the file is still open.
    pub(in crate::journal) fn close_file(&mut self) -> rusqlite::Result<()> {
        self.db = Connection::open_in_memory()?;
        self.in_transaction = false;
        self.is_read_only = true;
        Ok(())
    }
}
