//! Appends records to the log's journal under the idempotency key of their request.
//!
//! A stored record names the node that took it. A retry at another node has the same key but another body,
//! which the journal refuses as a conflict. If the two records differ only in that name, the stored record is
//! appended again, byte for byte. The journal recognises it as the same write and answers with its level.

use http::StatusCode;

use super::{record::StoredRecord, tables};
use crate::{
    Problem,
    http::append::{self, WriteOptions},
    journal::{AppendError, AppendOptions, Appended, EntryId, Journal, KEY_BYTES_MAX, Write, read},
};

/// Maximum number of bytes of the position that is added to the key of a request: `/999`.
const NUMBER_BYTES_MAX: usize = 4;

/// Appends one record under the key of its request.
///
/// # Errors
/// See [`append::append_problem`].
pub(super) async fn append_one(
    journal: &dyn Journal,
    options: WriteOptions,
    record: StoredRecord,
) -> Result<Appended, Problem> {
    let answers = append(journal, options.append, vec![(options.key, record)]).await;
    match answers.into_iter().next() {
        Some(answer) => answer.map_err(|error| append::append_problem(&error)),
        None => {
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the journal gave no answer; this is a bug"))
        }
    }
}

/// Returns the key of a record, from the key of the request and the record's position in the request.
pub(super) fn record_key(key: &str, place: usize) -> String {
    format!("{key}/{place}")
}

/// Appends records, given with their positions in the request. If the request has a key, each record has a
/// key of its own. So a repetition of the request repeats the same writes, even if only some of them
/// succeeded before.
///
/// # Errors
/// Some records were not stored. The problem says how many were.
pub(super) async fn append_all(
    journal: &dyn Journal,
    options: &WriteOptions,
    records: Vec<(usize, StoredRecord)>,
) -> Result<Vec<Appended>, Problem> {
    if options.key.as_ref().is_some_and(|key| key.len() + NUMBER_BYTES_MAX > KEY_BYTES_MAX) {
        let detail = format!(
            "Idempotency-Key: for several records, at most {} bytes",
            KEY_BYTES_MAX - NUMBER_BYTES_MAX
        );
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail).with("header", "Idempotency-Key"));
    }
    let total = records.len();
    let key = |place: usize| options.key.as_ref().map(|key| record_key(key, place));
    let records = records.into_iter().map(|(place, record)| (key(place), record)).collect();
    let mut appended = Vec::with_capacity(total);
    let mut failed = None;
    for answer in append(journal, options.append, records).await {
        match answer {
            Ok(done) => appended.push(done),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        None => Ok(appended),
        Some(error) => {
            let stored = appended.len();
            let detail = format!(
                "{error}; {stored} of {total} records were stored. Repeat all of them with an Idempotency-Key"
            );
            Err(Problem::new(append::append_problem(&error).status(), detail).with("stored", stored))
        }
    }
}

async fn append(
    journal: &dyn Journal,
    wanted: AppendOptions,
    records: Vec<(Option<String>, StoredRecord)>,
) -> Vec<Result<Appended, AppendError>> {
    let keyed: Vec<Option<(String, StoredRecord)>> =
        records.iter().map(|(key, record)| Some((key.clone()?, record.clone()))).collect();
    let writes = records.into_iter().map(|(key, record)| Write { key, body: record.into_body() }).collect();
    let mut answers = journal.append(writes, wanted).await;
    let is_taken = |(place, answer): (usize, &Result<Appended, AppendError>)| match answer {
        Err(AppendError::KeyTaken(id)) => Some((place, *id)),
        _ => None,
    };
    let taken: Vec<(usize, EntryId)> = answers.iter().enumerate().filter_map(is_taken).collect();
    if taken.is_empty() {
        return answers;
    }
    let ids: Vec<EntryId> = taken.iter().map(|(_, id)| *id).collect();
    let found = read(journal, move |db| {
        ids.into_iter().map(|id| tables::stored(db, id)).collect::<rusqlite::Result<Vec<_>>>()
    });
    // A record that cannot be read cannot be compared: the conflict stands.
    let found = found.await.unwrap_or_default();
    let (mut places, mut again) = (Vec::new(), Vec::new());
    for ((place, _), first) in taken.into_iter().zip(found) {
        let ours = keyed.get(place).and_then(Option::as_ref);
        if let (Some((key, ours)), Some(first)) = (ours, first)
            && (&first.record, first.is_event) == (&ours.record, ours.is_event)
        {
            places.push(place);
            again.push(Write { key: Some(key.clone()), body: first.into_body() });
        }
    }
    if !again.is_empty() {
        for (place, answer) in places.into_iter().zip(journal.append(again, wanted).await) {
            if let Some(slot) = answers.get_mut(place) {
                *slot = answer;
            }
        }
    }
    answers
}
