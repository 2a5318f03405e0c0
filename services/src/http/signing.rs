//! [`UnsignedRequest`]: the parts of an HTTP request that a node's signature covers
//! ([`hearsay_protocol::RequestSignature`]), taken from the types of `http`.

use hearsay_protocol::{COVERED_HEADERS, Life, RequestHead};
use http::{HeaderMap, HeaderValue, Method};

/// A request without its signature.
#[derive(Clone, Copy, Debug)]
pub struct UnsignedRequest<'a> {
    /// Method.
    pub method: &'a Method,
    /// Value of `Host`.
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
}

impl<'a> UnsignedRequest<'a> {
    /// Returns the covered parts, for this recipient.
    pub fn head(&self, recipient: Life) -> RequestHead<'a> {
        let Self { method, authority, target, headers } = *self;
        let values = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        RequestHead {
            recipient,
            method: method.as_str(),
            authority,
            target,
            covered: COVERED_HEADERS.map(values),
        }
    }
}
