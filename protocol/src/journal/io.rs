//! [`JournalInput`]: events that the caller passes to a journal. [`JournalOutput`]: actions that the caller
//! carries out (writes, reads, messages, answers). [`RestoredJournal`]: state on disk at the start.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    append::{Append, AppendError, AppendId, Appended},
    clock::Moment,
    feed::{ChainHash, EntryId, FeedId, JournalEntry, Run, Seq},
    message::{Extent, JournalRequest, JournalResponse},
    replica_set::Generation,
};
use crate::{NodeId, sync::RequestId};

/// Id of a write of a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId(pub u64);

/// Id of a read from the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LoadId(pub u64);

/// Error of a write, by its effect on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskError {
    /// The disk is full. The run was not stored; a later one may be.
    Full,
    /// The write failed, and it is unknown whether the run was stored. The journal writes nothing more.
    Failed,
}

/// Input of a journal: an event that the caller passes to [`Journal::handle`](super::Journal::handle).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JournalInput {
    /// The time of [`Journal::poll_timeout`](super::Journal::poll_timeout) has come.
    Tick,
    /// Append an entry. Pass all waiting appends, and then [`Tick`](Self::Tick).
    Append(Append),
    /// The answer to [`JournalOutput::LookUp`].
    LookedUp(AppendId, Option<(EntryId, JournalEntry)>),
    /// The lookup failed, so it is unknown whether an entry has the key.
    NotLookedUp(AppendId),
    /// The run is on the disk, synced, and applied to the plug-in's tables.
    Stored(WriteId),
    /// The run is not on the disk, and neither are later runs of its feed: the disk must not store a run
    /// without the earlier ones that it was given.
    NotStored(WriteId, DiskError),
    /// The answer to [`JournalOutput::Load`].
    Loaded {
        /// Id of the read.
        load: LoadId,
        /// Number of the last entry that the database has dropped.
        dropped: Seq,
        /// Runs, the earliest first.
        runs: Vec<Run>,
    },
    /// Entries of a feed were found damaged. Only this extent is left.
    Damaged(Extent),
    /// Extent of a feed after [`JournalOutput::Forgo`], if that changed it: the entries that are on the disk
    /// or will never arrive.
    Forgone(Extent),
    /// The database was found damaged and replaced by one with these extents. Before that, every pending
    /// write was answered with [`NotStored`](Self::NotStored).
    Replaced(Vec<Extent>),
    /// Live members that keep the topic, without this node.
    Replicas(BTreeMap<NodeId, Durability>),
    /// An operator removed a replica that is not alive from the replica set.
    ForgetReplica(NodeId),
    /// A connection to a peer opened.
    Connected(NodeId),
    /// The last connection to a peer closed.
    Disconnected(NodeId),
    /// A replica sent a request.
    Request {
        /// The replica.
        from: NodeId,
        /// Id for the response.
        request_id: RequestId,
        /// The request.
        request: JournalRequest,
    },
    /// The response to a request; `None`: the request failed, and no response follows.
    Response {
        /// The replica.
        from: NodeId,
        /// Id of the request.
        request_id: RequestId,
        /// The response.
        response: Option<JournalResponse>,
    },
}

/// Whether a replica's database survives its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// The database survives.
    Durable,
    /// The database ends with the process.
    Ephemeral,
}

/// Output of a journal: an action that the caller carries out, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JournalOutput {
    /// Look up the entry of the topic with this key.
    LookUp(AppendId, String),
    /// Store this run, whose entries have these hashes. Leave entries that are already stored unchanged.
    Store(WriteId, Arc<Run>, Vec<ChainHash>),
    /// Read runs of this feed with entries that the extent lacks, the earliest first, as many as fit into a
    /// message.
    Load(LoadId, Extent),
    /// A replica dropped the entries of this feed up to this number, so they need not be awaited. Treat
    /// missing entries before the first entry on this disk as dropped, store that, and pass
    /// [`JournalInput::Forgone`]. Keep the entries on this disk.
    Forgo(FeedId, Seq),
    /// Store the generation of a replica; it is restored at the next start.
    KeepReplica(Generation),
    /// Send a request to a connected replica.
    Request(NodeId, RequestId, JournalRequest),
    /// Send the response to a request.
    Respond(NodeId, RequestId, JournalResponse),
    /// Answer to an append.
    Answer(AppendId, Result<Appended, AppendError>),
    /// A peer sent a message that is forged or breaks a bound.
    Misbehaved(NodeId, &'static str),
}
/// State on disk when a journal starts.
#[derive(Debug, Default)]
pub struct RestoredJournal {
    /// Extent of each feed.
    pub extents: Vec<Extent>,
    /// Latest moment of all entries.
    pub latest: Moment,
    /// Replica set.
    pub replicas: Vec<Generation>,
}
