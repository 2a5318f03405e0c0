//! Second step of a start: creates the parts of a node (shared state, channels, HTTP router, plug-in host and
//! protocol core) and connects them. Only the journals' workers and the registrar run already.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use anyhow::Context as _;
use hearsay_protocol::{Command, Core, Health, Identity, Index, NodeId, Profile, Startup};
use hearsay_services::{Service, network::Exempt, plugins::LOG_ROLE};
use tokio::sync::{mpsc, watch};

use super::{
    overrides::Overrides,
    prepare::{Prepared, by_rank, dial_addresses},
};
use crate::{
    apis::{self, jsonrpc::JsonRpcServer, xds::catalog_cache::CatalogCache},
    config::{Advertise, Config, hostname},
    driver_command::{DriverCommand, Neighbourhood},
    exemptions,
    http::{self, Access, AppState, HostNames, Limits, NodeHost, OwnHttp, Readiness},
    journal::{JournalContext, Journals},
    metrics::Metrics,
    operator_request::OperatorRequest,
    presentation::{Offer, Presentation},
    registry::{self, Registry},
    reload::all_tags,
    sessions::Sessions,
    signing::Signing,
    storage::{Remembered, Secret, Storage, read_token},
    system::interfaces::InterfaceAddress,
    user_events::UserEvents,
    view::{Clock, View},
    warnings::Warnings,
};

/// Maximum number of commands queued for the driver, which handles them when the swarm has no event.
const COMMANDS_MAX: usize = 256;
/// Maximum number of requests to leave or to forget a member that wait for the main task.
const OPERATOR_REQUESTS_MAX: usize = 16;

/// The connected parts of a node.
pub(super) struct Assembled {
    pub(super) prepared: Prepared,
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) shared: Shared,
    pub(super) channels: Channels,
    pub(super) host: Arc<NodeHost>,
    pub(super) router: axum::Router,
    /// The router of gRPC.
    pub(super) grpc: axum::Router,
    pub(super) jsonrpc: JsonRpcServer,
    pub(super) limits: Limits,
    pub(super) core: Core,
    pub(super) presentation: Presentation,
    /// URLs at which other nodes reach this node's HTTP, if `--advertise` or `--advertise-http` is given.
    pub(super) advertised: Vec<String>,
    pub(super) gateway: Option<SocketAddr>,
    pub(super) remembered: Vec<Remembered>,
}

/// Parts that several threads use.
pub(super) struct Shared {
    pub(super) view: Arc<View>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) user_events: Arc<UserEvents>,
    pub(super) warnings: Arc<Warnings>,
    pub(super) signing: Arc<Signing>,
    pub(super) access: Arc<Access>,
    pub(super) registry: Arc<Registry>,
    pub(super) journals: Arc<Journals>,
    pub(super) names: HostNames,
    pub(super) exempt: Exempt,
}

/// The channels between the driver, HTTP and the main task.
pub(super) struct Channels {
    pub(super) driver: mpsc::Sender<DriverCommand>,
    pub(super) commands: mpsc::Receiver<DriverCommand>,
    requests_sender: mpsc::Sender<OperatorRequest>,
    pub(super) operator_requests: mpsc::Receiver<OperatorRequest>,
    pub(super) readiness: watch::Sender<Readiness>,
    pub(super) neighbourhood: watch::Sender<Neighbourhood>,
    pub(super) neighbours: watch::Receiver<Neighbourhood>,
}

impl Channels {
    fn new() -> Self {
        let (driver, commands) = mpsc::channel(COMMANDS_MAX);
        let (requests_sender, operator_requests) = mpsc::channel(OPERATOR_REQUESTS_MAX);
        let (neighbourhood, neighbours) = watch::channel(Neighbourhood::default());
        let readiness = watch::Sender::new(Readiness::Starting);
        Self { driver, commands, requests_sender, operator_requests, readiness, neighbourhood, neighbours }
    }
}

