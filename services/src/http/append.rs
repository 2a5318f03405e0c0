//! Journal access in HTTP handlers of plug-ins: the options of a write ([`WriteOptions`]), the headers and
//! errors of its response, and reads that wait for a written entry ([`await_tokens`]).
//!
//! A write may have an `Idempotency-Key`, so that a retry counts as the same write, and
//! `?ack=local|replicated|majority`, the durability to wait for. The response has the durability reached in
//! `Hearsay-Ack`, and the id of the entry in `Hearsay-Token`. A read with this token, on any node, waits
//! until the tables include the entry. After two seconds the read is refused.

use std::{str::FromStr, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{
    Problem,
    http::parameters::Parameters,
    journal::{AppendError, AppendOptions, Appended, EntryId, Journal, KEY_BYTES_MAX, Level, Write},
};

/// Header with the id of a written entry. A read that sends the id back includes the entry.
pub const HEARSAY_TOKEN: HeaderName = HeaderName::from_static("hearsay-token");
/// Header with the durability that a write has reached.
pub const HEARSAY_ACK: HeaderName = HeaderName::from_static("hearsay-ack");
/// Header that distinguishes a retry from a second write.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long a read waits for the entries of its tokens.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// Maximum number of tokens in one request.
const TOKENS_MAX: usize = 16;

/// Options of a write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WriteOptions {
    /// Idempotency key.
    pub key: Option<String>,
    /// Durability to wait for.
    pub append: AppendOptions,
}

impl WriteOptions {
    /// Reads the key and the durability from a request.
    ///
    /// # Errors
    /// 400; the problem names the header or parameter.
    pub fn read(headers: &HeaderMap, parameters: &Parameters<'_>) -> Result<Self, Problem> {
        let key = match headers.get(&IDEMPOTENCY_KEY).map(HeaderValue::to_str) {
            None => None,
            Some(Ok(key)) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Some(key.to_owned()),
            Some(_) => {
                let detail = format!("Idempotency-Key: 1 to {KEY_BYTES_MAX} visible ASCII characters");
                return Err(Problem::new(StatusCode::BAD_REQUEST, detail).with("header", "Idempotency-Key"));
            }
        };
        let level =
            match parameters.single("ack")? {
                None => None,
                Some(name) => Some(level(name).ok_or_else(|| {
                    Parameters::refuse("ack", name, "a level: local, replicated or majority")
                })?),
            };
        Ok(Self { key, append: AppendOptions { level, ..AppendOptions::default() } })
    }

    /// Appends one entry.
    ///
    /// # Errors
    /// See [`append_problem`].
    pub async fn write(self, journal: &dyn Journal, body: Vec<u8>) -> Result<Appended, Problem> {
        let answers = journal.append(vec![Write { key: self.key, body }], self.append).await;
        match answers.into_iter().next() {
            Some(Ok(appended)) => Ok(appended),
            Some(Err(error)) => Err(append_problem(&error)),
            None => Err(Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the journal gave no answer; this is a bug",
            )),
        }
    }
}

fn level(name: &str) -> Option<Level> {
    [Level::Local, Level::Replicated, Level::Majority].into_iter().find(|level| level.name() == name)
}

/// Converts a failed append to a problem, which says whether the entry was written.
pub(crate) fn append_problem(error: &AppendError) -> Problem {
    let status = match error {
        AppendError::BodyTooLarge(..) => StatusCode::PAYLOAD_TOO_LARGE,
        AppendError::BadKey(_) => StatusCode::BAD_REQUEST,
        AppendError::KeyTaken(_) => StatusCode::CONFLICT,
        AppendError::Busy | AppendError::DiskFailed | AppendError::Late => StatusCode::SERVICE_UNAVAILABLE,
        AppendError::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        AppendError::Indeterminate(..) => StatusCode::GATEWAY_TIMEOUT,
    };
    let problem = Problem::new(status, error.to_string());
    match error {
        AppendError::KeyTaken(id) => problem.with("id", id.to_string()),
        AppendError::Indeterminate(id, _) => {
            problem.with("id", id.to_string()).with("outcome", "indeterminate")
        }
        AppendError::BodyTooLarge(_, limit) => problem.with("limit", *limit),
        _ => problem,
    }
}

/// Adds the durability and the token to a response.
pub fn with_receipt(appended: &Appended, reply: impl IntoResponse) -> Response {
    let mut reply = reply.into_response();
    let headers = reply.headers_mut();
    headers.insert(HEARSAY_ACK, HeaderValue::from_static(appended.level.name()));
    if let Ok(token) = HeaderValue::try_from(appended.id.to_string()) {
        headers.insert(HEARSAY_TOKEN, token);
    }
    reply
}

/// Waits until the tables include the entries of the request's tokens.
///
/// # Errors
/// 400 for a malformed token; 503 if an entry is still missing after two seconds.
pub async fn await_tokens(journal: &dyn Journal, headers: &HeaderMap) -> Result<(), Problem> {
    let mut tokens = Vec::new();
    for value in headers.get_all(&HEARSAY_TOKEN) {
        for token in value.to_str().unwrap_or_default().split(',').map(str::trim) {
            let id = EntryId::from_str(token);
            tokens.push(id.map_err(|error| {
                Problem::new(StatusCode::BAD_REQUEST, format!("Hearsay-Token: {error}"))
                    .with("header", "Hearsay-Token")
            })?);
        }
    }
    if tokens.len() > TOKENS_MAX {
        let detail = format!("Hearsay-Token: at most {TOKENS_MAX}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail).with("header", "Hearsay-Token"));
    }
    if tokens.is_empty() {
        return Ok(());
    }
    let mut changes = journal.changes();
    let caught_up = async {
        for id in tokens {
            loop {
                changes.borrow_and_update();
                match journal.has(id) {
                    Ok(true) => break,
                    Ok(false) => (),
                    Err(error) => {
                        let detail = format!("the database cannot be read: {error}");
                        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
                    }
                }
                if changes.changed().await.is_err() {
                    return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the node is stopping"));
                }
            }
        }
        Ok(())
    };
    tokio::time::timeout(CATCH_UP_MAX, caught_up).await.unwrap_or_else(|_| {
        let detail = "the entry that Hearsay-Token names has not arrived here yet. Try again, or send the request to the node that wrote it";
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
    })
}
