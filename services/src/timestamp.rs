//! Converts between RFC 3339 timestamps and milliseconds since the Unix epoch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearsay_protocol::RFC3339_LAST_MS;
pub use hearsay_protocol::rfc3339_ms;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Converts to milliseconds since the Unix epoch. A time before 1970 counts as 1970.
pub fn unix_ms(moment: SystemTime) -> u64 {
    let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the wall clock in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    unix_ms(SystemTime::now())
}

/// Formats a time. A time before 1970 counts as 1970, one after 9999 as the end of 9999.
pub fn rfc3339(moment: SystemTime) -> String {
    let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    rfc3339_ms(u64::try_from(since_epoch.as_millis()).unwrap_or(RFC3339_LAST_MS))
}

/// Parses a time with its offset from UTC, such as `2026-11-21T10:00:00.5+01:00`. Returns milliseconds since
/// the Unix epoch; `None` for a malformed time and for one before 1970. A leap second counts as the second
/// before it.
pub fn parse_rfc3339_ms(text: &str) -> Option<u64> {
    // The library accepts any separator, and a leap second only at the times at which one may have been
    // inserted.
    if !matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let mut text = text.to_owned();
    if text.get(17..19) == Some("60") {
        text.replace_range(17..19, "59");
    }
    let time = OffsetDateTime::parse(&text, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_date_prints_them() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        assert_eq!(rfc3339_ms(1_500), "1970-01-01T00:00:01.500Z");
    }

    #[test]
    fn what_is_written_is_read_again_and_offsets_are_minded() {
        for ms in
            [0, 1, 951_782_399_999, 951_782_400_000, 1_709_251_199_123, 4_107_542_400_000, RFC3339_LAST_MS]
        {
            assert_eq!(parse_rfc3339_ms(&rfc3339_ms(ms)), Some(ms));
        }
        for (text, ms) in [
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31t23:00:00.5-01:30", 1_800_500),
            ("1970-01-01 00:00:01.23456789z", 1_234),
            ("2016-12-31T23:59:60Z", 1_483_228_799_000),
        ] {
            assert_eq!(parse_rfc3339_ms(text), Some(ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "now",
            "2026-11-21",
            "2026-11-21T10:00:00",
            "2026-11-21T10:00Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T10:00:00.Z",
            "1969-12-31T23:59:59Z",
            "2026-11-21T10:00:00+1:00",
            "+026-11-21T10:00:00Z",
            "2026-11-2éT10:00:00Z",
            "2026-00-10T00:00:00Z",
            "2026-11-21x10:00:00Z",
            "1969-12-31T23:59:59.9999Z",
        ] {
            assert_eq!(parse_rfc3339_ms(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_cut_to_what_can() {
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339_ms(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
