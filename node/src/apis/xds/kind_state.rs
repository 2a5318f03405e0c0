//! [`KindState`]: what a stream has subscribed to of one kind of resources, and its last response of this
//! kind.

use super::{catalog::Catalog, kind::Kind, subscription::Subscription};

/// A stream's state for one kind of resources.
#[derive(Debug)]
pub(super) struct KindState {
    pub(super) subscription: Subscription,
    /// Number of responses, which is the nonce of the last one.
    responses: u64,
    /// Whether the client waits for a response, even one without resources.
    is_awaited: bool,
}

impl KindState {
    /// Returns the state at the first request.
    pub(super) fn new(kind: Kind, catalog: &Catalog) -> Self {
        Self { subscription: Subscription::new(kind, catalog), responses: 0, is_awaited: true }
    }

    /// Whether this is the nonce of the last response; before the first one, whether it is empty.
    pub(super) fn is_last(&self, nonce: &str) -> bool {
        match self.responses {
            0 => nonce.is_empty(),
            last => nonce == last.to_string(),
        }
    }

    /// Whether a response is due even without resources.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// Begins a response and returns its nonce.
    pub(super) fn begin_response(&mut self) -> String {
        self.is_awaited = false;
        self.responses += 1;
        self.responses.to_string()
    }
}
