//! A node from start to stop: puts the parts together, tells where it is, and goes when it is told to.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use hearsay_protocol::{
    Core, Identity, NodeId, Restored,
    io::{Command, Profile},
    providers::{Index, Member},
    record::Health,
};
use hearsay_services::{Host, Service, log, shares::Exempt, shipping};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};

use crate::{
    banner::Banner,
    config::{Advertise, Config, Listen, hostname},
    control::Control,
    driver::{Driver, Neighbourhood, Order, Parts},
    exemptions,
    hangup::{self, OnHangup},
    http::{self, Access, HostNames, Limits, NodeHost, OwnHttp, Readiness, Site},
    interfaces::{self, InterfaceAddress},
    journal::{Ground, Journals},
    key_check::{self, Search},
    logging, memory,
    metrics::Metrics,
    ports,
    presentation::{self, Offer, Presentation},
    registry::{self, Registry, files::follower::Follower},
    reload::{self, Joins, all_tags},
    seek,
    signing::Signing,
    socket,
    storage::{REMEMBERED_MAX, Remembered, Storage},
    swarm::{self, SwarmConfig},
    systemd,
    view::{Clock, View},
    warnings::Warnings,
};

/// Orders that wait for the driver. It takes them between two events of the swarm.
const ORDERS_MAX: usize = 256;
/// How often the members are written down for the next start.
const REMEMBER_EVERY: Duration = Duration::from_secs(30);
/// When they are written down first: a copy of the data dir of a young node is to find them, too.
const REMEMBER_FIRST: Duration = Duration::from_secs(2);
/// Requests that are being answered when the node leaves get this long.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// What was said last gets this long to be shipped or spooled.
const SHIP_MAX: Duration = Duration::from_secs(2);
/// The stack of the driver's thread.
const DRIVER_STACK_BYTES: usize = 2 * 1024 * 1024;

/// Runs a node until it has left.
///
/// # Errors
/// What kept it from starting, or why it could not go on, in words for whoever started it.
pub fn run(config: Config, services: Vec<Arc<dyn Service>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(1, 4)))
        .enable_all()
        .build()?;
    let ended = runtime.block_on(serve(config, services));
    // A resolver that does not answer keeps a thread for as long as it likes, and nobody needs its answer any more.
    runtime.shutdown_background();
    ended
}

