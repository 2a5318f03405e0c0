//! The node, as its plug-ins see it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use hearsay_protocol::{
    NodeId,
    providers::{Index, Provider},
};
use hearsay_services::{
    Client, Host, Problem,
    address_policy::AddressPolicy,
    gateway::options::GatewayOptions,
    journal::Journal,
    service::Task,
    shares::{Exempt, Holder},
    signing::Unsigned,
};
use http::{HeaderMap, HeaderValue};

use super::{
    caller::{Caller, strip_credentials},
    class::Class,
    site::{Access, HostNames},
};
use crate::{journal::Journals, signing::Signing, view::View};

/// Answers plug-ins from the table.
pub struct NodeHost {
    /// The table.
    pub view: Arc<View>,
    /// The node's identity.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// Whether `--demo` was given.
    pub demo: bool,
    /// The journals that it keeps.
    pub journals: Arc<Journals>,
    /// The listeners of plug-ins that want one of their own, by plug-in, until they are taken.
    pub listeners: Mutex<BTreeMap<String, TcpListener>>,
    /// Who may write to roles, through a listener of a plug-in too.
    pub access: Arc<Access>,
    /// Signs what they ask of roles.
    pub signing: Arc<Signing>,
    /// The plug-ins' way to other services.
    pub client: Client,
    /// Where they may connect to.
    pub address_policy: AddressPolicy,
    /// The names under which it may be asked.
    pub names: HostNames,
    /// What the operator says about the gateway.
    pub gateway_options: GatewayOptions,
    /// The hosts that have no share.
    pub exempt: Exempt,
    /// With `--advertise-http`: how its own plug-ins reach its roles.
    pub own_http: Option<OwnHttp>,
}

/// A mapped port need not lead back in from behind the mapping. So plug-ins of the node go on to where it
/// listens.
#[derive(Debug)]
pub struct OwnHttp {
    /// What others are told, `host:port`.
    pub stated: String,
    /// Where it listens, as far as it is known: `host:port` of each.
    pub listening: Vec<String>,
}

impl NodeHost {
    /// An instance as the plug-ins of this node see it.
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

    fn sign(&self, recipient: NodeId, request: &Unsigned<'_>, body: &[u8]) -> Option<HeaderValue> {
        self.signing.sign(recipient, request, body)
    }

    fn authenticate(&self, client: IpAddr, headers: &HeaderMap, by_get: bool) -> Result<(), Problem> {
        Caller::of_listener(client, headers, &self.access).check(Class::Role, by_get, &self.access)
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

    fn gateway_options(&self) -> GatewayOptions {
        self.gateway_options.clone()
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
            // Marked as seen before it is looked, so that no change can fall between.
            newest.mark_unchanged();
            while view.read(|table| table.services_index()) == since {
                if newest.changed().await.is_err() {
                    // The view lives as long as this does.
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
