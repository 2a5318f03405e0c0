//! What clients send to be recorded: text, JSON or NDJSON, read strictly enough that a mistake is told where it was made.

use std::fmt;

use axum::body::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

use super::record::{Level, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, Said};
use crate::{Problem, timestamp};

/// Records in one request. A thousand of them share one sync already.
pub const RECORDS_PER_REQUEST_MAX: usize = 1000;
/// The last moment that RFC 3339 has words for, in milliseconds since 1970.
const TIME_MS_MAX: u64 = 253_402_300_799_999;

/// What a request asks to be recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Input {
    /// One record, answered by itself.
    One(Said),
    /// Several, answered together.
    Many(Vec<Said>),
}

impl Input {
    /// Reads a body by what its content type says.
    ///
    /// # Errors
    /// 400 and 413, naming the field and the line.
    pub(super) fn read(headers: &HeaderMap, body: &Bytes) -> Result<Self, Problem> {
        if body.is_empty() {
            return Err(bad("the body is empty; send one line of text, or JSON such as {\"message\":\"…\"}"));
        }
        match essence(headers).as_str() {
            "application/json" | "text/json" => json(body),
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines" => {
                Ok(Self::Many(lines(body)?.into_iter().map(|line| line.said).collect()))
            }
            "multipart/form-data" => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "a record is text/plain, application/json or application/x-ndjson",
            )),
            _ => text(body).map(Self::One),
        }
    }
}

fn essence(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

/// The problem of a message over the limit.
pub(super) fn too_long(bytes: usize, at: impl fmt::Display) -> Problem {
    let detail = format!("message{at}: {bytes} bytes are over the limit of {MESSAGE_BYTES_MAX}");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        .with("field", "message")
        .with("limit", MESSAGE_BYTES_MAX)
}

/// One record of plain text. The end of its last line belongs to the transport: `echo` writes one.
fn text(body: &[u8]) -> Result<Said, Problem> {
    let line = body.strip_suffix(b"\n").unwrap_or(body);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(bad("the body is an empty line"));
    }
    if line.len() > MESSAGE_BYTES_MAX {
        return Err(too_long(line.len(), ""));
    }
    if std::str::from_utf8(line).is_err() {
        return Err(bad("the text is not UTF-8; POST /records takes any bytes"));
    }
    Ok(Said { level: Level::default(), service: None, time_ms: None, message: line.to_vec() })
}

fn json(body: &[u8]) -> Result<Input, Problem> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'[') {
        let record: Incoming =
            serde_json::from_slice(body).map_err(|error| malformed(&error.to_string(), None))?;
        return record.check("").map(|line| Input::One(line.said));
    }
    let records: Vec<Incoming> =
        serde_json::from_slice(body).map_err(|error| malformed(&error.to_string(), None))?;
    if records.is_empty() {
        return Err(bad("the array is empty"));
    }
    within(records.len())?;
    let check = |(index, record): (usize, Incoming)| record.check(format_args!(" of record {index}"));
    let checked: Result<Vec<Line>, Problem> = records.into_iter().enumerate().map(check).collect();
    Ok(Input::Many(checked?.into_iter().map(|line| line.said).collect()))
}

/// A line of NDJSON.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    /// What is to be recorded.
    pub(super) said: Said,
    /// Whose it is, where the line says so.
    pub(super) node: Option<String>,
}

/// Reads NDJSON whole, or not at all: empty lines are passed over, and a bad one refuses them all.
///
/// # Errors
/// 400 and 413, naming the line, counted from 1.
pub(super) fn lines(body: &[u8]) -> Result<Vec<Line>, Problem> {
    let mut records = Vec::new();
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        within(records.len() + 1)?;
        let number = index + 1;
        let record: Incoming = serde_json::from_slice(line).map_err(|error| {
            // It counts lines within this one.
            let error = error.to_string();
            let error = error.replace(" at line 1 column ", " at column ");
            malformed(&error, Some(number))
        })?;
        records.push(record.check(format_args!(" in line {number}")).map_err(|p| p.with("line", number))?);
    }
    if records.is_empty() {
        return Err(bad("the body holds no records, only empty lines"));
    }
    Ok(records)
}

fn within(records: usize) -> Result<(), Problem> {
    if records <= RECORDS_PER_REQUEST_MAX {
        return Ok(());
    }
    let detail = format!("more than {RECORDS_PER_REQUEST_MAX} records in one request; nothing was stored");
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).with("limit", RECORDS_PER_REQUEST_MAX))
}

