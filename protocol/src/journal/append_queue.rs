//! [`Queue`] of appends that are not stored yet, which it groups into runs (entries that are signed and
//! written together); and [`Unconfirmed`], a stored append that waits until enough replicas have it.
//!
//! Group commit: all waiting appends become one run of this node's feed. A few runs can be written at the
//! same time, and share a sync. The more appends wait, the more of them share a signature and a sync. No
//! append waits for a timer.

use std::collections::{BTreeMap, VecDeque};

use super::{
    append::{Append, AppendError, AppendId, Level},
    clock::HybridTime,
    feed::{KEY_BYTES_MAX, RUN_BYTES_MAX, RUN_ENTRIES_MAX},
    io::WriteId,
};
use crate::Time;

/// Runs of this node's feed that are being written at the same time and share a sync. With more of them, the
/// first would wait long for the last, and a failing disk would lose more.
const RUNS_MAX: usize = 4;

/// An append that is not stored yet, with later appends of the same key.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) append: Append,
    /// Later appends with the same key. Each has its own body, which must equal the first one's.
    pub(super) followers: Vec<Append>,
}

/// Estimated memory of an append.
fn cost_bytes(append: &Append) -> usize {
    append.body.len() + append.key.as_ref().map_or(0, String::len) + size_of::<Append>()
}

impl Queued {
    pub(super) fn all(self) -> impl Iterator<Item = Append> {
        std::iter::once(self.append).chain(self.followers)
    }
}

/// An append whose entry is stored on this node's disk but not yet on enough others.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    pub(super) append: AppendId,
    pub(super) level: Option<Level>,
    pub(super) deadline: Time,
    pub(super) time: HybridTime,
    pub(super) repeated: bool,
}

impl Unconfirmed {
    pub(super) fn new(append: &Append, time: HybridTime, repeated: bool) -> Self {
        Self { append: append.id, level: append.level, deadline: append.deadline, time, repeated }
    }

    /// Returns the durability level to report to the client, or `None` while the requested level is not
    /// reached. `others`: number of other replicas that have the entry.
    pub(super) fn reached(&self, others: usize, alive: usize, expected: usize) -> Option<Level> {
        let majority = others + 1 > expected / 2;
        let reached = match others {
            0 => Level::Local,
            _ if majority => Level::Majority,
            _ => Level::Replicated,
        };
        match self.level {
            Some(Level::Majority) => majority.then_some(Level::Majority),
            Some(level) => (level <= reached).then_some(reached),
            None => (alive == 0 || others > 0).then_some(reached),
        }
    }
}

/// Appends that are not stored yet.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Appends whose key is being looked up in the database.
    looking: BTreeMap<AppendId, Queued>,
    waiting: VecDeque<Queued>,
    /// Appends that are being written, by run, in the order of their entries.
    writing: BTreeMap<WriteId, Vec<Queued>>,
    /// The first append with each key. Later appends with the same key follow it.
    keys: BTreeMap<String, AppendId>,
    bytes: usize,
}

/// First step for an append.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// Look up its key in the database.
    LookUp(AppendId, String),
    /// The append waits to be written.
    Queued,
}

impl Queue {
    pub(super) fn admit(&mut self, append: Append, bytes_max: usize) -> Result<Admitted, AppendError> {
        if let Some(key) = append.key.as_ref().filter(|key| key.is_empty() || key.len() > KEY_BYTES_MAX) {
            return Err(AppendError::BadKey(key.len()));
        }
        let queued = Queued { append, followers: Vec::new() };
        let cost = cost_bytes(&queued.append);
        if self.bytes + cost > bytes_max {
            return Err(AppendError::Busy);
        }
        self.bytes += cost;
        let Some(key) = queued.append.key.clone() else {
            self.waiting.push_back(queued);
            return Ok(Admitted::Queued);
        };
        if let Some(leader) = self.keys.get(&key).copied()
            && let Some(leader) = self.find(leader)
        {
            leader.followers.push(queued.append);
            return Ok(Admitted::Queued);
        }
        let id = queued.append.id;
        self.keys.insert(key.clone(), id);
        self.looking.insert(id, queued);
        Ok(Admitted::LookUp(id, key))
    }

    fn find(&mut self, id: AppendId) -> Option<&mut Queued> {
        let in_order = self.waiting.iter_mut().chain(self.writing.values_mut().flatten());
        self.looking.get_mut(&id).or_else(|| in_order.into_iter().find(|q| q.append.id == id))
    }

    /// Moves an append to the waiting ones, after the lookup found no entry with its key.
    pub(super) fn queue_unknown_key(&mut self, id: AppendId) {
        self.waiting.extend(self.looking.remove(&id));
    }

    /// Removes an append and its followers, after the lookup found an entry with its key.
    pub(super) fn take_known_key(&mut self, id: AppendId) -> impl Iterator<Item = Append> + use<> {
        let found = self.looking.remove(&id);
        found.map(|queued| self.release(queued)).into_iter().flatten()
    }

    /// Whether appends wait and another run may be written now.
    pub(super) fn has_run(&self) -> bool {
        !self.waiting.is_empty() && self.writing.len() < RUNS_MAX
    }

    /// Moves the appends of one run from the waiting ones to those being written under this id.
    pub(super) fn take_run(&mut self, id: WriteId) -> impl Iterator<Item = &Append> {
        let run = self.writing.entry(id).or_default();
        let mut bytes = 0;
        while run.len() < RUN_ENTRIES_MAX {
            let Some(next) = self.waiting.front() else { break };
            bytes += cost_bytes(&next.append);
            if bytes > RUN_BYTES_MAX && !run.is_empty() {
                break;
            }
            run.extend(self.waiting.pop_front());
        }
        run.iter().map(|queued| &queued.append)
    }

    /// Removes the appends of a run whose write has ended, whether or not it succeeded.
    pub(super) fn take_written(&mut self, id: WriteId) -> Vec<Vec<Append>> {
        let written = self.writing.remove(&id).unwrap_or_default();
        written.into_iter().map(|queued| self.release(queued).collect()).collect()
    }

    /// Removes all appends that are not being written.
    pub(super) fn clear(&mut self) -> Vec<Append> {
        let looking = std::mem::take(&mut self.looking).into_values();
        let all: Vec<Queued> = looking.chain(std::mem::take(&mut self.waiting)).collect();
        all.into_iter().flat_map(|queued| self.release(queued)).collect()
    }

    /// Removes the waiting appends whose deadline has passed. Appends whose key is being looked up, or that
    /// are being written, are answered when the disk has responded.
    pub(super) fn take_late(&mut self, now: Time) -> Vec<Append> {
        if self.waiting.iter().all(|queued| queued.append.deadline > now) {
            return Vec::new();
        }
        let (late, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|queued| queued.append.deadline <= now);
        self.waiting = waiting.into();
        late.into_iter().flat_map(|queued| self.release(queued)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.waiting.is_empty() && self.writing.is_empty()
    }

    /// Removes an append from the index of keys and from the count of bytes.
    fn release(&mut self, queued: Queued) -> impl Iterator<Item = Append> + use<> {
        if let Some(key) = &queued.append.key {
            self.keys.remove(key);
        }
        let all: Vec<Append> = queued.all().collect();
        let bytes: usize = all.iter().map(cost_bytes).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        all.into_iter()
    }
}
