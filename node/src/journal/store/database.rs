//! [`Store`]: a topic's SQLite database of signed runs, and of the plug-in's tables derived from them.
//! Begins, commits and rolls back its transactions; the other files of `store` add the rest.
//!
//! One thread writes, and every commit is synced (`synchronous=FULL` in WAL mode). A run, the row of its feed
//! and the plug-in's changes are committed together. The file is not memory-mapped, so that an I/O error is
//! reported as an error and not as a signal.
//!
//! Runs are stored as their writers signed them, and are verified again when they are read. So damage on one
//! replica's disk never reaches another replica.

use hearsay_protocol::journal::Run;
use rusqlite::Connection;

use super::format::meta;

/// An open database of a topic: writable, or read-only because its disk was full.
pub struct Store {
    pub(super) db: Connection,
    pub(super) cluster: String,
    pub(super) topic: String,
    pub(super) in_transaction: bool,
    pub(super) is_read_only: bool,
}

impl Store {
    /// Returns a value from the file's settings (`journal_meta`).
    pub(super) fn meta<T: rusqlite::types::FromSql>(&self, name: &str) -> rusqlite::Result<Option<T>> {
        meta(&self.db, name)
    }

    /// Opens a transaction, unless one is open.
    pub(super) fn begin(&mut self) -> rusqlite::Result<()> {
        if !self.in_transaction {
            self.db.execute_batch("BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Whether a transaction is open, so that there is something to [`commit`](Self::commit).
    pub fn is_dirty(&self) -> bool {
        self.in_transaction
    }

    /// Commits and syncs the open transaction.
    ///
    /// # Errors
    /// If the disk is full, nothing of the transaction is stored. After any other error, it is unknown
    /// whether the transaction is stored.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        let committed = self.db.execute_batch("COMMIT");
        if committed.is_err() {
            self.roll_back();
        }
        self.in_transaction = false;
        committed
    }

    /// Rolls back the open transaction.
    pub fn roll_back(&mut self) {
        // An error: SQLite has rolled back already, as it does after some errors.
        _ = self.db.execute_batch("ROLLBACK");
        self.in_transaction = false;
    }

    /// Returns the cluster and the topic of the file.
    pub(crate) fn owner(&self) -> (&str, &str) {
        (&self.cluster, &self.topic)
    }

    /// Closes the file, after copying its log into it.
    ///
    /// # Errors
    /// The error of the database.
    pub(crate) fn close(self) -> rusqlite::Result<()> {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.db.close().map_err(|(_, error)| error)
    }

    /// Whether a run carries a valid signature of its writer for this topic.
    pub(crate) fn verifies(&self, run: &Run) -> bool {
        run.check(&self.cluster, &self.topic).is_ok()
    }

    /// Returns the connection, for reading.
    pub fn connection(&self) -> &Connection {
        &self.db
    }
}
