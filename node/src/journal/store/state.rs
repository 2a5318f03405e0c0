//! What a topic keeps of its machine beside runs: the latest moment, and the replica set.

use hearsay_protocol::{
    NodeId,
    journal::{
        clock::{HybridTime, Moment},
        replica_set::Generation,
    },
};
use hearsay_services::journal::Recorded;
use rusqlite::{Connection, params};

use super::Store;

/// Made at each opening, because a version before replica sets made the file without it.
pub(super) const REPLICAS_TABLE: &str = "CREATE TABLE IF NOT EXISTS journal_replicas
    (replica BLOB PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID";

/// The replica set that a database keeps.
///
/// # Errors
/// What the database said.
pub(in crate::journal) fn replicas(db: &Connection) -> rusqlite::Result<Vec<Generation>> {
    // On a full disk, a file of a version before replica sets is read as it is.
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
    /// The replica set, as it was kept.
    pub(super) fn replicas(&self) -> rusqlite::Result<Vec<Generation>> {
        replicas(&self.db)
    }

    /// Keeps the generation of a replica, with the next [`commit`](Self::commit).
    ///
    /// # Errors
    /// What the database said. The transaction must be rolled back.
    pub fn keep_replica(&mut self, (replica, generation): Generation) -> rusqlite::Result<()> {
        self.begin()?;
        let mut keep = self.db.prepare_cached("INSERT OR REPLACE INTO journal_replicas VALUES (?1, ?2)")?;
        keep.execute(params![replica.public_key(), generation.cast_signed()]).map(drop)
    }

    /// Keeps the latest moment of all entries whose epoch is above 0; no other moment is later.
    pub(super) fn note_epoch(&self, recorded: &[Recorded<'_>]) -> rusqlite::Result<()> {
        let moments = recorded.iter().map(|entry| entry.stamp().moment);
        let Some(latest) = moments.max().filter(|moment| moment.epoch > 0) else { return Ok(()) };
        if self.epoch_moment()?.is_none_or(|noted| noted < latest) {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&latest.epoch.to_be_bytes());
            bytes[8..].copy_from_slice(&latest.time.0.to_be_bytes());
            let mut note =
                self.db.prepare_cached("INSERT OR REPLACE INTO journal_meta VALUES ('moment', ?1)")?;
            note.execute([bytes])?;
        }
        Ok(())
    }

    /// The latest moment above epoch 0.
    pub(super) fn epoch_moment(&self) -> rusqlite::Result<Option<Moment>> {
        let noted: Option<[u8; 16]> = self.meta("moment")?;
        Ok(noted.map(|bytes| {
            let number = u128::from_be_bytes(bytes);
            Moment { epoch: (number >> 64) as u64, time: HybridTime(number as u64) }
        }))
    }
}
