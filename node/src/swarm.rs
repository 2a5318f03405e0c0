//! All of libp2p: which protocols, with which bounds, and why they are set as they are.
//!
//! What this file knows of libp2p's ways (read in the sources of 0.57) the rest of the node need not:
//! - Gossip is unsigned on this level (`Anonymous`): the signature is inside, checked once by the core instead of once for each copy.
//!   Every message waits for the core's judgement before it is passed on.
//! - gossipsub's default message ids are so long that its own control messages outgrow their limit; 16 bytes of hash do not.
//! - All links are in the mesh, because the overlay is thin already and each hop less is a few milliseconds.
//! - Behaviours that deny connections come first in the struct, because those behind them would otherwise see a connection that never was.
//! - A dial leaves from a new port: from the listening port, a second dial to the same place within a minute fails.

use std::{io, time::Duration};

use either::Either;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use hearsay_protocol::{NodeId, wire::MESSAGE_BYTES_MAX};
use hearsay_services::shares::Exempt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, Transport as _,
    allow_block_list::{self, AllowedPeers},
    connection_limits::{self, ConnectionLimits},
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, ListenerId, timeout::TransportTimeout},
        upgrade::Version,
    },
    gossipsub::{
        self, IdentTopic, MaxCountSubscriptionFilter, MessageAuthenticity, ValidationMode,
        WhitelistSubscriptionFilter,
    },
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

// The derive makes an event type without documentation.
#[allow(missing_docs)]
mod behaviour;
mod dial_problem;
pub mod pending;
pub mod pulse;

pub use behaviour::{Behaviour, BehaviourEvent, KeyCheckBehaviour, KeyCheckEvent};
pub use dial_problem::dial_problem;

/// A handshake that takes longer is given up. The core has drawn its conclusions long before.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Established connections: a node has about seven, a popular `--join` target for a while as many as join.
const CONNECTIONS_MAX: u32 = 1024;
/// Connections being negotiated, each way.
const PENDING_MAX: u32 = 256;
/// Two nodes may dial each other at the same moment; both connections must be allowed, or each side kills the other's. A third is of a
/// process that restarted, or of a second one under the same key, and must be heard to be told apart.
const CONNECTIONS_PER_PEER_MAX: u32 = 3;
/// Requests of one peer served at the same time. Each holds at most a message. A peer conducts one session at a time.
const REQUESTS_MAX: usize = 16;
/// Requests of one replica served at the same time: the runs it pushes to each of a few topics.
const REPLICA_REQUESTS_MAX: usize = 64;
/// Gossip that may wait for one neighbour. What is beyond it is dropped and counted, and anti-entropy brings it.
const NEIGHBOUR_QUEUE_MAX: usize = 1024;
/// How long the holder of an instance has to say how its checks are. A person waits for it. Design, section 9.3.
const CHECKS_ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long it may wait. On a machine that is busy for a second (gossipsub's own bound) all links would drop it, and nobody would hear.
const NEIGHBOUR_LATE_MAX: Duration = Duration::from_secs(10);
/// Streams of one connection: two of gossip, one of each request, and those that come and go with a connection.
const STREAMS_MAX: usize = 128;
/// Topics that a peer may name at once. There is one here, and one in each other cluster.
const SUBSCRIPTIONS_MAX: usize = 8;
/// How often mDNS asks while nobody answers. One lost first answer costs one of these.
const MDNS_INTERVAL: Duration = Duration::from_secs(10);

/// A TCP connection that takes longer is given up. Shorter than [`HANDSHAKE_MAX`], so that a silent host is told from a silent handshake.
const CONNECT_MAX: Duration = Duration::from_secs(4);

/// What a swarm needs to know.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// The cluster: nodes of another one are not understood.
    pub cluster: String,
    /// What strangers do not have.
    pub cluster_key: Option<PreSharedKey>,
    /// Who may connect; `None`: everybody.
    pub allowed: Option<Vec<NodeId>>,
    /// Whether to look for others by multicast.
    pub mdns: bool,
    /// The hosts that have no share of the handshakes.
    pub exempt: Exempt,
}

/// Why there is no swarm.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// A protocol refused its configuration: a defect here.
    #[error("cannot set up {0}: {1}")]
    Setup(&'static str, String),
}

