//! A log record and its level, which may have the names of other loggers. In a journal entry a record is one
//! line of JSON, then the bytes of the message.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Maximum number of bytes of a message: half of what a journal entry holds.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024;
/// Maximum number of bytes of the name of a service or node, as everywhere in Hearsay.
pub const NAME_BYTES_MAX: usize = 128;

/// Estimated bytes of the JSON line, service excluded.
const HEAD_BYTES: usize = 64;

/// Severity of a record, in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// Every step.
    Trace = 1,
    /// Details for finding a defect.
    Debug = 2,
    /// Normal operation. The default.
    #[default]
    Info = 3,
    /// Possible need for action.
    Warn = 4,
    /// Need for action.
    Error = 5,
}

/// The text is not a level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a level: trace, debug, info, warn or error, or one of syslog, of another logger or of pino (10 to 99)"
)]
pub struct NotALevel;

/// Names of levels in lower case. Besides Hearsay's own: syslog (RFC 5424, table 2, and its short forms),
/// java.util.logging, .NET, Python, npm's winston, and the three letters of console formats.
const NAMES: [(Level, &[&str]); 5] = [
    (Level::Trace, &["trace", "trc", "trce", "finest", "finer", "silly"]),
    (Level::Debug, &["debug", "dbg", "dbug", "fine", "config", "verbose"]),
    (Level::Info, &["info", "inf", "information", "informational", "notice", "http", "log"]),
    (Level::Warn, &["warn", "wrn", "warning"]),
    (
        Level::Error,
        &[
            "error",
            "err",
            "fail",
            "severe",
            "critical",
            "crit",
            "fatal",
            "ftl",
            "alert",
            "emergency",
            "emerg",
            "panic",
            "dpanic",
            "pnc",
        ],
    ),
];

impl Level {
    const ALL: [Self; 5] = [Self::Trace, Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// The name of the level in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// The level of a pino or bunyan number, where 10 is trace and 60 fatal. A number between two levels is
    /// the lower one.
    pub(super) fn from_pino(number: f64) -> Option<Self> {
        if !(10.0..100.0).contains(&number) {
            return None;
        }
        Some(
            Self::ALL
                .into_iter()
                .rev()
                .find(|level| number >= 10.0 * f64::from(*level as u8))
                .unwrap_or_default(),
        )
    }

    /// The level of a stored number. An unknown number is [`Level::Info`].
    pub(super) fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|level| *level as u8 == number).unwrap_or_default()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = NotALevel;

    /// Parses the name of one of this log's levels or of another logger's, in upper or lower case, or a pino
    /// number.
    fn from_str(text: &str) -> Result<Self, NotALevel> {
        let text = text.trim();
        let is_named = |names: &[&str]| names.iter().any(|name| text.eq_ignore_ascii_case(name));
        let named = NAMES.into_iter().find(|(_, names)| is_named(names)).map(|(level, _)| level);
        named.or_else(|| Self::from_pino(text.parse().ok()?)).ok_or(NotALevel)
    }
}

/// A record as a client sends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// Severity.
    pub level: Level,
    /// The service that the record is about.
    pub service: Option<String>,
    /// Time of the event, in milliseconds since 1970; `None`: the time of the append.
    pub time_ms: Option<u64>,
    /// Message. UTF-8, unless it was posted to `/records`.
    pub message: Vec<u8>,
}

/// A record as a journal entry stores it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct StoredRecord {
    /// The record.
    pub(super) record: Record,
    /// Name of the node that accepted the record or, for an event, of the node that emitted it.
    pub(super) node: String,
    /// Whether the record is an event that a node shipped. Events have no offset.
    pub(super) is_event: bool,
    /// Name of the [source](crate::http::source::Source) that the record is charged to; `None` for the node
    /// itself and its operator.
    pub(super) source: Option<String>,
}

/// The JSON line. Names are short because every stored record has this line.
#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(rename = "n")]
    node: String,
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    level: Option<u8>,
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    time_ms: Option<u64>,
    #[serde(rename = "e", default, skip_serializing_if = "std::ops::Not::not")]
    is_event: bool,
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

