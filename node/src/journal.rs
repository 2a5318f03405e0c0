//! The journals of this node's plug-ins: one database, one machine and one thread for each topic.
//!
//! A topic's thread owns all of it ([`keeper`]): appends come from HTTP, requests and answers of other replicas from the driver, both through
//! one queue, and everything that came while the disk was syncing shares the next sync. It never waits for anybody but its disk.

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Instant,
};

use futures::future::join_all;
use hearsay_protocol::{
    Identity, NodeId,
    journal::{
        Config, Durability, Restored,
        append::{AppendError, Appended, Level},
        feed::EntryId,
    },
    sync::Ticket,
};
use hearsay_services::{
    Service,
    journal::{Answers, Projection, Readers, Retention, Wanted, Write},
    service::Metric,
};
use tokio::sync::{mpsc::Sender, oneshot, watch};

use crate::{
    driver::Order,
    storage::{PRIVATE_DIR, StorageError, make_dir},
    view::Clock,
};

mod backup;
#[cfg(feature = "broken")]
mod broken;
mod keeper;
mod mend;
mod pages;
mod read_only;
mod rebuild;
mod restore;
mod retention;
mod salvage;
mod scrub;
mod shown;
mod store;
mod verify;
mod waiting;
mod wal;

use mend::{MendError, Mended};
use shown::Shown;

pub use backup::{BackupError, backup};
pub use rebuild::{RebuildError, Rebuilt, rebuild};
pub use restore::{Source, SourceError};
pub use store::{Store, StoreError};
pub use verify::{Part, Problem, Projections, Report, Tell, verify};

/// Bytes of appends and requests that may wait for a topic's thread. What is over it is refused.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What a topic's thread is told.
pub(crate) enum Told {
    /// By a plug-in.
    Append(Write, Option<Level>, Instant, oneshot::Sender<Result<Appended, AppendError>>),
    /// By a reader of the so-manieth file: it is damaged.
    Damaged(u64),
    /// These live members, other than this node, keep the topic.
    Replicas(BTreeMap<NodeId, Durability>),
    /// An operator gave up a replica.
    ForgetReplica(NodeId),
    /// A connection to a peer opened.
    Connected(NodeId),
    /// The last one closed.
    Disconnected(NodeId),
    /// A replica asks.
    Request(NodeId, Ticket, Vec<u8>),
    /// A replica answers; `None`: it will not.
    Response(NodeId, Ticket, Option<Vec<u8>>),
}

impl Told {
    fn bytes(&self) -> usize {
        let body = match self {
            Self::Append(write, ..) => write.body.len() + write.key.as_ref().map_or(0, String::len),
            Self::Request(_, _, bytes) | Self::Response(_, _, Some(bytes)) => bytes.len(),
            Self::Damaged(_)
            | Self::Replicas(_)
            | Self::ForgetReplica(_)
            | Self::Connected(_)
            | Self::Disconnected(_)
            | Self::Response(..) => 0,
        };
        size_of::<Self>() + body
    }
}

/// One topic's journal.
pub struct Topic {
    name: String,
    inbox: mpsc::Sender<Told>,
    waiting_bytes: Arc<AtomicUsize>,
    readers: Arc<Readers>,
    changes: watch::Receiver<u64>,
    shown: Arc<Shown>,
    carries_epochs: bool,
}

impl Topic {
    /// Tells the thread; `false`: too much waits for it, and it was not told.
    fn tell(&self, told: Told) -> bool {
        let bytes = told.bytes();
        if self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) > WAITING_BYTES_MAX {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shown.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.inbox.send(told).is_ok()
    }

    /// What it counts, for `/metrics`.
    fn metrics(&self) -> Vec<Metric> {
        self.shown.metrics(self.waiting_bytes.load(Ordering::Relaxed) as u64)
    }
}

