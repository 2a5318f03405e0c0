//! [`Swarms`]: a cluster in one process, of real swarms and drivers over loopback, without HTTP, disk or
//! processes.
//!
//! Two processor cores can run a thousand swarms, but not a thousand processes. To simulate a crash, a driver
//! is dropped with its connections, as the kernel closes those of a killed process. A freeze cannot be
//! simulated, because the connections of a frozen driver would still answer.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use hearsay_node::{
    Clock, Driver, DriverCommand, DriverParts, Metrics, Neighbourhood, Offer, Presentation, SwarmConfig,
    UserEvents, View, build_swarm,
};
use hearsay_protocol::{
    Config, Core, Health, Identity, Incarnation, Index, MemberState, NodeId, Profile, Startup,
};
use libp2p::{Multiaddr, identity::Keypair, multiaddr::Protocol};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{Cluster, NodeRef};

/// First swarm port. Each node uses one port. All are below the range from which the system allocates ports
/// for outgoing connections.
const FIRST_PORT: u16 = 20_000;
/// Service that every node offers.
const SERVICE: &str = "grading";

/// Cluster of nodes in this process.
#[derive(Debug)]
pub struct Swarms {
    runtime: Runtime,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    name: String,
    address: Multiaddr,
    view: Arc<View>,
    orders: mpsc::Sender<DriverCommand>,
    task: JoinHandle<()>,
}

impl Swarms {
    /// Creates an empty cluster.
    ///
    /// # Errors
    /// The system provides no threads.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
            nodes: Vec::new(),
        })
    }

    /// Starts a node that offers [`SERVICE`], and that first connects to these contacts.
    ///
    /// # Errors
    /// The node's swarm cannot be built or cannot listen.
    pub fn start(&mut self, name: &str, contacts: &[NodeRef]) -> anyhow::Result<NodeRef> {
        self.announce(name, SERVICE, (Ipv4Addr::LOCALHOST, 7500).into(), contacts)
    }

    /// Starts a node whose instance states an arbitrary address.
    ///
    /// # Errors
    /// The node's swarm cannot be built or cannot listen.
    pub fn announce(
        &mut self,
        name: &str,
        service: &str,
        http: SocketAddr,
        contacts: &[NodeRef],
    ) -> anyhow::Result<NodeRef> {
        let index = u16::try_from(self.nodes.len())?;
        let port = FIRST_PORT.checked_add(index).context("no ports are left")?;
        let seed = *blake3_of(name, self.nodes.len()).as_bytes();
        let identity = Identity::from_seed(&seed);
        let id = identity.id();
        let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let clock = Clock::start();
        let view = Arc::new(View::new(Index(now_ms.saturating_mul(1000)), clock));
        let presentation = Presentation {
            profile: Profile {
                name: name.into(),
                addresses: Vec::new(),
                http: None,
                roles: vec![service.into()],
                zone: None,
                software: concat!("hearsay ", env!("CARGO_PKG_VERSION")).into(),
                ephemeral: false,
                grpc: None,
            },
            offers: vec![Offer { service: service.into(), tags: Vec::new(), meta: BTreeMap::new() }],
            suffix: id.short(),
            advertise: Vec::new(),
            advertise_http: None,
            swarm_port: port,
            http,
            grpc: None,
            since_ms: now_ms,
            health: Health::Passing,
        };
        let startup = Startup {
            incarnation: Incarnation(now_ms),
            remembered: Vec::new(),
            known: Vec::new(),
            profile: presentation.profile.clone(),
            seed: u64::from_le_bytes(seed[..8].try_into()?),
        };
        let config = Config::default();
        let swarm_config = SwarmConfig {
            cluster: config.cluster.clone(),
            cluster_key: None,
            allowed: None,
            mdns: false,
            exempt: Default::default(),
        };
        let core = Core::new(identity, config, startup, clock.now());
        let address = Multiaddr::from(Ipv4Addr::LOCALHOST).with(Protocol::Tcp(port));
        let (orders, command_receiver) = mpsc::channel(256);
        let (neighbourhood, _) = watch::channel(Neighbourhood::default());

        let inside = self.runtime.enter();
        let (mut swarm, topic) = build_swarm(&Keypair::ed25519_from_bytes(seed)?, &swarm_config)?;
        swarm.listen_on(address.clone())?;
        let driver = Driver::new(DriverParts {
            core,
            swarm,
            topic,
            cluster: swarm_config.cluster,
            view: Arc::clone(&view),
            metrics: Arc::new(Metrics::new(Arc::clone(&view))),
            user_events: Arc::new(UserEvents::new(id, name.to_owned(), Arc::clone(&view))),
            presentation,
            warnings: Arc::default(),
            commands: command_receiver,
            neighbourhood,
            mdns: false,
            journals: Arc::default(),
            check_reports: Default::default(),
        });
        let name_of_task = name.to_owned();
        let task = tokio::spawn(async move {
            if let Err(fatal) = driver.run().await {
                tracing::error!(name = name_of_task, %fatal, "a node stopped");
            }
        });
        drop(inside);

        for contact in contacts {
            let contact = &self.nodes[contact.0];
            orders.try_send(DriverCommand::Hint(Some(contact.id), contact.address.clone()))?;
        }
        self.nodes.push(Node { id, name: name.into(), address, view, orders, task });
        Ok(NodeRef(self.nodes.len() - 1))
    }

    /// Returns the number of members that a node holds in this state.
    pub fn count(&self, by: NodeRef, state: MemberState) -> usize {
        self.nodes[by.0].view.read(|table| table.members().filter(|m| m.state == state).count())
    }

    /// Returns the state in which a node holds another one; `None` if it does not know the node.
    pub fn state_of(&self, by: NodeRef, of: NodeRef) -> Option<MemberState> {
        let id = self.nodes[of.0].id;
        self.nodes[by.0].view.read(|table| table.member(id).map(|m| m.state))
    }

    /// Returns the index at which a node's table of services last changed.
    pub fn services_index(&self, of: NodeRef) -> u64 {
        self.nodes[of.0].view.read(|table| table.services_index().0)
    }

    /// Takes a node out of service, or back in. The change spreads to all nodes.
    ///
    /// # Errors
    /// The driver has ended.
    pub fn maintain(&self, node: NodeRef, enable: bool) -> anyhow::Result<()> {
        Ok(self.nodes[node.0].orders.blocking_send(DriverCommand::Maintenance(enable))?)
    }
}

