//! Part of [`TopicWorker`]: retention, scrubbing, and recovery from damage and from a full disk.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use hearsay_protocol::journal::{DiskError, Extent, JournalInput};

use super::{TopicWorker, wall_ms};
use crate::journal::{
    integrity::{replace_damaged::replace_damaged, scrub::Scrub},
    open::{log_damage, open},
    read_only::{REOPEN_EVERY, has_room},
    store::{database::Store, error::StoreError},
};

/// Shortest time between two replacements of a database. If the disk damages each new database at once,
/// replacing it more often does not help.
const REPLACE_EVERY: Duration = Duration::from_secs(10);
/// Longest wait for running reads to end. New reads wait meanwhile. A guess: most reads take milliseconds.
const DRAIN_MAX: Duration = Duration::from_millis(500);

impl TopicWorker {
    /// Does the background work that is due.
    pub(super) fn maintain(&mut self) {
        if self.store.inner().is_read_only() {
            return self.reopen_if_there_is_room();
        }
        self.drop_oldest();
        if self.scrub.run_if_due(self.store.inner().connection(), &self.metrics) {
            self.damage = Some("the checksum of a page is wrong".into());
        }
        self.replace_if_damaged();
    }

    /// Drops entries beyond the retention, if a check is due and no transaction is open.
    fn drop_oldest(&mut self) {
        let now = self.clock.now();
        if self.store.inner().is_dirty() || self.retention.next_due() > now {
            return;
        }
        let dropped = self.store.inner().used_bytes().and_then(|used| {
            let bound = self.retention.bound(now, wall_ms(), used);
            self.store.inner_mut().drop_oldest(bound, self.projection.as_ref())
        });
        let more = match dropped {
            Ok(dropped) => {
                self.metrics.dropped_runs.fetch_add(dropped.runs, Ordering::Relaxed);
                self.metrics.dropped_entries.fetch_add(dropped.entries, Ordering::Relaxed);
                dropped.more
            }
            Err(error) => {
                self.record_error(&error, "dropping what is old");
                self.store.inner_mut().roll_back();
                false
            }
        };
        // An error here shows again in the next write.
        let used = self.store.inner().used_bytes().unwrap_or(0);
        self.metrics.used_bytes.store(used, Ordering::Relaxed);
        let ended = self.clock.now();
        self.retention.record_check(ended, ended.since(now), more);
    }

    /// Deletes damaged runs. They are fetched again from other replicas.
    pub(super) fn discard_damaged_runs(&mut self) {
        for (feed, starts) in std::mem::take(&mut self.damaged_runs) {
            tracing::error!(
                topic = self.topic,
                writer = %feed.writer,
                boot = feed.boot,
                runs = starts.len(),
                "entries on the disk are damaged; fetching them from another replica"
            );
            match self.store.inner_mut().discard(feed, &starts, self.projection.as_ref()) {
                Ok(left) => self.handle_input(JournalInput::Damaged(left)),
                Err(error) => {
                    self.metrics.disk_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(topic = self.topic, %error, "cannot delete damaged entries");
                    if matches!(error, StoreError::Damaged(_)) {
                        self.damage = Some(error.to_string());
                    }
                    self.store.inner_mut().roll_back();
                }
            }
            self.notify_readers();
            self.apply_outputs();
        }
    }

    /// Opens a read-only database for writing once its disk has room.
    fn reopen_if_there_is_room(&mut self) {
        if self.reopen_tried_at.elapsed() < REOPEN_EVERY {
            return;
        }
        self.reopen_tried_at = Instant::now();
        if !has_room(&self.path) {
            return;
        }
        let readers = Arc::clone(&self.readers);
        // A slow reader must not keep all others waiting. The worker tries again later.
        let Some(drained) = readers.drain(DRAIN_MAX) else { return };
        match self.reopen() {
            Ok(changed_extents) => {
                self.readers.set_opener(None);
                drop(drained);
                tracing::info!(
                    topic = self.topic,
                    "there is room on the disk again: the topic is written to"
                );
                if let Some(extents) = changed_extents {
                    self.damage = None;
                    self.handle_input(JournalInput::Replaced(extents));
                }
                self.machine.replica_set().into_iter().for_each(|generation| self.keep_replica(generation));
                self.notify_readers();
                self.apply_outputs();
                self.commit();
            }
            Err(error) => {
                // Logged once, not every second.
                if self.reopen_problem != error.to_string() {
                    tracing::error!(topic = self.topic, %error, "the topic still cannot be opened for writing");
                    self.reopen_problem = error.to_string();
                }
                self.metrics.disk_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Opens the database for writing. No other thread may have it open. Returns the extents if reopening
    /// changed them.
    fn reopen(&mut self) -> anyhow::Result<Option<Vec<Extent>>> {
        // The extents cannot be read if an earlier attempt left the store closed.
        let before = self.store.inner().restored().ok().map(|restored| restored.extents);
        let (cluster, topic) = self.store.inner().owner();
        let (cluster, topic) = (cluster.to_owned(), topic.to_owned());
        self.store.inner_mut().close_file()?;
        match open(&self.path, &topic, self.projection.as_ref(), &cluster) {
            Ok((store, restored)) => {
                self.set_store(store);
                Ok((before.as_ref() != Some(&restored.extents)).then_some(restored.extents))
            }
            Err(error) => {
                let store = Store::open_read_only(&self.path, &cluster, &topic, self.projection.as_ref())?;
                self.set_store(store);
                Err(error.into())
            }
        }
    }

    /// Replaces a damaged database by a new one with its sound runs.
    fn replace_if_damaged(&mut self) {
        if self.damage.is_none() || self.replaced_at.is_some_and(|at| at.elapsed() < REPLACE_EVERY) {
            return;
        }
        let Some(damage) = self.damage.take() else { return };
        self.replaced_at = Some(Instant::now());
        self.roll_back(DiskError::Failed);
        match self.replace(&damage) {
            Ok(extents) => self.handle_input(JournalInput::Replaced(extents)),
            Err(error) => {
                tracing::error!(topic = self.topic, %error, "cannot replace a damaged database");
                self.damage = Some(damage);
            }
        }
        self.notify_readers();
        self.apply_outputs();
        self.commit();
    }

    /// Replaces the database. Returns the extents of the new one.
    fn replace(&mut self, damage: &str) -> anyhow::Result<Vec<Extent>> {
        let (cluster, topic) = self.store.inner().owner();
        let replaced = replace_damaged(&self.path, cluster, topic, self.projection.as_ref())?;
        let store = Store::open(&self.path, cluster, topic, self.projection.as_ref())?;
        let restored = store.restored()?;
        // SQLite changes neither a moved file nor its log when it closes them.
        self.set_store(store);
        // Readers open the new file from here on.
        self.readers.forget();
        self.metrics.replaced.fetch_add(1, Ordering::Relaxed);
        log_damage(&self.topic, damage, &replaced);
        Ok(restored.extents)
    }

    fn set_store(&mut self, store: Store) {
        self.store = (self.wrap_store)(store, self.me);
        self.scrub = Scrub::default();
    }
}
