//! Part of [`Journal`]: answers each append once enough replicas have its entry on disk, or when its deadline
//! has passed. Also updates the live replicas.

use std::{collections::BTreeMap, time::Duration};

use super::{
    append::{AppendError, Appended},
    io::{Durability, JournalOutput},
    machine::Journal,
};
use crate::{NodeId, Time};

/// Interval at which deadlines are checked.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(50);

impl Journal {
    pub(super) fn set_replicas(&mut self, now: Time, alive: BTreeMap<NodeId, Durability>) {
        let me = self.identity.id();
        self.replicas.retain(|id, _| alive.contains_key(id));
        for (id, durability) in alive.into_iter().filter(|(id, _)| *id != me) {
            if durability == Durability::Durable {
                self.add_to_replica_set(now, id);
            }
            let connected = self.connected.contains(&id);
            let new = !self.replicas.contains_key(&id);
            self.replicas.entry(id).or_default().connected = connected;
            if new && connected {
                self.repair.schedule(now, id);
            }
        }
        self.recount();
    }

    /// Answers the appends that have reached their level.
    pub(super) fn confirm(&mut self) {
        if self.unconfirmed.is_empty() {
            return;
        }
        let alive = self.replicas.len();
        let expected = self.replicas_counted();
        let (extents, replicas, out) = (&self.extents, &self.replicas, &mut self.out);
        self.unconfirmed.retain(|id, appends| {
            // The append has the key of an entry whose run is still being written.
            if !extents.has(*id) {
                return true;
            }
            let others = replicas.values().filter(|replica| replica.has(*id)).count();
            appends.retain(|append| {
                let Some(level) = append.reached(others, alive, expected) else { return true };
                let done = Appended { id: *id, time: append.time, level, repeated: append.repeated };
                out.push_back(JournalOutput::Answer(append.append, Ok(done)));
                false
            });
            !appends.is_empty()
        });
    }

    /// Answers the appends whose deadline has passed.
    pub(super) fn expire_deadlines(&mut self, now: Time) {
        if self.next_expiry.is_none_or(|at| at <= now) {
            let late = self.queue.take_late(now);
            self.refuse(late, &AppendError::Late);
            let counted = self.replicas_counted();
            let out = &mut self.out;
            self.unconfirmed.retain(|id, appends| {
                appends.retain(|append| {
                    let waits = append.deadline > now;
                    if !waits {
                        out.push_back(JournalOutput::Answer(
                            append.append,
                            Err(AppendError::Indeterminate(*id, counted)),
                        ));
                    }
                    waits
                });
                !appends.is_empty()
            });
            self.request_receipts(now);
            self.next_expiry = None;
        }
        let idle = self.queue.is_empty() && self.unconfirmed.is_empty();
        self.next_expiry = if idle { None } else { self.next_expiry.or(Some(now + EXPIRY_INTERVAL)) };
    }
}
