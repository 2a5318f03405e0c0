//! What a node is to a plug-in.

use std::{
    net::{IpAddr, TcpListener},
    sync::Arc,
};

use hearsay_protocol::{
    NodeId,
    providers::{Index, Provider},
};

use http::{HeaderMap, HeaderValue};

use crate::{
    Client, Problem, address_policy::AddressPolicy, gateway::options::GatewayOptions, journal::Journal,
    service::Task, signing::Unsigned,
};

/// The node, as its plug-ins see it. Cheap to ask: every answer comes from the node's own memory.
pub trait Host: Send + Sync + 'static {
    /// The name of the cluster.
    fn cluster(&self) -> &str;

    /// The name of the node.
    fn node(&self) -> &str;

    /// The identity of the node.
    fn node_id(&self) -> NodeId;

    /// Whether sample data was asked for (`--demo`).
    fn demo(&self) -> bool;

    /// The journal of a topic that this node keeps: a plug-in that has a [`projection`](crate::Service::projection) finds its own under its
    /// name.
    fn journal(&self, topic: &str) -> Option<Arc<dyn Journal>>;

    /// The providers of this service now, whatever their health, in the order of node and id. Empty for an unknown one. A program that is
    /// registered with several nodes is there once.
    fn providers(&self, service: &str) -> Vec<Arc<Provider>>;

    /// The providers of all services, whatever their health, and the index of that state of the table. A program that is registered with
    /// several nodes is there once.
    fn all_providers(&self) -> (Index, Vec<Arc<Provider>>);

    /// Resolves when what is offered is no longer what it was at this index: at once, if that is past already. May resolve more often.
    fn services_changed(&self, since: Index) -> Task;

    /// Which addresses the plug-ins may open connections to, on behalf of their clients.
    fn address_policy(&self) -> &AddressPolicy;

    /// What the operator says about the gateway.
    fn gateway_options(&self) -> GatewayOptions {
        GatewayOptions::default()
    }

    /// Whether a request for this host (without its port) may be meant for this node.
    fn accepts_host(&self, host: &str) -> bool;

    /// The listener of the plug-in of this name, non-blocking. Once: then it is the plug-in's. `None` for one that asked for none.
    fn take_listener(&self, plugin: &str) -> Option<TcpListener>;

    /// The value of `Hearsay-Signature` for a request to a role of this node: the proof that a member makes it, which stands in for the API token of
    /// that node. Made anew for each attempt, since it counts once. So whoever asks this on behalf of somebody else has made sure that they may.
    /// `None`: the table does not list the node.
    fn sign(&self, recipient: NodeId, request: &Unsigned<'_>, body: &[u8]) -> Option<HeaderValue>;

    /// Whether a client of a plug-in's own listener may write to the plug-ins' paths, as if it asked this node itself. `by_get`: the write is a GET.
    ///
    /// # Errors
    /// 401 or 403, with what is missing.
    fn authenticate(&self, client: IpAddr, headers: &HeaderMap, by_get: bool) -> Result<(), Problem>;

    /// Takes off the headers by which a client proves to this node who it is.
    fn strip_credentials(&self, headers: &mut HeaderMap);

    /// The client for requests to other services. One for the whole node, so that its plug-ins share connections.
    fn client(&self) -> &Client;

    /// Whether clients at this address have no [share](crate::shares) of what a plug-in bounds: members and trusted proxies. Loopback need not be
    /// named.
    fn is_exempt_from_shares(&self, _ip: IpAddr) -> bool {
        false
    }
}
