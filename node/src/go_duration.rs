//! Durations as Go writes them (`10s`, `1m30s`, `1.5h`, `120000ms`), because Consul's clients do.

use std::time::Duration;

/// Reads a duration that is not negative. `None` for anything else, also for a number without a unit (but `0`).
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    // The longest that makes sense anywhere has a handful of parts.
    if rest.is_empty() || rest.len() > 64 {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|len| *len > 0)?;
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        seconds += number.parse::<f64>().ok()? * seconds_of(unit)?;
        rest = tail;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

fn seconds_of(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, ms) in [
            ("10s", 10_000),
            ("5m", 300_000),
            ("120000ms", 120_000),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("0", 0),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "-1s",
            "1x",
            "1s2",
            "..s",
            "1 s",
            &"9".repeat(65),
            &format!("{}h", "9".repeat(60)),
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
