//! Restore of the key/value store: keys that a backup has and the tables have not, or with another value or
//! other flags, are written again. Keys that are not in the backup stay.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, Uri};
use rusqlite::Connection;
use serde::Deserialize;
use serde_json::json;

use super::{
    change::{KV_KEY_BYTES_MAX, KV_VALUE_BYTES_MAX, Put},
    receipt::Receipt,
    store::KvStore,
    tables::{self, Pair},
};
use crate::{
    Problem,
    http::{
        append::{self, WriteOptions},
        parameters::Parameters,
    },
    journal::{
        self, Write,
        restore::{Difference, ItemSelection, Resolution, RestoreItem, RestoreReport, RestoreSource},
    },
};

/// Pairs per read from the backup: at most some megabytes.
const PAIRS_PER_PAGE: usize = 20;
/// Items in one request.
const ITEMS_MAX: usize = 1000;
/// Characters of a value in a difference.
const SHOWN_CHARS_MAX: usize = 60;

/// Reader of keys and values in a backup.
#[derive(Debug)]
pub(super) struct Backup;

impl RestoreSource for Backup {
    fn path(&self) -> &'static str {
        "/kv"
    }

    fn kind(&self) -> &'static str {
        "key"
    }

    fn count(&self, tables: &Connection) -> rusqlite::Result<u64> {
        tables::totals(tables).map(|totals| totals.live)
    }

    fn items(&self, tables: &Connection, which: ItemSelection<'_>) -> rusqlite::Result<Vec<RestoreItem>> {
        let pairs = match which {
            ItemSelection::Only(key) => tables::find(tables, key)?.into_iter().collect(),
            ItemSelection::After(cursor) => {
                tables::pairs_after(tables, cursor.unwrap_or_default(), PAIRS_PER_PAGE)?
            }
        };
        let item = |pair: Pair| RestoreItem {
            body: json!({ "key": pair.key, "flags": pair.flags, "value": STANDARD.encode(pair.value) }),
            cursor: pair.key,
        };
        Ok(pairs.into_iter().map(item).collect())
    }
}

/// An item of a request.
#[derive(Clone, Debug, Deserialize)]
struct BackupPair {
    key: String,
    #[serde(default)]
    flags: u64,
    /// In base64.
    value: String,
}

#[derive(Debug, Deserialize)]
struct Request {
    items: Vec<BackupPair>,
}

/// Handles `POST /kv`.
pub(super) async fn restore(
    State(store): State<KvStore>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack", "dry-run"])?;
    let is_dry_run =
        parameters.single("dry-run")?.map(|value| Parameters::flag("dry-run", value)).transpose()?;
    let options = WriteOptions::read(&headers, &parameters)?;
    let items = read(&body)?;
    let journal = store.journal()?;
    append::await_tokens(journal, &headers).await?;
    let (planned, items) = journal::read(journal, move |db| Ok((plan(db, &items)?, items))).await?;
    let mut report = RestoreReport { differences: planned.differences, ..RestoreReport::default() };
    if is_dry_run.unwrap_or_default() || planned.puts.is_empty() {
        return Ok(Json(report).into_response());
    }
    let mut writes = Vec::new();
    for (key, flags, value) in planned.puts {
        store.check_room(key.clone(), value.len() as u64).await?;
        let changes = Put::split(&key, flags, value, fastrand::u64(..));
        writes.extend(changes.iter().map(|change| Write { key: None, body: change.encode() }));
    }
    let mut written = Vec::new();
    for answer in journal.append(writes, options.append).await {
        // A retry of the same items skips those that are already written.
        written.push(
            answer.map_err(|error| append::append_problem(&error).with("written", written.len() as u64))?,
        );
    }
    report.written = written.len() as u64;
    let receipt = Receipt::new(written);
    report.ack = receipt.level().map(|level| level.name().to_owned());
    // Acknowledged writes are in the tables here. A remaining difference comes from a concurrent write.
    let left = journal::read(journal, move |db| plan(db, &items)).await?;
    report.remaining = left.puts.len() as u64;
    Ok(receipt.answer(Json(report)))
}

fn read(body: &[u8]) -> Result<Vec<BackupPair>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let request: Request = serde_json::from_slice(body)
        .map_err(|error| bad(format!("the body is not {{\"items\":[…]}} with keys: {error}")))?;
    if request.items.len() > ITEMS_MAX {
        return Err(bad(format!("items: at most {ITEMS_MAX} in one request")).with("field", "items"));
    }
    Ok(request.items)
}

/// Differences, and the keys, flags and values that resolve them.
#[derive(Debug, Default)]
struct Plan {
    differences: Vec<Difference>,
    puts: Vec<(String, u64, Vec<u8>)>,
}

fn plan(db: &Connection, items: &[BackupPair]) -> rusqlite::Result<Plan> {
    let mut plan = Plan::default();
    for item in items {
        let named = |change, now, backup, note| Difference {
            item: format!("key:{}", item.key),
            change,
            now,
            backup,
            note,
        };
        let value = match check(item) {
            Ok(value) => value,
            Err(why) => {
                plan.differences.push(named(Resolution::Refuse, None, String::new(), Some(why)));
                continue;
            }
        };
        let now = tables::find(db, &item.key)?;
        if now.as_ref().is_some_and(|now| now.flags == item.flags && now.value == value) {
            continue;
        }
        let change = if now.is_some() { Resolution::SetBack } else { Resolution::Add };
        let now = now.map(|now| shown(&now.value, now.flags));
        plan.differences.push(named(change, now, shown(&value, item.flags), None));
        plan.puts.push((item.key.clone(), item.flags, value));
    }
    Ok(plan)
}

/// Checks the bounds of an item, as for every write, and returns its value.
fn check(item: &BackupPair) -> Result<Vec<u8>, String> {
    if !(1..=KV_KEY_BYTES_MAX).contains(&item.key.len()) {
        return Err(format!("key: 1 to {KV_KEY_BYTES_MAX} bytes"));
    }
    let value = STANDARD.decode(&item.value).map_err(|_| "value: is not base64".to_owned())?;
    match value.len() <= KV_VALUE_BYTES_MAX {
        true => Ok(value),
        false => Err(format!("value: at most {KV_VALUE_BYTES_MAX} bytes")),
    }
}

/// Shows the beginning of a value.
fn shown(value: &[u8], flags: u64) -> String {
    let start: String = String::from_utf8_lossy(value).chars().take(SHOWN_CHARS_MAX).collect();
    let flags = if flags == 0 { String::new() } else { format!(", flags {flags}") };
    format!("{start:?} ({} bytes{flags})", value.len())
}
