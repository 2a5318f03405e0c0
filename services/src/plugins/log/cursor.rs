//! [`Cursor`]: the position of a reader between two pages.
//!
//! Pages are in the order of time, but a record may arrive late, with a time before the last record that a
//! reader has seen. So a reader reads one *window* after the other. A window is all records that arrived in a
//! range of rows (`low < arrival <= high`), sorted by time. No record is skipped, and none is returned twice.

use std::{fmt, str::FromStr};

use hearsay_protocol::journal::HybridTime;

/// A position in the log of one node. Opaque to clients; written as `c.TABLES.LOW.HIGH[.TIME.FEED.SEQ]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    /// Identity of the tables that the row numbers belong to.
    pub(super) tables_id: String,
    /// Every record that arrived up to this row has been read.
    pub(super) low: i64,
    /// The last row of the current window.
    pub(super) high: i64,
    /// Position within the window; `None` at its start.
    pub(super) at: Option<At>,
}

/// A position in the order of time: that of a record, which may have been dropped since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct At {
    pub(super) time: HybridTime,
    /// Row of the feed. Never reused.
    pub(super) feed: i64,
    pub(super) seq: i64,
}

impl Cursor {
    /// The position after every record that arrived up to this row.
    pub(super) fn after(tables_id: &str, arrival: i64) -> Self {
        Self { tables_id: tables_id.to_owned(), low: arrival, high: arrival, at: None }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c.{}.{}.{}", self.tables_id, self.low, self.high)?;
        match self.at {
            None => Ok(()),
            Some(At { time, feed, seq }) => write!(f, ".{:x}.{feed}.{seq}", time.0),
        }
    }
}

/// The text is not a cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NotACursor;

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let parts: Vec<&str> = text.split('.').collect();
        let number = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= 0).ok_or(NotACursor);
        let (tables_id, low, high, at) = match parts[..] {
            ["c", tables_id, low, high] => (tables_id, low, high, None),
            ["c", tables_id, low, high, time, feed, seq] => {
                let time = HybridTime(u64::from_str_radix(time, 16).map_err(|_| NotACursor)?);
                (tables_id, low, high, Some(At { time, feed: number(feed)?, seq: number(seq)? }))
            }
            _ => return Err(NotACursor),
        };
        if tables_id.len() != 8 || !tables_id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotACursor);
        }
        let (low, high) = (number(low)?, number(high)?);
        if low > high { Err(NotACursor) } else { Ok(Self { tables_id: tables_id.to_owned(), low, high, at }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        let begun = Cursor {
            tables_id: "00ab34cd".into(),
            low: 3,
            high: 9,
            at: Some(At { time: HybridTime(u64::MAX), feed: 2, seq: 7 }),
        };
        for cursor in [begun, Cursor::after("00ab34cd", 5)] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for text in [
            "",
            "c",
            "c.00ab34cd.1",
            "c.00ab34cd.9.3",
            "c.00ab34cd.-1.3",
            "c.x.1.2",
            "c.00ab34cd.1.2.3",
            "d.00ab34cd.1.2",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(NotACursor), "{text}");
        }
    }
}
