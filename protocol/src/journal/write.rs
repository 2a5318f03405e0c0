//! Part of [`Journal`]: accepts appends, turns queued ones into signed runs, and handles the result of each
//! write.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    append::{Append, AppendError},
    append_queue::{Admitted, Unconfirmed},
    clock::Moment,
    config::EpochFormat,
    feed::{ChainHash, EntryId, JournalEntry, Run},
    io::{DiskError, JournalOutput, WriteId},
    machine::{Exchange, Journal, Purpose, Write, begin_feed},
    message::JournalResponse,
};
use crate::{Time, Version};

impl Journal {
    pub(super) fn append(&mut self, append: Append) {
        let id = append.id;
        if self.failed {
            return self.out.push_back(JournalOutput::Answer(id, Err(AppendError::DiskFailed)));
        }
        let body_bytes_max = self.config.body_bytes_max();
        if append.body.len() > body_bytes_max {
            let too_large = AppendError::BodyTooLarge(append.body.len(), body_bytes_max);
            return self.out.push_back(JournalOutput::Answer(id, Err(too_large)));
        }
        match self.queue.admit(append, self.config.queue_bytes_max) {
            Ok(Admitted::Queued) => (),
            Ok(Admitted::LookUp(id, key)) => self.out.push_back(JournalOutput::LookUp(id, key)),
            Err(error) => self.out.push_back(JournalOutput::Answer(id, Err(error))),
        }
    }

    /// Answers an append whose key an entry already has: as the same write, or as a conflict.
    pub(super) fn answer_repeated(&mut self, append: Append, id: EntryId, entry: &JournalEntry) {
        let body = EpochFormat::write_if_any(self.config.epochs, &append.body, self.config.epoch_of(entry));
        if body != entry.body {
            return self.out.push_back(JournalOutput::Answer(append.id, Err(AppendError::KeyTaken(id))));
        }
        self.unconfirmed.entry(id).or_default().push(Unconfirmed::new(&append, entry.time, true));
    }

    /// Whether appends wait and another run may be written now.
    pub(super) fn may_write(&self) -> bool {
        !self.failed && self.queue.has_run()
    }

    /// Signs the next runs of this node's feed and requests their storage.
    pub(super) fn write(&mut self, wall_ms: u64) {
        while self.may_write() {
            let id = WriteId(self.next());
            let (clock, epochs) = (&mut self.clock, self.config.epochs);
            let entry = |append: &Append| {
                let Moment { epoch, time } = clock.tick(wall_ms);
                let body = EpochFormat::write_if_any(epochs, &append.body, epoch);
                JournalEntry { time, key: append.key.clone(), body }
            };
            let entries = self.queue.take_run(id).map(entry).collect();
            let (run, hashes) =
                Run::sign(&self.identity, &self.config.cluster, &self.config.topic, self.own_feed, entries);
            let end = hashes.last().copied().unwrap_or(run.before);
            self.own_feed = (EntryId { feed: run.feed, seq: run.end().next() }, end);
            let run = Arc::new(run);
            self.unpushed.insert(id, Arc::clone(&run));
            self.store(id, Purpose::Own, run, hashes);
        }
    }

    /// Requests the storage of a run.
    pub(super) fn store(&mut self, id: WriteId, purpose: Purpose, run: Arc<Run>, hashes: Vec<ChainHash>) {
        self.writes.insert(id, Write { purpose, feed: run.feed, start: run.start, end: run.end() });
        self.out.push_back(JournalOutput::Store(id, run, hashes));
    }
    pub(super) fn handle_stored(&mut self, now: Time, id: WriteId) {
        let Some(Write { purpose, feed, start, end }) = self.writes.remove(&id) else { return };
        self.extents.insert(feed, start, end);
        let count = end.0 - start.0 + 1;
        match purpose {
            Purpose::Own => {
                self.counters.appended += count;
                let Some(run) = self.unpushed.remove(&id) else { return };
                for (index, (appends, entry)) in
                    self.queue.take_written(id).into_iter().zip(&run.entries).enumerate()
                {
                    let id = EntryId { feed, seq: Version(start.0 + index as u64) };
                    let mut appends = appends.into_iter();
                    let first = appends.next().map(|append| Unconfirmed::new(&append, entry.time, false));
                    self.unconfirmed.entry(id).or_default().extend(first);
                    appends.for_each(|append| self.answer_repeated(append, id, entry));
                }
                self.push(&run, None);
            }
            Purpose::Pushed(Exchange { peer: from, request_id }) => {
                self.counters.replicated += count;
                let receipt = JournalResponse::Receipt(self.extents.of(feed));
                self.out.push_back(JournalOutput::Respond(from, request_id, receipt));
                if let Some(run) = self.unpushed.remove(&id) {
                    self.push(&run, Some(from));
                }
            }
            Purpose::Pulled => {
                self.counters.replicated += count;
                self.repair.record_stored(now);
            }
        }
    }

    pub(super) fn handle_not_stored(&mut self, now: Time, id: WriteId, error: DiskError) {
        let Some(Write { purpose, feed, .. }) = self.writes.remove(&id) else { return };
        let answer = match error {
            DiskError::Full => AppendError::DiskFull,
            DiskError::Failed => AppendError::DiskFailed,
        };
        match purpose {
            Purpose::Own => {
                // Entries with these numbers may be on the disk, so the numbers are never used again.
                if feed == self.own_feed.0.feed {
                    self.own_feed = begin_feed(&self.identity, &self.config, &mut self.rng);
                }
                self.give_up(id, &answer);
                // Later runs of the feed are not stored either.
                let follows = |(later, write): (&WriteId, &Write)| {
                    (*later > id && write.feed == feed).then_some(*later)
                };
                let lost: BTreeSet<WriteId> = self.writes.iter().filter_map(follows).collect();
                self.out
                    .retain(|output| !matches!(output, JournalOutput::Store(id, ..) if lost.contains(id)));
                for id in lost {
                    self.writes.remove(&id);
                    self.give_up(id, &answer);
                }
            }
            Purpose::Pushed(Exchange { peer: from, request_id }) => {
                self.unpushed.remove(&id);
                self.out.push_back(JournalOutput::Respond(from, request_id, JournalResponse::Unable));
            }
            Purpose::Pulled => self.repair.fail_session(now),
        }
        if error == DiskError::Failed {
            self.failed = true;
            let waiting = self.queue.clear();
            self.refuse(waiting, &answer);
        }
    }

    /// Refuses the appends of a run of this node's feed that was not stored.
    pub(super) fn give_up(&mut self, id: WriteId, why: &AppendError) {
        self.unpushed.remove(&id);
        let lost = self.queue.take_written(id);
        self.refuse(lost.into_iter().flatten(), why);
    }

    pub(super) fn refuse(&mut self, appends: impl IntoIterator<Item = Append>, why: &AppendError) {
        let answers = appends.into_iter().map(|append| JournalOutput::Answer(append.id, Err(why.clone())));
        self.out.extend(answers);
    }
}
