//! What happened, for `/why` and for the timeline of the cluster page: the last lines of each member and service, and the last of all.

use std::collections::{BTreeMap, VecDeque};

use crate::{NodeId, Time};

use super::{EXPLAINED_SUBJECTS_MAX, EXPLANATIONS_MAX, Explanation, TIMELINE_MAX};

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
    timeline: VecDeque<Line>,
}

impl Explanations {
    pub(super) fn add(&mut self, subject: Subject, line: Line) {
        self.timeline.push_back(line.clone());
        if self.timeline.len() > TIMELINE_MAX {
            self.timeline.pop_front();
        }
        if !self.by_subject.contains_key(&subject) && self.by_subject.len() >= EXPLAINED_SUBJECTS_MAX {
            let last = |lines: &VecDeque<Line>| lines.back().map(|(at, ..)| *at);
            let stalest = self.by_subject.iter().min_by_key(|(_, lines)| last(lines)).map(|(s, _)| s.clone());
            stalest.and_then(|s| self.by_subject.remove(&s));
        }
        // Of most members there is one thing to tell: that they joined.
        let lines = self.by_subject.entry(subject).or_insert_with(|| VecDeque::with_capacity(1));
        lines.push_back(line);
        if lines.len() > EXPLANATIONS_MAX {
            lines.pop_front();
        }
    }

    pub(super) fn forget(&mut self, subject: &Subject) {
        self.by_subject.remove(subject);
    }

    pub(super) fn of<'a>(&'a self, subject: &Subject) -> impl Iterator<Item = &'a Line> + use<'a> {
        self.by_subject.get(subject).into_iter().flatten()
    }

    pub(super) fn timeline(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.timeline.iter()
    }
}
