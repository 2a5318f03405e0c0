//! [`Host`]: trait by which a plug-in reaches its node (identity, journals, provider table, HTTP client,
//! address policy, proofs and settings).

use std::{
    any::Any,
    net::{IpAddr, TcpListener},
    pin::Pin,
    sync::Arc,
};

use hearsay_protocol::{Index, NodeId, Provider};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, Request, request::Parts};

use crate::{
    Client, Problem,
    http::{prefixes::Effect, signing::UnsignedRequest},
    journal::Journal,
    network::address_policy::AddressPolicy,
    service::Task,
};

/// A pending response.
pub type ResponseFuture<'a> = Pin<Box<dyn Future<Output = Response> + Send + 'a>>;

/// The node that runs a plug-in. All methods answer from the node's memory.
pub trait Host: Send + Sync + 'static {
    /// Returns the name of the cluster.
    fn cluster(&self) -> &str;

    /// Returns the name of the node.
    fn node(&self) -> &str;

    /// Returns the identity of the node.
    fn node_id(&self) -> NodeId;

    /// Returns whether the plug-in should add sample data (`--demo`).
    fn demo(&self) -> bool;

    /// Returns the journal of a topic, if this node keeps it. A plug-in with a
    /// [`projection`](crate::Service::projection) finds its journal under its own name.
    fn journal(&self, topic: &str) -> Option<Arc<dyn Journal>>;

    /// Returns the current providers of a service, of any health, ordered by node and id. A program that is
    /// registered with several nodes is listed once.
    fn providers(&self, service: &str) -> Vec<Arc<Provider>>;

    /// Returns the providers of all services, of any health, and the index of this state of the table. A
    /// program that is registered with several nodes is listed once.
    fn all_providers(&self) -> (Index, Vec<Arc<Provider>>);

    /// Resolves when the provider table has changed since this index; at once, if it already has. May also
    /// resolve without a change.
    fn services_changed(&self, since: Index) -> Task;

    /// Returns the policy for connections that plug-ins open on behalf of their clients.
    fn address_policy(&self) -> &AddressPolicy;

    /// Returns the options that the operator gave for the plug-in of this name, in a type of the plug-in's
    /// crate.
    fn plugin_options(&self, _plugin: &str) -> Option<&(dyn Any + Send + Sync)> {
        None
    }

    /// Returns whether this host (without its port) is a name of this node.
    fn accepts_host(&self, host: &str) -> bool;

    /// Returns the non-blocking listener of this plug-in at the first call. `None` for a plug-in that
    /// requested no listener.
    fn take_listener(&self, plugin: &str) -> Option<TcpListener>;

    /// Returns the value of `Hearsay-Signature` for a request to a role of the node `recipient`. The
    /// signature proves that a member makes the request, in place of that node's API token. A signature is
    /// valid once, so each attempt needs a new one. A caller that signs on behalf of a client must have
    /// authorised that client. `None`: the provider table does not list the node.
    fn sign(&self, recipient: NodeId, request: &UnsignedRequest<'_>, body: &[u8]) -> Option<HeaderValue>;

    /// Checks whether a client of the plug-in's own listener may make a request with this effect to a path of
    /// a plug-in, which may differ from the path that the client requested. The same rule holds for clients
    /// of the node's own HTTP.
    ///
    /// # Errors
    /// 401 or 403; the detail says which proof is missing.
    fn authenticate(
        &self,
        client: IpAddr,
        request: &Parts,
        path: &str,
        effect: Effect,
    ) -> Result<(), Problem>;

    /// Returns whether reads need proof too (`--private`). Requests to roles are then signed even if they
    /// only read.
    fn reads_need_proof(&self) -> bool {
        false
    }

    /// Answers a request for [`SIGN_IN_PATHS`](crate::http::prefixes::SIGN_IN_PATHS) that a client has made
    /// to a plug-in's own listener. The node keeps the sessions of browsers.
    fn sign_in(&self, client: IpAddr, request: Request<Body>) -> ResponseFuture<'_>;

    /// Removes the headers that prove the identity of a client to this node.
    fn strip_credentials(&self, headers: &mut HeaderMap);

    /// Returns the client for requests to other services. All plug-ins of the node share it and its
    /// connections.
    fn client(&self) -> &Client;

    /// Returns whether clients at this address have no [share](crate::network::shares) of the plug-in's
    /// limits: members and trusted proxies. Loopback need not be included.
    fn is_exempt_from_shares(&self, _ip: IpAddr) -> bool {
        false
    }
}
