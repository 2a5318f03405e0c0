//! Parses one record from JSON: lenient where loggers differ, strict where a value would be lost.
//!
//! Accepted are levels of other loggers, duplicate fields (the last one counts, as in most parsers; RFC 8259,
//! section 4), `msg` for `message`, and unknown fields. Half of a surrogate pair becomes U+FFFD. Values are
//! parsed after the end of the object, so that an error names its field and an overridden value does no harm.

use std::fmt;

use http::StatusCode;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::record::{Level, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, Record};
use crate::{Problem, timestamp};

/// Maximum number of characters of a wrong value that an error quotes.
const SHOWN_CHARS_MAX: usize = 32;
/// 1990-01-01 in seconds since 1970. A lower number is a counter, or comes from a clock that was never set.
const FIRST_SECOND: u64 = 631_152_000;
/// Last second of the year 9999, the limit of RFC 3339.
const LAST_SECOND: u64 = 253_402_300_799;
/// Units per second: s, ms, µs, ns. From 1990 to 9999, a number is a valid time in one of them only.
const UNITS: [u64; 4] = [1, 1_000, 1_000_000, 1_000_000_000];

/// Unit of numbers in the field `time`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TimeUnit {
    /// Seconds, milliseconds, microseconds or nanoseconds since 1970, told apart by size. Valid from 1990 to
    /// 9999.
    BySize,
    /// Milliseconds since 1970. Nodes send these, even if their clock was never set.
    Milliseconds,
}

/// A record with the name of its node, if stated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ParsedRecord {
    /// The record.
    pub(super) record: Record,
    /// Name of the node.
    pub(super) node: Option<String>,
}

/// Fault of a refused record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    /// 400, or 413 for a message over the limit.
    pub(super) status: StatusCode,
    /// The wrong field; `None` if the record is not a JSON object.
    pub(super) field: Option<&'static str>,
    /// The limit that is exceeded.
    pub(super) limit: Option<usize>,
    /// A sentence that starts with the field.
    pub(super) detail: String,
}

impl Fault {
    fn of(field: &'static str, problem: impl fmt::Display) -> Self {
        let detail = format!("{field}: {problem}");
        Self { status: StatusCode::BAD_REQUEST, field: Some(field), limit: None, detail }
    }

    fn limited(self, limit: usize) -> Self {
        Self { limit: Some(limit), ..self }
    }

    fn syntax(error: &serde_json::Error) -> Self {
        // The line number counts within the record, not within the body.
        let detail = error.to_string().replace(" at line 1 column ", " at column ");
        Self { status: StatusCode::BAD_REQUEST, field: None, limit: None, detail }
    }

    /// Converts to the problem of a request. `place` is the position of the record, such as `line 3: `.
    pub(super) fn problem(&self, place: &str) -> Problem {
        let mut problem = Problem::new(self.status, format!("{place}{}; nothing was stored", self.detail));
        if let Some(field) = self.field {
            problem = problem.with("field", field);
        }
        if let Some(limit) = self.limit {
            problem = problem.with("limit", limit);
        }
        problem
    }
}

/// Parses one record.
///
/// # Errors
/// The fault, with the field and the limit.
pub(super) fn record(json: &[u8], unit: TimeUnit) -> Result<ParsedRecord, Fault> {
    let fields: Fields<'_> = serde_json::from_slice(json).map_err(|error| Fault::syntax(&error))?;
    let message = fields.message.or(fields.msg);
    let message = match message.map(|raw| text("message", raw)).transpose()?.flatten() {
        None => return Err(Fault::of("message", "is missing; expected a string")),
        Some(text) if text.is_empty() => return Err(Fault::of("message", "is empty")),
        Some(text) if text.len() > MESSAGE_BYTES_MAX => {
            let problem = format!("{} bytes are over the limit of {MESSAGE_BYTES_MAX}", text.len());
            let fault = Fault::of("message", problem).limited(MESSAGE_BYTES_MAX);
            return Err(Fault { status: StatusCode::PAYLOAD_TOO_LARGE, ..fault });
        }
        Some(text) => text.into_bytes(),
    };
    let level = fields.level.map(level).transpose()?.flatten().unwrap_or_default();
    let time_ms = fields.time.map(|raw| time(raw, unit)).transpose()?.flatten();
    let service = name("service", fields.service)?;
    let node = name("node", fields.node)?;
    Ok(ParsedRecord { record: Record { level, service, time_ms, message }, node })
}

