//! Escapes untrusted text for terminals and logs, and percent-encodes it for paths and queries.
//!
//! Names, tags and messages come from other nodes and from programs. Printed unchanged, an escape sequence in
//! them could repaint a terminal, change its title or forge a log line. So all output to a terminal or a log
//! is escaped once, at the end.

use std::{borrow::Cow, fmt::Write as _};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All characters but the unreserved ones of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encodes a text as one segment of a path, or as a value in a query.
pub fn percent_encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Escapes control characters and bidirectional formatting characters as `\u001b`, which is also valid in a
/// JSON string.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            // All these characters are in the basic plane, so four digits suffice. Writing to a String cannot
            // fail.
            c if is_dangerous(c) => _ = write!(safe, "\\u{:04x}", u32::from(c)),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

fn is_dangerous(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_left_alone_and_not_copied() {
        assert!(matches!(escaped("Grüße, 世界"), Cow::Borrowed("Grüße, 世界")));
    }

    #[test]
    fn whatever_could_command_a_terminal_is_spelt_out() {
        assert_eq!(escaped("a\x1b[2Jb"), "a\\u001b[2Jb");
        assert_eq!(escaped("one\ntwo\r\u{9b}\u{202e}"), "one\\ntwo\\r\\u009b\\u202e");
    }
}
