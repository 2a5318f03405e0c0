//! One instance as the table lists it.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use crate::{
    NodeId,
    record::{Health, Instance, WEIGHT_DEFAULT, WebOrigin},
};

/// An instance and the node that offers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Provider {
    /// Its id, unique on its node.
    pub id: String,
    /// The node that speaks for it.
    pub node_id: NodeId,
    /// That node's name.
    pub node: String,
    /// That node's zone; see [`Provider::zone`].
    pub zone: Option<String>,
    /// What it offers and where.
    pub instance: Arc<Instance>,
    /// Its addresses, `host:port`, in the order in which this node's host should try them. A role has all
    /// addresses of its node.
    pub addresses: Vec<String>,
    /// Whether it is a role of its node; see [`Provider::is_role`].
    pub role: bool,
    /// Whether its node has fallen silent and the table guard keeps it. It counts as passing: lookups show it
    /// as `unverified`.
    pub unverified: bool,
}

impl Provider {
    /// The origins to try, best first; at least one.
    pub fn urls(&self) -> Vec<Cow<'_, str>> {
        if self.addresses.len() < 2 {
            return vec![Cow::Borrowed(self.stated())];
        }
        self.addresses.iter().map(|address| Cow::Owned(self.origin_at(address))).collect()
    }

    /// The origin to try first.
    pub fn url(&self) -> Cow<'_, str> {
        match self.addresses.first().filter(|_| self.addresses.len() > 1) {
            Some(best) => Cow::Owned(self.origin_at(best)),
            None => Cow::Borrowed(self.stated()),
        }
    }

    /// The stated URL without what an older node has written behind the origin. Where that does not begin
    /// with one, it is left as it is, and no client takes it.
    fn stated(&self) -> &str {
        WebOrigin::split(&self.instance.url).map_or(&self.instance.url, |(origin, _)| origin.as_str())
    }

    fn origin_at(&self, address: &str) -> String {
        let scheme = if self.instance.url.starts_with("https://") { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// The host to try first, without its port.
    pub fn host(&self) -> &str {
        let best = self.addresses.first().and_then(|address| address.rsplit_once(':'));
        best.map_or(&self.instance.address, |(host, _)| host.trim_matches(['[', ']']))
    }

    /// Whether its node serves it as one of its roles. A program that bears a role's name is none.
    pub fn is_role(&self) -> bool {
        self.role
    }

    /// The zone of the instance, or of its node where it states none.
    pub fn zone(&self) -> Option<&str> {
        self.instance.zone.as_deref().or(self.zone.as_deref())
    }

    /// Its share of requests relative to others. 0: none while others are there.
    pub fn weight(&self) -> u16 {
        self.instance.weight.unwrap_or(WEIGHT_DEFAULT)
    }

    /// The word that `/services` shows as its health: `passing`, `warning`, `critical` or `unverified`.
    pub fn health_word(&self) -> &'static str {
        if self.unverified { "unverified" } else { self.instance.health.as_str() }
    }

    /// What another instance must share to be the same one, registered with another node. `None` if none can:
    /// a loopback address means another host on each, and a role belongs to its node.
    pub fn endpoint(&self) -> Option<(&str, u16)> {
        let host = self.instance.address.trim_matches(['[', ']']);
        let loopback = host.parse::<IpAddr>().map_or_else(
            |_| host.eq_ignore_ascii_case("localhost"),
            |ip| ip.to_canonical().is_loopback() || ip.is_unspecified(),
        );
        (!loopback && !self.role).then_some((host, self.instance.port))
    }

    /// Orders the registrations of one endpoint: the healthiest first, then the lowest node.
    pub(super) fn preference(&self) -> (Health, bool, NodeId) {
        (self.instance.health, self.unverified, self.node_id)
    }
}