/// Creates the parts of a node and connects them.
///
/// # Errors
/// A part that cannot be created, and why.
pub(super) fn assemble(
    config: &Config,
    mut prepared: Prepared,
    overrides: &Overrides,
) -> anyhow::Result<Assembled> {
    let id = prepared.identity().id();
    let name = config.name_of(id);
    let clock = Clock::start();
    let channels = Channels::new();
    let shared = share(config, &prepared, &channels, (clock, overrides))?;
    prepared.swarm_config.exempt = shared.exempt.clone();
    let limits = Limits {
        connections: config.max_connections,
        streams: config.max_streams,
        exempt: shared.exempt.clone(),
        ..Limits::default()
    };
    let limits = limits.within(prepared.file_limit);
    let state = Arc::new(AppState {
        view: Arc::clone(&shared.view),
        id,
        name: name.clone(),
        cluster: config.cluster.clone(),
        metrics: Arc::clone(&shared.metrics),
        registry: Arc::clone(&shared.registry),
        user_events: Arc::clone(&shared.user_events),
        driver: channels.driver.clone(),
        operator_requests: channels.requests_sender.clone(),
        access: Arc::clone(&shared.access),
        signing: Arc::clone(&shared.signing),
        readiness: channels.readiness.subscribe(),
        warnings: Arc::clone(&shared.warnings),
        neighbours: channels.neighbours.clone(),
        names: shared.names.clone(),
        stream_limit: http::StreamLimit::new(limits.streams),
        dns_port: prepared
            .dns
            .as_ref()
            .and_then(|sockets| sockets.tcp.local_addr().ok())
            .map(|dns| dns.port()),
        response_budget: http::ResponseBudget::default(),
        xds: CatalogCache::new(id, Arc::clone(&shared.view), Arc::clone(&shared.metrics.xds)),
    });
    let listeners = std::mem::take(&mut prepared.plugin_listeners);
    let gateway = listeners.get("gateway").map(TcpListener::local_addr).transpose()?;
    let presentation = present(config, &prepared, &name, &listeners)?;
    let advertised = advertised_urls(&presentation, &prepared.interfaces);
    let host = Arc::new(host(config, &prepared, &shared, listeners)?);
    let grpc = apis::grpc::router(Arc::clone(&state));
    let router = http::router(Arc::clone(&state), &prepared.plugins, host.clone())?;
    let jsonrpc = JsonRpcServer::new(state, router.clone(), limits.clone());
    let remembered = prepared.storage.remembered();
    let core = Core::new(
        prepared.identity(),
        hearsay_protocol::Config {
            cluster: config.cluster.clone(),
            is_next: overrides.is_next_version,
            ..Default::default()
        },
        Startup {
            incarnation: prepared.incarnation,
            remembered: dial_addresses(&remembered),
            known: by_rank(&remembered),
            profile: presentation.profile.clone(),
            seed: random_seed()?,
        },
        clock.now(),
    );
    Ok(Assembled {
        prepared,
        id,
        name,
        shared,
        channels,
        host,
        router,
        grpc,
        jsonrpc,
        limits,
        core,
        presentation,
        advertised,
        gateway,
        remembered,
    })
}

