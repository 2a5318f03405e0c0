//! Part of [`Driver`]: passes messages between this node's journals (topics) and their replicas on other
//! nodes, tells each topic its live replicas, and has the core stay connected to some of them.

use std::collections::{BTreeMap, BTreeSet};

use hearsay_protocol::{
    Command, Input, NodeId, RequestId,
    journal::{Durability, PROTOCOL_WITH_EPOCHS, split_address},
};
use libp2p::request_response::Event;

use super::{exchange::Exchange, state::Driver};
use crate::{
    swarm::{node_of, peer_of},
    warnings,
};

/// Maximum number of replicas of one topic to which this node chooses to stay connected; others may choose
/// this node. Through these connections its entries reach all replicas.
const REPLICAS_MAX: usize = 4;
/// Maximum number of older replicas that a warning names.
const LISTED_MAX: usize = 5;
/// Maximum number of requests of replicas that wait for a topic's worker.
const CHANNELS_MAX: usize = 4096;

impl Driver {
    /// Sends a topic's request to another replica.
    pub(super) fn send_replica_request(
        &mut self,
        peer: NodeId,
        topic: String,
        id: RequestId,
        bytes: Vec<u8>,
    ) {
        match peer_of(peer) {
            Some(peer) => {
                let request = self.swarm.behaviour_mut().journal.send_request(&peer, bytes);
                self.replication.requests.insert(request, (topic, id));
            }
            None => self.replication.journals.on_response(&topic, peer, id, None),
        }
    }

    /// Sends a topic's response to another replica, which may be gone.
    pub(super) fn send_replica_response(&mut self, id: RequestId, bytes: Vec<u8>) {
        if let Some(channel) = self.replication.channels.remove(&id) {
            _ = self.swarm.behaviour_mut().journal.send_response(channel, bytes);
        }
    }

    /// Passes requests and responses of other replicas to their topics.
    pub(super) fn on_replica(&mut self, event: Event<Vec<u8>, Vec<u8>>) {
        match Exchange::of(event) {
            Some(Exchange::Request(peer, bytes, channel)) => {
                let Some(from) = node_of(peer) else { return };
                let Some((topic, bytes)) = split_address(&bytes) else {
                    return self.handle_input(Input::Misbehaved(from, "journal request"));
                };
                let id = RequestId(self.next_id());
                // A dropped channel tells the peer that no answer will come.
                if self.replication.channels.len() < CHANNELS_MAX
                    && self.replication.journals.on_request(topic, from, id, bytes.to_vec())
                {
                    self.replication.channels.insert(id, channel);
                }
            }
            Some(Exchange::Response(peer, request, bytes)) => {
                if let (Some((topic, id)), Some(from)) =
                    (self.replication.requests.remove(&request), node_of(peer))
                {
                    self.replication.journals.on_response(&topic, from, id, bytes);
                }
            }
            None => (),
        }
    }

    /// Warns of live replicas whose version orders rows by time alone.
    fn warn_of_older_replicas(&self) {
        let mut older = BTreeSet::new();
        for topic in
            self.replication.journals.names().filter(|name| self.replication.journals.carries_epochs(name))
        {
            let replicas = self.replication.replicas.get(topic).into_iter().flat_map(BTreeMap::keys);
            self.view.read(|table| {
                let members = replicas.filter_map(|id| table.member(*id));
                let is_older = members.filter(|member| member.protocol < PROTOCOL_WITH_EPOCHS);
                older.extend(is_older.map(|member| format!("{} ({topic})", member.name)));
            });
        }
        let text = (!older.is_empty()).then(|| {
            let listed: Vec<_> = older.iter().take(LISTED_MAX).map(String::as_str).collect();
            let more = if older.len() > LISTED_MAX { " and others" } else { "" };
            format!(
                "rows are ordered differently on replicas of an older version: {}{more}. They order rows by time alone, so where clocks \
                 differ by more than a day, their tables differ from this node's until they are upgraded",
                listed.join(", ")
            )
        });
        self.warnings.set(warnings::ROW_ORDER, text);
    }

    /// Tells each topic its live replicas, and makes the core stay connected to the nearest of them. Returns
    /// whether the replicas of any topic changed.
    pub(super) fn update_replicas(&mut self) -> bool {
        let me = self.core.id();
        let topics: Vec<String> = self.replication.journals.names().map(str::to_owned).collect();
        let mut changed = false;
        for topic in topics {
            let replicas: BTreeMap<NodeId, Durability> = self.view.read(|table| {
                // A registered program of the same name keeps no journal.
                let roles = table.providers(&topic).filter(|provider| provider.is_role());
                let others = roles.map(|provider| provider.node_id).filter(|id| *id != me);
                let durability = |id| match table.member(id).is_some_and(|member| member.ephemeral) {
                    true => Durability::Ephemeral,
                    false => Durability::Durable,
                };
                others.map(|id| (id, durability(id))).collect()
            });
            if self.replication.replicas.get(&topic) != Some(&replicas) {
                changed = true;
                self.replication.journals.set_replicas(&topic, replicas.clone());
                self.replication.replicas.insert(topic, replicas);
            }
        }
        self.warn_of_older_replicas();
        if changed {
            let present = self.core.present_len();
            // If most members are replicas, the overlay connects them well enough.
            let needs_links = |replicas: &&BTreeMap<NodeId, Durability>| {
                replicas.len() <= REPLICAS_MAX || replicas.len() * 2 < present
            };
            let sets = self.replication.replicas.values().filter(needs_links);
            let near = sets.flat_map(|replicas| nearest(me, replicas)).collect();
            self.handle_input(Input::Command(Command::KeepLinks(near)));
        }
        changed
    }
}

/// Returns the replicas to stay connected to: all, or the [`REPLICAS_MAX`] with the lowest hash of their id
/// and this node's. Both ends compute the same hash.
fn nearest(me: NodeId, replicas: &BTreeMap<NodeId, Durability>) -> Vec<NodeId> {
    let mut ranked: Vec<NodeId> = replicas.keys().copied().collect();
    if ranked.len() > REPLICAS_MAX {
        ranked.sort_by_cached_key(|other| {
            let (a, b) = (me.min(*other), me.max(*other));
            let mut hasher = blake3::Hasher::new();
            hasher.update(a.public_key()).update(b.public_key());
            *hasher.finalize().as_bytes()
        });
        ranked.truncate(REPLICAS_MAX);
    }
    ranked
}