fn malformed(error: &str, line: Option<usize>) -> Problem {
    match line {
        None => bad(format!("{error}; nothing was stored")),
        Some(line) => bad(format!("line {line}: {error}; nothing was stored")).with("line", line),
    }
}

/// A record as clients write it. Other fields are passed over: loggers like to send more.
#[derive(Deserialize)]
#[serde(expecting = "a record: an object with message, and perhaps level, service and time")]
struct Incoming {
    #[serde(deserialize_with = "message")]
    message: String,
    #[serde(default, deserialize_with = "level")]
    level: Option<Level>,
    #[serde(default, deserialize_with = "service")]
    service: Option<String>,
    #[serde(default, deserialize_with = "time")]
    time: Option<u64>,
    #[serde(default, deserialize_with = "node")]
    node: Option<String>,
}

impl Incoming {
    /// What a field's type cannot say. `at` says which record it is.
    fn check(self, at: impl fmt::Display) -> Result<Line, Problem> {
        if self.message.is_empty() {
            return Err(bad(format!("message{at}: is empty; nothing was stored")).with("field", "message"));
        }
        if self.message.len() > MESSAGE_BYTES_MAX {
            return Err(too_long(self.message.len(), at));
        }
        for (field, name) in [("service", &self.service), ("node", &self.node)] {
            if name.as_ref().is_some_and(|name| name.is_empty() || name.len() > NAME_BYTES_MAX) {
                let detail = format!("{field}{at}: 1 to {NAME_BYTES_MAX} bytes; nothing was stored");
                return Err(bad(detail).with("field", field).with("limit", NAME_BYTES_MAX));
            }
        }
        let said = Said {
            level: self.level.unwrap_or_default(),
            service: self.service,
            time_ms: self.time,
            message: self.message.into_bytes(),
        };
        Ok(Line { said, node: self.node })
    }
}

fn message<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    // Its own error for null, which is no message.
    from.deserialize_any(Named("message, a string"))?.text("message")
}

fn service<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    optional(from, "service", "service, a string")
}

fn node<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    optional(from, "node", "node, a string")
}

fn optional<'de, D: Deserializer<'de>>(
    from: D,
    field: &'static str,
    expected: &'static str,
) -> Result<Option<String>, D::Error> {
    match from.deserialize_any(Named(expected))? {
        Scalar::Null => Ok(None),
        other => other.text(field).map(Some),
    }
}

fn level<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Level>, D::Error> {
    match from.deserialize_any(Named("level, a string"))? {
        Scalar::Null => Ok(None),
        other => {
            let text = other.text("level")?;
            let shown: String = text.chars().take(32).collect();
            text.parse()
                .map(Some)
                .map_err(|expected| D::Error::custom(format_args!("level: {shown:?} is not {expected}")))
        }
    }
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    const EXPECTED: &str = "time, an RFC 3339 string or milliseconds since 1970";
    let ms = match from.deserialize_any(Named(EXPECTED))? {
        Scalar::Null => return Ok(None),
        Scalar::Number(ms) => Some(ms),
        Scalar::Text(text) => timestamp::parse_ms(&text),
    };
    ms.filter(|ms| *ms <= TIME_MS_MAX).map(Some).ok_or_else(|| {
        D::Error::custom("time: not an RFC 3339 time or milliseconds since 1970, to the year 9999")
    })
}

/// A value that names its field when it is of another type than was expected.
struct Named(&'static str);

enum Scalar {
    Null,
    Number(u64),
    Text(String),
}

impl Scalar {
    fn text<E: Error>(self, field: &'static str) -> Result<String, E> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Null => Err(E::custom(format_args!("{field}: expected a string, found null"))),
            Self::Number(number) => {
                Err(E::custom(format_args!("{field}: expected a string, found {number}")))
            }
        }
    }
}

