//! What happens to a node, brought to the log, wherever the log now lives.
//!
//! A node that fails says so in its own log, on the machine that nobody can reach. So every node sends what it says to whichever log node is
//! alive, too. That must never hold the node up, so everything here gives way: events wait in a queue that drops what does not fit; a
//! task gathers them, a few hundred or a fifth of a second at a time; and while there is no log node they go to a spool, which drops the
//! oldest when it is full. What is dropped is counted, and nothing else is lost: a batch that may or may not have arrived is sent again
//! under the same key, also after a restart.
//!
//! What is said because of this very work must not be sent, or it would go round for ever. The node sees to that (its log knows who speaks):
//! the work is done on a thread of its own, [`THREAD`].

mod spool;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
    client::{AskError, Call, Client, IDEMPOTENCY_KEY, Limits},
    log::{
        self,
        record::{Level, Said},
    },
};
use spool::Spool;

/// The name of the thread that does the work.
pub const THREAD: &str = "shipping";
/// Events that wait to be gathered. At the busiest that was seen, a few seconds.
const QUEUE_MAX: usize = 4096;
/// Events sent together; the log takes twice as many.
const BATCH_MAX: usize = 500;
/// Bytes of messages sent together. A quarter of what a node takes in one body.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// How long the first event of a batch waits for others.
const GATHER: Duration = Duration::from_millis(200);
/// The longest message that is shipped; the rest is cut off.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// How soon after a failure it is tried again; doubled with each.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// At most. A log node that starts is found within this.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// What a node that leaves spends on its last words.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Something that happened to a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub time: u64,
    /// How much it matters.
    #[serde(with = "level_name")]
    pub level: Level,
    /// Which part of the node says it; at most [`NAME_BYTES_MAX`](log::record::NAME_BYTES_MAX) bytes.
    pub service: String,
    /// What happened.
    pub message: String,
}

mod level_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::Level;

    pub(super) fn serialize<S: Serializer>(level: &Level, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(level.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Level, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// What became of events, for `/metrics`.
#[derive(Debug, Default)]
pub struct Counters {
    shipped: AtomicU64,
    unqueued: AtomicU64,
    unspooled: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    /// Name, help and value of each.
    pub fn list(&self) -> [(&'static str, &'static str, u64); 4] {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("events_shipped", "Events of this node that the log has", value(&self.shipped)),
            ("events_unqueued", "Events dropped because too many came at once", value(&self.unqueued)),
            (
                "events_unspooled",
                "Events dropped because there was no log node for so long that the spool was full, or could not be written",
                value(&self.unspooled),
            ),
            ("events_refused", "Events dropped because the log refused them", value(&self.refused)),
        ]
    }

    fn count(counter: &AtomicU64, events: usize) {
        counter.fetch_add(events as u64, Ordering::Relaxed);
    }
}

/// Where events are put. Clones lead to the same place.
#[derive(Clone, Debug)]
pub struct Outbox {
    queue: mpsc::Sender<Event>,
    counters: Arc<Counters>,
}

impl Outbox {
    /// Takes an event along; drops it and counts it where too many wait. Never waits.
    pub fn put(&self, mut event: Event) {
        if event.message.len() > MESSAGE_BYTES_MAX {
            let end = event.message.floor_char_boundary(MESSAGE_BYTES_MAX);
            event.message.truncate(end);
            event.message.push('…');
        }
        if self.queue.try_send(event).is_err() {
            Counters::count(&self.counters.unqueued, 1);
        }
    }

    /// What became of them.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

/// What was put, until it is [shipped](Self::ship).
#[derive(Debug)]
pub struct Waiting {
    events: mpsc::Receiver<Event>,
    counters: Arc<Counters>,
}

/// An empty queue.
pub fn queue() -> (Outbox, Waiting) {
    let (queue, events) = mpsc::channel(QUEUE_MAX);
    let counters = Arc::new(Counters::default());
    (Outbox { queue, counters: Arc::clone(&counters) }, Waiting { events, counters })
}

/// Events that travel together, under one name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Batch {
    key: String,
    events: Vec<Event>,
}

/// Why a batch is still here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unsent {
    /// It will do no better the next time.
    Refused,
    /// It may.
    Later,
}

