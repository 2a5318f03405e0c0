//! [`KeyWrites`]: the write of a key that is in effect, and the last one that it superseded. Each is named by
//! its writer, time and entry, the same on every replica with the same entries.
//!
//! The two are the writes of the key with the latest [stamps](Stamp). That a write was superseded does not
//! tell whether the later writer knew of it: in a partition it did not.

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use crate::{journal::Stamp, rfc3339_ms};

/// What a write does with its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum WriteKind {
    Put,
    Delete,
}

/// A write of a key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyWrite {
    change: WriteKind,
    /// Id of the node that accepted the write.
    node: String,
    /// Time by the clock of that node.
    time: String,
    /// First part of the order of writes; the time is the second part.
    epoch: u64,
    /// Id of the entry; of a value in parts, of its last one.
    entry: String,
}

/// The latest two writes of a key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyWrites {
    /// The write in effect.
    latest: KeyWrite,
    /// The write before it, in the order of writes. `None`: the key was written once.
    superseded: Option<KeyWrite>,
}

impl KeyWrite {
    fn decode(stamp: &[u8], is_deletion: bool) -> Option<Self> {
        let Stamp { moment, id } = Stamp::from_bytes(stamp)?;
        Some(Self {
            change: if is_deletion { WriteKind::Delete } else { WriteKind::Put },
            node: id.feed.writer.to_string(),
            time: rfc3339_ms(moment.time.wall_ms()),
            epoch: moment.epoch,
            entry: id.to_string(),
        })
    }
}

/// Returns the latest writes of a key. `None`: it was never written.
pub(super) fn find_writes(db: &Connection, key: &str) -> rusqlite::Result<Option<KeyWrites>> {
    let mut find = db.prepare_cached(
        "SELECT stamp, value IS NULL, superseded, superseded_is_deletion FROM kv_keys WHERE key = ?1",
    )?;
    let row = find.query_row([key.as_bytes()], |row| {
        let latest: (Vec<u8>, bool) = (row.get(0)?, row.get(1)?);
        let superseded: (Option<Vec<u8>>, bool) = (row.get(2)?, row.get(3)?);
        Ok((latest, superseded))
    });
    let Some(((latest, is_deletion), (superseded, was_deletion))) = row.optional()? else { return Ok(None) };
    let superseded = superseded.and_then(|stamp| KeyWrite::decode(&stamp, was_deletion));
    Ok(KeyWrite::decode(&latest, is_deletion).map(|latest| KeyWrites { latest, superseded }))
}

/// Keeps a write that arrives after a later one of its key, if it is the latest of the superseded ones.
pub(super) fn keep_superseded(
    db: &Connection,
    key: &str,
    stamp: &[u8],
    is_deletion: bool,
) -> rusqlite::Result<()> {
    let mut keep = db.prepare_cached(
        "UPDATE kv_keys SET superseded = ?2, superseded_is_deletion = ?3
         WHERE key = ?1 AND stamp > ?2 AND (superseded IS NULL OR superseded < ?2)",
    )?;
    keep.execute(params![key.as_bytes(), stamp, is_deletion]).map(drop)
}
