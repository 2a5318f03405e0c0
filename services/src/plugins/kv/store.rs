//! [`KvStore`]: reads, lists, writes and deletes keys, and waits for changes of them (blocking queries).
//! Enforces the bounds of the store, and counts what it refuses.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hearsay_protocol::NodeId;
use http::StatusCode;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    change::{Change, KV_VALUE_BYTES_MAX, Put, split_deletion},
    index::ReplicaIndex,
    receipt::Receipt,
    request::BlockingQuery,
    tables::{self, Pair, StoreSize},
    writes::{self, KeyWrites},
};
use crate::{
    Problem,
    http::{
        ConnectionHost,
        append::{WriteOptions, append_problem},
    },
    journal::{self, Connection, Journal, KEY_BYTES_MAX, Write},
    network::{Holder, Share, ShareRefusal, Shares},
};

/// Maximum number of keys, deleted ones included: an older write of a deleted key may still arrive.
const KEYS_MAX: u64 = 1_000_000;
/// Maximum number of bytes of all values.
const STORE_BYTES_MAX: u64 = 1 << 30;
/// Maximum number of bytes of a list. A node that forwards the list reads 4 MiB.
const LIST_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Maximum number of blocking queries at this replica. Guess: each reads the database after every change.
/// Each host has a [share](Shares): a client, or a node that asks for its own clients.
pub(super) const WAITS_MAX: usize = 1024;
/// Seconds after which a query beyond the limit may be tried again.
const WAIT_RETRY_S: u16 = 5;
/// Keys that a deletion of a prefix reads at once.
const DELETED_AT_ONCE: usize = 1000;
/// Bytes that the number of an entry adds to an idempotency key.
const NUMBER_BYTES_MAX: usize = 12;

/// Counters of the plug-in.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) size: Arc<StoreSize>,
    writes_refused: AtomicU64,
    waits_refused: AtomicU64,
    lists_refused: AtomicU64,
    /// Whether the node stops, and blocking queries are to end.
    is_leaving: watch::Sender<bool>,
}

impl Counts {
    pub(super) fn writes_refused(&self) -> u64 {
        self.writes_refused.load(Ordering::Relaxed)
    }

    pub(super) fn lists_refused(&self) -> u64 {
        self.lists_refused.load(Ordering::Relaxed)
    }

    /// Ends all blocking queries.
    pub(super) fn end_waits(&self) {
        self.is_leaving.send_replace(true);
    }

    pub(super) fn waits_refused(&self) -> u64 {
        self.waits_refused.load(Ordering::Relaxed)
    }
}

/// The keys whose changes a blocking query waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    Key(String),
    Prefix(String),
}

impl Scope {
    /// Returns the number of its latest change. `None`: there is none.
    fn changed(&self, db: &Connection) -> rusqlite::Result<Option<u64>> {
        match self {
            Self::Key(key) => tables::changed_key(db, key),
            Self::Prefix(prefix) => tables::changed_prefix(db, prefix),
        }
    }

    /// Returns whether it has changed after a number of changes.
    fn has_changed(&self, db: &Connection, seen: u64) -> rusqlite::Result<bool> {
        match self {
            Self::Key(key) => Ok(tables::changed_key(db, key)?.is_some_and(|changed| seen < changed)),
            Self::Prefix(prefix) => tables::has_changed(db, prefix, seen),
        }
    }
}

/// Shared state of the handlers.
#[derive(Clone)]
pub(super) struct KvStore {
    journal: Option<Arc<dyn Journal>>,
    node: NodeId,
    counts: Arc<Counts>,
    waits: Arc<Shares>,
}

impl KvStore {
    /// The store at this node.
    pub(super) fn new(journal: Option<Arc<dyn Journal>>, node: NodeId, counts: Arc<Counts>) -> Self {
        Self { journal, node, counts, waits: Shares::new(WAITS_MAX) }
    }

