//! First step of a start: checks everything that can prevent it, before the node announces anything.
//!
//! Options are checked, ports are opened, the data directory is locked, and the node's key is checked.

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use hearsay_protocol::{Identity, Incarnation, NodeId};
use hearsay_services::{Service, network::Exempt};
use libp2p::{Multiaddr, identity::Keypair};

use crate::{
    config::{Config, Listen},
    key_check::{self, Search},
    presentation,
    socket::{self, SocketFile},
    storage::{Remembered, Storage},
    swarm::SwarmConfig,
    system::{
        interfaces::{self, InterfaceAddress},
        ports::{self, DnsSockets, PortError, SwarmPort},
    },
};

/// Result of the first step: the node's ports, its state on disk, and its identity.
pub(super) struct Prepared {
    pub(super) plugins: Vec<Arc<dyn Service>>,
    pub(super) interfaces: Vec<InterfaceAddress>,
    /// The listener of HTTP.
    pub(super) http: TcpListener,
    /// Listeners of plug-ins, by plug-in.
    pub(super) plugin_listeners: BTreeMap<String, TcpListener>,
    /// The sockets of DNS; `None` if no port of the ladder is free.
    pub(super) dns: Option<DnsSockets>,
    /// The listener of gRPC; `None` if no port of the ladder is free.
    pub(super) grpc: Option<TcpListener>,
    /// The listener of `--jsonrpc-tcp`.
    pub(super) jsonrpc: Option<TcpListener>,
    pub(super) swarm_port: SwarmPort,
    /// Addresses on this host at which other nodes may listen.
    pub(super) rungs: Vec<Multiaddr>,
    pub(super) storage: Storage,
    pub(super) keypair: Keypair,
    pub(super) swarm_config: SwarmConfig,
    pub(super) socket: Option<(SocketFile, UnixListener)>,
    /// Maximum number of files that the system lets this process have open.
    pub(super) file_limit: u64,
    pub(super) incarnation: Incarnation,
    pub(super) started_ms: u64,
}

impl Prepared {
    /// Returns the node's key.
    pub(super) fn identity(&self) -> Identity {
        Identity::from_seed(self.storage.seed().expose())
    }

    /// Returns the address at which HTTP listens.
    ///
    /// # Errors
    /// The error of the system.
    pub(super) fn http_address(&self) -> std::io::Result<SocketAddr> {
        self.http.local_addr()
    }
}

/// Prepares a node with the plug-ins of its roles.
///
/// # Errors
/// Why the node must not start. Nothing was announced to other nodes.
pub(super) async fn prepare(config: &Config, services: Vec<Arc<dyn Service>>) -> anyhow::Result<Prepared> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let file_limit = raise_file_limit();
    let plugins: Vec<Arc<dyn Service>> =
        services.into_iter().filter(|s| config.roles.iter().any(|role| role == s.name())).collect();
    let interfaces = interfaces::addresses();
    presentation::check_advertised(&config.advertise, config.advertise_http.as_ref(), &interfaces).await?;
    // HTTP first: its ladder of ports may reach the swarm's, and must not take the port that the swarm just
    // claimed.
    let http = ports::listen("http", config.http)?;
    let plugin_listeners = open_plugin_listeners(&plugins, config)?;
    let dns = open_dns(config)?;
    let grpc = open_grpc(config)?;
    let jsonrpc = config.jsonrpc_tcp.map(|at| ports::listen("jsonrpc-tcp", at)).transpose()?;
    let swarm_port = ports::claim_swarm(config.swarm)?;
    let mut storage = Storage::open(&config.data_dir, &config.cluster)?;
    let keypair = Keypair::ed25519_from_bytes(*storage.seed().expose())?;
    let swarm_config = SwarmConfig {
        cluster: config.cluster.clone(),
        cluster_key: config.cluster_key.as_ref().map(|key| key.to_pnet()),
        allowed: config.allowed.as_ref().map(|nodes| nodes.iter().copied().collect()),
        mdns: config.mdns,
        // Nothing listens during the key check.
        exempt: Exempt::default(),
    };
    let rungs = ports::rungs_around(swarm_port.address);
    check_key(&storage, &keypair, &swarm_config, config, &rungs).await?;
    let started_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let incarnation = storage.next_incarnation(started_ms)?;
    let socket = socket::open(&config.socket, &config.cluster, http.local_addr()?.port(), storage.dir())?;
    Ok(Prepared {
        plugins,
        interfaces,
        http,
        plugin_listeners,
        dns,
        grpc,
        jsonrpc,
        swarm_port,
        rungs,
        storage,
        keypair,
        swarm_config,
        socket,
        file_limit,
        incarnation,
        started_ms,
    })
}

