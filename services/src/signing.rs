//! Which part of an HTTP request a node's signature covers ([`hearsay_protocol::signed_request`]), read from the types of `http`.

use hearsay_protocol::signed_request::{COVERED, Life, RequestHead};
use http::{HeaderMap, HeaderValue, Method};

/// A request before it is signed, or as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Unsigned<'a> {
    /// Its method.
    pub method: &'a Method,
    /// What is sent as `Host`.
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Its headers, as they are sent.
    pub headers: &'a HeaderMap,
}

impl<'a> Unsigned<'a> {
    /// What is signed of it for this recipient.
    pub fn head(&self, recipient: Life) -> RequestHead<'a> {
        let Self { method, authority, target, headers } = *self;
        let values = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        RequestHead { recipient, method: method.as_str(), authority, target, covered: COVERED.map(values) }
    }
}