impl hearsay_services::journal::Journal for Topic {
    fn append(&self, writes: Vec<Write>, wanted: Wanted) -> Answers<'_> {
        let deadline = Instant::now() + wanted.timeout;
        let answers: Vec<_> = writes
            .into_iter()
            .map(|write| {
                let (answer, answered) = oneshot::channel();
                self.tell(Told::Append(write, wanted.level, deadline, answer)).then_some(answered)
            })
            .collect();
        Box::pin(join_all(answers.into_iter().map(|answered| async move {
            match answered {
                None => Err(AppendError::Busy),
                // The thread is gone, and with it the disk.
                Some(answered) => answered.await.unwrap_or(Err(AppendError::DiskFailed)),
            }
        })))
    }

    fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    fn has(&self, id: EntryId) -> rusqlite::Result<bool> {
        store::holds(&*self.readers.open()?, id)
    }

    fn damaged(&self, file: u64) {
        self.tell(Told::Damaged(file));
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

/// What journals need of their node.
pub struct Ground<'a> {
    /// Where the data dir is; `None`: nothing is kept, and the databases go with the process.
    pub dir: Option<&'a Path>,
    /// The node's key.
    pub me: &'a dyn Fn() -> Identity,
    /// The cluster's name.
    pub cluster: &'a str,
    /// How many replicas there are of each topic; `None`: as many as its replica set has.
    pub replicas_expected: Option<NonZeroU32>,
    /// How long a topic's entries are kept, where that is not as its plug-in has it.
    pub retention: &'a BTreeMap<String, Retention>,
    /// The node's clock.
    pub clock: Clock,
    /// The way to the driver.
    pub orders: Sender<Order>,
}

/// All topics of a node.
#[derive(Default)]
pub struct Journals {
    topics: BTreeMap<String, Arc<Topic>>,
    /// Databases of a node that keeps nothing. Removed with this.
    _scratch: Option<Scratch>,
}

impl Journals {
    /// Opens the journal of each plug-in that has one, and starts its thread.
    ///
    /// # Errors
    /// A database cannot be used: says which, and what to do.
    pub fn open(plugins: &[Arc<dyn Service>], ground: &Ground<'_>) -> anyhow::Result<Self> {
        let kept: Vec<(String, Arc<dyn Projection>)> = plugins
            .iter()
            .filter_map(|plugin| Some((plugin.name().to_owned(), plugin.projection()?)))
            .collect();
        if kept.is_empty() {
            return Ok(Self::default());
        }
        let scratch = if ground.dir.is_none() { Some(Scratch::make()?) } else { None };
        let dir = match (ground.dir, &scratch) {
            (Some(dir), _) => dir.join("journal"),
            (None, Some(scratch)) => scratch.0.clone(),
            (None, None) => anyhow::bail!("no directory for the journal; this is a defect"),
        };
        make_dir(&dir, PRIVATE_DIR)
            .map_err(|source| StorageError::Unwritable { path: dir.clone(), source })?;
        let mut topics = BTreeMap::new();
        for (name, projection) in kept {
            let path = dir.join(format!("{name}.db"));
            let topic = start(&path, &name, projection, ground)?;
            topics.insert(name, Arc::new(topic));
        }
        Ok(Self { topics, _scratch: scratch })
    }

    /// A topic's journal.
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// The names of all topics.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// Whether entries of a topic supersede each other, and so carry epochs.
    pub fn carries_epochs(&self, name: &str) -> bool {
        self.topics.get(name).is_some_and(|topic| topic.carries_epochs)
    }

    /// A connection to a peer opened, or the last one closed.
    pub fn connected(&self, peer: NodeId, is: bool) {
        for topic in self.topics.values() {
            topic.tell(if is { Told::Connected(peer) } else { Told::Disconnected(peer) });
        }
    }

    /// The live members that keep a topic.
    pub fn replicas(&self, topic: &str, replicas: BTreeMap<NodeId, Durability>) {
        if let Some(topic) = self.topics.get(topic) {
            topic.tell(Told::Replicas(replicas));
        }
    }

