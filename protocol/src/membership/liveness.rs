//! Failure detector, second half: [`Liveness`] draws a verdict on each member from the evidence of all
//! observers.
//!
//! A timeout alone is either slow or wrong. So an observer signs its *observation* and floods it, and every
//! node draws the same verdict from the same evidence. Suspicion and refutation come from SWIM (Das et al.,
//! 2002), the verdict by several observers from Rapid (Suresh et al., 2018).
//!
//! - Two **strong** reports fail a member at once. A report is strong if the member's address refuses
//!   connections, so that its process is gone.
//! - Two reports of which at least one is **weak** (no answer) make the member a suspect. It fails if it does
//!   not refute within the suspicion time.
//! - One report suffices if no other member is left that could confirm it.
//! - Evidence names a version of the subject's header. The subject refutes by stating a newer header, which
//!   voids all evidence on older headers, in any order of arrival. A new incarnation does the same.
//! - An observer that accuses many members is probably at fault itself, so its strong reports count as weak.
//!
//! Each observer has at most one report on a subject, so repeated reports add no weight. This node's own
//! observations come from the [`prober`](crate::membership::prober).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    case::{Case, Report},
    evidence::{Claim, Evidence, Strength},
};
use crate::{Incarnation, NodeId, Time, Version};

/// Window in which an observer's accusations are counted together.
const ACCUSATIONS_WINDOW: Duration = Duration::from_secs(10);
/// An observer that accuses more members than this within the window, and more than an eighth of all, is
/// unreliable. Accusations of members that really failed do not count: if processes die one after the other,
/// each death should be detected as fast as the first.
const ACCUSATIONS_MAX: usize = 4;

/// Effect of recording a piece of evidence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EvidenceEffect {
    /// The evidence is new and counts.
    New,
    /// The same was already reported, or the subject has already failed.
    Known,
    /// The evidence is already refuted, or its subject or incarnation is unknown to this node.
    Void,
}

/// Verdict on a subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// No valid evidence exists against the subject.
    Clear,
    /// Under suspicion. The subject fails at the given time unless it refutes; `None`: a second report is
    /// needed.
    Suspect(Option<Time>),
    /// Declared failed.
    Failed,
}

/// Evidence on all members.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    cases: BTreeMap<NodeId, Case>,
    /// Subjects that have not failed and are reported at their current header.
    accused: BTreeSet<NodeId>,
    accusations: BTreeMap<NodeId, VecDeque<(Time, NodeId)>>,
}

impl Liveness {
    /// Records a member's newer header, which voids evidence on older ones. Returns whether there was
    /// evidence on the header that was current before, or the member had failed.
    pub(crate) fn renew(&mut self, subject: NodeId, incarnation: Incarnation, version: Version) -> bool {
        let case = self.cases.entry(subject).or_insert_with(|| Case::new(incarnation, version));
        if (incarnation, version) <= (case.incarnation, case.version) {
            return false;
        }
        let was = case.failed || !case.reports.is_empty();
        case.renew(incarnation, version);
        match case.reports.is_empty() {
            false => _ = self.accused.insert(subject),
            true => _ = self.accused.remove(&subject),
        }
        was
    }

    /// Removes a subject that left or is forgotten.
    pub(crate) fn remove(&mut self, subject: NodeId) {
        self.cases.remove(&subject);
        self.accused.remove(&subject);
        self.accusations.remove(&subject);
    }

    /// Returns the effect that this claim would have. Does not check the signature; verifying costs more, so
    /// call this first.
    pub(crate) fn assess(&self, claim: &Claim) -> EvidenceEffect {
        let Some(case) = self.cases.get(&claim.subject) else { return EvidenceEffect::Void };
        if (claim.incarnation, claim.version) < (case.incarnation, case.version)
            || claim.incarnation != case.incarnation
        {
            return EvidenceEffect::Void;
        }
        if case.failed || case.has(claim) || !case.has_room(claim) {
            EvidenceEffect::Known
        } else {
            EvidenceEffect::New
        }
    }

    /// Records evidence whose signature was checked. `since` is the time from which the subject could refute:
    /// usually now, or earlier if other nodes have already waited.
    pub(crate) fn record(&mut self, now: Time, evidence: Evidence, since: Time) -> EvidenceEffect {
        let effect = self.assess(&evidence.claim);
        if effect == EvidenceEffect::New
            && let Some(case) = self.cases.get_mut(&evidence.claim.subject)
        {
            let Claim { observer, subject, version, .. } = evidence.claim;
            let before = case.reports.get(&observer).filter(|_| version == case.version);
            let since = before.map_or(since, |report| report.since.min(since));
            case.keep(Report { evidence, since });
            if version == case.version {
                self.accused.insert(subject);
                self.count_accusation(now, observer, subject);
            }
        }
        effect
    }

