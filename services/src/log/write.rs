//! Writing to the log.

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
    Desk,
    append::{append_all, append_one},
    incoming::{Line, TimeUnit},
    input::{self, Batch, Input},
    numbers,
    record::{Level, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, Said, Stored},
};
use crate::{
    Problem,
    journal::{AppendError, Appended, EntryId, Journal, Wanted, Write, read},
    parameters::Parameters,
    writing::{TOKEN, Wish, told},
};

/// Tokens in the answer to several records; a read takes as many.
const TOKENS: usize = 16;

/// A value of any bytes, as JSON carries it. Padding may be left out, as some encoders do.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What became of a record.
#[derive(Serialize)]
struct Told {
    id: String,
    offset: Option<u64>,
    ack: &'static str,
}

/// `POST /log`.
pub(super) async fn records(
    State(desk): State<Desk>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack"])?;
    let wish = Wish::read(&headers, &parameters)?;
    let journal = desk.journal()?;
    match Input::read(&headers, &body).inspect_err(|_| desk.count_refused(1))? {
        Input::One(said) => {
            let appended = append_one(journal.as_ref(), wish, posted(&desk, said)).await?;
            let offset = look_up(&desk, journal.as_ref(), std::slice::from_ref(&appended)).await;
            Ok(told(&appended, Json(tell(&appended, offset.first().copied().flatten()))))
        }
        Input::Many(batch) => {
            write_many(&desk, journal.as_ref(), &wish, batch, |Line { said, .. }| posted(&desk, said)).await
        }
    }
}

/// Writes what of a batch makes sense, and answers with what became of each record.
async fn write_many(
    desk: &Desk,
    journal: &dyn Journal,
    wish: &Wish,
    batch: Batch,
    stored: impl Fn(Line) -> Stored,
) -> Result<Response, Problem> {
    desk.count_refused(batch.refused.len());
    let batch = batch.storable()?;
    let refused = (!batch.refused.is_empty()).then(|| batch.refused_json());
    let records: Vec<(usize, Stored)> =
        batch.records.into_iter().map(|(place, line)| (place, stored(line))).collect();
    // Events have no offset, and come alone.
    let numbered = records.first().is_some_and(|(_, record)| !record.is_event);
    match (append_all(journal, wish, records).await, refused) {
        (Ok(appended), refused) => Ok(answer_many(desk, journal, &appended, numbered, refused).await),
        (Err(problem), Some(refused)) => Err(problem.with("refused", refused)),
        (Err(problem), None) => Err(problem),
    }
}

/// `POST /log/events`: what nodes ship of themselves. Listed like every record, and without an offset, because no client posted it.
///
/// It stands on the same footing as `POST /log`: whoever reaches this path can write, within the same bounds of bytes and records, and is counted in
/// the same metrics. That a record is of a node, or of a service, is what its writer says, in both. What is proven is less: which node wrote it
/// down, by the run's signature and in the record's id. Events are no evidence, and nothing in a node acts on them; proving more would take a
/// signature on each batch, which a record would have to carry to every reader.
pub(super) async fn events(
    State(desk): State<Desk>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack"])?;
    let wish = Wish::read(&headers, &parameters)?;
    let journal = desk.journal()?;
    if body.is_empty() {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "the body is empty; send a JSON object in each line",
        ));
    }
    // Nodes write milliseconds, also where their clock was never set.
    let batch = input::lines(&body, TimeUnit::Milliseconds).inspect_err(|_| desk.count_refused(1))?;
    let stored = |Line { said, node }| {
        let node = node.unwrap_or_else(|| desk.host.node().to_owned());
        Stored { said, node, is_event: true }
    };
    write_many(&desk, journal.as_ref(), &wish, batch, stored).await
}

/// What `POST /records` takes.
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

/// `POST /records`.
pub(super) async fn numbered(
    State(desk): State<Desk>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack"])?;
    let wish = Wish::read(&headers, &parameters)?;
    let journal = desk.journal()?;
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail).with("field", "record.value");
    let Numbered { record } = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("{error}; expected {{\"record\":{{\"value\":\"<base64>\"}}}}")))?;
    let message = BASE64
        .decode(record.value.as_bytes())
        .map_err(|error| bad(format!("record.value: no base64: {error}")))?;
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(input::too_long(message.len(), " (record.value)"));
    }
    let said = Said { level: Level::default(), service: None, time_ms: None, message };
    let appended = append_one(journal.as_ref(), wish, posted(&desk, said)).await?;
    let offset = look_up(&desk, journal.as_ref(), std::slice::from_ref(&appended)).await;
    Ok(told(&appended, Json(json!({ "offset": offset.first().copied().flatten() }))))
}

