//! Part of [`Journal`]: lets replicas join the replica set or be forgotten, exchanges the set with them, and
//! counts the replicas for a majority.
//!
//! After a change, the whole set is sent to each connected replica, and sent again until the replica answers.

use std::collections::BTreeSet;

use super::{
    io::JournalOutput,
    machine::Journal,
    message::{JournalRequest, JournalResponse},
    replica_set::{Generation, SetExchange},
};
use crate::{NodeId, Time, sync::RequestId};

impl Journal {
    /// Number of replicas counted: a majority is more than half of it.
    pub fn replicas_counted(&self) -> usize {
        self.replicas_counted
    }

    /// Updates the count. Called after the replica set or the live replicas have changed.
    pub(super) fn recount(&mut self) {
        self.replicas_counted = match self.config.replicas_expected {
            Some(expected) => expected.get(),
            None => self.counted().len(),
        };
    }

    /// The replicas counted for a majority if no number is configured: the replica set, and live ephemeral
    /// replicas.
    pub fn counted(&self) -> BTreeSet<NodeId> {
        let alive = self.replicas.keys().copied();
        self.replica_set.members().chain(alive).chain([self.identity.id()]).collect()
    }

    /// Generations of the replica set, as stored on disk.
    pub fn replica_set(&self) -> Vec<Generation> {
        self.replica_set.generations()
    }

    /// Adds this node to the replica set, if it is durable.
    pub(super) fn join_replica_set(&mut self) {
        if !self.config.ephemeral {
            self.add_to_replica_set(Time::ZERO, self.identity.id());
        }
        self.recount();
    }

    /// Adds a live durable replica.
    pub(super) fn add_to_replica_set(&mut self, now: Time, replica: NodeId) {
        let changed = self.replica_set.add(replica);
        self.record_changes(now, changed);
    }

    /// Removes a replica by an operator's order, unless it is alive.
    pub(super) fn forget_replica(&mut self, now: Time, replica: NodeId) {
        if replica != self.identity.id() && !self.replicas.contains_key(&replica) {
            let changed = self.replica_set.forget(replica);
            self.record_changes(now, changed);
        }
    }

    /// Merges the set of a replica. Sets of other peers are ignored.
    pub(super) fn merge_replica_set(
        &mut self,
        now: Time,
        from: NodeId,
        theirs: Vec<Generation>,
    ) -> JournalResponse {
        if !self.replicas.contains_key(&from) {
            return JournalResponse::Unable;
        }
        let former: Vec<NodeId> =
            self.replicas.keys().copied().filter(|id| self.replica_set.contains(*id)).collect();
        let changed = self.replica_set.merge(theirs);
        self.record_changes(now, changed);
        // A member that another node has forgotten, but that is alive here, is added again.
        former.into_iter().for_each(|alive| self.add_to_replica_set(now, alive));
        self.join_replica_set();
        JournalResponse::Replicas(self.replica_set.generations())
    }

    /// Stores the changes of the set, and schedules sending the set to all replicas.
    fn record_changes(&mut self, now: Time, changed: impl IntoIterator<Item = Generation>) {
        for generation in changed {
            self.recount();
            self.out.push_back(JournalOutput::KeepReplica(generation));
            for replica in self.replicas.values_mut() {
                replica.set_exchange = match replica.set_exchange {
                    SetExchange::Sent { request_id, .. } => SetExchange::Sent { request_id, stale: true },
                    SetExchange::Due(_) | SetExchange::Done => SetExchange::Due(now),
                };
            }
        }
    }

    /// When the set is next sent.
    pub(super) fn next_exchange(&self) -> Option<Time> {
        let connected = self.replicas.values().filter(|replica| replica.connected);
        let due = connected.filter_map(|replica| match replica.set_exchange {
            SetExchange::Due(at) => Some(at),
            SetExchange::Sent { .. } | SetExchange::Done => None,
        });
        due.min()
    }

    /// Sends the set to each connected replica that is due.
    pub(super) fn exchange_replica_sets(&mut self, now: Time) {
        let due = |exchange| matches!(exchange, SetExchange::Due(at) if at <= now);
        let peers: Vec<NodeId> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.connected && due(replica.set_exchange))
            .map(|(id, _)| *id)
            .collect();
        for peer in peers {
            let request_id = RequestId(self.next());
            if let Some(replica) = self.replicas.get_mut(&peer) {
                replica.set_exchange = SetExchange::Sent { request_id, stale: false };
            }
            let request = JournalRequest::Replicas(self.replica_set.generations());
            self.out.push_back(JournalOutput::Request(peer, request_id, request));
        }
    }

    /// Handles a response if it answers a set that was sent; returns whether it did.
    pub(super) fn replica_set_answered(
        &mut self,
        now: Time,
        from: NodeId,
        request_id: RequestId,
        response: Option<&JournalResponse>,
    ) -> bool {
        let retry_at = now + self.config.repair_interval;
        let Some(replica) = self.replicas.get_mut(&from) else { return false };
        let SetExchange::Sent { request_id: expected, stale } = replica.set_exchange else { return false };
        if expected != request_id {
            return false;
        }
        replica.set_exchange = match response {
            Some(JournalResponse::Replicas(_)) if stale => SetExchange::Due(now),
            Some(JournalResponse::Replicas(_)) => SetExchange::Done,
            // The request or its response was lost, or the replica's version does not know replica sets.
            _ => SetExchange::Due(retry_at),
        };
        if let Some(JournalResponse::Replicas(theirs)) = response {
            self.merge_replica_set(now, from, theirs.clone());
        }
        true
    }
}