impl StoredRecord {
    /// Encodes the body of an entry.
    pub(super) fn into_body(self) -> Vec<u8> {
        let level = (self.record.level != Level::default()).then_some(self.record.level as u8);
        let head = Head {
            node: self.node,
            level,
            service: self.record.service,
            time_ms: self.record.time_ms,
            is_event: self.is_event,
            source: self.source,
        };
        // Serialising cannot fail here. If it did, the message would be kept without its metadata.
        let mut body = serde_json::to_vec(&head).unwrap_or_else(|_| b"{\"n\":\"\"}".to_vec());
        body.push(b'\n');
        body.extend_from_slice(&self.record.message);
        body
    }

    /// Decodes the body of an entry; `None` if it is malformed or exceeds a bound.
    pub(super) fn from_body(body: &[u8]) -> Option<Self> {
        let end = body.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(body.get(..end)?).ok()?;
        let message = body.get(end + 1..)?.to_vec();
        let is_long = |name: &String| name.len() > NAME_BYTES_MAX;
        if message.len() > MESSAGE_BYTES_MAX
            || is_long(&head.node)
            || head.service.as_ref().is_some_and(is_long)
            || head.source.as_ref().is_some_and(is_long)
        {
            return None;
        }
        let level = head.level.map_or(Level::default(), Level::from_number);
        let record = Record { level, service: head.service, time_ms: head.time_ms, message };
        Some(Self { record, node: head.node, is_event: head.is_event, source: head.source })
    }
}

/// Estimates the bytes of an encoded record. The service is JSON, where a control character takes six bytes.
pub(super) fn encoded_bytes(record: &Record) -> usize {
    let service = record.service.as_ref().and_then(|service| serde_json::to_string(service).ok());
    record.message.len() + service.map_or(0, |service| service.len()) + HEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(message: &[u8]) -> StoredRecord {
        StoredRecord {
            record: Record {
                level: Level::Warn,
                service: Some("web".into()),
                time_ms: Some(5),
                message: message.to_vec(),
            },
            node: "n1".into(),
            is_event: false,
            source: Some("192.0.2.7".into()),
        }
    }

    #[test]
    fn every_byte_of_a_message_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        for message in [&b""[..], b"one\ntwo\n", &all] {
            assert_eq!(StoredRecord::from_body(&stored(message).into_body()), Some(stored(message)));
        }
    }

    #[test]
    fn what_makes_no_sense_or_breaks_a_bound_is_none() {
        for body in [&b""[..], b"{}", b"{}\n", b"[]\nx", b"{\"n\":1}\nx", b"\n"] {
            assert_eq!(StoredRecord::from_body(body), None, "{body:?}");
        }
        assert_eq!(StoredRecord::from_body(&stored(&vec![b'x'; MESSAGE_BYTES_MAX + 1]).into_body()), None);
        let long = StoredRecord { node: "n".repeat(NAME_BYTES_MAX + 1), ..stored(b"x") };
        assert_eq!(StoredRecord::from_body(&long.into_body()), None);
        let long = StoredRecord { source: Some("n".repeat(NAME_BYTES_MAX + 1)), ..stored(b"x") };
        assert_eq!(StoredRecord::from_body(&long.into_body()), None);
    }

    #[test]
    fn the_largest_record_fits_into_an_entry() {
        let largest = StoredRecord {
            record: Record {
                level: Level::Trace,
                // JSON encodes this character in six bytes.
                service: Some("\u{1}".repeat(NAME_BYTES_MAX)),
                time_ms: Some(u64::MAX),
                message: vec![0; MESSAGE_BYTES_MAX],
            },
            node: "\u{1}".repeat(NAME_BYTES_MAX),
            is_event: true,
            source: Some("\u{1}".repeat(NAME_BYTES_MAX)),
        };
        assert!(largest.into_body().len() <= crate::journal::BODY_BYTES_MAX);
    }

    #[test]
    fn levels_are_read_in_either_case_and_under_the_names_of_others() {
        assert_eq!("WARN".parse(), Ok(Level::Warn));
        assert_eq!("Warning".parse(), Ok(Level::Warn));
        assert_eq!("fatal".parse(), Ok(Level::Error));
        assert_eq!("fatale".parse::<Level>(), Err(NotALevel));
        assert!(Level::ALL.into_iter().all(|level| level.name().parse() == Ok(level)));
        assert!(Level::Error > Level::Info);
    }
}
