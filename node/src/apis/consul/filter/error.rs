//! The error of a filter expression.

/// Why an expression is refused: the place, the selector or the bound.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("filter: {0}")]
pub(in crate::apis::consul) struct FilterError(pub(super) String);
