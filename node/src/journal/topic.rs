//! [`Topic`]: handle that sends commands of a plug-in (as [`Journal`]) and of the driver to the topic's
//! worker, through a queue with a limit in bytes.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Instant,
};

use futures::future::join_all;
use hearsay_protocol::{
    NodeId,
    journal::{AppendError, EntryId},
};
use hearsay_services::{
    Metric,
    journal::{AppendFuture, AppendOptions, Journal, Readers, Write},
};
use tokio::sync::{oneshot, watch};

use super::{store::runs::holds, topic_command::TopicCommand, topic_metrics::TopicMetrics};

/// Maximum number of bytes of appends and requests queued for one topic. Further appends are answered with
/// `Busy`.
const QUEUED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Handle of one topic's journal.
pub struct Topic {
    pub(super) name: String,
    pub(super) commands: mpsc::Sender<TopicCommand>,
    pub(super) queued_bytes: Arc<AtomicUsize>,
    pub(super) readers: Arc<Readers>,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) metrics: Arc<TopicMetrics>,
    pub(super) carries_epochs: bool,
    pub(super) bytes_max: Option<u64>,
}

impl Topic {
    /// Sends a command to the worker. `false`: the queue is full, or the worker has ended.
    pub(super) fn send(&self, command: TopicCommand) -> bool {
        let bytes = command.bytes();
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) > QUEUED_BYTES_MAX {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.metrics.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.commands.send(command).is_ok()
    }

    /// Returns the topic's metrics for `/metrics`.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        self.metrics.metrics(self.queued_bytes.load(Ordering::Relaxed) as u64)
    }

    /// Whether the topic's majority counts a replica, live or not.
    pub(super) fn counts(&self, replica: NodeId) -> bool {
        let replicas: &BTreeSet<NodeId> =
            &self.metrics.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.contains(&replica)
    }
}

impl Journal for Topic {
    fn append(&self, writes: Vec<Write>, options: AppendOptions) -> AppendFuture<'_> {
        let deadline = Instant::now() + options.timeout;
        let answers: Vec<_> = writes
            .into_iter()
            .map(|write| {
                let (answer, answered) = oneshot::channel();
                self.send(TopicCommand::Append(write, options.level, deadline, answer)).then_some(answered)
            })
            .collect();
        Box::pin(join_all(answers.into_iter().map(|answered| async move {
            match answered {
                None => Err(AppendError::Busy),
                // The worker dropped the answer: it ends early only if it cannot start.
                Some(answered) => answered.await.unwrap_or(Err(AppendError::DiskFailed)),
            }
        })))
    }

    fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    fn has(&self, id: EntryId) -> rusqlite::Result<bool> {
        holds(&*self.readers.open()?, id)
    }

    fn damaged(&self, file: u64) {
        self.send(TopicCommand::Damaged(file));
    }

    fn bytes_max(&self) -> Option<u64> {
        self.bytes_max
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}