async fn serve(config: Config, services: Vec<Arc<dyn Service>>) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let file_limit = raise_file_limit();
    let plugins: Vec<Arc<dyn Service>> =
        services.into_iter().filter(|s| config.roles.iter().any(|role| role == s.name())).collect();
    let interfaces = interfaces::addresses();
    presentation::check_advertised(&config.advertise, config.advertise_http.as_ref(), &interfaces).await?;
    // What can be refused is refused before anything is written or anybody is told.
    // HTTP first: where its ladder has grown into the swarm's, it must not take the rung that was just claimed.
    let listener = ports::listen("http", config.http)?;
    let http = listener.local_addr()?;
    let listeners = plugin_listeners(&plugins, &config)?;
    let swarm_port = ports::claim_swarm(config.swarm)?;
    let mut storage = Storage::open(&config.data_dir, &config.cluster)?;
    let keypair = Keypair::ed25519_from_bytes(*storage.seed().expose())?;
    let mut swarm_config = SwarmConfig {
        cluster: config.cluster.clone(),
        cluster_key: config.cluster_key.as_ref().map(|key| key.to_pnet()),
        allowed: config.allowed.as_ref().map(|nodes| nodes.iter().copied().collect()),
        mdns: config.mdns,
        // Nothing listens during the key check.
        exempt: Exempt::default(),
    };
    let rungs = ports::rungs_around(swarm_port.address);
    check_key(&storage, &keypair, &swarm_config, &config, &rungs).await?;
    let started_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let incarnation = storage.next_incarnation(started_ms)?;
    let identity = Identity::from_seed(storage.seed().expose());
    let id = identity.id();
    let name = config.name_of(id);
    let socket = socket::open(&config.socket, &config.cluster, http.port(), storage.dir())?;
    let (socket_file, socket) = socket.unzip();

    let clock = Clock::start();
    // Microseconds of the incarnation: above every index of an earlier life that made less than a million changes a second.
    let view = Arc::new(View::new(Index(incarnation.0.saturating_mul(1000)), clock));
    let exempt = exemptions::exempt(Arc::clone(&view), config.trusted_proxies.clone());
    swarm_config.exempt = exempt.clone();
    let limits = Limits {
        connections: config.max_connections,
        streams: config.max_streams,
        exempt: exempt.clone(),
        ..Limits::default()
    };
    let limits = limits.within(file_limit);
    let metrics = Arc::new(Metrics::new(Arc::clone(&view)));
    metrics.set_plugins(plugins.clone());
    let (orders, order_receiver) = mpsc::channel(ORDERS_MAX);
    let (control, control_receiver) = mpsc::channel(16);
    let (readiness, ready) = watch::channel(Readiness::Starting);
    let warnings = Arc::<Warnings>::default();
    let (neighbourhood, neighbours) = watch::channel(Neighbourhood::default());

    let signing = Arc::new(Signing::new(
        Identity::from_seed(storage.seed().expose()),
        config.cluster.clone(),
        Arc::clone(&view),
        config.allowed.clone(),
    ));
    let access = Arc::new(Access {
        // One that is kept nowhere is known to nobody.
        token: storage.dir().map(|_| storage.api_token().clone()),
        is_keyed: config.cluster_key.is_some(),
        is_open: config.open,
        trusted_proxies: config.trusted_proxies.clone(),
        loopback_needs_token: config.loopback_needs_token,
    });
    let registry = Registry::open(
        storage.dir(),
        registry::Parts {
            me: id,
            view: Arc::clone(&view),
            orders: orders.clone(),
            roles: plugins.len(),
            listeners: vec![http, swarm_port.address],
            allow_exec: config.allow_exec_checks,
        },
    )
    .context("the registrations of this node")?;
    let names = HostNames::new(own_names(&config).chain([name.clone(), hostname()]));
    let site = Arc::new(Site {
        view: Arc::clone(&view),
        id,
        name: name.clone(),
        cluster: config.cluster.clone(),
        metrics: Arc::clone(&metrics),
        registry: Arc::clone(&registry),
        control,
        access: Arc::clone(&access),
        signing: Arc::clone(&signing),
        readiness: ready,
        warnings: Arc::clone(&warnings),
        neighbours: neighbours.clone(),
        names: names.clone(),
        waiters: http::Waiters::new(limits.streams),
        answers: http::Answers::default(),
    });
    let journals = Arc::new(Journals::open(
        &plugins,
        &Ground {
            dir: storage.dir(),
            me: &|| Identity::from_seed(storage.seed().expose()),
            cluster: &config.cluster,
            replicas_expected: config.replicas_expected,
            retention: &BTreeMap::from([(log::ROLE.to_owned(), config.log_retention)]),
            clock,
            orders: orders.clone(),
        },
    )?);
    metrics.set_journals(&journals);
    metrics.set_programs(&registry);
    let gateway = listeners.get("gateway").map(TcpListener::local_addr).transpose()?;
    let offers = plugins.iter().map(|plugin| offer(plugin.as_ref(), &config.tags, &listeners)).collect();
    let host = Arc::new(NodeHost {
        view: Arc::clone(&view),
        id,
        name: name.clone(),
        cluster: config.cluster.clone(),
        demo: config.demo,
        journals: Arc::clone(&journals),
        listeners: Mutex::new(listeners),
        access,
        signing: Arc::clone(&signing),
        client: hearsay_services::Client::default(),
        address_policy: registry.address_policy().clone(),
        names,
        gateway_options: config.gateway_options.clone(),
        exempt,
        own_http: own_http(&config, http, &interfaces),
    });
    let router = http::router(site, &plugins, host.clone())?;

    let presentation = Presentation {
        profile: Profile {
            name: name.clone(),
            addresses: Vec::new(),
            http: None,
            roles: config.roles.clone(),
            zone: config.zone.clone(),
            software: concat!("hearsay ", env!("CARGO_PKG_VERSION")).into(),
            ephemeral: storage.dir().is_none(),
        },
        offers,
        suffix: id.short(),
        advertise: config.advertise.clone(),
        advertise_http: config.advertise_http.clone(),
        swarm_port: swarm_port.address.port(),
        http,
        since_ms: started_ms,
        health: Health::Passing,
    };
    presentation.check()?;
    let advertised = advertised_urls(&presentation, &interfaces);
    let remembered = storage.remembered();
    let core = Core::new(
        identity,
        hearsay_protocol::config::Config {
            cluster: config.cluster.clone(),
            #[cfg(feature = "next")]
            is_next: std::env::var_os("HEARSAY_NEXT").is_some(),
            ..Default::default()
        },
        presentation.profile.clone(),
        Restored { incarnation, remembered: addresses_of(&remembered) },
        random_seed()?,
        clock.now(),
    );
    let listen_on = swarm_port.listen_on();
    let (fatal_sender, fatal) = oneshot::channel();
    let (view_of_driver, metrics_of_driver, holdings, cluster) =
        (Arc::clone(&view), Arc::clone(&metrics), registry.holdings(), config.cluster.clone());
    std::thread::Builder::new().name("driver".into()).stack_size(DRIVER_STACK_BYTES).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
            let ended = runtime.block_on(async move {
                let (mut swarm, topic) = swarm::build(&keypair, &swarm_config)?;
                for address in listen_on {
                    swarm.listen_on(address.clone()).with_context(|| format!("--swarm {address}"))?;
                }
                let driver = Driver::new(Parts {
                    core,
                    swarm,
                    topic,
                    cluster,
                    view: view_of_driver,
                    metrics: metrics_of_driver,
                    presentation,
                    warnings,
                    orders: order_receiver,
                    neighbourhood,
                    mdns: swarm_config.mdns,
                    journals,
                    holdings,
                });
                Ok(driver.run().await?)
            });
            runtime.shutdown_background();
            ended
        });
        // Nobody listens any more once the node stops by itself.
        _ = fatal_sender.send(ended);
    })?;

    registry.await_restored().await;
    if let Some(dir) = config.services_dir.clone() {
        let follower = Follower::new(dir, config.allow_exec_checks, Arc::clone(&registry));
        tokio::spawn(follower.run());
    }
    tokio::spawn(seek::climb(rungs, orders.clone(), neighbours.clone()));
    let mut joins = Joins::new(orders.clone(), neighbours.clone());
    joins.set(&config.join);
    tokio::spawn(memory::give_back_after_bursts(neighbours));
    tokio::spawn(memory::give_back_after_start());
    for task in plugins.iter().filter_map(|plugin| plugin.task(host.clone())) {
        tokio::spawn(task);
    }
    let (still, shipping) = ship(host.clone(), storage.dir())?;
    let (stop, stopping) = watch::channel(false);
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let socket = socket.map(tokio::net::UnixListener::from_std).transpose()?;
    let listeners = http::Listeners::from(listener).with_socket(socket);
    let mut serving = tokio::spawn(http::serve(listeners, router, limits, Arc::clone(&metrics), stopping));

    // The node is there, whether or not anybody can be told so.
    _ = std::io::stdout().write_all(
        Banner {
            gateway,
            advertised,
            socket: socket_file.as_ref().map(|file| file.path().to_owned()),
            ..banner(&config, &name, id, http, swarm_port.address, &storage, remembered.len())
        }
        .render()
        .as_bytes(),
    );
    tracing::info!(name, %id, incarnation = incarnation.0, cluster = config.cluster, "started");
    readiness.send_replace(Readiness::Ready);
    systemd::ready(&name);
    tokio::spawn(systemd::live(orders.clone()));

    let own_tags = plugins.iter().map(|plugin| (plugin.name().to_owned(), plugin.tags())).collect();
    let mut node = Node { view, me: id, storage, orders: orders.clone(), config, own_tags, joins, signing };
    let ended = node.live(fatal, control_receiver).await;
    readiness.send_replace(Readiness::Leaving);
    systemd::stopping();
    ended?;
    let (done, told) = oneshot::channel();
    if orders.send(Order::Leave(done)).await.is_ok() {
        _ = told.await;
    }
    stop.send_replace(true);
    let draining: Vec<_> = plugins.iter().filter_map(|plugin| plugin.drain()).map(tokio::spawn).collect();
    node.remember();
    let ended = async {
        _ = (&mut serving).await;
        for plugin in draining {
            // One that panicked is done, too.
            _ = plugin.await;
        }
    };
    if tokio::time::timeout(DRAIN_MAX, ended).await.is_err() {
        tracing::warn!("requests were still being answered; not waiting for them any longer");
    }
    drop(socket_file);
    tracing::info!("left");
    // Its last words go to the log, or to the spool for the next life.
    still.send_replace(true);
    _ = tokio::time::timeout(SHIP_MAX, shipping).await;
    Ok(())
}

