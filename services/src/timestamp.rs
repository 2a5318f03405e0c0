//! Moments as people and programs write them: RFC 3339, in UTC, with milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearsay_protocol::rfc3339::LAST_MS;
pub use hearsay_protocol::rfc3339::rfc3339_ms;

/// A moment in milliseconds since the Unix epoch. Before 1970 counts as 1970.
pub fn unix_ms(moment: SystemTime) -> u64 {
    let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Now, in milliseconds since the Unix epoch, by the wall clock of this machine.
pub fn now_ms() -> u64 {
    unix_ms(SystemTime::now())
}

/// Writes a moment. Before 1970 counts as 1970, after 9999 as the end of 9999.
pub fn rfc3339(moment: SystemTime) -> String {
    let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    rfc3339_ms(u64::try_from(since_epoch.as_millis()).unwrap_or(LAST_MS))
}

/// Reads a moment with its offset from UTC, such as `2026-11-21T10:00:00.5+01:00`, as milliseconds since the Unix epoch. `None`: it is none,
/// or lies before 1970. A leap second counts as the second before.
pub fn parse_ms(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let mut time = rest.strip_prefix(['T', 't', ' '])?;
    let number = |text: &str, digits: usize| -> Option<i64> {
        (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let mut parts = date.split('-');
    let (year, month, day) =
        (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_max = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone);
    time = clock;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let ms = fraction.bytes().chain(*b"00").take(3).fold(0, |ms, digit| ms * 10 + i64::from(digit - b'0'));
    let mut parts = clock.split(':');
    let (hours, minutes, seconds) =
        (number(parts.next()?, 2)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() || !(1..=days_max).contains(&day) || hours > 23 || minutes > 59 || seconds > 60
    {
        return None;
    }
    let offset_minutes = match zone {
        "Z" | "z" => 0,
        _ => {
            let (sign, zone) = zone.split_at_checked(1)?;
            let (hours, minutes) = zone.split_once(':')?;
            let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if sign == "-" { -1 } else { 1 }
        }
    };
    let minutes = (days_from_civil(year, month, day) * 24 + hours) * 60 + minutes - offset_minutes;
    u64::try_from((minutes * 60 + seconds.min(59)) * 1000 + ms).ok()
}

/// Days from 1970-01-01 to a day: the inverse of [`civil_from_days`], from the same source.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
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
        for ms in [0, 1, 951_782_399_999, 951_782_400_000, 1_709_251_199_123, 4_107_542_400_000, LAST_MS] {
            assert_eq!(parse_ms(&rfc3339_ms(ms)), Some(ms));
        }
        for (text, ms) in [
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31t23:00:00.5-01:30", 1_800_500),
            ("1970-01-01 00:00:01.23456789z", 1_234),
            ("2016-12-31T23:59:60Z", 1_483_228_799_000),
        ] {
            assert_eq!(parse_ms(text), Some(ms), "{text}");
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
        ] {
            assert_eq!(parse_ms(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_cut_to_what_can() {
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339_ms(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
