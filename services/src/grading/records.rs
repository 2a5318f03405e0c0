//! The records of a CSV file, one at a time: a file of any size, and never more of it in memory than the largest record.
//!
//! A quotation mark that is never closed makes one field of all that follows. So a record has a limit; one that passes it, or that the end of
//! the file cuts off within quotation marks, is told by the line on which the mark stands, and reading goes on with the next line, which is
//! most likely a record again.

use std::io::{self, Read};

use csv::ByteRecord;
use csv_core::{ReadRecordResult, ReaderBuilder};

use super::utf8::Utf8Reader;

/// The largest record, in bytes. A line of a grade book has some hundred.
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// The most fields of a record. A grade book has seven columns at most.
const FIELDS_MAX: usize = 256;
/// Bytes read at a time.
const READ_BYTES: usize = 32 * 1024;
/// What may stand between fields; the first of those that the first line has most often does.
const DELIMITERS: [u8; 3] = *b",;\t";

/// What stands in the file next.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// A record, and how many lines it takes.
    Record(ByteRecord, u64),
    /// A quotation mark that is not closed.
    Unclosed,
    /// Something that is over the limit.
    TooLarge,
}

/// Reads a file.
pub(super) struct Records<R> {
    source: Utf8Reader<R>,
    core: csv_core::Reader,
    /// What stands between fields; `None`: the file has not begun.
    delimiter: Option<u8>,
    /// What was read and is not passed yet: from the beginning of the current record.
    buffer: Vec<u8>,
    /// So much of it the parser has seen.
    parsed: usize,
    has_ended: bool,
    /// The line on which the buffer begins, from 1.
    line: u64,
    /// What was passed last is a carriage return: a line feed that follows it belongs to the same line end.
    after_return: bool,
    fields: Vec<u8>,
    ends: Vec<usize>,
}