    /// Returns the journal.
    ///
    /// # Errors
    /// 503: this node has none.
    pub(super) fn journal(&self) -> Result<&dyn Journal, Problem> {
        self.journal.as_deref().ok_or_else(|| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this node does not keep the key/value store. Send the request to another kv node",
            )
        })
    }

    /// Waits until a scope has changed since the index of the client. Returns the index if it has not changed
    /// when the wait is over. The wait is charged to `host`.
    ///
    /// # Errors
    /// 429: too many queries wait. 503: the database cannot be read.
    pub(super) async fn await_change(
        &self,
        ConnectionHost(host): ConnectionHost,
        scope: &Scope,
        query: BlockingQuery,
    ) -> Result<Option<u64>, Problem> {
        let Some(index) = query.seen else { return Ok(None) };
        let ends = Instant::now() + query.wait;
        let (journal, node) = (self.journal()?, self.node);
        let mut changes = journal.changes();
        let mut leaving = self.counts.is_leaving.subscribe();
        let mut permit = None;
        let mut seen = index;
        loop {
            changes.borrow_and_update();
            let asked = scope.clone();
            match journal::read(journal, move |db| unchanged_until(db, node, &asked, seen)).await? {
                None => return Ok(None),
                Some(until) => seen = until,
            }
            if permit.is_none() {
                permit = Some(self.admit_wait(Holder::Host(host))?);
            }
            tokio::select! {
                () = sleep_until(ends) => return Ok(Some(index)),
                () = async { _ = leaving.wait_for(|is_leaving| *is_leaving).await; } => return Ok(Some(index)),
                changed = changes.changed() => if changed.is_err() {
                    return Ok(Some(index));
                },
            }
        }
    }

    fn admit_wait(&self, holder: Holder) -> Result<Share, Problem> {
        self.waits.take(holder, None).map_err(|refusal| {
            self.counts.waits_refused.fetch_add(1, Ordering::Relaxed);
            let detail = match refusal {
                ShareRefusal::Full => format!(
                    "{WAITS_MAX} blocking queries wait at this node already; ask another kv node, or ask without index"
                ),
                ShareRefusal::Share => format!(
                    "your host holds its share of the {WAITS_MAX} blocking queries of this node; end some, ask another kv node, or ask \
                     without index"
                ),
            };
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(WAIT_RETRY_S)
        })
    }

    /// Returns a key and its index. The index of a key that was never written is that of the whole store.
    ///
    /// # Errors
    /// 503: the database cannot be read.
    pub(super) async fn find(&self, key: String) -> Result<(u64, Option<Pair>), Problem> {
        let node = self.node;
        let found = move |db: &Connection| {
            // The index is read first: a change in between ends the next wait at once.
            let (replica, index) = index_of(db, node, &Scope::Key(key.clone()))?;
            Ok((index, tables::find(db, &key)?.map(|pair| numbered(replica, pair))))
        };
        journal::read(self.journal()?, found).await
    }

    /// Returns a key and its index, as [`find`](Self::find), and its latest writes.
    ///
    /// # Errors
    /// 503: the database cannot be read.
    pub(super) async fn find_with_writes(
        &self,
        key: String,
    ) -> Result<(u64, Option<Pair>, Option<KeyWrites>), Problem> {
        let node = self.node;
        let found = move |db: &Connection| {
            let (replica, index) = index_of(db, node, &Scope::Key(key.clone()))?;
            // One transaction, so that the writes are those of the value.
            let db = db.unchecked_transaction()?;
            let pair = tables::find(&db, &key)?.map(|pair| numbered(replica, pair));
            Ok((index, pair, writes::find_writes(&db, &key)?))
        };
        journal::read(self.journal()?, found).await
    }

    /// Lists the keys and values below a prefix, and its index.
    ///
    /// # Errors
    /// 413: the list is too large. 503: the database cannot be read.
    pub(super) async fn list_pairs(&self, prefix: String) -> Result<(u64, Vec<Pair>), Problem> {
        let node = self.node;
        let list = move |db: &Connection| {
            let index = index_of(db, node, &Scope::Prefix(prefix.clone()))?;
            Ok((index, tables::list_pairs(db, &prefix, LIST_BYTES_MAX)?))
        };
        let ((replica, index), pairs) = journal::read(self.journal()?, list).await?;
        let pairs =
            pairs.ok_or_else(|| self.too_large())?.into_iter().map(|pair| numbered(replica, pair)).collect();
        Ok((index, pairs))
    }

    /// Lists the keys below a prefix, and its index.
    ///
    /// # Errors
    /// As [`list_pairs`](Self::list_pairs).
    pub(super) async fn list_keys(
        &self,
        prefix: String,
        separator: String,
    ) -> Result<(u64, Vec<String>), Problem> {
        let node = self.node;
        let list = move |db: &Connection| {
            let (_, index) = index_of(db, node, &Scope::Prefix(prefix.clone()))?;
            Ok((index, tables::list_keys(db, &prefix, &separator, LIST_BYTES_MAX)?))
        };
        let (index, keys) = journal::read(self.journal()?, list).await?;
        Ok((index, keys.ok_or_else(|| self.too_large())?))
    }

    fn too_large(&self) -> Problem {
        self.counts.lists_refused.fetch_add(1, Ordering::Relaxed);
        let detail = format!(
            "the list has more than {LIST_BYTES_MAX} bytes; ask for a longer prefix, or for keys only"
        );
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).with("limit", LIST_BYTES_MAX)
    }

    /// Checks the index of a compare-and-set.
    ///
    /// # Errors
    /// 412: the key has another index here. 501: it has this one, which proves nothing about other replicas.
    pub(super) async fn check_cas(&self, key: &str, cas: Option<u64>) -> Result<(), Problem> {
        let Some(expected) = cas else { return Ok(()) };
        let (_, pair) = self.find(key.to_owned()).await?;
        if expected != pair.map_or(0, |pair| pair.modify_index) {
            let detail = "cas: the key has another index";
            return Err(Problem::new(StatusCode::PRECONDITION_FAILED, detail).with("parameter", "cas"));
        }
        let detail = "cas: a compare with one replica is no compare with the cluster, because another replica may accept a write at the \
                      same time; write without cas, or use a system with consensus";
        Err(Problem::new(StatusCode::NOT_IMPLEMENTED, detail).with("parameter", "cas"))
    }

    /// Sets a value.
    ///
    /// # Errors
    /// 413: the value is too large. 507: the store is full. See also [`append_problem`].
    pub(super) async fn write(
        &self,
        options: WriteOptions,
        key: String,
        flags: u64,
        value: Vec<u8>,
    ) -> Result<Receipt, Problem> {
        if value.len() > KV_VALUE_BYTES_MAX {
            self.counts.writes_refused.fetch_add(1, Ordering::Relaxed);
            let detail = format!("value: at most {KV_VALUE_BYTES_MAX} bytes, this one has {}", value.len());
            let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail);
            return Err(problem.with("field", "value").with("limit", KV_VALUE_BYTES_MAX));
        }
        self.check_room(key.clone(), value.len() as u64).await?;
        // A repeated write under one idempotency key must have the same body.
        let write = match &options.key {
            None => fastrand::u64(..),
            Some(key) => {
                let hash = blake3::hash(key.as_bytes());
                hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
            }
        };
        let mut changes = Put::split(&key, flags, value, write);
        let receipt = self.append(&options, &changes).await?;
        if receipt.is_of_one_feed() {
            return Ok(receipt);
        }
        // An earlier attempt at another replica, or before a restart, has left some of the parts in another
        // feed. Parts join within a feed, and those that are missing there may never come. So the whole value
        // is written again, without the key, which stands for the earlier parts.
        Put::renumber(&mut changes, fastrand::u64(..));
        self.append(&WriteOptions { key: None, ..options }, &changes).await
    }

    /// Checks the bounds of the store before a key is set, or is deleted (no bytes).
    ///
    /// # Errors
    /// 507: the store is full. 503: the database cannot be read.
    pub(super) async fn check_room(&self, key: String, bytes: u64) -> Result<(), Problem> {
        let look = move |db: &Connection| Ok((tables::totals(db)?, tables::value_bytes(db, &key)?));
        let (totals, before) = journal::read(self.journal()?, look).await?;
        let freed = before.flatten().unwrap_or(0);
        let problem = if before.is_none() && totals.keys >= KEYS_MAX {
            format!(
                "the key/value store has {KEYS_MAX} keys, deleted ones included, which is the limit; use an existing key"
            )
        } else if bytes > freed && totals.bytes - freed.min(totals.bytes) + bytes > STORE_BYTES_MAX {
            format!("the values of the key/value store may have {STORE_BYTES_MAX} bytes; delete some")
        } else {
            return Ok(());
        };
        self.counts.writes_refused.fetch_add(1, Ordering::Relaxed);
        Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, problem))
    }

    /// Deletes a key. A key that is absent here is deleted, too: an older write of it may still arrive.
    ///
    /// # Errors
    /// 507: the key was never written here, and the store is full. See also [`append_problem`].
    pub(super) async fn delete(&self, options: WriteOptions, key: String) -> Result<Receipt, Problem> {
        self.check_room(key.clone(), 0).await?;
        self.append(&options, &[Change::Delete(vec![key])]).await
    }

    /// Deletes the keys below a prefix. The receipt is empty if there are none.
    ///
    /// # Errors
    /// See [`append_problem`]. Some of the keys may be deleted then.
    pub(super) async fn delete_prefix(
        &self,
        options: WriteOptions,
        prefix: String,
    ) -> Result<Receipt, Problem> {
        // Each round has other bodies, so the client's key cannot stand for them. A repetition is harmless.
        let options = WriteOptions { key: None, ..options };
        let mut receipt = Receipt::default();
        loop {
            let look = prefix.clone();
            let keys =
                journal::read(self.journal()?, move |db| tables::first_keys(db, &look, DELETED_AT_ONCE));
            let keys = keys.await?;
            let is_end = keys.len() < DELETED_AT_ONCE;
            if !keys.is_empty() {
                receipt.extend(self.append(&options, &split_deletion(keys)).await?);
            }
            if is_end {
                return Ok(receipt);
            }
        }
    }

    /// Appends changes, at least one.
    async fn append(&self, options: &WriteOptions, changes: &[Change]) -> Result<Receipt, Problem> {
        if options.key.as_ref().is_some_and(|key| key.len() + NUMBER_BYTES_MAX > KEY_BYTES_MAX) {
            let detail = format!("Idempotency-Key: at most {} bytes", KEY_BYTES_MAX - NUMBER_BYTES_MAX);
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail).with("header", "Idempotency-Key"));
        }
        let key = |number: usize| {
            options.key.as_ref().map(|key| if number == 0 { key.clone() } else { format!("{key} {number}") })
        };
        let writes = changes.iter().enumerate();
        let writes =
            writes.map(|(number, change)| Write { key: key(number), body: change.encode() }).collect();
        let mut entries = Vec::with_capacity(changes.len());
        for answer in self.journal()?.append(writes, options.append).await {
            entries.push(answer.map_err(|error| append_problem(&error))?);
        }
        if entries.is_empty() { Err(no_answer()) } else { Ok(Receipt::new(entries)) }
    }
}

