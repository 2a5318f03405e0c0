//! Sees what hyper hides: a head with both `Content-Length` and `Transfer-Encoding`.
//!
//! hyper follows RFC 9112, section 6.3, takes the latter, drops the former before anybody sees it, and closes the connection after.
//! That is safe here; but whoever sends both may be smuggling a request past somebody between us, and the RFC lets a server refuse it. So
//! the bytes are read along: of each run of lines without an empty one between (a head is one), which of the two begin a line.
//!
//! A body may contain such lines, too. So what was seen counts only for a request that has a `Transfer-Encoding`, and is forgotten when
//! a body ends. What a client sends behind a body in one breath (pipelining) may so be forgotten early, or remembered too long: then
//! hyper's rule holds, or a refusal that asks for another connection.

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";
/// The longer of the two.
const NAME_MAX: usize = ENCODING.len();

/// Reads along the bytes of one connection.
#[derive(Debug, Default)]
pub struct Framing {
    /// The beginning of the present line.
    line: [u8; NAME_MAX],
    /// How long the line is so far.
    line_len: usize,
    has_length: bool,
    has_encoding: bool,
    both: bool,
}

impl Framing {
    /// Takes the next bytes.
    pub fn read(&mut self, bytes: &[u8]) {
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let part = &bytes[from..end];
            if self.line_len == 0 {
                self.see(part);
            } else {
                self.extend(part);
                let line = self.line;
                self.see(&line[..self.line_len.min(NAME_MAX)]);
                self.line_len = 0;
            }
            from = end + 1;
        }
        self.extend(&bytes[from..]);
    }

    /// Whether a head said both since the last [`Self::forget`].
    pub fn said_both(&self) -> bool {
        self.both
    }

    /// A body has ended, of which lines may have looked like those of a head.
    pub fn forget(&mut self) {
        *self = Self { line: self.line, line_len: self.line_len, ..Self::default() };
    }

    fn extend(&mut self, part: &[u8]) {
        if let Some(room) = self.line.get_mut(self.line_len..) {
            let taken = room.len().min(part.len());
            room[..taken].copy_from_slice(&part[..taken]);
        }
        self.line_len += part.len();
    }

    /// A line, or as much of its beginning as matters.
    fn see(&mut self, line: &[u8]) {
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

    /// However the bytes are cut, the same is seen.
    fn said_both(bytes: &str) -> bool {
        let whole = {
            let mut framing = Framing::default();
            framing.read(bytes.as_bytes());
            framing.said_both()
        };
        for size in [1, 2, 7] {
            let mut framing = Framing::default();
            bytes.as_bytes().chunks(size).for_each(|chunk| framing.read(chunk));
            assert_eq!(framing.said_both(), whole, "cut into {size}");
        }
        whole
    }

    #[test]
    fn both_in_one_head_are_seen_in_either_order() {
        assert!(said_both(
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nA: b\r\ntransfer-ENCODING: chunked\r\n\r\n"
        ));
        assert!(said_both("POST / HTTP/1.1\nTransfer-Encoding:chunked\ncontent-length:5\n\n"));
    }

    #[test]
    fn one_each_in_two_heads_are_not() {
        let head = |line: &str| format!("POST / HTTP/1.1\r\n{line}\r\n\r\n");
        assert!(!said_both(&(head("Content-Length: 0") + &head("Transfer-Encoding: chunked"))));
        assert!(!said_both(&head("X-Content-Length: 5\r\nTransfer-Encoding: chunked")));
        assert!(!said_both(&head("Content-Lengt: 5\r\nTransfer-Encoding: chunked")));
    }

    #[test]
    fn what_a_body_contained_is_forgotten_with_it() {
        let mut framing = Framing::default();
        framing
            .read(b"POST / HTTP/1.1\r\ncontent-length: 50\r\n\r\ncontent-length: 1\ntransfer-encoding: x\n");
        assert!(framing.said_both());
        framing.forget();
        framing.read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert!(!framing.said_both());
    }
}
