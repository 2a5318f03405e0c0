//! Log shipper: sends this node's own log records ([`LogEvent`]) to a node with the role `log`, or to its own
//! journal if it has that role.
//!
//! The local log of a failed node may be out of reach, so each node also sends its events to the central log.
//! Shipping must never block the node, so everything is bounded. A queue drops events when it is full. A task
//! collects batches of a few hundred events or 200 ms. Without a log node, batches go to a spool, which drops
//! the oldest when it is full. Dropped events are counted. A batch without an answer is sent again under the
//! same key, also after a restart.
//!
//! Events that are caused by shipping must not be shipped, or there would be a loop. So shipping has a thread
//! of its own, [`SHIPPER_THREAD`], and the node does not queue the events of that thread.

mod counters;
mod event;
mod spool;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep_until, timeout},
};

use crate::{
    Host,
    http::{
        append::IDEMPOTENCY_KEY,
        client::{Call, CallError, CallLimits, Client},
    },
    journal::AppendError,
    plugins::log::{self, record::Record},
};
pub use counters::ShipperCounters;
use event::Batch;
pub use event::LogEvent;
use spool::Spool;

/// Name of the shipper's thread.
pub const SHIPPER_THREAD: &str = "shipping";
/// Maximum number of queued events: a few seconds' worth at the highest rate observed.
const QUEUE_MAX: usize = 4096;
/// Maximum number of events in a batch. The log accepts twice as many.
const BATCH_MAX: usize = 500;
/// A batch is sent once its messages have this many bytes: a quarter of the limit of a request body.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// How long the first event of a batch waits for others.
const GATHER: Duration = Duration::from_millis(200);
/// Maximum number of bytes of a message; the rest is cut off.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Pause after the first failure; doubled after each further one.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest pause between attempts: a new log node is tried within this time.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Time that a leaving node spends on the remaining events.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Sender of events. Clones share the queue.
#[derive(Clone, Debug)]
pub struct LogOutbox {
    queue: mpsc::Sender<LogEvent>,
    counters: Arc<ShipperCounters>,
}

impl LogOutbox {
    /// Queues an event. Drops and counts it if the queue is full. Never blocks.
    pub fn push(&self, mut event: LogEvent) {
        if event.message.len() > MESSAGE_BYTES_MAX {
            let end = event.message.floor_char_boundary(MESSAGE_BYTES_MAX);
            event.message.truncate(end);
            event.message.push('…');
        }
        if self.queue.try_send(event).is_err() {
            ShipperCounters::count(&self.counters.unqueued, 1);
        }
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Arc<ShipperCounters> {
        &self.counters
    }
}

/// Receiver of the queued events, which [`ship`](Self::ship) sends.
#[derive(Debug)]
pub struct LogQueue {
    events: mpsc::Receiver<LogEvent>,
    counters: Arc<ShipperCounters>,
}

/// Creates an empty queue.
pub fn log_queue() -> (LogOutbox, LogQueue) {
    let (queue, events) = mpsc::channel(QUEUE_MAX);
    let counters = Arc::new(ShipperCounters::default());
    (LogOutbox { queue, counters: Arc::clone(&counters) }, LogQueue { events, counters })
}

/// Failure to send a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SendFailure {
    /// A retry would fail too.
    Permanent,
    /// A retry may succeed.
    Temporary,
}

impl LogQueue {
    /// Returns the next event, if there is one.
    pub fn try_recv(&mut self) -> Option<LogEvent> {
        self.events.try_recv().ok()
    }

    /// Ships events until `stop` is true or its sender is dropped. Unsent batches are spooled in `dir` or,
    /// without one, in a small buffer in memory.
    ///
    /// Shipping does blocking file I/O, so it needs a thread of its own.
    pub async fn ship(self, host: Arc<dyn Host>, dir: Option<PathBuf>, stop: watch::Receiver<bool>) {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let limits = CallLimits { all: Duration::from_secs(10), instances: 3, ..CallLimits::default() };
        let spool = match dir {
            Some(dir) => Spool::in_dir(dir, &self.counters.unspooled),
            None => Spool::in_memory(),
        };
        let shipper = Shipper {
            name: format!("{}-{:x}", host.node_id(), started.as_micros()),
            next: 0,
            client: Client::new(limits),
            host,
            spool,
            counters: self.counters,
            retry: RETRY_MIN,
            not_before: Instant::now(),
        };
        shipper.run(self.events, stop).await;
    }
}

struct Shipper {
    /// Identity of this run of the node; the first part of every batch's key.
    name: String,
    next: u64,
    host: Arc<dyn Host>,
    client: Client,
    spool: Spool,
    counters: Arc<ShipperCounters>,
    /// Pause after the next failure.
    retry: Duration,
    not_before: Instant,
}

