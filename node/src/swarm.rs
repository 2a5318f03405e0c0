//! Builds the libp2p swarm of a node: transport, protocols, and the bounds on them.
//!
//! Properties of libp2p (0.57) that this configuration takes into account:
//! - Gossip messages are not signed (`Anonymous`), because the entries in them are. The core checks each
//!   entry once instead of once for each copy. gossipsub relays a message only after the core has accepted
//!   it.
//! - Message ids are 16 bytes of a hash. With gossipsub's longer default ids, its control messages exceed
//!   gossipsub's own size limit.
//! - All connections are in the mesh: a node has few of them, and each hop takes a few milliseconds.
//! - Behaviours that deny connections come first in the struct. Otherwise earlier behaviours would see a
//!   connection that a later one denies.
//! - A dial uses a new local port. From the listening port, a second dial to the same address within a minute
//!   fails.

use std::time::Duration;

use either::Either;
use hearsay_protocol::NodeId;
use hearsay_services::network::Exempt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, Transport as _,
    allow_block_list::{self, AllowedPeers},
    connection_limits::{self, ConnectionLimits},
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, ListenerId, timeout::TransportTimeout},
        upgrade::Version,
    },
    gossipsub::IdentTopic,
    identify,
    identity::Keypair,
    mdns, noise,
    pnet::{PnetConfig, PreSharedKey},
    request_response::{self, ProtocolSupport},
    swarm::{
        NetworkBehaviour as _,
        behaviour::{FromSwarm, NewListenAddr, toggle::Toggle},
    },
    tcp, yamux,
};

// The derive creates an event type without documentation.
#[allow(missing_docs)]
mod behaviour;
mod codec;
mod dial_problem;
mod error;
mod evidence;
mod gossip;
mod pending;
mod pulse;

pub use behaviour::{Behaviour, BehaviourEvent, KeyCheckBehaviour, KeyCheckEvent};
use codec::MessageCodec;
pub use dial_problem::dial_problem;
pub use error::SwarmError;
pub use evidence::{Failure, Proof, failure, is_own_shortage, proof};
use pending::HandshakeShares;
use pulse::Pulse;
pub use pulse::RoundTrip;

/// Timeout of a handshake. It need not be shorter: the failure detector reaches its verdict long before.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Maximum number of established connections. A node has about seven; a `--join` target has one for each
/// joining node.
const CONNECTIONS_MAX: u32 = 1024;
/// Maximum number of connections whose handshake is under way, in each direction.
const PENDING_MAX: u32 = 256;
/// Maximum number of connections of one peer. Two nodes that dial each other at once have two connections.
/// They must keep both, or each may close the one that the other keeps. A third belongs to a restarted
/// process, or to a second process under the same key. Identify must run on it to distinguish the two.
const CONNECTIONS_PER_PEER_MAX: u32 = 3;
/// Maximum number of anti-entropy requests of one peer served at the same time. A peer runs one session at a
/// time, and a request is at most one message.
const REQUESTS_MAX: usize = 16;
/// Maximum number of requests of one replica served at the same time: the runs that it pushes to each of a
/// few topics.
const REPLICA_REQUESTS_MAX: usize = 64;
/// Longest wait for the check reports of an instance. A person waits for them.
const CHECKS_ANSWER_MAX: Duration = Duration::from_secs(1);
/// Maximum number of streams of one connection: two of gossip, one for each request, and the short ones of
/// its start.
const STREAMS_MAX: usize = 128;
/// Interval of mDNS queries. If the first answer is lost, discovery takes one interval longer.
const MDNS_INTERVAL: Duration = Duration::from_secs(10);

/// Timeout of a TCP connect. Must be shorter than [`HANDSHAKE_MAX`], so that an unreachable host and a peer
/// that stalls in the handshake give different errors.
const CONNECT_MAX: Duration = Duration::from_secs(4);

