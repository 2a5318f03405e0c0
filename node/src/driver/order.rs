//! What the rest of a node and its driver say to each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hearsay_protocol::{NodeId, io::Command, record::Instance, sync::Ticket};
use libp2p::Multiaddr;
use tokio::sync::oneshot;

use super::outsiders::Outsider;
use crate::control::Forgetting;

/// What others ask of the driver.
#[derive(Debug)]
pub enum Order {
    /// For the core.
    Command(Command),
    /// State these instances by their ids, or state them no longer. Answered once readers see it.
    SetInstances(Vec<(String, Option<Box<Instance>>)>, oneshot::Sender<()>),
    /// Ask a member how the checks of an instance are that it holds.
    AskForReports(NodeId, String, oneshot::Sender<Vec<u8>>),
    /// Somebody may be reached at this address.
    Hint(Option<NodeId>, Multiaddr),
    /// The user wants a connection to whoever is at one of these addresses. Answered with whether there has been one already.
    Join(Vec<(Option<NodeId>, Multiaddr)>, oneshot::Sender<bool>),
    /// Ask a replica of a topic.
    AskReplica(NodeId, String, Ticket, Vec<u8>),
    /// Answer a replica of a topic.
    AnswerReplica(Ticket, Vec<u8>),
    /// A peer sent what it should not have.
    Misbehaved(NodeId, &'static str),
    /// Offer the node's own instances as critical, or as passing.
    Maintenance(bool),
    /// Forget a member that has failed or left, here and everywhere.
    Forget(NodeId, oneshot::Sender<Forgetting>),
    /// Go by these options from now on. Refused as a whole, with the reason, if others would not take what the node then states.
    Reload(Reloaded, oneshot::Sender<Result<(), String>>),
    /// Say that the driver turns.
    Alive(oneshot::Sender<()>),
    /// Say goodbye; answered when the neighbours have it, or after half a second.
    Leave(oneshot::Sender<()>),
}

/// The options that a running node can change, as far as the driver goes by them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reloaded {
    /// The nodes to admit; `None` admits all.
    pub allowed: Option<Vec<NodeId>>,
    /// All tags of each service that this node offers.
    pub tags: BTreeMap<String, Vec<String>>,
    /// Where the node stands.
    pub zone: Option<String>,
}

/// What the driver tells of the network around the node, so that a node that is alone looks for others, and people see it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Neighbourhood {
    /// To whom there is a connection.
    pub neighbours: BTreeSet<NodeId>,
    /// Whether the node takes part in mDNS now.
    pub mdns: bool,
    /// Other hosts that mDNS has heard of a node, at most [`HEARD_MAX`].
    pub heard: BTreeSet<IpAddr>,
    /// Nodes that were announced or named and cannot be talked to.
    pub outsiders: Vec<Outsider>,
}

/// The most hosts in [`Neighbourhood::heard`]. One proves that multicast works.
pub const HEARD_MAX: usize = 16;
