//! Tests of malformed input: no bytes make the core panic or grow without bound, and each malformed message
//! is counted.
//!
//! The tests pass random bytes, and valid messages of every kind with random alterations, to every decoder.
//! The fuzz targets in `fuzz/` do the same for longer.

// In a test, a failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod live;

use hearsay_protocol::{
    Header, Instance, NodeId,
    wire::{self, Gossip, MESSAGE_BYTES_MAX, Received, Request, Response},
};
use live::{Live, Way, messages};

/// A random alteration of valid bytes.
fn altered(rng: &mut fastrand::Rng, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..rng.u8(1..6) {
        let at = rng.usize(..=bytes.len());
        match rng.u8(..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, rng.u8(..)),
            // If the byte is a length, the new one exceeds the rest of the message or any bound.
            4 if at < bytes.len() => bytes[at] = *rng.choice(&[250, 251, 252, 253, 254, 255]).unwrap(),
            _ => {
                let from = rng.usize(..=at);
                bytes.splice(at..at, valid[from.min(valid.len())..at.min(valid.len())].to_vec());
            }
        }
    }
    bytes
}

fn random(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = vec![0; rng.usize(..600)];
    rng.fill(&mut bytes);
    // Most inputs begin with the wire version, because otherwise hardly any of them would be decoded.
    if let Some(first) = bytes.first_mut().filter(|_| rng.u8(..8) > 0) {
        *first = wire::WIRE_VERSION;
    }
    if let Some(kind) = bytes.get_mut(1).filter(|_| rng.u8(..8) > 0) {
        *kind %= 5;
    }
    bytes
}

#[test]
fn a_core_that_is_fed_garbage_goes_on_and_counts_it() {
    let (mut rng, messages) = (fastrand::Rng::with_seed(1), messages());
    assert!(messages.len() > 13, "a clash among them");
    let mut live = Live::new();
    for round in 0..30_000 {
        let (way, valid) = rng.choice(&messages).unwrap();
        let bytes = if round % 3 == 0 { random(&mut rng) } else { altered(&mut rng, valid) };
        live.feed(*way, bytes);
        // Between malformed messages the core still accepts valid ones.
        if round % 1000 == 999 {
            let (way, valid) = rng.choice(&messages).unwrap();
            live.feed(*way, valid.clone());
        }
    }
    let counters = live.core.counters();
    assert!(counters.malformed > 10_000, "{counters:?}");
    assert!(counters.forged > 100, "{counters:?}");
    assert!(counters.unknown_kind > 100, "{counters:?}");
    assert!(live.core.state().len() <= 7, "no member is invented");
}

#[test]
fn what_is_too_long_is_counted_and_not_looked_at() {
    let mut live = Live::new();
    let before = live.core.counters().malformed;
    for way in [Way::Gossip, Way::Request, Way::Response] {
        live.feed(way, vec![wire::WIRE_VERSION; MESSAGE_BYTES_MAX + 1]);
    }
    assert_eq!(live.core.counters().malformed, before + 3);
}

#[test]
fn what_decodes_encodes_to_the_same_bytes() {
    fn check<T: wire::Message>(bytes: &[u8]) -> bool {
        match wire::decode::<T>(bytes) {
            Ok(Received::Known(message)) => {
                assert_eq!(wire::encode(&message), bytes, "two byte strings mean one message");
                true
            }
            _ => false,
        }
    }
    let (mut rng, messages) = (fastrand::Rng::with_seed(2), messages());
    let mut known = 0;
    for round in 0..60_000 {
        let (_, valid) = rng.choice(&messages).unwrap();
        let bytes = if round % 3 == 0 { random(&mut rng) } else { altered(&mut rng, valid) };
        known += usize::from(check::<Gossip>(&bytes));
        known += usize::from(check::<Request>(&bytes));
        known += usize::from(check::<Response>(&bytes));
    }
    assert!(known > 1_000, "only {known} were messages at all");
}

#[test]
fn no_value_and_no_name_panics() {
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..60_000 {
        let bytes = random(&mut rng);
        if let Ok(header) = Header::decode(&bytes) {
            _ = header.check();
        }
        if let Ok(instance) = Instance::decode(&bytes) {
            _ = instance.check();
        }
        _ = NodeId::from_peer_id_bytes(&bytes);
        _ = String::from_utf8_lossy(&bytes).parse::<NodeId>();
    }
}