/// Creates the parts that several threads use.
fn share(
    config: &Config,
    prepared: &Prepared,
    channels: &Channels,
    (clock, overrides): (Clock, &Overrides),
) -> anyhow::Result<Shared> {
    let Prepared { plugins, storage, incarnation, .. } = prepared;
    let id = prepared.identity().id();
    // First, so that a token that cannot be read stops the start before journals are opened and repaired.
    let access = Arc::new(access(config, storage, id)?);
    // The incarnation is in milliseconds. Indexes start at the same moment in microseconds. So they exceed
    // all indexes of an earlier run that made fewer than a million changes a second.
    let view = Arc::new(View::new(Index(incarnation.0.saturating_mul(1000)), clock));
    let exempt = exemptions::exempt(Arc::clone(&view), config.trusted_proxies.clone());
    let metrics = Arc::new(Metrics::new(Arc::clone(&view)));
    let signing =
        Signing::new(prepared.identity(), config.cluster.clone(), Arc::clone(&view), config.allowed.clone());
    let registry = Registry::open(
        storage.dir(),
        registry::RegistryContext {
            node_id: id,
            view: Arc::clone(&view),
            driver: channels.driver.clone(),
            role_instances: plugins.len(),
            listeners: own_listeners(prepared)?,
            allow_exec: config.allow_exec_checks,
        },
    )
    .context("the registrations of this node")?;
    let journals = Journals::open(
        plugins,
        &JournalContext {
            dir: storage.dir(),
            me: &|| Identity::from_seed(storage.seed().expose()),
            cluster: &config.cluster,
            replicas_expected: config.replicas_expected,
            retention: &BTreeMap::from([(LOG_ROLE.to_owned(), config.log_retention)]),
            clock,
            driver: channels.driver.clone(),
            wrap_store: overrides.wrap_store,
        },
    )?;
    let journals = Arc::new(journals);
    metrics.set_plugins(plugins.clone());
    metrics.set_journals(&journals);
    metrics.set_programs(&registry);
    let user_events = Arc::new(UserEvents::new(id, config.name_of(id), Arc::clone(&view)));
    Ok(Shared {
        view,
        metrics,
        user_events,
        warnings: Arc::default(),
        signing: Arc::new(signing),
        access,
        registry,
        journals,
        names: HostNames::new(own_names(config).chain([config.name_of(id), hostname()])),
        exempt,
    })
}

/// Returns the addresses of the listeners at which no check may be aimed.
fn own_listeners(prepared: &Prepared) -> std::io::Result<Vec<SocketAddr>> {
    let grpc = prepared.grpc.as_ref().map(TcpListener::local_addr).transpose()?;
    Ok([prepared.http_address()?, prepared.swarm_port.address].into_iter().chain(grpc).collect())
}

/// Returns the rules by which callers may read and write.
fn access(config: &Config, storage: &Storage, id: NodeId) -> anyhow::Result<Access> {
    Ok(Access {
        token: api_token(config, storage)?,
        is_keyed: config.cluster_key.is_some(),
        is_open: config.open,
        trusted_proxies: config.trusted_proxies.clone(),
        loopback_needs_token: config.loopback_needs_token,
        reads_need_proof: config.private,
        sessions: Sessions::new(id),
    })
}

/// Returns the node as its plug-ins see it.
fn host(
    config: &Config,
    prepared: &Prepared,
    shared: &Shared,
    listeners: BTreeMap<String, TcpListener>,
) -> anyhow::Result<NodeHost> {
    let id = prepared.identity().id();
    Ok(NodeHost {
        view: Arc::clone(&shared.view),
        id,
        name: config.name_of(id),
        cluster: config.cluster.clone(),
        demo: config.demo,
        journals: Arc::clone(&shared.journals),
        listeners: Mutex::new(listeners),
        access: Arc::clone(&shared.access),
        signing: Arc::clone(&shared.signing),
        client: hearsay_services::Client::default(),
        address_policy: shared.registry.address_policy().clone(),
        names: shared.names.clone(),
        metrics: Arc::clone(&shared.metrics),
        gateway_options: config.gateway_options.clone(),
        exempt: shared.exempt.clone(),
        own_http: own_http(config, prepared.http_address()?, &prepared.interfaces),
    })
}