impl Waiting {
    /// The next event, if one waits.
    pub fn take(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// Ships events until `stop` holds true or its sender is gone. Keeps what it cannot send in `dir`; without one, a little of it in memory.
    ///
    /// Works with files as it goes, so give it a thread of its own.
    pub async fn ship(self, host: Arc<dyn Host>, dir: Option<PathBuf>, stop: watch::Receiver<bool>) {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let limits = Limits { all: Duration::from_secs(10), instances: 3, ..Limits::default() };
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
    /// Of this life of the node; begins the key of every batch.
    name: String,
    next: u64,
    host: Arc<dyn Host>,
    client: Client,
    spool: Spool,
    counters: Arc<Counters>,
    /// The pause after the next failure.
    retry: Duration,
    not_before: Instant,
}

impl Shipper {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut stop: watch::Receiver<bool>) {
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
                let batch = self.name(gathered);
                self.send_or_spool(batch).await;
            }
            if self.not_before <= Instant::now() {
                self.send_spooled().await;
            }
        }
        self.last_words(&mut events).await;
    }

    /// What is left is sent, or else kept for the next life.
    async fn last_words(&mut self, events: &mut mpsc::Receiver<Event>) {
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
            let batch = self.name(left);
            self.spool.push(batch, &self.counters.unspooled);
        }
        // In the spool it is safe already; a batch that this cuts short is sent again under its key.
        _ = timeout(LAST_WORDS_MAX, self.send_spooled()).await;
    }

    fn name(&mut self, events: Vec<Event>) -> Batch {
        self.next += 1;
        Batch { key: format!("{}-{}", self.name, self.next), events }
    }

    /// Sends a batch, if none waits before it: none overtakes another.
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
            self.spool.done();
        }
    }

    /// Whether it is done with.
    async fn attempt(&mut self, batch: &Batch) -> bool {
        match self.send(batch).await {
            Ok(refused) => {
                let refused = refused.min(batch.events.len());
                Counters::count(&self.counters.shipped, batch.events.len() - refused);
                Counters::count(&self.counters.refused, refused);
            }
            Err(Unsent::Refused) => Counters::count(&self.counters.refused, batch.events.len()),
            Err(Unsent::Later) => {
                self.not_before = Instant::now() + self.retry;
                self.retry = (self.retry * 2).min(RETRY_MAX);
                return false;
            }
        }
        self.retry = RETRY_MIN;
        true
    }

    /// Sends a batch, and returns how many of its events the log refused.
    async fn send(&self, batch: &Batch) -> Result<usize, Unsent> {
        if let Some(journal) = self.host.journal(log::ROLE) {
            let said = batch.events.iter().map(|event| Said {
                level: event.level,
                service: Some(event.service.clone()),
                time_ms: Some(event.time),
                message: event.message.clone().into_bytes(),
            });
            let appended = log::append_events(journal.as_ref(), self.host.node(), &batch.key, said).await;
            return appended.map(|()| 0).map_err(|log::Unstored::Journal(error)| match error {
                crate::journal::AppendError::KeyTaken(_) | crate::journal::AppendError::BodyTooLarge(..) => {
                    Unsent::Refused
                }
                _ => Unsent::Later,
            });
        }
        let mut lines = Vec::new();
        for event in &batch.events {
            let line = Line { event, node: self.host.node() };
            // Such a line always serialises.
            _ = serde_json::to_writer(&mut lines, &line);
            lines.push(b'\n');
        }
        let call = Call::new(Method::POST, "/log/events")
            .body("application/x-ndjson", lines)
            .header(IDEMPOTENCY_KEY, &batch.key);
        match self.client.ask(self.host.as_ref(), log::ROLE, &call).await {
            Ok(reply) if reply.status == StatusCode::MULTI_STATUS => {
                Ok(reply.json::<Partly>().map_or(0, |partly| partly.refused.len()))
            }
            Ok(reply) if reply.status.is_success() => Ok(0),
            // It understood, and will not: not now, and not later.
            Ok(reply)
                if matches!(
                    reply.status,
                    StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::PAYLOAD_TOO_LARGE
                ) =>
            {
                Err(Unsent::Refused)
            }
            Ok(_)
            | Err(AskError::NoInstance { .. } | AskError::TooLarge { .. } | AskError::AllFailed { .. }) => {
                Err(Unsent::Later)
            }
        }
    }
}

/// An event as it travels.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a Event,
    node: &'a str,
}

/// What the log says of a batch of which it refused some events.
#[derive(Deserialize)]
struct Partly {
    #[serde(default)]
    refused: Vec<serde::de::IgnoredAny>,
}

/// Waits for more events to travel with the first.
async fn gather(
    events: &mut mpsc::Receiver<Event>,
    stop: &mut watch::Receiver<bool>,
    first: Event,
) -> Vec<Event> {
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
