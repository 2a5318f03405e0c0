//! [`Case`]: the reports on one member that count at its current header, and those that came too early.

use std::collections::BTreeMap;

use super::evidence::{Claim, Evidence};
use crate::{Incarnation, NodeId, Time, Version};

/// Reports kept on one subject's current header. Two decide on the verdict; further ones only serve as
/// explanations, so a strong report takes the place of a weak one.
const REPORTS_MAX: usize = 8;
/// Reports kept on later headers of one subject. The header that is nearest comes first, so a report on it
/// takes the place of one on the header that is farthest ahead.
const EARLY_REPORTS_MAX: usize = 8;

/// Reports on one subject.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) incarnation: Incarnation,
    pub(super) version: Version,
    /// Reports on this header, by observer.
    pub(super) reports: BTreeMap<NodeId, Report>,
    /// Reports on later headers, because evidence can arrive before the header that it names. Such a report
    /// does not count until the header arrives, because the subject cannot have refuted it yet. They are kept
    /// apart, so that invented ones take no room from those that count.
    early: BTreeMap<NodeId, Report>,
    pub(super) failed: bool,
}

/// Evidence, and the start of the time in which the subject can refute it.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) evidence: Evidence,
    pub(super) since: Time,
}

impl Case {
    pub(super) fn new(incarnation: Incarnation, version: Version) -> Self {
        Self { incarnation, version, reports: BTreeMap::new(), early: BTreeMap::new(), failed: false }
    }

    /// When the first report on the current header came.
    pub(super) fn since(&self) -> Option<Time> {
        self.reports.values().map(|report| report.since).min()
    }

    /// Begins a newer header, to which only early reports on it still apply.
    pub(super) fn renew(&mut self, incarnation: Incarnation, version: Version) {
        (self.incarnation, self.version) = (incarnation, version);
        self.failed = false;
        self.reports.clear();
        for (observer, report) in std::mem::take(&mut self.early) {
            let claim = &report.evidence.claim;
            if (claim.incarnation, claim.version) == (incarnation, version) {
                self.reports.insert(observer, report);
            } else if claim.incarnation == incarnation && claim.version > version {
                self.early.insert(observer, report);
            }
        }
    }

    /// Whether an observer has already made this report, or a later or stronger one.
    pub(super) fn has(&self, claim: &Claim) -> bool {
        self.kept(claim).get(&claim.observer).is_some_and(|report| {
            let known = &report.evidence.claim;
            (known.version, known.strength) >= (claim.version, claim.strength)
        })
    }

    /// Whether there is room for a report, perhaps in place of one that is worth less.
    pub(super) fn has_room(&self, claim: &Claim) -> bool {
        !self.is_full_for(claim) || self.evicted_by(claim).is_some()
    }

    /// Keeps a report for which there is room.
    pub(super) fn keep(&mut self, report: Report) {
        let claim = &report.evidence.claim;
        let evicted = if self.is_full_for(claim) { self.evicted_by(claim) } else { None };
        let kept = if claim.version == self.version { &mut self.reports } else { &mut self.early };
        if let Some(observer) = evicted {
            kept.remove(&observer);
        }
        kept.insert(claim.observer, report);
    }

    /// The reports among which a report is kept.
    fn kept(&self, claim: &Claim) -> &BTreeMap<NodeId, Report> {
        if claim.version == self.version { &self.reports } else { &self.early }
    }

    fn is_full_for(&self, claim: &Claim) -> bool {
        let max = if claim.version == self.version { REPORTS_MAX } else { EARLY_REPORTS_MAX };
        let kept = self.kept(claim);
        kept.len() >= max && !kept.contains_key(&claim.observer)
    }

    /// The observer of the report that a new one replaces where there is no room.
    fn evicted_by(&self, claim: &Claim) -> Option<NodeId> {
        let of = |report: &Report| (report.evidence.claim.strength, report.evidence.claim.version);
        if claim.version == self.version {
            let mut weaker = self.reports.iter().filter(|(_, report)| of(report).0 < claim.strength);
            return weaker.next().map(|(observer, _)| *observer);
        }
        let farthest = self.early.iter().max_by_key(|(_, report)| of(report).1)?;
        (of(farthest.1).1 > claim.version).then_some(*farthest.0)
    }
}
