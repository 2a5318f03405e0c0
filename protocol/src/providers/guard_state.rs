//! [`Guard`]: state of the table guard, which is the members that fell silent and the services that the guard
//! keeps listed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{NodeId, Time};

/// Greatest distance between reports of silent members that are attributed to one cause. Watchers notice a
/// silence within 5 s. If the watchers are silent, others replace them and report after
/// [`Config::unreached`](crate::Config::unreached), which takes up to 10 s more.
pub(crate) const SILENCE_WINDOW: Duration = Duration::from_secs(15);
/// Time for which instances of silent members stay listed, at most.
pub(crate) const GUARD_MAX: Duration = Duration::from_secs(60);

/// State of the table guard.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Members that fell silent within the last [`GUARD_MAX`], with the time of the first report.
    pub(super) silent: BTreeSet<(Time, NodeId)>,
    /// Services that the guard keeps listed, and until when.
    pub(super) until: BTreeMap<String, Time>,
    pub(super) kept_total: u64,
}

impl Guard {
    /// Records that a member fails by weak evidence alone.
    pub(super) fn record_silence(&mut self, now: Time, id: NodeId, since: Time) {
        self.silent.retain(|(since, other)| now.since(*since) <= GUARD_MAX && *other != id);
        self.silent.insert((since, id));
    }

    /// Records that a member is present again.
    pub(super) fn record_return(&mut self, id: NodeId) {
        self.silent.retain(|(_, silent)| *silent != id);
    }

    /// Stops keeping a service whose last unverified instance is gone.
    pub(super) fn end_keeping(&mut self, service: &str) {
        self.until.remove(service);
    }

    /// Whether the guard keeps instances of a service listed.
    pub(super) fn is_keeping(&self, service: &str) -> bool {
        self.until.contains_key(service)
    }
}
