//! Key/value plug-in: handles the HTTP requests to `/kv`, which read, list, write and delete keys. The store
//! is replicated on all nodes of the role `kv`, and every node's `/v1/kv` (Consul's API) uses it.
//!
//! Every write is an entry of the journal, and so is a deletion. The last write of a key in journal order is
//! in effect, on every replica. `change.rs` encodes entries, `tables.rs` folds and reads them, `index.rs` is
//! the index of blocking queries, `store.rs` has the bounds, `receipt.rs` answers a write, and `writes.rs`
//! names the latest writes of a key.

mod change;
mod index;
mod openapi;
mod receipt;
mod request;
mod restore;
mod store;
mod tables;
mod writes;

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, Uri, header};
use serde_json::Value;

pub use change::{KV_KEY_BYTES_MAX, KV_VALUE_BYTES_MAX};
pub use index::KV_INDEX;

use crate::{
    Host, Problem, Service,
    http::{
        ConnectionHost,
        append::{self, WriteOptions},
        parameters::Parameters,
    },
    journal::{Projection, restore::RestoreSupport},
    service::{Metric, MetricKind, Task},
};
use request::{BlockingQuery, check_key, check_prefix, parse_flags};
use store::{Counts, KvStore, Scope};
use tables::Tables;

/// The role, which is also the topic.
pub const KV_ROLE: &str = "kv";

/// The key/value plug-in.
#[derive(Debug, Default)]
pub struct Kv(Arc<Counts>);

impl Service for Kv {
    fn name(&self) -> &str {
        KV_ROLE
    }

    fn prefixes(&self) -> &[&str] {
        &["/kv"]
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        let store = KvStore::new(host.journal(KV_ROLE), host.node_id(), Arc::clone(&self.0));
        Router::new()
            .route("/kv", get(list).post(restore::restore).delete(delete_prefix))
            .route("/kv/{*key}", get(read).put(write).delete(delete))
            .with_state(store)
    }

    fn projection(&self) -> Option<Arc<dyn Projection>> {
        Some(Arc::new(Tables::new(Arc::clone(&self.0.size))))
    }

    fn restoring(&self) -> RestoreSupport {
        RestoreSupport::Possible(Arc::new(restore::Backup))
    }

    fn drain(&self) -> Option<Task> {
        let counts = Arc::clone(&self.0);
        Some(Box::pin(async move { counts.end_waits() }))
    }

    fn metrics(&self) -> Vec<Metric> {
        let metric = |name, help, kind, value| Metric { name, help, kind, label: None, value };
        let counts = &self.0;
        let writes_refused = "Writes to the key/value store that a bound on keys or bytes refused";
        let waits_refused = "Blocking queries of the key/value store beyond the bound, which were refused";
        let lists_refused = "Lists of the key/value store that were refused as too large";
        let values_dropped = "Large values that were dropped because some of their parts never came";
        vec![
            metric("kv_keys", "Keys of the key/value store", MetricKind::Gauge, counts.size.live()),
            metric(
                "kv_value_bytes",
                "Bytes of all values of the key/value store",
                MetricKind::Gauge,
                counts.size.bytes(),
            ),
            metric("kv_writes_refused", writes_refused, MetricKind::Counter, counts.writes_refused()),
            metric("kv_waits_refused", waits_refused, MetricKind::Counter, counts.waits_refused()),
            metric("kv_lists_refused", lists_refused, MetricKind::Counter, counts.lists_refused()),
            metric("kv_values_dropped", values_dropped, MetricKind::Counter, counts.size.dropped()),
        ]
    }

    fn openapi(&self) -> Value {
        openapi::paths()
    }
}

/// Handles `GET /kv`: the keys and values below a prefix, or the keys only.
async fn list(
    State(store): State<KvStore>,
    host: ConnectionHost,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["prefix", "keys", "separator", "index", "wait"])?;
    let prefix = check_prefix(parameters.single("prefix")?.unwrap_or_default())?;
    let wants_keys = parameters.single("keys")?.map(|value| Parameters::flag("keys", value)).transpose()?;
    let separator = parameters.single("separator")?.unwrap_or_default().to_owned();
    let query = BlockingQuery::read(&parameters)?;
    append::await_tokens(store.journal()?, &headers).await?;
    let scope = Scope::Prefix(prefix.clone());
    if let Some(index) = store.await_change(host, &scope, query).await? {
        return Ok(unchanged(index));
    }
    let (index, body) = match wants_keys.unwrap_or_default() {
        true => {
            let (index, keys) = store.list_keys(prefix, separator).await?;
            (index, Json(keys).into_response())
        }
        false => {
            let (index, pairs) = store.list_pairs(prefix).await?;
            (index, Json(pairs).into_response())
        }
    };
    Ok(([(KV_INDEX, index.to_string())], body).into_response())
}