/// Refuses to start under a key that another process holds. A key that has just been made is nobody else's.
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
    let remembered = addresses_of(&storage.remembered());
    let mut addresses = key_check::remembered_addresses(&remembered, me);
    addresses.extend(rungs.iter().cloned());
    let search = Search { addresses, join: config.join.clone(), had_company: !remembered.is_empty() };
    Ok(key_check::check(keypair, swarm_config, search).await?)
}

/// Ships what this process says to the log, until it is told to stop. The other end hears when it has.
fn ship(
    host: Arc<dyn Host>,
    data_dir: Option<&Path>,
) -> anyhow::Result<(watch::Sender<bool>, oneshot::Receiver<()>)> {
    let (stop, stopping) = watch::channel(false);
    let (done, ended) = oneshot::channel();
    if let Some(waiting) = logging::to_ship() {
        let spool = data_dir.map(|dir| dir.join("events"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(shipping::THREAD.into()).spawn(move || {
            runtime.block_on(waiting.ship(host, spool, stopping));
            runtime.shutdown_background();
            // Whoever waited may have given up.
            _ = done.send(());
        })?;
    }
    Ok((stop, ended))
}

struct Node {
    view: Arc<View>,
    me: NodeId,
    storage: Storage,
    orders: mpsc::Sender<Order>,
    config: Config,
    /// The tags that each plug-in has by itself.
    own_tags: BTreeMap<String, Vec<String>>,
    joins: Joins,
    signing: Arc<Signing>,
}

impl Node {
    /// Until a signal or a command says to leave, or the driver fails.
    async fn live(
        &mut self,
        mut fatal: oneshot::Receiver<anyhow::Result<()>>,
        mut control: mpsc::Receiver<Control>,
    ) -> anyhow::Result<()> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let on_hangup = OnHangup::of_this_process();
        let mut hangup = on_hangup.signals()?;
        let first = tokio::time::Instant::now() + REMEMBER_FIRST;
        let mut remember = tokio::time::interval_at(first, REMEMBER_EVERY);
        loop {
            tokio::select! {
                ended = &mut fatal => return ended.unwrap_or_else(|_| anyhow::bail!("the node's driver stopped; this is a defect")),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = hangup::next(&mut hangup) => match on_hangup {
                    OnHangup::Reload => {
                        reload::reload(&mut self.config, &self.own_tags, &self.orders, &mut self.joins).await;
                        self.signing.set_allowed(self.config.allowed.clone());
                    }
                    OnHangup::Leave | OnHangup::Ignore => break,
                },
                command = control.recv() => match command {
                    Some(Control::Forget(id, tell)) => _ = self.orders.send(Order::Forget(id, tell)).await,
                    Some(Control::Leave) | None => break,
                },
                _ = remember.tick() => self.remember(),
            }
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
            std::process::exit(1);
        });
        tracing::info!("leaving; a second signal stops at once");
        Ok(())
    }

    /// Writes down whom to try at the next start: those present first. The last of a cluster to leave sees nobody any more, so those
    /// that went before it count too.
    fn remember(&self) {
        let peers: Vec<Remembered> = self.view.read(|table| {
            let mut others: Vec<_> =
                table.members().filter(|m| m.id != self.me && !m.addresses.is_empty()).collect();
            others.sort_by_key(|member| !member.state.is_present());
            let remembered =
                |m: &Member| Remembered { id: m.id, name: m.name.clone(), addresses: m.addresses.clone() };
            others.into_iter().take(REMEMBERED_MAX).map(remembered).collect()
        });
        // Before it met anybody, those of the life before are worth more than nobody.
        if !peers.is_empty()
            && let Err(error) = self.storage.remember(&peers)
        {
            tracing::warn!(%error, "the members known now are not written down");
        }
    }
}

