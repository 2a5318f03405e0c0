//! Splits a CSV file into [`Part`]s for import, and maps line numbers of a part back to the file
//! ([`Places`]).

use std::collections::HashMap;

use bytes::Bytes;
use csv::{ByteRecord, Writer, WriterBuilder};

/// Maximum number of lines in a part.
pub(super) const LINES_MAX: usize = 1000;
/// Maximum number of bytes in a part: half of a node's limit.
const BYTES_MAX: usize = 512 * 1024;
/// Column that numbers the grades of one student with the same title and type. A node sees only one part of
/// the file, so it cannot count them.
const OCCURRENCE: &str = "Occurrence";

/// Header of a file, and the occurrences of equal lines so far.
pub(super) struct Header {
    /// The header as sent.
    record: ByteRecord,
    columns: usize,
    /// Positions of the columns that identify a grade: ID, FirstName, LastName, Title, Type.
    identity: [Option<usize>; 5],
    counts: bool,
    seen: HashMap<u64, u32>,
}

impl Header {
    pub(super) fn new(record: ByteRecord) -> Self {
        let position = |name: &str| {
            record.iter().position(|column| String::from_utf8_lossy(column).trim().eq_ignore_ascii_case(name))
        };
        let identity = ["ID", "FirstName", "LastName", "Title", "Type"].map(position);
        // A file that has an occurrence column keeps it.
        let counts = position(OCCURRENCE).is_none();
        let columns = record.len();
        let mut record = record;
        if counts {
            record.push_field(OCCURRENCE.as_bytes());
        }
        Self { record, columns, identity, counts, seen: HashMap::new() }
    }

    /// Returns a line as sent, with its occurrence.
    ///
    /// # Errors
    /// The number of fields differs from the header.
    pub(super) fn complete(&mut self, mut record: ByteRecord) -> Result<ByteRecord, String> {
        if record.len() != self.columns {
            return Err(format!("{} fields where the header has {}", record.len(), self.columns));
        }
        if self.counts {
            let occurrence = self.occurrence(&record);
            record.push_field(occurrence.as_bytes());
        }
        Ok(record)
    }

    /// Returns the number of this line among the lines that differ only in score; empty for a line without a
    /// grade. Takes 16 bytes of memory per distinct line.
    fn occurrence(&mut self, record: &ByteRecord) -> String {
        let field = |place: &Option<usize>| {
            place.and_then(|place| record.get(place)).unwrap_or_default().trim_ascii()
        };
        if self.identity[3..].iter().all(|place| field(place).is_empty()) {
            return String::new();
        }
        let mut hasher = blake3::Hasher::new();
        for place in &self.identity {
            let field = field(place).to_ascii_lowercase();
            hasher.update(&field.len().to_le_bytes()).update(&field);
        }
        let mut half = [0; 8];
        half.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let count = self.seen.entry(u64::from_le_bytes(half)).or_default();
        *count = count.saturating_add(1);
        count.to_string()
    }
}

/// A part of a file, sent in one request.
pub(super) struct Part {
    writer: Writer<Vec<u8>>,
    /// Line number in the part and in the file, for each line.
    places: Vec<(u64, u64)>,
    next: u64,
    length: usize,
}

impl Part {
    pub(super) fn new(header: &Header) -> Self {
        // Records end with LF; a CR within a record is quoted and not counted.
        let writer = WriterBuilder::new().flexible(true).from_writer(Vec::new());
        let mut part = Self { writer, places: Vec::new(), next: 1, length: 0 };
        part.write(&header.record);
        part
    }

    fn write(&mut self, record: &ByteRecord) {
        // Writing into memory does not fail.
        _ = self.writer.write_byte_record(record);
        _ = self.writer.flush();
        let written = self.writer.get_ref().get(self.length..).unwrap_or_default();
        self.next += written.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.length += written.len();
    }

    /// Adds the line with this number in the file.
    pub(super) fn add(&mut self, line: u64, record: &ByteRecord) {
        self.places.push((self.next, line));
        self.write(record);
    }

    pub(super) fn lines(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.places.len() >= LINES_MAX || self.length >= BYTES_MAX
    }

    /// Returns the body to send, and the mapping of its lines.
    pub(super) fn finish(self) -> (Bytes, Places) {
        (self.writer.into_inner().unwrap_or_default().into(), Places(self.places))
    }
}

/// Mapping of line numbers from a part to the file.
pub(super) struct Places(Vec<(u64, u64)>);

impl Places {
    /// Returns the line in the file for a line in the part.
    pub(super) fn of(&self, line: u64) -> u64 {
        let after = self.0.partition_point(|(start, _)| *start <= line);
        // The header is line 1 in both.
        after.checked_sub(1).and_then(|at| self.0.get(at)).map_or(1, |(_, line)| *line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &[&str]) -> ByteRecord {
        ByteRecord::from(fields.to_vec())
    }

    #[test]
    fn lines_of_a_part_are_found_in_the_file() {
        let header = Header::new(record(&["FirstName", "LastName"]));
        let mut part = Part::new(&header);
        part.add(7, &record(&["a\nb", "c", ""]));
        part.add(12, &record(&["", "", ""]));
        part.add(13, &record(&["\u{feff}é", "\"", ""]));
        let (body, places) = part.finish();
        let text = std::str::from_utf8(&body).unwrap();
        assert_eq!(text, "FirstName,LastName,Occurrence\n\"a\nb\",c,\n,,\n\u{feff}é,\"\"\"\",\n");
        assert_eq!([1, 2, 3, 4, 5, 9].map(|line| places.of(line)), [1, 7, 7, 12, 13, 13]);
        // The CSV reader of a node counts lines in the same way.
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(&body[..]);
        let lines: Vec<u64> = reader.records().map(|r| r.unwrap().position().unwrap().line()).collect();
        assert_eq!(lines.into_iter().map(|line| places.of(line)).collect::<Vec<_>>(), [7, 12, 13]);
    }

    #[test]
    fn lines_that_say_the_same_are_counted_over_the_whole_file() {
        let mut header = Header::new(record(&[" firstname", "LASTNAME", "Title", "Type", "Score"]));
        let mut sent = |fields: &[&str]| {
            let record = header.complete(record(fields))?;
            Ok::<_, String>(String::from_utf8(record.get(5).unwrap().to_vec()).unwrap())
        };
        assert_eq!(sent(&["Ada", "L", "Essay", "Homework", "1"]), Ok("1".into()));
        assert_eq!(sent(&["Ada", "L", "Essay", "Quiz", "1"]), Ok("1".into()));
        assert_eq!(sent(&["Ada ", "L", "Essay", "homework", "2"]), Ok("2".into()));
        assert_eq!(sent(&["Ada", "L", "", "", ""]), Ok(String::new()));
        assert_eq!(sent(&["Ada", "L"]), Err("2 fields where the header has 5".into()));
        let mut header = Header::new(record(&["FirstName", "LastName", "occurrence"]));
        assert_eq!(header.complete(record(&["A", "B", "7"])), Ok(record(&["A", "B", "7"])));
    }

    #[test]
    fn a_part_is_full_by_lines_or_by_bytes() {
        let header = Header::new(record(&["FirstName", "LastName"]));
        for (fields, most) in [(record(&["a", "b"]), LINES_MAX), (record(&[&"x".repeat(60_000), "b"]), 9)] {
            let mut part = Part::new(&header);
            while !part.is_full() {
                part.add(1, &fields);
            }
            assert_eq!(part.lines(), most);
        }
    }
}
