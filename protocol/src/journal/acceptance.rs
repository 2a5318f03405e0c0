//! Part of [`Journal`]: decides from which peers runs are taken and to which they are sent, and how much room
//! the feeds of a writer have.
//!
//! A member can invent writers and lives of writers, and each life is a feed. So the room for feeds depends
//! on what this node knows of their writer ([`Standing`]), as file systems reserve blocks. Feeds of invented
//! writers cannot use the room of live replicas.

use super::{
    extents::{Extents, Standing},
    feed::FeedId,
    machine::Journal,
    message::JournalRequest,
};
use crate::NodeId;

impl Journal {
    /// Whether a peer keeps the topic: it is a live replica, or a member of the replica set. The latter
    /// covers a replica whose newest entries have not arrived here yet, for example after its restart.
    fn is_replica(&self, peer: NodeId) -> bool {
        self.replicas.contains_key(&peer) || self.replica_set.contains(peer)
    }

    /// What this node knows of a writer.
    fn standing(&self, writer: NodeId) -> Standing {
        if writer == self.identity.id() || self.replicas.contains_key(&writer) {
            Standing::Live
        } else if self.replica_set.was_member(writer) {
            Standing::Former
        } else {
            Standing::Unknown
        }
    }

    /// Whether there is room for entries of a feed.
    pub(super) fn has_room(&self, feed: FeedId) -> bool {
        self.extents.has_room(feed, self.standing(feed.writer))
    }

    /// Whether a request is refused because of its sender or of the run's writer. Entries are taken from and
    /// sent to replicas only.
    ///
    /// The run of an unknown writer is refused where it is pushed. Such a writer may be an ephemeral replica
    /// that ended before this node started, and its entries must not be lost. So repair fetches them from
    /// replicas, into the little room that unknown writers have.
    pub(super) fn refuses_stranger(&mut self, from: NodeId, request: &JournalRequest) -> bool {
        let is_refused = match request {
            JournalRequest::Push(run) => {
                let is_known = |extents: &Extents| extents.feeds_of(run.feed.writer) > 0;
                !self.is_replica(from)
                    || (self.standing(run.feed.writer) == Standing::Unknown && !is_known(&self.extents))
            }
            JournalRequest::Pull(_) => !self.is_replica(from),
            _ => false,
        };
        self.counters.strangers += u64::from(is_refused);
        is_refused
    }
}
