//! Between journals: carries what a topic's replicas ask of each other, and says who they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hearsay_protocol::{
    NodeId,
    io::{Command, Input},
    journal::{Durability, clock::PROTOCOL_WITH_EPOCHS, message::addressed},
    providers::Change,
    sync::Ticket,
};
use libp2p::request_response::{self, Message, OutboundRequestId, ResponseChannel};

use super::Driver;
use crate::{
    journal::Journals,
    swarm::{node_of, peer_of},
    warnings,
};

/// Replicas of one topic that this node stays connected to, beside those that chose it. What it writes reaches the others through these.
const REPLICAS_MAX: usize = 4;
/// Older replicas named in a warning.
const LISTED_MAX: usize = 5;
/// Questions of replicas that wait for a topic's thread.
const ANSWERING_MAX: usize = 4096;

/// What is under way between replicas.
pub(super) struct Replication {
    pub(super) journals: Arc<Journals>,
    asked: BTreeMap<OutboundRequestId, (String, Ticket)>,
    answering: BTreeMap<Ticket, ResponseChannel<Vec<u8>>>,
    /// Whom each topic was told last.
    told: BTreeMap<String, BTreeMap<NodeId, Durability>>,
}

impl Replication {
    pub(super) fn new(journals: Arc<Journals>) -> Self {
        Self { journals, asked: BTreeMap::new(), answering: BTreeMap::new(), told: BTreeMap::new() }
    }
}

/// Whether a change of the table may be one of who keeps what.
pub(super) fn may_move(change: &Change) -> bool {
    matches!(change, Change::Instance { .. } | Change::Member(_) | Change::Forgotten(_))
}

impl Driver {
    pub(super) fn ask_replica(&mut self, peer: NodeId, topic: String, ticket: Ticket, bytes: Vec<u8>) {
        match peer_of(peer) {
            Some(peer) => {
                let id = self.swarm.behaviour_mut().journal.send_request(&peer, bytes);
                self.replication.asked.insert(id, (topic, ticket));
            }
            None => self.replication.journals.answered(&topic, peer, ticket, None),
        }
    }

    pub(super) fn answer_replica(&mut self, ticket: Ticket, bytes: Vec<u8>) {
        if let Some(channel) = self.replication.answering.remove(&ticket) {
            // The asker may be gone.
            _ = self.swarm.behaviour_mut().journal.send_response(channel, bytes);
        }
    }

    pub(super) fn on_replica(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        let (peer, request_id, bytes) = match event {
            request_response::Event::Message {
                peer,
                message: Message::Request { request, channel, .. },
                ..
            } => {
                let Some(from) = node_of(peer) else { return };
                self.next_id += 1;
                let ticket = Ticket(self.next_id);
                let Some((topic, bytes)) = addressed(&request) else {
                    return self.feed(Input::Misbehaved(from, "journal request"));
                };
                // Dropping the channel tells the asker that nobody answers.
                if self.replication.answering.len() < ANSWERING_MAX
                    && self.replication.journals.asked(topic, from, ticket, bytes.to_vec())
                {
                    self.replication.answering.insert(ticket, channel);
                }
                return;
            }
            request_response::Event::Message {
                peer,
                message: Message::Response { request_id, response },
                ..
            } => (peer, request_id, Some(response)),
            request_response::Event::OutboundFailure { peer, request_id, .. } => (peer, request_id, None),
            request_response::Event::InboundFailure { .. } | request_response::Event::ResponseSent { .. } => {
                return;
            }
        };
        if let (Some((topic, ticket)), Some(from)) =
            (self.replication.asked.remove(&request_id), node_of(peer))
        {
            self.replication.journals.answered(&topic, from, ticket, bytes);
        }
    }

    /// Warns where a live replica is of a version that orders rows by time alone.
    fn warn_of_older_replicas(&self) {
        let mut older = BTreeSet::new();
        for topic in
            self.replication.journals.names().filter(|name| self.replication.journals.carries_epochs(name))
        {
            let replicas = self.replication.told.get(topic).into_iter().flat_map(BTreeMap::keys);
            self.view.read(|table| {
                let members = replicas.filter_map(|id| table.member(*id));
                let speaks_less = members.filter(|member| member.protocol < PROTOCOL_WITH_EPOCHS);
                older.extend(speaks_less.map(|member| format!("{} ({topic})", member.name)));
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

    /// Tells each topic who else keeps it, and the core to stay connected to them. Returns whether something changed.
    pub(super) fn tell_replicas(&mut self) -> bool {
        let me = self.core.id();
        let topics: Vec<String> = self.replication.journals.names().map(str::to_owned).collect();
        let mut changed = false;
        for topic in topics {
            let replicas: BTreeMap<NodeId, Durability> = self.view.read(|table| {
                // A program that bears the role's name keeps no journal.
                let roles = table.providers(&topic).filter(|provider| provider.is_role());
                let others = roles.map(|provider| provider.node_id).filter(|id| *id != me);
                let durability = |id| match table.member(id).is_some_and(|member| member.ephemeral) {
                    true => Durability::Ephemeral,
                    false => Durability::Durable,
                };
                others.map(|id| (id, durability(id))).collect()
            });
            if self.replication.told.get(&topic) != Some(&replicas) {
                changed = true;
                self.replication.journals.replicas(&topic, replicas.clone());
                self.replication.told.insert(topic, replicas);
            }
        }
        self.warn_of_older_replicas();
        if changed {
            let present = self.core.present_len();
            // Where most members are replicas, the overlay connects them well enough.
            let apart = |replicas: &&BTreeMap<NodeId, Durability>| {
                replicas.len() <= REPLICAS_MAX || replicas.len() * 2 < present
            };
            let sets = self.replication.told.values().filter(apart);
            let near = sets.flat_map(|replicas| nearest(me, replicas)).collect();
            self.feed(Input::Command(Command::KeepLinks(near)));
        }
        changed
    }
}

/// Those to stay connected to: all, or where they are many those of the lowest hash with this node, which both ends compute alike.
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
