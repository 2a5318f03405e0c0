//! [`Member`]: a node's knowledge of another node (name, addresses, roles, state); and [`MemberState`].

use std::{fmt, time::Duration};

use crate::{Incarnation, NodeId, Time, Version};

/// State of a member, as the table lists it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MemberState {
    /// The member answers, or no valid evidence says otherwise.
    Alive,
    /// Nodes reported the member, but it is not declared failed yet (SWIM).
    Suspect,
    /// Declared failed because of the evidence.
    Failed,
    /// The member left on purpose.
    Left,
}

impl MemberState {
    /// The word for this state in `/members`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Failed => "failed",
            Self::Left => "left",
        }
    }

    /// Whether the instances of such a member are listed.
    pub fn is_present(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Member: a node's knowledge of another node, or of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Id.
    pub id: NodeId,
    /// Name under which this node shows it: the one that it states, or `name-<short id>` if a member known
    /// earlier states the same.
    pub name: String,
    /// State.
    pub state: MemberState,
    /// Plug-ins that the node runs.
    pub roles: Vec<String>,
    /// Swarm addresses (multiaddrs).
    pub addresses: Vec<String>,
    /// HTTP address, `host:port`.
    pub http: Option<String>,
    /// Rack or availability zone.
    pub zone: Option<String>,
    /// Software version.
    pub software: String,
    /// Protocol version.
    pub protocol: u16,
    /// Whether key and data of the node end with its process.
    pub ephemeral: bool,
    /// gRPC address, `host:port`; `None` if the node serves no gRPC, or is of a version that does not state
    /// it.
    pub grpc: Option<String>,
    /// Current incarnation.
    pub incarnation: Incarnation,
    /// Version of the node's header. Evidence refers to this version.
    pub version: Version,
    /// Since when the member is in this state, by the local clock.
    pub since: Time,
    /// Last round trip to the member; `None` without a connection.
    pub rtt: Option<Duration>,
    /// Position in the order in which this node came to know its members; 0 is this node. Not replicated.
    pub rank: u64,
    /// Whether a member known earlier keeps the name, so that this one is shown under another.
    pub namesake: bool,
}
