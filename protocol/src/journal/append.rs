//! What waits to be written, and what is written and waits to be confirmed.
//!
//! Whatever waits when its turn comes goes together into one run of the own feed, and a few runs may be at the disk at the same time, where they
//! share a sync. So the more is written at once, the more share a signature and a sync, and nobody waits for a timer.

use std::collections::{BTreeMap, VecDeque};

use super::{
    WriteId,
    clock::HybridTime,
    feed::{EntryId, KEY_BYTES_MAX, RUN_BYTES_MAX, RUN_ENTRIES_MAX},
};
use crate::Time;

/// Runs of the own feed at the disk at the same time: where more waits than one takes, they share a sync. With very many, the first would wait long for
/// the last, and a failing disk would take much with it.
const RUNS_MAX: usize = 4;

/// Names an append, so that its answer finds who asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AppendId(pub u64);

/// On how many disks an entry is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// On that of the node that was asked.
    Local,
    /// On that and one other.
    Replicated,
    /// On more than half of the [replica set](super::replica_set), whichever replicas are alive at the moment.
    Majority,
}

impl Level {
    /// As it is written in requests and replies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Replicated => "replicated",
            Self::Majority => "majority",
        }
    }
}

/// Something to write down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    /// Comes back with the answer.
    pub id: AppendId,
    /// If an entry of the topic carries this key already, that entry is the answer.
    pub key: Option<String>,
    /// What.
    pub body: Vec<u8>,
    /// When to answer; `None`: `Replicated` while another replica is alive, otherwise `Local`.
    pub level: Option<Level>,
    /// Until when.
    pub deadline: Time,
}

/// It is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Its name.
    pub id: EntryId,
    /// Its time.
    pub time: HybridTime,
    /// The level it has reached.
    pub level: Level,
    /// Whether it had been written before, under the same key.
    pub repeated: bool,
}

/// Why it is not, or may not be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// Nothing was written.
    #[error("a body of {0} bytes is over the limit of {1}")]
    BodyTooLarge(usize, usize),
    /// Nothing was written.
    #[error("an idempotency key has 1 to {KEY_BYTES_MAX} bytes, this one {0}")]
    BadKey(usize),
    /// Nothing was written. Another body was written under this key before.
    #[error("this idempotency key belongs to another write")]
    KeyTaken(EntryId),
    /// Nothing was written.
    #[error("too many writes are waiting for the disk; try again")]
    Busy,
    /// Nothing was written; other nodes may have room.
    #[error("the disk is full")]
    DiskFull,
    /// The disk reported an error, and nothing more is written until the node is started again. Whether this was, shows then.
    #[error("the disk failed")]
    DiskFailed,
    /// The deadline passed before it was its turn. Nothing was written.
    #[error("the deadline passed before anything was written")]
    Late,
    /// It is on this disk, and too few others have said that they have it too. They may yet. With the number of replicas that a majority is
    /// counted of.
    #[error(
        "on the disk of this node, and not confirmed by enough others in time; a majority is counted of {1} replicas, and `node forget` takes \
         out one that is gone for good"
    )]
    Indeterminate(EntryId, usize),
}

/// Waits for the disk to be free.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) append: Append,
    /// Others with the same key and their own bodies.
    pub(super) followers: Vec<Append>,
}

/// What an append takes in memory, about.
fn cost_bytes(append: &Append) -> usize {
    append.body.len() + append.key.as_ref().map_or(0, String::len) + size_of::<Append>()
}

impl Queued {
    pub(super) fn all(self) -> impl Iterator<Item = Append> {
        std::iter::once(self.append).chain(self.followers)
    }
}

/// On the own disk, and not on enough others yet.
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

    /// The level to answer with, once it is enough.
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

/// Appends on their way to the disk.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Those with a key, while the disk looks for it.
    looking: BTreeMap<AppendId, Queued>,
    waiting: VecDeque<Queued>,
    /// At the disk, run by run, each from its first number on.
    writing: BTreeMap<WriteId, Vec<Queued>>,
    /// Who answers for a key: the append under whose id others wait.
    keys: BTreeMap<String, AppendId>,
    bytes: usize,
}

/// What becomes of an append.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// The disk must say first whether the key is taken.
    LookUp(AppendId, String),
    /// It waits.
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

    /// The disk knows no entry with the key of this append.
    pub(super) fn unknown_key(&mut self, id: AppendId) {
        self.waiting.extend(self.looking.remove(&id));
    }

    /// The disk knows one. It answers for this append and all that waited with it.
    pub(super) fn known_key(&mut self, id: AppendId) -> impl Iterator<Item = Append> + use<> {
        let found = self.looking.remove(&id);
        found.map(|queued| self.done(queued)).into_iter().flatten()
    }

    /// Whether something waits, and the disk has room for another run.
    pub(super) fn has_run(&self) -> bool {
        !self.waiting.is_empty() && self.writing.len() < RUNS_MAX
    }

    /// Takes what fits into one run, which has this name at the disk.
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

    /// A run that was at the disk is there, or is not.
    pub(super) fn written(&mut self, id: WriteId) -> Vec<Vec<Append>> {
        let written = self.writing.remove(&id).unwrap_or_default();
        written.into_iter().map(|queued| self.done(queued).collect()).collect()
    }

    /// Gives up everything that is not at the disk.
    pub(super) fn clear(&mut self) -> Vec<Append> {
        let looking = std::mem::take(&mut self.looking).into_values();
        let all: Vec<Queued> = looking.chain(std::mem::take(&mut self.waiting)).collect();
        all.into_iter().flat_map(|queued| self.done(queued)).collect()
    }

    /// Takes out what waits for its turn and should have had it. What is looked up or at the disk is answered when the disk answers.
    pub(super) fn late(&mut self, now: Time) -> Vec<Append> {
        if self.waiting.iter().all(|queued| queued.append.deadline > now) {
            return Vec::new();
        }
        let (late, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|queued| queued.append.deadline <= now);
        self.waiting = waiting.into();
        late.into_iter().flat_map(|queued| self.done(queued)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.waiting.is_empty() && self.writing.is_empty()
    }

    /// Out of the books.
    fn done(&mut self, queued: Queued) -> impl Iterator<Item = Append> + use<> {
        if let Some(key) = &queued.append.key {
            self.keys.remove(key);
        }
        let all: Vec<Append> = queued.all().collect();
        let bytes: usize = all.iter().map(cost_bytes).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        all.into_iter()
    }
}
