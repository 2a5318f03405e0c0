//! From evidence to verdict.
//!
//! Timeouts alone are either slow or wrong. So nodes say what they *saw* of another, signed, and everybody draws the same
//! conclusion from the same evidence:
//!
//! - Two independent **strong** reports (its address refuses connections: the process is gone) fail a member at once.
//! - Two reports of which one is **weak** (it does not answer) make it a suspect, and fail it if it has not refuted in time.
//! - One report suffices where no other member is left that could confirm it.
//! - Evidence refers to a version of the subject's header. The subject refutes by stating a newer one, which makes all evidence before it
//!   void, for ever and in any order of arrival. A new incarnation does the same.
//! - An observer that accuses many is taken for the one with the fault: its strong reports count as weak.
//!
//! Evidence is kept per observer, so that repeating oneself adds no weight. This module only weighs; what a node itself sees
//! is [`watch`](crate::watch)'s business.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Identity, Incarnation, NodeId, Time, Version, id::Signature, record::signed_bytes};

/// Reports kept against one subject. Two decide; more only explain.
const REPORTS_MAX: usize = 8;
/// How far back an observer's accusations are counted together.
const ACCUSATIONS_WINDOW: Duration = Duration::from_secs(10);
/// An observer that accuses more members than this within the window, and more than an eighth of all, is not believed alone. Accusations that
/// turned out to be true do not count: where processes really die one after the other, each death is to be known as fast as the first.
const ACCUSATIONS_MAX: usize = 4;

/// How sure an observer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Strength {
    /// It does not answer.
    Weak,
    /// Its address refuses: the process is gone.
    Strong,
}

/// What one node saw of another's liveness, signed by the observer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Evidence {
    /// What was seen.
    pub claim: Claim,
    signature: Signature,
}

/// The content of [`Evidence`]: `observer` says that `subject`, as of this version of its header, is gone or silent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// Who saw it.
    pub observer: NodeId,
    /// Of whom.
    pub subject: NodeId,
    /// In which life of the subject.
    pub incarnation: Incarnation,
    /// As of which header; a newer one refutes.
    pub version: Version,
    /// How sure.
    pub strength: Strength,
}

impl Claim {
    /// Signs the claim for a cluster.
    pub fn sign(self, me: &Identity, cluster: &str) -> Evidence {
        let signature = me.sign(&signed_bytes("evidence", cluster, &self));
        Evidence { claim: self, signature }
    }
}

impl Evidence {
    /// Whether its observer said this, in this cluster.
    pub fn is_signed(&self, cluster: &str) -> bool {
        self.claim.observer.has_signed(&signed_bytes("evidence", cluster, &self.claim), &self.signature)
    }
}

/// What became of evidence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// It adds weight.
    News,
    /// Said before, or the verdict needs no more of it.
    Known,
    /// Refuted already, or about a life or a node that is not current here.
    Void,
}

/// What to conclude of a subject right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing valid speaks against it.
    Clear,
    /// Something does. Fails at the moment given, unless refuted; `None`: waits for a second report.
    Suspect(Option<Time>),
    /// Dead.
    Failed,
}

#[derive(Debug)]
struct Case {
    incarnation: Incarnation,
    version: Version,
    /// Of this header, and of later ones: evidence may be faster than the header to which it refers. It weighs nothing until that has come,
    /// because what nobody has stated nobody can refute.
    reports: BTreeMap<NodeId, Report>,
    failed: bool,
}

#[derive(Debug)]
struct Report {
    evidence: Evidence,
    /// Since when its subject could refute it.
    since: Time,
}

impl Case {
    /// The reports that count.
    fn current(&self) -> impl Iterator<Item = &Report> {
        self.reports.values().filter(|report| report.evidence.claim.version == self.version)
    }

    /// When the first of them came.
    fn since(&self) -> Option<Time> {
        self.current().map(|report| report.since).min()
    }
}

/// The evidence against every member.
#[derive(Debug, Default)]
pub struct Liveness {
    cases: BTreeMap<NodeId, Case>,
    /// Those with any report against them, not yet failed.
    accused: BTreeSet<NodeId>,
    accusations: BTreeMap<NodeId, VecDeque<(Time, NodeId)>>,
}

