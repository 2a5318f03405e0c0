//! [`Utf8Reader`]: converts a text file to UTF-8, from UTF-8 with or without a byte order mark, or UTF-16
//! with one.

use std::io::{self, Read};

/// Bytes per read.
const READ_BYTES: usize = 32 * 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encoding {
    Utf8,
    Utf16LittleEndian,
    Utf16BigEndian,
}

/// Byte order marks and their encodings.
const BYTE_ORDER_MARKS: [(&[u8], Encoding); 3] = [
    (b"\xef\xbb\xbf", Encoding::Utf8),
    (b"\xff\xfe", Encoding::Utf16LittleEndian),
    (b"\xfe\xff", Encoding::Utf16BigEndian),
];

/// Reader that returns UTF-8. The bytes of a file without a byte order mark are returned unchanged.
#[derive(Debug)]
pub(super) struct Utf8Reader<R> {
    source: R,
    /// `None` before the first read.
    encoding: Option<Encoding>,
    /// Bytes that are not decoded yet: at most the beginning of one character.
    raw: Vec<u8>,
    decoded: Vec<u8>,
    /// Decoded bytes that have been returned.
    given: usize,
    has_ended: bool,
    bytes: u64,
}

impl<R: Read> Utf8Reader<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            encoding: None,
            raw: Vec::new(),
            decoded: Vec::new(),
            given: 0,
            has_ended: false,
            bytes: 0,
        }
    }

    /// Returns the number of bytes read from the file.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes
    }

    fn fill(&mut self) -> io::Result<()> {
        let encoding = match self.encoding {
            Some(encoding) => encoding,
            None => self.begin()?,
        };
        self.read_source()?;
        self.decoded.clear();
        self.given = 0;
        match encoding {
            Encoding::Utf8 => std::mem::swap(&mut self.decoded, &mut self.raw),
            Encoding::Utf16LittleEndian => self.decode(u16::from_le_bytes),
            Encoding::Utf16BigEndian => self.decode(u16::from_be_bytes),
        }
        Ok(())
    }

    /// Detects the byte order mark. A pipe may deliver single bytes.
    fn begin(&mut self) -> io::Result<Encoding> {
        while !self.has_ended && self.raw.len() < 3 {
            self.read_source()?;
        }
        let found = BYTE_ORDER_MARKS.iter().find(|(mark, _)| self.raw.starts_with(mark));
        let (length, encoding) =
            found.map_or((0, Encoding::Utf8), |(mark, encoding)| (mark.len(), *encoding));
        self.raw.drain(..length);
        self.encoding = Some(encoding);
        Ok(encoding)
    }

    fn read_source(&mut self) -> io::Result<()> {
        let length = self.raw.len();
        self.raw.resize(length + READ_BYTES, 0);
        let read = loop {
            match self.source.read(&mut self.raw[length..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                read => break read,
            }
        };
        let read = read.inspect_err(|_| self.raw.truncate(length))?;
        self.raw.truncate(length + read);
        self.bytes += read as u64;
        self.has_ended |= read == 0;
        Ok(())
    }

    /// Decodes UTF-16. An invalid unit becomes U+FFFD.
    fn decode(&mut self, unit: fn([u8; 2]) -> u16) {
        let units: Vec<u16> = self.raw.as_chunks().0.iter().map(|pair| unit(*pair)).collect();
        let is_half = units.last().is_some_and(|unit| (0xd800..0xdc00).contains(unit));
        let whole = units.len() - usize::from(is_half && !self.has_ended);
        let text: String = char::decode_utf16(units[..whole].iter().copied())
            .map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        self.decoded.extend_from_slice(text.as_bytes());
        self.raw.drain(..2 * whole);
        if self.has_ended && !self.raw.is_empty() {
            self.raw.clear();
            self.decoded.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

impl<R: Read> Read for Utf8Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.decoded.len() {
            if self.has_ended && self.raw.is_empty() {
                return Ok(0);
            }
            self.fill()?;
        }
        let ready = &self.decoded[self.given..];
        let length = ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ready[..length]);
        self.given += length;
        Ok(length)
    }
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

    fn read(bytes: &[u8]) -> Vec<u8> {
        let (mut fast, mut slow) = (Vec::new(), Vec::new());
        let mut reader = Utf8Reader::new(bytes);
        reader.read_to_end(&mut fast).unwrap();
        assert_eq!(reader.bytes_read(), bytes.len() as u64);
        Utf8Reader::new(Slow(bytes)).read_to_end(&mut slow).unwrap();
        assert_eq!(fast, slow);
        fast
    }

    #[test]
    fn every_encoding_gives_the_same_text() {
        let text = format!("ID;Vorname\r\n1;Jürgen 😀\r\n{}", "ß".repeat(40_000));
        let units: Vec<u16> = format!("\u{feff}{text}").encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for bytes in [text.clone().into_bytes(), format!("\u{feff}{text}").into_bytes(), little, big] {
            assert!(read(&bytes) == text.as_bytes(), "{:?}", &bytes[..4]);
        }
    }

    #[test]
    fn what_is_no_character_is_replaced_and_short_files_end() {
        assert_eq!(read(b"\xff\xfea\x00\x00\xd8"), "a\u{fffd}".as_bytes());
        assert_eq!(read(b"\xff\xfe\x00\xd8a\x00b"), "\u{fffd}a\u{fffd}".as_bytes());
        for short in [&b""[..], b"a", b"\xef\xbb", b"\xe9"] {
            assert_eq!(read(short), short);
        }
        assert_eq!(read(b"\xfe\xff"), b"");
    }
}
