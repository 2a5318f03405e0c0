//! A grade book as a table that people keep: CSV as spreadsheets of any country save it.
//!
//! The separator is told from the header. Where it is no comma, a score may have a decimal comma. Columns without a name and rows without a
//! value, which spreadsheets leave at the edges, are passed over. Everything else that is left out is told, with its line.
//!
//! The import over HTTP and that of the command line both read by this.

use std::io::{self, Read};

use csv::ByteRecord;

use super::records::{Found, Records};

/// What to do with a file in an unknown encoding.
const SAVE_AS: &str = "save the file as CSV UTF-8";
/// The column that holds numbers.
const SCORE: &str = "Score";

/// Why a file cannot be read as a table. Nothing of it was taken.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    /// The system could not read it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is no line in it.
    #[error("it is empty; expected CSV with the header ID,FirstName,LastName,Title,Type,Score")]
    Empty,
    /// The header makes no sense.
    #[error("line {0}: {1}")]
    Header(u64, String),
}

/// A row that has a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The line on which it begins, from 1; the header is the first.
    pub line: u64,
    /// How many lines it takes: more than one only where quotation marks hold line breaks.
    pub lines: u64,
    /// Its fields, as many as there are columns and without the space around them; or what is wrong with it.
    pub fields: Result<Vec<String>, String>,
}

impl Row {
    /// A sentence about this row, which says so where the row takes several lines: those were not read as rows of their own.
    pub fn explain(&self, problem: &str) -> String {
        match self.lines {
            0 | 1 => problem.to_owned(),
            lines => format!("{problem}; the row takes {lines} lines, is a quotation mark missing?"),
        }
    }
}

/// A table that is being read.
pub struct Sheet<R> {
    records: Records<R>,
    /// Fields of the header, with those that have no name.
    width: usize,
    /// The columns with a name.
    columns: Vec<String>,
    /// Where they stand.
    places: Vec<usize>,
    /// Which of them is the score, if commas in it are decimal.
    decimal_comma: Option<usize>,
}

impl<R: Read> Sheet<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open(source: R) -> Result<Self, SheetError> {
        let mut records = Records::new(source);
        let (line, header) = match records.next()? {
            None => return Err(SheetError::Empty),
            Some((line, Found::Record(header, _))) => (line, header),
            Some((line, Found::Unclosed)) => return Err(SheetError::Header(line, UNCLOSED.to_owned())),
            Some((line, Found::TooLarge)) => return Err(SheetError::Header(line, TOO_LARGE.to_owned())),
        };
        let names = texts(&header).map_err(|problem| SheetError::Header(line, problem))?;
        if names.iter().any(|name| name.contains('\0')) {
            let problem = format!("this looks like UTF-16 without a byte order mark; {SAVE_AS}");
            return Err(SheetError::Header(line, problem));
        }
        let named = names.iter().enumerate().filter(|(_, name)| !name.is_empty());
        let (places, columns): (Vec<usize>, Vec<String>) =
            named.map(|(place, name)| (place, name.clone())).unzip();
        let score = columns.iter().position(|column| column.eq_ignore_ascii_case(SCORE));
        let decimal_comma = score.filter(|_| records.delimiter() != b',');
        Ok(Self { width: names.len(), records, columns, places, decimal_comma })
    }

    /// The columns that have a name.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Bytes of the file read so far.
    pub fn bytes_read(&self) -> u64 {
        self.records.bytes_read()
    }

    /// The next row that has a value; `None`: there is none.
    ///
    /// # Errors
    /// The system could not read on.
    pub fn next_row(&mut self) -> io::Result<Option<Row>> {
        loop {
            let Some((line, found)) = self.records.next()? else { return Ok(None) };
            let refused = |problem: &str| Some(Row { line, lines: 1, fields: Err(problem.to_owned()) });
            let (record, lines) = match found {
                Found::Record(record, lines) => (record, lines),
                Found::Unclosed => return Ok(refused(UNCLOSED)),
                Found::TooLarge => return Ok(refused(TOO_LARGE)),
            };
            if record.iter().all(|field| field.trim_ascii().is_empty()) {
                continue;
            }
            let mut row = Row { line, lines, fields: Ok(Vec::new()) };
            row.fields = self.fields(&record).map_err(|problem| row.explain(&problem));
            return Ok(Some(row));
        }
    }

    fn fields(&self, record: &ByteRecord) -> Result<Vec<String>, String> {
        let texts = texts(record)?;
        let is_short = self.places.last().is_some_and(|last| texts.len() <= *last);
        let is_long = texts.iter().skip(self.width).any(|text| !text.is_empty());
        if is_short || is_long {
            return Err(format!("{} fields where the header has {}", texts.len(), self.width));
        }
        let unnamed = texts.iter().enumerate().filter(|(place, _)| !self.places.contains(place));
        if let Some((place, _)) = unnamed.into_iter().find(|(_, text)| text.contains(['\n', '\r'])) {
            return Err(format!("column {}, which has no name, holds a line break", place + 1));
        }
        let mut fields: Vec<String> =
            self.places.iter().filter_map(|place| texts.get(*place)).cloned().collect();
        if let Some(score) = self.decimal_comma.and_then(|place| fields.get_mut(place)) {
            *score = score.replace(',', ".");
        }
        Ok(fields)
    }
}

