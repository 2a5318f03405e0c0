//! Text from strangers, made safe to print.
//!
//! Names, tags and messages come from other nodes and from programs that registered with them. Printed as they are, an escape sequence
//! among them could repaint a terminal, retitle its window or forge the next line of a log. So everything that goes to a terminal or to a
//! log passes through here once, at the end.

use std::{borrow::Cow, fmt::Write as _};

/// The text with its control characters (and those that turn the direction of writing) spelt out as `\u001b`, the form that is also valid
/// within a JSON string.
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
            // All of these lie in the basic plane, so four digits hold them. Writing to a String cannot fail.
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
