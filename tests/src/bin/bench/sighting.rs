//! What a process of any system says about another: the one form into which every system's own words are brought.

use crate::clock::Moment;

/// What was seen of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Alive,
    Failed,
    /// It said goodbye. Systems that do not tell the two apart say `Failed`.
    Left,
    /// It says something new of itself.
    Changed,
}

/// One process, when and what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sighting {
    pub(crate) at: Moment,
    /// The number of the process.
    pub(crate) subject: usize,
    pub(crate) what: What,
}

/// The name that a process goes by in its cluster.
pub(crate) fn name(index: usize) -> String {
    format!("n{index}")
}

/// The number in a name.
pub(crate) fn index(name: &str) -> Option<usize> {
    name.strip_prefix('n')?.parse().ok()
}
