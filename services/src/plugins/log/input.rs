//! Reads the request bodies of `POST /log` (text, JSON or NDJSON) into records.
//!
//! In a batch, malformed records are refused one by one with their positions, and the others are stored. One
//! bad line must not cost a log shipper the whole batch.

use std::fmt;

use axum::body::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};

use super::{
    incoming::{self, Fault, ParsedRecord, TimeUnit},
    record::{Level, MESSAGE_BYTES_MAX, Record},
};
use crate::Problem;

/// Maximum number of records in one request. They share one sync.
pub(crate) const RECORDS_PER_REQUEST_MAX: usize = 1000;
/// Byte order mark of UTF-8, which Windows programs write.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Parsed body of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Input {
    /// One record, with an answer of its own.
    One(Record),
    /// Several records with a common answer.
    Many(Batch),
}

/// Records of one request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Batch {
    /// Valid records with their positions in the request, from 0.
    pub(super) records: Vec<(usize, ParsedRecord)>,
    /// Malformed records.
    pub(super) refused: Vec<RefusedRecord>,
}

/// A record that is not stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RefusedRecord {
    /// Position in the request, from 0.
    record: usize,
    /// Line number from 1, in NDJSON.
    line: Option<usize>,
    fault: Fault,
}

impl RefusedRecord {
    /// Returns the position as the start of a sentence.
    fn place(&self) -> String {
        match self.line {
            Some(line) => format!("line {line}: "),
            None => format!("record {}: ", self.record),
        }
    }

    /// Converts to an element of the list in the answer.
    pub(super) fn to_json(&self) -> Value {
        let Self { record, line, fault } = self;
        let mut listed = json!({ "record": record, "detail": fault.detail });
        let more = [
            ("line", line.map(Value::from)),
            ("field", fault.field.map(Value::from)),
            ("limit", fault.limit.map(Value::from)),
        ];
        for (member, value) in more {
            if let Some(value) = value {
                listed[member] = value;
            }
        }
        listed
    }
}

impl Batch {
    fn add(&mut self, line: Option<usize>, read: Result<ParsedRecord, Fault>) {
        let record = self.len();
        match read {
            Ok(read) => self.records.push((record, read)),
            Err(fault) => self.refused.push(RefusedRecord { record, line, fault }),
        }
    }

    /// Returns the number of records, refused ones included.
    pub(super) fn len(&self) -> usize {
        self.records.len() + self.refused.len()
    }

    /// Returns the list of refused records for the answer.
    pub(super) fn refused_json(&self) -> Value {
        self.refused.iter().map(RefusedRecord::to_json).collect()
    }

    /// Returns the batch if any of its records is valid.
    ///
    /// # Errors
    /// All records were refused. The problem has the reason of the first, and all in `refused`. The status is
    /// 413 if each exceeds a limit, else 400.
    pub(super) fn storable(self) -> Result<Self, Problem> {
        let Some(first) = self.refused.first().filter(|_| self.records.is_empty()) else { return Ok(self) };
        let mut fault = first.fault.clone();
        if self.refused.iter().any(|refused| refused.fault.status != fault.status) {
            fault.status = StatusCode::BAD_REQUEST;
        }
        let mut place = first.place();
        if self.refused.len() > 1 {
            place = format!("all {} records are refused; {place}", self.refused.len());
        }
        let problem = fault.problem(&place).with("record", first.record).with("refused", self.refused_json());
        Err(match first.line {
            Some(line) => problem.with("line", line),
            None => problem,
        })
    }
}

impl Input {
    /// Parses a body according to its content type.
    ///
    /// # Errors
    /// 400 or 413, with the field. For a batch, only if records cannot be told apart, or are too many.
    pub(super) fn read(headers: &HeaderMap, body: &Bytes) -> Result<Self, Problem> {
        if body.is_empty() {
            return Err(bad("the body is empty; send one line of text, or JSON such as {\"message\":\"…\"}"));
        }
        match essence(headers).as_str() {
            "application/json" | "text/json" => json(body),
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines" => lines(body, TimeUnit::BySize).map(Self::Many),
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

/// Reads plain text as one record. A line break at the end, which `echo` writes, is not part of the record.
fn text(body: &[u8]) -> Result<Record, Problem> {
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
    Ok(Record { level: Level::default(), service: None, time_ms: None, message: line.to_vec() })
}

fn json(body: &[u8]) -> Result<Input, Problem> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        return match incoming::record(body, TimeUnit::BySize) {
            Ok(line) => Ok(Input::One(line.record)),
            Err(fault) => Err(fault.problem("")),
        };
    }
    let Elements(elements) =
        serde_json::from_slice(body).map_err(|error| bad(format!("{error}; nothing was stored")))?;
    if elements.is_empty() {
        return Err(bad("the array is empty"));
    }
    within(elements.len())?;
    let mut batch = Batch::default();
    for element in elements {
        batch.add(None, incoming::record(element.get().as_bytes(), TimeUnit::BySize));
    }
    Ok(Input::Many(batch))
}

/// Unparsed elements of an array, at most one more than the limit.
struct Elements<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Elements<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Array;

        impl<'de> Visitor<'de> for Array {
            type Value = Elements<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of records")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while elements.len() <= RECORDS_PER_REQUEST_MAX
                    && let Some(element) = array.next_element()?
                {
                    elements.push(element);
                }
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Elements(elements))
            }
        }

        from.deserialize_seq(Array)
    }
}

