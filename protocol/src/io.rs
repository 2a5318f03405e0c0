//! [`Input`], [`Output`] and [`Command`] of the core, its counters, and the [`Profile`] that a node states in
//! its header.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    Incarnation, NodeId, Version,
    membership::evidence::Strength,
    providers::{Change, MemberState},
    record::{Instance, Invalid},
    sync::{RequestId, RootPrefix},
    wire::{UserEvent, UserEventContent},
};

/// Id of a received gossip message, to which the core's judgement refers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GossipId(pub u64);

/// Id of a command to fire a user event, to which the outcome refers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FireId(pub u64);

/// Reason for which a user event was not fired. No node lists it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FireRefusal {
    /// A field is out of bounds.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// This node fired too many events within a short time.
    #[error(
        "this node fires at most {per_s} user events a second, and {burst} at once; try again in a second"
    )]
    RateLimited {
        /// Events per second, on average.
        per_s: u32,
        /// Events at once.
        burst: u32,
    },
    /// This node has left the cluster.
    #[error("this node has left the cluster")]
    Left,
}

/// Content of a node's header, before it is versioned and signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Name, unique among live members.
    pub name: String,
    /// Swarm addresses (multiaddrs).
    pub addresses: Vec<String>,
    /// HTTP address, `host:port`.
    pub http: Option<String>,
    /// Plug-ins that it runs.
    pub roles: Vec<String>,
    /// Rack or availability zone.
    pub zone: Option<String>,
    /// Software version.
    pub software: String,
    /// Whether the node's key ends with its process.
    pub ephemeral: bool,
    /// gRPC address, `host:port`; `None` if the node does not serve gRPC.
    pub grpc: Option<String>,
}

/// Command to the core from this node's program or operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// State this profile from now on.
    SetProfile(Profile),
    /// State an instance, with its id.
    SetInstance(String, Box<Instance>),
    /// Remove the instance with this id.
    RemoveInstance(String),
    /// Stay connected to these members while they are present, in addition to the overlay's.
    KeepLinks(BTreeSet<NodeId>),
    /// Forget a failed or left member on all nodes. Does nothing if it is unknown or present.
    Forget(NodeId),
    /// Fire a user event. The core answers with one [`Output::Fired`].
    FireUserEvent(FireId, Box<UserEventContent>),
    /// Announce the departure. Afterwards the core states nothing more.
    Leave,
}

/// Answer to a ping. A part that the peer's version does not state is `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pong {
    /// Round trip of the ping.
    pub rtt: Duration,
    /// Root hash of the peer.
    pub root: Option<RootPrefix>,
    /// Time between this ping and the previous one that the peer received from any node.
    pub since_ping: Option<Duration>,
}

