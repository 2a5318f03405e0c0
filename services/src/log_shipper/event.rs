//! Data types of the log shipper: [`LogEvent`], one log record of a node, and [`Batch`], events that are sent
//! together under one idempotency key.

use serde::{Deserialize, Serialize};

use crate::plugins::log::record::Level;

/// An event of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogEvent {
    /// Time in milliseconds since 1970.
    pub time: u64,
    /// Severity.
    #[serde(with = "level_name")]
    pub level: Level,
    /// Component of the node, at most [`NAME_BYTES_MAX`](crate::plugins::log::record::NAME_BYTES_MAX) bytes.
    pub service: String,
    /// Message.
    pub message: String,
}

mod level_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::plugins::log::record::Level;

    pub(super) fn serialize<S: Serializer>(level: &Level, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(level.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Level, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Events that are sent together, under one idempotency key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Batch {
    pub(super) key: String,
    pub(super) events: Vec<LogEvent>,
}
