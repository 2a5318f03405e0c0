//! Lines of a stream as records: any bytes become texts that the log takes, and none is dropped.
//!
//! What is not UTF-8 is replaced by U+FFFD, and a line over the log's limit is split. Of each kind the first line is remembered, so that it can be
//! told.

use std::collections::VecDeque;

use hearsay_services::log::record::MESSAGE_BYTES_MAX;

/// What the log takes as one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// The line that it is, or is of, from 1.
    pub(super) line: u64,
    pub(super) text: String,
}

/// The lines of a stream, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Lines {
    ready: VecDeque<Piece>,
    /// The line that has not ended yet; its first parts may be ready.
    open: Vec<u8>,
    /// Lines that have ended.
    ended: u64,
    is_split: bool,
    /// The first line that is not UTF-8.
    replaced: Option<u64>,
    /// The first line over the limit.
    split: Option<u64>,
}

impl Lines {
    /// Takes what was read.
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
        // One byte more may be the carriage return of a line's end.
        while self.open.len() > MESSAGE_BYTES_MAX + 1 {
            self.cut();
        }
    }

    /// The stream has ended, perhaps within a line.
    pub(super) fn end(&mut self) {
        if !self.open.is_empty() {
            self.end_line();
        }
    }

    /// The next record, if one is ready.
    pub(super) fn pop(&mut self) -> Option<Piece> {
        self.ready.pop_front()
    }

    /// What is ready or has not ended.
    pub(super) fn rest(&mut self) -> Vec<Piece> {
        self.end();
        self.ready.drain(..).collect()
    }

    /// The first line that is not UTF-8, unless it was told.
    pub(super) fn newly_replaced(&self, told: bool) -> Option<u64> {
        self.replaced.filter(|_| !told)
    }

    /// The first line over the limit, unless it was told.
    pub(super) fn newly_split(&self, told: bool) -> Option<u64> {
        self.split.filter(|_| !told)
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

    /// Makes a record of the beginning of a line that is over the limit.
    fn cut(&mut self) {
        let start = self.open.get(..MESSAGE_BYTES_MAX).unwrap_or(&self.open);
        let end = match std::str::from_utf8(start) {
            // A character that the limit cuts apart belongs to the next record.
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
        // U+FFFD is longer than what it replaces.
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

    /// The pieces of a stream, read whole and byte by byte, and the lines that are told.
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
    fn what_is_not_utf8_is_replaced_and_its_line_told() {
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
        // Replacing makes it three times as long.
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
