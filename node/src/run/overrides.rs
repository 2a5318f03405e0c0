//! [`Overrides`]: parts of a node that tests replace (the store of its topics, and the version of the
//! protocol).

use crate::journal::WrapStore;

/// Differences of a build for tests from a release.
#[derive(Clone, Copy, Debug)]
pub struct Overrides {
    /// Wraps the store of each topic, to inject faults.
    pub wrap_store: WrapStore,
    /// Whether the node speaks a next version of the protocol, with fields, entries and messages that this
    /// version does not know.
    pub is_next_version: bool,
}

impl Default for Overrides {
    fn default() -> Self {
        Self { wrap_store: |store, _| Box::new(store), is_next_version: false }
    }
}
