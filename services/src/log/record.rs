//! A record of the log, and how it stands in an entry of the journal: one line of JSON with everything about it, then the message, byte for byte.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest message, in bytes. Half of what an entry of the journal holds; a line of a log that is longer is a file.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024;
/// The longest name of a service or node in a record, in bytes, as everywhere in Hearsay.
pub const NAME_BYTES_MAX: usize = 128;

/// How much a record matters. The order is that of urgency.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// Every step.
    Trace = 1,
    /// What helps to find a defect.
    Debug = 2,
    /// What happened. A record that does not say is one of these.
    #[default]
    Info = 3,
    /// What may need a person.
    Warn = 4,
    /// What does need one.
    Error = 5,
}

/// The text is no level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("trace, debug, info, warn or error, nor a level of syslog, of another logger or of pino (10 to 99)")]
pub struct NotALevel;

/// Names of levels, in lower case, and the nearest of ours: those of syslog (RFC 5424, table 2, and its usual short forms), java.util.logging,
/// .NET, Python, npm's winston, and the three letters of console formats.
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

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// The level of a number of pino's and bunyan's: 10 is trace, 60 fatal, and one between two counts as the lower.
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

    /// As it is stored. What is no level counts as information.
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

    /// Reads the name of a level in either case, ours or that of another logger, or a number of pino's.
    fn from_str(text: &str) -> Result<Self, NotALevel> {
        let text = text.trim();
        let is_named = |names: &[&str]| names.iter().any(|name| text.eq_ignore_ascii_case(name));
        let named = NAMES.into_iter().find(|(_, names)| is_named(names)).map(|(level, _)| level);
        named.or_else(|| Self::from_pino(text.parse().ok()?)).ok_or(NotALevel)
    }
}

/// What somebody wants to have recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// How much it matters.
    pub level: Level,
    /// Which service says it.
    pub service: Option<String>,
    /// When it happened, in milliseconds since 1970; `None`: when it was written down.
    pub time_ms: Option<u64>,
    /// What happened. Text, unless it was posted to `/records`.
    pub message: Vec<u8>,
}

/// A record as an entry of the journal holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stored {
    /// What was said.
    pub(super) said: Said,
    /// The name of the node that it was said to or, of an event, that it is of.
    pub(super) node: String,
    /// Something that happened to a node, shipped by it and not posted by a client: it has no offset.
    pub(super) is_event: bool,
}

/// Everything but the message. Short names: it stands in front of every record on every disk.
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
}

impl Stored {
    /// As the body of an entry.
    pub(super) fn into_body(self) -> Vec<u8> {
        let level = (self.said.level != Level::default()).then_some(self.said.level as u8);
        let head = Head {
            node: self.node,
            level,
            service: self.said.service,
            time_ms: self.said.time_ms,
            is_event: self.is_event,
        };
        // Such a head always serialises; should it not, the message is worth more than what is said about it.
        let mut body = serde_json::to_vec(&head).unwrap_or_else(|_| b"{\"n\":\"\"}".to_vec());
        body.push(b'\n');
        body.extend_from_slice(&self.said.message);
        body
    }

    /// Reads the body of an entry; `None`: it makes no sense, or breaks a bound.
    pub(super) fn from_body(body: &[u8]) -> Option<Self> {
        let end = body.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(body.get(..end)?).ok()?;
        let message = body.get(end + 1..)?.to_vec();
        let is_long = |name: &String| name.len() > NAME_BYTES_MAX;
        if message.len() > MESSAGE_BYTES_MAX
            || is_long(&head.node)
            || head.service.as_ref().is_some_and(is_long)
        {
            return None;
        }
        let level = head.level.map_or(Level::default(), Level::from_number);
        let said = Said { level, service: head.service, time_ms: head.time_ms, message };
        Some(Self { said, node: head.node, is_event: head.is_event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(message: &[u8]) -> Stored {
        Stored {
            said: Said {
                level: Level::Warn,
                service: Some("web".into()),
                time_ms: Some(5),
                message: message.to_vec(),
            },
            node: "n1".into(),
            is_event: false,
        }
    }

    #[test]
    fn every_byte_of_a_message_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        for message in [&b""[..], b"one\ntwo\n", &all] {
            assert_eq!(Stored::from_body(&stored(message).into_body()), Some(stored(message)));
        }
    }

    #[test]
    fn what_makes_no_sense_or_breaks_a_bound_is_none() {
        for body in [&b""[..], b"{}", b"{}\n", b"[]\nx", b"{\"n\":1}\nx", b"\n"] {
            assert_eq!(Stored::from_body(body), None, "{body:?}");
        }
        assert_eq!(Stored::from_body(&stored(&vec![b'x'; MESSAGE_BYTES_MAX + 1]).into_body()), None);
        let long = Stored { node: "n".repeat(NAME_BYTES_MAX + 1), ..stored(b"x") };
        assert_eq!(Stored::from_body(&long.into_body()), None);
    }

    #[test]
    fn the_largest_record_fits_into_an_entry() {
        let largest = Stored {
            said: Said {
                level: Level::Trace,
                // JSON spells such a character with six bytes.
                service: Some("\u{1}".repeat(NAME_BYTES_MAX)),
                time_ms: Some(u64::MAX),
                message: vec![0; MESSAGE_BYTES_MAX],
            },
            node: "\u{1}".repeat(NAME_BYTES_MAX),
            is_event: true,
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
