//! Check reports: the newest outputs of an instance's health checks. They are requested from the holder, not
//! gossiped.
//!
//! A request is the id of the instance in UTF-8. The response is the wire version in one byte and a list of
//! reports, which is empty if the node does not hold the instance.

use serde::{Deserialize, Serialize};

use super::{
    codec::{self, DecodeError},
    message::WIRE_VERSION,
};
use crate::record::{CheckSummary, Health};

/// Reports in a response, at most: sixteen checks of an instance.
pub const REPORTS_MAX: usize = 16;
/// Longest output of a report, in bytes.
pub const REPORT_OUTPUT_BYTES_MAX: usize = 4096;

/// Report on a health check, by its holder.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Id of the check.
    pub id: String,
    /// Name of the check.
    pub name: String,
    /// Kind of the check, such as `http`.
    pub kind: String,
    /// Status of the check.
    pub status: Health,
    /// When the status changed. This and the following times are in milliseconds since the Unix epoch, by the
    /// holder's clock.
    pub since_ms: u64,
    /// Newest output, at most [`REPORT_OUTPUT_BYTES_MAX`] bytes.
    pub output: String,
    /// When the last run ended.
    pub last_run_ms: Option<u64>,
    /// When the next run begins.
    pub next_run_ms: Option<u64>,
    /// Duration of the last run, in milliseconds.
    pub took_ms: u32,
}

impl From<&CheckSummary> for CheckReport {
    /// Builds a report from a gossiped summary, for a check whose holder does not answer. It has the last
    /// change of status, and no runs.
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

/// Encodes a response.
pub fn encode_check_reports(reports: &[CheckReport]) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bytes.extend(codec::encode(&reports));
    bytes
}

/// Decodes a response.
///
/// # Errors
/// The response is malformed, of another wire version, or over a bound.
pub fn decode_check_reports(bytes: &[u8]) -> Result<Vec<CheckReport>, DecodeError> {
    let [version, message @ ..] = bytes else { return Err(DecodeError::Malformed) };
    if *version != WIRE_VERSION {
        return Err(DecodeError::Version(*version));
    }
    let reports: Vec<CheckReport> = codec::decode(message)?;
    let is_bounded = |report: &CheckReport| report.output.len() <= REPORT_OUTPUT_BYTES_MAX;
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
        assert_eq!(
            decode_check_reports(&encode_check_reports(std::slice::from_ref(&report))),
            Ok(vec![report.clone()])
        );
        assert_eq!(
            decode_check_reports(&encode_check_reports(&vec![report.clone(); REPORTS_MAX + 1])),
            Err(DecodeError::Malformed)
        );
        let long = CheckReport { output: "x".repeat(REPORT_OUTPUT_BYTES_MAX + 1), ..report };
        assert_eq!(decode_check_reports(&encode_check_reports(&[long])), Err(DecodeError::Malformed));
        assert_eq!(decode_check_reports(&[]), Err(DecodeError::Malformed));
        assert_eq!(decode_check_reports(&[9]), Err(DecodeError::Version(9)));
    }
}