/// Options of a swarm.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// The cluster. Its name is part of all protocol names.
    pub cluster: String,
    /// The pre-shared key of the cluster.
    pub cluster_key: Option<PreSharedKey>,
    /// Nodes that may connect; `None`: all.
    pub allowed: Option<Vec<NodeId>>,
    /// Whether to find nodes by multicast.
    pub mdns: bool,
    /// Hosts that are exempt from the limit on pending handshakes per host.
    pub exempt: Exempt,
}

/// Builds a swarm that does not listen yet. Also returns its gossip topic.
///
/// # Errors
/// A protocol cannot be set up. A failure of mDNS causes a warning only.
pub fn build(keypair: &Keypair, config: &SwarmConfig) -> Result<(Swarm<Behaviour>, IdentTopic), SwarmError> {
    let topic = IdentTopic::new(format!("hearsay/1/{}/state", config.cluster));
    let id = keypair.public().to_peer_id();
    let behaviour = Behaviour {
        allowed: config.allowed.as_ref().map(|nodes| allow(nodes)).into(),
        blocked: allow_block_list::Behaviour::default(),
        limits: connection_limits::Behaviour::new(
            ConnectionLimits::default()
                .with_max_established(Some(CONNECTIONS_MAX))
                .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
                .with_max_pending_outgoing(Some(PENDING_MAX)),
        ),
        pending: HandshakeShares::new(PENDING_MAX as usize, config.exempt.clone()),
        gossip: gossip::build(&topic)?,
        sync: requests(&config.cluster, "sync", Duration::from_secs(15), REQUESTS_MAX)?,
        journal: requests(&config.cluster, "journal", Duration::from_secs(10), REPLICA_REQUESTS_MAX)?,
        checks: requests(&config.cluster, "checks", CHECKS_ANSWER_MAX, REQUESTS_MAX)?,
        pulse: Pulse::default(),
        identify: identify::Behaviour::new(
            identify::Config::new(identify_protocol(&config.cluster), keypair.public())
                .with_agent_version(agent_version().map_err(|error| SwarmError::setup("identify")(&error))?)
                // Identify is used only to learn the peer's process, once. Addresses come from signed
                // headers.
                .with_hide_listen_addrs(true)
                .with_push_listen_addr_updates(false)
                .with_cache_size(0)
                .with_interval(Duration::from_secs(24 * 3600)),
        ),
        mdns: speak_mdns(config.mdns, Family::Ipv4, id, &[]),
        mdns6: speak_mdns(config.mdns, Family::Ipv6, id, &[]),
    };
    let transport = transport(keypair, config)?;
    // The overlay decides which connections are needed, and closes the others.
    let swarm_config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(3600 * 24 * 365))
        .with_max_negotiating_inbound_streams(STREAMS_MAX);
    Ok((Swarm::new(transport, behaviour, id, swarm_config), topic))
}

/// Builds the swarm of the key check, which does not listen and only sends requests.
///
/// # Errors
/// A protocol cannot be set up.
pub fn build_key_check(
    keypair: &Keypair,
    config: &SwarmConfig,
) -> Result<Swarm<KeyCheckBehaviour>, SwarmError> {
    let id = keypair.public().to_peer_id();
    let protocol = request_protocol(&config.cluster, "sync")?;
    let timeouts = request_response::Config::default().with_request_timeout(HANDSHAKE_MAX);
    let behaviour = KeyCheckBehaviour {
        sync: request_response::Behaviour::with_codec(
            MessageCodec,
            [(protocol, ProtocolSupport::Outbound)],
            timeouts,
        ),
        mdns: speak_mdns(config.mdns, Family::Ipv4, id, &[]),
        mdns6: speak_mdns(config.mdns, Family::Ipv6, id, &[]),
    };
    let transport = transport(keypair, config)?;
    let swarm_config = libp2p::swarm::Config::with_tokio_executor();
    Ok(Swarm::new(transport, behaviour, id, swarm_config))
}

/// Returns identify's agent version, which is unique to this process.
fn agent_version() -> Result<String, getrandom::Error> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    Ok(format!("hearsay/{} {:016x}", env!("CARGO_PKG_VERSION"), u64::from_le_bytes(random)))
}

