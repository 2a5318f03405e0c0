//! Properties of decoders for any input, as functions that two targets of `protocol/fuzz` call: [`texts`]
//! (signatures, URLs, node ids, counters) and [`values`] (instances with their parts, check reports).
//!
//! Each fuzz target and the test below, which replays the target's corpus, call the same function. The
//! function panics if a property does not hold.

use std::collections::BTreeSet;

use crate::{
    NodeId,
    record::{INSTANCE_BYTES_MAX, Instance, Overflow, WebOrigin, check_instance_size, parts},
    signed_request::{COVERED_HEADERS, Life, REPLAY_WINDOW, ReplayWindow, RequestHead, RequestSignature},
    wire::{REPORT_OUTPUT_BYTES_MAX, REPORTS_MAX, decode_check_reports, encode_check_reports},
};

/// Properties of texts (signatures of requests, origins of URLs, ids of nodes) and of the counters of
/// signed requests.
pub fn texts(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        signature(text);
        origin(text);
        if let Ok(node) = text.parse::<NodeId>() {
            assert_eq!(node.to_string().parse::<NodeId>().ok(), Some(node));
        }
    }
    counters(bytes);
}

/// A parsed signature has one spelling, and is invalid for any other request.
fn signature(text: &str) {
    let Ok(signature) = text.parse::<RequestSignature>() else { return };
    assert_eq!(signature.to_string(), text);
    let Life { node, incarnation } = signature.signer;
    let head = RequestHead {
        recipient: Life { node, incarnation },
        method: "POST",
        authority: "10.0.0.2:7500",
        target: text,
        covered: COVERED_HEADERS.map(|_| vec![text.as_bytes()]),
    };
    assert!(!signature.covers("fuzz", &head), "a signature was forged");
}

/// Origin and rest together are the URL, and the origin alone parses to the same origin.
fn origin(url: &str) {
    let Some((origin, rest)) = WebOrigin::split(url) else { return };
    assert_eq!(format!("{origin}{rest}"), url);
    assert_eq!(format!("{}://{}", origin.scheme, origin.authority()), origin.as_str());
    assert_eq!(WebOrigin::parse(origin.as_str()), Some(origin));
    assert_eq!(WebOrigin::parse(url).is_some(), rest.is_empty());
    assert!(rest.is_empty() || rest.starts_with(['/', '?', '#', '\\']), "{url:?}");
    assert!(!origin.host.is_empty() && origin.as_str().is_ascii(), "{url:?}");
    assert_eq!(origin.host.contains(':'), origin.authority().starts_with('['), "{url:?}");
    assert!(!origin.as_str().contains(['@', '%', ' ']), "{url:?}");
}

/// A counter is accepted at most once, in any order.
fn counters(bytes: &[u8]) {
    let (mut window, mut seen, mut newest) = (ReplayWindow::new(crate::Incarnation(1)), BTreeSet::new(), 0);
    for step in bytes.chunks_exact(2) {
        let counter = match step {
            // Counters at the ends of the range, and steps from the newest counter.
            [255, last] => u64::MAX - u64::from(*last),
            [high, low] if high % 2 == 0 => newest + u64::from(u16::from_be_bytes([*high, *low]) / 8),
            [high, low] => u64::saturating_sub(newest, u64::from(u16::from_be_bytes([*high, *low]) / 8)),
            _ => 0,
        };
        let is_new = window.note(counter);
        let is_expected = counter > 0 && u64::saturating_sub(newest, counter) < REPLAY_WINDOW;
        assert_eq!(is_new, is_expected && seen.insert(counter), "{counter} after {newest}");
        newest = if is_new { newest.max(counter) } else { newest };
        if newest > u64::MAX - 0x2000 {
            break;
        }
    }
}

/// Properties of the values of entries (an instance with its parts) and of check reports.
///
/// The input is a list of values. Each value follows its length (16 bits, big endian). The first value is the
/// instance's own entry, the others are its parts.
pub fn values(bytes: &[u8]) {
    reports(bytes);
    let values = split_values(bytes);
    let Some((own, parts)) = values.split_first() else { return };
    reports(own);
    let Ok(own) = Instance::decode(own) else { return };
    assert_eq!(Instance::decode(&own.encode()).as_ref(), Ok(&own), "what was encoded decodes to the same");
    assert!(own.check().is_err() || own.tags.len() <= crate::record::TAGS_MAX);
    stated(&own);
    let part = |number: u16| parts.get(usize::from(number)).copied();
    if let Some(joined) = parts::join(own.clone(), part) {
        stated(&joined);
    }
    // A malicious member may state any parts with the right hash.
    let Ok(count) = u16::try_from(parts.len()) else { return };
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(&parts.concat()).as_bytes()[..16]);
    let own = Instance { overflow: Some(Overflow { parts: count, hash }), ..own };
    if let Some(joined) = parts::join(own, part) {
        assert!(joined.encode().len() <= INSTANCE_BYTES_MAX);
        assert_eq!(joined.overflow, None);
        stated(&joined);
    }
}

/// An instance that may be stated is split into entries that other nodes accept. Joining them gives the same
/// instance.
fn stated(instance: &Instance) {
    let Ok(stated) = parts::split(instance) else { return };
    assert_eq!(check_instance_size(instance), Ok(()));
    let own = Instance::decode(&stated.value).expect("what was encoded decodes");
    assert_eq!(own.check(), Ok(()), "a node without parts takes the instance's own entry");
    assert!(WebOrigin::parse(&own.url).is_some());
    let part = |number: u16| stated.parts.get(usize::from(number)).map(Vec::as_slice);
    let whole = Instance { overflow: None, ..instance.clone() };
    assert_eq!(parts::join(own, part), Some(whole));
}

fn reports(bytes: &[u8]) {
    let Ok(reports) = decode_check_reports(bytes) else { return };
    assert_eq!(encode_check_reports(&reports), bytes, "reports have one spelling");
    assert!(reports.len() <= REPORTS_MAX);
    assert!(reports.iter().all(|report| report.output.len() <= REPORT_OUTPUT_BYTES_MAX));
}

fn split_values(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut values = Vec::new();
    while let [high, low, rest @ ..] = bytes {
        let (value, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()));
        values.push(value);
        bytes = rest;
    }
    values
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Checks the property of a target for each file of its corpus.
    fn replay(target: &str, property: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 9, "{target} has {} files", files.len());
        for file in files {
            // The test harness captures this line, and shows it if the property does not hold.
            println!("{}", file.display());
            property(&fs::read(&file).unwrap());
        }
    }

    #[test]
    fn the_corpus_of_texts_keeps_its_properties() {
        replay("texts", super::texts);
    }

    #[test]
    fn the_corpus_of_values_keeps_its_properties() {
        replay("values", super::values);
    }
}
