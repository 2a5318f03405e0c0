//! Keeping the replica set of all replicas equal: each is told of a change at once, and again until it has answered.

use std::collections::BTreeSet;

use super::{
    Journal, Output,
    message::{JournalRequest, JournalResponse},
    replica_set::Generation,
};
use crate::{NodeId, Time, sync::Ticket};

/// Where the exchange of replica sets with a replica stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SetExchange {
    /// It is told once this time has come.
    Due(Time),
    /// It is being told; `stale`: the set has changed since.
    Telling { ticket: Ticket, stale: bool },
    /// It has what is here.
    Done,
}

impl Default for SetExchange {
    fn default() -> Self {
        Self::Due(Time::ZERO)
    }
}

impl Journal {
    /// The number of replicas that a majority is counted of.
    pub fn replicas_counted(&self) -> usize {
        self.replicas_counted
    }

    /// Counts again, after the replica set or the live replicas have changed.
    pub(super) fn recount(&mut self) {
        self.replicas_counted = match self.config.replicas_expected {
            Some(expected) => expected.get(),
            None => self.counted().len(),
        };
    }

    /// The replicas that a majority is counted of, where no number is configured: the replica set, and ephemeral replicas while they are alive.
    pub fn counted(&self) -> BTreeSet<NodeId> {
        let alive = self.replicas.keys().copied();
        self.replica_set.members().chain(alive).chain([self.me.id()]).collect()
    }

    /// The replica set, as it is kept on disk.
    pub fn replica_set(&self) -> Vec<Generation> {
        self.replica_set.generations()
    }

    /// This node keeps the topic.
    pub(super) fn join_replica_set(&mut self) {
        if !self.config.ephemeral {
            self.add_to_replica_set(Time::ZERO, self.me.id());
        }
        self.recount();
    }

    /// A durable replica is alive.
    pub(super) fn add_to_replica_set(&mut self, now: Time, replica: NodeId) {
        let changed = self.replica_set.add(replica);
        self.keep(now, changed);
    }

    /// An operator gave up a replica. One that is alive remains.
    pub(super) fn forget_replica(&mut self, now: Time, replica: NodeId) {
        if replica != self.me.id() && !self.replicas.contains_key(&replica) {
            let changed = self.replica_set.forget(replica);
            self.keep(now, changed);
        }
    }

    /// Merges the set of a replica; the set of any other peer counts for nothing.
    pub(super) fn merge_replica_set(
        &mut self,
        now: Time,
        from: NodeId,
        theirs: Vec<Generation>,
    ) -> JournalResponse {
        if !self.replicas.contains_key(&from) {
            return JournalResponse::Unable;
        }
        let was: Vec<NodeId> =
            self.replicas.keys().copied().filter(|id| self.replica_set.contains(*id)).collect();
        let changed = self.replica_set.merge(theirs);
        self.keep(now, changed);
        // Forgotten elsewhere, and alive here.
        was.into_iter().for_each(|alive| self.add_to_replica_set(now, alive));
        self.join_replica_set();
        JournalResponse::Replicas(self.replica_set.generations())
    }

    /// Keeps what changed in the set, and tells all replicas.
    fn keep(&mut self, now: Time, changed: impl IntoIterator<Item = Generation>) {
        for generation in changed {
            self.recount();
            self.out.push_back(Output::KeepReplica(generation));
            for replica in self.replicas.values_mut() {
                replica.set_exchange = match replica.set_exchange {
                    SetExchange::Telling { ticket, .. } => SetExchange::Telling { ticket, stale: true },
                    SetExchange::Due(_) | SetExchange::Done => SetExchange::Due(now),
                };
            }
        }
    }

    /// When the next replica is to be told.
    pub(super) fn next_exchange(&self) -> Option<Time> {
        let connected = self.replicas.values().filter(|replica| replica.connected);
        let due = connected.filter_map(|replica| match replica.set_exchange {
            SetExchange::Due(at) => Some(at),
            SetExchange::Telling { .. } | SetExchange::Done => None,
        });
        due.min()
    }

    /// Tells each connected replica that is due.
    pub(super) fn exchange_replica_sets(&mut self, now: Time) {
        let due = |exchange| matches!(exchange, SetExchange::Due(at) if at <= now);
        let peers: Vec<NodeId> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.connected && due(replica.set_exchange))
            .map(|(id, _)| *id)
            .collect();
        for peer in peers {
            let ticket = Ticket(self.next());
            if let Some(replica) = self.replicas.get_mut(&peer) {
                replica.set_exchange = SetExchange::Telling { ticket, stale: false };
            }
            let request = JournalRequest::Replicas(self.replica_set.generations());
            self.out.push_back(Output::Request(peer, ticket, request));
        }
    }

    /// A replica answers to being told, or will not. Returns whether this was such an answer.
    pub(super) fn replica_set_answered(
        &mut self,
        now: Time,
        from: NodeId,
        ticket: Ticket,
        response: Option<&JournalResponse>,
    ) -> bool {
        let retry_at = now + self.config.repair_interval;
        let Some(replica) = self.replicas.get_mut(&from) else { return false };
        let SetExchange::Telling { ticket: expected, stale } = replica.set_exchange else { return false };
        if expected != ticket {
            return false;
        }
        replica.set_exchange = match response {
            Some(JournalResponse::Replicas(_)) if stale => SetExchange::Due(now),
            Some(JournalResponse::Replicas(_)) => SetExchange::Done,
            // Lost, or a version before replica sets.
            _ => SetExchange::Due(retry_at),
        };
        if let Some(JournalResponse::Replicas(theirs)) = response {
            self.merge_replica_set(now, from, theirs.clone());
        }
        true
    }
}