impl SwarmError {
    fn setup(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Self {
        move |error| Self::Setup(what, error.to_string())
    }
}

/// A swarm that listens nowhere yet, and the topic it has joined.
///
/// # Errors
/// A protocol cannot be set up. mDNS alone is no reason to stop: it is warned of and left out.
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
        pending: pending::Behaviour::new(PENDING_MAX as usize, config.exempt.clone()),
        gossip: gossip(&topic)?,
        sync: asking(&config.cluster, "sync", Duration::from_secs(15), REQUESTS_MAX)?,
        journal: asking(&config.cluster, "journal", Duration::from_secs(10), REPLICA_REQUESTS_MAX)?,
        checks: asking(&config.cluster, "checks", CHECKS_ANSWER_MAX, REQUESTS_MAX)?,
        pulse: pulse::Behaviour::default(),
        identify: identify::Behaviour::new(
            identify::Config::new(identify_protocol(&config.cluster), keypair.public())
                .with_agent_version(process().map_err(|error| SwarmError::setup("identify")(&error))?)
                // Headers carry addresses and are signed; identify only tells who is at the other end, once.
                .with_hide_listen_addrs(true)
                .with_push_listen_addr_updates(false)
                .with_cache_size(0)
                .with_interval(Duration::from_secs(24 * 3600)),
        ),
        mdns: speak_mdns(config.mdns, Family::Ipv4, id, &[]),
        mdns6: speak_mdns(config.mdns, Family::Ipv6, id, &[]),
    };
    let transport = transport(keypair, config)?;
    // Idle connections are closed by the overlay, which knows which are needed.
    let swarm_config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(3600 * 24 * 365))
        .with_max_negotiating_inbound_streams(STREAMS_MAX);
    Ok((Swarm::new(transport, behaviour, id, swarm_config), topic))
}

/// A swarm that listens nowhere and only asks: for the key check.
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
            Bytes,
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

/// What identify says of this process: no two say the same, not even one after the other under one key.
fn process() -> Result<String, getrandom::Error> {
    let mut mark = [0; 8];
    getrandom::fill(&mut mark)?;
    Ok(format!("hearsay/{} {:016x}", env!("CARGO_PKG_VERSION"), u64::from_le_bytes(mark)))
}

/// What identify calls the protocol of a cluster.
pub fn identify_protocol(cluster: &str) -> String {
    format!("hearsay/1/{cluster}")
}

/// A family of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// mDNS over one family, or its absence: also while the node runs, because in a large cluster only a few
/// speak it. It answers with these addresses, and those
/// that the swarm begins to listen at later.
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

/// Admits these nodes and no others.
pub fn allow(nodes: &[NodeId]) -> allow_block_list::Behaviour<AllowedPeers> {
    let mut behaviour = allow_block_list::Behaviour::default();
    for peer in nodes.iter().filter_map(|node| peer_of(*node)) {
        behaviour.allow_peer(peer);
    }
    behaviour
}

/// Only the cluster's own topic: what else a peer subscribes to would be kept for it, however much it is.
pub type Topics = MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>;
/// Gossip on those.
pub type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, Topics>;

fn gossip(topic: &IdentTopic) -> Result<Gossip, SwarmError> {
    let setup = SwarmError::setup("gossip");
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message| gossipsub::MessageId::new(&blake3::hash(&message.data).as_bytes()[..16]))
        .max_transmit_size(MESSAGE_BYTES_MAX + 1024)
        .max_control_message_size(MESSAGE_BYTES_MAX)
        .heartbeat_interval(Duration::from_secs(1))
        .heartbeat_initial_delay(Duration::from_millis(100))
        // At least six of the six or seven links that a node has. While many nodes start at once, everybody dials everybody for a while,
        // and a flood over all of that would cost four times as much just when it is least affordable.
        .mesh_outbound_min(0)
        .mesh_n_low(6)
        .mesh_n(8)
        .mesh_n_high(12)
        .prune_backoff(Duration::from_secs(10))
        // Who is not in the mesh is told what there is, once a second. Such links are passing, and anti-entropy repairs as well.
        .gossip_lazy(2)
        .gossip_factor(0.0)
        // Messages that wait for one neighbour: it is slower than all others, or gone.
        .connection_handler_queue_len(NEIGHBOUR_QUEUE_MAX)
        .publish_queue_duration(NEIGHBOUR_LATE_MAX)
        .forward_queue_duration(NEIGHBOUR_LATE_MAX)
        .flood_publish(true)
        .allow_self_origin(false)
        .build()
        .map_err(|e| setup(&e))?;
    let topics = Topics {
        filter: WhitelistSubscriptionFilter([topic.hash()].into()),
        max_subscribed_topics: 1,
        max_subscriptions_per_request: SUBSCRIPTIONS_MAX,
    };
    let mut gossip = Gossip::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, topics)
        .map_err(|e| setup(&e))?;
    gossip.subscribe(topic).map_err(|e| setup(&e))?;
    Ok(gossip)
}

