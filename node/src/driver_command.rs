//! [`DriverCommand`]: command from the rest of the node to the driver; and [`Neighbourhood`], which the
//! driver publishes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hearsay_protocol::{
    Command, FireRefusal, Instance, MemberState, NodeId, RequestId,
    wire::{UserEvent, UserEventContent},
};
use libp2p::Multiaddr;
use tokio::sync::oneshot;

/// A command to the driver, sent over a bounded channel.
#[derive(Debug)]
pub enum DriverCommand {
    /// Pass a command to the core.
    Command(Command),
    /// State these instances, by id; `None` withdraws an instance. Answered once readers see the change.
    SetInstances(Vec<(String, Option<Box<Instance>>)>, oneshot::Sender<()>),
    /// Fetch the check reports of an instance from the member that holds it. On failure the sender is
    /// dropped.
    FetchReports(NodeId, String, oneshot::Sender<Vec<u8>>),
    /// A node may be reachable at this address.
    Hint(Option<NodeId>, Multiaddr),
    /// Connect to the node at one of these addresses, which `--join` names. Answered with whether this node
    /// has already reached one of them.
    Join(Vec<(Option<NodeId>, Multiaddr)>, oneshot::Sender<bool>),
    /// Send a topic's request to another replica.
    SendReplicaRequest(NodeId, String, RequestId, Vec<u8>),
    /// Send a topic's response to another replica.
    SendReplicaResponse(RequestId, Vec<u8>),
    /// Report that a peer broke the protocol, and how.
    Misbehaved(NodeId, &'static str),
    /// State the node's own instances as critical, or as passing.
    Maintenance(bool),
    /// Forget a member that has failed or left, on this node and on all others.
    Forget(NodeId, oneshot::Sender<ForgetOutcome>),
    /// Fire a user event. Answered once this node lists it, if its filters accept this node.
    FireUserEvent(Box<UserEventContent>, oneshot::Sender<Fired>),
    /// Apply reloaded options. Refused as a whole, with the reason, if other nodes would refuse the entries
    /// that result.
    Reload(Reloaded, oneshot::Sender<Result<(), String>>),
    /// Answer, as a sign that the driver's loop makes progress.
    Alive(oneshot::Sender<()>),
    /// Leave the cluster. Answered when the neighbours have the farewell, or after half a second.
    Leave(oneshot::Sender<()>),
}

/// The outcome of [`DriverCommand::FireUserEvent`].
pub type Fired = Result<Box<UserEvent>, FireRefusal>;

/// The outcome of [`DriverCommand::Forget`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForgetOutcome {
    /// This node has forgotten the member and tells the others.
    Done,
    /// No member has this id.
    Unknown,
    /// The member is in a state in which it cannot be forgotten. Nothing was changed.
    Present(MemberState),
}

/// The reloadable options that the driver uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reloaded {
    /// The nodes to admit; `None` admits all.
    pub allowed: Option<Vec<NodeId>>,
    /// All tags of each service that this node offers.
    pub tags: BTreeMap<String, Vec<String>>,
    /// The node's zone.
    pub zone: Option<String>,
}

/// The network around the node, published by the driver. Discovery and `GET /network` read it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Neighbourhood {
    /// Nodes with a connection to this node.
    pub neighbours: BTreeSet<NodeId>,
    /// Whether the node has compared its table with a peer's since it started.
    pub has_synced: bool,
    /// Whether the node uses mDNS now.
    pub mdns: bool,
    /// Other hosts that sent mDNS announcements, at most [`HEARD_MAX`].
    pub heard: BTreeSet<IpAddr>,
    /// Nodes that were announced or named and cannot be reached.
    pub outsiders: Vec<Outsider>,
}

/// Why a node is an outsider.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// The handshake failed: the two nodes use different cluster keys, or one of them uses none.
    AnotherKey,
    /// The node belongs to the cluster of this name.
    OtherCluster(String),
    /// The node accepts no connection: a firewall, or no route.
    NoAnswer,
}

impl Reason {
    /// Returns the reason's name in `GET /network`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::AnotherKey => "another-key",
            Self::OtherCluster(_) => "other-cluster",
            Self::NoAnswer => "no-answer",
        }
    }
}

/// A node that this node cannot communicate with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outsider {
    /// The node's id, if known.
    pub id: Option<NodeId>,
    /// The dialled `host:port`, or the host from which the node connected.
    pub address: String,
    /// The cause.
    pub reason: Reason,
}

/// Maximum number of hosts in [`Neighbourhood::heard`]. One host proves that multicast works.
pub const HEARD_MAX: usize = 16;
