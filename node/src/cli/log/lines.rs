//! [`Lines`]: splits a byte stream into lines of UTF-8 text, each within the size limit of a log message.
//!
//! Invalid UTF-8 is replaced by U+FFFD, and lines over the limit are split. The numbers of the first replaced
//! and the first split line are kept for a report.

use std::collections::VecDeque;

use hearsay_services::plugins::MESSAGE_BYTES_MAX;

/// Text of one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Number of the line, from 1.
    pub(super) line: u64,
    pub(super) text: String,
}

/// State of the division of a stream.
#[derive(Debug, Default)]
pub(super) struct Lines {
    ready: VecDeque<Piece>,
    /// The part of the current line that is not a record yet. Earlier parts of a line over the limit are in
    /// `ready`.
    open: Vec<u8>,
    /// Number of complete lines.
    ended: u64,
    is_split: bool,
    /// The first line that is not UTF-8.
    replaced: Option<u64>,
    /// The first line over the limit.
    split: Option<u64>,
}

impl Lines {
    /// Adds bytes of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(part) => {
                    self.open.extend_from_slice(part);
                    self.end_line();
                }
                None => self.open.extend_from_slice(part),
            }
        }
        // The extra byte may be the CR of a line end.
        while self.open.len() > MESSAGE_BYTES_MAX + 1 {
            self.cut();
        }
    }

    /// Ends the last line, if the stream does not end with a newline.
    pub(super) fn end(&mut self) {
        if !self.open.is_empty() {
            self.end_line();
        }
    }

    /// Returns the next record, if ready.
    pub(super) fn pop(&mut self) -> Option<Piece> {
        self.ready.pop_front()
    }

    /// Ends the stream and returns the remaining records.
    pub(super) fn rest(&mut self) -> Vec<Piece> {
        self.end();
        self.ready.drain(..).collect()
    }

    /// Returns the first line that is not UTF-8, unless reported.
    pub(super) fn newly_replaced(&self, reported: bool) -> Option<u64> {
        self.replaced.filter(|_| !reported)
    }

    /// Returns the first line over the limit, unless reported.
    pub(super) fn newly_split(&self, reported: bool) -> Option<u64> {
        self.split.filter(|_| !reported)
    }

    fn end_line(&mut self) {
        if self.open.last() == Some(&b'\r') {
            self.open.pop();
        }
        while self.open.len() > MESSAGE_BYTES_MAX {
            self.cut();
        }
        let last = std::mem::take(&mut self.open);
        self.add(&last);
        self.ended += 1;
        self.is_split = false;
    }

    /// Makes a record of the start of a line over the limit.
    fn cut(&mut self) {
        let start = self.open.get(..MESSAGE_BYTES_MAX).unwrap_or(&self.open);
        let end = match std::str::from_utf8(start) {
            // A character that crosses the limit belongs to the next record.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => start.len(),
        };
        let rest = self.open.split_off(end);
        let first = std::mem::replace(&mut self.open, rest);
        self.is_split = true;
        self.add(&first);
    }

    fn add(&mut self, bytes: &[u8]) {
        let line = self.ended + 1;
        let text = String::from_utf8_lossy(bytes);
        if matches!(text, std::borrow::Cow::Owned(_)) {
            self.replaced.get_or_insert(line);
        }
        let mut text = text.as_ref();
        // U+FFFD may take more bytes than it replaces.
        while text.len() > MESSAGE_BYTES_MAX {
            let (first, rest) = text.split_at(text.floor_char_boundary(MESSAGE_BYTES_MAX));
            self.ready.push_back(Piece { line, text: first.to_owned() });
            (text, self.is_split) = (rest, true);
        }
        if !text.is_empty() {
            self.ready.push_back(Piece { line, text: text.to_owned() });
        }
        if self.is_split {
            self.split.get_or_insert(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the pieces of a stream and its reported lines; the same for all chunk sizes.
    fn all(bytes: &[u8]) -> (Vec<(u64, String)>, Option<u64>, Option<u64>) {
        let read = |size: usize| {
            let mut lines = Lines::default();
            bytes.chunks(size).for_each(|chunk| lines.push(chunk));
            let pieces: Vec<_> = lines.rest().into_iter().map(|piece| (piece.line, piece.text)).collect();
            (pieces, lines.newly_replaced(false), lines.newly_split(false))
        };
        let whole = read(usize::MAX);
        for size in [1, 1000, MESSAGE_BYTES_MAX] {
            assert!(read(size) == whole, "in chunks of {size}");
        }
        whole
    }

    fn piece(line: u64, text: &str) -> (u64, String) {
        (line, text.to_owned())
    }

    #[test]
    fn lines_are_records_and_empty_ones_count() {
        let (pieces, replaced, split) = all("a\n\nbé\r\n\r\nlast".as_bytes());
        assert_eq!(pieces, [piece(1, "a"), piece(3, "bé"), piece(5, "last")]);
        assert_eq!((replaced, split), (None, None));
        assert_eq!(all(b"").0, []);
    }

    #[test]
    fn invalid_utf8_is_replaced_and_its_line_reported() {
        let (pieces, replaced, split) = all(b"1\ncaf\xe9\n\xff\xfe\n3\n");
        assert_eq!(
            pieces,
            [piece(1, "1"), piece(2, "caf\u{fffd}"), piece(3, "\u{fffd}\u{fffd}"), piece(4, "3")]
        );
        assert_eq!((replaced, split), (Some(2), None));
    }

    #[test]
    fn a_line_over_the_limit_is_split_at_a_character_and_nothing_of_it_is_lost() {
        let exact = "z".repeat(MESSAGE_BYTES_MAX);
        let (pieces, _, split) = all(format!("{exact}\r\n{exact}\n").as_bytes());
        assert_eq!((pieces.len(), split), (2, None));
        // The limit falls within a character.
        let long = format!("x{}", "é".repeat(MESSAGE_BYTES_MAX));
        let (pieces, replaced, split) = all(format!("1\n{long}\n3").as_bytes());
        assert_eq!((replaced, split), (None, Some(2)));
        let of_two: Vec<&str> =
            pieces.iter().filter(|(line, _)| *line == 2).map(|(_, text)| text.as_str()).collect();
        assert_eq!((of_two.len(), of_two.concat()), (3, long));
        assert!(of_two.iter().all(|text| text.len() <= MESSAGE_BYTES_MAX));
        assert_eq!(pieces.last(), Some(&piece(3, "3")));
        // Replacement makes the text three times as long.
        let (pieces, replaced, split) = all(&[0xff; 20_000]);
        assert_eq!((replaced, split), (Some(1), Some(1)));
        assert_eq!(pieces.iter().map(|(_, text)| text.chars().count()).sum::<usize>(), 20_000);
    }

    #[test]
    fn a_line_that_never_ends_is_not_kept() {
        let mut lines = Lines::default();
        for _ in 0..100 {
            lines.push(&[b'z'; 64 * 1024]);
            while lines.pop().is_some() {}
            assert!(lines.open.len() <= MESSAGE_BYTES_MAX + 1);
        }
    }
}