/// Returns identify's protocol version, which names the cluster.
pub fn identify_protocol(cluster: &str) -> String {
    format!("hearsay/1/{cluster}")
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Builds mDNS over one address family; disabled unless `wanted`. A running node turns mDNS on and off,
/// because in a large cluster only few nodes use it. mDNS announces the addresses in `listening`, and those
/// at which the swarm listens later.
pub fn speak_mdns(
    wanted: bool,
    family: Family,
    id: PeerId,
    listening: &[Multiaddr],
) -> Toggle<mdns::tokio::Behaviour> {
    let behaviour = wanted.then(|| {
        let config = mdns::Config {
            query_interval: MDNS_INTERVAL,
            enable_ipv6: family == Family::Ipv6,
            ..mdns::Config::default()
        };
        mdns::tokio::Behaviour::new(config, id)
    });
    match behaviour.transpose() {
        Ok(mut behaviour) => {
            for addr in listening {
                let event = NewListenAddr { listener_id: ListenerId::next(), addr };
                behaviour.iter_mut().for_each(|mdns| mdns.on_swarm_event(FromSwarm::NewListenAddr(event)));
            }
            behaviour.into()
        }
        Err(error) => {
            tracing::warn!(%error, ?family, "no mDNS: nodes on other hosts are found by --join only");
            None.into()
        }
    }
}

/// Builds the list of nodes that may connect.
pub fn allow(nodes: &[NodeId]) -> allow_block_list::Behaviour<AllowedPeers> {
    let mut behaviour = allow_block_list::Behaviour::default();
    for peer in nodes.iter().filter_map(|node| peer_of(*node)) {
        behaviour.allow_peer(peer);
    }
    behaviour
}

/// Returns the name of a request-response protocol in a cluster.
fn request_protocol(cluster: &str, name: &'static str) -> Result<StreamProtocol, SwarmError> {
    StreamProtocol::try_from_owned(format!("/hearsay/1/{cluster}/{name}"))
        .map_err(|e| SwarmError::setup(name)(&e))
}

/// Builds a request-response protocol.
fn requests(
    cluster: &str,
    name: &'static str,
    timeout: Duration,
    requests_max: usize,
) -> Result<request_response::Behaviour<MessageCodec>, SwarmError> {
    let protocol = request_protocol(cluster, name)?;
    let config = request_response::Config::default()
        .with_request_timeout(timeout)
        .with_max_concurrent_streams(requests_max);
    Ok(request_response::Behaviour::with_codec(MessageCodec, [(protocol, ProtocolSupport::Full)], config))
}

fn transport(keypair: &Keypair, config: &SwarmConfig) -> Result<Boxed<(PeerId, StreamMuxerBox)>, SwarmError> {
    let noise = noise::Config::new(keypair).map_err(|e| SwarmError::setup("noise")(&e))?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let tcp = TransportTimeout::new(tcp, CONNECT_MAX);
    let base = match config.cluster_key {
        Some(key) => Either::Left(tcp.and_then(move |socket, _| PnetConfig::new(key).handshake(socket))),
        None => Either::Right(tcp),
    };
    let upgraded = base.upgrade(Version::V1Lazy).authenticate(noise);
    let mut streams = yamux::Config::default();
    streams.set_max_num_streams(STREAMS_MAX);
    Ok(upgraded.multiplex(streams).timeout(HANDSHAKE_MAX).boxed())
}

/// Returns the node of a PeerId; `None` for keys that are not Ed25519.
pub fn node_of(peer: PeerId) -> Option<NodeId> {
    NodeId::from_peer_id_bytes(&peer.to_bytes()).ok()
}

/// Returns the PeerId of a node.
pub fn peer_of(node: NodeId) -> Option<PeerId> {
    PeerId::from_bytes(&node.to_peer_id_bytes()).ok()
}

/// Whether only this host can reach an address.
pub fn is_loopback(address: &Multiaddr) -> bool {
    use libp2p::multiaddr::Protocol;
    address.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}
