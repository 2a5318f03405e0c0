//! Where a reader is, as it carries it from one page to the next.
//!
//! Records are read in the order of time, and a record may come late: then it stands before what a reader has seen, and asking for "all after the
//! last one" would miss it. So a reader reads a *window*, all that had arrived here when it began (`low < arrival <= high`), in the order of time;
//! then the window of what arrived meanwhile; and so on. Nothing is skipped, and nothing is told twice.

use std::{fmt, str::FromStr};

use hearsay_protocol::journal::clock::HybridTime;

/// A place in the log of one node. Opaque to clients; written as `c.MADE.LOW.HIGH[.TIME.FEED.SEQ]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    /// Which tables these arrivals are counted in.
    pub(super) made: String,
    /// All that arrived up to here was read in full.
    pub(super) low: i64,
    /// What arrived up to here is being read.
    pub(super) high: i64,
    /// How far that was read; `None`: not at all.
    pub(super) at: Option<At>,
}

/// A place in the order of time: that of a record, which may be gone by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct At {
    pub(super) time: HybridTime,
    /// The row of its feed. Rows of feeds are never reused.
    pub(super) feed: i64,
    pub(super) seq: i64,
}

impl Cursor {
    /// After all that arrived up to here.
    pub(super) fn after(made: &str, arrival: i64) -> Self {
        Self { made: made.to_owned(), low: arrival, high: arrival, at: None }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c.{}.{}.{}", self.made, self.low, self.high)?;
        match self.at {
            None => Ok(()),
            Some(At { time, feed, seq }) => write!(f, ".{:x}.{feed}.{seq}", time.0),
        }
    }
}

/// The text is no cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NotACursor;

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let parts: Vec<&str> = text.split('.').collect();
        let number = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= 0).ok_or(NotACursor);
        let (made, low, high, at) = match parts[..] {
            ["c", made, low, high] => (made, low, high, None),
            ["c", made, low, high, time, feed, seq] => {
                let time = HybridTime(u64::from_str_radix(time, 16).map_err(|_| NotACursor)?);
                (made, low, high, Some(At { time, feed: number(feed)?, seq: number(seq)? }))
            }
            _ => return Err(NotACursor),
        };
        if made.len() != 8 || !made.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotACursor);
        }
        let (low, high) = (number(low)?, number(high)?);
        if low > high { Err(NotACursor) } else { Ok(Self { made: made.to_owned(), low, high, at }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        let begun = Cursor {
            made: "00ab34cd".into(),
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
