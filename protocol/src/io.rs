//! What goes into the core and what comes out of it.

use std::collections::BTreeSet;

use crate::{
    Incarnation, NodeId, Version,
    liveness::Strength,
    providers::{Change, MemberState},
    record::Instance,
    sync::Ticket,
};

/// Names a gossip message that waits for the core's judgement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GossipId(pub u64);

/// What a node says of itself, before it is versioned and signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Its swarm addresses (multiaddrs).
    pub addresses: Vec<String>,
    /// Its HTTP address, `host:port`.
    pub http: Option<String>,
    /// The plug-ins it runs.
    pub roles: Vec<String>,
    /// Where it stands.
    pub zone: Option<String>,
    /// Its software version.
    pub software: String,
    /// Whether its key ends with its process.
    pub ephemeral: bool,
}

/// What the user wants of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Say this of the node from now on.
    SetProfile(Profile),
    /// Offer an instance, or change it.
    SetInstance(String, Box<Instance>),
    /// Offer it no longer.
    RemoveInstance(String),
    /// Stay connected to these members, too, while they are present, whatever the overlay makes of them.
    KeepLinks(BTreeSet<NodeId>),
    /// Forget a member that has failed or left, here and everywhere. Does nothing if it is unknown or present.
    Forget(NodeId),
    /// Say goodbye. Afterwards the core states nothing more.
    Leave,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// It is as late as [`Core::poll_timeout`](crate::Core::poll_timeout) said, or later.
    Tick,
    /// A peer sent something malformed or forged, of which the core knows nothing else.
    Misbehaved(NodeId, &'static str),
    /// The first connection to an authenticated peer opened.
    Connected(NodeId),
    /// The last connection to it closed.
    Disconnected(NodeId),
    /// A dial of this peer came to nothing. `refused`: every address answered that nobody is there.
    DialFailed {
        /// Whom.
        peer: NodeId,
        /// Whether that proves that the process is gone.
        refused: bool,
    },
    /// The peer takes part in gossip.
    Subscribed(NodeId),
    /// A ping was answered after this long.
    Pong(NodeId, std::time::Duration),
    /// A gossip message came, by way of `from`.
    Gossip {
        /// Must be judged: see [`Output::Judge`].
        id: GossipId,
        /// The neighbour that passed it on.
        from: NodeId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A neighbour asks. Must be answered: see [`Output::Respond`].
    Request {
        /// Who asks.
        from: NodeId,
        /// Comes back with the answer.
        ticket: Ticket,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The answer to an [`Output::Request`]; `None`: there will be none.
    Response {
        /// Who answers.
        from: NodeId,
        /// Of the request.
        ticket: Ticket,
        /// The message.
        bytes: Option<Vec<u8>>,
    },
    /// Somebody, perhaps this peer, may be reached at this address (a multiaddr).
    Hint(Option<NodeId>, String),
    /// The user wants something.
    Command(Command),
}

/// Whether a gossip message is passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// Pass it on.
    Accept,
    /// Known already or not for now: it ends here.
    Ignore,
    /// Forged or garbage: it ends here, and who sent it is to blame.
    Reject,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Flood this.
    Publish(Vec<u8>),
    /// Whether to pass on a message that came in.
    Judge(GossipId, Judgement),
    /// Dial a peer at these addresses (multiaddrs).
    Dial(NodeId, Vec<String>),
    /// Dial whoever answers there, or only this peer if it is given.
    DialAddress(Option<NodeId>, String),
    /// Close all connections to a peer.
    Disconnect(NodeId),
    /// Ping a connected peer.
    Ping(NodeId),
    /// Ask a connected peer.
    Request(NodeId, Ticket, Vec<u8>),
    /// Answer a request.
    Respond(Ticket, Vec<u8>),
    /// Something for the provider table.
    Change(Change),
    /// An operator, here or on another node, had this member forgotten. One that is forgotten by age has no such output.
    ForgottenByOperator(NodeId),
    /// Something for the log.
    Event(Event),
    /// This node must not go on.
    Fatal(Fatal),
}

/// Something a person may want to read about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A member came, or changed its state.
    Member(NodeId, String, MemberState),
    /// Somebody reports a member.
    Accused {
        /// Who.
        by: NodeId,
        /// Whom.
        subject: NodeId,
        /// How sure it is.
        strength: Strength,
    },
    /// Somebody reported this node, and it answered.
    Refuted {
        /// Who did.
        by: NodeId,
        /// The new version of this node's header.
        version: Version,
    },
    /// Another live member has this node's name.
    NameTaken(NodeId),
    /// Another process runs under this node's key, and is younger.
    KeyTaken(Incarnation),
    /// An operator had a member forgotten.
    Forgotten {
        /// The member.
        id: NodeId,
        /// Its name.
        name: String,
        /// The node that the operator asked.
        by: NodeId,
    },
    /// A peer sent what is forged or malformed.
    Misbehaved(NodeId, &'static str),
}

/// Why this node must not go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fatal {
    /// An older process runs under this key.
    #[error(
        "another process already runs under this node's key, since {0}: the data dir was copied. Stop one of the two, or give this one a data dir of its own (--data-dir) so that it gets its own key"
    )]
    KeyTaken(Incarnation),
    /// A live member had this name first.
    #[error(
        "the name {name:?} is already used by the live member {by}. Choose another one (--name), or leave it out to get a unique one"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        by: NodeId,
    },
}