/// Lets this process open as many files as it may: each connection is one. Returns how many.
fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Opens the listeners of plug-ins that want one of their own.
fn plugin_listeners(
    plugins: &[Arc<dyn Service>],
    config: &Config,
) -> anyhow::Result<BTreeMap<String, TcpListener>> {
    let mut listeners = BTreeMap::new();
    for (plugin, port) in plugins.iter().filter_map(|plugin| Some((plugin, plugin.listener()?))) {
        let listener = match plugin.name() {
            "gateway" => ports::listen("gateway", config.gateway)?,
            // No option says otherwise, and the message would name one.
            name => ports::listen("role", Listen::Ladder((Ipv6Addr::UNSPECIFIED, port).into()))
                .with_context(|| format!("the listener of {name}"))?,
        };
        listeners.insert(plugin.name().to_owned(), listener);
    }
    Ok(listeners)
}

/// The names, besides its own and its host's, under which this node may be asked.
fn own_names(config: &Config) -> impl Iterator<Item = String> {
    let advertised = config.advertise.iter().filter_map(|named| match named {
        Advertise::Host(host, _) => Some(host),
        Advertise::Interface(..) => None,
    });
    let http = config.advertise_http.iter().map(|http| &http.host);
    advertised.chain(http).chain(&config.allowed_hosts).map(ToString::to_string)
}