/// Returns the node's header and the instances of its roles.
fn present(
    config: &Config,
    prepared: &Prepared,
    name: &str,
    listeners: &BTreeMap<String, TcpListener>,
) -> anyhow::Result<Presentation> {
    let offers =
        prepared.plugins.iter().map(|plugin| offer(plugin.as_ref(), &config.tags, listeners)).collect();
    let presentation = Presentation {
        profile: Profile {
            name: name.to_owned(),
            addresses: Vec::new(),
            http: None,
            roles: config.roles.clone(),
            zone: config.zone.clone(),
            software: concat!("hearsay ", env!("CARGO_PKG_VERSION")).into(),
            ephemeral: prepared.storage.dir().is_none(),
            grpc: None,
        },
        offers,
        suffix: prepared.identity().id().short(),
        advertise: config.advertise.clone(),
        advertise_http: config.advertise_http.clone(),
        swarm_port: prepared.swarm_port.address.port(),
        http: prepared.http_address()?,
        grpc: prepared.grpc.as_ref().map(TcpListener::local_addr).transpose()?,
        since_ms: prepared.started_ms,
        health: Health::Passing,
    };
    presentation.check()?;
    Ok(presentation)
}

/// Returns the instance that a role of this node offers.
fn offer(plugin: &dyn Service, tags: &[String], listeners: &BTreeMap<String, TcpListener>) -> Offer {
    let mut meta: BTreeMap<String, String> = plugin.meta();
    // The instance's address is the node's HTTP, as for every role. The metadata tells other nodes the port
    // of the role's own listener.
    let own = listeners.get(plugin.name()).and_then(|listener| listener.local_addr().ok());
    meta.extend(own.map(|address| ("listener-port".to_owned(), address.port().to_string())));
    Offer { service: plugin.name().to_owned(), tags: all_tags(&plugin.tags(), tags), meta }
}

/// Returns the host names, besides its own and its host's, by which clients may address this node.
fn own_names(config: &Config) -> impl Iterator<Item = String> {
    let advertised = config.advertise.iter().filter_map(|named| match named {
        Advertise::Host(host, _) => Some(host),
        Advertise::Interface(..) => None,
    });
    let http = config.advertise_http.iter().map(|http| &http.host);
    advertised.chain(http).chain(&config.allowed_hosts).map(ToString::to_string)
}

/// Returns the API token. An ephemeral node has none unless a file is configured: no client could know it.
fn api_token(config: &Config, storage: &Storage) -> anyhow::Result<Option<Secret<String>>> {
    let Some(path) = &config.api_token_file else {
        return Ok(storage.dir().map(|_| storage.api_token().clone()));
    };
    let (token, is_open) = read_token(path).context("--api-token-file")?;
    if is_open {
        tracing::warn!(path = %path.display(), "the API token can be read by other users; chmod 600 it");
    }
    Ok(Some(token))
}

/// Returns the addresses at which this node's own plug-ins reach its HTTP, if `--advertise-http` gives other
/// nodes a different (mapped) one. Loopback is left out: a request that a plug-in makes for a client must not
/// look like a local one.
fn own_http(config: &Config, http: SocketAddr, interfaces: &[InterfaceAddress]) -> Option<OwnHttp> {
    let stated = config.advertise_http.as_ref()?.to_string();
    let listening = interfaces.iter().filter(|address| address.is_routable()).map(|address| address.ip);
    let listening = listening.filter(|ip| http.ip().is_unspecified() || http.ip() == *ip);
    Some(OwnHttp {
        stated,
        listening: listening.map(|ip| SocketAddr::new(ip, http.port()).to_string()).collect(),
    })
}

/// Returns the URLs at which other nodes reach this node's HTTP, if `--advertise` or `--advertise-http` is
/// given.
fn advertised_urls(presentation: &Presentation, interfaces: &[InterfaceAddress]) -> Vec<String> {
    if presentation.advertise.is_empty() && presentation.advertise_http.is_none() {
        return Vec::new();
    }
    let stated = presentation.at(&[], interfaces).into_iter().find_map(|command| match command {
        Command::SetProfile(profile) => profile.http,
        _ => None,
    });
    stated.map(|http| format!("http://{http}")).into_iter().collect()
}

fn random_seed() -> anyhow::Result<u64> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("this system gives no random numbers: {e}"))?;
    Ok(u64::from_le_bytes(seed))
}