/// Parses NDJSON. Empty lines are skipped.
///
/// # Errors
/// 400 if all lines are empty, 413 for too many records.
pub(super) fn lines(body: &[u8], unit: TimeUnit) -> Result<Batch, Problem> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let mut batch = Batch::default();
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        within(batch.len() + 1)?;
        batch.add(Some(index + 1), incoming::record(line, unit));
    }
    if batch.len() == 0 {
        return Err(bad("the body holds no records, only empty lines"));
    }
    Ok(batch)
}

fn within(records: usize) -> Result<(), Problem> {
    if records <= RECORDS_PER_REQUEST_MAX {
        return Ok(());
    }
    let detail = format!("more than {RECORDS_PER_REQUEST_MAX} records in one request; nothing was stored");
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).with("limit", RECORDS_PER_REQUEST_MAX))
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

    fn record(message: &str) -> Record {
        Record { level: Level::Info, service: None, time_ms: None, message: message.into() }
    }

    fn many(records: &[Record]) -> Result<Input, Problem> {
        let line =
            |(place, record): (usize, &Record)| (place, ParsedRecord { record: record.clone(), node: None });
        let records = records.iter().enumerate().map(line).collect();
        Ok(Input::Many(Batch { records, refused: Vec::new() }))
    }

    fn refused(content_type: &'static str, body: &str) -> Problem {
        match read(content_type, body) {
            Ok(Input::Many(batch)) => batch.storable().unwrap_err(),
            other => other.unwrap_err(),
        }
    }

    #[test]
    fn text_is_one_record_without_the_end_of_its_line() {
        for (content_type, body) in
            [("text/plain", "a\nb\n"), ("application/x-www-form-urlencoded", "a\nb"), ("", "a\nb\r\n")]
        {
            assert_eq!(read(content_type, body), Ok(Input::One(record("a\nb"))));
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
            Record { level: Level::Warn, service: Some("web".into()), time_ms: Some(1000), ..record("m") };
        assert_eq!(read("application/json; charset=utf-8", full), Ok(Input::One(expected.clone())));
        let array = format!("[{full},{{\"message\":\"x\",\"time\":1795950000,\"level\":null}}]");
        let second = Record { time_ms: Some(1_795_950_000_000), ..record("x") };
        assert_eq!(read("application/json", &array), many(&[expected.clone(), second]));
        for start in ["", "\u{feff}"] {
            let body = format!("{start}{full}\n\r\n");
            assert_eq!(read("application/x-ndjson", &body), many(std::slice::from_ref(&expected)));
        }
    }

    #[test]
    fn a_mistake_is_told_with_its_field_and_place() {
        for (body, words) in [
            (r#"{"message":5}"#, ["message", "found 5"]),
            (r#"{"message":"m","level":"loud"}"#, ["level", "\"loud\" is not a level: trace"]),
            (r#"{"message":"m","time":"soon"}"#, ["time", "RFC 3339"]),
            (r#"{"level":"info"}"#, ["message", "missing"]),
            (r#""m""#, ["expected a record", "column"]),
            ("{\"message\":\"m\"", ["EOF", "nothing was stored"]),
            ("[]", ["array", "empty"]),
            (r#"[{"message":""},1]"#, ["all 2 records", "record 0: message: is empty"]),
            (r#"[{"message":"m"},"#, ["EOF", "nothing was stored"]),
        ] {
            let problem = refused("application/json", body);
            let detail = problem.detail();
            assert!(problem.status() == 400 && words.iter().all(|w| detail.contains(w)), "{body}: {detail}");
        }
    }

    #[test]
    fn of_several_records_the_bad_ones_alone_are_refused_with_their_places() {
        let lines = "{\"message\":\"a\"}\n\nnonsense\n{\"message\":\"b\"}\n{\"message\":\"c\",\"level\":7}\n";
        let array = r#"[{"message":"a"},5,{"message":"b"},{"message":"c","level":7}]"#;
        for (content_type, body, lines) in
            [("application/x-ndjson", lines, [Some(3), Some(5)]), ("application/json", array, [None, None])]
        {
            let Ok(Input::Many(batch)) = read(content_type, body) else { panic!("{content_type}") };
            let stored: Vec<_> =
                batch.records.iter().map(|(at, line)| (*at, &line.record.message[..])).collect();
            assert_eq!(stored, [(0, &b"a"[..]), (2, b"b")]);
            let listed: Vec<_> = batch.refused.iter().map(|r| (r.record, r.line, r.fault.field)).collect();
            assert_eq!(listed, [(1, lines[0], None), (3, lines[1], Some("level"))]);
            assert_eq!(batch.refused_json()[1]["field"], "level");
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
            ("application/json", format!("[{}0]", "0,".repeat(2 * RECORDS_PER_REQUEST_MAX))),
        ] {
            let problem = refused(content_type, &body);
            let named = ["32768", "1000"].iter().any(|limit| problem.detail().contains(limit));
            assert!(problem.status() == 413 && named, "{}", problem.detail());
        }
        assert!(
            read("application/x-ndjson", &"{\"message\":\"m\"}\n".repeat(RECORDS_PER_REQUEST_MAX)).is_ok()
        );
    }
}
