//! [`TopicCommand`]: command to a topic's worker, sent over one queue that is bounded by bytes.

use std::{collections::BTreeMap, time::Instant};

use hearsay_protocol::{
    NodeId, RequestId,
    journal::{AppendError, Appended, Durability, Level},
};
use hearsay_services::journal::Write;
use tokio::sync::oneshot;

/// A command to a topic's worker.
pub(super) enum TopicCommand {
    /// Append an entry for a plug-in before the deadline, at the requested level, if any.
    Append(Write, Option<Level>, Instant, oneshot::Sender<Result<Appended, AppendError>>),
    /// A reader found the database damaged. The number says how many times the file had been replaced when
    /// the reader opened it.
    Damaged(u64),
    /// These live members, other than this node, keep the topic.
    Replicas(BTreeMap<NodeId, Durability>),
    /// A replica was removed by order of an operator.
    ForgetReplica(NodeId),
    /// The first connection to a peer opened.
    Connected(NodeId),
    /// The last connection to a peer closed.
    Disconnected(NodeId),
    /// A request of a replica, encoded.
    Request(NodeId, RequestId, Vec<u8>),
    /// The response of a replica, encoded; `None` after a failure.
    Response(NodeId, RequestId, Option<Vec<u8>>),
}

impl TopicCommand {
    /// Returns the bytes that the command occupies in the queue.
    pub(super) fn bytes(&self) -> usize {
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
