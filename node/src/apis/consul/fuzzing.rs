//! Checks properties of Consul's interface for any input: parses the bytes as a registration, query
//! parameters or a filter. Entry point of the fuzz target `consul` in `node/fuzz`.
//!
//! The fuzz target and the test below, which replays the target's corpus, call the same function. It panics
//! where a property does not hold.

use serde_json::{Value, json};

use super::{
    fields::{OF_CATALOG, OF_CHECKS, OF_ENTRIES, OF_MEMBERS, OF_NODES, OF_SERVICES},
    filter::{EXPRESSION_BYTES_MAX, Field, parse},
    query::Query,
};
use crate::registry::fuzzing::consul_registration;

/// Checks the properties for any input. The first byte selects the decoder.
pub fn consul(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => consul_registration(rest),
        1 => query(rest),
        _ => filter(rest),
    }
}

/// Accepted parameters are within their bounds.
fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(uri) = format!("/v1/health/service/web?{text}").parse() else { return };
    let Ok(query) = Query::read(&uri) else { return };
    assert!(query.index.is_none_or(|index| index.0 > 0));
    assert!(query.wait.is_none_or(|wait| !wait.is_zero()));
    assert!(query.tags.iter().all(|tag| !tag.is_empty()));
    _ = query.filter(&OF_ENTRIES);
}

/// A filter accepts an element exactly if its negation refuses it.
fn filter(bytes: &[u8]) {
    let Some((path, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let fields: &[Field] = match path % 6 {
        0 => &OF_CATALOG,
        1 => &OF_NODES,
        2 => &OF_ENTRIES,
        3 => &OF_CHECKS,
        4 => &OF_SERVICES,
        _ => &OF_MEMBERS,
    };
    let Ok(parsed) = parse(text, fields) else { return };
    assert!(text.len() <= EXPRESSION_BYTES_MAX);
    let accepted = parsed.accepts(&element());
    // The negation is longer and deeper by one, so it may be refused.
    if let Ok(negation) = parse(&format!("not ({text})"), fields) {
        assert_ne!(accepted, negation.accepts(&element()), "{text:?}");
    }
}

/// An element with fields of every path.
fn element() -> Value {
    json!({
        "ID": "x", "Node": "n1", "Address": "10.0.0.1", "ServiceName": "web", "ServiceID": "web-1",
        "ServiceTags": ["v1", "blue"], "ServiceMeta": { "version": "1" }, "ServicePort": 80,
        "Service": { "ID": "web-1", "Service": "web", "Tags": ["v1"], "Meta": { "a": "b" }, "Port": 80 },
        "Checks": [{ "Status": "passing" }, { "Status": "critical" }],
        "Status": "passing", "Name": "n1", "Tags": ["v1"], "Meta": {}, "Port": 80,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_corpus_of_consul_keeps_its_properties() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/consul");
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 9, "{} files", files.len());
        for file in files {
            // Captured, and shown where a property does not hold.
            println!("{}", file.display());
            super::consul(&fs::read(&file).unwrap());
        }
    }
}
