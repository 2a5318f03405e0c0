//! Third step of a start: starts the driver's thread, background tasks, the log shipper, and the servers of
//! HTTP, DNS and JSON-RPC, and prints the banner.

use std::{io::Write as _, path::Path, sync::Arc};

use anyhow::Context as _;
use hearsay_protocol::Core;
use hearsay_services::{Host, SHIPPER_THREAD, Service};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    assemble::{Assembled, Channels, Shared},
    banner,
    readiness::{FIRST_SYNC_MAX, become_ready, begin_search},
    servers::Servers,
    until_stopped::{Node, StopRequests},
};
use crate::{
    apis::dns::Dns,
    config::Config,
    discovery,
    driver::{Driver, DriverParts},
    driver_command::{DriverCommand, Neighbourhood},
    http::{NodeHost, Readiness},
    journal::Journals,
    logging,
    metrics::Metrics,
    presentation::Presentation,
    registry::{CheckReportReader, Registry, files::watcher::FileWatcher},
    reload::Joins,
    socket::SocketFile,
    swarm::{self, SwarmConfig},
    system::{memory, ports::SwarmPort, systemd},
    user_events::UserEvents,
    view::View,
    warnings::Warnings,
};

/// Stack size of the driver's thread.
const DRIVER_STACK_BYTES: usize = 2 * 1024 * 1024;

/// A running node.
pub(super) struct Running {
    pub(super) stop_requests: StopRequests,
    pub(super) parts: RunningParts,
}

/// The parts of a running node that are shut down in order.
pub(super) struct RunningParts {
    pub(super) driver: mpsc::Sender<DriverCommand>,
    pub(super) readiness: watch::Sender<Readiness>,
    pub(super) plugins: Vec<Arc<dyn Service>>,
    pub(super) http_stop: watch::Sender<bool>,
    pub(super) http: JoinHandle<()>,
    /// The file is removed when this value is dropped.
    pub(super) socket_file: Option<SocketFile>,
    pub(super) log_shipper: LogShipper,
    pub(super) _swarm_port: SwarmPort,
}

/// The thread that ships this process's log records to the log.
pub(super) struct LogShipper {
    pub(super) stop: watch::Sender<bool>,
    pub(super) stopped: oneshot::Receiver<()>,
}

/// Starts all threads and tasks of a node, and reports to the user and to systemd that it serves.
///
/// # Errors
/// A thread or socket that the system refused.
pub(super) async fn spawn(config: Config, assembled: Assembled) -> anyhow::Result<(Node, Running)> {
    let banner = banner::render(&config, &assembled)?;
    let Assembled {
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
        remembered,
        ..
    } = assembled;
    let Channels { driver, commands, operator_requests, readiness, neighbourhood, neighbours, .. } = channels;
    let Shared { view, metrics, user_events, warnings, signing, registry, journals, exempt, .. } = shared;
    let plan = DriverPlan {
        keypair: prepared.keypair,
        listen_on: prepared.swarm_port.listen_on(),
        swarm_config: prepared.swarm_config,
        core,
        view: Arc::clone(&view),
        metrics: Arc::clone(&metrics),
        user_events,
        presentation,
        warnings,
        commands,
        neighbourhood,
        journals,
        check_reports: registry.report_reader(),
    };
    let driver_ended = spawn_driver(plan)?;
    registry.await_restored().await;
    tokio::spawn(discovery::dial_ladder(prepared.rungs, driver.clone(), neighbours.clone()));
    let mut joins = Joins::new(driver.clone(), neighbours.clone());
    joins.set(&config.join);
    spawn_tasks(&config, &registry, &prepared.plugins, &host, &neighbours);
    let log_shipper = spawn_log_shipper(host, prepared.storage.dir())?;
    let (http_stop, stop) = watch::channel(false);
    if let Some(sockets) = prepared.dns {
        let dns = Dns::new(&config, id, Arc::clone(&view), Arc::clone(&metrics.dns));
        tokio::spawn(dns.serve(sockets, exempt, stop.clone()));
    }
    let (socket_file, socket) = prepared.socket.unzip();
    let servers = Servers {
        http: prepared.http,
        socket,
        router,
        grpc: prepared.grpc.map(|listener| (listener, grpc)),
        jsonrpc: prepared.jsonrpc.map(|listener| (listener, jsonrpc)),
    };
    let http = servers.spawn(limits, metrics, stop)?;

    // The node runs on if standard output is closed.
    _ = std::io::stdout().write_all(banner.as_bytes());
    tracing::info!(name, %id, incarnation = prepared.incarnation.0, cluster = config.cluster, "started");
    if config.join.is_empty() && remembered.is_empty() {
        begin_search(&readiness);
    }
    tokio::spawn(become_ready(readiness.clone(), neighbours, FIRST_SYNC_MAX));
    systemd::notify_ready(&name);
    tokio::spawn(systemd::feed_watchdog(driver.clone()));

    let own_tags = prepared.plugins.iter().map(|plugin| (plugin.name().to_owned(), plugin.tags())).collect();
    let parts = RunningParts {
        driver: driver.clone(),
        readiness,
        plugins: prepared.plugins,
        http_stop,
        http,
        socket_file,
        log_shipper,
        _swarm_port: prepared.swarm_port,
    };
    let node = Node { view, me: id, storage: prepared.storage, driver, config, own_tags, joins, signing };
    Ok((node, Running { stop_requests: StopRequests { driver_ended, operator_requests }, parts }))
}

