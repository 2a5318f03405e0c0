//! Checks properties of JSON-RPC for any input: refusals, responses, and the request to the HTTP API that a
//! call becomes. Entry point of the fuzz target `jsonrpc` in `node/fuzz`.
//!
//! The fuzz target and the test below, which replays the target's corpus, call the same function. It panics
//! where a property does not hold.

use std::collections::BTreeMap;

use axum::http::{Method as Verb, StatusCode, Uri};
use serde::de::IgnoredAny;
use serde_json::{Value, value::RawValue};

use super::{
    error::RpcError,
    message::{BATCH_MAX, Batch, Message, Refused, Request, Version, response},
    method::Method,
    server::object_of,
};
use crate::http::reentry::InnerRequest;

/// Characters of the message of an error: the names of all methods, and 64 escaped characters of a client.
const MESSAGE_CHARS_MAX: usize = 1200;
/// Bytes of a target that the HTTP library takes.
const TARGET_BYTES_MAX: usize = 65534;

/// Checks the properties for any input. The first byte selects a message of `POST /rpc` or a line over TCP.
pub fn jsonrpc(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    if kind % 2 == 0 { message(rest) } else { line(rest) }
}

/// A message is JSON, or it is refused.
fn message(bytes: &[u8]) {
    let is_json = serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
    let is_text = std::str::from_utf8(bytes).is_ok();
    match Message::read(bytes) {
        Err(error) => {
            assert!(!is_json || !is_text, "{error}");
            answered(Version::Two, RawValue::NULL, Err(&RpcError::parse(error.to_string())));
        }
        Ok(Message::One(one)) => {
            assert!(is_json && is_text);
            request(one, None);
        }
        Ok(Message::Batch(Batch { requests, count })) => {
            // A batch that is too long is refused without a look at the rest.
            assert!(is_json && (is_text || BATCH_MAX < count));
            assert_eq!(requests.len(), count.min(BATCH_MAX));
            requests.into_iter().for_each(|one| request(one, None));
        }
    }
}

/// A line is a JSON object, or the connection ends.
fn line(bytes: &[u8]) {
    let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    if let Ok(object) = object_of(line) {
        assert!(object.get().starts_with('{') && object.get().ends_with('}'));
        request(&object, Some(Version::One));
    }
}

/// A request is refused as one, or it becomes a call.
fn request(value: &RawValue, default: Option<Version>) {
    match Request::read(value, default) {
        Err(refused) => {
            let Refused { version, id, error } = *refused;
            assert_eq!(error.code, -32600);
            answered(version, id, Err(&error));
        }
        Ok(Request { version, id, method, params }) => {
            let outcome = match Method::find(&method) {
                Some(found) => found.request(params).map(|inner| called(found, &inner)).map_err(|problem| {
                    assert_eq!(problem.status(), StatusCode::BAD_REQUEST, "{problem:?}");
                    RpcError::of_problem(&problem)
                }),
                None => Err(RpcError::unknown_method(&method, &Method::names())),
            };
            if let Some(id) = id {
                assert!(value.get().contains(id.get()), "an id is a part of the request");
                answered(version, id, outcome.as_ref().map(|()| RawValue::NULL));
            }
        }
    }
}

/// The request of a call goes to a path of its method, with the method's parameters in the query.
fn called(method: &Method, inner: &InnerRequest) {
    let InnerRequest { target, body, .. } = inner;
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{target}");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let segments: Vec<&str> = path.split('/').collect();
    let is_filled = |template: &&&str| {
        let parts: Vec<&str> = template.split('/').collect();
        // A text of the client is encoded, so that it equals no fixed segment.
        let fits = |(part, segment): (&&str, &&str)| {
            part == segment || part.starts_with('{') && segment.starts_with('%')
        };
        parts.len() == segments.len() && parts.iter().zip(&segments).all(fits)
    };
    assert_eq!(method.paths.iter().filter(is_filled).count(), 1, "{target}");
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').expect("a pair");
        assert!(method.query.contains(&name) && !value.contains(['=', '?', '/']), "{target}");
    }
    assert!(target.parse::<Uri>().is_ok() || TARGET_BYTES_MAX < target.len(), "{target}");
    assert!(inner.method != Verb::GET || body.is_empty());
    assert!(
        body.is_empty()
            || serde_json::from_slice::<Value>(body).is_ok_and(|body| body.is_object() || body.is_array())
    );
}

/// A response is one line of JSON with the id as it came, and with a result or an error.
fn answered(version: Version, id: &RawValue, outcome: Result<&RawValue, &RpcError>) {
    let text = response(version, id, outcome);
    assert!(!text.contains('\n'), "{text}");
    let members: BTreeMap<&str, &RawValue> = serde_json::from_str(&text).expect("a response is an object");
    assert_eq!(members["id"].get(), id.get());
    let names: Vec<&str> = members.keys().copied().collect();
    match (version, outcome) {
        (Version::One, _) => assert_eq!(names, ["error", "id", "result"]),
        (Version::Two, Ok(_)) => assert_eq!(names, ["id", "jsonrpc", "result"]),
        (Version::Two, Err(_)) => assert_eq!(names, ["error", "id", "jsonrpc"]),
    }
    // A text of the client is an id only if any client can read it.
    assert!(!id.get().starts_with('"') || serde_json::from_str::<String>(id.get()).is_ok(), "{text}");
    if let Err(RpcError { code, message, data }) = outcome {
        assert!([-32700, -32600, -32601, -32602].contains(code), "{code}");
        assert!((1..=MESSAGE_CHARS_MAX).contains(&message.chars().count()), "{message}");
        assert!(data["status"].is_number() && data["detail"] == message.as_str(), "{data}");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_corpus_of_jsonrpc_keeps_its_properties() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/jsonrpc");
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 30, "{} files", files.len());
        for file in files {
            // Captured, and shown where a property does not hold.
            println!("{}", file.display());
            super::jsonrpc(&fs::read(&file).unwrap());
        }
    }
}