/// The name of a protocol of requests in a cluster.
fn request_protocol(cluster: &str, name: &'static str) -> Result<StreamProtocol, SwarmError> {
    StreamProtocol::try_from_owned(format!("/hearsay/1/{cluster}/{name}"))
        .map_err(|e| SwarmError::setup(name)(&e))
}

/// A protocol of requests and their answers.
fn asking(
    cluster: &str,
    name: &'static str,
    timeout: Duration,
    requests_max: usize,
) -> Result<request_response::Behaviour<Bytes>, SwarmError> {
    let protocol = request_protocol(cluster, name)?;
    let config = request_response::Config::default()
        .with_request_timeout(timeout)
        .with_max_concurrent_streams(requests_max);
    Ok(request_response::Behaviour::with_codec(Bytes, [(protocol, ProtocolSupport::Full)], config))
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

/// The node behind a PeerId; `None` for keys of a kind that Hearsay does not use.
pub fn node_of(peer: PeerId) -> Option<NodeId> {
    NodeId::from_peer_id_bytes(&peer.to_bytes()).ok()
}

/// The PeerId of a node.
pub fn peer_of(node: NodeId) -> Option<PeerId> {
    PeerId::from_bytes(&node.to_peer_id_bytes()).ok()
}

/// What the outcome of a dial proves; of several addresses, what the one proves that proves least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Proof {
    /// No process of this peer is there: each address refused the connection, or somebody else answered.
    Absent,
    /// Somebody took the connection and dropped it: a process that was just dying, and whose port will refuse now, or one that is alive and
    /// has too much to do.
    Dropped,
    /// Anything.
    Nothing,
}

/// What this failure proves.
pub fn proof(error: &libp2p::swarm::DialError) -> Proof {
    use libp2p::swarm::DialError;
    match error {
        DialError::WrongPeerId { .. } => Proof::Absent,
        DialError::Transport(attempts) => {
            let attempts = attempts.iter().map(|(address, error)| (address, format!("{error:?}")));
            // An address that this machine has no way to says nothing of the peer: a host without IPv6 must
            // judge by the IPv4 addresses.
            let made = attempts.filter(|(address, error)| !has_no_way(address, error));
            made.map(|(_, error)| proof_of_text(&error)).max().unwrap_or(Proof::Nothing)
        }
        _ => Proof::Nothing,
    }
}

/// How a node that should be there failed to be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It took the connection, and the handshake failed.
    Handshake,
    /// It took no connection: no route, or silence.
    NoAnswer,
}

/// How this dial failed; `None` if it says nothing of the node that should be there. Of several addresses, the one that got furthest counts.
pub fn failure(error: &libp2p::swarm::DialError) -> Option<Failure> {
    let libp2p::swarm::DialError::Transport(attempts) = error else { return None };
    let failures = attempts.iter().filter_map(|(_, error)| failure_of_text(&format!("{error:?}")));
    failures.min_by_key(|failure| *failure == Failure::NoAnswer)
}

fn failure_of_text(error: &str) -> Option<Failure> {
    const NO_ROUTE: [&str; 4] = ["HostUnreachable", "NetworkUnreachable", "TimedOut", "Timeout"];
    /// The outermost limit of time passed: the connection stood before, or its own limit would have.
    const SILENT_HANDSHAKE: &str = "error: Timeout }";
    let has = |signs: &[&str]| signs.iter().any(|sign| error.contains(sign));
    match proof_of_text(error) {
        Proof::Absent => None,
        _ if has(&["MultiaddrNotSupported", "PermissionDenied"]) => None,
        _ if error.contains(SILENT_HANDSHAKE) => Some(Failure::Handshake),
        _ if has(&NO_ROUTE) => Some(Failure::NoAnswer),
        _ => Some(Failure::Handshake),
    }
}