/// Unparsed values of the known fields.
#[derive(Default)]
struct Fields<'a> {
    message: Option<&'a RawValue>,
    msg: Option<&'a RawValue>,
    level: Option<&'a RawValue>,
    service: Option<&'a RawValue>,
    time: Option<&'a RawValue>,
    node: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a record: an object with message, and optionally level, service and time")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(key) = map.next_key::<Key>()? {
                    let field = match key {
                        Key::Message => &mut fields.message,
                        Key::Msg => &mut fields.msg,
                        Key::Level => &mut fields.level,
                        Key::Service => &mut fields.service,
                        Key::Time => &mut fields.time,
                        Key::Node => &mut fields.node,
                        Key::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = Some(map.next_value()?);
                }
                Ok(fields)
            }
        }

        from.deserialize_map(Object)
    }
}

/// Name of a field. Parsed as bytes, which may hold half of a surrogate pair.
#[derive(Clone, Copy)]
enum Key {
    Message,
    Msg,
    Level,
    Service,
    Time,
    Node,
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<Key, E> {
                Ok(match name {
                    b"message" => Key::Message,
                    b"msg" => Key::Msg,
                    b"level" => Key::Level,
                    b"service" => Key::Service,
                    b"time" => Key::Time,
                    b"node" => Key::Node,
                    _ => Key::Other,
                })
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Key, E> {
                self.visit_bytes(name.as_bytes())
            }
        }

        from.deserialize_bytes(Name)
    }
}

/// Value of a field.
enum Scalar<'a> {
    Null,
    /// The number as it is written.
    Number(&'a str),
    Text(String),
    /// A type that no field has, in words.
    Other(&'static str),
}

/// Parses a value.
///
/// # Errors
/// The string is not valid. The parser of the object has already refused such a string.
fn scalar<'a>(field: &'static str, raw: &'a RawValue) -> Result<Scalar<'a>, Fault> {
    let json = raw.get();
    Ok(match json.as_bytes().first() {
        Some(b'"') => Scalar::Text(unescape(json).map_err(|problem| Fault::of(field, problem))?),
        Some(b'n') | None => Scalar::Null,
        Some(b't' | b'f') => Scalar::Other("a boolean"),
        Some(b'[') => Scalar::Other("a list"),
        Some(b'{') => Scalar::Other("an object"),
        Some(_) => Scalar::Number(json),
    })
}

/// Decodes a JSON string. Half of a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD.
fn unescape(json: &str) -> Result<String, String> {
    struct Wtf8;

    impl Visitor<'_> for Wtf8 {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }
    }

    if let Some(plain) = json.get(1..json.len().saturating_sub(1))
        && !plain.contains('\\')
    {
        return Ok(plain.to_owned());
    }
    // The bytes are WTF-8. A surrogate has three bytes, as many as U+FFFD. It starts with ED, followed by a
    // byte from A0 on.
    let mut bytes =
        serde_json::Deserializer::from_str(json).deserialize_bytes(Wtf8).map_err(|e| e.to_string())?;
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xed)) {
        at += found;
        match bytes.get_mut(at..at + 3) {
            Some(sequence) if sequence[1] >= 0xa0 => sequence.copy_from_slice("\u{fffd}".as_bytes()),
            _ => (),
        }
        at += 1;
    }
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// Parses a string; `None` for null.
fn text(field: &'static str, raw: &RawValue) -> Result<Option<String>, Fault> {
    match scalar(field, raw)? {
        Scalar::Null if field == "message" => Err(Fault::of(field, "expected a string, found null")),
        Scalar::Null => Ok(None),
        Scalar::Text(text) => Ok(Some(text)),
        Scalar::Number(number) => {
            Err(Fault::of(field, format_args!("expected a string, found {}", shown(number))))
        }
        Scalar::Other(what) => Err(Fault::of(field, format_args!("expected a string, found {what}"))),
    }
}

fn name(field: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, Fault> {
    let Some(name) = raw.map(|raw| text(field, raw)).transpose()?.flatten() else { return Ok(None) };
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        let problem = format!("1 to {NAME_BYTES_MAX} bytes, this has {}", name.len());
        return Err(Fault::of(field, problem).limited(NAME_BYTES_MAX));
    }
    Ok(Some(name))
}

