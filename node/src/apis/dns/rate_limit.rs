//! Limits the DNS responses over UDP for each network. Beyond the limit they are truncated (TC). Loopback has
//! no limit.
//!
//! The source of a datagram may be forged, so that its victim receives the responses. Beyond the limit a
//! client gets a response as small as its request, with TC: a real client then asks over TCP, whose source
//! cannot be forged.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Responses with records for each network and second. Guess: a busy forwarder of a site asks less.
const RESPONSES_PER_SECOND: f64 = 1000.0;
/// Responses that a network may take at once after a pause.
const BURST: f64 = 2000.0;
/// Networks that are counted. The one that asked longest ago is dropped for a new one.
const NETWORKS_MAX: usize = 4096;

/// Token buckets by network: /24 of IPv4, /56 of IPv6.
#[derive(Debug, Default)]
pub(super) struct RateLimit(Mutex<BTreeMap<IpAddr, Bucket>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl RateLimit {
    /// Whether a client may have a response with records, which then counts. Loopback has no limit.
    pub(super) fn admit(&self, client: IpAddr, now: Instant) -> bool {
        let client = client.to_canonical();
        if client.is_loopback() {
            return true;
        }
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network_of(client);
        if buckets.len() >= NETWORKS_MAX && !buckets.contains_key(&network) {
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.filled).map(|(network, _)| *network);
            oldest.and_then(|network| buckets.remove(&network));
        }
        let bucket = buckets.entry(network).or_insert(Bucket { tokens: BURST, filled: now });
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * RESPONSES_PER_SECOND).min(BURST);
        bucket.filled = now;
        let is_admitted = bucket.tokens >= 1.0;
        if is_admitted {
            bucket.tokens -= 1.0;
        }
        is_admitted
    }
}

fn network_of(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 72)).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_network_has_a_burst_and_a_rate_and_loopback_neither() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        let admitted = |client: &str, at: Instant, requests: usize| {
            (0..requests).filter(|_| limit.admit(client.parse().unwrap(), at)).count()
        };
        assert_eq!(admitted("10.77.0.1", now, 3000), 2000);
        assert_eq!(admitted("10.77.0.200", now, 10), 0, "of the same network");
        assert_eq!(admitted("10.77.1.1", now, 10), 10);
        assert_eq!(admitted("10.77.0.1", now + Duration::from_millis(100), 3000), 100);
        assert_eq!(admitted("127.0.0.1", now, 10_000), 10_000);
        assert_eq!(admitted("2001:db8::1", now, 3000), 2000);
        assert_eq!(admitted("2001:db8:0:ff::1", now, 10), 0, "of the same /56");
    }

    #[test]
    fn the_networks_counted_are_bounded() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        for number in 0..10_000_u32 {
            limit.admit(Ipv4Addr::from_bits(0x0a00_0000 + (number << 8)).into(), now);
        }
        assert_eq!(limit.0.lock().unwrap().len(), NETWORKS_MAX);
    }
}