fn blake3_of(name: &str, index: usize) -> blake3::Hash {
    blake3::hash(format!("{name} {index}").as_bytes())
}

impl Cluster for Swarms {
    fn add(&mut self, name: &str) -> NodeRef {
        let contact = self.nodes.iter().rposition(|n| !n.task.is_finished()).map(NodeRef);
        self.start(name, contact.as_slice()).expect("a node starts")
    }

    fn crash(&mut self, node: NodeRef) {
        let node = &mut self.nodes[node.0];
        node.task.abort();
        // The node's sockets are closed when its task has ended.
        _ = self.runtime.block_on(&mut node.task);
    }

    fn leave(&mut self, node: NodeRef) {
        let node = &mut self.nodes[node.0];
        let (done, told) = oneshot::channel();
        let orders = node.orders.clone();
        self.runtime.block_on(async {
            if orders.send(DriverCommand::Leave(done)).await.is_ok() {
                // An error means that the driver stopped before it could answer. That suffices, too.
                _ = told.await;
            }
        });
        node.task.abort();
    }

    fn name_of(&self, node: NodeRef) -> String {
        self.nodes[node.0].name.clone()
    }

    fn sees(&self, by: NodeRef, name: &str) -> Option<String> {
        self.nodes[by.0].view.read(|table| Some(table.member_named(name)?.state.as_str().to_owned()))
    }

    fn providers(&self, by: NodeRef) -> Vec<String> {
        let mut names: Vec<String> = self.nodes[by.0]
            .view
            .read(|table| table.providers(SERVICE).map(|p| p.node.to_string()).collect());
        names.sort();
        names
    }

    fn root(&self, by: NodeRef) -> Option<String> {
        let hash = self.nodes[by.0].view.read(|table| table.root_hash());
        Some(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn describe(&self) -> String {
        let node = |node: &Node| {
            let states: Vec<String> = node
                .view
                .read(|table| table.members().map(|m| format!("{}={}", m.name, m.state.as_str())).collect());
            format!("{} runs: {}; {}\n", node.name, !node.task.is_finished(), states.join(" "))
        };
        self.nodes.iter().take(20).map(node).collect()
    }
}
