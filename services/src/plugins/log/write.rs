//! Handlers of `POST /log`, `/log/events` and `/records`, which write records.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    append::{append_all, append_one, record_key},
    incoming::{ParsedRecord, TimeUnit},
    input::{self, Batch, Input},
    offsets,
    record::{Level, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, Record, StoredRecord},
    state::LogState,
};
use crate::{
    Problem,
    http::{
        append::{HEARSAY_TOKEN, WriteOptions, with_receipt},
        parameters::Parameters,
        source::Source,
    },
    journal::{AppendError, AppendOptions, Appended, EntryId, Journal, Write, read},
};

/// Maximum number of tokens in the answer to a batch. A read accepts as many.
const TOKENS: usize = 16;

/// Base64 of arbitrary bytes. Padding is optional, because some encoders omit it.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A written record in the response.
#[derive(Serialize)]
struct AppendedRecord {
    id: String,
    offset: Option<u64>,
    ack: &'static str,
}

/// Handles `POST /log`.
pub(super) async fn write_records(
    State(state): State<LogState>,
    uri: Uri,
    headers: HeaderMap,
    source: Source,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack"])?;
    let options = WriteOptions::read(&headers, &parameters)?;
    let journal = state.journal()?;
    match Input::read(&headers, &body).inspect_err(|_| state.count_refused(1))? {
        Input::One(record) => {
            let _reservation = match state
                .admit(journal.as_ref(), source, options.key.iter().cloned().collect(), [&record])
                .await
            {
                Ok(reservation) => reservation,
                Err(refusal) => return Ok(*refusal),
            };
            let appended =
                append_one(journal.as_ref(), options, posted_record(&state, record, source)).await?;
            let offset = look_up_offsets(&state, journal.as_ref(), std::slice::from_ref(&appended)).await;
            Ok(with_receipt(&appended, Json(describe_append(&appended, offset.first().copied().flatten()))))
        }
        Input::Many(batch) => {
            let stored = |ParsedRecord { record, .. }| posted_record(&state, record, source);
            write_batch(&state, journal.as_ref(), (&options, source), batch, stored).await
        }
    }
}

/// Stores the valid records of a batch, and returns the outcome of each record.
async fn write_batch(
    state: &LogState,
    journal: &dyn Journal,
    (options, source): (&WriteOptions, Source),
    batch: Batch,
    stored: impl Fn(ParsedRecord) -> StoredRecord,
) -> Result<Response, Problem> {
    state.count_refused(batch.refused.len());
    let batch = batch.storable()?;
    let keys = options
        .key
        .iter()
        .flat_map(|key| batch.records.iter().map(move |(place, _)| record_key(key, *place)));
    let keys = keys.collect();
    let record = batch.records.iter().map(|(_, line)| &line.record);
    let _reservation = match state.admit(journal, source, keys, record).await {
        Ok(reservation) => reservation,
        Err(refusal) => return Ok(*refusal),
    };
    let refused = (!batch.refused.is_empty()).then(|| batch.refused_json());
    let records: Vec<(usize, StoredRecord)> =
        batch.records.into_iter().map(|(place, line)| (place, stored(line))).collect();
    // Events have no offset; a batch has either events or posted records.
    let numbered = records.first().is_some_and(|(_, record)| !record.is_event);
    match (append_all(journal, options, records).await, refused) {
        (Ok(appended), refused) => Ok(answer_batch(state, journal, &appended, numbered, refused).await),
        (Err(problem), Some(refused)) => Err(problem.with("refused", refused)),
        (Err(problem), None) => Err(problem),
    }
}

/// Handles `POST /log/events`: events that nodes ship. They are listed like all records but have no offset,
/// because no client posted them.
///
/// The rules are those of `POST /log`: the same access, bounds and metrics. In both, node and service are
/// statements of the writer. Only the node that stored the record is proven, by the signature of the run and
/// by the id. No node acts on events. A stronger proof would need a signature for each batch, which each
/// reader would get with the record.
pub(super) async fn write_events(
    State(state): State<LogState>,
    uri: Uri,
    headers: HeaderMap,
    source: Source,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack"])?;
    let options = WriteOptions::read(&headers, &parameters)?;
    let journal = state.journal()?;
    if body.is_empty() {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "the body is empty; send a JSON object in each line",
        ));
    }
    // Nodes send milliseconds, even if their clock was never set.
    let batch = input::lines(&body, TimeUnit::Milliseconds).inspect_err(|_| state.count_refused(1))?;
    let stored = |ParsedRecord { record, node }| {
        let node = node.unwrap_or_else(|| state.host.node().to_owned());
        StoredRecord { record, node, is_event: true, source: source.name() }
    };
    write_batch(&state, journal.as_ref(), (&options, source), batch, stored).await
}

/// Body of `POST /records`.
#[derive(Deserialize)]
#[serde(expecting = "an object with record: {\"record\":{\"value\":\"<base64>\"}}")]
struct Numbered {
    record: Value,
}

#[derive(Deserialize)]
#[serde(expecting = "record, an object with value: {\"record\":{\"value\":\"<base64>\"}}")]
struct Value {
    value: String,
}

