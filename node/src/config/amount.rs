//! Parses the ages and sizes of retention limits, such as `30d`, `1GiB` and `unlimited`.

use std::time::Duration;

/// The value for no limit.
const UNLIMITED: &str = "unlimited";
/// The shortest age. With a shorter age, records would be removed before they can be read.
const AGE_MIN: Duration = Duration::from_secs(1);
/// The longest age: 100 years.
const AGE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// The smallest size. An empty database takes a tenth of it.
const BYTES_MIN: u64 = 1024 * 1024;

const AGE_UNITS: [(&str, u64); 5] =
    [("s", 1), ("m", 60), ("h", 3600), ("d", 24 * 3600), ("w", 7 * 24 * 3600)];
const BYTE_UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Parses an age; `None`: unlimited.
pub(super) fn parse_age(text: &str) -> Result<Option<Duration>, String> {
    if is_unlimited(text) {
        return Ok(None);
    }
    let wrong = || {
        format!(
            "{text:?} is not an age; give a whole number with s, m, h, d or w, such as 30d, or {UNLIMITED}"
        )
    };
    let age = Duration::from_secs(parse_amount(text, &AGE_UNITS).ok_or_else(wrong)?);
    match (AGE_MIN..=AGE_MAX).contains(&age) {
        true => Ok(Some(age)),
        false => Err(format!("{text} is out of bounds; give 1s to 36500d, or {UNLIMITED}")),
    }
}

/// Parses a size in bytes; `None`: unlimited.
pub(super) fn parse_bytes(text: &str) -> Result<Option<u64>, String> {
    if is_unlimited(text) {
        return Ok(None);
    }
    let wrong = || {
        format!(
            "{text:?} is not a size; give a whole number with a unit, such as 500MB or 1GiB, or {UNLIMITED}"
        )
    };
    let bytes = parse_amount(text, &BYTE_UNITS).ok_or_else(wrong)?;
    match (BYTES_MIN..=i64::MAX.cast_unsigned()).contains(&bytes) {
        true => Ok(Some(bytes)),
        false => Err(format!("{text} is out of bounds; give at least 1MiB, or {UNLIMITED}")),
    }
}

fn is_unlimited(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case(UNLIMITED)
}

fn parse_amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| unit.trim_start().eq_ignore_ascii_case(name))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_units() {
        assert_eq!(parse_age("30d"), Ok(Some(Duration::from_secs(30 * 24 * 3600))));
        assert_eq!(parse_age(" 90 S "), Ok(Some(Duration::from_secs(90))));
        assert_eq!(parse_age("2w"), parse_age("14d"));
        assert_eq!(parse_age("Unlimited"), Ok(None));
        assert_eq!(parse_bytes("1GiB"), Ok(Some(1 << 30)));
        assert_eq!(parse_bytes("500 mb"), Ok(Some(500_000_000)));
        assert_eq!(parse_bytes("2097152"), Ok(Some(1 << 21)));
        assert_eq!(parse_bytes("unlimited"), Ok(None));
    }

    #[test]
    fn bad_amounts_are_refused_with_an_example() {
        for text in ["", "30", "d", "-1d", "1.5d", "1y", "99999999999999999999d", "never"] {
            assert!(parse_age(text).unwrap_err().contains("30d"), "{text}");
        }
        for text in ["", "GiB", "1XB", "1GiBs", "-1", "99999999999TiB"] {
            assert!(parse_bytes(text).unwrap_err().contains("1GiB"), "{text}");
        }
        for text in ["0s", "40000d"] {
            assert!(parse_age(text).unwrap_err().contains("out of bounds"), "{text}");
        }
        assert!(parse_bytes("100KiB").unwrap_err().contains("1MiB"));
    }
}