/// How plug-ins of this node reach its roles, where others are told a mapped port. Not by loopback: what they
/// ask for others must not look as if it were asked on this machine.
fn own_http(config: &Config, http: SocketAddr, interfaces: &[InterfaceAddress]) -> Option<OwnHttp> {
    let stated = config.advertise_http.as_ref()?.to_string();
    let listening = interfaces.iter().filter(|address| address.is_routable()).map(|address| address.ip);
    let listening = listening.filter(|ip| http.ip().is_unspecified() || http.ip() == *ip);
    Some(OwnHttp {
        stated,
        listening: listening.map(|ip| SocketAddr::new(ip, http.port()).to_string()).collect(),
    })
}

/// Where others reach HTTP, if the user has said so.
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

fn offer(plugin: &dyn Service, tags: &[String], listeners: &BTreeMap<String, TcpListener>) -> Offer {
    let mut meta: BTreeMap<String, String> = plugin.meta();
    // The instance's address is the node's HTTP, as that of every plug-in; this is how others find the listener of its own.
    let own = listeners.get(plugin.name()).and_then(|listener| listener.local_addr().ok());
    meta.extend(own.map(|address| ("listener-port".to_owned(), address.port().to_string())));
    Offer { service: plugin.name().to_owned(), tags: all_tags(&plugin.tags(), tags), meta }
}

fn addresses_of(remembered: &[Remembered]) -> Vec<(NodeId, String)> {
    // The first are those that lead out, and one that answers is enough.
    let addresses = |peer: &Remembered| peer.addresses.iter().take(2).cloned().collect::<Vec<_>>();
    remembered.iter().flat_map(|peer| addresses(peer).into_iter().map(|a| (peer.id, a))).collect()
}

fn random_seed() -> anyhow::Result<u64> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("this system gives no random numbers: {e}"))?;
    Ok(u64::from_le_bytes(seed))
}

fn banner(
    config: &Config,
    name: &str,
    id: NodeId,
    http: SocketAddr,
    swarm: SocketAddr,
    storage: &Storage,
    remembered: usize,
) -> Banner {
    Banner {
        name: name.to_owned(),
        id,
        cluster: config.cluster.clone(),
        roles: config.roles.clone(),
        http,
        advertised: Vec::new(),
        gateway: None,
        dns: None,
        socket: None,
        swarm,
        data_dir: storage.dir().map(Into::into),
        mdns: config.mdns,
        join: config.join.iter().map(ToString::to_string).collect(),
        remembered,
        keyed: config.cluster_key.is_some(),
    }
}