    fn count_accusation(&mut self, now: Time, observer: NodeId, subject: NodeId) {
        let recent = self.accusations.entry(observer).or_default();
        recent.retain(|(at, accused)| now.since(*at) < ACCUSATIONS_WINDOW && *accused != subject);
        recent.push_back((now, subject));
        // Older accusations can be dropped: the count already exceeds every limit.
        if recent.len() > self.cases.len() {
            recent.pop_front();
        }
    }

    /// Removes the accusations against a subject that really failed, so that they do not count against their
    /// observers.
    fn discount_accusations(&mut self, subject: NodeId) {
        for recent in self.accusations.values_mut() {
            recent.retain(|(_, accused)| *accused != subject);
        }
    }

    /// Whether an observer accuses so many members that it is probably at fault itself.
    fn is_unreliable_observer(&self, now: Time, observer: NodeId) -> bool {
        let recent = self.accusations.get(&observer).into_iter().flatten();
        let count = recent.filter(|(at, _)| now.since(*at) < ACCUSATIONS_WINDOW).count();
        count > ACCUSATIONS_MAX && count > self.cases.len() / 8
    }

    /// Draws the verdict on a subject. `present` has the members that are alive or suspect, this node
    /// included; `suspicion` is the time to refute. [`Verdict::Failed`] remains until a newer header comes.
    pub(crate) fn conclude(
        &mut self,
        now: Time,
        subject: NodeId,
        present: &BTreeSet<NodeId>,
        suspicion: Duration,
    ) -> Verdict {
        let Some(case) = self.cases.get(&subject) else { return Verdict::Clear };
        if case.failed {
            return Verdict::Failed;
        }
        let Some(since) = case.since() else { return Verdict::Clear };
        let claims = case.reports.values().map(|report| &report.evidence.claim);
        let strong = claims
            .filter(|claim| {
                claim.strength == Strength::Strong && !self.is_unreliable_observer(now, claim.observer)
            })
            .count();
        // A node that could still confirm: it is present, unaccused, not the subject, and has not reported
        // the subject.
        let has_reported = |id: &NodeId| case.reports.contains_key(id);
        let other =
            present.iter().any(|id| !self.accused.contains(id) && !has_reported(id) && *id != subject);
        let needed = if other { 2 } else { 1 };
        let verdict = if strong >= needed {
            Verdict::Failed
        } else if case.reports.len() < needed {
            Verdict::Suspect(None)
        } else if since + suspicion <= now {
            Verdict::Failed
        } else {
            Verdict::Suspect(Some(since + suspicion))
        };
        if verdict == Verdict::Failed {
            self.accused.remove(&subject);
            if let Some(case) = self.cases.get_mut(&subject) {
                case.failed = true;
            }
            if strong >= 2 {
                self.discount_accusations(subject);
            }
        }
        verdict
    }

    /// Restarts the time to refute for all subjects. Called after this node was suspended, because a
    /// refutation may have arrived that is not processed yet.
    pub(crate) fn restart_suspicions(&mut self, now: Time) {
        for subject in &self.accused {
            if let Some(case) = self.cases.get_mut(subject) {
                case.reports.values_mut().for_each(|report| report.since = report.since.max(now));
            }
        }
    }

    /// Subjects with evidence against them that have not failed.
    pub(crate) fn accused(&self) -> impl ExactSizeIterator<Item = &NodeId> {
        self.accused.iter()
    }

    /// Whether a subject has evidence against it and has not failed.
    pub(crate) fn is_accused(&self, subject: NodeId) -> bool {
        self.accused.contains(&subject)
    }

    /// Whether a member should be replaced as a watcher: it failed, a strong report says that its process is
    /// gone, or it is under suspicion for longer than a refutation takes.
    pub(crate) fn is_unreliable_watcher(&self, now: Time, subject: NodeId, suspicion: Duration) -> bool {
        self.cases.get(&subject).is_some_and(|case| {
            case.failed
                || case.reports.values().any(|report| report.evidence.claim.strength == Strength::Strong)
                || case.since().is_some_and(|since| since + suspicion <= now)
        })
    }

    /// When the first report came, if all reports are weak and this node was running when they were made. A
    /// node that joins also receives old reports, of members that fell silent long ago; those have `since`
    /// zero.
    pub(crate) fn silent_since(&self, subject: NodeId) -> Option<Time> {
        let case = self.cases.get(&subject)?;
        let is_weak = |report: &Report| report.evidence.claim.strength == Strength::Weak;
        case.since().filter(|since| *since > Time::ZERO && case.reports.values().all(is_weak))
    }

    /// When the first report on the subject's current header came.
    pub(crate) fn accused_since(&self, subject: NodeId) -> Option<Time> {
        self.cases.get(&subject).and_then(Case::since)
    }