/// Everything the core counts: names for `/metrics`, with what they mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Gossip messages received.
    pub gossip_received: u64,
    /// Gossip messages published.
    pub gossip_published: u64,
    /// Entries that were news.
    pub entries_applied: u64,
    /// Entries that were known or superseded.
    pub entries_stale: u64,
    /// Entries put off because the header of their incarnation had not come.
    pub entries_early: u64,
    /// Entries or evidence that their author did not sign.
    pub forged: u64,
    /// Messages or values that could not be decoded or break a bound.
    pub malformed: u64,
    /// Messages of a kind that this build does not know.
    pub unknown_kind: u64,
    /// Entries refused because the table or a node's part of it is full.
    pub table_full: u64,
    /// Entries and evidence dropped because their author sent too many.
    pub rate_limited: u64,
    /// Claims over disputed keys neither kept nor passed on, because there were too many.
    pub claims_dropped: u64,
    /// Members that an operator had forgotten.
    pub forgotten_by_operator: u64,
    /// Orders to forget a member that this node holds present.
    pub forgets_refused: u64,
    /// Orders to forget that are no longer passed on, because there were too many.
    pub forgets_dropped: u64,
    /// Own reports of others.
    pub accusations_made: u64,
    /// Own reports of silence not made, because everything was late.
    pub accusations_withheld: u64,
    /// Reports of others by others.
    pub accusations_heard: u64,
    /// Reports of this node that it refuted.
    pub refutations: u64,
    /// Members concluded to be dead.
    pub verdicts_failed: u64,
    /// Members that turned out not to be dead after that verdict.
    pub verdicts_revoked: u64,
    /// Anti-entropy comparisons begun.
    pub sync_rounds: u64,
    /// Comparisons that found a difference.
    pub sync_differences: u64,
    /// Comparisons that got no answer.
    pub sync_timeouts: u64,
    /// Hints at strangers dropped because too many waited.
    pub hints_dropped: u64,
    /// Times this node's own timers ran late by 200 ms or more.
    pub overslept: u64,
}

impl Counters {
    /// Name, meaning and value of each.
    pub fn list(&self) -> [(&'static str, &'static str, u64); 25] {
        [
            ("gossip_received", "Gossip messages received", self.gossip_received),
            ("gossip_published", "Gossip messages published", self.gossip_published),
            ("entries_applied", "Entries that were news", self.entries_applied),
            ("entries_stale", "Entries that were known or superseded", self.entries_stale),
            (
                "entries_early",
                "Entries put off until the header of their incarnation comes",
                self.entries_early,
            ),
            ("forged", "Entries or evidence that their author did not sign", self.forged),
            ("malformed", "Messages or values that are malformed or break a bound", self.malformed),
            ("unknown_kind", "Messages of a kind that only a newer version knows", self.unknown_kind),
            ("table_full", "Entries refused because the table is full", self.table_full),
            (
                "rate_limited",
                "Entries and evidence dropped because their author sent too many",
                self.rate_limited,
            ),
            (
                "claims_dropped",
                "Claims over disputed keys not kept because there were too many",
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
                "Orders to forget no longer passed on because there were too many",
                self.forgets_dropped,
            ),
            ("accusations_made", "Own reports that a member is gone or silent", self.accusations_made),
            (
                "accusations_withheld",
                "Own reports of silence not made, because everything was late",
                self.accusations_withheld,
            ),
            ("accusations_heard", "Such reports by others", self.accusations_heard),
            ("refutations", "Reports of this node that it refuted", self.refutations),
            ("verdicts_failed", "Members concluded to be dead", self.verdicts_failed),
            ("verdicts_revoked", "Members that turned out not to be dead", self.verdicts_revoked),
            ("sync_rounds", "Anti-entropy comparisons begun", self.sync_rounds),
            ("sync_differences", "Comparisons that found a difference", self.sync_differences),
            ("sync_timeouts", "Comparisons that got no answer", self.sync_timeouts),
            ("hints_dropped", "Hints at strangers dropped because too many waited", self.hints_dropped),
            ("overslept", "Times this node's own timers ran late by 200 ms or more", self.overslept),
        ]
    }
}
