//! [`Driver`]: state of the driver, which connects the core to the swarm. The other files of this folder add
//! its methods.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use hearsay_protocol::{Core, FireId, GossipId, Input, NodeId, RequestId};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{IdentTopic, MessageId},
    request_response::{OutboundRequestId, ResponseChannel},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    dials::Dials, outcome::Outcome, outsiders::Outsiders, peer_clocks::PeerClocks, replication::Replication,
};
use crate::{
    driver_command::{DriverCommand, Fired, Neighbourhood},
    journal::Journals,
    metrics::Metrics,
    presentation::Presentation,
    registry::CheckReportReader,
    swarm::Behaviour,
    user_events::UserEvents,
    view::View,
    warnings::Warnings,
};

/// The first of the connections to a peer.
#[derive(Debug)]
pub(super) struct PeerConnection {
    pub(super) since: Instant,
    /// Whether this node dialled.
    pub(super) is_dialled: bool,
    /// This node's end; unknown for a dialled connection.
    pub(super) local: Option<Multiaddr>,
    /// The peer's end, as this host sees it.
    pub(super) remote: Multiaddr,
    /// The peer's process, once identify has named it. A restarted peer has another one, and so has a second
    /// process under the same key.
    pub(super) process: Option<String>,
}

/// The driver's state.
pub struct Driver {
    pub(super) core: Core,
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) topic: IdentTopic,
    pub(super) cluster: String,
    pub(super) view: Arc<View>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) presentation: Presentation,
    pub(super) warnings: Arc<Warnings>,
    pub(super) peer_clocks: PeerClocks,
    pub(super) commands: mpsc::Receiver<DriverCommand>,
    pub(super) neighbourhood: watch::Sender<Neighbourhood>,
    pub(super) mdns_wanted: bool,
    pub(super) mdns_on: bool,
    /// The last id given to a gossip message or a request.
    pub(super) last_id: u64,
    /// Gossip messages that the core has not judged yet.
    pub(super) unjudged: BTreeMap<GossipId, (MessageId, PeerId)>,
    /// Anti-entropy requests of peers that the core has not answered yet.
    pub(super) sync_channels: BTreeMap<RequestId, ResponseChannel<Vec<u8>>>,
    /// Anti-entropy requests to peers.
    pub(super) sync_requests: BTreeMap<OutboundRequestId, RequestId>,
    pub(super) connected: BTreeMap<PeerId, PeerConnection>,
    /// Peers to disconnect from, and when.
    pub(super) disconnect_at: BTreeMap<PeerId, Instant>,
    /// Peers of other clusters to block, and when.
    pub(super) block_at: BTreeMap<PeerId, Instant>,
    pub(super) blocked_until: BTreeMap<PeerId, Instant>,
    /// The answer to [`DriverCommand::Leave`], and its deadline.
    pub(super) farewell: Option<(oneshot::Sender<()>, Instant)>,
    /// Results of commands, sent once readers of the view can see them.
    pub(super) outcomes: Vec<Outcome>,
    pub(super) user_events: Arc<UserEvents>,
    /// Commands to fire a user event that the core has not answered yet.
    pub(super) firing: BTreeMap<FireId, oneshot::Sender<Fired>>,
    /// Addresses that mDNS announces, by node.
    pub(super) announced: BTreeMap<NodeId, Multiaddr>,
    pub(super) outsiders: Outsiders,
    pub(super) handshakes_failed: u64,
    pub(super) next_housekeeping: Instant,
    pub(super) gossip_undelivered: u64,
    /// Peers that turned out to belong to another cluster.
    pub(super) strangers: u64,
    pub(super) mdns_floods: u64,
    pub(super) dials: Dials,
    pub(super) replication: Replication,
    pub(super) check_reports: CheckReportReader,
    /// Requests for check reports, and the senders for their answers.
    pub(super) report_requests: BTreeMap<OutboundRequestId, oneshot::Sender<Vec<u8>>>,
}

/// Parts from which a driver is made.
pub struct DriverParts {
    /// The protocol core.
    pub core: Core,
    /// The libp2p swarm, already listening.
    pub swarm: Swarm<Behaviour>,
    /// The gossip topic.
    pub topic: IdentTopic,
    /// The cluster's name.
    pub cluster: String,
    /// The provider table for readers.
    pub view: Arc<View>,
    /// Counters and gauges for `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The list of user events for programs.
    pub user_events: Arc<UserEvents>,
    /// The node's header and the instances of its roles.
    pub presentation: Presentation,
    /// Conditions that an operator should fix.
    pub warnings: Arc<Warnings>,
    /// Commands from the rest of the node.
    pub commands: mpsc::Receiver<DriverCommand>,
    /// Publishes the network around this node.
    pub neighbourhood: watch::Sender<Neighbourhood>,
    /// Whether multicast may be used.
    pub mdns: bool,
    /// The journals of this node's topics.
    pub journals: Arc<Journals>,
    /// Reads the check reports of the programs registered with this node, for other nodes.
    pub check_reports: CheckReportReader,
}

impl Driver {
    /// Creates a driver from its parts.
    pub fn new(parts: DriverParts) -> Self {
        Self {
            mdns_on: parts.swarm.behaviour().mdns.is_enabled(),
            core: parts.core,
            swarm: parts.swarm,
            topic: parts.topic,
            cluster: parts.cluster,
            view: parts.view,
            metrics: parts.metrics,
            presentation: parts.presentation,
            warnings: parts.warnings,
            peer_clocks: PeerClocks::default(),
            commands: parts.commands,
            neighbourhood: parts.neighbourhood,
            mdns_wanted: parts.mdns,
            last_id: 0,
            unjudged: BTreeMap::new(),
            sync_channels: BTreeMap::new(),
            sync_requests: BTreeMap::new(),
            connected: BTreeMap::new(),
            disconnect_at: BTreeMap::new(),
            block_at: BTreeMap::new(),
            blocked_until: BTreeMap::new(),
            farewell: None,
            outcomes: Vec::new(),
            user_events: parts.user_events,
            firing: BTreeMap::new(),
            announced: BTreeMap::new(),
            outsiders: Outsiders::default(),
            handshakes_failed: 0,
            next_housekeeping: Instant::now(),
            gossip_undelivered: 0,
            strangers: 0,
            mdns_floods: 0,
            dials: Dials::default(),
            replication: Replication::new(parts.journals),
            check_reports: parts.check_reports,
            report_requests: BTreeMap::new(),
        }
    }

    /// Passes an input to the core.
    pub(super) fn handle_input(&mut self, input: Input) {
        self.core.handle(self.view.clock().now(), input);
    }

    /// Returns a number that identifies a gossip message or a request to the core.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}
