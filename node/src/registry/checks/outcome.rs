//! The outcome of one run of a check.

use std::{fmt::Display, time::Duration};

use hearsay_protocol::record::Health;

use super::connect::ConnectError;

/// The longest output that is kept, in bytes of UTF-8.
pub const OUTPUT_BYTES_MAX: usize = 4096;

/// The finding of one run. The status of the check follows by its thresholds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    /// The health by this run alone.
    pub(super) health: Health,
    /// The finding in words, for people.
    pub(super) output: String,
    /// The rule of the address policy that refused the target.
    pub(super) refused_by: Option<&'static str>,
}

impl Outcome {
    /// An outcome. The output is bounded, and control characters in it are replaced.
    pub(super) fn new(health: Health, output: impl AsRef<str>) -> Self {
        Self { health, output: bound_output(output.as_ref()), refused_by: None }
    }

    /// A success.
    pub(super) fn passing(output: impl AsRef<str>) -> Self {
        Self::new(Health::Passing, output)
    }

    /// A failure.
    pub(super) fn critical(output: impl AsRef<str>) -> Self {
        Self::new(Health::Critical, output)
    }

    /// A failure because time was up.
    pub(super) fn timed_out(timeout: Duration) -> Self {
        Self::critical(format!("no answer within {timeout:?}"))
    }

    /// The same outcome, introduced by these words.
    pub(super) fn introduced_by(self, words: impl Display) -> Self {
        Self { output: bound_output(&format!("{words}: {}", self.output)), ..self }
    }
}

impl From<ConnectError> for Outcome {
    fn from(error: ConnectError) -> Self {
        let refused_by = match &error {
            ConnectError::Forbidden(rule) => Some(rule.rule()),
            _ => None,
        };
        Self { refused_by, ..Self::critical(error.to_string()) }
    }
}

/// Bounds an output to [`OUTPUT_BYTES_MAX`]. Control characters but line feed and tab are replaced: output
/// reaches terminals.
pub(super) fn bound_output(text: &str) -> String {
    let mut bounded = String::with_capacity(text.len().min(OUTPUT_BYTES_MAX));
    for c in text.trim_end().chars().filter(|c| *c != '\r') {
        let is_text = !c.is_control() || c == '\n' || c == '\t';
        let c = if is_text { c } else { char::REPLACEMENT_CHARACTER };
        if bounded.len() + c.len_utf8() > OUTPUT_BYTES_MAX {
            break;
        }
        bounded.push(c);
    }
    bounded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_bounded_at_a_character() {
        let long = bound_output(&"ü".repeat(OUTPUT_BYTES_MAX));
        assert_eq!(long.len(), OUTPUT_BYTES_MAX);
        let odd = bound_output(&format!("a{}", "ü".repeat(OUTPUT_BYTES_MAX)));
        assert_eq!(odd.len(), OUTPUT_BYTES_MAX - 1);
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(bound_output("a\r\n\tb\u{1b}[31m\0\n"), "a\n\tb\u{fffd}[31m\u{fffd}");
    }
}
