//! Part of [`Store`]: stores and reads the replica set, and the latest moment (epoch and time) of the
//! entries.

use hearsay_protocol::{
    NodeId,
    journal::{Generation, HybridTime, Moment},
};
use hearsay_services::journal::Recorded;
use rusqlite::{Connection, params};

use super::database::Store;

/// Returns the stored replica set.
///
/// # Errors
/// The error of the database.
pub(crate) fn replicas(db: &Connection) -> rusqlite::Result<Vec<Generation>> {
    // A read-only file of a version before replica sets lacks the table.
    if !db.table_exists(None, "journal_replicas")? {
        return Ok(Vec::new());
    }
    let mut list = db.prepare("SELECT replica, generation FROM journal_replicas")?;
    let rows = list.query_map([], |row| {
        Ok((NodeId::from_public_key(row.get(0)?), row.get::<_, i64>(1)?.cast_unsigned()))
    })?;
    rows.collect()
}

impl Store {
    /// Returns the stored replica set.
    pub(super) fn replicas(&self) -> rusqlite::Result<Vec<Generation>> {
        replicas(&self.db)
    }

    /// Stores the generation of a replica with the next [`commit`](Self::commit).
    ///
    /// # Errors
    /// The error of the database. The transaction must be rolled back.
    pub fn keep_replica(&mut self, (replica, generation): Generation) -> rusqlite::Result<()> {
        self.begin()?;
        let mut keep = self.db.prepare_cached("INSERT OR REPLACE INTO journal_replicas VALUES (?1, ?2)")?;
        keep.execute(params![replica.public_key(), generation.cast_signed()]).map(drop)
    }

    /// Stores the latest moment of these entries, if its epoch is above 0. It is later than all moments of
    /// epoch 0.
    pub(super) fn store_epoch(&self, recorded: &[Recorded<'_>]) -> rusqlite::Result<()> {
        let moments = recorded.iter().map(|entry| entry.stamp().moment);
        let Some(latest) = moments.max().filter(|moment| moment.epoch > 0) else { return Ok(()) };
        if self.epoch_moment()?.is_none_or(|stored| stored < latest) {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&latest.epoch.to_be_bytes());
            bytes[8..].copy_from_slice(&latest.time.0.to_be_bytes());
            let mut note =
                self.db.prepare_cached("INSERT OR REPLACE INTO journal_meta VALUES ('moment', ?1)")?;
            note.execute([bytes])?;
        }
        Ok(())
    }

    /// Returns the latest moment above epoch 0.
    pub(super) fn epoch_moment(&self) -> rusqlite::Result<Option<Moment>> {
        let noted: Option<[u8; 16]> = self.meta("moment")?;
        Ok(noted.map(|bytes| {
            let number = u128::from_be_bytes(bytes);
            Moment { epoch: (number >> 64) as u64, time: HybridTime(number as u64) }
        }))
    }
}