fn level(raw: &RawValue) -> Result<Option<Level>, Fault> {
    let wrong = |what: String| Fault::of("level", format_args!("{what} is not {}", super::record::NotALevel));
    match scalar("level", raw)? {
        Scalar::Null => Ok(None),
        Scalar::Text(text) => match text.parse() {
            Ok(level) => Ok(Some(level)),
            Err(_) => Err(wrong(format!("{:?}", shown(&text)))),
        },
        Scalar::Number(number) => match number.parse().ok().and_then(Level::from_pino) {
            Some(level) => Ok(Some(level)),
            None => Err(wrong(shown(number))),
        },
        Scalar::Other(what) => Err(wrong(what.to_owned())),
    }
}

fn time(raw: &RawValue, unit: TimeUnit) -> Result<Option<u64>, Fault> {
    let (ms, written) = match scalar("time", raw)? {
        Scalar::Null => return Ok(None),
        Scalar::Number(number) => (milliseconds(number, unit), shown(number)),
        Scalar::Text(text) => {
            let ms = timestamp::parse_rfc3339_ms(&text).or_else(|| milliseconds(&text, unit));
            (ms, format!("{:?}", shown(&text)))
        }
        Scalar::Other(what) => (None, what.to_owned()),
    };
    ms.map(Some).ok_or_else(|| {
        let expected = match unit {
            TimeUnit::BySize => "a time from 1990 to 9999: RFC 3339, or s, ms, µs or ns since 1970",
            TimeUnit::Milliseconds => "a time to the year 9999: RFC 3339, or ms since 1970",
        };
        Fault::of("time", format_args!("{written} is not {expected}"))
    })
}

/// Converts a number to milliseconds since 1970.
fn milliseconds(number: &str, unit: TimeUnit) -> Option<u64> {
    if unit == TimeUnit::Milliseconds {
        // Some languages count milliseconds in floating point.
        let ms = number.parse::<u64>().ok().or_else(|| whole(number.parse().ok()?))?;
        return (ms / 1000 <= LAST_SECOND).then_some(ms);
    }
    if let Ok(number) = number.parse::<u64>() {
        let per_second =
            UNITS.into_iter().find(|unit| (FIRST_SECOND..=LAST_SECOND).contains(&(number / unit)))?;
        return u64::try_from(u128::from(number) * 1000 / u128::from(per_second)).ok();
    }
    let number: f64 = number.parse().ok()?;
    let is_between = |unit: &f64| (FIRST_SECOND as f64..LAST_SECOND as f64 + 1.0).contains(&(number / unit));
    let per_second = UNITS.into_iter().map(|unit| unit as f64).find(is_between)?;
    whole(number * 1000.0 / per_second)
}

