//! Tests of the wire format: messages keep the bytes that releases have sent (golden bytes), messages of
//! newer kinds are distinguished from garbage, and altered bytes neither panic nor pass as signed.

use super::*;
use crate::{
    Identity, Version,
    membership::evidence::{Claim, Strength},
    record::{Fact, Key},
    wire::{UserEventClaim, UserEventContent},
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn me() -> Identity {
    Identity::from_seed(&[7; 32])
}

fn entry() -> Entry {
    let fact = Fact {
        node: me().id(),
        incarnation: Incarnation(1_700_000_000_000),
        version: Version(3),
        key: Key::Kv("a/b".into()),
        value: Some(b"x".to_vec()),
    };
    fact.sign(&me(), "home").unwrap()
}

fn evidence() -> Evidence {
    let claim = Claim {
        observer: me().id(),
        subject: Identity::from_seed(&[8; 32]).id(),
        incarnation: Incarnation(5),
        version: Version(1),
        strength: Strength::Strong,
    };
    claim.sign(&me(), "home")
}

fn forget() -> Forget {
    let claim = ForgetClaim {
        by: me().id(),
        subject: Identity::from_seed(&[8; 32]).id(),
        incarnation: Incarnation(5),
        version: Version(1),
    };
    claim.sign(&me(), "home")
}

fn user_event() -> UserEvent {
    let content = UserEventContent {
        name: "deploy".into(),
        payload: vec![1, 2],
        node_filter: "^web".into(),
        ..UserEventContent::default()
    };
    let (by, incarnation) = (me().id(), Incarnation(5));
    UserEventClaim { by, incarnation, number: 3, lamport: 300, content }.sign(&me(), "home")
}

fn digest() -> Digest {
    let mut seen = VersionSet::up_to(Version(7));
    seen.insert_range(Version(300), Version(301));
    Digest { node: me().id(), incarnation: Incarnation(5), failed: true, seen, hash: [9; 16] }
}

#[track_caller]
fn check<T: Message + PartialEq + std::fmt::Debug>(message: T, golden: &str) {
    let bytes = encode(&message);
    assert_eq!(hex(&bytes), golden, "the wire format changed: raise WIRE_VERSION or keep it");
    assert_eq!(decode::<T>(&bytes), Ok(Received::Known(message)));
    let mut longer = bytes;
    longer.push(0);
    assert!(decode::<T>(&longer).is_err(), "trailing bytes");
}

#[path = "golden.rs"]
mod golden;

#[test]
fn gossip_keeps_its_bytes() {
    check(Gossip::Entries(vec![entry()]), golden::ENTRIES);
    check(Gossip::Evidence(vec![evidence()]), golden::EVIDENCE);
    let claim = ClashClaim { node: me().id(), older: Incarnation(1), newer: Incarnation(2), round: 3 };
    let signature = me().sign(b"golden");
    check(Gossip::Clash(Clash { claim, signature }), golden::CLASH);
    check(Gossip::Forget(forget()), golden::FORGET);
    check(Gossip::UserEvent(user_event()), golden::USER_EVENT);
}

#[test]
fn requests_and_responses_keep_their_bytes() {
    let page = Page {
        node: me().id(),
        incarnation: Incarnation(5),
        covers: VersionSet::up_to(Version(3)),
        entries: vec![entry()],
        evidence: vec![evidence()],
    };
    check(Request::Compare { root: [1; 16] }, golden::COMPARE);
    check(Request::List { parts: 1 << 63 | 1, after: Some(me().id()) }, golden::LIST);
    check(Request::Pull(vec![digest()]), golden::PULL);
    check(Request::Push(vec![page.clone()]), golden::PUSH);
    check(Request::Unneeded, golden::UNNEEDED);
    let claim = ClashClaim { node: me().id(), older: Incarnation(1), newer: Incarnation(2), round: 3 };
    let clash = Clash { claim, signature: me().sign(b"golden") };
    check(Request::Clash(clash), &golden::CLASH.replacen("0102", "0104", 1));
    check(Request::Forget(vec![forget()]), &golden::FORGET.replacen("0103", "010601", 1));
    check(
        Request::UserEvents { within_ms: 60_000, known: vec![7, u64::MAX], is_first: true },
        golden::USER_EVENTS_WANTED,
    );
    check(Response::Same, golden::SAME);
    check(Response::Parts(vec![1, u64::MAX]), golden::PARTS);
    check(Response::Digests { digests: vec![digest()], more: true }, golden::DIGESTS);
    check(Response::Pages { pages: vec![page], more: false }, golden::PAGES);
    check(Response::Done, golden::DONE);
    let events = vec![AgedUserEvent { age_ms: 5, event: user_event() }];
    let golden = golden::USER_EVENT.replacen("0104", "01050105", 1) + "01";
    check(Response::UserEvents { events, more: true }, &golden);
}

#[test]
fn an_order_to_forget_is_of_a_kind_that_the_version_before_relays() {
    /// Number of kinds of gossip and of requests that the version before orders knew.
    const BEFORE: [u8; 2] = [3, 6];
    let kinds = [encode(&Gossip::Forget(forget()))[1], encode(&Request::Forget(vec![forget()]))[1]];
    assert!(kinds.iter().zip(BEFORE).all(|(kind, known)| *kind >= known && *kind < 251), "{kinds:?}");
}

#[test]
fn a_user_event_is_of_a_kind_that_the_version_before_relays() {
    /// Number of kinds of gossip, requests and responses that the version before user events knew.
    const BEFORE: [u8; 3] = [4, 7, 5];
    let kinds = [
        encode(&Gossip::UserEvent(user_event()))[1],
        encode(&Request::UserEvents { within_ms: 0, known: vec![], is_first: true })[1],
        encode(&Response::UserEvents { events: vec![], more: false })[1],
    ];
    assert!(kinds.iter().zip(BEFORE).all(|(kind, known)| *kind >= known && *kind < 251), "{kinds:?}");
}

#[test]
fn what_is_newer_is_told_apart_from_garbage() {
    assert_eq!(decode::<Gossip>(&[1, 77, 1, 2, 3]), Ok(Received::Unknown));
    assert_eq!(decode::<Gossip>(&[2, 0]), Err(DecodeError::Version(2)));
    assert_eq!(decode::<Gossip>(&[]), Err(DecodeError::Malformed));
    assert_eq!(decode::<Gossip>(&[1, 0, 200]), Err(DecodeError::Malformed));
    assert_eq!(
        decode::<Gossip>(&vec![1; MESSAGE_BYTES_MAX + 1]),
        Err(DecodeError::TooLong(MESSAGE_BYTES_MAX + 1))
    );
}

#[test]
fn no_prefix_and_no_flipped_bit_panics() {
    let bytes = encode(&Gossip::Entries(vec![entry()]));
    for cut in 0..bytes.len() {
        assert!(decode::<Gossip>(&bytes[..cut]).is_err());
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Received::Known(Gossip::Entries(entries))) = decode(&flipped) {
            assert!(entries.iter().all(|e| e.check("home").is_err()), "a flipped bit passed for signed");
        }
    }
}