    /// Reports on the subject's current header, for nodes that lack them.
    pub(crate) fn reports(&self, subject: NodeId) -> impl Iterator<Item = &Evidence> {
        self.cases
            .get(&subject)
            .into_iter()
            .flat_map(|case| case.reports.values())
            .map(|report| &report.evidence)
    }

    /// Drops accusations outside the window.
    pub(crate) fn prune(&mut self, now: Time) {
        self.accusations.retain(|_, recent| {
            recent.retain(|(at, _)| now.since(*at) < ACCUSATIONS_WINDOW);
            !recent.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    const SUSPICION: Duration = Duration::from_millis(800);

    struct Fixture {
        liveness: Liveness,
        present: BTreeSet<NodeId>,
    }

    fn identity(seed: u8) -> Identity {
        Identity::from_seed(&[seed; 32])
    }

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    impl Fixture {
        fn of(members: u8) -> Self {
            let mut liveness = Liveness::default();
            let present: BTreeSet<NodeId> = (0..members).map(|seed| identity(seed).id()).collect();
            present.iter().for_each(|id| {
                liveness.renew(*id, Incarnation(1), Version(1));
            });
            Self { liveness, present }
        }

        fn accuse(&mut self, ms: u64, observer: u8, subject: u8, strength: Strength) -> EvidenceEffect {
            self.accuse_header(ms, [observer, subject], Version(1), strength)
        }

        fn accuse_header(
            &mut self,
            ms: u64,
            [observer, subject]: [u8; 2],
            version: Version,
            strength: Strength,
        ) -> EvidenceEffect {
            let claim = Claim {
                observer: identity(observer).id(),
                subject: identity(subject).id(),
                incarnation: Incarnation(1),
                version,
                strength,
            };
            self.liveness.record(at(ms), claim.sign(&identity(observer), "home"), at(ms))
        }

        fn verdict(&mut self, ms: u64, subject: u8) -> Verdict {
            self.liveness.conclude(at(ms), identity(subject).id(), &self.present, SUSPICION)
        }
    }

    use Strength::{Strong, Weak};

    #[test]
    fn two_strong_reports_fail_at_once_and_one_does_not() {
        let mut fixture = Fixture::of(5);
        fixture.accuse(0, 1, 0, Strong);
        assert_eq!(fixture.verdict(10_000, 0), Verdict::Suspect(None));
        assert_eq!(
            fixture.accuse(10_000, 1, 0, Strong),
            EvidenceEffect::Known,
            "repeating oneself adds no weight"
        );
        fixture.accuse(10_001, 2, 0, Strong);
        assert_eq!(fixture.verdict(10_001, 0), Verdict::Failed);
    }

    #[test]
    fn weak_reports_leave_time_to_refute() {
        let mut fixture = Fixture::of(5);
        fixture.accuse(0, 1, 0, Weak);
        fixture.accuse(300, 2, 0, Weak);
        assert_eq!(fixture.verdict(300, 0), Verdict::Suspect(Some(at(800))));
        assert!(fixture.liveness.renew(identity(0).id(), Incarnation(1), Version(2)));
        assert_eq!(fixture.verdict(900, 0), Verdict::Clear);
        assert_eq!(
            fixture.accuse(900, 3, 0, Strong),
            EvidenceEffect::Void,
            "it refers to the header that was refuted"
        );
    }

    #[test]
    fn what_refers_to_a_header_that_nobody_has_stated_weighs_nothing_until_it_comes() {
        let mut fixture = Fixture::of(5);
        for observer in [1, 2] {
            fixture.accuse_header(0, [observer, 0], Version(u64::MAX), Strong);
        }
        fixture.accuse_header(0, [3, 0], Version(2), Strong);
        assert_eq!(fixture.verdict(10_000, 0), Verdict::Clear);
        assert!(!fixture.liveness.is_unreliable_watcher(at(10_000), identity(0).id(), SUSPICION));
        assert_eq!(fixture.liveness.reports(identity(0).id()).count(), 0);
        fixture.liveness.renew(identity(0).id(), Incarnation(1), Version(2));
        assert_eq!(fixture.verdict(10_000, 0), Verdict::Suspect(None), "the third was only early");
        fixture.liveness.renew(identity(0).id(), Incarnation(1), Version(3));
        assert_eq!(fixture.verdict(20_000, 0), Verdict::Clear);
    }

    #[test]
    fn invented_reports_take_no_room_from_those_that_count() {
        let mut fixture = Fixture::of(30);
        for observer in 1..20 {
            fixture.accuse_header(0, [observer, 0], Version(u64::MAX), Strong);
        }
        let full = fixture.accuse_header(0, [20, 0], Version(u64::MAX), Strong);
        assert_eq!(full, EvidenceEffect::Known, "there is a bound");
        let nearer = fixture.accuse_header(0, [20, 0], Version(2), Strong);
        assert_eq!(nearer, EvidenceEffect::New, "it takes the place of one that is farther ahead");
        for observer in 1..20 {
            fixture.accuse(0, observer, 0, Weak);
        }
        assert_eq!(fixture.verdict(0, 0), Verdict::Suspect(Some(at(800))));
        fixture.accuse(1, 21, 0, Strong);
        fixture.accuse(1, 22, 0, Strong);
        assert_eq!(fixture.verdict(1, 0), Verdict::Failed, "true reports find room");
    }

    #[test]
    fn weak_reports_that_nobody_refutes_fail_in_time() {
        let mut fixture = Fixture::of(5);
        fixture.accuse(0, 1, 0, Weak);
        fixture.accuse(700, 2, 0, Strong);
        assert_eq!(fixture.verdict(799, 0), Verdict::Suspect(Some(at(800))));
        assert_eq!(fixture.verdict(800, 0), Verdict::Failed);
    }

    #[test]
    fn silent_is_only_what_was_not_refused_and_fell_silent_while_this_node_listened() {
        let silent = |reports: &[(u64, u8, Strength)]| {
            let mut fixture = Fixture::of(5);
            reports
                .iter()
                .for_each(|(ms, observer, strength)| _ = fixture.accuse(*ms, *observer, 0, *strength));
            assert_eq!(fixture.verdict(10_000, 0), Verdict::Failed);
            fixture.liveness.silent_since(identity(0).id())
        };
        assert_eq!(silent(&[(1, 1, Weak), (2, 2, Weak)]), Some(at(1)));
        assert_eq!(silent(&[(1, 1, Weak), (2, 2, Strong)]), None);
        assert_eq!(silent(&[(1, 1, Strong), (2, 2, Strong)]), None);
        assert_eq!(silent(&[(0, 1, Weak), (0, 2, Weak)]), None, "a newcomer hears of it");
        assert_eq!(Fixture::of(5).liveness.silent_since(identity(0).id()), None);
    }

    #[test]
    fn the_last_of_two_needs_no_confirmation() {
        let mut fixture = Fixture::of(2);
        fixture.accuse(0, 1, 0, Strong);
        assert_eq!(fixture.verdict(0, 0), Verdict::Failed);
    }

    #[test]
    fn the_accused_cannot_confirm_so_one_survivor_of_many_suffices() {
        let mut fixture = Fixture::of(4);
        fixture.accuse(0, 3, 0, Strong);
        fixture.accuse(0, 3, 1, Strong);
        assert_eq!(
            fixture.verdict(0, 0),
            Verdict::Suspect(None),
            "member 2 is not accused and could confirm"
        );
        fixture.accuse(1, 3, 2, Strong);
        for subject in (0..3).rev() {
            assert_eq!(fixture.verdict(1, subject), Verdict::Failed);
            fixture.present.remove(&identity(subject).id());
        }
    }

    #[test]
    fn who_accuses_many_is_not_believed_at_once() {
        let mut fixture = Fixture::of(20);
        (1..10).for_each(|subject| {
            fixture.accuse(0, 0, subject, Strong);
        });
        fixture.accuse(0, 11, 1, Strong);
        assert_eq!(
            fixture.verdict(0, 1),
            Verdict::Suspect(Some(at(800))),
            "nine in one moment: perhaps it is cut off itself"
        );
        assert_eq!(fixture.verdict(800, 1), Verdict::Failed);
    }

    #[test]
    fn whom_others_confirm_is_believed_however_many_die() {
        let mut fixture = Fixture::of(20);
        for subject in 1..10 {
            fixture.accuse(0, 0, subject, Strong);
            fixture.accuse(0, 11, subject, Strong);
            assert_eq!(fixture.verdict(0, subject), Verdict::Failed, "{subject}");
            fixture.present.remove(&identity(subject).id());
        }
    }

    #[test]
    fn a_new_life_clears_the_dead() {
        let mut fixture = Fixture::of(2);
        fixture.accuse(0, 1, 0, Strong);
        assert_eq!(fixture.verdict(0, 0), Verdict::Failed);
        assert!(fixture.liveness.renew(identity(0).id(), Incarnation(2), Version(1)));
        assert_eq!(fixture.verdict(1, 0), Verdict::Clear);
    }

    #[test]
    fn evidence_is_signed_by_its_observer_for_one_cluster() {
        let claim = Claim {
            observer: identity(1).id(),
            subject: identity(2).id(),
            incarnation: Incarnation(1),
            version: Version(1),
            strength: Weak,
        };
        let mut evidence = claim.sign(&identity(1), "home");
        assert!(evidence.is_signed("home"));
        assert!(!evidence.is_signed("away"));
        evidence.claim.strength = Strong;
        assert!(!evidence.is_signed("home"));
    }
}
