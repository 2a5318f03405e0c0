//! What is asked of a service.

use bytes::Bytes;
use hearsay_protocol::NodeId;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::writing::IDEMPOTENCY_KEY;

/// A question to a service, without the address of an instance.
#[derive(Clone, Debug)]
pub struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) prefer: Option<NodeId>,
    /// Whether only paths of the role are asked for.
    pub(super) is_for_role: bool,
}

impl Call {
    /// A request for a path (with its query, both encoded).
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self { method, path: path.into(), headers, body, prefer: None, is_for_role: true }
    }

    /// A read.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// With a body of this content type.
    #[must_use]
    pub fn body(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.body = body.into();
        self
    }

    /// With a body whose type is among the headers.
    #[must_use]
    pub fn whole_body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }

    /// With a JSON body.
    #[must_use]
    pub fn json(self, value: &serde_json::Value) -> Self {
        self.body("application/json", value.to_string())
    }

    /// With one more header. A value that no header can hold is left out.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Asks the instances of this node first.
    #[must_use]
    pub fn prefer(mut self, node: Option<NodeId>) -> Self {
        self.prefer = node;
        self
    }

    /// Whether it may be asked again though it may have been answered.
    pub(super) fn is_repeatable(&self) -> bool {
        self.method.is_safe() || self.headers.contains_key(IDEMPOTENCY_KEY)
    }
}
