//! State of key clashes (two processes under one key), for [`super::clash`]: the younger process under this
//! node's key, and received claims on other keys, kept for peers that connect later.

use std::{collections::BTreeMap, time::Duration};

use crate::{Incarnation, NodeId, Time, wire::Clash};

/// A younger process that has not stopped within this time is assumed never to stop: no more claims are sent
/// to it, and a node that was waiting reclaims its key.
pub(super) const RECLAIM_AFTER: Duration = Duration::from_secs(5);
/// Time for which a claim is forwarded to peers that connect under its key.
pub(super) const PASS_ON_FOR: Duration = Duration::from_secs(60);
/// Claims kept. Each takes 120 bytes. More than a few at a time would be an attack by members.
const CLAIMS_MAX: usize = 64;

/// A younger process that runs under this node's key.
#[derive(Clone, Copy, Debug)]
pub(super) struct YoungerProcess {
    pub(super) incarnation: Incarnation,
    pub(super) since: Time,
    /// When the next claim is sent to the younger process.
    pub(super) next_claim_at: Time,
    /// Number of claims sent. Gossip floods no message twice, so each claim carries this number.
    pub(super) claims_sent: u32,
}

/// The clash over this node's key, and the claims on other keys.
#[derive(Debug)]
pub(super) struct KeyClash {
    /// Incarnation with which this process began. A higher incarnation after a reclaim does not make the
    /// process younger.
    pub(super) born: Incarnation,
    pub(super) younger: Option<YoungerProcess>,
    /// When this process last reclaimed its key.
    pub(super) reclaimed_at: Option<Time>,
    /// Newest claim on each key, and when it arrived.
    pub(super) claims: BTreeMap<NodeId, (Time, Clash)>,
}

impl KeyClash {
    pub(super) fn new(born: Incarnation) -> Self {
        Self { born, younger: None, reclaimed_at: None, claims: BTreeMap::new() }
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.younger.map(|u| u.next_claim_at.min(u.since + RECLAIM_AFTER))
    }

    /// Whether this is the incarnation of the younger process, which this node has not yet superseded.
    pub(super) fn is_younger_life(&self, incarnation: Incarnation) -> bool {
        self.younger.is_some_and(|younger| younger.incarnation == incarnation)
    }

    /// Keeps a claim for peers that connect later. Returns whether there was room.
    pub(super) fn keep_claim(&mut self, now: Time, clash: Clash) -> bool {
        self.claims.retain(|_, (at, _)| now.since(*at) < PASS_ON_FOR);
        let room = self.claims.len() < CLAIMS_MAX || self.claims.contains_key(&clash.claim.node);
        if room {
            self.claims.insert(clash.claim.node, (now, clash));
        }
        room
    }
}
