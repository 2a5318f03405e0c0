//! Formats a time as an RFC 3339 timestamp in UTC with milliseconds.

const MS_PER_DAY: u64 = 24 * 60 * 60 * 1000;
/// Last millisecond of the year 9999, the end of RFC 3339. A peer may state any number.
pub const RFC3339_LAST_MS: u64 = 253_402_300_799_999;

/// Formats a time in milliseconds since the Unix epoch.
pub fn rfc3339_ms(ms: u64) -> String {
    let ms = ms.min(RFC3339_LAST_MS);
    let (year, month, day) = civil_from_days(ms / MS_PER_DAY);
    let (seconds, ms) = (ms % MS_PER_DAY / 1000, ms % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{ms:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01. After Howard Hinnant, "chrono-compatible low-level
/// date algorithms", `civil_from_days`: the year starts in March, so that the leap day is its last.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, io::Fatal};

    #[test]
    fn a_moment_is_written_as_date_prints_it() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_952_428_256, "2026-11-29T11:40:28.256Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339_ms(ms), expected);
        }
    }

    #[test]
    fn what_stops_a_node_names_a_moment_and_no_type() {
        let message = Fatal::KeyTaken(Incarnation(1_795_952_428_256)).to_string();
        assert!(
            message.contains("since 2026-11-29T11:40:28.256Z:") && !message.contains("Incarnation"),
            "{message}"
        );
    }
}