/// Whether a dial failed for want of something on this machine, which says nothing about the peer.
pub fn is_own_shortage(error: &libp2p::swarm::DialError) -> bool {
    let libp2p::swarm::DialError::Transport(attempts) = error else { return false };
    attempts.iter().any(|(address, error)| {
        let error = format!("{error:?}");
        let is_short = ["Too many open files", "AddrNotAvailable", "Cannot assign requested address"]
            .iter()
            .any(|sign| error.contains(sign));
        is_short && !has_no_way(address, &error)
    })
}

/// Whether an attempt failed because this machine has no route to the address, or no address of its family.
fn has_no_way(address: &Multiaddr, error: &str) -> bool {
    use libp2p::multiaddr::Protocol;
    let has = |signs: &[&str]| signs.iter().any(|sign| error.contains(sign));
    let is_ipv6 = matches!(address.iter().next(), Some(Protocol::Ip6(_)));
    has(&["NetworkUnreachable", "Network is unreachable", "Address family not supported"])
        // Where IPv6 is disabled, the kernel finds no address to connect from.
        || is_ipv6 && has(&["AddrNotAvailable", "Cannot assign requested address"])
}

/// The layers of the transport wrap the system's error so deeply that its text is the one thing that all of them pass on.
fn proof_of_text(error: &str) -> Proof {
    let has = |signs: &[&str]| signs.iter().any(|sign| error.contains(sign));
    if has(&["ConnectionRefused", "Connection refused", "WrongPeerId"]) {
        Proof::Absent
    } else if has(&["ConnectionReset", "Connection reset"]) {
        Proof::Dropped
    } else {
        Proof::Nothing
    }
}

/// Whether an address is one that only this machine can reach.
pub fn is_loopback(address: &Multiaddr) -> bool {
    use libp2p::multiaddr::Protocol;
    address.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}

/// Whole messages, as bytes: their meaning is the core's business.
#[derive(Debug, Clone, Copy)]
pub struct Bytes;

impl Bytes {
    /// Reads to the end; one byte too many is an error and not a silent cut.
    async fn read<T: futures::AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io.take(MESSAGE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await?;
        // Who gives up answering closes the stream: that is no message of no bytes.
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message over the limit"));
        }
        Ok(bytes)
    }

    async fn write<T: futures::AsyncWrite + Unpin + Send>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
        io.write_all(bytes).await?;
        io.close().await
    }
}

impl request_response::Codec for Bytes {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: futures::AsyncRead + Unpin + Send,
    {
        Self::read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: futures::AsyncRead + Unpin + Send,
    {
        Self::read(io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: futures::AsyncWrite + Unpin + Send,
    {
        Self::write(io, &request).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, response: Vec<u8>) -> io::Result<()>
    where
        T: futures::AsyncWrite + Unpin + Send,
    {
        Self::write(io, &response).await
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{TransportError, swarm::DialError};

    use super::*;

    fn failed(attempts: &[(&str, i32)]) -> DialError {
        let attempt = |(address, error): &(&str, i32)| {
            (address.parse().unwrap(), TransportError::Other(io::Error::from_raw_os_error(*error)))
        };
        DialError::Transport(attempts.iter().map(attempt).collect())
    }

    const V4: &str = "/ip4/10.0.0.1/tcp/7600";
    const V6: &str = "/ip6/fd77::1/tcp/7600";

    #[test]
    fn an_address_without_a_way_to_it_neither_proves_nor_spoils_a_proof() {
        for no_way in [libc::ENETUNREACH, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT] {
            let refused = failed(&[(V4, libc::ECONNREFUSED), (V6, no_way)]);
            assert_eq!(proof(&refused), Proof::Absent, "{no_way}");
            assert!(!is_own_shortage(&refused), "{no_way}");
            assert_eq!(proof(&failed(&[(V6, no_way)])), Proof::Nothing, "{no_way}");
        }
        assert_eq!(proof(&failed(&[(V4, libc::ECONNREFUSED), (V6, libc::ETIMEDOUT)])), Proof::Nothing);
        assert_eq!(proof(&failed(&[(V4, libc::ECONNREFUSED), (V6, libc::ECONNREFUSED)])), Proof::Absent);
    }

    #[test]
    fn want_of_ports_and_files_is_this_machines_own() {
        assert!(is_own_shortage(&failed(&[(V4, libc::EADDRNOTAVAIL)])));
        assert!(is_own_shortage(&failed(&[(V6, libc::EMFILE)])));
        assert!(!is_own_shortage(&failed(&[(V4, libc::ECONNREFUSED)])));
    }
}
