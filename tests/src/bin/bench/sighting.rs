//! [`Sighting`]: a report of a process about another one, in one form for all systems.

use crate::clock::Moment;

/// State that a sighting reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Alive,
    Failed,
    /// The process left. Systems that do not distinguish this report `Failed`.
    Left,
    /// The process changed its state.
    Changed,
}

/// Report about a process: time, process and state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sighting {
    pub(crate) at: Moment,
    /// Number of the reported process.
    pub(crate) subject: usize,
    pub(crate) what: What,
}

/// Returns the name of a process.
pub(crate) fn name(index: usize) -> String {
    format!("n{index}")
}

/// Parses the number in a name.
pub(crate) fn index(name: &str) -> Option<usize> {
    name.strip_prefix('n')?.parse().ok()
}