/// Input of the core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The time of [`Core::poll_timeout`](crate::Core::poll_timeout) has come.
    Tick,
    /// The driver found that a message of a peer is malformed or forged.
    Misbehaved(NodeId, &'static str),
    /// The first connection to an authenticated peer opened.
    Connected(NodeId),
    /// The last connection to a peer closed.
    Disconnected(NodeId),
    /// A dial of a peer failed. `refused`: every address refused the connection.
    DialFailed {
        /// The peer.
        peer: NodeId,
        /// Whether all addresses refused, which proves that the peer's process is gone.
        refused: bool,
    },
    /// The peer subscribed to the gossip topic.
    Subscribed(NodeId),
    /// A peer answered a ping.
    Pong(NodeId, Pong),
    /// A gossip message arrived.
    Gossip {
        /// Id for the judgement. The core answers each message with one [`Output::Judge`].
        id: GossipId,
        /// The neighbour that relayed it.
        from: NodeId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A neighbour sent a request. The core answers it with [`Output::Respond`].
    Request {
        /// The neighbour.
        from: NodeId,
        /// Id for the response.
        request_id: RequestId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The response to an [`Output::Request`]; `None`: the request failed, and no response follows.
    Response {
        /// The neighbour.
        from: NodeId,
        /// Id of the request.
        request_id: RequestId,
        /// The message.
        bytes: Option<Vec<u8>>,
    },
    /// A node may be reachable at this address (a multiaddr). `None`: the node at the address is unknown.
    Hint(Option<NodeId>, String),
    /// A command from this node's program or operator.
    Command(Command),
}

/// Judgement on a gossip message: whether the driver relays it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// Relay it.
    Accept,
    /// Do not relay it: this node knows it already, or cannot accept it for now.
    Ignore,
    /// Do not relay it, and lower the sender's score: it is forged or malformed.
    Reject,
}

/// Output of the core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Publish this message by gossip.
    Publish(Vec<u8>),
    /// Judgement on a received gossip message.
    Judge(GossipId, Judgement),
    /// Dial a peer at these addresses (multiaddrs).
    Dial(NodeId, Vec<String>),
    /// Dial an address (a multiaddr). If a peer is given, accept a connection with that peer only.
    DialAddress(Option<NodeId>, String),
    /// Close all connections to a peer.
    Disconnect(NodeId),
    /// Ping a connected peer.
    Ping(NodeId),
    /// Send a request to a connected peer.
    Request(NodeId, RequestId, Vec<u8>),
    /// Send the response to a request.
    Respond(RequestId, Vec<u8>),
    /// Change for the provider table.
    Change(Change),
    /// An operator ordered, at any node, that this member be forgotten. Members that are forgotten for their
    /// age cause no such output.
    ForgottenByOperator(NodeId),
    /// A user event that was fired at this node or at another one, after this node's start. Each comes once.
    UserEvent(Box<UserEvent>),
    /// The outcome of a command to fire a user event. If it was fired, its [`Output::UserEvent`] came before.
    Fired(FireId, Result<Box<UserEvent>, FireRefusal>),
    /// Event for the log.
    Event(Event),
    /// The node must stop.
    Fatal(Fatal),
}

/// Event for the log, which an operator may want to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A member joined or changed its state. The text is its name.
    Member(NodeId, String, MemberState),
    /// A node reports that a member is gone or silent.
    Accused {
        /// The observer.
        by: NodeId,
        /// The member.
        subject: NodeId,
        /// How sure the observer is.
        strength: Strength,
    },
    /// This node refuted a report that it is gone or silent.
    Refuted {
        /// The observer that made the report.
        by: NodeId,
        /// The new version of this node's header.
        version: Version,
    },
    /// Two present members state one name.
    NameTaken {
        /// The name.
        name: String,
        /// The member that keeps the name, because this node knew it first.
        first: NodeId,
        /// The other member.
        other: NodeId,
        /// The name under which the other member is shown.
        shown: String,
    },
    /// A younger process runs under this node's key.
    KeyTaken(Incarnation),
    /// A member was removed by order of an operator.
    Forgotten {
        /// The member.
        id: NodeId,
        /// Its name.
        name: String,
        /// The node that received the order.
        by: NodeId,
    },
    /// A peer sent a forged or malformed message.
    Misbehaved(NodeId, &'static str),
}

/// Reason for which the node must stop.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fatal {
    /// An older process runs under this key.
    #[error(
        "another process already runs under this node's key, since {0}: the data dir was copied. Stop one of the two, or give this one a data dir of its own (--data-dir) so that it gets its own key"
    )]
    KeyTaken(Incarnation),
}