impl Shipper {
    async fn run(mut self, mut events: mpsc::Receiver<LogEvent>, mut stop: watch::Receiver<bool>) {
        loop {
            let again = self.not_before.max(Instant::now());
            let first = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                event = events.recv() => match event {
                    Some(event) => Some(event),
                    None => break,
                },
                () = sleep_until(again.into()), if !self.spool.is_empty() => None,
            };
            if let Some(first) = first {
                let gathered = gather(&mut events, &mut stop, first).await;
                let batch = self.make_batch(gathered);
                self.send_or_spool(batch).await;
            }
            if self.not_before <= Instant::now() {
                self.send_spooled().await;
            }
        }
        self.flush(&mut events).await;
    }

    /// Sends the remaining events, or keeps them in the spool for the next start.
    async fn flush(&mut self, events: &mut mpsc::Receiver<LogEvent>) {
        loop {
            let mut left = Vec::new();
            while left.len() < BATCH_MAX
                && let Ok(event) = events.try_recv()
            {
                left.push(event);
            }
            if left.is_empty() {
                break;
            }
            let batch = self.make_batch(left);
            self.spool.push(batch, &self.counters.unspooled);
        }
        // The spool holds the events already. A batch that the timeout interrupts is sent again under its
        // key.
        _ = timeout(FLUSH_MAX, self.send_spooled()).await;
    }

    fn make_batch(&mut self, events: Vec<LogEvent>) -> Batch {
        self.next += 1;
        Batch { key: format!("{}-{}", self.name, self.next), events }
    }

    /// Sends a batch, or spools it. While earlier batches are spooled, it is spooled too, so that batches
    /// stay in order.
    async fn send_or_spool(&mut self, batch: Batch) {
        if !self.spool.is_empty() || Instant::now() < self.not_before || !self.attempt(&batch).await {
            self.spool.push(batch, &self.counters.unspooled);
        }
    }

    async fn send_spooled(&mut self) {
        while let Some(batch) = self.spool.first(&self.counters.unspooled) {
            if !self.attempt(&batch).await {
                return;
            }
            self.spool.remove_sent();
        }
    }

    /// Sends a batch. Returns true if the batch is done with (accepted, or refused for good), false if it
    /// must be sent again.
    async fn attempt(&mut self, batch: &Batch) -> bool {
        match self.send(batch).await {
            Ok(refused) => {
                let refused = refused.min(batch.events.len());
                ShipperCounters::count(&self.counters.shipped, batch.events.len() - refused);
                ShipperCounters::count(&self.counters.refused, refused);
            }
            Err(SendFailure::Permanent) => ShipperCounters::count(&self.counters.refused, batch.events.len()),
            Err(SendFailure::Temporary) => {
                self.not_before = Instant::now() + self.retry;
                self.retry = (self.retry * 2).min(RETRY_MAX);
                return false;
            }
        }
        self.retry = RETRY_MIN;
        true
    }

    /// Sends a batch. Returns the number of events that the log refused.
    async fn send(&self, batch: &Batch) -> Result<usize, SendFailure> {
        if let Some(journal) = self.host.journal(log::LOG_ROLE) {
            let records = batch.events.iter().map(|event| Record {
                level: event.level,
                service: Some(event.service.clone()),
                time_ms: Some(event.time),
                message: event.message.clone().into_bytes(),
            });
            let appended = log::append_events(journal.as_ref(), self.host.node(), &batch.key, records).await;
            return appended.map(|()| 0).map_err(|error| match error {
                AppendError::KeyTaken(_) | AppendError::BodyTooLarge(..) => SendFailure::Permanent,
                _ => SendFailure::Temporary,
            });
        }
        let mut lines = Vec::new();
        for event in &batch.events {
            let line = Line { event, node: self.host.node() };
            // Serialising a line cannot fail.
            _ = serde_json::to_writer(&mut lines, &line);
            lines.push(b'\n');
        }
        let call = Call::new(Method::POST, "/log/events")
            .body("application/x-ndjson", lines)
            .header(IDEMPOTENCY_KEY, &batch.key);
        match self.client.call(self.host.as_ref(), log::LOG_ROLE, &call).await {
            Ok(reply) if reply.status == StatusCode::MULTI_STATUS => {
                Ok(reply.json::<BatchAnswer>().map_or(0, |partly| partly.refused.len()))
            }
            Ok(reply) if reply.status.is_success() => Ok(0),
            // The log has refused the batch, and would refuse a repetition.
            Ok(reply)
                if matches!(
                    reply.status,
                    StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::PAYLOAD_TOO_LARGE
                ) =>
            {
                Err(SendFailure::Permanent)
            }
            Ok(_)
            | Err(CallError::NoInstance { .. } | CallError::TooLarge { .. } | CallError::AllFailed { .. }) => {
                Err(SendFailure::Temporary)
            }
        }
    }
}

/// An event on the wire.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a LogEvent,
    node: &'a str,
}

/// The log's answer to a batch that it refused in part.
#[derive(Deserialize)]
struct BatchAnswer {
    #[serde(default)]
    refused: Vec<serde::de::IgnoredAny>,
}

/// Collects events for a batch that starts with `first`.
async fn gather(
    events: &mut mpsc::Receiver<LogEvent>,
    stop: &mut watch::Receiver<bool>,
    first: LogEvent,
) -> Vec<LogEvent> {
    let mut bytes = first.message.len();
    let mut batch = vec![first];
    let over = sleep_until((Instant::now() + GATHER).into());
    tokio::pin!(over);
    while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            () = &mut over => break,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Some(event) = event else { break };
        bytes += event.message.len();
        batch.push(event);
    }
    batch
}