    /// Whether a majority of some topic is counted of a node, other than by its being alive.
    pub fn counts(&self, replica: NodeId) -> bool {
        let counts = |topic: &Arc<Topic>| {
            topic.shown.replicas.lock().unwrap_or_else(PoisonError::into_inner).contains(&replica)
        };
        self.topics.values().any(counts)
    }

    /// An operator gave up a member: no topic counts a majority of it any longer.
    pub fn forget_replica(&self, replica: NodeId) {
        for topic in self.topics.values() {
            topic.tell(Told::ForgetReplica(replica));
        }
    }

    /// A replica asks something of a topic; `false`: nobody will answer.
    pub fn asked(&self, topic: &str, from: NodeId, ticket: Ticket, bytes: Vec<u8>) -> bool {
        self.topics.get(topic).is_some_and(|topic| topic.tell(Told::Request(from, ticket, bytes)))
    }

    /// A replica answered, or will not.
    pub fn answered(&self, topic: &str, from: NodeId, ticket: Ticket, bytes: Option<Vec<u8>>) {
        if let Some(topic) = self.topics.get(topic) {
            topic.tell(Told::Response(from, ticket, bytes));
        }
    }

    /// What the journal of each topic counts.
    pub fn metrics(&self) -> impl Iterator<Item = (&str, Vec<Metric>)> {
        self.topics.values().map(|topic| (topic.name.as_str(), topic.metrics()))
    }
}

fn start(
    path: &Path,
    name: &str,
    projection: Arc<dyn Projection>,
    ground: &Ground<'_>,
) -> anyhow::Result<Topic> {
    let readers = Arc::new(Readers::new(path));
    let opened = match open(path, name, projection.as_ref(), ground.cluster) {
        Ok(opened) => Some(opened),
        Err(error @ OpenError::NoRoom { .. }) => {
            tracing::error!(topic = name, %error, "nothing is written to this topic until there is room");
            open_read_only(path, (ground.cluster, name), projection.as_ref(), &readers)
        }
        Err(error) => return Err(error.into()),
    };
    let mut config = Config::new(ground.cluster, name);
    config.replicas_expected = ground.replicas_expected.map(NonZeroUsize::try_from).transpose()?;
    config.ephemeral = ground.dir.is_none();
    let usual = projection.retention();
    // Also where this node keeps everything, others may not.
    config.epochs = projection.epochs();
    config.drops = usual != Retention::default();
    let carries_epochs = config.epochs.is_some();
    let (inbox, told) = mpsc::channel();
    let (changed, changes) = watch::channel(0);
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let shown = Arc::new(Shown::default());
    let parts = keeper::Parts {
        projection,
        retention: ground.retention.get(name).copied().unwrap_or(usual),
        me: (ground.me)(),
        config,
        clock: ground.clock,
        told,
        orders: ground.orders.clone(),
        changed,
        waiting_bytes: Arc::clone(&waiting_bytes),
        shown: Arc::clone(&shown),
        path: path.to_owned(),
        readers: Arc::clone(&readers),
    };
    let thread = std::thread::Builder::new().name(format!("journal-{name}"));
    match opened {
        Some(opened) => {
            let keeper = keeper::Keeper::new(parts, opened)?;
            thread.spawn(move || keeper.run())?;
        }
        None => _ = thread.spawn(move || waiting::run(parts))?,
    }
    Ok(Topic { name: name.to_owned(), inbox, waiting_bytes, readers, changes, shown, carries_epochs })
}

/// Why a topic's file could not be opened for writing.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    /// Its disk is full. Every acknowledged entry is still in it.
    #[error("the disk of {} is full ({problem}); free some space on it", path.display())]
    NoRoom { path: PathBuf, problem: String },
    /// Any other reason. The file was not touched.
    #[error("cannot use {}: {problem}; move it away, or name another --data-dir", path.display())]
    Unusable { path: PathBuf, problem: String },
}