impl Liveness {
    /// A member, or a newer header of one: whatever referred to an older header is void. Returns whether there was anything.
    pub fn renew(&mut self, subject: NodeId, incarnation: Incarnation, version: Version) -> bool {
        let case = self.cases.entry(subject).or_insert_with(|| Case {
            incarnation,
            version,
            reports: BTreeMap::new(),
            failed: false,
        });
        if (incarnation, version) <= (case.incarnation, case.version) {
            return false;
        }
        let was = case.failed || case.current().next().is_some();
        (case.incarnation, case.version) = (incarnation, version);
        case.failed = false;
        case.reports.retain(|_, report| {
            let claim = &report.evidence.claim;
            (claim.incarnation, claim.version) >= (incarnation, version)
        });
        match case.current().next() {
            Some(_) => _ = self.accused.insert(subject),
            None => _ = self.accused.remove(&subject),
        }
        was
    }

    /// It is remembered no longer, or has left, so that nothing needs to be concluded of it.
    pub fn dismiss(&mut self, subject: NodeId) {
        self.cases.remove(&subject);
        self.accused.remove(&subject);
        self.accusations.remove(&subject);
    }

    /// Whether this evidence would add weight. Does not look at the signature, so ask before paying for checking that.
    pub fn weigh(&self, claim: &Claim) -> Heard {
        let Some(case) = self.cases.get(&claim.subject) else { return Heard::Void };
        if (claim.incarnation, claim.version) < (case.incarnation, case.version)
            || claim.incarnation != case.incarnation
        {
            return Heard::Void;
        }
        let known = case.reports.get(&claim.observer).is_some_and(|report| {
            let known = &report.evidence.claim;
            (known.version, known.strength) >= (claim.version, claim.strength)
        });
        if case.failed || known || case.reports.len() >= REPORTS_MAX { Heard::Known } else { Heard::News }
    }

    /// Takes evidence whose signature was checked. `since`: when its subject could first refute it; now, unless others have waited already.
    pub fn hear(&mut self, now: Time, evidence: Evidence, since: Time) -> Heard {
        let heard = self.weigh(&evidence.claim);
        if heard == Heard::News
            && let Some(case) = self.cases.get_mut(&evidence.claim.subject)
        {
            let Claim { observer, subject, version, .. } = evidence.claim;
            let before =
                case.reports.get(&observer).filter(|report| report.evidence.claim.version == version);
            let since = before.map_or(since, |report| report.since.min(since));
            case.reports.insert(observer, Report { evidence, since });
            if version == case.version {
                self.accused.insert(subject);
                self.count_accusation(now, observer, subject);
            }
        }
        heard
    }

    fn count_accusation(&mut self, now: Time, observer: NodeId, subject: NodeId) {
        let recent = self.accusations.entry(observer).or_default();
        recent.retain(|(at, accused)| now.since(*at) < ACCUSATIONS_WINDOW && *accused != subject);
        recent.push_back((now, subject));
        // More of them change nothing: it is over any limit by then.
        if recent.len() > self.cases.len() {
            recent.pop_front();
        }
    }

    /// Whoever said that it is gone was right.
    fn vindicate(&mut self, subject: NodeId) {
        for recent in self.accusations.values_mut() {
            recent.retain(|(_, accused)| *accused != subject);
        }
    }

    /// Accuses so many that the fault is more likely its own.
    fn is_doubtful(&self, now: Time, observer: NodeId) -> bool {
        let recent = self.accusations.get(&observer).into_iter().flatten();
        let count = recent.filter(|(at, _)| now.since(*at) < ACCUSATIONS_WINDOW).count();
        count > ACCUSATIONS_MAX && count > self.cases.len() / 8
    }