/// Handles `POST /records`.
pub(super) async fn write_numbered(
    State(state): State<LogState>,
    uri: Uri,
    headers: HeaderMap,
    source: Source,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack"])?;
    let options = WriteOptions::read(&headers, &parameters)?;
    let journal = state.journal()?;
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail).with("field", "record.value");
    let Numbered { record } = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("{error}; expected {{\"record\":{{\"value\":\"<base64>\"}}}}")))?;
    let message = BASE64
        .decode(record.value.as_bytes())
        .map_err(|error| bad(format!("record.value: not base64: {error}")))?;
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(input::too_long(message.len(), " (record.value)"));
    }
    let record = Record { level: Level::default(), service: None, time_ms: None, message };
    let _reservation =
        match state.admit(journal.as_ref(), source, options.key.iter().cloned().collect(), [&record]).await {
            Ok(reservation) => reservation,
            Err(refusal) => return Ok(*refusal),
        };
    let appended = append_one(journal.as_ref(), options, posted_record(&state, record, source)).await?;
    let offset = look_up_offsets(&state, journal.as_ref(), std::slice::from_ref(&appended)).await;
    Ok(with_receipt(&appended, Json(json!({ "offset": offset.first().copied().flatten() }))))
}

fn posted_record(state: &LogState, record: Record, source: Source) -> StoredRecord {
    StoredRecord { record, node: state.host.node().to_owned(), is_event: false, source: source.name() }
}

/// Answers a batch: 207 with the list of refused records if there are any.
async fn answer_batch(
    state: &LogState,
    journal: &dyn Journal,
    appended: &[Appended],
    numbered: bool,
    refused: Option<serde_json::Value>,
) -> Response {
    let offsets =
        if numbered { look_up_offsets(state, journal, appended).await } else { vec![None; appended.len()] };
    let records: Vec<AppendedRecord> =
        appended.iter().zip(offsets).map(|(appended, offset)| describe_append(appended, offset)).collect();
    let answer = match refused {
        None => Json(json!({ "records": records })).into_response(),
        Some(refused) => {
            let answer = json!({ "records": records, "refused": refused });
            (StatusCode::MULTI_STATUS, Json(answer)).into_response()
        }
    };
    let Some(weakest) = appended.iter().min_by_key(|appended| appended.level) else { return answer };
    let mut response = with_receipt(weakest, answer);
    // Consecutive entries are replicated together, so a few ids, including the last one, suffice for all.
    let step = appended.len().div_ceil(TOKENS);
    let tokens: Vec<String> = appended.iter().rev().step_by(step).map(|a| a.id.to_string()).collect();
    if let Ok(tokens) = HeaderValue::try_from(tokens.join(",")) {
        response.headers_mut().insert(HEARSAY_TOKEN, tokens);
    }
    response
}

fn describe_append(appended: &Appended, offset: Option<u64>) -> AppendedRecord {
    AppendedRecord { id: appended.id.to_string(), offset, ack: appended.level.name() }
}

/// Returns the offsets of written records. `None` for a repetition of a write at another node. Also `None` if
/// the database cannot be read; the record is stored nevertheless.
async fn look_up_offsets(state: &LogState, journal: &dyn Journal, appended: &[Appended]) -> Vec<Option<u64>> {
    let me = state.me();
    let own: Vec<EntryId> = appended.iter().map(|a| a.id).filter(|id| id.feed.writer == me).collect();
    let known: Option<Vec<u64>> = own.iter().map(|id| state.recent.offset(*id)).collect();
    let found: Vec<Option<u64>> = match (known, own.last().copied()) {
        (Some(known), _) => known.into_iter().map(Some).collect(),
        (None, None) => Vec::new(),
        (None, Some(last)) => {
            let epoch = state.recent.begin_lookup(last);
            let ids = own.clone();
            let found = read(journal, move |db| {
                ids.into_iter().map(|id| offsets::offset(db, id, me)).collect::<rusqlite::Result<Vec<_>>>()
            });
            let found = found.await.unwrap_or_else(|_| vec![None; own.len()]);
            if let Some(offset) = found.last().copied().flatten() {
                state.recent.finish_lookup(epoch, last, offset);
            }
            found
        }
    };
    let mut found = found.into_iter();
    appended.iter().map(|a| if a.id.feed.writer == me { found.next().flatten() } else { None }).collect()
}

/// Appends events of this node to its own log, as `POST /log/events` does for other nodes.
///
/// # Errors
/// Some of the events may be stored. A repetition under the same key does no harm.
pub(crate) async fn append_events(
    journal: &dyn Journal,
    node: &str,
    key: &str,
    events: impl IntoIterator<Item = Record>,
) -> Result<(), AppendError> {
    let node: String = node.chars().take(NAME_BYTES_MAX / 4).collect();
    let body = |record| StoredRecord { record, node: node.clone(), is_event: true, source: None }.into_body();
    let write = |(number, record)| Write { key: Some(format!("{key}/{number}")), body: body(record) };
    let writes = events.into_iter().enumerate().map(write).collect();
    let answers = journal.append(writes, AppendOptions::default()).await;
    answers.into_iter().try_for_each(|answer| answer.map(drop))
}