impl<R: Read> Records<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source: Utf8Reader::new(source),
            core: csv_core::Reader::new(),
            delimiter: None,
            buffer: Vec::new(),
            parsed: 0,
            has_ended: false,
            line: 1,
            after_return: false,
            fields: vec![0; RECORD_BYTES_MAX + READ_BYTES],
            ends: vec![0; FIELDS_MAX],
        }
    }

    /// Bytes of the file read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.source.bytes_read()
    }

    /// What stands between fields.
    pub(super) fn delimiter(&self) -> u8 {
        self.delimiter.unwrap_or(DELIMITERS[0])
    }

    /// What comes next, and the line where it begins, or where the quotation mark stands; `None`: nothing does.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Found)>> {
        if !self.skip_empty_lines()? {
            return Ok(None);
        }
        if self.delimiter.is_none() {
            self.find_delimiter()?;
        }
        let (mut length, mut count) = (0, 0);
        loop {
            if self.parsed == self.buffer.len() && !self.has_ended {
                self.read()?;
            }
            // Empty only at the end of the file, which is how the parser is told of it.
            let (result, taken, written, ended) = self.core.read_record(
                &self.buffer[self.parsed..],
                &mut self.fields[length..],
                &mut self.ends[count..],
            );
            self.parsed += taken;
            length += written;
            count += ended;
            match result {
                ReadRecordResult::Record => {
                    let is_last = self.has_ended && self.parsed == self.buffer.len();
                    if is_last && let Some(quote) = self.open_quote() {
                        return self.pass_unclosed(quote).map(Some);
                    }
                    return Ok(Some(self.take(length, count)));
                }
                ReadRecordResult::End => return Ok(None),
                ReadRecordResult::InputEmpty if self.parsed <= RECORD_BYTES_MAX => (),
                ReadRecordResult::InputEmpty
                | ReadRecordResult::OutputFull
                | ReadRecordResult::OutputEndsFull => {
                    if let Some(quote) = self.open_quote() {
                        return self.pass_unclosed(quote).map(Some);
                    }
                    let line = self.line;
                    self.give_up_line()?;
                    return Ok(Some((line, Found::TooLarge)));
                }
            }
        }
    }

    /// Looks at the first line, as far as a record may be long.
    fn find_delimiter(&mut self) -> io::Result<()> {
        let ends_line = |byte: &u8| matches!(byte, b'\r' | b'\n');
        while !self.has_ended && self.buffer.len() <= RECORD_BYTES_MAX && !self.buffer.iter().any(ends_line) {
            self.read()?;
        }
        let mut counts = [0_usize; DELIMITERS.len()];
        let mut is_quoted = false;
        for byte in &self.buffer {
            if ends_line(byte) && !is_quoted {
                break;
            }
            is_quoted ^= *byte == b'"';
            if let Some(place) = DELIMITERS.iter().position(|d| d == byte).filter(|_| !is_quoted) {
                counts[place] += 1;
            }
        }
        let most = counts.iter().max().copied().unwrap_or_default();
        let found = DELIMITERS.into_iter().zip(counts).find(|(_, count)| *count == most);
        let delimiter = found.map_or(DELIMITERS[0], |(delimiter, _)| delimiter);
        self.core = ReaderBuilder::new().delimiter(delimiter).build();
        self.delimiter = Some(delimiter);
        Ok(())
    }

    /// The record that the parser has written down.
    fn take(&mut self, length: usize, count: usize) -> (u64, Found) {
        let (line, breaks) = (self.line, line_ends(&self.buffer[..self.parsed]));
        let is_ended = matches!(self.buffer[..self.parsed].last(), Some(b'\r' | b'\n'));
        let mut record = ByteRecord::with_capacity(length, count);
        let mut start = 0;
        for end in &self.ends[..count] {
            record.push_field(&self.fields[start..*end]);
            start = *end;
        }
        self.pass(self.parsed);
        (line, Found::Record(record, breaks + u64::from(!is_ended)))
    }

    fn read(&mut self) -> io::Result<()> {
        let length = self.buffer.len();
        self.buffer.resize(length + READ_BYTES, 0);
        let read =
            self.source.read(&mut self.buffer[length..]).inspect_err(|_| self.buffer.truncate(length))?;
        self.buffer.truncate(length + read);
        self.has_ended = read == 0;
        Ok(())
    }

    /// `false`: there is nothing but empty lines.
    fn skip_empty_lines(&mut self) -> io::Result<bool> {
        loop {
            let ends = self.buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            self.pass(ends);
            if !self.buffer.is_empty() {
                return Ok(true);
            }
            if self.has_ended {
                return Ok(false);
            }
            self.read()?;
        }
    }

    /// Puts the beginning of the buffer behind us, and counts its lines.
    fn pass(&mut self, length: usize) {
        for byte in self.buffer.drain(..length) {
            let ends_line = byte == b'\r' || byte == b'\n' && !self.after_return;
            self.line += u64::from(ends_line);
            self.after_return = byte == b'\r';
        }
        self.parsed = 0;
    }

    /// Where the quotation mark stands that is open at the end of what the parser has seen, by the same rules: one within a field that does not
    /// begin with it is a character like any other, and a pair of them within quotation marks, too.
    fn open_quote(&self) -> Option<usize> {
        #[derive(Clone, Copy, PartialEq, Eq)]
        enum In {
            Start,
            Field,
            Quotes(usize),
            AfterQuote(usize),
        }
        let mut state = In::Start;
        for (at, byte) in self.buffer[..self.parsed].iter().enumerate() {
            let is_end = *byte == self.delimiter() || matches!(byte, b'\r' | b'\n');
            state = match (state, *byte) {
                (In::Start, b'"') => In::Quotes(at),
                (In::Quotes(opened), b'"') => In::AfterQuote(opened),
                (In::Quotes(opened), _) => In::Quotes(opened),
                (In::AfterQuote(opened), b'"') => In::Quotes(opened),
                _ if is_end => In::Start,
                _ => In::Field,
            };
        }
        match state {
            In::Quotes(opened) => Some(opened),
            _ => None,
        }
    }

    /// Goes on behind the line on which a quotation mark stands that is not closed.
    fn pass_unclosed(&mut self, quote: usize) -> io::Result<(u64, Found)> {
        self.pass(quote);
        let line = self.line;
        self.give_up_line()?;
        Ok((line, Found::Unclosed))
    }

    /// Goes on behind the line on which the buffer begins.
    fn give_up_line(&mut self) -> io::Result<()> {
        self.core.reset();
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
                self.pass(end + 1);
                return Ok(());
            }
            self.pass(self.buffer.len());
            if self.has_ended {
                return Ok(());
            }
            self.read()?;
        }
    }
}