fn posted(desk: &Desk, said: Said) -> Stored {
    Stored { said, node: desk.host.node().to_owned(), is_event: false }
}

/// `refused`: the list of the records that are not stored; 207 says that there are some.
async fn answer_many(
    desk: &Desk,
    journal: &dyn Journal,
    appended: &[Appended],
    numbered: bool,
    refused: Option<serde_json::Value>,
) -> Response {
    let offsets = if numbered { look_up(desk, journal, appended).await } else { vec![None; appended.len()] };
    let records: Vec<Told> =
        appended.iter().zip(offsets).map(|(appended, offset)| tell(appended, offset)).collect();
    let answer = match refused {
        None => Json(json!({ "records": records })).into_response(),
        Some(refused) => {
            let told = json!({ "records": records, "refused": refused });
            (StatusCode::MULTI_STATUS, Json(told)).into_response()
        }
    };
    let Some(weakest) = appended.iter().min_by_key(|appended| appended.level) else { return answer };
    let mut response = told(weakest, answer);
    // What follows one another is replicated together, so a few of them, the last among them, stand for all.
    let step = appended.len().div_ceil(TOKENS);
    let tokens: Vec<String> = appended.iter().rev().step_by(step).map(|a| a.id.to_string()).collect();
    if let Ok(tokens) = HeaderValue::try_from(tokens.join(",")) {
        response.headers_mut().insert(TOKEN, tokens);
    }
    response
}

fn tell(appended: &Appended, offset: Option<u64>) -> Told {
    Told { id: appended.id.to_string(), offset, ack: appended.level.name() }
}

/// The offsets of what was written. None where it was the repetition of a write to another node, or cannot be read: written it is.
async fn look_up(desk: &Desk, journal: &dyn Journal, appended: &[Appended]) -> Vec<Option<u64>> {
    let me = desk.me();
    let own: Vec<EntryId> = appended.iter().map(|a| a.id).filter(|id| id.feed.writer == me).collect();
    let known: Option<Vec<u64>> = own.iter().map(|id| desk.recent.offset(*id)).collect();
    let found: Vec<Option<u64>> = match (known, own.last().copied()) {
        (Some(known), _) => known.into_iter().map(Some).collect(),
        (None, None) => Vec::new(),
        (None, Some(last)) => {
            let epoch = desk.recent.asking(last);
            let ids = own.clone();
            let found = read(journal, move |db| {
                ids.into_iter().map(|id| numbers::offset(db, id, me)).collect::<rusqlite::Result<Vec<_>>>()
            });
            let found = found.await.unwrap_or_else(|_| vec![None; own.len()]);
            if let Some(offset) = found.last().copied().flatten() {
                desk.recent.learn(epoch, last, offset);
            }
            found
        }
    };
    let mut found = found.into_iter();
    appended.iter().map(|a| if a.id.feed.writer == me { found.next().flatten() } else { None }).collect()
}

/// Why events were not stored, or not all of them. Under the same key they can be tried again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unstored {
    /// The journal would not, or could not.
    #[error(transparent)]
    Journal(#[from] AppendError),
}

/// Writes what happened to this node into its own journal of the log, as `POST /log/events` does for others.
///
/// # Errors
/// Some of it may be written; the same key makes a repetition harmless.
pub async fn append_events(
    journal: &dyn Journal,
    node: &str,
    key: &str,
    events: impl IntoIterator<Item = Said>,
) -> Result<(), Unstored> {
    let node: String = node.chars().take(NAME_BYTES_MAX / 4).collect();
    let body = |said| Stored { said, node: node.clone(), is_event: true }.into_body();
    let write = |(number, said)| Write { key: Some(format!("{key}/{number}")), body: body(said) };
    let writes = events.into_iter().enumerate().map(write).collect();
    let answers = journal.append(writes, Wanted::default()).await;
    answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(Unstored::from))
}