/// Returns the index of the latest change in a scope; in a scope without one, that of the whole store.
fn index_of(db: &Connection, node: NodeId, scope: &Scope) -> rusqlite::Result<(ReplicaIndex, u64)> {
    let totals = tables::totals(db)?;
    let replica = ReplicaIndex::of(node, totals.tables);
    Ok((replica, replica.encode(scope.changed(db)?.unwrap_or(totals.changes))))
}

/// Returns the index of the whole store, if a scope has not changed since an earlier index. `None`: it has
/// changed, or the earlier index is not of these tables.
fn unchanged_until(db: &Connection, node: NodeId, scope: &Scope, seen: u64) -> rusqlite::Result<Option<u64>> {
    // Read first, so that no change in between is passed over.
    let totals = tables::totals(db)?;
    let replica = ReplicaIndex::of(node, totals.tables);
    let Some(seen) = replica.decode(seen) else { return Ok(None) };
    // The client may have seen changes that this replica has lost, for example with its disk.
    if totals.changes < seen || scope.has_changed(db, seen)? {
        return Ok(None);
    }
    Ok(Some(replica.encode(totals.changes)))
}

/// Replaces the numbers of changes by indexes.
fn numbered(replica: ReplicaIndex, pair: Pair) -> Pair {
    let [create_index, modify_index] =
        [pair.create_index, pair.modify_index].map(|changes| replica.encode(changes));
    Pair { create_index, modify_index, ..pair }
}

fn no_answer() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the journal gave no answer; this is a bug")
}
