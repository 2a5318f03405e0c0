//! Data types of the simulated network: delays and loss, one end of a connection, messages, and scheduled
//! events. The behaviour is in network.rs and cluster.rs.

use std::time::Duration;

use crate::Time;

/// Number of a simulated node, from 0.
pub type NodeIndex = usize;

/// Delays and losses of the network.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Shortest delay of a message.
    pub delay_min: Duration,
    /// Longest delay of a message that is not lost.
    pub delay_max: Duration,
    /// Packet loss in percent. As over TCP, a lost packet delays its message by a retransmission after 200
    /// ms, the next loss by 400 ms, and so on.
    pub loss_percent: u8,
}

impl Default for Weather {
    fn default() -> Self {
        Self { delay_min: Duration::from_micros(50), delay_max: Duration::from_millis(2), loss_percent: 0 }
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) id: u64,
    /// Whether this end dialled the connection.
    pub(super) dialled: bool,
    pub(super) since: Time,
}

/// Event that a node receives, over a connection or from its own host.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Wake,
    Open { peer: NodeIndex, their_life: u64, link: u64, dialled: bool },
    Subscribe { peer: NodeIndex, link: u64 },
    Refuse { peer: NodeIndex, refused: bool },
    Unanswered { from: NodeIndex, request_id: u64 },
    Carried { from: NodeIndex, link: u64, message: LinkMessage },
}

/// Message over a connection.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LinkMessage {
    Close,
    Gossip(Vec<u8>),
    Ping(Time),
    /// Time of the ping. The rest is `None` if the sender poses as a node of an older version.
    Pong(Time, Option<PongState>),
    Request(u64, Vec<u8>),
    Response(u64, Vec<u8>),
}

/// What a pong carries: the root prefix, and the time since the previous ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PongState {
    pub(super) root: [u8; 8],
    pub(super) since_ping: Duration,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) at: Time,
    pub(super) order: u64,
    pub(super) to: NodeIndex,
    /// Life (run of the process) of the receiver for which the event is meant. A message over a connection is
    /// delivered to the host in any life.
    pub(super) life: u64,
    pub(super) what: What,
}

/// Message over a blocked pair, which TCP retransmits until the pair is unblocked.
#[derive(Debug)]
pub(super) struct Stalled {
    pub(super) from: NodeIndex,
    pub(super) to: NodeIndex,
    pub(super) link: u64,
    pub(super) message: LinkMessage,
}
