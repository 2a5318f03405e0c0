//! A cluster in one process: real swarms and real drivers over loopback, without HTTP, disk or processes.
//!
//! What a thousand processes would need in memory and in the scheduler's time, two cores do not have; a thousand swarms in one process they
//! do. A crash is a driver that is dropped with its connections, as the kernel would drop those of a killed process. A freeze cannot be
//! played here: the connections of a frozen driver would go on answering.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use hearsay_node::{
    driver::{Driver, Neighbourhood, Order, Parts},
    metrics::Metrics,
    presentation::{Offer, Presentation},
    swarm::{self, SwarmConfig},
    view::{Clock, View},
};
use hearsay_protocol::{
    Core, Identity, Incarnation, NodeId, Restored,
    config::Config,
    io::Profile,
    providers::{Index, MemberState},
    record::Health,
};
use libp2p::{Multiaddr, identity::Keypair, multiaddr::Protocol};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{Cluster, NodeRef};

/// The first swarm port; nodes take one each from here on, below the range from which the system takes ports for connections.
const FIRST_PORT: u16 = 20_000;
/// The service that every node offers.
const SERVICE: &str = "grading";

/// Many nodes in this process.
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
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl Swarms {
    /// No nodes yet.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
            nodes: Vec::new(),
        })
    }

    /// Starts a node that offers [`SERVICE`] and looks for these others first.
    ///
    /// # Errors
    /// Its swarm cannot be built or cannot listen.
    pub fn start(&mut self, name: &str, contacts: &[NodeRef]) -> anyhow::Result<NodeRef> {
        self.announce(name, SERVICE, (Ipv4Addr::LOCALHOST, 7500).into(), contacts)
    }

    /// Starts a node that says that a service is at an address, where anything may answer.
    ///
    /// # Errors
    /// Its swarm cannot be built or cannot listen.
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
            },
            offers: vec![Offer { service: service.into(), tags: Vec::new(), meta: BTreeMap::new() }],
            suffix: id.short(),
            advertise: Vec::new(),
            advertise_http: None,
            swarm_port: port,
            http,
            since_ms: now_ms,
            health: Health::Passing,
        };
        let restored = Restored { incarnation: Incarnation(now_ms), remembered: Vec::new() };
        let seed_of_core = u64::from_le_bytes(seed[..8].try_into()?);
        let config = Config::default();
        let swarm_config = SwarmConfig {
            cluster: config.cluster.clone(),
            cluster_key: None,
            allowed: None,
            mdns: false,
            exempt: Default::default(),
        };
        let core =
            Core::new(identity, config, presentation.profile.clone(), restored, seed_of_core, clock.now());
        let address = Multiaddr::from(Ipv4Addr::LOCALHOST).with(Protocol::Tcp(port));
        let (orders, order_receiver) = mpsc::channel(256);
        let (neighbourhood, _) = watch::channel(Neighbourhood::default());

        let inside = self.runtime.enter();
        let (mut swarm, topic) = swarm::build(&Keypair::ed25519_from_bytes(seed)?, &swarm_config)?;
        swarm.listen_on(address.clone())?;
        let driver = Driver::new(Parts {
            core,
            swarm,
            topic,
            cluster: swarm_config.cluster,
            view: Arc::clone(&view),
            metrics: Arc::new(Metrics::new(Arc::clone(&view))),
            presentation,
            warnings: Arc::default(),
            orders: order_receiver,
            neighbourhood,
            mdns: false,
            journals: Arc::default(),
            holdings: Default::default(),
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
            orders.try_send(Order::Hint(Some(contact.id), contact.address.clone()))?;
        }
        self.nodes.push(Node { id, name: name.into(), address, view, orders, task });
        Ok(NodeRef(self.nodes.len() - 1))
    }

    /// How many members a node sees in this state.
    pub fn count(&self, by: NodeRef, state: MemberState) -> usize {
        self.nodes[by.0].view.read(|table| table.members().filter(|m| m.state == state).count())
    }

    /// How a node sees another.
    pub fn state_of(&self, by: NodeRef, of: NodeRef) -> Option<MemberState> {
        let id = self.nodes[of.0].id;
        self.nodes[by.0].view.read(|table| table.member(id).map(|m| m.state))
    }

    /// When a node's table of services last changed.
    pub fn services_index(&self, of: NodeRef) -> u64 {
        self.nodes[of.0].view.read(|table| table.services_index().0)
    }

    /// Takes a node out of service, or back in: a change to spread.
    ///
    /// # Errors
    /// Its driver is gone.
    pub fn maintain(&self, node: NodeRef, enable: bool) -> anyhow::Result<()> {
        Ok(self.nodes[node.0].orders.blocking_send(Order::Maintenance(enable))?)
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
        // Its sockets are closed when it is gone.
        _ = self.runtime.block_on(&mut node.task);
    }

    fn leave(&mut self, node: NodeRef) {
        let node = &mut self.nodes[node.0];
        let (done, told) = oneshot::channel();
        let orders = node.orders.clone();
        self.runtime.block_on(async {
            if orders.send(Order::Leave(done)).await.is_ok() {
                // An error: it stopped before it could answer, which is gone as well.
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
        Some(hearsay_node::metrics::hex(&hash))
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