impl OpenError {
    fn new(path: &Path, error: &MendError) -> Self {
        let (path, problem, lacks_room) = (path.to_owned(), error.to_string(), error.lacks_room(path));
        if lacks_room { Self::NoRoom { path, problem } } else { Self::Unusable { path, problem } }
    }
}

/// Opens a topic's file for reading while its disk is full, for the topic's thread and for its readers.
/// `None`: it cannot be read before there is room, and every reader gets the reason.
fn open_read_only(
    path: &Path,
    (cluster, topic): (&str, &str),
    projection: &dyn Projection,
    readers: &Readers,
) -> Option<(Store, Restored)> {
    let opened = Store::open_read_only(path, cluster, topic, projection).and_then(|store| {
        let restored = store.restored()?;
        Ok((store, restored))
    });
    match opened {
        Ok(opened) => {
            readers.set_opener(Some(Arc::new(read_only::connect)));
            Some(opened)
        }
        Err(error) => {
            let problem = format!("its disk is full, so it is not opened before there is room ({error})");
            tracing::error!(topic, problem, "the topic cannot be read");
            readers.set_opener(Some(Arc::new(move |_: &Path| {
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                Err(rusqlite::Error::SqliteFailure(full, Some(problem.clone())))
            })));
            None
        }
    }
}

/// Opens a topic's file. One that is damaged is put aside, and everything that other replicas have comes back from them.
///
/// # Errors
/// See [`OpenError`] for what has become of the file.
fn open(
    path: &Path,
    name: &str,
    projection: &dyn Projection,
    cluster: &str,
) -> Result<(Store, Restored), OpenError> {
    let failed = |error: MendError| OpenError::new(path, &error);
    let attempt = || -> Result<(Store, Restored), StoreError> {
        let store = Store::open(path, cluster, name, projection)?;
        let restored = store.restored()?;
        Ok((store, restored))
    };
    if let Some(aside) = mend::resume(path).map_err(|error| failed(error.into()))? {
        tracing::warn!(topic = name, kept = %aside.display(), "the journal's database was being replaced, which is done now");
    }
    if !read_only::has_room(path) {
        let problem = format!("it has less than {} KiB of room", read_only::ROOM_BYTES / 1024);
        return Err(OpenError::NoRoom { path: path.to_owned(), problem });
    }
    let damage = if wal::is_stale(path).map_err(|error| failed(error.into()))? {
        "its log is older than what was copied from it".to_owned()
    } else {
        match attempt() {
            Ok(opened) => return Ok(opened),
            Err(StoreError::Damaged(error)) => error.to_string(),
            Err(error) => return Err(failed(error.into())),
        }
    };
    let mended = mend::mend(path, cluster, name, projection).map_err(failed)?;
    let opened = attempt().map_err(|error| failed(error.into()))?;
    tell_of_damage(name, &damage, &mended);
    Ok(opened)
}

fn tell_of_damage(topic: &str, error: &str, mended: &Mended) {
    tracing::error!(
        topic,
        error,
        kept = %mended.aside.display(),
        runs_taken_over = mended.runs,
        "the journal's database is damaged; it was put aside, and what other replicas have comes back from them"
    );
}

/// A directory that goes with the process.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> anyhow::Result<Self> {
        let mut mark = [0; 8];
        getrandom::fill(&mut mark)
            .map_err(|e| anyhow::anyhow!("this system gives no random numbers: {e}"))?;
        let dir = std::env::temp_dir().join(format!("hearsay-{:016x}", u64::from_le_bytes(mark)));
        // Made here or not at all: in a directory for everybody, the name may be another user's already.
        std::fs::DirBuilder::new()
            .mode(PRIVATE_DIR)
            .create(&dir)
            .map_err(|e| anyhow::anyhow!("cannot make {}: {e}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whoever asked for nothing to be kept can live with what the system clears later.
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
