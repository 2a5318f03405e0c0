//! [`PeerClocks`]: offsets of connected peers' wall clocks, measured by their answers to pings, and the
//! warning about a large median.

use std::{collections::BTreeMap, time::Duration};

use libp2p::PeerId;

/// Largest offset without a warning. A guess: more than hosts without time synchronisation drift apart in a
/// week.
const OFFSET_MAX: Duration = Duration::from_secs(60);

/// The latest offset of each connected peer in milliseconds, positive if the peer's clock is ahead.
#[derive(Debug, Default)]
pub(super) struct PeerClocks(BTreeMap<PeerId, i64>);

impl PeerClocks {
    /// Records the offset of a connected peer.
    pub(super) fn record(&mut self, peer: PeerId, offset_ms: i64) {
        self.0.insert(peer, offset_ms);
    }

    /// Removes a disconnected peer.
    pub(super) fn remove(&mut self, peer: PeerId) {
        self.0.remove(&peer);
    }

    /// Returns the median offset in milliseconds; 0 without peers. For an even number of peers, returns the
    /// middle offset nearer to 0, because half of the peers then agree with this clock.
    pub(super) fn median_ms(&self) -> i64 {
        let mut offsets: Vec<i64> = self.0.values().copied().collect();
        offsets.sort_unstable();
        let upper = offsets.get(offsets.len() / 2).copied().unwrap_or(0);
        match offsets.len() % 2 {
            0 if !offsets.is_empty() => {
                let lower = offsets[offsets.len() / 2 - 1];
                if lower.unsigned_abs() < upper.unsigned_abs() { lower } else { upper }
            }
            _ => upper,
        }
    }

    /// Returns a warning if this node's clock differs too much from those of its peers.
    pub(super) fn warning(&self) -> Option<String> {
        let median_ms = self.median_ms();
        let off = Duration::from_millis(median_ms.unsigned_abs());
        if off <= OFFSET_MAX {
            return None;
        }
        let direction = if median_ms > 0 { "behind" } else { "ahead of" };
        let (off, advice) = (
            format_duration(off),
            "Writes take effect all the same, but times in logs do not compare. Run NTP",
        );
        Some(match self.0.len() {
            1 => format!(
                "the clock of this node is {off} {direction} that of its only peer; one of both is wrong. {advice}"
            ),
            peers => format!(
                "the clock of this node is {off} {direction} those of its peers (median of {peers}). {advice}"
            ),
        })
    }
}

/// Formats a duration in its largest unit, to the nearest one: measured offsets are some milliseconds off.
fn format_duration(duration: Duration) -> String {
    let round = |unit_seconds: u128| {
        let unit_ms = unit_seconds * 1_000;
        (duration.as_millis() + unit_ms / 2) / unit_ms
    };
    let (minutes, hours, days, years) = (round(60), round(3_600), round(86_400), round(31_536_000));
    let (number, unit) = if minutes < 120 {
        (minutes, "minutes")
    } else if hours < 48 {
        (hours, "hours")
    } else if days < 730 {
        (days, "days")
    } else {
        (years, "years")
    };
    if number == 1 { format!("1 {}", unit.trim_end_matches('s')) } else { format!("{number} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 3600 * 1000;

    fn clocks(offsets_ms: &[i64]) -> PeerClocks {
        let mut clocks = PeerClocks::default();
        offsets_ms.iter().for_each(|offset| clocks.record(PeerId::random(), *offset));
        clocks
    }

    #[test]
    fn a_clock_that_differs_from_those_of_most_peers_is_warned_of() {
        let text = |offsets: &[i64]| clocks(offsets).warning().unwrap_or_default();
        assert_eq!(text(&[]), "");
        assert_eq!(text(&[50_000, -50_000, 60_000]), "");
        assert!(
            text(&[2 * DAY_MS]).contains("is 2 days behind that of its only peer"),
            "{}",
            text(&[2 * DAY_MS])
        );
        let years = text(&[-3650 * DAY_MS, -3650 * DAY_MS, 0]);
        assert!(years.contains("is 10 years ahead of those of its peers (median of 3)"), "{years}");
        assert!(text(&[61_000, 61_000]).contains("1 minute behind"), "{}", text(&[61_000, 61_000]));
        // A measured offset is a little less or more than the real one.
        for (offset, expected) in [
            (120 * 60_000 - 20, "2 hours behind"),
            (2 * DAY_MS - 20, "2 days behind"),
            (2 * DAY_MS + 20, "2 days behind"),
            (20 - 730 * DAY_MS, "2 years ahead of"),
            (20 - 3650 * DAY_MS, "10 years ahead of"),
        ] {
            assert!(text(&[offset]).contains(expected), "{offset}: {}", text(&[offset]));
        }
        // Half of the peers agree with this node.
        assert_eq!(text(&[DAY_MS, 10]), "");
        assert_eq!(text(&[DAY_MS, DAY_MS, 0, 10, -10]), "");
        assert!(!text(&[i64::MIN]).is_empty() && !text(&[i64::MAX]).is_empty());
    }

    #[test]
    fn a_peer_that_has_gone_counts_no_longer() {
        let mut clocks = PeerClocks::default();
        let peer = PeerId::random();
        clocks.record(peer, DAY_MS);
        clocks.remove(peer);
        assert_eq!((clocks.median_ms(), clocks.warning()), (0, None));
    }
}
