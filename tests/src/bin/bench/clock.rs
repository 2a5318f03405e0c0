//! [`Moment`]: wall-clock time in microseconds, read from the clock or parsed from a UTC timestamp of a log.
//! All processes of a benchmark run on one machine, so their times are comparable unless the clock is
//! stepped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    pub(crate) fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
    }

    /// Returns the microseconds since an earlier time; 0 if `earlier` is the later one.
    pub(crate) fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Parses a UTC time as in logs, `2026-11-21T07:54:40.123456Z`, with any number of decimals.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let mut date = date.splitn(3, '-').map(str::parse::<u64>);
        let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
        let (time, decimals) = time.split_once('.').unwrap_or((time, ""));
        let mut time = time.splitn(3, ':').map(str::parse::<u64>);
        let (hours, minutes, seconds) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        if !decimals.chars().all(|c| c.is_ascii_digit()) {
            return None;
        }
        let micros: u64 = format!("{decimals:0<6.6}").parse().ok()?;
        let seconds = days_since_epoch(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds;
        Some(Self(seconds * 1_000_000 + micros))
    }
}

/// Returns the days since 1970-01-01. Source: Howard Hinnant, "chrono-compatible low-level date algorithms",
/// `days_from_civil`. The year begins in March, so that the leap day is its last.
fn days_since_epoch(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_to_the_microsecond() {
        assert_eq!(Moment::read("1970-01-01T00:00:00Z"), Some(Moment(0)));
        assert_eq!(Moment::read("2000-02-29T12:00:00.5Z"), Some(Moment(951_825_600_500_000)));
        assert_eq!(Moment::read("2026-11-21T07:54:40.123456Z"), Some(Moment(1_795_247_680_123_456)));
        assert_eq!(Moment::read("2026-11-21T07:54:40.123456789Z"), Some(Moment(1_795_247_680_123_456)));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in
            ["", "Z", "2026-11-21", "2026-13-21T07:54:40Z", "2026-11-21T07:54:40", "2026-11-21T07:54:40.xZ"]
        {
            assert_eq!(Moment::read(text), None, "{text}");
        }
    }
}
