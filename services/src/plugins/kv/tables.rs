//! Projection of the key/value store ([`Tables`]): folds journal entries into SQL tables, and queries them by
//! key and by prefix. Keys, values and flags do not depend on the order of arrival.
//!
//! The row of a key has the latest write by its [stamp](crate::journal::Stamp). A deletion is a row without a
//! value, because an older write may still arrive. A value in parts takes effect with its last part's stamp
//! when all parts have arrived. Parts whose others never arrive are bounded: those with the oldest stamps are
//! dropped. `superseded` is the stamp of the latest write but one. `changed` and `created` count changes in
//! the order of arrival, so they differ from those on other replicas.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Serialize, Serializer};

use super::{
    change::{Change, EPOCHS, KV_VALUE_BYTES_MAX, Part, Put},
    writes::keep_superseded,
};
use crate::journal::{EpochFormat, Projection, Recorded};

/// Maximum number of parts that wait for the others of their value: 116 MiB. Far above what writes in flight
/// need, so only parts of failed writes are dropped. A replica that drops some may then have other parts than
/// the others.
pub(super) const WAITING_PARTS_MAX: u64 = 2048;

/// Queries with the same rows on all replicas.
const COMPARED: &[(&str, &str)] = &[
    ("kv_keys", "SELECT key, stamp, flags, value, superseded, superseded_is_deletion FROM kv_keys"),
    ("kv_parts", "SELECT feed, write_id, parts, part, stamp, key, flags, bytes FROM kv_parts"),
];

/// Number of keys and bytes, and of incomplete values that were dropped, for metrics. Set with every change.
#[derive(Debug, Default)]
pub(super) struct StoreSize {
    live: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl StoreSize {
    pub(super) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Projection of the key/value store.
#[derive(Debug)]
pub(super) struct Tables {
    size: Arc<StoreSize>,
}

impl Tables {
    pub(super) fn new(size: Arc<StoreSize>) -> Self {
        Self { size }
    }
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) flags: u64,
    #[serde(serialize_with = "as_base64")]
    pub(super) value: Vec<u8>,
    /// Number of the change that created the key, then its index.
    pub(super) create_index: u64,
    /// Number of the latest change, then its index.
    pub(super) modify_index: u64,
}

impl Pair {
    pub(super) fn into_value(self) -> Vec<u8> {
        self.value
    }
}

fn as_base64<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(value))
}

/// Totals of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Totals {
    /// Number that was drawn when the tables were created. A rebuild draws another one.
    pub(super) tables: u64,
    /// Number of writes that were folded.
    pub(super) changes: u64,
    /// Number of keys, deleted ones included.
    pub(super) keys: u64,
    /// Number of keys with a value.
    pub(super) live: u64,
    /// Bytes of all values.
    pub(super) bytes: u64,
}

impl Projection for Tables {
    fn version(&self) -> u32 {
        2
    }

    fn epochs(&self) -> Option<EpochFormat> {
        Some(EPOCHS)
    }

