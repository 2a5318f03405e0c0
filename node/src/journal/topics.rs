//! The topics of a node: opens the journal of each plug-in that has one, and starts its worker. [`Journals`]
//! passes events, requests and responses to the topics.

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    sync::{Arc, atomic::AtomicUsize, mpsc},
};

use hearsay_protocol::{
    Identity, NodeId, RequestId,
    journal::{Durability, JournalConfig},
};
use hearsay_services::{
    Metric, Service,
    journal::{Projection, Readers, Retention},
};
use tokio::sync::{mpsc::Sender, watch};

use super::{
    open::{OpenError, open, open_read_only},
    scratch::Scratch,
    store::topic_store::WrapStore,
    topic::Topic,
    topic_command::TopicCommand,
    topic_metrics::TopicMetrics,
    waiting,
    worker::{TopicWorker, WorkerParts},
};
use crate::{
    driver_command::DriverCommand,
    storage::{PRIVATE_DIR, StorageError, make_dir},
    view::Clock,
};

/// Parts of a node that its journals use.
pub struct JournalContext<'a> {
    /// The data directory; `None` for an ephemeral node, whose databases are removed when the process ends.
    pub dir: Option<&'a Path>,
    /// Returns the node's key.
    pub me: &'a dyn Fn() -> Identity,
    /// The cluster's name.
    pub cluster: &'a str,
    /// Replicas expected of each topic; `None`: as many as its replica set has.
    pub replicas_expected: Option<NonZeroU32>,
    /// Retention by topic, if it differs from the plug-in's default.
    pub retention: &'a BTreeMap<String, Retention>,
    /// The node's clock.
    pub clock: Clock,
    /// Sends commands to the driver.
    pub driver: Sender<DriverCommand>,
    /// Wraps each topic's store. Only tests change the store; otherwise it is returned as it is.
    pub wrap_store: WrapStore,
}

/// All topics of a node.
#[derive(Default)]
pub struct Journals {
    topics: BTreeMap<String, Arc<Topic>>,
    /// Directory of an ephemeral node's databases; it is removed with this value.
    _scratch: Option<Scratch>,
}

impl Journals {
    /// Opens the journal of each plug-in that has one, and starts its worker.
    ///
    /// # Errors
    /// A database cannot be used. The message names it and says what to do.
    pub fn open(plugins: &[Arc<dyn Service>], context: &JournalContext<'_>) -> anyhow::Result<Self> {
        let kept: Vec<(String, Arc<dyn Projection>)> = plugins
            .iter()
            .filter_map(|plugin| Some((plugin.name().to_owned(), plugin.projection()?)))
            .collect();
        if kept.is_empty() {
            return Ok(Self::default());
        }
        let scratch = if context.dir.is_none() { Some(Scratch::create()?) } else { None };
        let dir = match (context.dir, &scratch) {
            (Some(dir), _) => dir.join("journal"),
            (None, Some(scratch)) => scratch.path().to_owned(),
            (None, None) => anyhow::bail!("no directory for the journal; this is a defect"),
        };
        make_dir(&dir, PRIVATE_DIR)
            .map_err(|source| StorageError::Unwritable { path: dir.clone(), source })?;
        let mut topics = BTreeMap::new();
        for (name, projection) in kept {
            let path = dir.join(format!("{name}.db"));
            let topic = start_topic(&path, &name, projection, context)?;
            topics.insert(name, Arc::new(topic));
        }
        Ok(Self { topics, _scratch: scratch })
    }

    /// Returns a topic's journal.
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// Returns the names of all topics.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// Whether entries of a topic supersede each other, and so carry epochs.
    pub fn carries_epochs(&self, name: &str) -> bool {
        self.topics.get(name).is_some_and(|topic| topic.carries_epochs)
    }

    /// Tells all topics that the first connection to a peer opened, or that the last one closed.
    pub fn set_connected(&self, peer: NodeId, is_connected: bool) {
        for topic in self.topics.values() {
            topic.send(match is_connected {
                true => TopicCommand::Connected(peer),
                false => TopicCommand::Disconnected(peer),
            });
        }
    }

