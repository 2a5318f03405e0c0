//! [`NodeHost`]: implements [`Host`], the interface through which plug-ins use their node: journals,
//! providers, authentication, signatures and an HTTP client.

use std::{
    any::Any,
    collections::BTreeMap,
    net::{IpAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{extract::Request, response::IntoResponse as _};
use hearsay_gateway::GatewayOptions;
use hearsay_protocol::{Index, NodeId, Provider};
use hearsay_services::{
    Client, Host, Problem, ResponseFuture, Task,
    http::{Effect, UnsignedRequest},
    journal::Journal,
    network::{AddressPolicy, Exempt, Holder},
};
use http::{HeaderMap, HeaderValue, request::Parts};

use crate::{
    http::{
        guard::{
            access::Access,
            browser::RequestHead,
            caller::{Caller, strip_credentials},
            check_sign_in,
            class::Class,
            host_names::HostNames,
            login::{Login, sign_in_url},
        },
        server::response::protect,
    },
    journal::Journals,
    metrics::Metrics,
    signing::Signing,
    view::View,
};

/// The node as its plug-ins see it.
pub struct NodeHost {
    /// The provider table.
    pub view: Arc<View>,
    /// The node's id.
    pub id: NodeId,
    /// The node's name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// Whether `--demo` was given.
    pub demo: bool,
    /// The journals of the node.
    pub journals: Arc<Journals>,
    /// Listeners of plug-ins that have one, by the plug-in's name, until the plug-in takes its listener.
    pub listeners: Mutex<BTreeMap<String, TcpListener>>,
    /// Access settings, which hold for listeners of plug-ins too.
    pub access: Arc<Access>,
    /// Signs requests of plug-ins to roles.
    pub signing: Arc<Signing>,
    /// HTTP client of the plug-ins.
    pub client: Client,
    /// Addresses that plug-ins may connect to.
    pub address_policy: AddressPolicy,
    /// Names under which clients may address the node.
    pub names: HostNames,
    /// Metrics, which count refusals.
    pub metrics: Arc<Metrics>,
    /// Options of the gateway.
    pub gateway_options: GatewayOptions,
    /// Hosts to which shares do not apply.
    pub exempt: Exempt,
    /// With `--advertise-http`: addresses at which the node's plug-ins reach its roles.
    pub own_http: Option<OwnHttp>,
}

/// Addresses of the node's HTTP behind a mapped port. The mapping may not be reachable from the node itself,
/// so its plug-ins also get the addresses at which it listens.
#[derive(Debug)]
pub struct OwnHttp {
    /// The advertised address, `host:port`.
    pub stated: String,
    /// Known addresses at which the node listens, `host:port`.
    pub listening: Vec<String>,
}

impl NodeHost {
    /// Returns an instance with the addresses that plug-ins of this node use.
    fn seen_here(&self, provider: &Arc<Provider>) -> Arc<Provider> {
        match &self.own_http {
            Some(own) if provider.node_id == self.id && provider.addresses == [own.stated.as_str()] => {
                let addresses = [provider.addresses.as_slice(), own.listening.as_slice()].concat();
                Arc::new(Provider { addresses, ..Provider::clone(provider) })
            }
            _ => Arc::clone(provider),
        }
    }
}

impl Host for NodeHost {
    fn cluster(&self) -> &str {
        &self.cluster
    }

    fn node(&self) -> &str {
        &self.name
    }

    fn node_id(&self) -> NodeId {
        self.id
    }

    fn demo(&self) -> bool {
        self.demo
    }

    fn journal(&self, topic: &str) -> Option<Arc<dyn Journal>> {
        self.journals.topic(topic).map(|topic| Arc::clone(topic) as Arc<dyn Journal>)
    }

    fn client(&self) -> &Client {
        &self.client
    }

    fn sign(&self, recipient: NodeId, request: &UnsignedRequest<'_>, body: &[u8]) -> Option<HeaderValue> {
        self.signing.sign(recipient, request, body)
    }

    fn authenticate(
        &self,
        client: IpAddr,
        request: &Parts,
        path: &str,
        effect: Effect,
    ) -> Result<(), Problem> {
        let caller = Caller::of_listener(client, &request.headers, &self.access);
        let class = if effect.is_write() { Class::of_plugin(path) } else { Class::of_plugin_read(path) };
        caller.check(class, effect, &self.access).map_err(|problem| {
            let Parts { method, uri, headers, version, .. } = request;
            let can_sign_in = self.access.token.is_some() && !caller.has_session();
            let page = || sign_in_url(&RequestHead { uri, headers, version: *version }, method);
            problem.with_page(can_sign_in.then(page).flatten())
        })
    }

    fn reads_need_proof(&self) -> bool {
        self.access.reads_need_proof
    }

    fn sign_in(&self, client: IpAddr, request: Request) -> ResponseFuture<'_> {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let mut response = match check_sign_in(&head, &self.names) {
                Ok(()) => {
                    let Self { access, metrics, cluster, name: node, .. } = self;
                    Login { access, metrics, cluster, node }.answer(Some(client), &head, body).await
                }
                Err((rule, problem)) => {
                    self.metrics.http.refused(rule);
                    problem.into_response()
                }
            };
            protect(response.headers_mut());
            response
        })
    }

    fn strip_credentials(&self, headers: &mut HeaderMap) {
        strip_credentials(headers, &self.access);
    }

    fn address_policy(&self) -> &AddressPolicy {
        &self.address_policy
    }

    fn accepts_host(&self, host: &str) -> bool {
        self.names.accept(host)
    }

    fn plugin_options(&self, plugin: &str) -> Option<&(dyn Any + Send + Sync)> {
        (plugin == "gateway").then_some(&self.gateway_options as _)
    }

    fn providers(&self, service: &str) -> Vec<Arc<Provider>> {
        self.view.read(|table| {
            table.providers_distinct(service).map(|provider| self.seen_here(provider)).collect()
        })
    }

    fn all_providers(&self) -> (Index, Vec<Arc<Provider>>) {
        self.view.read(|table| {
            let all = table.services().flat_map(|service| table.providers_distinct(service));
            (table.services_index(), all.map(|provider| self.seen_here(provider)).collect())
        })
    }

    fn services_changed(&self, since: Index) -> Task {
        let view = Arc::clone(&self.view);
        let mut newest = view.subscribe();
        Box::pin(async move {
            // The index is marked as seen before the read, so that no change is missed.
            newest.mark_unchanged();
            while view.read(|table| table.services_index()) == since {
                if newest.changed().await.is_err() {
                    // Unreachable: this task holds the view.
                    return;
                }
            }
        })
    }

    fn is_exempt_from_shares(&self, ip: IpAddr) -> bool {
        self.exempt.holder(ip) == Holder::Exempt
    }

    fn take_listener(&self, plugin: &str) -> Option<TcpListener> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(plugin)
    }
}
