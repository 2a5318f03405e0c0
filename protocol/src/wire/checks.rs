//! What the node that holds an instance answers to the question how its checks are: the newest outputs, which are not gossiped.
//!
//! A request is the id of the instance in UTF-8. The answer is the byte of the wire version and then a list of reports; it is empty where the node
//! holds no such instance.

use serde::{Deserialize, Serialize};

use super::{DecodeError, WIRE_VERSION, codec};
use crate::record::{CheckSummary, Health};

/// The most reports of an answer: sixteen checks of an instance.
pub const REPORTS_MAX: usize = 16;
/// The longest output of a report, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 4096;

/// A health check as its holder knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its kind, such as `http`.
    pub kind: String,
    /// Its status.
    pub status: Health,
    /// When the status changed, in milliseconds since the Unix epoch by the holder's clock, as all times here.
    pub since_ms: u64,
    /// The newest output, at most [`OUTPUT_BYTES_MAX`] bytes.
    pub output: String,
    /// When the last run ended.
    pub last_run_ms: Option<u64>,
    /// When the next one begins.
    pub next_run_ms: Option<u64>,
    /// How long the last run took, in milliseconds.
    pub took_ms: u32,
}

impl From<&CheckSummary> for CheckReport {
    /// What is known of a check whose holder does not answer: its last change of status, and no runs.
    fn from(check: &CheckSummary) -> Self {
        Self {
            id: check.id.clone(),
            name: check.name.clone(),
            kind: check.kind.clone(),
            status: check.status,
            since_ms: check.since_ms,
            output: check.output.clone(),
            last_run_ms: None,
            next_run_ms: None,
            took_ms: check.took_ms,
        }
    }
}

/// The bytes of an answer.
pub fn encode(reports: &[CheckReport]) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bytes.extend(codec::encode(&reports));
    bytes
}

/// Reads an answer.
///
/// # Errors
/// It is malformed, of another wire version, or breaks a bound.
pub fn decode(bytes: &[u8]) -> Result<Vec<CheckReport>, DecodeError> {
    let [version, message @ ..] = bytes else { return Err(DecodeError::Malformed) };
    if *version != WIRE_VERSION {
        return Err(DecodeError::Version(*version));
    }
    let reports: Vec<CheckReport> = codec::decode(message)?;
    let is_bounded = |report: &CheckReport| report.output.len() <= OUTPUT_BYTES_MAX;
    match reports.len() <= REPORTS_MAX && reports.iter().all(is_bounded) {
        true => Ok(reports),
        false => Err(DecodeError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_travel_whole_and_within_bounds() {
        let report = CheckReport { id: "service:web-1".into(), took_ms: 3, ..CheckReport::default() };
        assert_eq!(decode(&encode(std::slice::from_ref(&report))), Ok(vec![report.clone()]));
        assert_eq!(decode(&encode(&vec![report.clone(); REPORTS_MAX + 1])), Err(DecodeError::Malformed));
        let long = CheckReport { output: "x".repeat(OUTPUT_BYTES_MAX + 1), ..report };
        assert_eq!(decode(&encode(&[long])), Err(DecodeError::Malformed));
        assert_eq!(decode(&[]), Err(DecodeError::Malformed));
        assert_eq!(decode(&[9]), Err(DecodeError::Version(9)));
    }
}