    /// Tells a topic which live members keep it.
    pub fn set_replicas(&self, topic: &str, replicas: BTreeMap<NodeId, Durability>) {
        if let Some(topic) = self.topics.get(topic) {
            topic.send(TopicCommand::Replicas(replicas));
        }
    }

    /// Whether any topic counts a node as a replica when it computes its majority. Nodes that are down count
    /// too.
    pub fn counts(&self, replica: NodeId) -> bool {
        self.topics.values().any(|topic| topic.counts(replica))
    }

    /// Makes all topics count their majority without a replica that was removed by order of an operator.
    pub fn forget_replica(&self, replica: NodeId) {
        for topic in self.topics.values() {
            topic.send(TopicCommand::ForgetReplica(replica));
        }
    }

    /// Passes a replica's request to a topic. `false`: the topic will not answer.
    pub fn on_request(&self, topic: &str, from: NodeId, id: RequestId, bytes: Vec<u8>) -> bool {
        self.topics.get(topic).is_some_and(|topic| topic.send(TopicCommand::Request(from, id, bytes)))
    }

    /// Passes a replica's response to a topic; `None` after a failure.
    pub fn on_response(&self, topic: &str, from: NodeId, id: RequestId, bytes: Option<Vec<u8>>) {
        if let Some(topic) = self.topics.get(topic) {
            topic.send(TopicCommand::Response(from, id, bytes));
        }
    }

    /// Returns the metrics of each topic.
    pub fn metrics(&self) -> impl Iterator<Item = (&str, Vec<Metric>)> {
        self.topics.values().map(|topic| (topic.name.as_str(), topic.metrics()))
    }
}

/// Opens a topic's database and starts its worker. On a full disk, the worker waits for room.
fn start_topic(
    path: &Path,
    name: &str,
    projection: Arc<dyn Projection>,
    context: &JournalContext<'_>,
) -> anyhow::Result<Topic> {
    let readers = Arc::new(Readers::new(path));
    let opened = match open(path, name, projection.as_ref(), context.cluster) {
        Ok(opened) => Some(opened),
        Err(error @ OpenError::NoRoom { .. }) => {
            tracing::error!(topic = name, %error, "nothing is written to this topic until there is room");
            open_read_only(path, (context.cluster, name), projection.as_ref(), &readers)
        }
        Err(error) => return Err(error.into()),
    };
    let mut config = JournalConfig::new(context.cluster, name);
    config.replicas_expected = context.replicas_expected.map(NonZeroUsize::try_from).transpose()?;
    config.ephemeral = context.dir.is_none();
    let default_retention = projection.retention();
    config.epochs = projection.epochs();
    // Other nodes may drop entries even if this node keeps all of them.
    config.drops = default_retention != Retention::default();
    let carries_epochs = config.epochs.is_some();
    let (sender, commands) = mpsc::channel();
    let (changed, changes) = watch::channel(0);
    let queued_bytes = Arc::new(AtomicUsize::new(0));
    let metrics = Arc::new(TopicMetrics::default());
    let retention = context.retention.get(name).copied().unwrap_or(default_retention);
    let parts = WorkerParts {
        projection,
        retention,
        me: (context.me)(),
        config,
        clock: context.clock,
        commands,
        driver: context.driver.clone(),
        changed,
        queued_bytes: Arc::clone(&queued_bytes),
        metrics: Arc::clone(&metrics),
        path: path.to_owned(),
        readers: Arc::clone(&readers),
        wrap_store: context.wrap_store,
    };
    let thread = std::thread::Builder::new().name(format!("journal-{name}"));
    match opened {
        Some(opened) => {
            let worker = TopicWorker::new(parts, opened)?;
            thread.spawn(move || worker.run())?;
        }
        None => _ = thread.spawn(move || waiting::run(parts))?,
    }
    Ok(Topic {
        name: name.to_owned(),
        commands: sender,
        queued_bytes,
        readers,
        changes,
        metrics,
        carries_epochs,
        bytes_max: retention.bytes,
    })
}
