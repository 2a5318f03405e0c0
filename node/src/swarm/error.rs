//! [`SwarmError`]: why a swarm could not be built.

/// Why a swarm could not be built.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// A protocol refused its configuration; this is a defect of this program.
    #[error("cannot set up {0}: {1}")]
    Setup(&'static str, String),
}

impl SwarmError {
    /// Returns a function that turns an error of a protocol into this error.
    pub(super) fn setup(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Self {
        move |error| Self::Setup(what, error.to_string())
    }
}
