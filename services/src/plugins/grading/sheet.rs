//! [`Sheet`]: reader of a grade book in CSV, as spreadsheets of any locale save it.
//!
//! The delimiter is detected in the header. Unless it is a comma, scores may have a decimal comma. Columns
//! without a name and rows without a value, which spreadsheets leave at the edges, are skipped. Every other
//! row that cannot be used is reported with its line.
//!
//! Both the import over HTTP and that of the command line use this reader.

use std::io::{self, Read};

use csv::ByteRecord;

use super::records::{Outcome, Records};

/// Advice for a file in an unknown encoding.
const SAVE_AS: &str = "save the file as CSV UTF-8";
/// Column with numbers.
const SCORE: &str = "Score";

/// The file is not a table. Nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file has no line.
    #[error("it is empty; expected CSV with the header ID,FirstName,LastName,Title,Type,Score")]
    Empty,
    /// The header is malformed.
    #[error("line {0}: {1}")]
    Header(u64, String),
}

/// A row that has a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Line number of the row's beginning, from 1; the header is line 1.
    pub line: u64,
    /// Number of lines that the row takes. More than one only with line breaks within quotation marks.
    pub lines: u64,
    /// Fields without surrounding white space, as many as there are columns; or the fault of the row.
    pub fields: Result<Vec<String>, String>,
}

impl Row {
    /// Adds to the fault of a row of several lines that a quotation mark may be missing.
    pub fn explain(&self, problem: &str) -> String {
        match self.lines {
            0 | 1 => problem.to_owned(),
            lines => format!("{problem}; the row takes {lines} lines, is a quotation mark missing?"),
        }
    }
}

/// Reader of a table.
pub struct Sheet<R> {
    records: Records<R>,
    /// Number of fields of the header, including those without a name.
    width: usize,
    /// Columns with a name.
    columns: Vec<String>,
    /// Positions of these columns.
    positions: Vec<usize>,
    /// Index of the score column, if its decimals follow a comma.
    decimal_comma: Option<usize>,
}

impl<R: Read> Sheet<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// The header is missing or malformed.
    pub fn open(source: R) -> Result<Self, SheetError> {
        let mut records = Records::new(source);
        let (line, header) = match records.next()? {
            None => return Err(SheetError::Empty),
            Some((line, Outcome::Record(header, _))) => (line, header),
            Some((line, Outcome::Unclosed)) => return Err(SheetError::Header(line, UNCLOSED.to_owned())),
            Some((line, Outcome::TooLarge)) => return Err(SheetError::Header(line, TOO_LARGE.to_owned())),
        };
        let names = texts(&header).map_err(|problem| SheetError::Header(line, problem))?;
        if names.iter().any(|name| name.contains('\0')) {
            let problem = format!("this looks like UTF-16 without a byte order mark; {SAVE_AS}");
            return Err(SheetError::Header(line, problem));
        }
        let named = names.iter().enumerate().filter(|(_, name)| !name.is_empty());
        let (positions, columns): (Vec<usize>, Vec<String>) =
            named.map(|(position, name)| (position, name.clone())).unzip();
        let score = columns.iter().position(|column| column.eq_ignore_ascii_case(SCORE));
        let decimal_comma = score.filter(|_| records.delimiter() != b',');
        Ok(Self { width: names.len(), records, columns, positions, decimal_comma })
    }

    /// Returns the columns with a name.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Returns the number of bytes read from the file.
    pub fn bytes_read(&self) -> u64 {
        self.records.bytes_read()
    }

    /// Returns the next row that has a value; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_row(&mut self) -> io::Result<Option<Row>> {
        loop {
            let Some((line, found)) = self.records.next()? else { return Ok(None) };
            let refused = |problem: &str| Some(Row { line, lines: 1, fields: Err(problem.to_owned()) });
            let (record, lines) = match found {
                Outcome::Record(record, lines) => (record, lines),
                Outcome::Unclosed => return Ok(refused(UNCLOSED)),
                Outcome::TooLarge => return Ok(refused(TOO_LARGE)),
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
        let is_short = self.positions.last().is_some_and(|last| texts.len() <= *last);
        let is_long = texts.iter().skip(self.width).any(|text| !text.is_empty());
        if is_short || is_long {
            return Err(format!("{} fields where the header has {}", texts.len(), self.width));
        }
        let unnamed = texts.iter().enumerate().filter(|(position, _)| !self.positions.contains(position));
        if let Some((position, _)) = unnamed.into_iter().find(|(_, text)| text.contains(['\n', '\r'])) {
            return Err(format!("column {} has no name but contains a line break", position + 1));
        }
        let mut fields: Vec<String> =
            self.positions.iter().filter_map(|position| texts.get(*position)).cloned().collect();
        if let Some(score) = self.decimal_comma.and_then(|position| fields.get_mut(position)) {
            *score = score.replace(',', ".");
        }
        Ok(fields)
    }
}

const UNCLOSED: &str = "a quotation mark on this line is not closed; the lines after it were read separately";
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