    fn compared(&self) -> Option<&'static [(&'static str, &'static str)]> {
        Some(COMPARED)
    }

    fn create(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute_batch(
            "CREATE TABLE kv_keys (
                 id INTEGER PRIMARY KEY,
                 key BLOB NOT NULL UNIQUE,
                 stamp BLOB NOT NULL,
                 flags INTEGER NOT NULL,
                 created INTEGER NOT NULL,
                 changed INTEGER NOT NULL,
                 superseded BLOB,
                 superseded_is_deletion INTEGER NOT NULL DEFAULT 0,
                 value BLOB
             );
             CREATE INDEX kv_changed ON kv_keys (key, changed);
             CREATE INDEX kv_recent ON kv_keys (changed, key);
             CREATE TABLE kv_parts (
                 feed BLOB NOT NULL,
                 write_id INTEGER NOT NULL,
                 parts INTEGER NOT NULL,
                 part INTEGER NOT NULL,
                 stamp BLOB NOT NULL,
                 key TEXT NOT NULL,
                 flags INTEGER NOT NULL,
                 bytes BLOB NOT NULL,
                 PRIMARY KEY (feed, write_id, parts, part)
             );
             CREATE INDEX kv_parts_age ON kv_parts (stamp);
             CREATE TABLE kv_totals (
                 tables INTEGER NOT NULL,
                 changes INTEGER NOT NULL,
                 keys INTEGER NOT NULL,
                 live INTEGER NOT NULL,
                 bytes INTEGER NOT NULL
             );
             INSERT INTO kv_totals VALUES (random() & 0x7fffffffffffffff, 0, 0, 0, 0);",
        )
    }

    fn fold(&self, db: &Connection, entry: &Recorded<'_>) -> rusqlite::Result<()> {
        let stamp = entry.stamp().to_bytes();
        match Change::decode(entry.body) {
            None => return Ok(()),
            Some(Change::Put(Put { key, flags, part: None, value })) => {
                set(db, &key, &stamp, Some((flags, &value)))?;
            }
            Some(Change::Put(Put { key, flags, part: Some(part), value })) => {
                let mut feed = entry.id.feed.writer.public_key().to_vec();
                feed.extend_from_slice(&entry.id.feed.boot.to_be_bytes());
                add_part(db, &feed, part, &stamp, &Put { key, flags, part: None, value })?;
                if drop_oldest_parts(db)? {
                    self.size.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(Change::Delete(keys)) => keys.iter().try_for_each(|key| set(db, key, &stamp, None))?,
        }
        let totals = totals(db)?;
        self.size.live.store(totals.live, Ordering::Relaxed);
        self.size.bytes.store(totals.bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Applies a write of a key, if it is the latest one. `None` deletes.
fn set(db: &Connection, key: &str, stamp: &[u8], value: Option<(u64, &[u8])>) -> rusqlite::Result<()> {
    // Older writes count, too. So a rebuild of the tables, in another order, ends with the same number, and
    // no index is given twice.
    let mut count = db.prepare_cached("UPDATE kv_totals SET changes = changes + 1 RETURNING changes")?;
    let changed: i64 = count.query_row([], |row| row.get(0))?;
    let mut find = db.prepare_cached("SELECT stamp, length(value), created FROM kv_keys WHERE key = ?1")?;
    let before: Option<(Vec<u8>, Option<u64>, i64)> =
        find.query_row([key.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    if before.as_ref().is_some_and(|(before, _, _)| before.as_slice() >= stamp) {
        return keep_superseded(db, key, stamp, value.is_none());
    }
    let old_bytes = before.as_ref().and_then(|(_, bytes, _)| *bytes);
    let mut add =
        db.prepare_cached("UPDATE kv_totals SET keys = keys + ?1, live = live + ?2, bytes = bytes + ?3")?;
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let new_bytes = value.map_or(0, |(_, bytes)| signed(bytes.len() as u64));
    add.execute(params![
        i64::from(before.is_none()),
        i64::from(value.is_some()) - i64::from(old_bytes.is_some()),
        new_bytes - old_bytes.map_or(0, signed),
    ])?;
    // A key that was deleted before is created again.
    let created = before.filter(|_| old_bytes.is_some()).map_or(changed, |(_, _, created)| created);
    let mut put = db.prepare_cached(
        "INSERT INTO kv_keys (key, stamp, flags, created, changed, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (key) DO UPDATE SET superseded = stamp, superseded_is_deletion = value IS NULL,
             stamp = excluded.stamp, flags = excluded.flags, created = excluded.created,
             changed = excluded.changed, value = excluded.value",
    )?;
    let (flags, value) = value.map_or((0, None), |(flags, value)| (flags.cast_signed(), Some(value)));
    put.execute(params![key.as_bytes(), stamp, flags, created, changed, value]).map(drop)
}

/// Stores a part of a value. The last one that arrives applies the write.
fn add_part(db: &Connection, feed: &[u8], part: Part, stamp: &[u8], put: &Put) -> rusqlite::Result<()> {
    let of = i64::try_from(part.of).unwrap_or(i64::MAX);
    let number = i64::try_from(part.number).unwrap_or(i64::MAX);
    let write = part.write.cast_signed();
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO kv_parts (feed, write_id, parts, part, stamp, key, flags, bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    insert.execute(params![feed, write, of, number, stamp, put.key, put.flags.cast_signed(), put.value])?;
    let mut list = db.prepare_cached(
        "SELECT stamp, key, flags, bytes FROM kv_parts WHERE feed = ?1 AND write_id = ?2 AND parts = ?3
         ORDER BY part",
    )?;
    let rows = list.query_map(params![feed, write, of], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?, row.get::<_, Vec<u8>>(3)?))
    })?;
    let parts: Vec<(Vec<u8>, String, i64, Vec<u8>)> = rows.collect::<rusqlite::Result<_>>()?;
    if parts.len() < part.of {
        return Ok(());
    }
    let mut remove =
        db.prepare_cached("DELETE FROM kv_parts WHERE feed = ?1 AND write_id = ?2 AND parts = ?3")?;
    remove.execute(params![feed, write, of])?;
    let value: Vec<u8> = parts.iter().flat_map(|(_, _, _, bytes)| bytes).copied().collect();
    match parts.last() {
        Some((stamp, key, flags, _)) if value.len() <= KV_VALUE_BYTES_MAX => {
            set(db, key, stamp, Some((flags.cast_unsigned(), &value)))
        }
        _ => Ok(()),
    }
}

/// Drops the parts of the oldest incomplete value, if too many parts wait. Returns whether it did.
fn drop_oldest_parts(db: &Connection) -> rusqlite::Result<bool> {
    let mut count = db.prepare_cached("SELECT count(*) FROM kv_parts")?;
    let waiting: u64 = count.query_row([], |row| row.get(0))?;
    if waiting <= WAITING_PARTS_MAX {
        return Ok(false);
    }
    let mut remove = db.prepare_cached(
        "DELETE FROM kv_parts WHERE (feed, write_id, parts) =
             (SELECT feed, write_id, parts FROM kv_parts ORDER BY stamp LIMIT 1)",
    )?;
    remove.execute([]).map(|dropped| dropped > 0)
}

/// Returns the totals of the store.
pub(super) fn totals(db: &Connection) -> rusqlite::Result<Totals> {
    let mut find = db.prepare_cached("SELECT tables, changes, keys, live, bytes FROM kv_totals")?;
    find.query_row([], |row| {
        let (tables, changes, keys) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Totals { tables, changes, keys, live: row.get(3)?, bytes: row.get(4)? })
    })
}

/// Returns the number of the latest change of a key, a deletion included. `None`: it was never written.
pub(super) fn changed_key(db: &Connection, key: &str) -> rusqlite::Result<Option<u64>> {
    let mut find = db.prepare_cached("SELECT changed FROM kv_keys INDEXED BY kv_changed WHERE key = ?1")?;
    find.query_row([key.as_bytes()], |row| row.get(0)).optional()
}

/// Returns the number of the latest change below a prefix, deletions included.
pub(super) fn changed_prefix(db: &Connection, prefix: &str) -> rusqlite::Result<Option<u64>> {
    if prefix.is_empty() {
        return totals(db).map(|totals| Some(totals.changes));
    }
    let mut find = db.prepare_cached(
        "SELECT max(changed) FROM kv_keys INDEXED BY kv_changed WHERE key >= ?1 AND key < ?2",
    )?;
    find.query_row(params![prefix.as_bytes(), end_of(prefix)], |row| row.get(0))
}

/// Returns whether a key below a prefix has changed after a number of changes, by a deletion, too. Reads only
/// the keys that have changed since then, because many queries ask this after every change.
pub(super) fn has_changed(db: &Connection, prefix: &str, seen: u64) -> rusqlite::Result<bool> {
    if prefix.is_empty() {
        return totals(db).map(|totals| seen < totals.changes);
    }
    let mut find = db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM kv_keys INDEXED BY kv_recent
             WHERE changed > ?1 AND key >= ?2 AND key < ?3)",
    )?;
    let seen = i64::try_from(seen).unwrap_or(i64::MAX);
    find.query_row(params![seen, prefix.as_bytes(), end_of(prefix)], |row| row.get(0))
}

/// Returns a key and its value.
pub(super) fn find(db: &Connection, key: &str) -> rusqlite::Result<Option<Pair>> {
    let mut find = db.prepare_cached(
        "SELECT key, flags, value, created, changed FROM kv_keys WHERE key = ?1 AND value IS NOT NULL",
    )?;
    find.query_row([key.as_bytes()], pair_of).optional()
}

/// Returns the bytes of a value. `None`: the key was never written; `Some(None)`: it was deleted.
pub(super) fn value_bytes(db: &Connection, key: &str) -> rusqlite::Result<Option<Option<u64>>> {
    let mut find = db.prepare_cached("SELECT length(value) FROM kv_keys WHERE key = ?1")?;
    find.query_row([key.as_bytes()], |row| row.get(0)).optional()
}

/// Lists the keys and values below a prefix. `None`: keys and values have more than `bytes_max` bytes.
pub(super) fn list_pairs(
    db: &Connection,
    prefix: &str,
    bytes_max: usize,
) -> rusqlite::Result<Option<Vec<Pair>>> {
    let mut list = db.prepare_cached(
        "SELECT key, flags, value, created, changed FROM kv_keys
         WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL ORDER BY key",
    )?;
    let mut rows = list.query(params![prefix.as_bytes(), end_of(prefix)])?;
    let (mut pairs, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let pair = pair_of(row)?;
        bytes += pair_bytes(&pair);
        if bytes > bytes_max {
            return Ok(None);
        }
        pairs.push(pair);
    }
    Ok(Some(pairs))
}

/// Lists the first keys and values after a key.
pub(super) fn pairs_after(db: &Connection, after: &str, count: usize) -> rusqlite::Result<Vec<Pair>> {
    let mut list = db.prepare_cached(
        "SELECT key, flags, value, created, changed FROM kv_keys
         WHERE key > ?1 AND value IS NOT NULL ORDER BY key LIMIT ?2",
    )?;
    let limit = i64::try_from(count).unwrap_or(i64::MAX);
    list.query_map(params![after.as_bytes(), limit], pair_of)?.collect()
}

/// Returns about the bytes of a pair in JSON.
fn pair_bytes(pair: &Pair) -> usize {
    128 + pair.key.len() + pair.value.len().div_ceil(3) * 4
}

/// Lists the keys below a prefix, each up to the first separator behind the prefix, without repetitions.
/// `None`: the keys have more than `bytes_max` bytes.
pub(super) fn list_keys(
    db: &Connection,
    prefix: &str,
    separator: &str,
    bytes_max: usize,
) -> rusqlite::Result<Option<Vec<String>>> {
    let mut list = db.prepare_cached(
        "SELECT key FROM kv_keys WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL ORDER BY key",
    )?;
    let mut rows = list.query(params![prefix.as_bytes(), end_of(prefix)])?;
    let (mut keys, mut bytes): (Vec<String>, usize) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let mut key = text(row, 0)?;
        if !separator.is_empty()
            && let Some(rest) = key.get(prefix.len()..)
            && let Some(at) = rest.find(separator)
        {
            key.truncate(prefix.len() + at + separator.len());
        }
        if keys.last() == Some(&key) {
            continue;
        }
        bytes += key.len() + 4;
        if bytes > bytes_max {
            return Ok(None);
        }
        keys.push(key);
    }
    Ok(Some(keys))
}

/// Returns the first keys below a prefix.
pub(super) fn first_keys(db: &Connection, prefix: &str, count: usize) -> rusqlite::Result<Vec<String>> {
    let mut list = db.prepare_cached(
        "SELECT key FROM kv_keys WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL ORDER BY key LIMIT ?3",
    )?;
    let limit = i64::try_from(count).unwrap_or(i64::MAX);
    list.query_map(params![prefix.as_bytes(), end_of(prefix), limit], |row| text(row, 0))?.collect()
}

/// Returns the bytes behind all keys with a prefix. No byte of UTF-8 is 255.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last = last.saturating_add(1),
        None => end.push(u8::MAX),
    }
    end
}

fn pair_of(row: &Row<'_>) -> rusqlite::Result<Pair> {
    Ok(Pair {
        key: text(row, 0)?,
        flags: row.get::<_, i64>(1)?.cast_unsigned(),
        value: row.get(2)?,
        create_index: row.get(3)?,
        modify_index: row.get(4)?,
    })
}

/// Keys are UTF-8 when they are written.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    row.get::<_, Vec<u8>>(column).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
