//! Percentiles of times ([`Times`]), and times of a series of events by observer ([`Events`]). An event that
//! did not happen within its bound has no time, but must not be left out: it counts as later than all others.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Percentile or maximum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Figure {
    /// Nothing was measured.
    None,
    /// A time in microseconds.
    Micros(u64),
    /// The event did not happen within the bound, in seconds.
    Over(u64),
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => f.write_str("–"),
            Self::Over(seconds) => write!(f, "> {seconds} s"),
            Self::Micros(us @ ..10_000) => write!(f, "{:.1} ms", us as f64 / 1e3),
            Self::Micros(us @ ..1_000_000) => write!(f, "{:.0} ms", us as f64 / 1e3),
            Self::Micros(us) => write!(f, "{:.2} s", us as f64 / 1e6),
        }
    }
}

/// Measured times in microseconds, and the number of missing ones.
#[derive(Clone, Default, Debug)]
pub(crate) struct Times {
    sorted: Vec<u64>,
    missed: usize,
    bound_s: u64,
}

impl Times {
    pub(crate) fn new(times: impl IntoIterator<Item = Option<u64>>, bound_s: u64) -> Self {
        let (mut sorted, mut missed) = (Vec::new(), 0);
        for time in times {
            match time {
                Some(time) => sorted.push(time),
                None => missed += 1,
            }
        }
        sorted.sort_unstable();
        Self { sorted, missed, bound_s }
    }

    /// Returns the number of times, missing ones included.
    pub(crate) fn len(&self) -> usize {
        self.sorted.len() + self.missed
    }

    pub(crate) fn missed(&self) -> usize {
        self.missed
    }

    /// Returns the smallest time that this percentage does not exceed (nearest rank).
    pub(crate) fn percentile(&self, percent: usize) -> Figure {
        if self.len() == 0 {
            return Figure::None;
        }
        let rank = (self.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).map_or(Figure::Over(self.bound_s), |us| Figure::Micros(*us))
    }

    pub(crate) fn max(&self) -> Figure {
        self.percentile(100)
    }
}

/// Times of a series of similar events: for each event, when each observer knew of it.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Events {
    /// Times by event and observer, in microseconds; null if missing.
    pub(crate) times_us: Vec<Vec<Option<u64>>>,
    /// Bound, in seconds.
    pub(crate) bound_s: u64,
}

impl Events {
    pub(crate) fn new(bound_s: u64) -> Self {
        Self { times_us: Vec::new(), bound_s }
    }

    /// Returns the times of all pairs of event and observer.
    pub(crate) fn pairs(&self) -> Times {
        Times::new(self.times_us.iter().flatten().copied(), self.bound_s)
    }

    /// Returns, for each event, when the last observer knew of it.
    pub(crate) fn known_by_all(&self) -> Times {
        self.per_event(Times::max)
    }

    /// Returns, for each event, when half of the observers knew of it.
    pub(crate) fn known_by_half(&self) -> Times {
        self.per_event(|times| times.percentile(50))
    }

    fn per_event(&self, of: impl Fn(&Times) -> Figure) -> Times {
        let figures = self.times_us.iter().filter(|event| !event.is_empty()).map(|event| {
            match of(&Times::new(event.iter().copied(), self.bound_s)) {
                Figure::Micros(us) => Some(us),
                Figure::None | Figure::Over(_) => None,
            }
        });
        Times::new(figures, self.bound_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times = Times::new((1..=200).rev().map(Some), 60);
        assert_eq!(times.percentile(50), Figure::Micros(100));
        assert_eq!(times.percentile(99), Figure::Micros(198));
        assert_eq!(times.max(), Figure::Micros(200));
        assert_eq!(Times::new([Some(7)], 60).percentile(1), Figure::Micros(7));
        assert_eq!(Times::new([], 60).max(), Figure::None);
    }

    #[test]
    fn what_never_came_counts_as_later_than_all_else() {
        let times = Times::new([None, Some(2), Some(1), None], 60);
        assert_eq!((times.len(), times.missed()), (4, 2));
        assert_eq!(times.percentile(50), Figure::Micros(2));
        assert_eq!(times.percentile(99), Figure::Over(60));
    }

    #[test]
    fn an_event_is_known_by_all_when_its_last_observer_knows() {
        let times_us = vec![vec![Some(1), Some(5), Some(3)], vec![Some(2), None, Some(4)], vec![]];
        let events = Events { times_us, bound_s: 9 };
        assert_eq!(events.pairs().len(), 6);
        assert_eq!(events.known_by_half().max(), Figure::Micros(4));
        assert_eq!(events.known_by_all().percentile(50), Figure::Micros(5));
        assert_eq!(events.known_by_all().max(), Figure::Over(9));
    }

    #[test]
    fn figures_read_well() {
        let shown = |us| Figure::Micros(us).to_string();
        assert_eq!([shown(940), shown(28_300), shown(10_714_000)], ["0.9 ms", "28 ms", "10.71 s"]);
        assert_eq!(Figure::Over(60).to_string(), "> 60 s");
    }
}