impl<'de> Visitor<'de> for Named {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Scalar, E> {
        // Clocks of other languages count milliseconds in floating point.
        if number >= 0.0 && number <= TIME_MS_MAX as f64 {
            Ok(Scalar::Number(number as u64))
        } else {
            Err(E::invalid_value(serde::de::Unexpected::Float(number), &self))
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Scalar, E> {
        Ok(Scalar::Text(text))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(content_type: &'static str, body: &str) -> Result<Input, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Input::read(&headers, &Bytes::from(body.to_owned()))
    }

    fn said(message: &str) -> Said {
        Said { level: Level::Info, service: None, time_ms: None, message: message.into() }
    }

    #[test]
    fn text_is_one_record_without_the_end_of_its_line() {
        for (content_type, body) in
            [("text/plain", "a\nb\n"), ("application/x-www-form-urlencoded", "a\nb"), ("", "a\nb\r\n")]
        {
            assert_eq!(read(content_type, body), Ok(Input::One(said("a\nb"))));
        }
        for body in ["", "\n"] {
            assert_eq!(read("text/plain", body).unwrap_err().status(), 400);
        }
        assert_eq!(read("multipart/form-data; boundary=x", "a").unwrap_err().status(), 415);
    }

    #[test]
    fn json_is_one_record_or_an_array_and_ndjson_a_line_each() {
        let full =
            r#"{"message":"m","level":"WARN","service":"web","time":"1970-01-01T00:00:01Z","more":[1]}"#;
        let expected =
            Said { level: Level::Warn, service: Some("web".into()), time_ms: Some(1000), ..said("m") };
        assert_eq!(read("application/json; charset=utf-8", full), Ok(Input::One(expected.clone())));
        let many =
            read("application/json", &format!("[{full},{{\"message\":\"x\",\"time\":7,\"level\":null}}]"));
        let second = Said { time_ms: Some(7), ..said("x") };
        assert_eq!(many, Ok(Input::Many(vec![expected.clone(), second])));
        assert_eq!(read("application/x-ndjson", &format!("{full}\n\r\n")), Ok(Input::Many(vec![expected])));
    }

    #[test]
    fn a_mistake_is_told_with_its_field_and_place() {
        for (body, words) in [
            (r#"{"message":5}"#, ["message", "column 1"]),
            ("{\n\"message\":true}", ["message", "line 2"]),
            (r#"{"message":"m","level":"loud"}"#, ["level", "\"loud\" is not trace"]),
            (r#"{"message":"m","level":3}"#, ["level", "found 3"]),
            (r#"{"message":"m","service":["a"]}"#, ["service", "line 1"]),
            (r#"{"message":"m","service":""}"#, ["service", "1 to 128"]),
            (r#"{"message":"m","time":"soon"}"#, ["time", "RFC 3339"]),
            (r#"{"message":"m","time":-1}"#, ["time", "line 1"]),
            (r#"{"level":"info"}"#, ["missing field", "message"]),
            (r#"{"message":""}"#, ["message", "empty"]),
            (r#"{"message":null}"#, ["message", "null"]),
            (r#""m""#, ["expected a record", "line 1"]),
            ("[]", ["array", "empty"]),
            (r#"[{"message":"m"},{"message":""}]"#, ["message", "record 1"]),
            ("{\"message\":\"m\"", ["EOF", "line 1"]),
        ] {
            let problem = read("application/json", body).unwrap_err();
            let detail = problem.detail();
            assert!(problem.status() == 400 && words.iter().all(|w| detail.contains(w)), "{body}: {detail}");
        }
    }

    #[test]
    fn a_bad_line_refuses_all_and_is_numbered() {
        for (bad_line, words) in
            [("{\"message\":1}", "message"), ("nonsense", "column"), ("{\"message\":\"\"}", "empty")]
        {
            let body = format!("{{\"message\":\"m\"}}\n\n{bad_line}\n{{\"message\":\"m\"}}");
            let problem = read("application/x-ndjson", &body).unwrap_err();
            let detail = problem.detail();
            assert!(detail.contains("line 3") && detail.contains(words), "{detail}");
        }
    }

    #[test]
    fn what_is_too_much_is_413_and_names_the_limit() {
        let long = "x".repeat(MESSAGE_BYTES_MAX + 1);
        for (content_type, body) in [
            ("text/plain", long.clone()),
            ("application/json", format!("{{\"message\":\"{long}\"}}")),
            ("application/x-ndjson", format!("{{\"message\":\"{long}\"}}")),
            ("application/x-ndjson", "{\"message\":\"m\"}\n".repeat(RECORDS_PER_REQUEST_MAX + 1)),
        ] {
            let problem = read(content_type, &body).unwrap_err();
            let named = ["32768", "1000"].iter().any(|limit| problem.detail().contains(limit));
            assert!(problem.status() == 413 && named, "{}", problem.detail());
        }
        assert!(
            read("application/x-ndjson", &"{\"message\":\"m\"}\n".repeat(RECORDS_PER_REQUEST_MAX)).is_ok()
        );
    }
}