/// Refuses to start under a key that another process holds. A key that was just created is unique.
async fn check_key(
    storage: &Storage,
    keypair: &Keypair,
    swarm_config: &SwarmConfig,
    config: &Config,
    rungs: &[Multiaddr],
) -> anyhow::Result<()> {
    if !storage.has_run() {
        return Ok(());
    }
    let me = Identity::from_seed(storage.seed().expose()).id();
    let remembered = dial_addresses(&storage.remembered());
    let mut addresses = key_check::remembered_addresses(&remembered, me);
    addresses.extend(rungs.iter().cloned());
    let search = Search { addresses, join: config.join.clone(), had_company: !remembered.is_empty() };
    Ok(key_check::check(keypair, swarm_config, search).await?)
}

/// Returns remembered members in the order in which this node came to know them.
pub(super) fn by_rank(remembered: &[Remembered]) -> Vec<NodeId> {
    let mut known: Vec<&Remembered> = remembered.iter().collect();
    known.sort_by_key(|peer| peer.rank);
    known.into_iter().map(|peer| peer.id).collect()
}

/// Returns the addresses at which to dial remembered members: the first two of each. Other hosts reach a
/// member at its first addresses, and one address that answers is enough.
pub(super) fn dial_addresses(remembered: &[Remembered]) -> Vec<(NodeId, String)> {
    let addresses = |peer: &Remembered| peer.addresses.iter().take(2).cloned().collect::<Vec<_>>();
    remembered.iter().flat_map(|peer| addresses(peer).into_iter().map(|a| (peer.id, a))).collect()
}

/// Raises the limit of open files to what the system allows, because each connection is an open file. Returns
/// the limit.
fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Opens the sockets of DNS. Without a free port the node starts without DNS, unless the user chose the port.
/// A node whose own machine needs the token for reads answers no DNS, which carries no token.
fn open_dns(config: &Config) -> anyhow::Result<Option<DnsSockets>> {
    if config.private && config.loopback_needs_token {
        tracing::info!("this node does not answer DNS: reads need the API token, which DNS cannot carry");
        return Ok(None);
    }
    match ports::listen_dns(config.dns) {
        Ok(sockets) => Ok(Some(sockets)),
        Err(error @ PortError::NoneFree { .. }) => {
            tracing::warn!("this node does not answer DNS: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens the listener of gRPC. Without a free port the node starts without gRPC, unless the user chose the
/// port.
fn open_grpc(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    match ports::listen("grpc", config.grpc) {
        Ok(listener) => Ok(Some(listener)),
        Err(error @ PortError::NoneFree { .. }) => {
            tracing::warn!("this node does not serve gRPC: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens the listeners of plug-ins that have one of their own.
fn open_plugin_listeners(
    plugins: &[Arc<dyn Service>],
    config: &Config,
) -> anyhow::Result<BTreeMap<String, TcpListener>> {
    let mut listeners = BTreeMap::new();
    for (plugin, port) in plugins.iter().filter_map(|plugin| Some((plugin, plugin.listener()?))) {
        let listener = match plugin.name() {
            "gateway" => ports::listen("gateway", config.gateway)?,
            // This port has no option, so the error must not name an option.
            name => ports::listen("role", Listen::Ladder((Ipv6Addr::UNSPECIFIED, port).into()))
                .with_context(|| format!("the listener of {name}"))?,
        };
        listeners.insert(plugin.name().to_owned(), listener);
    }
    Ok(listeners)
}
