//! What happened, for `/why` and for the timeline of the cluster page: the last lines of each member and service, and the last of all.

use std::collections::{BTreeMap, VecDeque};

use crate::{Incarnation, NodeId, Time, Version, record::Health};

use super::{EXPLAINED_INSTANCES_MAX, EXPLAINED_SUBJECTS_MAX, EXPLANATIONS_MAX, MemberState, TIMELINE_MAX};

/// One thing that happened to a member or service, for `/why`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Explanation {
    /// Its first header, or that of a new life, arrived.
    Joined(Incarnation),
    /// This node accused it, by its own observation or by gossip.
    Accused {
        /// Who observed.
        by: NodeId,
        /// Whether its process is known to be gone, or it was only not heard.
        strong: bool,
    },
    /// It answered an accusation with a newer version.
    Refuted(Version),
    /// The table's conclusion changed.
    Became(MemberState),
    /// An instance was added, changed or removed: service and id.
    Added(String, String),
    /// See [`Explanation::Added`].
    Changed(String, String),
    /// See [`Explanation::Added`].
    Removed(String, String),
    /// The table guard keeps an instance whose node has fallen silent: service and id.
    Kept(String, String),
    /// A check of an instance found something else than before.
    CheckChanged {
        /// The service of the instance.
        service: String,
        /// The id of the instance.
        instance: String,
        /// The id of the check.
        check: String,
        /// What it says now.
        status: Health,
        /// What it saw, at most [`CHECK_OUTPUT_BYTES_MAX`](crate::record::CHECK_OUTPUT_BYTES_MAX) bytes.
        output: String,
        /// How long the run took, in milliseconds.
        took_ms: u32,
    },
}

/// When, about whom, what.
pub(super) type Line = (Time, NodeId, Explanation);

/// What a line is kept for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Subject {
    Member(NodeId),
    Service(String),
}

/// The lines, by subject and as one.
#[derive(Debug, Default)]
pub(super) struct Explanations {
    by_subject: BTreeMap<Subject, VecDeque<Line>>,
    /// By the instance's id.
    by_instance: BTreeMap<String, VecDeque<Line>>,
    timeline: VecDeque<Line>,
}

impl Explanations {
    pub(super) fn add(&mut self, subject: Subject, line: Line) {
        self.timeline.push_back(line.clone());
        if self.timeline.len() > TIMELINE_MAX {
            self.timeline.pop_front();
        }
        add_line(&mut self.by_subject, subject, EXPLAINED_SUBJECTS_MAX, line);
    }

    /// Adds a line to an instance alone. The timeline has it by way of the instance's service.
    pub(super) fn add_to_instance(&mut self, id: &str, line: Line) {
        add_line(&mut self.by_instance, id.to_owned(), EXPLAINED_INSTANCES_MAX, line);
    }

    pub(super) fn forget(&mut self, subject: &Subject) {
        self.by_subject.remove(subject);
    }

    pub(super) fn of<'a>(&'a self, subject: &Subject) -> impl Iterator<Item = &'a Line> + use<'a> {
        self.by_subject.get(subject).into_iter().flatten()
    }

    pub(super) fn of_instance(&self, id: &str) -> impl Iterator<Item = &Line> + use<'_> {
        self.by_instance.get(id).into_iter().flatten()
    }

    pub(super) fn timeline(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.timeline.iter()
    }
}

/// Adds a line, and forgets what is over a bound: the subject whose last line is the oldest, and the oldest
/// line.
fn add_line<K: Ord + Clone>(
    subjects: &mut BTreeMap<K, VecDeque<Line>>,
    subject: K,
    subjects_max: usize,
    line: Line,
) {
    if !subjects.contains_key(&subject) && subjects.len() >= subjects_max {
        let last = |lines: &VecDeque<Line>| lines.back().map(|(at, ..)| *at);
        let stalest = subjects.iter().min_by_key(|(_, lines)| last(lines)).map(|(s, _)| s.clone());
        stalest.and_then(|s| subjects.remove(&s));
    }
    // Of most members there is one thing to tell: that they joined.
    let lines = subjects.entry(subject).or_insert_with(|| VecDeque::with_capacity(1));
    lines.push_back(line);
    if lines.len() > EXPLANATIONS_MAX {
        lines.pop_front();
    }
}
