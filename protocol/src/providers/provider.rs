//! [`Provider`]: an instance with its node, as the table lists it, and its URLs and addresses.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use crate::{
    NodeId,
    record::{Health, Instance, WEIGHT_DEFAULT, WebOrigin},
};

/// An instance and the node that offers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Provider {
    /// Id of the instance, unique on its node.
    pub id: String,
    /// The node that states the instance.
    pub node_id: NodeId,
    /// Name of that node.
    pub node: String,
    /// Zone of that node; see [`Provider::zone`].
    pub zone: Option<String>,
    /// The instance.
    pub instance: Arc<Instance>,
    /// Addresses, `host:port`, in the order in which this node's host should try them. A role has all
    /// addresses of its node.
    pub addresses: Vec<String>,
    /// Whether the instance is a role of its node; see [`Provider::is_role`].
    pub role: bool,
    /// Whether the node has fallen silent and the table guard keeps the instance listed. Such an instance
    /// counts as passing; lookups show it as `unverified`.
    pub unverified: bool,
}

impl Provider {
    /// Origins to try, best first; at least one.
    pub fn urls(&self) -> Vec<Cow<'_, str>> {
        if self.addresses.len() < 2 {
            return vec![Cow::Borrowed(self.stated())];
        }
        self.addresses.iter().map(|address| Cow::Owned(self.origin_at(address))).collect()
    }

    /// Origin to try first.
    pub fn url(&self) -> Cow<'_, str> {
        match self.addresses.first().filter(|_| self.addresses.len() > 1) {
            Some(best) => Cow::Owned(self.origin_at(best)),
            None => Cow::Borrowed(self.stated()),
        }
    }

    /// Origin of the stated URL. An older node may have stated more than an origin; the rest is cut off. A
    /// URL that does not begin with an origin is returned unchanged, and no client accepts it.
    fn stated(&self) -> &str {
        WebOrigin::split(&self.instance.url).map_or(&self.instance.url, |(origin, _)| origin.as_str())
    }

    fn origin_at(&self, address: &str) -> String {
        let scheme = if self.instance.url.starts_with("https://") { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// Host to try first, without port.
    pub fn host(&self) -> &str {
        let best = self.addresses.first().and_then(|address| address.rsplit_once(':'));
        best.map_or(&self.instance.address, |(host, _)| host.trim_matches(['[', ']']))
    }

    /// Whether the instance is a role of its node. A program that has a role's name is not.
    pub fn is_role(&self) -> bool {
        self.role
    }

    /// Zone of the instance, or of its node if it states none.
    pub fn zone(&self) -> Option<&str> {
        self.instance.zone.as_deref().or(self.zone.as_deref())
    }

    /// Share of requests relative to other instances. 0: no requests while others are listed.
    pub fn weight(&self) -> u16 {
        self.instance.weight.unwrap_or(WEIGHT_DEFAULT)
    }

    /// The word for the instance's health in `/services`: `passing`, `warning`, `critical` or `unverified`.
    pub fn health_word(&self) -> &'static str {
        if self.unverified { "unverified" } else { self.instance.health.as_str() }
    }

    /// Host and port. Registrations with the same endpoint are duplicates. `None` for loopback, which is
    /// another host on each node, and for a role, which belongs to its node.
    pub fn endpoint(&self) -> Option<(&str, u16)> {
        let host = self.instance.address.trim_matches(['[', ']']);
        let loopback = host.parse::<IpAddr>().map_or_else(
            |_| host.eq_ignore_ascii_case("localhost"),
            |ip| ip.to_canonical().is_loopback() || ip.is_unspecified(),
        );
        (!loopback && !self.role).then_some((host, self.instance.port))
    }

    /// Order of the registrations of one endpoint: the healthiest first, then that of the lowest node id.
    pub(super) fn preference(&self) -> (Health, bool, NodeId) {
        (self.instance.health, self.unverified, self.node_id)
    }
}
