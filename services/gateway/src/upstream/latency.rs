//! [`Latency`]: expected latency of an endpoint, a moving average of its responses that decays while it gets
//! no requests.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Weight of a new sample in the moving average.
const WEIGHT: f32 = 0.1;
/// Half-life of the latency of an endpoint that gets no requests. So a slow endpoint is tried again. Among
/// endpoints of 1 ms, one of 100 ms is tried every 1.7 s.
const HALF_LIFE_MS: f32 = 250.0;
/// Minimum latency that is recorded for a failure, because a quick refusal must not look like a quick
/// response. It is short, so that under load the endpoint is soon tried again, and ejected if it fails again.
const FAILURE_US: f32 = 20_000.0;

/// A moving average. If two threads store at once, one sample is lost, which does no harm.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    /// Microseconds as `f32` in the upper half, the time of the last sample in milliseconds in the lower.
    packed: AtomicU64,
}

impl Latency {
    /// Adds the latency of a response.
    pub(crate) fn record(&self, latency: Duration, now_ms: u64) {
        let sample = latency.as_micros() as f32;
        let before = self.expected_us(now_ms);
        let us = if before < 1.0 { sample } else { before + WEIGHT * (sample - before) };
        self.store(us, now_ms);
    }

    /// Adds a failure.
    pub(crate) fn record_failure(&self, now_ms: u64) {
        self.store(self.expected_us(now_ms).max(FAILURE_US), now_ms);
    }

    /// Returns the expected latency in microseconds.
    pub(crate) fn expected_us(&self, now_ms: u64) -> f32 {
        let packed = self.packed.load(Relaxed);
        let (us, at_ms) = (f32::from_bits((packed >> 32) as u32), packed as u32);
        match (now_ms as u32).wrapping_sub(at_ms) {
            0 => us,
            // Another thread may have read its clock later and stored its sample sooner.
            idle_ms if idle_ms > u32::MAX / 2 => us,
            idle_ms => us * (-(idle_ms as f32) / HALF_LIFE_MS).exp2(),
        }
    }

    fn store(&self, us: f32, now_ms: u64) {
        self.packed.store(u64::from(us.to_bits()) << 32 | (now_ms & 0xffff_ffff), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_follows_the_samples_and_decays_without_requests() {
        let latency = Latency::default();
        for _ in 0..100 {
            latency.record(Duration::from_millis(8), 1_000);
        }
        assert!((7_900.0..8_100.0).contains(&latency.expected_us(1_000)));
        assert!(
            (3_900.0..4_100.0).contains(&latency.expected_us(1_250)),
            "halved after a quarter of a second"
        );
        assert!(latency.expected_us(60_000) < 1.0);
    }
}
