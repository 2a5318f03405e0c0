//! The records of a CSV file, one at a time: a file of any size, and never more of it in memory than the largest record.
//!
//! A quotation mark that is never closed makes one field of all that follows. So a record has a limit; one that passes it is told by the line where
//! it begins, and reading goes on with the next line, which is most likely a record again.

use std::io::{self, Read};

use csv::ByteRecord;
use csv_core::ReadRecordResult;

/// The largest record, in bytes. A line of a grade book has some hundred.
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// The most fields of a record. A grade book has seven columns at most.
const FIELDS_MAX: usize = 256;
/// Bytes read at a time.
const READ_BYTES: usize = 32 * 1024;
/// What spreadsheets put in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What stands in the file next.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// A record.
    Record(ByteRecord),
    /// Something that is over the limit, or has no end.
    TooLarge,
}

/// Reads a file.
pub(super) struct Records<R> {
    source: R,
    core: csv_core::Reader,
    /// What was read and is not passed yet: from the beginning of the current record.
    buffer: Vec<u8>,
    /// So much of it the parser has seen.
    parsed: usize,
    has_ended: bool,
    /// The line on which the buffer begins, from 1.
    line: u64,
    /// What was passed last is a carriage return: a line feed that follows it belongs to the same line end.
    after_return: bool,
    bytes: u64,
    fields: Vec<u8>,
    ends: Vec<usize>,
}

impl<R: Read> Records<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            core: csv_core::Reader::new(),
            buffer: Vec::new(),
            parsed: 0,
            has_ended: false,
            line: 1,
            after_return: false,
            bytes: 0,
            fields: vec![0; RECORD_BYTES_MAX + READ_BYTES],
            ends: vec![0; FIELDS_MAX],
        }
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What comes next, and the line where it begins; `None`: nothing does.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Found)>> {
        if self.bytes == 0 {
            // A pipe may give single bytes.
            while !self.has_ended && self.buffer.len() < BYTE_ORDER_MARK.len() {
                self.read()?;
            }
            if self.buffer.starts_with(BYTE_ORDER_MARK) {
                self.buffer.drain(..BYTE_ORDER_MARK.len());
            }
        }
        if !self.skip_empty_lines()? {
            return Ok(None);
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
                    let line = self.line;
                    let mut record = ByteRecord::with_capacity(length, count);
                    let mut start = 0;
                    for end in &self.ends[..count] {
                        record.push_field(&self.fields[start..*end]);
                        start = *end;
                    }
                    self.pass(self.parsed);
                    return Ok(Some((line, Found::Record(record))));
                }
                ReadRecordResult::End => return Ok(None),
                ReadRecordResult::InputEmpty if self.parsed <= RECORD_BYTES_MAX => (),
                ReadRecordResult::InputEmpty
                | ReadRecordResult::OutputFull
                | ReadRecordResult::OutputEndsFull => {
                    let line = self.line;
                    self.give_up_line()?;
                    return Ok(Some((line, Found::TooLarge)));
                }
            }
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let length = self.buffer.len();
        self.buffer.resize(length + READ_BYTES, 0);
        let read = loop {
            match self.source.read(&mut self.buffer[length..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                read => break read,
            }
        };
        let read = read.inspect_err(|_| self.buffer.truncate(length))?;
        self.buffer.truncate(length + read);
        self.bytes += read as u64;
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

    /// Goes on behind the line on which the current record begins.
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
                    Found::Record(record) => (line, Some(texts(&record))),
                    Found::TooLarge => (line, None),
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
    fn a_line_without_an_end_and_one_of_a_thousand_fields_are_passed_over() {
        let long = "x".repeat(3 * RECORD_BYTES_MAX);
        let wide = ",".repeat(1000);
        let text = format!("{long}\n{wide}\n1\n{long}");
        assert_eq!(all(text.as_bytes()), [(1, None), (2, None), record(3, &["1"]), (4, None)]);
    }
}