/// Returns the integer part of a number that is a valid time.
fn whole(number: f64) -> Option<u64> {
    (0.0..=(LAST_SECOND * 1000 + 999) as f64).contains(&number).then_some(number as u64)
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Record, String> {
        record(json.as_bytes(), TimeUnit::BySize).map(|line| line.record).map_err(|fault| fault.detail)
    }

    fn level_of(level: &str) -> Result<Level, String> {
        read(&format!(r#"{{"message":"m","level":{level}}}"#)).map(|record| record.level)
    }

    fn time_of(time: &str) -> Result<Option<u64>, String> {
        read(&format!(r#"{{"message":"m","time":{time}}}"#)).map(|record| record.time_ms)
    }

    #[test]
    fn levels_of_other_loggers_are_taken_and_others_are_told_what_is() {
        for (levels, expected) in [
            (&["10", "\"TRACE\"", "\"finest\"", "19"][..], Level::Trace),
            (&["20", "\"Debug\"", "\"verbose\""], Level::Debug),
            (&["30", "\"notice\"", "\"Informational\"", "\" INFO \"", "35", "30.0", "null"], Level::Info),
            (&["40", "\"WARNING\"", "\"warn\"", "\"40\""], Level::Warn),
            (
                &["50", "60", "\"FATAL\"", "\"CRITICAL\"", "\"emerg\"", "\"alert\"", "\"err\"", "\"panic\""],
                Level::Error,
            ),
        ] {
            for level in levels {
                assert_eq!(level_of(level), Ok(expected), "{level}");
            }
        }
        for wrong in ["\"loud\"", "3", "-10", "1e9", "true", "[30]", "{}", "\"\""] {
            let problem = level_of(wrong).unwrap_err();
            assert!(
                problem.starts_with("level: ") && problem.contains("is not a level: trace"),
                "{wrong}: {problem}"
            );
        }
    }

    #[test]
    fn the_unit_of_a_time_is_told_by_its_size() {
        for (time, ms) in [
            ("1795950000", 1_795_950_000_000),
            ("1795950000123", 1_795_950_000_123),
            ("1795950000123456", 1_795_950_000_123),
            ("1795950000123456789", 1_795_950_000_123),
            ("1795950000.25", 1_795_950_000_250),
            ("1.79595e9", 1_795_950_000_000),
            ("1795950000123.9", 1_795_950_000_123),
            ("\"1795950000\"", 1_795_950_000_000),
            ("631152000", 631_152_000_000),
            ("253402300799", 253_402_300_799_000),
            ("631152000000", 631_152_000_000),
            ("\"2026-11-29T15:40:00+01:00\"", 1_795_963_200_000),
            ("\"1970-01-01T00:00:01Z\"", 1_000),
        ] {
            assert_eq!(time_of(time), Ok(Some(ms)), "{time}");
        }
        assert_eq!(time_of("null"), Ok(None));
        for wrong in
            ["0", "7", "-1", "631151999", "253402300800", "1e300", "\"soon\"", "true", "[1]", "\"nan\""]
        {
            let problem = time_of(wrong).unwrap_err();
            assert!(problem.starts_with("time: ") && problem.contains("1990 to 9999"), "{wrong}: {problem}");
        }
        let event = record(br#"{"message":"m","time":7}"#, TimeUnit::Milliseconds).unwrap();
        assert_eq!(event.record.time_ms, Some(7));
        assert!(record(br#"{"message":"m","time":253402300800000}"#, TimeUnit::Milliseconds).is_err());
    }

    #[test]
    fn of_a_field_that_stands_twice_the_last_one_counts() {
        let record =
            read(r#"{"message":7,"level":"loud","message":"a","message":"b","level":"warn"}"#).unwrap();
        assert_eq!((record.message.as_slice(), record.level), (&b"b"[..], Level::Warn));
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced_and_a_whole_one_is_a_character() {
        for (json, message) in [
            (r#"{"message":"a\ud800b"}"#, "a\u{fffd}b"),
            (r#"{"message":"\udc00\ud83d\ude00\ud83d"}"#, "\u{fffd}😀\u{fffd}"),
            (r#"{"message":"\ud83dx\n"}"#, "\u{fffd}x\n"),
            // U+D55C starts with the same byte as a surrogate.
            (r#"{"message":"한\\\ud800"}"#, "한\\\u{fffd}"),
            (r#"{"m\ud800":1,"message":"m","x":"\udfff"}"#, "m"),
            (r#"{"msg":"pino's"}"#, "pino's"),
            (r#"{"msg":"no","message":"yes"}"#, "yes"),
        ] {
            assert_eq!(read(json).map(|record| record.message), Ok(message.as_bytes().to_vec()), "{json}");
        }
    }

    #[test]
    fn a_fault_names_its_field() {
        for (json, words) in [
            (r#"{"message":5}"#, "message: expected a string, found 5"),
            (r#"{"message":["m"]}"#, "message: expected a string, found a list"),
            (r#"{"message":null}"#, "message: expected a string, found null"),
            (r#"{"message":""}"#, "message: is empty"),
            (r#"{"level":"info"}"#, "message: is missing"),
            (r#"{"message":"m","service":""}"#, "service: 1 to 128 bytes, this has 0"),
            (r#"{"message":"m","node":1}"#, "node: expected a string"),
            ("7", "expected a record: an object"),
            (r#"{"message":"m""#, "EOF"),
            ("", "EOF"),
        ] {
            let problem = read(json).unwrap_err();
            assert!(problem.contains(words), "{json}: {problem}");
        }
        let not_utf8 = record(b"{\"message\":\"caf\xe9\"}", TimeUnit::BySize).unwrap_err();
        assert_eq!((not_utf8.status.as_u16(), not_utf8.field), (400, None));
    }
}