    /// Concludes. `is_present` says who is alive or suspect, ourselves included; `suspicion` how long a suspect may take to refute. Once
    /// [`Verdict::Failed`], always so until renewed.
    pub fn conclude(
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
        let has_reported = |id: &NodeId| {
            case.reports.get(id).is_some_and(|report| report.evidence.claim.version == case.version)
        };
        let claims = case.current().map(|report| &report.evidence.claim);
        let strong = claims
            .filter(|claim| claim.strength == Strength::Strong && !self.is_doubtful(now, claim.observer))
            .count();
        // Who could still confirm: present, unaccused, neither the subject (it is accused) nor one that has reported already.
        let other =
            present.iter().any(|id| !self.accused.contains(id) && !has_reported(id) && *id != subject);
        let needed = if other { 2 } else { 1 };
        let verdict = if strong >= needed {
            Verdict::Failed
        } else if case.current().count() < needed {
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
                self.vindicate(subject);
            }
        }
        verdict
    }

    /// This node overslept: a refutation may wait unread, so the time for it begins anew.
    pub fn forgive(&mut self, now: Time) {
        for subject in &self.accused {
            if let Some(case) = self.cases.get_mut(subject) {
                case.reports.values_mut().for_each(|report| report.since = report.since.max(now));
            }
        }
    }

    /// Those with evidence against them who are not failed.
    pub fn accused(&self) -> impl ExactSizeIterator<Item = &NodeId> {
        self.accused.iter()
    }

    /// Whether there is evidence against it, and it is not failed.
    pub fn is_accused(&self, subject: NodeId) -> bool {
        self.accused.contains(&subject)
    }

    /// Whether it should no longer be relied upon as a watcher: known to be gone, or suspected for longer than a refutation takes.
    pub fn is_doubted(&self, now: Time, subject: NodeId, suspicion: Duration) -> bool {
        self.cases.get(&subject).is_some_and(|case| {
            case.failed
                || case.current().any(|report| report.evidence.claim.strength == Strength::Strong)
                || case.since().is_some_and(|since| since + suspicion <= now)
        })
    }

    /// When its silence was reported first, if that is all that speaks against it: weak reports, and new to
    /// this node. A newcomer hears of members that died long ago, and that is no silence of this moment.
    pub fn silent_since(&self, subject: NodeId) -> Option<Time> {
        let case = self.cases.get(&subject)?;
        let is_weak = |report: &Report| report.evidence.claim.strength == Strength::Weak;
        case.since().filter(|since| *since > Time::ZERO && case.current().all(is_weak))
    }

    /// Since when somebody has been accusing it.
    pub fn accused_since(&self, subject: NodeId) -> Option<Time> {
        self.cases.get(&subject).and_then(Case::since)
    }

    /// What speaks against it, for those who do not know.
    pub fn reports(&self, subject: NodeId) -> impl Iterator<Item = &Evidence> {
        self.cases.get(&subject).into_iter().flat_map(Case::current).map(|report| &report.evidence)
    }

    /// Drops what only served counting.
    pub fn tidy(&mut self, now: Time) {
        self.accusations.retain(|_, recent| {
            recent.retain(|(at, _)| now.since(*at) < ACCUSATIONS_WINDOW);
            !recent.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPICION: Duration = Duration::from_millis(800);

    struct Court {
        liveness: Liveness,
        present: BTreeSet<NodeId>,
    }

    fn who(seed: u8) -> Identity {
        Identity::from_seed(&[seed; 32])
    }

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    impl Court {
        fn of(members: u8) -> Self {
            let mut liveness = Liveness::default();
            let present: BTreeSet<NodeId> = (0..members).map(|seed| who(seed).id()).collect();
            present.iter().for_each(|id| {
                liveness.renew(*id, Incarnation(1), Version(1));
            });
            Self { liveness, present }
        }

        fn accuse(&mut self, ms: u64, observer: u8, subject: u8, strength: Strength) -> Heard {
            self.accuse_header(ms, observer, subject, Version(1), strength)
        }

        fn accuse_header(
            &mut self,
            ms: u64,
            observer: u8,
            subject: u8,
            version: Version,
            strength: Strength,
        ) -> Heard {
            let claim = Claim {
                observer: who(observer).id(),
                subject: who(subject).id(),
                incarnation: Incarnation(1),
                version,
                strength,
            };
            self.liveness.hear(at(ms), claim.sign(&who(observer), "home"), at(ms))
        }

        fn verdict(&mut self, ms: u64, subject: u8) -> Verdict {
            self.liveness.conclude(at(ms), who(subject).id(), &self.present, SUSPICION)
        }
    }

    use Strength::{Strong, Weak};

    #[test]
    fn two_strong_reports_fail_at_once_and_one_does_not() {
        let mut court = Court::of(5);
        court.accuse(0, 1, 0, Strong);
        assert_eq!(court.verdict(10_000, 0), Verdict::Suspect(None));
        assert_eq!(court.accuse(10_000, 1, 0, Strong), Heard::Known, "repeating oneself adds no weight");
        court.accuse(10_001, 2, 0, Strong);
        assert_eq!(court.verdict(10_001, 0), Verdict::Failed);
    }

    #[test]
    fn weak_reports_leave_time_to_refute() {
        let mut court = Court::of(5);
        court.accuse(0, 1, 0, Weak);
        court.accuse(300, 2, 0, Weak);
        assert_eq!(court.verdict(300, 0), Verdict::Suspect(Some(at(800))));
        assert!(court.liveness.renew(who(0).id(), Incarnation(1), Version(2)));
        assert_eq!(court.verdict(900, 0), Verdict::Clear);
        assert_eq!(court.accuse(900, 3, 0, Strong), Heard::Void, "it refers to the header that was refuted");
    }

    #[test]
    fn what_refers_to_a_header_that_nobody_has_stated_weighs_nothing_until_it_comes() {
        let mut court = Court::of(5);
        for observer in [1, 2] {
            court.accuse_header(0, observer, 0, Version(u64::MAX), Strong);
        }
        court.accuse_header(0, 3, 0, Version(2), Strong);
        assert_eq!(court.verdict(10_000, 0), Verdict::Clear);
        assert!(!court.liveness.is_doubted(at(10_000), who(0).id(), SUSPICION));
        assert_eq!(court.liveness.reports(who(0).id()).count(), 0);
        court.liveness.renew(who(0).id(), Incarnation(1), Version(2));
        assert_eq!(court.verdict(10_000, 0), Verdict::Suspect(None), "the third was only early");
        court.liveness.renew(who(0).id(), Incarnation(1), Version(3));
        assert_eq!(court.verdict(20_000, 0), Verdict::Clear);
    }

    #[test]
    fn weak_reports_that_nobody_refutes_fail_in_time() {
        let mut court = Court::of(5);
        court.accuse(0, 1, 0, Weak);
        court.accuse(700, 2, 0, Strong);
        assert_eq!(court.verdict(799, 0), Verdict::Suspect(Some(at(800))));
        assert_eq!(court.verdict(800, 0), Verdict::Failed);
    }

    #[test]
    fn silent_is_only_what_was_not_refused_and_fell_silent_while_this_node_listened() {
        let silent = |reports: &[(u64, u8, Strength)]| {
            let mut court = Court::of(5);
            reports
                .iter()
                .for_each(|(ms, observer, strength)| _ = court.accuse(*ms, *observer, 0, *strength));
            assert_eq!(court.verdict(10_000, 0), Verdict::Failed);
            court.liveness.silent_since(who(0).id())
        };
        assert_eq!(silent(&[(1, 1, Weak), (2, 2, Weak)]), Some(at(1)));
        assert_eq!(silent(&[(1, 1, Weak), (2, 2, Strong)]), None);
        assert_eq!(silent(&[(1, 1, Strong), (2, 2, Strong)]), None);
        assert_eq!(silent(&[(0, 1, Weak), (0, 2, Weak)]), None, "a newcomer hears of it");
        assert_eq!(Court::of(5).liveness.silent_since(who(0).id()), None);
    }

    #[test]
    fn the_last_of_two_needs_no_confirmation() {
        let mut court = Court::of(2);
        court.accuse(0, 1, 0, Strong);
        assert_eq!(court.verdict(0, 0), Verdict::Failed);
    }

    #[test]
    fn the_accused_cannot_confirm_so_one_survivor_of_many_suffices() {
        let mut court = Court::of(4);
        court.accuse(0, 3, 0, Strong);
        court.accuse(0, 3, 1, Strong);
        assert_eq!(court.verdict(0, 0), Verdict::Suspect(None), "member 2 is not accused and could confirm");
        court.accuse(1, 3, 2, Strong);
        for subject in (0..3).rev() {
            assert_eq!(court.verdict(1, subject), Verdict::Failed);
            court.present.remove(&who(subject).id());
        }
    }

    #[test]
    fn who_accuses_many_is_not_believed_at_once() {
        let mut court = Court::of(20);
        (1..10).for_each(|subject| {
            court.accuse(0, 0, subject, Strong);
        });
        court.accuse(0, 11, 1, Strong);
        assert_eq!(
            court.verdict(0, 1),
            Verdict::Suspect(Some(at(800))),
            "nine in one moment: perhaps it is cut off itself"
        );
        assert_eq!(court.verdict(800, 1), Verdict::Failed);
    }

    #[test]
    fn whom_others_confirm_is_believed_however_many_die() {
        let mut court = Court::of(20);
        for subject in 1..10 {
            court.accuse(0, 0, subject, Strong);
            court.accuse(0, 11, subject, Strong);
            assert_eq!(court.verdict(0, subject), Verdict::Failed, "{subject}");
            court.present.remove(&who(subject).id());
        }
    }

    #[test]
    fn a_new_life_clears_the_dead() {
        let mut court = Court::of(2);
        court.accuse(0, 1, 0, Strong);
        assert_eq!(court.verdict(0, 0), Verdict::Failed);
        assert!(court.liveness.renew(who(0).id(), Incarnation(2), Version(1)));
        assert_eq!(court.verdict(1, 0), Verdict::Clear);
    }

    #[test]
    fn evidence_is_signed_by_its_observer_for_one_cluster() {
        let claim = Claim {
            observer: who(1).id(),
            subject: who(2).id(),
            incarnation: Incarnation(1),
            version: Version(1),
            strength: Weak,
        };
        let mut evidence = claim.sign(&who(1), "home");
        assert!(evidence.is_signed("home"));
        assert!(!evidence.is_signed("away"));
        evidence.claim.strength = Strong;
        assert!(!evidence.is_signed("home"));
    }
}