/// Ends of lines: line feeds, carriage returns, and the two together.
fn line_ends(text: &[u8]) -> u64 {
    let is_end = |(at, byte): (usize, &u8)| match byte {
        b'\r' => true,
        b'\n' => at.checked_sub(1).and_then(|before| text.get(before)) != Some(&b'\r'),
        _ => false,
    };
    text.iter().enumerate().filter(|pair| is_end(*pair)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time, as a slow pipe may.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let (now, later) = self.0.split_at(self.0.len().min(1));
            buffer[..now.len()].copy_from_slice(now);
            self.0 = later;
            Ok(now.len())
        }
    }

    fn all(text: &[u8]) -> Vec<(u64, Option<Vec<String>>)> {
        let texts = |record: &ByteRecord| {
            record.iter().map(|field| String::from_utf8_lossy(field).into_owned()).collect()
        };
        type Next<'a> = Box<dyn FnMut() -> io::Result<Option<(u64, Found)>> + 'a>;
        let read = |mut next: Next<'_>| {
            let mut all = Vec::new();
            while let Some((line, found)) = next().unwrap() {
                all.push(match found {
                    Found::Record(record, _) => (line, Some(texts(&record))),
                    Found::Unclosed | Found::TooLarge => (line, None),
                });
            }
            all
        };
        let (mut fast, mut slow) = (Records::new(text), Records::new(Slow(text)));
        let all = read(Box::new(|| fast.next()));
        assert_eq!(read(Box::new(|| slow.next())), all);
        all
    }

    fn record(line: u64, fields: &[&str]) -> (u64, Option<Vec<String>>) {
        (line, Some(fields.iter().map(|field| (*field).to_owned()).collect()))
    }

    #[test]
    fn lines_are_those_of_an_editor_whatever_ends_them() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["a,b", "", "", "1,\"x", "y\"", "2,z", ""].join(end);
            let expected =
                [record(1, &["a", "b"]), record(4, &["1", &format!("x{end}y")]), record(6, &["2", "z"])];
            assert_eq!(all(text.as_bytes()), expected, "{end:?}");
        }
        assert_eq!(all(b"\n\na"), [record(3, &["a"])]);
        assert_eq!(all(b""), []);
        assert_eq!(all(b"\r\n\n"), []);
    }

    #[test]
    fn what_spreadsheets_put_in_front_is_passed_over() {
        assert_eq!(all(b"\xef\xbb\xbf\"ID\",b\n"), [record(1, &["ID", "b"])]);
    }

    #[test]
    fn a_quotation_mark_that_is_never_closed_costs_its_line_and_no_other() {
        let mut text = b"a,b\n1,\"x\n".to_vec();
        for number in 0..10_000 {
            text.extend(format!("{number},yyyyyyyy\n").bytes());
        }
        let all = all(&text);
        assert_eq!(all[..3], [record(1, &["a", "b"]), (2, None), record(3, &["0", "yyyyyyyy"])]);
        assert_eq!(all.len(), 10_002);
        assert_eq!(all.last(), Some(&record(10_002, &["9999", "yyyyyyyy"])));
    }

    #[test]
    fn a_quotation_mark_that_the_end_of_the_file_leaves_open_is_told_where_it_stands() {
        let unclosed = |text: &str| {
            let mut records = Records::new(text.as_bytes());
            let mut found = Vec::new();
            while let Some((line, next)) = records.next().unwrap() {
                found.push((line, next == Found::Unclosed));
            }
            found
        };
        assert_eq!(
            unclosed("a,b\r\nEva,\"T,80\r\nTom,70\r\nLea,60\r\n"),
            [(1, false), (2, true), (3, false), (4, false)]
        );
        // It is the second mark of its record, whose first field takes two lines.
        assert_eq!(unclosed("a,b\n\"x\ny\",\"T\nTom,70"), [(1, false), (3, true), (4, false)]);
        for closed in ["a\n\"x\"", "a\n\"x\"\"\"", "a\nx\"y", "a\n\"x\"y\""] {
            assert_eq!(unclosed(closed), [(1, false), (2, false)], "{closed}");
        }
        assert_eq!(unclosed("a\n\"x\"\""), [(1, false), (2, true)]);
        assert_eq!(unclosed("a\n\""), [(1, false), (2, true)]);
        assert_eq!(unclosed("\"a"), [(1, true)]);
    }

    #[test]
    fn fields_are_separated_by_what_the_first_line_has_most_of() {
        for (text, first, second) in [
            ("a,b\n1;2,3", &["a", "b"][..], &["1;2", "3"][..]),
            ("a;b;c\n1,5;2;3", &["a", "b", "c"], &["1,5", "2", "3"]),
            ("\na\tb\r1,2\t3", &["a", "b"], &["1,2", "3"]),
            ("\"a,b,c\";d\n1;2", &["a,b,c", "d"], &["1", "2"]),
            ("a\n1;2", &["a"], &["1;2"]),
            ("a,b;c\n1,2", &["a", "b;c"], &["1", "2"]),
        ] {
            let records: Vec<_> =
                all(text.as_bytes()).into_iter().map(|(_, record)| record.unwrap()).collect();
            assert_eq!(records, [first, second], "{text}");
        }
    }

    #[test]
    fn a_record_knows_how_many_lines_it_takes() {
        for (text, lines) in
            [("a", 1), ("a\r\n", 1), ("\"a\r\nb\"\r\n", 2), ("\"a\n\nb\"", 3), ("\"a\rb\"\r", 2)]
        {
            let Some((1, Found::Record(_, taken))) = Records::new(text.as_bytes()).next().unwrap() else {
                panic!()
            };
            assert_eq!(taken, lines, "{text:?}");
        }
    }

    #[test]
    fn a_line_without_an_end_and_one_of_a_thousand_fields_are_passed_over() {
        let long = "x".repeat(3 * RECORD_BYTES_MAX);
        let wide = ",".repeat(1000);
        let text = format!("{long}\n{wide}\n1\n{long}");
        assert_eq!(all(text.as_bytes()), [(1, None), (2, None), record(3, &["1"]), (4, None)]);
    }
}
