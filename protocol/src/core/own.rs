//! [`OwnState`]: state of this node's own statements (profile, version, floor, tombstones, unpublished
//! entries), and the reports to which the node must react.

use std::{collections::VecDeque, time::Duration};

use crate::{
    Incarnation, NodeId, Time, Version,
    io::Profile,
    record::{ADDRESSES_MAX, Entry, Header, Presence},
};

/// Protocol version of this build. Version 2 added epochs to journal entries and times to pings. Version 3
/// added origin, ports and checks to instances, and parts for instances that do not fit into one entry.
pub(super) const PROTOCOL: u16 = 3;
/// Shortest interval of two refutations: a tenth of the time in which this node can refute.
pub(super) const REFUTE_INTERVAL: Duration = Duration::from_millis(100);

/// Statements of this node, and the reports to which it must react.
#[derive(Debug)]
pub(super) struct OwnState {
    pub(super) incarnation: Incarnation,
    pub(super) version: Version,
    pub(super) profile: Profile,
    pub(super) presence: Presence,
    pub(super) floor: Version,
    pub(super) floor_raised: Time,
    boot: u64,
    /// When each tombstone was stated, oldest first.
    pub(super) tombstones: VecDeque<(Time, Version)>,
    /// Entries that are stated but not yet published.
    pub(super) unsent: Vec<Entry>,
    pub(super) last_flush: Time,
    pub(super) flush_at: Option<Time>,
    /// When this node last refuted a report.
    pub(super) last_refutation: Option<Time>,
    pub(super) pending_refutation: Option<NodeId>,
}

impl OwnState {
    pub(super) fn new(incarnation: Incarnation, profile: Profile, boot: u64, now: Time) -> Self {
        Self {
            incarnation,
            version: Version(0),
            profile,
            presence: Presence::Running,
            floor: Version(0),
            floor_raised: now,
            boot,
            tombstones: VecDeque::new(),
            unsent: Vec::new(),
            last_flush: Time::ZERO,
            flush_at: None,
            last_refutation: None,
            pending_refutation: None,
        }
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) fn has_left(&self) -> bool {
        self.presence == Presence::Left
    }

    pub(super) fn flush_at(&self) -> Option<Time> {
        self.flush_at
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        if self.has_left() {
            return None;
        }
        self.pending_refutation.and(self.last_refutation).map(|at| at + REFUTE_INTERVAL)
    }

    pub(super) fn header(&self) -> Header {
        Header {
            name: self.profile.name.clone(),
            addresses: self.profile.addresses.iter().take(ADDRESSES_MAX).cloned().collect(),
            http: self.profile.http.clone(),
            roles: self.profile.roles.clone(),
            zone: self.profile.zone.clone(),
            software: self.profile.software.clone(),
            protocol: PROTOCOL,
            floor: self.floor,
            presence: self.presence,
            boot: self.boot,
            ephemeral: self.profile.ephemeral,
            grpc: self.profile.grpc.clone(),
        }
    }
}
