//! Writing to the journal over HTTP: what a request may ask for, what a reply tells, and what each error means.
//!
//! A write may carry `Idempotency-Key` (a retry under the same key is the same write) and `?ack=local|replicated|majority` (how many disks it
//! must be on before it is answered). A reply names the level that was reached in `Hearsay-Ack`, and in `Hearsay-Token` what was
//! written: a read that presents the token, on any node, sees it or is refused.

use std::{str::FromStr, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{
    Problem,
    journal::{AppendError, Appended, EntryId, Journal, KEY_BYTES_MAX, Level, Wanted, Write},
    parameters::Parameters,
};

/// Names what was written; sent back with a read, it asks to see that.
pub const TOKEN: HeaderName = HeaderName::from_static("hearsay-token");
/// The level that a write has reached.
pub const ACK: HeaderName = HeaderName::from_static("hearsay-ack");
/// Tells a retry from a second write.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long a read waits for what its token names.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// Tokens in one request.
const TOKENS_MAX: usize = 16;

/// What a request asks of its write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// The idempotency key.
    pub key: Option<String>,
    /// When to answer.
    pub wanted: Wanted,
}

impl Wish {
    /// Reads the key and the level.
    ///
    /// # Errors
    /// 400, naming what cannot be read.
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
            match parameters.one("ack")? {
                None => None,
                Some(name) => Some(level(name).ok_or_else(|| {
                    Parameters::refuse("ack", name, "a level: local, replicated or majority")
                })?),
            };
        Ok(Self { key, wanted: Wanted { level, ..Wanted::default() } })
    }

    /// Writes one entry.
    ///
    /// # Errors
    /// See [`problem`].
    pub async fn write(self, journal: &dyn Journal, body: Vec<u8>) -> Result<Appended, Problem> {
        let answers = journal.append(vec![Write { key: self.key, body }], self.wanted).await;
        match answers.into_iter().next() {
            Some(Ok(appended)) => Ok(appended),
            Some(Err(error)) => Err(problem(&error)),
            None => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "no answer; this is a defect")),
        }
    }
}

fn level(name: &str) -> Option<Level> {
    [Level::Local, Level::Replicated, Level::Majority].into_iter().find(|level| level.name() == name)
}

/// What an append that failed means to a client, and what has become of the write.
pub fn problem(error: &AppendError) -> Problem {
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

/// Puts what was reached into a reply.
pub fn told(appended: &Appended, reply: impl IntoResponse) -> Response {
    let mut reply = reply.into_response();
    let headers = reply.headers_mut();
    headers.insert(ACK, HeaderValue::from_static(appended.level.name()));
    if let Ok(token) = HeaderValue::try_from(appended.id.to_string()) {
        headers.insert(TOKEN, token);
    }
    reply
}

/// Waits until everything is here that the request's tokens name.
///
/// # Errors
/// 400 for what is no token; 503 where it is not here after two seconds.
pub async fn catch_up(journal: &dyn Journal, headers: &HeaderMap) -> Result<(), Problem> {
    let mut tokens = Vec::new();
    for value in headers.get_all(&TOKEN) {
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
        let detail = "what Hearsay-Token names is not here yet; try again, or ask the node that wrote it";
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
    })
}
