//! [`Records`]: streaming reader of CSV records. Memory use is bounded by the largest record, not by the size
//! of the file.
//!
//! A quotation mark without a partner turns the rest of the file into one field. So a record has a size
//! limit. If it is exceeded, or if the file ends within quotation marks, the line of the mark is reported,
//! and reading continues with the next line.

use std::io::{self, Read};

use csv::ByteRecord;
use csv_core::{ReadRecordResult, ReaderBuilder};

use super::utf8::Utf8Reader;

/// Maximum number of bytes of a record. A line of a grade book has a few hundred.
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of fields of a record. A grade book has up to seven columns.
const FIELDS_MAX: usize = 256;
/// Bytes per read.
const READ_BYTES: usize = 32 * 1024;
/// Possible delimiters. The most frequent one in the first line is used; on a tie, the first of these.
const DELIMITERS: [u8; 3] = *b",;\t";

/// Result of reading one record.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// A record, and the number of lines that it takes.
    Record(ByteRecord, u64),
    /// A quotation mark that is not closed.
    Unclosed,
    /// A record over the limit.
    TooLarge,
}

/// Reader of a file.
pub(super) struct Records<R> {
    source: Utf8Reader<R>,
    core: csv_core::Reader,
    /// Delimiter; `None` before the header.
    delimiter: Option<u8>,
    /// Bytes from the beginning of the current record.
    buffer: Vec<u8>,
    /// Bytes of the buffer that have been parsed.
    parsed: usize,
    has_ended: bool,
    /// Line number of the beginning of the buffer, from 1.
    line: u64,
    /// Whether the last consumed byte was a carriage return. A line feed after it belongs to the same line
    /// break.
    follows_carriage_return: bool,
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
            follows_carriage_return: false,
            fields: vec![0; RECORD_BYTES_MAX + READ_BYTES],
            ends: vec![0; FIELDS_MAX],
        }
    }

    /// Returns the number of bytes read from the file.
    pub(super) fn bytes_read(&self) -> u64 {
        self.source.bytes_read()
    }

    /// Returns the delimiter.
    pub(super) fn delimiter(&self) -> u8 {
        self.delimiter.unwrap_or(DELIMITERS[0])
    }

    /// Reads the next record. Returns it with the line where it starts, or where the unclosed quotation mark
    /// is; `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Outcome)>> {
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
            // The rest of the buffer is empty only at the end of the file. This tells the parser that the
            // file has ended.
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
                        return self.skip_unclosed(quote).map(Some);
                    }
                    return Ok(Some(self.take(length, count)));
                }
                ReadRecordResult::End => return Ok(None),
                ReadRecordResult::InputEmpty if self.parsed <= RECORD_BYTES_MAX => (),
                ReadRecordResult::InputEmpty
                | ReadRecordResult::OutputFull
                | ReadRecordResult::OutputEndsFull => {
                    if let Some(quote) = self.open_quote() {
                        return self.skip_unclosed(quote).map(Some);
                    }
                    let line = self.line;
                    self.skip_line()?;
                    return Ok(Some((line, Outcome::TooLarge)));
                }
            }
        }
    }

    /// Detects the delimiter in the first line.
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
            if let Some(position) = DELIMITERS.iter().position(|d| d == byte).filter(|_| !is_quoted) {
                counts[position] += 1;
            }
        }
        let most = counts.iter().max().copied().unwrap_or_default();
        let found = DELIMITERS.into_iter().zip(counts).find(|(_, count)| *count == most);
        let delimiter = found.map_or(DELIMITERS[0], |(delimiter, _)| delimiter);
        self.core = ReaderBuilder::new().delimiter(delimiter).build();
        self.delimiter = Some(delimiter);
        Ok(())
    }

    /// Takes the parsed record.
    fn take(&mut self, length: usize, count: usize) -> (u64, Outcome) {
        let (line, breaks) = (self.line, line_ends(&self.buffer[..self.parsed]));
        let is_ended = matches!(self.buffer[..self.parsed].last(), Some(b'\r' | b'\n'));
        let mut record = ByteRecord::with_capacity(length, count);
        let mut start = 0;
        for end in &self.ends[..count] {
            record.push_field(&self.fields[start..*end]);
            start = *end;
        }
        self.consume(self.parsed);
        (line, Outcome::Record(record, breaks + u64::from(!is_ended)))
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

    /// Skips empty lines. Returns `false` at the end of the file.
    fn skip_empty_lines(&mut self) -> io::Result<bool> {
        loop {
            let ends = self.buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            self.consume(ends);
            if !self.buffer.is_empty() {
                return Ok(true);
            }
            if self.has_ended {
                return Ok(false);
            }
            self.read()?;
        }
    }

    /// Removes bytes from the beginning of the buffer, and counts their lines.
    fn consume(&mut self, length: usize) {
        for byte in self.buffer.drain(..length) {
            let ends_line = byte == b'\r' || byte == b'\n' && !self.follows_carriage_return;
            self.line += u64::from(ends_line);
            self.follows_carriage_return = byte == b'\r';
        }
        self.parsed = 0;
    }

    /// Returns the position of the quotation mark that is open at the end of the parsed bytes. The rules are
    /// those of the parser: a mark inside an unquoted field is an ordinary character. So is a pair of marks
    /// in a quoted field.
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

    /// Skips the line of an unclosed quotation mark.
    fn skip_unclosed(&mut self, quote: usize) -> io::Result<(u64, Outcome)> {
        self.consume(quote);
        let line = self.line;
        self.skip_line()?;
        Ok((line, Outcome::Unclosed))
    }

    /// Skips the first line of the buffer.
    fn skip_line(&mut self) -> io::Result<()> {
        self.core.reset();
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
                self.consume(end + 1);
                return Ok(());
            }
            self.consume(self.buffer.len());
            if self.has_ended {
                return Ok(());
            }
            self.read()?;
        }
    }
}

/// Returns the number of line breaks: line feeds, carriage returns, and pairs of them.
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

    /// Reader that returns one byte at a time, as a slow pipe may.
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
        type Next<'a> = Box<dyn FnMut() -> io::Result<Option<(u64, Outcome)>> + 'a>;
        let read = |mut next: Next<'_>| {
            let mut all = Vec::new();
            while let Some((line, found)) = next().unwrap() {
                all.push(match found {
                    Outcome::Record(record, _) => (line, Some(texts(&record))),
                    Outcome::Unclosed | Outcome::TooLarge => (line, None),
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
                found.push((line, next == Outcome::Unclosed));
            }
            found
        };
        assert_eq!(
            unclosed("a,b\r\nEva,\"T,80\r\nTom,70\r\nLea,60\r\n"),
            [(1, false), (2, true), (3, false), (4, false)]
        );
        // The second mark of its record, whose first field takes two lines.
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
            let Some((1, Outcome::Record(_, taken))) = Records::new(text.as_bytes()).next().unwrap() else {
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