const UNCLOSED: &str =
    "a quotation mark opens on this line and is not closed; the lines after it were read on their own";
const TOO_LARGE: &str = "it is over 64 KiB or 256 fields";

fn texts(record: &ByteRecord) -> Result<Vec<String>, String> {
    let text = |field: &[u8]| match std::str::from_utf8(field) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) => Err(format!(
            "{:?} is not UTF-8; {SAVE_AS}",
            String::from_utf8_lossy(&field[..field.len().min(64)])
        )),
    };
    record.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[u8]) -> Vec<(u64, Result<Vec<String>, String>)> {
        let mut sheet = Sheet::open(text).unwrap();
        std::iter::from_fn(|| sheet.next_row().unwrap()).map(|row| (row.line, row.fields)).collect()
    }

    fn row(line: u64, fields: &[&str]) -> (u64, Result<Vec<String>, String>) {
        (line, Ok(fields.iter().map(|field| (*field).to_owned()).collect()))
    }

    #[test]
    fn a_comma_in_a_score_is_decimal_where_it_does_not_separate() {
        for text in ["Title;Score\n1,5;92,5\n", "Title\tscore\n1,5\t 92,5\n", "Title,Score\n\"1,5\",92.5\n"] {
            assert_eq!(rows(text.as_bytes()), [row(2, &["1,5", "92.5"])], "{text}");
        }
        assert_eq!(rows(b"Title,Score\nT,\"92,5\"\n"), [row(2, &["T", "92,5"])]);
    }

    #[test]
    fn what_spreadsheets_leave_at_the_edges_is_passed_over() {
        let text =
            "FirstName;;LastName;;\r\nAda;x;Lovelace;;\r\n;;;;\r\n\r\n;; ;\r\nTom;;Neu\r\nLea;;Neu;;;;\r\n";
        let expected = [row(2, &["Ada", "Lovelace"]), row(6, &["Tom", "Neu"]), row(7, &["Lea", "Neu"])];
        assert_eq!(rows(text.as_bytes()), expected);
        assert_eq!(Sheet::open(text.as_bytes()).unwrap().columns(), ["FirstName", "LastName"]);
        let refused = |text: &[u8]| rows(text).remove(0).1.unwrap_err();
        assert_eq!(refused(b"A,B,\n1,2,3,4\n"), "4 fields where the header has 3");
        assert_eq!(refused(b"A,B,\n1\n"), "1 fields where the header has 3");
    }

    #[test]
    fn a_row_of_several_lines_says_so_where_it_is_wrong() {
        // The mark of line 2 is closed by that of line 4.
        let swallowed =
            Sheet::open(&b"A,B\n1,\"2\n3,4\n5,\"6\n7,8\n"[..]).unwrap().next_row().unwrap().unwrap();
        assert_eq!((swallowed.line, swallowed.lines), (2, 3));
        assert!(swallowed.explain("wrong").contains("takes 3 lines"));
        let unnamed = rows(b"A,\n1,\"x\n2,\"\n3,\n").remove(0).1.unwrap_err();
        assert!(unnamed.contains("column 2") && unnamed.contains("takes 2 lines"), "{unnamed}");
    }

    #[test]
    fn another_encoding_is_told_by_name_or_read() {
        let utf16: Vec<u8> = "\u{feff}A;B\r\nÄ;ß\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(rows(&utf16), [row(2, &["Ä", "ß"])]);
        let Err(error) = Sheet::open(&utf16[2..]) else { panic!() };
        assert!(error.to_string().contains("UTF-16"), "{error}");
        let (line, latin1) = rows(b"A,B\nJ\xfcrgen,x\nTom,y\n").remove(0);
        assert!(line == 2 && latin1.unwrap_err().contains("save the file as CSV UTF-8"));
        assert!(matches!(Sheet::open(&b"\r\n"[..]), Err(SheetError::Empty)));
        assert!(matches!(Sheet::open(&b"\n\"A,B"[..]), Err(SheetError::Header(2, _))));
    }
}
