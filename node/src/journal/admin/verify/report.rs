//! [`Report`] of a verification: the problems found in a topic's file, by [`Part`].

use std::{fmt, path::PathBuf};

/// Maximum number of problems listed for one file. Further ones are only counted, because every run of a
/// badly damaged file may have a problem.
const PROBLEMS_LISTED_MAX: usize = 100;

/// A checked part of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// The file as a database.
    File,
    /// The runs, signed by their writers.
    Runs,
    /// The entries listed as stored, for each feed.
    Extents,
    /// The entry of each idempotency key.
    Keys,
    /// The plug-in's tables.
    Tables,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Runs => "run",
            Self::Extents => "extent",
            Self::Keys => "key",
            Self::Tables => "table",
        })
    }
}

/// A problem in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The damaged part.
    pub part: Part,
    /// The place: a run, a feed, a key or a table; empty for the whole part.
    pub place: String,
    /// The problem in words.
    pub problem: String,
}

/// The result of checking a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// The cluster that the file names.
    pub cluster: String,
    /// The topic that the file names.
    pub topic: String,
    /// Number of feeds.
    pub feeds: u64,
    /// Number of runs.
    pub runs: u64,
    /// Number of distinct entries.
    pub entries: u64,
    /// The first problems.
    pub problems: Vec<Problem>,
    /// Number of further problems.
    pub unlisted: u64,
    /// Parts that were not checked, and why.
    pub notes: Vec<String>,
    /// Row ids of damaged runs.
    pub(crate) damaged_rows: Vec<i64>,
}

impl Report {
    /// Whether no problem was found.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether no problem was found in a part.
    pub fn is_sound(&self, part: Part) -> bool {
        self.problems.iter().all(|problem| problem.part != part)
    }

    /// Whether a [`rebuild`](super::super::rebuild) has to delete runs or correct extents; it then keeps a
    /// copy first.
    pub fn needs_run_repair(&self) -> bool {
        self.is_sound(Part::File) && (!self.damaged_rows.is_empty() || !self.is_sound(Part::Extents))
    }

    pub(super) fn add(&mut self, part: Part, place: impl Into<String>, problem: impl fmt::Display) {
        // The first problem of each part is always listed, because the advice depends on the damaged parts.
        if self.problems.len() < PROBLEMS_LISTED_MAX || self.is_sound(part) {
            self.problems.push(Problem { part, place: place.into(), problem: problem.to_string() });
        } else {
            self.unlisted += 1;
        }
    }
}

/// Progress callback: the current step, the work done, and the total.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) + 'a;
