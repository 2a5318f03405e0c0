//! Framing observer: detects an HTTP/1 head with both `Content-Length` and `Transfer-Encoding`.
//!
//! Hand-written, because hyper has no option for this. hyper follows RFC 9112, section 6.3: it obeys
//! `Transfer-Encoding` and removes `Content-Length` before any handler sees it. Afterwards it closes the
//! connection. A client that sends both may smuggle a request past a proxy in front of the gateway. So the
//! gateway answers 400, as the RFC allows. The test `nothing_that_could_be_smuggled_reaches_an_instance`
//! checks this.
//!
//! The observer reads the bytes of the connection line by line. A head is a run of lines without an empty
//! line in between. A body may contain lines that look like these headers. So `has_both` is used only for a
//! request that hyper reports with `Transfer-Encoding`, and is reset at the end of a body. With pipelining,
//! the result may be reset too early or too late. Then hyper's rule applies, or the client gets a 400 and has
//! to open another connection.

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";
/// Length of the longer of the two names.
const NAME_MAX: usize = ENCODING.len();

/// The observer of one connection.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    /// The start of the current line.
    line: [u8; NAME_MAX],
    /// Bytes of the current line so far.
    line_len: usize,
    has_length: bool,
    has_encoding: bool,
    both: bool,
}

impl Framing {
    /// Observes the next bytes.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let part = &bytes[from..end];
            if self.line_len == 0 {
                self.observe_line(part);
            } else {
                self.extend(part);
                let line = self.line;
                self.observe_line(&line[..self.line_len.min(NAME_MAX)]);
                self.line_len = 0;
            }
            from = end + 1;
        }
        self.extend(&bytes[from..]);
    }

    /// Whether a head had both headers since the last [`Self::forget`].
    pub(crate) fn has_both(&self) -> bool {
        self.both
    }

    /// Resets the result at the end of a body, because lines of the body may have looked like those of a
    /// head.
    pub(crate) fn forget(&mut self) {
        *self = Self { line: self.line, line_len: self.line_len, ..Self::default() };
    }

    fn extend(&mut self, part: &[u8]) {
        if let Some(room) = self.line.get_mut(self.line_len..) {
            let taken = room.len().min(part.len());
            room[..taken].copy_from_slice(&part[..taken]);
        }
        self.line_len += part.len();
    }

    /// Observes a line, or its first [`NAME_MAX`] bytes.
    fn observe_line(&mut self, line: &[u8]) {
        let begins = |name: &[u8]| line.get(..name.len()).is_some_and(|l| l.eq_ignore_ascii_case(name));
        match line.first() {
            None | Some(b'\r') if line.len() <= 1 => (self.has_length, self.has_encoding) = (false, false),
            Some(b'c' | b'C') if begins(LENGTH) => self.has_length = true,
            Some(b't' | b'T') if begins(ENCODING) => self.has_encoding = true,
            _ => (),
        }
        self.both |= self.has_length && self.has_encoding;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the result, and checks that it does not depend on how the bytes are cut.
    fn has_both(bytes: &str) -> bool {
        let whole = {
            let mut framing = Framing::default();
            framing.read(bytes.as_bytes());
            framing.has_both()
        };
        for size in [1, 2, 7] {
            let mut framing = Framing::default();
            bytes.as_bytes().chunks(size).for_each(|chunk| framing.read(chunk));
            assert_eq!(framing.has_both(), whole, "cut into {size}");
        }
        whole
    }

    #[test]
    fn both_in_one_head_are_detected_in_either_order() {
        assert!(has_both(
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nA: b\r\ntransfer-ENCODING: chunked\r\n\r\n"
        ));
        assert!(has_both("POST / HTTP/1.1\nTransfer-Encoding:chunked\ncontent-length:5\n\n"));
    }

    #[test]
    fn one_each_in_two_heads_are_no_match() {
        let head = |line: &str| format!("POST / HTTP/1.1\r\n{line}\r\n\r\n");
        assert!(!has_both(&(head("Content-Length: 0") + &head("Transfer-Encoding: chunked"))));
        assert!(!has_both(&head("X-Content-Length: 5\r\nTransfer-Encoding: chunked")));
        assert!(!has_both(&head("Content-Lengt: 5\r\nTransfer-Encoding: chunked")));
    }

    #[test]
    fn lines_of_a_body_are_forgotten_at_its_end() {
        let mut framing = Framing::default();
        framing
            .read(b"POST / HTTP/1.1\r\ncontent-length: 50\r\n\r\ncontent-length: 1\ntransfer-encoding: x\n");
        assert!(framing.has_both());
        framing.forget();
        framing.read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert!(!framing.has_both());
    }
}