/// Counters of the core, as `/metrics` lists them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Gossip messages received.
    pub gossip_received: u64,
    /// Gossip messages published.
    pub gossip_published: u64,
    /// Entries that changed the state.
    pub entries_applied: u64,
    /// Entries that were already known, or older than the known ones.
    pub entries_stale: u64,
    /// Entries refused because the header of their incarnation had not arrived.
    pub entries_early: u64,
    /// Entries or evidence that their author did not sign.
    pub forged: u64,
    /// Messages or values that could not be decoded or break a bound.
    pub malformed: u64,
    /// Messages of a kind that this build does not know.
    pub unknown_kind: u64,
    /// Entries refused because the table or a node's part of it is full.
    pub table_full: u64,
    /// Entries and evidence dropped because their author exceeded its rate limit.
    pub rate_limited: u64,
    /// Claims on disputed keys dropped because there were too many.
    pub claims_dropped: u64,
    /// Members that were removed by order of an operator.
    pub forgotten_by_operator: u64,
    /// Orders to forget a member that were not obeyed, because this node holds the member present.
    pub forgets_refused: u64,
    /// Orders to forget no longer forwarded because there were too many.
    pub forgets_dropped: u64,
    /// This node's reports on other members.
    pub accusations_made: u64,
    /// Reports of silence that this node withheld, because all its answers or timers were late.
    pub accusations_withheld: u64,
    /// Other nodes' reports on other members.
    pub accusations_heard: u64,
    /// Reports on this node that it refuted.
    pub refutations: u64,
    /// Verdicts that a member is failed.
    pub verdicts_failed: u64,
    /// Failed members that proved to be alive after all.
    pub verdicts_revoked: u64,
    /// Anti-entropy sessions started.
    pub sync_rounds: u64,
    /// Sessions started because a pong carried another root hash.
    pub sync_by_pong: u64,
    /// Sessions that found a difference.
    pub sync_differences: u64,
    /// Sessions that compared both tables to the end.
    pub sync_completed: u64,
    /// Sessions that ended without a response.
    pub sync_timeouts: u64,
    /// Hints dropped because too many were waiting.
    pub hints_dropped: u64,
    /// Times that this node's timers ran 200 ms or more late.
    pub overslept: u64,
}

impl Counters {
    /// Name, help text and value of each counter.
    pub fn list(&self) -> [(&'static str, &'static str, u64); 27] {
        [
            ("gossip_received", "Gossip messages received", self.gossip_received),
            ("gossip_published", "Gossip messages published", self.gossip_published),
            ("entries_applied", "Entries that changed the state", self.entries_applied),
            ("entries_stale", "Entries that were known or superseded", self.entries_stale),
            (
                "entries_early",
                "Entries refused because the header of their incarnation had not come",
                self.entries_early,
            ),
            ("forged", "Entries or evidence that their author did not sign", self.forged),
            ("malformed", "Messages or values that are malformed or break a bound", self.malformed),
            ("unknown_kind", "Messages of a kind that only a newer version knows", self.unknown_kind),
            ("table_full", "Entries refused because the table is full", self.table_full),
            (
                "rate_limited",
                "Entries and evidence dropped because their author is over its rate limit",
                self.rate_limited,
            ),
            (
                "claims_dropped",
                "Claims on disputed keys dropped because there were too many",
                self.claims_dropped,
            ),
            ("forgotten_by_operator", "Members that an operator had forgotten", self.forgotten_by_operator),
            (
                "forgets_refused",
                "Orders to forget a member that is present here, not obeyed",
                self.forgets_refused,
            ),
            (
                "forgets_dropped",
                "Orders to forget no longer forwarded because there were too many",
                self.forgets_dropped,
            ),
            (
                "accusations_made",
                "Reports of this node that a member is gone or silent",
                self.accusations_made,
            ),
            (
                "accusations_withheld",
                "Reports of silence withheld because everything was late",
                self.accusations_withheld,
            ),
            (
                "accusations_heard",
                "Reports of other nodes that a member is gone or silent",
                self.accusations_heard,
            ),
            ("refutations", "Reports on this node that it refuted", self.refutations),
            ("verdicts_failed", "Verdicts that a member is failed", self.verdicts_failed),
            ("verdicts_revoked", "Failed members that proved to be alive", self.verdicts_revoked),
            ("sync_rounds", "Anti-entropy sessions started", self.sync_rounds),
            (
                "sync_by_pong",
                "Anti-entropy sessions started because a pong carried another root hash",
                self.sync_by_pong,
            ),
            ("sync_differences", "Anti-entropy sessions that found a difference", self.sync_differences),
            (
                "sync_completed",
                "Anti-entropy sessions that compared both tables to the end",
                self.sync_completed,
            ),
            ("sync_timeouts", "Anti-entropy sessions that ended without a response", self.sync_timeouts),
            ("hints_dropped", "Hints of addresses dropped because too many waited", self.hints_dropped),
            ("overslept", "Times that this node's timers ran 200 ms or more late", self.overslept),
        ]
    }
}
