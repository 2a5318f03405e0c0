//! Parses and checks parts of requests to the key/value store: keys, prefixes, flags, and the index and wait
//! time of a blocking query.

use std::time::Duration;

use axum::extract::{Path, rejection::PathRejection};
use http::StatusCode;

use super::change::KV_KEY_BYTES_MAX;
use crate::{Problem, http::parameters::Parameters};

/// Default of `wait`, as in Consul.
const WAIT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Bound on `wait`, as in Consul.
const WAIT_MAX: Duration = Duration::from_secs(10 * 60);

/// The parameters of a blocking query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BlockingQuery {
    /// Index that the client has seen.
    pub(super) seen: Option<u64>,
    /// Longest wait.
    pub(super) wait: Duration,
}

impl BlockingQuery {
    /// Reads `index` and `wait`.
    ///
    /// # Errors
    /// 400 names the parameter.
    pub(super) fn read(parameters: &Parameters<'_>) -> Result<Self, Problem> {
        let seen: Option<u64> = parameters.parse("index", "the index of an earlier response")?;
        let wait = match parameters.single("wait")? {
            None => WAIT_DEFAULT,
            Some(text) => parse_wait(text).ok_or_else(|| {
                Parameters::refuse(
                    "wait",
                    text,
                    "a duration such as 500ms, 10s or 5m; at most 10m are waited",
                )
            })?,
        };
        Ok(Self { seen: seen.filter(|seen| *seen > 0), wait: wait.min(WAIT_MAX) })
    }
}

/// Parses a whole number with the unit `ms`, `s` or `m`.
fn parse_wait(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

/// Returns the key in a path.
///
/// # Errors
/// 400: the key is not UTF-8, or too long.
pub(super) fn check_key(path: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    let refuse =
        |rule: String| Problem::new(StatusCode::BAD_REQUEST, format!("key: {rule}")).with("field", "key");
    let Ok(Path(key)) = path else { return Err(refuse("a key is UTF-8".to_owned())) };
    match key.len() {
        1..=KV_KEY_BYTES_MAX => Ok(key),
        bytes => Err(refuse(format!("a key has 1 to {KV_KEY_BYTES_MAX} bytes, this one {bytes}"))),
    }
}

/// Returns a prefix of keys.
///
/// # Errors
/// 400: it is longer than any key.
pub(super) fn check_prefix(prefix: &str) -> Result<String, Problem> {
    match prefix.len() {
        0..=KV_KEY_BYTES_MAX => Ok(prefix.to_owned()),
        bytes => {
            let problem = format!("a prefix has at most {KV_KEY_BYTES_MAX} bytes, this one {bytes}");
            Err(Problem::parameter("prefix", problem))
        }
    }
}

/// Returns the number that a client keeps with a value.
///
/// # Errors
/// 400 for another text.
pub(super) fn parse_flags(parameters: &Parameters<'_>) -> Result<u64, Problem> {
    Ok(parameters.parse("flags", "a whole number below 2^64")?.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_have_a_unit() {
        for (text, expected) in [
            ("500ms", Some(Duration::from_millis(500))),
            ("5s", Some(Duration::from_secs(5))),
            ("2m", Some(Duration::from_secs(120))),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(parse_wait(text), expected, "{text}");
        }
    }
}
