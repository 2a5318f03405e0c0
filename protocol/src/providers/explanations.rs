//! [`Explanations`]: events for `/why` and for the timeline of the cluster page. Each member, service and
//! instance has a bounded list.

use std::collections::{BTreeMap, VecDeque};

use crate::{Incarnation, NodeId, Time, Version, record::Health};

use super::member::MemberState;

/// Explanations kept for each member or service.
pub(crate) const EXPLANATIONS_MAX: usize = 64;
/// Members and services with explanations. If there are more, the one whose last event is the oldest is
/// dropped.
pub(crate) const EXPLAINED_SUBJECTS_MAX: usize = 16 * 1024;
/// Instances with explanations. Counted separately, so that flapping checks do not displace members and
/// services. If there are more, the one whose last event is the oldest is dropped.
pub(crate) const EXPLAINED_INSTANCES_MAX: usize = 4096;
/// Explanations kept in the timeline, of all members and services together. Guess: as many as a person
/// scrolls through.
pub(crate) const TIMELINE_MAX: usize = 200;

/// Event of a member or service, for `/why`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Explanation {
    /// The first header of the member, or of its new life, arrived.
    Joined(Incarnation),
    /// This node made or received a report on the member.
    Accused {
        /// The observer.
        by: NodeId,
        /// Whether the report is strong: the member's process is gone. A weak report says that the member did
        /// not answer.
        strong: bool,
    },
    /// The member refuted a report by a newer header of this version.
    Refuted(Version),
    /// The state of the member changed.
    Became(MemberState),
    /// An instance was added: service and id.
    Added(String, String),
    /// An instance changed: service and id.
    Changed(String, String),
    /// An instance was removed: service and id.
    Removed(String, String),
    /// The table guard keeps an instance of a silent node listed: service and id.
    Kept(String, String),
    /// The status of an instance's check changed.
    CheckChanged {
        /// Service of the instance.
        service: String,
        /// Id of the instance.
        instance: String,
        /// Id of the check.
        check: String,
        /// New status.
        status: Health,
        /// Output, of at most [`CHECK_OUTPUT_BYTES_MAX`](crate::CHECK_OUTPUT_BYTES_MAX) bytes.
        output: String,
        /// Duration of the run, in milliseconds.
        took_ms: u32,
    },
}

/// Time, node and event.
pub(super) type Line = (Time, NodeId, Explanation);

/// Subject of a line in the lists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Subject {
    Member(NodeId),
    Service(String),
}

/// All lines, by subject and in order.
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

    /// Adds a line for an instance only. The timeline receives the same line for the instance's service.
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

/// Adds a line. If that exceeds a bound, drops the subject whose last line is the oldest, or the subject's
/// oldest line.
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
    // Most members have a single line, which says that they joined.
    let lines = subjects.entry(subject).or_insert_with(|| VecDeque::with_capacity(1));
    lines.push_back(line);
    if lines.len() > EXPLANATIONS_MAX {
        lines.pop_front();
    }
}