/// Handles `GET /kv/{key}`.
async fn read(
    State(store): State<KvStore>,
    host: ConnectionHost,
    key: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["raw", "writes", "index", "wait"])?;
    let flag = |name| parameters.single(name)?.map(|value| Parameters::flag(name, value)).transpose();
    let is_raw = flag("raw")?.unwrap_or_default();
    let wants_writes = flag("writes")?.unwrap_or_default();
    if is_raw && wants_writes {
        return Err(Problem::parameter("writes", "is for JSON; ask without raw"));
    }
    let query = BlockingQuery::read(&parameters)?;
    let key = check_key(key)?;
    append::await_tokens(store.journal()?, &headers).await?;
    if let Some(index) = store.await_change(host, &Scope::Key(key.clone()), query).await? {
        return Ok(unchanged(index));
    }
    let (index, pair) = match wants_writes {
        true => return read_with_writes(&store, key).await,
        false => store.find(key).await?,
    };
    let reply = match (pair, is_raw) {
        (None, _) => no_value().into_response(),
        (Some(pair), true) => {
            ([(header::CONTENT_TYPE, "application/octet-stream")], pair.into_value()).into_response()
        }
        (Some(pair), false) => Json(pair).into_response(),
    };
    Ok(([(KV_INDEX, index.to_string())], reply).into_response())
}

/// Answers a key with its value and its latest writes. A deleted key has writes, too.
async fn read_with_writes(store: &KvStore, key: String) -> Result<Response, Problem> {
    let (index, pair, writes) = store.find_with_writes(key).await?;
    let writes = serde_json::json!(writes);
    let reply = match pair {
        None => no_value().with("writes", writes).into_response(),
        Some(pair) => {
            let mut body = serde_json::json!(pair);
            body["writes"] = writes;
            Json(body).into_response()
        }
    };
    Ok(([(KV_INDEX, index.to_string())], reply).into_response())
}

fn no_value() -> Problem {
    Problem::not_found("no value has this key")
}

/// Answers a blocking query that ended without a change.
fn unchanged(index: u64) -> Response {
    (StatusCode::NOT_MODIFIED, [(KV_INDEX, index.to_string())]).into_response()
}

/// Handles `PUT /kv/{key}`. The body is the value.
async fn write(
    State(store): State<KvStore>,
    key: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack", "cas", "flags"])?;
    let options = WriteOptions::read(&headers, &parameters)?;
    let flags = parse_flags(&parameters)?;
    let cas = parameters.parse("cas", "an index, a whole number")?;
    let key = check_key(key)?;
    store.check_cas(&key, cas).await?;
    let receipt = store.write(options, key, flags, body.into()).await?;
    Ok(receipt.answer(StatusCode::NO_CONTENT))
}

/// Handles `DELETE /kv/{key}`. The deletion of an absent key succeeds, too.
async fn delete(
    State(store): State<KvStore>,
    key: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack", "cas"])?;
    let options = WriteOptions::read(&headers, &parameters)?;
    let cas = parameters.parse("cas", "an index, a whole number")?;
    let key = check_key(key)?;
    store.check_cas(&key, cas).await?;
    append::await_tokens(store.journal()?, &headers).await?;
    Ok(store.delete(options, key).await?.answer(StatusCode::NO_CONTENT))
}

/// Handles `DELETE /kv?prefix=P`: deletes the keys that this replica has below the prefix.
async fn delete_prefix(
    State(store): State<KvStore>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack", "prefix"])?;
    let options = WriteOptions::read(&headers, &parameters)?;
    let Some(prefix) = parameters.single("prefix")? else {
        return Err(Problem::parameter("prefix", "is required; an empty one deletes all keys"));
    };
    let prefix = check_prefix(prefix)?;
    append::await_tokens(store.journal()?, &headers).await?;
    Ok(store.delete_prefix(options, prefix).await?.answer(StatusCode::NO_CONTENT))
}

#[cfg(test)]
mod tests;
