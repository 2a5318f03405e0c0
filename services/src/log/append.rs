//! Appending records under the key of a request.
//!
//! A record names the node that took it. So a retry that goes to another node comes with the same key and another body, which the journal must
//! refuse: a key names one write. Whether the two differ in that name alone, only the log can tell; then the first one is appended again, word
//! for word, which the journal knows as the same write, and answers with the level that it has.

use http::StatusCode;

use super::{record::Stored, tables};
use crate::{
    Problem,
    journal::{AppendError, Appended, EntryId, Journal, KEY_BYTES_MAX, Wanted, Write, read},
    writing::{self, Wish},
};

/// Records and their parts in a key: `/999`.
const NUMBER_BYTES_MAX: usize = 4;

/// Appends one record under the key of its request.
///
/// # Errors
/// As those of [`writing::problem`].
pub(super) async fn append_one(
    journal: &dyn Journal,
    wish: Wish,
    record: Stored,
) -> Result<Appended, Problem> {
    let answers = append(journal, wish.wanted, vec![(wish.key, record)]).await;
    match answers.into_iter().next() {
        Some(answer) => answer.map_err(|error| writing::problem(&error)),
        None => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "no answer; this is a defect")),
    }
}

/// Appends all of these, which have these places in the request. With a key, each has one of its own, made of the key and its place, so that a
/// repetition of all is the same writes, however many of them were done the first time.
///
/// # Errors
/// Some were not stored; how many were, stands in the problem.
pub(super) async fn append_all(
    journal: &dyn Journal,
    wish: &Wish,
    records: Vec<(usize, Stored)>,
) -> Result<Vec<Appended>, Problem> {
    if wish.key.as_ref().is_some_and(|key| key.len() + NUMBER_BYTES_MAX > KEY_BYTES_MAX) {
        let detail = format!(
            "Idempotency-Key: for several records, at most {} bytes",
            KEY_BYTES_MAX - NUMBER_BYTES_MAX
        );
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail).with("header", "Idempotency-Key"));
    }
    let total = records.len();
    let key = |place: usize| wish.key.as_ref().map(|key| format!("{key}/{place}"));
    let records = records.into_iter().map(|(place, record)| (key(place), record)).collect();
    let mut appended = Vec::with_capacity(total);
    let mut failed = None;
    for answer in append(journal, wish.wanted, records).await {
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
                "{error}; {stored} of {total} records were stored: repeat all under an Idempotency-Key"
            );
            Err(Problem::new(writing::problem(&error).status(), detail).with("stored", stored))
        }
    }
}

async fn append(
    journal: &dyn Journal,
    wanted: Wanted,
    records: Vec<(Option<String>, Stored)>,
) -> Vec<Result<Appended, AppendError>> {
    let keyed: Vec<Option<(String, Stored)>> =
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
    // What cannot be read cannot be compared, and stays a conflict.
    let found = found.await.unwrap_or_default();
    let (mut places, mut again) = (Vec::new(), Vec::new());
    for ((place, _), first) in taken.into_iter().zip(found) {
        let ours = keyed.get(place).and_then(Option::as_ref);
        if let (Some((key, ours)), Some(first)) = (ours, first)
            && (&first.said, first.is_event) == (&ours.said, ours.is_event)
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
