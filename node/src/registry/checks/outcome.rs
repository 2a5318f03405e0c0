//! [`Outcome`] of one run of a check: health and output text.

use std::{fmt::Display, time::Duration};

use hearsay_protocol::Health;

use super::connect::ConnectError;

/// The longest output that is stored, in bytes of UTF-8.
pub(super) const OUTPUT_BYTES_MAX: usize = 4096;

/// The outcome of one run. Hysteresis derives the status from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    /// The health in this run.
    pub(super) health: Health,
    /// The output for people.
    pub(super) output: String,
    /// The rule of the address policy that refused the target, if any.
    pub(super) refused_by: Option<&'static str>,
}

impl Outcome {
    /// Returns an outcome with a bounded output without control characters.
    pub(super) fn new(health: Health, output: impl AsRef<str>) -> Self {
        Self { health, output: bound_output(output.as_ref()), refused_by: None }
    }

    /// Returns a success.
    pub(super) fn passing(output: impl AsRef<str>) -> Self {
        Self::new(Health::Passing, output)
    }

    /// Returns a failure.
    pub(super) fn critical(output: impl AsRef<str>) -> Self {
        Self::new(Health::Critical, output)
    }

    /// Returns the failure of a run that timed out.
    pub(super) fn timed_out(timeout: Duration) -> Self {
        Self::critical(format!("no answer within {timeout:?}"))
    }

    /// Returns the outcome with a prefix to its output.
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

/// Truncates an output to [`OUTPUT_BYTES_MAX`] and replaces control characters except line feed and tab,
/// because terminals show outputs.
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