/// Starts the tasks that run beside the servers: the watcher of registration files, the release of memory,
/// and the tasks of the plug-ins.
fn spawn_tasks(
    config: &Config,
    registry: &Arc<Registry>,
    plugins: &[Arc<dyn Service>],
    host: &Arc<NodeHost>,
    neighbours: &watch::Receiver<Neighbourhood>,
) {
    if let Some(dir) = config.services_dir.clone() {
        tokio::spawn(FileWatcher::new(dir, config.allow_exec_checks, Arc::clone(registry)).run());
    }
    tokio::spawn(memory::release_after_bursts(neighbours.clone()));
    tokio::spawn(memory::release_after_start());
    for task in plugins.iter().filter_map(|plugin| plugin.task(host.clone())) {
        tokio::spawn(task);
    }
}

/// Parts from which the driver's thread builds the swarm and the driver.
struct DriverPlan {
    keypair: Keypair,
    listen_on: Vec<Multiaddr>,
    swarm_config: SwarmConfig,
    core: Core,
    view: Arc<View>,
    metrics: Arc<Metrics>,
    user_events: Arc<UserEvents>,
    presentation: Presentation,
    warnings: Arc<Warnings>,
    commands: mpsc::Receiver<DriverCommand>,
    neighbourhood: watch::Sender<Neighbourhood>,
    journals: Arc<Journals>,
    check_reports: CheckReportReader,
}

impl DriverPlan {
    /// Builds the swarm and runs the driver on it.
    async fn run(self) -> anyhow::Result<()> {
        let (mut swarm, topic) = swarm::build(&self.keypair, &self.swarm_config)?;
        for address in self.listen_on {
            swarm.listen_on(address.clone()).with_context(|| format!("--swarm {address}"))?;
        }
        let driver = Driver::new(DriverParts {
            core: self.core,
            swarm,
            topic,
            cluster: self.swarm_config.cluster,
            view: self.view,
            metrics: self.metrics,
            user_events: self.user_events,
            presentation: self.presentation,
            warnings: self.warnings,
            commands: self.commands,
            neighbourhood: self.neighbourhood,
            mdns: self.swarm_config.mdns,
            journals: self.journals,
            check_reports: self.check_reports,
        });
        Ok(driver.run().await?)
    }
}

/// Starts the driver's thread. The receiver gets the driver's result when it ends.
fn spawn_driver(plan: DriverPlan) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let (ended_sender, driver_ended) = oneshot::channel();
    std::thread::Builder::new().name("driver".into()).stack_size(DRIVER_STACK_BYTES).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
            let ended = runtime.block_on(plan.run());
            runtime.shutdown_background();
            ended
        });
        // An error: the node is already shutting down.
        _ = ended_sender.send(ended);
    })?;
    Ok(driver_ended)
}

/// Starts the thread that ships this process's log records, if the process collects them.
fn spawn_log_shipper(host: Arc<dyn Host>, data_dir: Option<&Path>) -> anyhow::Result<LogShipper> {
    let (stop, stopping) = watch::channel(false);
    let (stopped_sender, stopped) = oneshot::channel();
    if let Some(waiting) = logging::take_records_to_ship() {
        let spool = data_dir.map(|dir| dir.join("events"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(SHIPPER_THREAD.into()).spawn(move || {
            runtime.block_on(waiting.ship(host, spool, stopping));
            runtime.shutdown_background();
            // An error: the node did not wait this long.
            _ = stopped_sender.send(());
        })?;
    }
    Ok(LogShipper { stop, stopped })
}
