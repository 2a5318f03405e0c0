//! [`Call`]: a request to a service, before an instance is chosen.

use bytes::Bytes;
use hearsay_protocol::NodeId;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::http::append::IDEMPOTENCY_KEY;

/// A request to a service, without the address of an instance.
#[derive(Clone, Debug)]
pub struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) prefer: Option<NodeId>,
    /// Whether the path must belong to the role.
    pub(super) is_for_role: bool,
}

impl Call {
    /// Returns a request for a path with its query, both percent-encoded.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self { method, path: path.into(), headers, body, prefer: None, is_for_role: true }
    }

    /// Returns a GET request.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// Adds a body of this content type.
    #[must_use]
    pub fn body(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.body = body.into();
        self
    }

    /// Adds a body whose content type is already among the headers.
    #[must_use]
    pub fn raw_body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }

    /// Adds a JSON body.
    #[must_use]
    pub fn json(self, value: &serde_json::Value) -> Self {
        self.body("application/json", value.to_string())
    }

    /// Adds a header. A value that is not valid in a header is left out.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Tries the instances of this node first.
    #[must_use]
    pub fn prefer(mut self, node: Option<NodeId>) -> Self {
        self.prefer = node;
        self
    }

    /// Returns whether the request may be repeated after it may have been executed.
    pub(super) fn is_repeatable(&self) -> bool {
        self.method.is_safe() || self.headers.contains_key(IDEMPOTENCY_KEY)
    }
}
